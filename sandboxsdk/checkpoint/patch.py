"""What differs between two trees as text that `git apply` takes, as far as git knows such things.

git has regular files with or without the right to be executed, and symbolic links. What it has not
is named in the first lines, which git and patch pass over.
"""

from __future__ import annotations

import base64
import hashlib
import os
import stat
import zlib
from collections.abc import Iterable, Iterator
from typing import final

import msgspec

from sandboxsdk.errors import LimitExceeded
from sandboxsdk.model import Change
from sandboxsdk.snapshot import (
    DIRECTORY,
    PARTS,
    SYMLINK,
    Node,
    Reader,
    compare_trees,
    read_directory,
    read_parts,
)
from sandboxsdk.store import BLOB

from .unified import hunks

# A patch is text in memory.
_FILE_BYTES_MAX = 64 * 1024 * 1024
_PATCH_CHARACTERS_MAX = 512 * 1024 * 1024
_NO_DIGEST = "0" * 40
# What git and common umasks give new files.
_USUAL_MODES = (0o644, 0o664, 0o755, 0o775)
_NAMED = {"\a": "a", "\b": "b", "\t": "t", "\n": "n", "\v": "v", "\f": "f", "\r": "r"}
_LINE_BYTES = 52


def make_patch(reader: Reader, old: bytes, new: bytes) -> str:
    """Give a patch from one tree to another; "" if they do not differ in what is a change.

    Raises:
        Corrupt: something is missing or damaged.
        LimitExceeded: more differs than a patch can hold.
    """
    if old == new:
        return ""
    return _Patch(reader, old, new).text()


class _Blob(msgspec.Struct, frozen=True):
    """A file or link as git has it."""

    mode: str
    node: Node


@final
class _Tree:
    """Finds entries of a tree by path."""

    def __init__(self, reader: Reader, root: bytes) -> None:
        self._reader, self._root = reader, root
        self._known: dict[bytes, dict[bytes, Node]] = {}

    def listing(self, path: bytes) -> dict[bytes, Node] | None:
        """Give what a directory lists; None if there is none."""
        if path in self._known:
            return self._known[path]
        if not path:
            digest = self._root
        else:
            node = self.find(path)
            if node is None or node.kind != DIRECTORY:
                return None
            digest = node.content
        found = {node.name: node for node in read_directory(self._reader, digest).nodes}
        self._known[path] = found
        return found

    def find(self, path: bytes) -> Node | None:
        above, _, name = path.rpartition(b"/")
        listed = self.listing(above)
        return None if listed is None else listed.get(name)


