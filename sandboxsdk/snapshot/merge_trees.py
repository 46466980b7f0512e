"""Three trees into one: what somebody changed, brought into a directory that others changed too.

For each name there are three entries: what both sides began with (`base`), what one side made of it
(`new`), and what is there now (`there`). A change is taken over where `there` still has what
`base` had; where it has what `new` has, there is nothing to do; else it is a conflict. Times,
owners, hard links and attributes are no part of the comparison.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple, Protocol, final

import msgspec

from .equality import DIRECTORY_BITS, FILE_BITS, equal_below, part_of
from .measure import NOT_MADE, check_limits
from .tree import (
    DIRECTORY,
    FIFO,
    Attributes,
    Directory,
    Node,
    Objects,
    read_directory,
    write_directory,
)

Judge = Callable[[bytes, bool], bool]
Alike = Callable[[bytes, Node, Node], bool]


class Shelf(Objects, Protocol):
    """What gives objects and takes new ones."""

    def add(self, kind: int, data: bytes, /) -> bytes: ...


class Merged(msgspec.Struct, frozen=True, kw_only=True):
    """What a merge came to. Paths are in the order of their bytes.

    Attributes:
        tree: `there` with the changes taken over.
        expected: `base` with the changes taken over, and those that were there already: what
            `there` is known to have of it, for the next merge.
        conflicts: paths that both sides changed; with `force`, those at which `new` won.
        held: paths whose change was held back.
        skipped: paths of sockets and devices, which are never made.
    """

    tree: bytes
    expected: bytes
    conflicts: tuple[str, ...] = ()
    held: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()


def merge_trees(
    shelf: Shelf,
    *,
    base: bytes,
    new: bytes,
    there: bytes,
    moved: Judge = lambda _path, _present: False,
    held: Judge = lambda _path, _is_directory: False,
    alike: Alike = lambda _path, _one, _two: False,
    remnants: bool = False,
    force: bool = False,
    now: int | None = None,
    owned: bool = False,
) -> Merged:
    """Merge; costs what differs between `base` and `new`, and the directories on the way to it.

    Args:
        shelf: gives the trees, and takes the new ones.
        base, new, there: digests of the three root directories.
        moved: says that what `base` has at a path (or, told False, that it has nothing) is not what
            it was: then no change is taken over there.
        held: says that changes at a path, and below it, are not taken over.
        alike: says that two files are as good as equal, where they are not.
        remnants: where a directory becomes something else, or the other way round, what is half
            there of either is ours.
        force: let `new` win where there is a conflict.
        now: UTC nanoseconds that what is taken over has for its time; None is its own.
        owned: what is taken over belongs to whom its file, or its directory, belongs in `there`.

    Raises:
        LimitExceeded: more differs than a checkpoint may hold.
        Corrupt: a tree is missing or damaged.
    """
    asked = _Asked(moved, held, alike, remnants, force, now, owned)
    return _Merge(shelf, asked).run(base, new, there)


class _Asked(NamedTuple):
    """What `merge_trees` was asked for."""

    moved: Judge
    held: Judge
    alike: Alike
    remnants: bool
    force: bool
    now: int | None
    owned: bool


@final
class _Frame:
    """A directory that is being merged; any of the three may lack it.

    Attributes:
        place: what `there` has at this path: the directory, something else, or nothing.
        bases: what `base` lists.
        nodes, expected: what the two results list.
        changed: entries come, go, or become others in `there`.
        replaced: a directory in it is another one now.
        rebased: the second result differs from `base`.
        waiting: names that are not merged yet.
        owner: whose new entries are.
        gone: the task removed it.
        lost: base has it, or one above it, and `there` has not: nothing new is put there.
    """

    __slots__ = (
        "above",
        "base",
        "bases",
        "changed",
        "expected",
        "gone",
        "lost",
        "name",
        "new",
        "nodes",
        "owner",
        "place",
        "rebased",
        "replaced",
        "there",
        "waiting",
    )

    def __init__(
        self,
        above: _Frame | None,
        name: bytes,
        base: Directory | None,
        new: Directory | None,
        there: Directory | None,
        place: Node | None,
    ) -> None:
        self.above, self.name = above, name
        self.base, self.new, self.there, self.place = base, new, there, place
        self.gone: bool = new is None
        inherited = above is not None and above.lost
        self.lost: bool = there is None and (inherited or base is not None)
        self.owner: tuple[int, int] = (0, 0)
        if there is not None:
            self.owner = (there.uid, there.gid)
        elif place is not None:
            self.owner = (place.uid, place.gid)
        elif above is not None:
            self.owner = above.owner
        self.nodes: dict[bytes, Node] = _by_name(there)
        self.bases: dict[bytes, Node] = _by_name(base)
        self.expected: dict[bytes, Node] = dict(self.bases)
        self.changed: bool = False
        self.replaced: bool = False
        self.rebased: bool = False
        names = {*self.expected, *_by_name(new)}
        self.waiting: list[bytes] = sorted(names, reverse=True)

    @property
    def path(self) -> bytes:
        """The path from the root. It is not kept: those of a deep tree would have gigabytes."""
        names = []
        frame = self
        while frame.above is not None:
            names.append(frame.name)
            frame = frame.above
        return b"/".join(reversed(names))


def _by_name(directory: Directory | None) -> dict[bytes, Node]:
    return {} if directory is None else {node.name: node for node in directory.nodes}


@final
class _Merge:
    def __init__(self, shelf: Shelf, asked: _Asked) -> None:
        self._shelf, self._asked = shelf, asked
        self._moved, self._held, self._force = asked.moved, asked.held, asked.force
        self._conflicts: set[bytes] = set()
        self._kept_back: set[bytes] = set()
        self._skipped: set[bytes] = set()
        self._seen = 0

    def run(self, base: bytes, new: bytes, there: bytes) -> Merged:
        tree, expected = there, base
        if base != new:
            tree, expected = self._merged(base, new, there)
        return Merged(
            tree=tree,
            expected=expected,
            conflicts=_told(self._conflicts),
            held=_told(self._kept_back),
            skipped=_told(self._skipped),
        )

    def _merged(self, base: bytes, new: bytes, there: bytes) -> tuple[bytes, bytes]:
        """Go through all directories that differ, each after those that lie in it."""
        place = Node(b"", DIRECTORY, content=there)
        top = _Frame(None, b"", self._read(base), self._read(new), self._read(there), place)
        news = {top: _by_name(top.new)}
        stack = [top]
        digests = (there, base)
        while stack:
            frame = stack[-1]
            self._seen += 1
            check_limits(self._seen, len(stack))
            below = None
            while frame.waiting and below is None:
                below = self._name(frame, frame.waiting.pop(), news[frame])
            if below is not None:
                news[below] = _by_name(below.new)
                stack.append(below)
                continue
            stack.pop()
            del news[frame]
            found = self._finish(frame)
            if frame.above is None:
                digests = (found[0] or there, found[1] or base)
            else:
                _set(frame.above, frame.name, *found, place=frame.place)
        return digests

    def _read(self, digest: bytes) -> Directory:
        return read_directory(self._shelf, digest)

    def _directory(self, node: Node | None) -> Directory | None:
        if node is None or node.kind != DIRECTORY:
            return None
        return self._read(node.content)

    # --- One name -----------------------------------------------------------------------------

    def _name(self, frame: _Frame, name: bytes, news: dict[bytes, Node]) -> _Frame | None:
        """Merge one name; gives the directory to go into, if that is what it takes."""
        old, new, there = frame.bases.get(name), news.get(name), frame.nodes.get(name)
        if old == new:
            return None
        path = frame.path + b"/" + name if frame.above is not None else name
        is_directory = (new or old or Node(name, FIFO)).kind == DIRECTORY
        if self._held(path, is_directory):
            if not equal_below(self._shelf, old, new) and not equal_below(self._shelf, new, there):
                self._kept_back.add(path)
            return None
        if new is not None and new.kind in NOT_MADE:
            if not equal_below(self._shelf, old, new):
                self._skipped.add(path)
            return None
        if is_directory and (new is None or new.kind == DIRECTORY):
            return self._go_into(frame, path, old, new, there)
        if equal_below(self._shelf, old, new):
            return None
        if equal_below(self._shelf, new, there):
            _settle(frame, name, new)
        elif self._is_free(frame, path, old, new, there):
            self._take(frame, name, new, there)
        else:
            self._conflicts.add(path)
            if self._force:
                self._take(frame, name, new, there)
        return None

    def _go_into(
        self, frame: _Frame, path: bytes, old: Node | None, new: Node | None, there: Node | None
    ) -> _Frame | None:
        """Merge a directory that the task has, or had and removed."""
        name = path.rpartition(b"/")[2]
        was, here = self._directory(old), self._directory(there)
        if new is None:
            if there is None:
                _settle(frame, name, None)
                return None
            if here is None:
                # Something else took the place of the directory that the task removed.
                self._conflicts.add(path)
                if self._force:
                    self._take(frame, name, None, there)
                return None
        elif was is None and here is None and not self._is_free(frame, path, old, new, there):
            self._conflicts.add(path)
            if not self._force:
                return None
        return _Frame(frame, name, was, self._directory(new), here, there)

    def _is_free(
        self, frame: _Frame, path: bytes, old: Node | None, new: Node | None, there: Node | None
    ) -> bool:
        """Say whether `there` has what the task began with, all below it included."""
        if self._asked.remnants and self._is_remnant(old, new, there):
            return True
        same = equal_below(self._shelf, old, there)
        if not same and old is not None and there is not None:
            same = self._asked.alike(path, old, there)
        return (
            same
            and not frame.lost
            and not self._moved(path, old is not None)
            and not self._is_moved_below(path, there)
        )

    def _is_remnant(self, old: Node | None, new: Node | None, there: Node | None) -> bool:
        """Say whether this is what a stopped run has left of a directory that was to become
        something else, or the other way round.
        """
        if old is None or new is None or (old.kind == DIRECTORY) == (new.kind == DIRECTORY):
            return False
        return there is None or any(part_of(self._shelf, there, one) for one in (old, new))

    def _is_moved_below(self, path: bytes, node: Node | None) -> bool:
        stack, seen = [(path, node)], 0
        while stack:
            at, found = stack.pop()
            directory = self._directory(found)
            for below in directory.nodes if directory is not None else ():
                seen += 1
                check_limits(seen, 0)
                one = at + b"/" + below.name
                if self._moved(one, True):
                    return True
                if below.kind == DIRECTORY:
                    stack.append((one, below))
        return False

    def _take(self, frame: _Frame, name: bytes, new: Node | None, there: Node | None) -> None:
        """Take a change over: an entry that is no directory, or that goes."""
        _settle(frame, name, new)
        frame.changed = True
        if new is None:
            frame.nodes.pop(name, None)
            return
        taken = msgspec.structs.replace(new, mode=new.mode & FILE_BITS, link=0)
        old = frame.bases.get(name)
        if there is not None and there.is_file and new.is_file:
            before = old.attributes if old is not None else ()
            attributes = _attributes(before, new.attributes, there.attributes)
            taken = msgspec.structs.replace(taken, attributes=attributes)
        if self._asked.now is not None:
            taken = msgspec.structs.replace(taken, mtime=self._asked.now)
        if self._asked.owned:
            uid, gid = frame.owner
            if there is not None:
                place = self._directory(there) or there
                uid, gid = place.uid, place.gid
            taken = msgspec.structs.replace(taken, uid=uid, gid=gid)
        frame.nodes[name] = taken

    # --- A directory of which all names are merged ------------------------------------------------

    def _finish(self, frame: _Frame) -> tuple[bytes | None, bytes | None]:
        """Give the digests of the two results for a directory; None where there is none."""
        refused = self._is_refused(frame)
        if refused:
            self._conflicts.add(frame.path or b".")
            refused = not self._force
        return self._result(frame, refused=refused), self._expectation(frame, refused=refused)

    def _is_refused(self, frame: _Frame) -> bool:
        """Say whether the directory itself, apart from its names, is a conflict."""
        base, new, there = frame.base, frame.new, frame.there
        if base is None:
            return False  # Both made it: what is there keeps its mode.
        if new is None:
            # Whatever its mode is: of a run that was stopped there are directories half made.
            return not frame.nodes and self._moved(frame.path, True)
        old, wanted = base.mode & DIRECTORY_BITS, new.mode & DIRECTORY_BITS
        now = there.mode & DIRECTORY_BITS if there is not None else None
        if wanted in (old, now):
            return False
        return now != old or self._moved(frame.path, True)

    def _result(self, frame: _Frame, *, refused: bool) -> bytes | None:
        there, new = frame.there, frame.new
        if frame.gone and not frame.nodes and not refused:
            return None
        if there is None:
            forced = self._force and frame.path in self._conflicts
            if new is None or (frame.lost and not frame.nodes and not forced):
                return None  # The user removed it, and nothing of the task's goes there.
            mode, attributes, changed = new.mode & DIRECTORY_BITS, new.attributes, True
        else:
            mode = _mode(frame, there, refused=refused)
            changed = frame.changed
            same = not changed and not frame.replaced
            attributes = there.attributes
            if new is not None:
                old = frame.base.attributes if frame.base is not None else ()
                attributes = _attributes(old, new.attributes, there.attributes)
            if same and (mode, attributes) == (there.mode, there.attributes):
                assert frame.place is not None
                return frame.place.content
        mtime = there.mtime if there is not None else new.mtime if new is not None else 0
        if changed and self._asked.now is not None:
            mtime = self._asked.now
        elif changed and new is not None:
            mtime = new.mtime
        uid, gid = frame.owner
        if not self._asked.owned and there is None and new is not None:
            uid, gid = new.uid, new.gid
        nodes = [frame.nodes[name] for name in sorted(frame.nodes)]
        return write_directory(self._shelf, Directory(mode, mtime, uid, gid, attributes, nodes))

    def _expectation(self, frame: _Frame, *, refused: bool) -> bytes | None:
        """Give what `base` becomes, empty where it stays what it is."""
        base, new = frame.base, frame.new
        if frame.gone and not frame.expected and not refused:
            return None
        nodes = [frame.expected[name] for name in sorted(frame.expected)]
        if base is None:
            assert new is not None
            return write_directory(self._shelf, msgspec.structs.replace(new, nodes=nodes))
        mode, attributes = base.mode, base.attributes
        if new is not None and not refused:
            if (mode ^ new.mode) & DIRECTORY_BITS:
                mode = new.mode & DIRECTORY_BITS
            if frame.there is not None:
                attributes = new.attributes
        if not frame.rebased and (mode, attributes) == (base.mode, base.attributes):
            return b""
        kept = msgspec.structs.replace(base, mode=mode, attributes=attributes, nodes=nodes)
        return write_directory(self._shelf, kept)


def _mode(frame: _Frame, there: Directory, *, refused: bool) -> int:
    """Merge the mode of a directory that is there."""
    base, new = frame.base, frame.new
    if base is None or new is None or refused or not (base.mode ^ new.mode) & DIRECTORY_BITS:
        return there.mode
    wanted = new.mode & DIRECTORY_BITS
    return there.mode if wanted == there.mode & DIRECTORY_BITS else wanted


def _settle(frame: _Frame, name: bytes, new: Node | None) -> None:
    """Note that `there` is known to have what the task has."""
    frame.rebased = True
    if new is None:
        frame.expected.pop(name, None)
    else:
        frame.expected[name] = new


def _set(
    frame: _Frame, name: bytes, tree: bytes | None, expected: bytes | None, *, place: Node | None
) -> None:
    """Put the results of a directory into the one above it."""
    is_there = place is not None and place.kind == DIRECTORY
    if tree is None:
        if is_there:
            del frame.nodes[name]
            frame.changed = True
    elif place is None or not is_there or place.content != tree:
        frame.changed = frame.changed or not is_there
        frame.nodes[name] = Node(name, DIRECTORY, content=tree)
        frame.replaced = True
    if expected is None:
        if frame.expected.pop(name, None) is not None:
            frame.rebased = True
    elif expected:
        frame.expected[name] = Node(name, DIRECTORY, content=expected)
        frame.rebased = True


def _attributes(old: Attributes, new: Attributes, there: Attributes) -> Attributes:
    """Give the attributes of what is taken over: the task's, if it changed them."""
    return there if new == old else new


def _told(paths: set[bytes]) -> tuple[str, ...]:
    return tuple(os.fsdecode(path) for path in sorted(paths))
