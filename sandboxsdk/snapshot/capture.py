"""A directory into a tree: walked below its descriptor, read where the cache does not know it.

The walk may be raced by code that wants us elsewhere: no link is followed, nothing but a regular
file is opened for reading, other mounts are not entered. What vanishes meanwhile is left out, what
changes while it is read is read again, and if it keeps changing it is stored as read and named.

With an overlay's upper the walk gives the merged tree: what the upper names is laid over the tree
of the base, and the cost is that of the upper.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Iterator
from typing import final

import msgspec

from sandboxsdk.disk import translated
from sandboxsdk.errors import LimitExceeded, SandboxError
from sandboxsdk.host import Cursor, Opener, has_openat2

from .attributes import read_attributes
from .bases import BASES
from .cache import Stamp, StatCache, stamp_of
from .laying import Base, Laid
from .left_out import LeftOut, is_whiteout
from .level import Level, Listing, Weight, open_readable
from .links import LinkGroups
from .measure import check_limits
from .moved import Younger
from .refusal import mounted, refused, too_much, unsteady
from .rules import Captured, Rules
from .steady import plain_node, read_file
from .storing import number_links, store_levels
from .totals import Totals
from .tree import (
    BLOCK,
    CHARACTER,
    DIRECTORY,
    ENTRIES_MAX,
    FIFO,
    FILE,
    SOCKET,
    SYMLINK,
    Node,
    Sink,
)
from .unlocking import Unlocking

_RACES_MAX = 8
# As `os.fsencode`, whose other questions cost more than its answer.
_ENCODING, _ERRORS = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()
_DEPTH_MAX = 128  # of an upper that can be frozen: layers are merged by paths
_PROGRESS_ENTRIES = 1024  # between two calls of `progress`
_NO_DIRECTORY = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
# What a name answers that is something else by now, or nothing.
_VANISHED = (*_NO_DIRECTORY, errno.ENXIO, errno.ENODEV, errno.ESTALE, errno.EINVAL)
_OPEN_MAX = 16
_OTHERS = {
    stat.S_IFIFO: FIFO,
    stat.S_IFSOCK: SOCKET,
    stat.S_IFCHR: CHARACTER,
    stat.S_IFBLK: BLOCK,
}


def capture(sink: Sink, root: int, known: StatCache, learned: StatCache, rules: Rules) -> Captured:
    """Store everything below the directory descriptor `root`.

    Args:
        known: files that need not be read.
        learned: made before this call; takes the files as they were read.

    Raises:
        Denied: something may not be read, or is another mount; the path says what.
        LimitExceeded: more than a tree may hold.
        HostFull, HostRefused: the store cannot be written, or the directory not be read.
    """
    walk = _Walk(sink, known, learned, rules)
    with translated("cannot read", rules.shown or "the workspace"):
        walk.run(root)
        captured = walk.store()
        learned.compare(known)
        return captured


@final
class _Walk:
    def __init__(self, sink: Sink, known: StatCache, learned: StatCache, rules: Rules) -> None:
        self._sink, self._known, self._learned, self._rules = sink, known, learned, rules
        self._opener = Opener(with_openat2=has_openat2())
        self._levels: list[Level] = []
        self._links: LinkGroups[Level] = LinkGroups(salt=b"upper" if rules.merge else b"")
        # Files of several names, as they were read by the first.
        self._linked: dict[tuple[int, int], tuple[Stamp, Node]] = {}
        self._totals = rules.merge.totals if rules.merge else Totals()
        self._entries = 0
        self._skipped, self._changed, self._mounts = Listing(), Listing(), Listing()
        self._unlocking = Unlocking(allowed=rules.unlock)
        self._left_out, self._weight = LeftOut(rules), Weight()
        self._young = Younger(rules.since)

    def run(self, root: int) -> None:
        """Look at everything; levels come in an order in which each is after the one above it."""
        top = Level(b"", None, os.fstat(root))
        self._young.see(top, b"", top.found)
        try:
            try:
                cursor = Cursor(self._opener, root, [], kept=_OPEN_MAX)
            except PermissionError as error:
                self._open_up(root, top, error)
                cursor = Cursor(self._opener, root, [], kept=_OPEN_MAX)
            try:
                self._descend(cursor, top)
            finally:
                cursor.close()
        finally:
            self._unlocking.lock_again(root, top)

    def _descend(self, cursor: Cursor, top: Level) -> None:
        base = self._rules.merge.tree if self._rules.merge else b""
        try:
            stack = [(top, self._look(cursor, top, base))]
            while stack:
                level, waiting = stack[-1]
                step = next(waiting, None)
                if step is None:
                    stack.pop()
                    if level is not top:
                        self._unlocking.leave(cursor, level)
                elif self._enter(cursor, level, step[0]):
                    check_limits(self._entries, len(stack) + 1)
                    inner = Level(step[0], level, os.fstat(cursor.fd))
                    if level.seen is not None:
                        # Nobody has looked at it in the directory above.
                        self._young.see(level, step[0], inner.found)
                    stack.append((inner, self._look(cursor, inner, step[1])))
        finally:
            self._unlocking.lock_all(cursor, top)

    def store(self) -> Captured:
        """Store the levels from the deepest up; gives the root's digest."""
        linked = number_links(self._links)
        deepest = max(level.depth for level in self._levels)
        remember = None if self._rules.merge is not None else self._learned
        keep = BASES if self._rules.overlay else None
        digest = store_levels(self._sink, self._levels, self._known, remember, keep)
        excluded = self._left_out.told()
        listings = (self._skipped, self._changed, self._mounts)
        skipped, changed, mounts = (listing.told() for listing in listings)
        return Captured(
            tree=digest,
            totals=self._totals,
            skipped=skipped,
            changed=changed,
            mounts=mounts,
            moved=self._young.told(),
            whole=deepest <= _DEPTH_MAX
            and not (linked or skipped or changed or mounts)
            # Another name of a file may be among what was not looked at.
            and not (excluded and self._links.is_needed)
            and not self._weight.has_set_id,
            excluded=excluded,
            **(self._weight.told() if self._rules.merge else {}),
        )

    # --- Directories ------------------------------------------------------------------------------

    def _look(self, cursor: Cursor, level: Level, base: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Look at the directory of the cursor; gives the directories to go into, as it takes them.

        Args:
            cursor: is there.
            level: takes what it lists.
            base: digest of the directory it is laid over; empty is none.
        """
        if self._is_unchanged(cursor, level):
            return iter([(plain, b"") for plain in level.inner or ()])
        reader = self._open_directory(cursor, level)
        try:
            marked = read_attributes(reader, overlay=self._rules.overlay)
            level.attributes, level.marked = marked.attributes, marked.opaque == b"x"
            opaque = marked.opaque == b"y" and level.above is not None
            below = self._lay_over(level, base, opaque=opaque)
            inner = self._list(level, reader)
        except SandboxError as error:
            if type(error) is LimitExceeded:  # Not of the store's disk.
                raise too_much(self._shown(level.path), error) from error
            raise
        except OSError as error:
            raise refused(self._shown(level.path), error) from error
        finally:
            os.close(reader)
        level.inner = tuple(inner)
        self._levels.append(level)
        self._tell()
        return iter([(plain, _tree_in(below, plain)) for plain in inner])

    def _is_unchanged(self, cursor: Cursor, level: Level) -> bool:
        """Take a directory as it is remembered, if it and the files in it are as they were."""
        if self._rules.merge is not None or level.is_far:
            return False
        seen = self._known.unchanged(
            level.path, cursor.fd, level.found, self._learned, self._rules.since
        )
        if seen is None:
            return False
        level.seen, level.inner = seen, seen.inner
        self._totals += Totals(seen.files, seen.size)
        self._entries += seen.files + len(seen.inner)
        self._levels.append(level)
        self._tell()
        return True

    def _list(self, level: Level, reader: int) -> dict[bytes, None]:
        """Take what a directory lists; gives the directories in it."""
        # A name may be listed twice while others are renamed.
        inner: dict[bytes, None] = {}
        seen = 0
        recall = None
        if not level.is_far and not level.marked and self._rules.exclude is None:
            recall = self._known.recalling(level.path, self._learned, self._rules.since)
        nodes = level.nodes
        files = size = 0
        with os.scandir(reader) as entries:
            for entry in entries:
                seen += 1
                # Also of those that come and go, or listing them might never end.
                if seen > ENTRIES_MAX:
                    raise LimitExceeded(reason=f"it has more than {ENTRIES_MAX:,} entries")
                if seen % _PROGRESS_ENTRIES == 0:
                    self._totals += Totals(files, size)
                    files = size = 0
                    self._tell()
                plain = entry.name.encode(_ENCODING, _ERRORS)
                try:
                    found = entry.stat(follow_symlinks=False)
                except OSError as error:
                    if error.errno in _VANISHED:
                        continue
                    raise refused(self._shown(level.below(plain)), error) from error
                if recall is not None and (node := recall(plain, found)) is not None:
                    # What most files are; `_take` would do no more.
                    self._weight.add(found, again=plain in nodes)
                    self._drop(level, plain)
                    nodes[plain] = node
                    files += node.kind != SYMLINK
                    size += node.size
                    level.others += 1
                elif self._take(level, reader, plain, found):
                    inner[plain] = None
        self._totals += Totals(files, size)
        self._entries += len(nodes) + len(inner)
        return inner

    def _tell(self) -> None:
        if self._rules.progress is not None:
            self._rules.progress(self._totals.files, self._totals.bytes)

    def _lay_over(self, level: Level, base: bytes, *, opaque: bool) -> Base | None:
        """Begin with what the base lists, and give that."""
        merge = self._rules.merge
        if merge is None or not base:
            return None
        if opaque:
            self._totals -= merge.totals_of(base)
            return None
        below = merge.base(base)
        level.nodes = Laid(below)
        return below

    def _enter(self, cursor: Cursor, level: Level, name: bytes) -> bool:
        """Go into a directory; False if there is none (any more) to look at."""
        level.check_depth()
        for _ in range(_RACES_MAX):
            try:
                cursor.enter(name)
            except OSError as error:
                level.moved = True
                if error.errno == errno.EXDEV:
                    self._pass_mount(level, cursor.fd, name, error)
                    return False
                if error.errno not in _NO_DIRECTORY:
                    raise refused(self._shown(level.below(name)), error) from error
            else:
                return True
            try:
                found = os.stat(name, dir_fd=cursor.fd, follow_symlinks=False)
            except FileNotFoundError:
                self._drop(level, name)
                return False
            if not self._take(level, cursor.fd, name, found):
                return False
        raise unsteady(self._shown(level.below(name)))

    def _open_directory(self, cursor: Cursor, level: Level) -> int:
        try:
            return open_readable(cursor.fd)
        except PermissionError as error:
            self._open_up(cursor.fd, level, error)
            return open_readable(cursor.fd)

    def _open_up(self, fd: int, level: Level, error: PermissionError) -> None:
        if not self._unlocking.open_up(fd, level):
            raise refused(self._shown(level.path), error) from error

    # --- Entries ----------------------------------------------------------------------------------

    def _take(self, level: Level, parent: int, name: bytes, found: os.stat_result) -> bool:
        """Put one entry into its level; True says that it is a directory, to be gone into."""
        for _ in range(_RACES_MAX):
            kind = stat.S_IFMT(found.st_mode)
            if self._left_out.takes(level, name, found):
                level.others += 1
                return False
            self._young.see(level, name, found)
            self._weight.add(found, again=name in level.nodes)
            if kind == stat.S_IFDIR:
                old = level.nodes.get(name)
                if old is not None and old.kind != DIRECTORY:
                    self._drop(level, name)
                return True
            level.others += 1
            self._drop(level, name)
            if self._rules.overlay and is_whiteout(found):
                return False
            try:
                node = self._node(level, parent, name, found)
            except SandboxError as error:
                if type(error) is LimitExceeded:
                    raise too_much(self._shown(level.below(name)), error) from error
                raise
            except OSError as error:
                if error.errno == errno.EXDEV:
                    self._pass_mount(level, parent, name, error)
                    return False
                if error.errno not in _VANISHED:
                    raise refused(self._shown(level.below(name)), error) from error
                try:
                    found = os.stat(name, dir_fd=parent, follow_symlinks=False)
                except FileNotFoundError:
                    return False
                continue
            if node is not None:
                level.nodes[name] = node
            return False
        raise unsteady(self._shown(level.below(name)))

    def _drop(self, level: Level, name: bytes) -> None:
        """Take out what is under a name: the base's, or what was there a moment ago."""
        old = level.nodes.pop(name, None)
        if old is not None and old.is_file:
            self._totals -= Totals(1, old.size)
        elif old is not None and old.kind == DIRECTORY and self._rules.merge is not None:
            self._totals -= self._rules.merge.totals_of(old.content)

    def _node(self, level: Level, parent: int, name: bytes, found: os.stat_result) -> Node | None:
        """Describe an entry that is no directory; None if it stands for nothing.

        Raises:
            OSError: it is something else by now, cannot be read, or is another mount.
        """
        kind = stat.S_IFMT(found.st_mode)
        node: Node | None
        if kind == stat.S_IFREG:
            node, found = self._file(level, parent, name, found)
            if node is None:
                return None
            self._totals += Totals(1, node.size)
        elif kind == stat.S_IFLNK:
            target = os.readlink(name, dir_fd=parent)
            again = os.stat(name, dir_fd=parent, follow_symlinks=False)
            if stamp_of(again) != stamp_of(found):
                raise OSError(errno.ESTALE, "is another link by now")
            node = plain_node(name, SYMLINK, found, target)
            if not level.is_far:
                self._learned.note(level.path, node, found)
        elif kind in _OTHERS:
            node = plain_node(name, _OTHERS[kind], found)
            if node.kind != FIFO:
                self._skipped.add(level.below(name))
        else:
            return None
        if found.st_nlink > 1 and (node.is_file or node.kind == FIFO):
            # What else has several names is made anew for each.
            self._links.add(level, name, found)
        return node

    def _file(
        self, level: Level, parent: int, name: bytes, found: os.stat_result
    ) -> tuple[Node | None, os.stat_result]:
        """Describe a file, from memory where that can be trusted; tells as what it was seen."""
        # What may stand for a name that is not there is looked at each time.
        doubtful = level.marked and found.st_size == 0
        node = None if doubtful else self._remembered(level, name, found)
        if node is None:
            rules = self._rules
            reading = read_file(self._sink, self._opener, parent, name, rules)
            node, found = reading.node, reading.found
            if level.marked and reading.whiteout and node.size == 0:
                return None, found
            if not reading.steady:
                self._changed.add(level.below(name))
                return node, found
            if found.st_nlink > 1:
                self._linked[found.st_dev, found.st_ino] = stamp_of(found), node
        if not level.is_far:
            self._learned.note(level.path, node, found)
        return node, found

    def _remembered(self, level: Level, name: bytes, found: os.stat_result) -> Node | None:
        if found.st_nlink > 1:
            stamp, node = self._linked.get((found.st_dev, found.st_ino), (None, None))
            if node is not None and stamp == stamp_of(found):
                return msgspec.structs.replace(node, name=name)
        return None if level.is_far else self._known.find(level.path, name, found)

    def _pass_mount(self, level: Level, parent: int, name: bytes, error: OSError) -> None:
        """Record a name that another mount covers as empty, where that is allowed."""
        path = level.below(name)
        if not self._rules.mounts:
            raise mounted(self._shown(path)) from error
        self._drop(level, name)
        self._mounts.add(path)
        found = os.stat(name, dir_fd=parent, follow_symlinks=False)
        if stat.S_ISDIR(found.st_mode):
            self._levels.append(Level(name, level, found))
        else:
            level.nodes[name] = plain_node(name, FILE, found)
            self._totals += Totals(1, 0)

    def _shown(self, path: bytes) -> str:
        return self._rules.shown + os.fsdecode(path)


def _tree_in(base: Base | None, name: bytes) -> bytes:
    """Give the digest of the directory that a base has under a name; empty if it has none."""
    node = None if base is None else base.find(name)
    return node.content if node is not None and node.kind == DIRECTORY else b""