@final
class _Patch:
    def __init__(self, reader: Reader, old: bytes, new: bytes) -> None:
        self._reader = reader
        self._old, self._new = _Tree(reader, old), _Tree(reader, new)
        self._changes = compare_trees(reader, old, new)
        self._missing: dict[str, str] = {}
        self._size = 0

    def text(self) -> str:
        # What is in the way goes first: a file may become a directory, and patch takes one part
        # after the other.
        removals: list[str] = []
        renames: list[str] = []
        edits: list[str] = []
        creations: list[str] = []
        for change in self._changes:
            before, after = change.old_path or change.path, change.path
            old, new = self._blob(self._old, before), self._blob(self._new, after)
            if change.kind == "renamed" and old is not None and new is not None:
                renames.append(self._count(_rename(before, after, old, new)))
                continue
            if old is not None and new is not None and old.mode[:2] == new.mode[:2]:
                if change.kind == "modified" or old.mode != new.mode:
                    edits.append(self._count(self._edit(after, old, new)))
                continue
            if old is not None:
                removals.append(self._count(self._removal(before, old)))
            if new is not None:
                creations.append(self._count(self._creation(after, new)))
        self._name_directories()
        named = [
            f"# not in this patch: {_quoted(path, always=True)}: {what}\n"
            for path, what in sorted(self._missing.items(), key=lambda one: os.fsencode(one[0]))
        ]
        return "".join((*named, *reversed(removals), *renames, *edits, *creations))

    def _count(self, text: str) -> str:
        self._size += len(text)
        if self._size > _PATCH_CHARACTERS_MAX:
            reason = f"the patch has more than {_PATCH_CHARACTERS_MAX:,} characters"
            raise LimitExceeded(reason=reason, hint="use diff(), or restore_to() of a checkpoint")
        return text

    # --- What git has -----------------------------------------------------------------------------

    def _blob(self, tree: _Tree, path: str) -> _Blob | None:
        """Give what git has of an entry; None, and its name noted, if that is nothing."""
        node = tree.find(os.fsencode(path))
        if node is None:
            return None
        inside = _inside_git(path)
        if inside:
            # Once for all that lies there: a commit alone has many.
            self._missing[inside] = "git takes no path of this name"
            return None
        refused = _refused(path, node)
        if refused:
            self._missing[path] = refused
            return None
        if node.kind == DIRECTORY:
            return None
        if node.kind == SYMLINK:
            return _Blob("120000", node)
        mode = node.mode & 0o777
        other = self._old if tree is self._new else self._new
        twin = other.find(os.fsencode(path))
        kept = twin is not None and twin.is_file
        if (kept and twin is not None and _loses_mode(twin, node)) or (
            not kept and tree is self._new and mode not in _USUAL_MODES
        ):
            self._missing[path] = f"all of its mode but the right to be executed ({mode:o})"
        return _Blob("100755" if mode & stat.S_IXUSR else "100644", node)

    def _name_directories(self) -> None:
        """Name what differs in directories: git knows none, and removes those that it empties."""
        looked: set[bytes] = set()
        for change in self._changes:
            for shown in filter(None, (change.path, change.old_path)):
                path = os.fsencode(shown)
                for at in (path, path.rpartition(b"/")[0]):
                    if at and at not in looked:
                        looked.add(at)
                        self._name_directory(at, change)

    def _name_directory(self, path: bytes, change: Change) -> None:
        shown = os.fsdecode(path)
        if _inside_git(shown):
            return
        before, after = self._old.listing(path), self._new.listing(path)
        if after is not None and not after and before != after:
            self._missing[shown] = "an empty directory"
        elif after is None and before is not None and not before:
            self._missing[shown] = "that an empty directory is gone"
        elif after is not None and change.kind == "mode" and shown == change.path:
            self._missing[shown] = f"the mode of a directory ({(change.mode or 0) & 0o7777:o})"

    def _content(self, node: Node) -> bytes:
        if node.kind == SYMLINK or not node.content:
            return node.content
        if node.kind != PARTS:
            return self._reader.read(BLOB, node.content)
        return b"".join(
            self._reader.read(BLOB, part.content) if part.content else bytes(part.length)
            for part in read_parts(self._reader, node)
        )

    # --- Parts of the patch -----------------------------------------------------------------------

    def _edit(self, path: str, old: _Blob, new: _Blob) -> str:
        before, after = self._content(old.node), self._content(new.node)
        lines = [_head(path, path)]
        if old.mode != new.mode:
            lines.append(f"old mode {old.mode}\nnew mode {new.mode}\n")
        if before != after:
            mode = f" {new.mode}" if old.mode == new.mode else ""
            lines.append(f"index {_digest(before)}..{_digest(after)}{mode}\n")
            lines.append(_body(_named("a", path), _named("b", path), before, after))
        return "".join(lines)

    def _removal(self, path: str, old: _Blob) -> str:
        before = self._content(old.node)
        head = f"{_head(path, path)}deleted file mode {old.mode}\n"
        head += f"index {_digest(before)}..{_NO_DIGEST}\n"
        return head + _body(_named("a", path), "/dev/null", before, b"")

    def _creation(self, path: str, new: _Blob) -> str:
        after = self._content(new.node)
        head = f"{_head(path, path)}new file mode {new.mode}\n"
        head += f"index {_NO_DIGEST}..{_digest(after)}\n"
        return head + _body("/dev/null", _named("b", path), b"", after)


