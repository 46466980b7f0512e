"""What differs between two trees as text that `git apply` takes, as far as git knows such things.

git has regular files with or without the right to be executed, and symbolic links. What it has not
is named in the first lines, which git and patch pass over.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from os import fsencode
from typing import final

import msgspec

from sandboxsdk.errors import Corrupt, LimitExceeded
from sandboxsdk.snapshot import (
    DIRECTORY,
    FIFO,
    PARTS,
    SOCKET,
    SYMLINK,
    Node,
    Reader,
    compare_trees,
    read_directory,
    read_parts,
)
from sandboxsdk.store import BLOB

from .unified import body, changed_mode, digest, head, named, quoted

# A patch is text in memory.
_FILE_BYTES_MAX = 64 * 1024 * 1024
_PATCH_BYTES_MAX = 512 * 1024 * 1024
# The kernel takes no longer path and no longer name.
_PATH_BYTES_MAX = 4095
_NAME_BYTES_MAX = 255
# As many links it follows in one path.
_LINKS_MAX = 40
# Names that are read and looked up for all links together.
_STEPS_MAX = 500_000
_NO_DIGEST = "0" * 40
# What git and common umasks give new files and directories.
_FILE_MODES = (0o644, 0o664, 0o755, 0o775)
_DIRECTORY_MODES = (0o755, 0o775)
# Names that would be `.git` on some file system, and what may be no link; see `verify_path` of git.
_GIT = re.compile(rb"(\.git|git~1)[. ]*([\\:].*)?", re.IGNORECASE | re.DOTALL)
_GITMODULES = re.compile(
    rb"(\.gitmodules|gitmod~[1-4]|gi7eba~[1-9]|gi7eb~[1-9][0-9]|gi7e~[1-9][0-9]{2}"
    rb"|gi7~[1-9][0-9]{3}|gi~[1-9][0-9]{4}|g~[1-9][0-9]{5}|~[1-9][0-9]{6})[. ]*(:.*)?",
    re.IGNORECASE | re.DOTALL,
)


def make_patch(reader: Reader, old: bytes, new: bytes) -> str:
    """Give a patch from one tree to another; "" if nothing differs that is a change.

    If nothing of what differs is anything that git has, there are only the lines that name it:
    git refuses a patch without any part.

    Raises:
        Corrupt: something is missing or damaged.
        LimitExceeded: the patch has more than 512 MiB, or more differs than can be compared.
    """
    if old == new:
        return ""
    return _Patch(reader, old, new).text()


class _Pair(msgspec.Struct, frozen=True):
    """What a path is on both sides; `covered` if a directory above it becomes something else."""

    old: Node | None
    new: Node | None
    covered: bool


class _Place(msgspec.Struct, frozen=True):
    """What must be known of a directory."""

    mode: int
    empty: bool


@final
class _Differing:
    """All paths whose nodes differ, directories included."""

    def __init__(self, reader: Reader, old: bytes, new: bytes) -> None:
        self.pairs: dict[bytes, _Pair] = {}
        self.places: dict[bytes, tuple[_Place | None, _Place | None]] = {}
        # Directories in which something is the same.
        self.held: set[bytes] = set()
        waiting = [(b"", old, new, False)]
        while waiting:
            path, before, after, covered = waiting.pop()
            was, before_place = _listing(reader, before)
            now, after_place = _listing(reader, after)
            if path:
                self.places[path] = before_place, after_place
            for name in was.keys() | now.keys():
                below = path + b"/" + name if path else name
                one, two = was.get(name), now.get(name)
                if one == two:
                    _mark(self.held, path)
                    continue
                self.pairs[below] = _Pair(one, two, covered)
                trees = _tree(one), _tree(two)
                if any(trees):
                    waiting.append((below, *trees, covered or bool(two and not trees[1])))


def _listing(reader: Reader, tree: bytes) -> tuple[dict[bytes, Node], _Place | None]:
    if not tree:
        return {}, None
    found = read_directory(reader, tree)
    return {node.name: node for node in found.nodes}, _Place(found.mode, not found.nodes)


def _tree(node: Node | None) -> bytes:
    return node.content if node is not None and node.kind == DIRECTORY else b""


def _above(path: bytes) -> bytes:
    return path.rpartition(b"/")[0]


def _mark(marked: set[bytes], path: bytes) -> None:
    """Put a directory and all above it into a set."""
    while path and path not in marked:
        marked.add(path)
        path = _above(path)


@final
class _Links:
    """Follows links of a tree, with a bound on the work for all of them together."""

    def __init__(self, reader: Reader, root: bytes) -> None:
        self._reader, self._root = reader, root
        self._known: dict[bytes, dict[bytes, Node]] = {}
        self._steps = _STEPS_MAX

    def is_endless(self, path: bytes) -> bool:
        """Say whether the kernel gives up on a link: git then cannot look at what comes below it.

        Where a link leaves the tree is not known, and taken for an end. What takes too long to
        follow is taken for endless.
        """
        above = [self._listed(self._root)]
        names, links = path.split(b"/")[::-1], 0
        while names:
            name = names.pop()
            self._steps -= 1
            if self._steps < 0 or links > _LINKS_MAX or len(name) > _NAME_BYTES_MAX:
                return True
            if name == b"..":
                above.pop()
                if not above:
                    return False
            if name in (b"", b".", b".."):
                continue
            node = above[-1].get(name)
            if node is None or (node.kind == SYMLINK and node.content.startswith(b"/")):
                return False
            if node.kind == SYMLINK:
                links += 1
                names += node.content.split(b"/")[::-1]
            else:
                above.append(self._listed(_tree(node)))
        return False

    def _listed(self, tree: bytes) -> dict[bytes, Node]:
        if tree not in self._known and self._steps >= 0:
            self._known[tree] = _listing(self._reader, tree)[0]
            self._steps -= len(self._known[tree])
        return self._known.get(tree, {})


def _all_above(path: bytes) -> Iterator[bytes]:
    """Give the paths of the directories above a path."""
    while b"/" in path:
        path = path.rpartition(b"/")[0]
        yield path


@final
class _Patch:
    """Decides what goes into the patch, then writes it.

    git removes first all that goes or is written anew, with the directories that this leaves empty;
    then it writes. What stays in between stands in the way of what shall come there.
    """

    def __init__(self, reader: Reader, old: bytes, new: bytes) -> None:
        self._reader, self._links = reader, _Links(reader, old)
        changes = compare_trees(reader, old, new)
        self._kinds = {fsencode(change.path): change.kind for change in changes}
        moved = {fsencode(c.path): fsencode(c.old_path) for c in changes if c.old_path is not None}
        self._kinds.update(dict.fromkeys(moved.values(), "removed"))
        differing = _Differing(reader, old, new)
        self._pairs, self._places = differing.pairs, differing.places
        self._missing: dict[bytes, str] = {}
        self._removed: set[bytes] = set()
        self._edited: set[bytes] = set()
        self._created: set[bytes] = set()
        # What is not the patch's to touch, and directories that hold such things.
        self._stuck: set[bytes] = set()
        self._held = differing.held
        for path, pair in self._pairs.items():
            self._sort(path, pair)
        self._drop_blocked()
        # New path to old path.
        self._renamed = {
            path: before
            for path, before in moved.items()
            if path in self._created
            and before in self._removed
            # patch would follow a link that is to become a directory.
            and not any(above in self._removed for above in _all_above(path))
        }
        self._name_modes()
        self._name_directories()
        self._removed -= set(self._renamed.values())
        self._created -= self._renamed.keys()
        self._size = 0

    def text(self) -> str:
        return "".join(map(self._counted, self._parts()))

    def _counted(self, part: str) -> str:
        self._size += len(part.encode())
        if self._size > _PATCH_BYTES_MAX:
            reason = f"the patch has more than {_PATCH_BYTES_MAX:,} bytes"
            raise LimitExceeded(reason=reason, hint="use diff(), or restore_to() of a checkpoint")
        return part

    def _parts(self) -> Iterator[str]:
        """Give the parts in the order of their paths, but what is in the way of others first."""
        for path, what in sorted(self._missing.items()):
            yield f"# not in this patch: {quoted(path, always=True)}: {what}\n"
        for path in sorted(self._removed):
            if self._is_in_the_way(path):
                yield self._removal(path)
        for path, before in sorted(self._renamed.items()):
            if self._is_in_the_way(before):
                yield self._rename(before, path)
        for path in sorted(self._removed | self._edited | self._created | self._renamed.keys()):
            if path in self._removed and not self._is_in_the_way(path):
                yield self._removal(path)
            elif path in self._edited:
                yield self._edit(path)
            elif path in self._created:
                yield self._creation(path)
            elif path in self._renamed and not self._is_in_the_way(self._renamed[path]):
                yield self._rename(self._renamed[path], path)

    def _is_in_the_way(self, path: bytes) -> bool:
        pair = self._pairs[path]
        return pair.covered or pair.new is not None

    # --- What goes into it ------------------------------------------------------------------------

    def _sort(self, path: bytes, pair: _Pair) -> None:
        """Decide about one path, looking at nothing else."""
        old, new = pair.old, pair.new
        changed = path in self._kinds
        ill = _refused_name(path)
        whys = _refused(path, old), _refused(path, new)
        if ill or any(whys):
            if changed:
                shown, what = (ill, "git takes no path of this name") if ill else (path, "")
                gone = "the end of" if new is None else "what takes the place of"
                self._missing[shown] = what or whys[1] or f"{gone} {whys[0]}"
            if old is not None:
                self._stuck.add(path)
                _mark(self._held, _above(path))
            return
        old, new = (None if _tree(node) else node for node in (old, new))
        was = self._places[path][0] if path in self._places else None
        if was is not None and was.empty:
            _mark(self._held, path)
        if old is not None and new is not None and _mode(old)[:2] == _mode(new)[:2]:
            if self._kinds.get(path) == "modified" or _mode(old) != _mode(new):
                self._edited.add(path)
                return
            _mark(self._held, _above(path))
            if changed:
                self._missing[path] = _told_mode(new.mode)
            return
        if old is not None:
            self._removed.add(path)
            if old.kind == SYMLINK and _tree(pair.new) and self._links.is_endless(path):
                self._stuck.add(path)
        if new is not None:
            self._created.add(path)

    def _drop_blocked(self) -> None:
        """Take out what cannot come, because what was there before stays."""
        for path in sorted(self._created):
            was = self._places[path][0] if path in self._places else None
            blocked = was is not None and not was.empty and path in self._held
            above = _above(path) if self._stuck else b""
            while above and not blocked:
                blocked = above in self._stuck
                above = _above(above)
            if blocked:
                self._created.remove(path)
                self._missing[path] = "git does not clear its place"

    def _name_modes(self) -> None:
        """Name the files that git will give another mode than they have."""
        for path in self._edited | self._created:
            before, new = self._pairs[self._renamed.get(path, path)].old, self._pairs[path].new
            assert new is not None
            if not new.is_file:
                continue
            mode, differs = new.mode & 0o7777, 0
            if before is not None and before.is_file:
                # The right of all to execute goes with that of the owner, if that one changes.
                told = 0o111 if _mode(before) != _mode(new) else 0
                differs = (before.mode ^ new.mode) & 0o7777 & ~told
            if mode not in _FILE_MODES or differs:
                self._missing.setdefault(path, _told_mode(mode))

    def _name_directories(self) -> None:
        """Name what differs in directories: git knows none, and removes those that it empties."""
        emptied: set[bytes] = set()
        for path in self._removed:
            _mark(emptied, _above(path))
        emptied -= self._held
        filled = set(self._held)
        for path in self._edited | self._created:
            _mark(filled, _above(path))
        for path, (was, now) in self._places.items():
            if _refused_name(path) or path in self._missing:
                continue
            if now is None:
                if was is not None and was.empty and path not in self._created:
                    self._missing[path] = "the end of an empty directory"
            elif path not in filled and (was is None or path in emptied):
                if now.empty:
                    self._missing[path] = "an empty directory"
            elif was is None or path in emptied:
                if now.mode not in _DIRECTORY_MODES:
                    self._missing[path] = _told_mode(now.mode, "the mode of a directory")
            elif was.mode != now.mode:
                self._missing[path] = _told_mode(now.mode, "the mode of a directory")

    # --- Parts of the patch -----------------------------------------------------------------------

    def _nodes(self, before: bytes, after: bytes) -> tuple[Node, Node]:
        old, new = self._pairs[before].old, self._pairs[after].new
        assert old is not None
        assert new is not None
        return old, new

    def _edit(self, path: bytes) -> str:
        old, new = self._nodes(path, path)
        before, after = self._content(path, old), self._content(path, new)
        modes = _mode(old), _mode(new)
        lines = [head(path, path), changed_mode(*modes)]
        if before != after:
            mode = f" {modes[1]}" if modes[0] == modes[1] else ""
            lines.append(f"index {digest(before)}..{digest(after)}{mode}\n")
            lines.append(body(named(b"a/", path), named(b"b/", path), before, after))
        return "".join(lines)

    def _rename(self, before: bytes, after: bytes) -> str:
        old, new = self._nodes(before, after)
        return (
            f"{head(before, after)}{changed_mode(_mode(old), _mode(new))}similarity index 100%\n"
            f"rename from {quoted(before)}\nrename to {quoted(after)}\n"
        )

    def _removal(self, path: bytes) -> str:
        old = self._pairs[path].old
        assert old is not None
        before = self._content(path, old)
        told = f"{head(path, path)}deleted file mode {_mode(old)}\n"
        told += f"index {digest(before)}..{_NO_DIGEST}\n"
        return told + body(named(b"a/", path), "/dev/null", before, b"")

    def _creation(self, path: bytes) -> str:
        new = self._pairs[path].new
        assert new is not None
        after = self._content(path, new)
        told = f"{head(path, path)}new file mode {_mode(new)}\n"
        told += f"index {_NO_DIGEST}..{digest(after)}\n"
        return told + body("/dev/null", named(b"b/", path), b"", after)

    def _content(self, path: bytes, node: Node) -> bytes:
        if node.kind == SYMLINK or not node.size:
            return node.content
        if node.kind != PARTS:
            pieces = [self._read(path, node.content, node.size)]
        else:
            pieces = [
                self._read(path, part.content, part.length) if part.content else bytes(part.length)
                for part in read_parts(self._reader, node)
            ]
        return b"".join(pieces)

    def _read(self, path: bytes, digest: bytes, size: int) -> bytes:
        data = self._reader.read(BLOB, digest)
        if len(data) != size:
            raise Corrupt(path=quoted(path), reason="is of another size than its directory says")
        return data


# --- What git has ---------------------------------------------------------------------------------


def _mode(node: Node) -> str:
    """Give the mode of a file or link as git writes it."""
    if node.kind == SYMLINK:
        return "120000"
    return "100755" if node.mode & stat.S_IXUSR else "100644"


def _refused_name(path: bytes) -> bytes:
    """Give the path up to the first name that git takes nowhere; empty if there is none."""
    if len(path) > _PATH_BYTES_MAX:
        return path
    at = 0
    for name in path.split(b"/"):
        at += len(name) + 1
        if _GIT.fullmatch(name):
            return path[: at - 1]
    return b""


def _refused(path: bytes, node: Node | None) -> str:
    """Say what an entry is that git does not have; "" if it does."""
    if node is None or node.kind == DIRECTORY:
        return ""
    if node.kind == SYMLINK:
        hidden = any(map(_GITMODULES.fullmatch, path.split(b"/")))
        return "a link of a name that git takes for none" if hidden else ""
    if not node.is_file:
        return {FIFO: "a FIFO", SOCKET: "a socket"}.get(node.kind, "a device")
    return f"a file of {node.size:,} bytes" if node.size > _FILE_BYTES_MAX else ""


def _told_mode(mode: int, what: str = "its mode, but for the right to be executed") -> str:
    return f"{what} ({mode & 0o7777:04o})"