def _loses_mode(old: Node, new: Node) -> bool:
    """Say whether more of a mode differs than git tells."""
    differs = (old.mode ^ new.mode) & 0o777
    return bool(differs & 0o666) or bool(differs) != bool(differs & stat.S_IXUSR)


def _refused(path: str, node: Node) -> str:
    """Say why git takes no such entry; "" if it does."""
    if node.kind == DIRECTORY:
        return ""
    if node.kind == SYMLINK:
        gitmodules = _folded(path.rpartition("/")[2]) == ".gitmodules"
        return "git takes no link of this name" if gitmodules else ""
    if not node.is_file:
        return "no file, link or directory"
    if node.size > _FILE_BYTES_MAX:
        return f"a file of {node.size:,} bytes"
    return ""


def _inside_git(path: str) -> str:
    """Give the part of a path that is, or looks to git like, a repository; "" if none does."""
    names = path.split("/")
    for number, name in enumerate(names, 1):
        if _folded(name) in (".git", "git~1"):
            return "/".join(names[:number])
    return ""


def _folded(name: str) -> str:
    return name.partition(":")[0].rstrip(". ").casefold()


def _rename(before: str, after: str, old: _Blob, new: _Blob) -> str:
    modes = "" if old.mode == new.mode else f"old mode {old.mode}\nnew mode {new.mode}\n"
    return (
        f"{_head(before, after)}{modes}similarity index 100%\n"
        f"rename from {_quoted(before)}\nrename to {_quoted(after)}\n"
    )


def _head(before: str, after: str) -> str:
    return f"diff --git {_quoted(f'a/{before}')} {_quoted(f'b/{after}')}\n"


def _named(side: str, path: str) -> str:
    """Name a file before its hunks; a tab tells where a name with blanks ends."""
    quoted = _quoted(f"{side}/{path}")
    return f"{quoted}\t" if " " in quoted and not quoted.startswith('"') else quoted


def _body(before: str, after: str, old: bytes, new: bytes) -> str:
    if old == new:
        return ""
    texts = _text(old), _text(new)
    if texts[0] is None or texts[1] is None:
        return "GIT binary patch\n" + "".join(_literal(new)) + "".join(_literal(old))
    lines = [_lines(text) for text in texts if text is not None]
    return "".join((f"--- {before}\n+++ {after}\n", *hunks(*lines)))


def _text(data: bytes) -> str | None:
    """Give text; None is anything that a text file would not carry unchanged."""
    if b"\0" in data:
        return None
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def _lines(text: str) -> list[str]:
    lines = [f"{line}\n" for line in text.split("\n")]
    last = lines.pop()[:-1]
    return [*lines, last] if last else lines


def _literal(data: bytes) -> Iterator[str]:
    """Give a content as git writes it: deflated, 52 bytes a line, each with its length before."""
    yield f"literal {len(data)}\n"
    packed = zlib.compress(data)
    for start in range(0, len(packed), _LINE_BYTES):
        piece = packed[start : start + _LINE_BYTES]
        length = len(piece)
        letter = chr(ord("A") + length - 1) if length <= 26 else chr(ord("a") + length - 27)
        yield f"{letter}{base64.b85encode(piece, pad=True).decode('ascii')}\n"
    yield "\n"


def _digest(data: bytes) -> str:
    """Give the name of a content in git, which checks it against."""
    hashed = hashlib.sha1(b"blob %d\0" % len(data), usedforsecurity=False)
    hashed.update(data)
    return hashed.hexdigest()


def _quoted(name: str, *, always: bool = False) -> str:
    """Write a name as git does: in quotes, if it has anything but printable ASCII."""
    told = "".join(_escapes(os.fsencode(name)))
    return f'"{told}"' if always or told != name else name


def _escapes(name: Iterable[int]) -> Iterator[str]:
    for byte in name:
        letter = chr(byte)
        if letter in '"\\':
            yield f"\\{letter}"
        elif letter in _NAMED:
            yield f"\\{_NAMED[letter]}"
        elif 0x20 <= byte < 0x7F:
            yield letter
        else:
            yield f"\\{byte:03o}"
