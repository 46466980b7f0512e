"""A plan carried out below a directory descriptor.

Everything below the root is taken to be hostile: names change type at any moment. Directories are
opened anew, never through a link or into another mount; few descriptors are held at any depth.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
from collections.abc import Callable
from typing import Any, TypeVar

from sandboxsdk import disk
from sandboxsdk.errors import FileConflict, SandboxError
from sandboxsdk.host import Opener, remove_entry, translated
from sandboxsdk.store import BLOB

from .filling import check_all_given, check_length, fill
from .guard import Guard
from .measure import NOT_MADE, Trees, is_shared
from .opened import OpenDirectories, list_directory
from .plan import Existing, Owners, Place, Plan, Step, bare
from .tree import DIRECTORY, FIFO, PARTS, SYMLINK, Directory, Node
from .writing import (
    Owner,
    Supply,
    finish_directory,
    is_leftover,
    remove_if_empty,
    touch_file,
    write_fifo,
    write_file,
    write_hard_link,
    write_link,
    write_supplied,
)

# Contents are asked for in lots of so many files, so that a lot is read in the order of the disk.
_LOT_FILES = 100_000
_ATTEMPTS = 5

_T = TypeVar("_T")
Spare = Callable[[bytes, bool], bool]


@dataclasses.dataclass(slots=True)
class _Entered:
    """A directory that was opened or made, and whether its metadata is due at the end."""

    wanted: Directory
    attributes: bool
    due: bool


class Acting:
    """One run of a plan.

    Args:
        direct: the root is new and private to us, so files get their names at once, and a name that
            is taken is an error.
        supply: is asked for the content of each file before the reader is.
        guard: is asked before anything that is there is replaced or removed.
        check: is called now and then, and may raise.

    Attributes:
        written: entries made or made anew.
        removed: names removed, each with what was below it.
        touched: files and directories of which only metadata was set.
        skipped: paths of what is never made.
    """

    def __init__(
        self,
        trees: Trees,
        opener: Opener,
        root: int,
        *,
        owners: Owners | None,
        spare: Spare | None = None,
        shown: str = "",
        direct: bool = False,
        supply: Supply | None = None,
        guard: Guard | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._trees, self._opener, self._owners = trees, opener, owners
        self._guard = guard
        self._spare, self._shown, self._direct, self._supply = spare, shown, direct, supply
        self._check = check
        self._directories = OpenDirectories(opener, root)
        self._entered: dict[Place, _Entered] = {}  # Each after the one that it lies in.
        self._lot: list[Step] = []
        self._links: dict[int, list[Step]] = {}
        # Directories that were something else by now and are made anew, with all below them.
        self._lost: set[Place] = set()
        self.written: int = 0
        self.removed: int = 0
        self.touched: int = 0
        self.skipped: list[bytes] = []

    def close(self) -> None:
        self._directories.close()

    def run(self, plan: Plan) -> None:
        """Carry out all of it; removals first, which makes space."""
        self._links = {number: list(group) for number, group in plan.links.items()}
        self.skipped += plan.skipped
        self._enter(plan.directories)
        for place, node in plan.removals:
            if place not in self._lost:
                self._try(place, node.name, self._remove, place, node)
        for place, node in plan.entries:
            if place not in self._lost:
                self._take(place, node)
        for place, digest in plan.fresh:
            if place.parent not in self._lost:
                self._grow(place, digest)
        for place, old, new in plan.metadata:
            if place not in self._lost:
                self._try(place, new.name, self._touch, place, old, new)
        self._finish()

    def build(self, digest: bytes) -> None:
        """Fill the root, which is new and empty, with a whole tree."""
        self._grow(Place(), digest)
        self._finish()

    def _try(self, place: Place, name: bytes, action: Callable[..., _T], *arguments: Any) -> _T:
        """Do one step; what the kernel says becomes an error that names the path."""
        self._check()
        try:
            return action(*arguments)
        except SandboxError:
            raise  # Some of ours are OSErrors too.
        except OSError as error:
            raise translated(error, "restore", self._path(place, name)) from error

    def _path(self, place: Place, name: bytes = b"") -> str:
        return self._shown + os.fsdecode(place.path(name) or b".")

    def _owner(self, found: Node | Directory) -> Owner:
        return None if self._owners is None else self._owners(found.uid, found.gid)

    # --- Directories that are there ---------------------------------------------------------------

    def _enter(self, directories: list[Existing]) -> None:
        """Get into every directory in which something is to be done, and tidy up in it."""
        for existing in directories:
            place = existing.place
            if place.parent in self._lost:
                self._lost.add(place)
                continue
            self._try(place, b"", self._enter_one, existing)

    def _enter_one(self, existing: Existing) -> None:
        place = existing.place
        try:
            fd = self._directories.open(place)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise
            self._lost.add(place)
            self._grow(place, existing.digest)
            return
        # Its own mode is set again when all is done.
        due = self._open_up(fd) or existing.changed or existing.metadata
        self._entered[place] = _Entered(existing.wanted, existing.attributes, due)
        if existing.changed:
            self._remove_leftovers(fd, existing.digest)
        elif existing.metadata:
            self.touched += 1

    @staticmethod
    def _open_up(fd: int) -> bool:
        """Have the owner's full rights over a directory; tells whether it lacked some."""
        mode = os.fstat(fd).st_mode
        if mode & 0o700 == 0o700:
            return False
        disk.set_mode(fd, mode | 0o700, path_only=True)
        return True

    def _remove_leftovers(self, fd: int, digest: bytes) -> None:
        """Remove what a killed run left; a fresh name that belongs to the tree is kept."""
        found = [name for name, is_directory in list_directory(fd) if is_leftover(name)]
        if found:
            kept = {node.name for node in self._trees.directory(digest).nodes}
            for name in found:
                if name not in kept:
                    with contextlib.suppress(FileNotFoundError, IsADirectoryError):
                        disk.remove(name, dir_fd=fd)

    def _finish(self) -> None:
        """Write what is left, then set the metadata of directories, the deepest first."""
        for group in self._links.values():
            self._take(*group[0])
        self._write_lot()
        for group in self._links.values():
            self._link(group)
        while self._entered:
            place, entered = self._entered.popitem()
            if entered.due:
                self._try(place, b"", self._finish_one, place, entered)

    def _finish_one(self, place: Place, entered: _Entered) -> None:
        fd, owner = self._directories.open(place), self._owner(entered.wanted)
        finish_directory(fd, entered.wanted, owner=owner, attributes=entered.attributes)

    # --- Removing ---------------------------------------------------------------------------------

    def _remove(self, place: Place, node: Node) -> None:
        """Remove an entry of the current tree, whatever it is by now."""
        fd = self._directories.open(place)
        if node.kind == DIRECTORY and self._spare is not None:
            self._remove_known(Place(place, node.name), node.content)
        else:
            try:
                if node.kind == DIRECTORY:
                    remove_entry(self._opener, fd, node.name)
                else:
                    self._look(fd, place, node.name)
                    disk.remove(node.name, dir_fd=fd)
            except FileNotFoundError:
                return
            except IsADirectoryError:
                # Somebody put it there, so no checkpoint knows what it holds.
                if self._spare is not None:
                    return
                remove_entry(self._opener, fd, node.name)
        self.removed += 1

    def _remove_known(self, top: Place, digest: bytes) -> None:
        """Remove the names that a tree knows; a directory that still holds something stays."""
        stack: list[tuple[Place, bytes | None]] = [(top, digest)]
        while stack:
            self._check()
            place, wanted = stack.pop()
            assert place.parent is not None
            if wanted is None:
                self._directories.forget(place)
                remove_if_empty(self._directories.open(place.parent), place.name)
                continue
            try:
                self._open_up(self._directories.open(place))
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                if error.errno != errno.ELOOP:
                    raise
                continue
            self._remove_leftovers(self._directories.open(place), wanted)
            stack.append((place, None))
            for node in self._trees.directory(wanted).nodes:
                if node.kind == DIRECTORY:
                    stack.append((Place(place, node.name), node.content))
                else:
                    with contextlib.suppress(FileNotFoundError, IsADirectoryError):
                        self._look(self._directories.open(place), place, node.name)
                        disk.remove(node.name, dir_fd=self._directories.open(place))

    def _look(self, fd: int, place: Place, name: bytes) -> None:
        if self._guard is not None:
            self._guard.check(fd, place, name)

    def _clear(self, place: Place, name: bytes) -> None:
        """Remove what is in the way of a wanted entry, unless something below it is spared."""
        if self._guard is not None:
            self._guard.refuse(place, name)
        if self._spare is not None and self._holds_spared(Place(place, name)):
            reason = "is in the way of what is restored, and holds or is an excluded file"
            raise FileConflict(path=self._path(place, name), reason=reason)
        with contextlib.suppress(FileNotFoundError):
            remove_entry(self._opener, self._directories.open(place), name)

    def _holds_spared(self, top: Place) -> bool:
        assert self._spare is not None
        stack = [top]
        while stack:
            place = stack.pop()
            try:
                found = list_directory(self._directories.open(place))
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                    raise
                continue
            if self._spare(place.path(), True):
                return True
            for name, is_directory in found:
                if is_directory:
                    stack.append(Place(place, name))
                elif self._spare(place.path(name), False):
                    return True
        return False

    # --- Making -----------------------------------------------------------------------------------

    def _grow(self, place: Place, digest: bytes) -> None:
        """Make a directory with all below it; the root itself is there already."""
        stack = [(place, digest)]
        while stack:
            at, now = stack.pop()
            directory = self._trees.directory(now)
            attributes = bool(directory.attributes)
            if at.parent is not None:
                found = self._try(at, b"", self._make_directory, at)
                attributes = attributes or found
                self.written += 1
            self._entered[at] = _Entered(bare(directory), attributes, due=True)
            for node in directory.nodes:
                if node.kind == DIRECTORY:
                    stack.append((Place(at, node.name), node.content))
                elif is_shared(node):
                    self._links.setdefault(node.link, []).append((at, node))
                else:
                    self._take(at, node)

    def _make_directory(self, place: Place) -> bool:
        """Make a directory, or take one that is there already; tells whether it was there."""
        assert place.parent is not None
        for _ in range(_ATTEMPTS):
            try:
                disk.make_directory(place.name, dir_fd=self._directories.open(place.parent))
            except FileExistsError:
                if self._direct:
                    raise
            else:
                # The umask may have taken rights away.
                self._open_up(self._directories.open(place))
                return False
            try:
                self._open_up(self._directories.open(place))
            except FileNotFoundError:
                continue
            except OSError as error:
                if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                    raise
                self._clear(place.parent, place.name)
            else:
                return True
        raise OSError(errno.ESTALE, "is made anew by somebody else again and again")

    def _take(self, place: Place, node: Node) -> None:
        """Make an entry now, or put it into the lot of files whose content is to be read."""
        if node.is_file and node.size:
            supply = self._supply
            if supply and self._try(place, node.name, self._write_supplied, place, node, supply):
                self.written += 1
                return
            self._lot.append((place, node))
            if len(self._lot) >= _LOT_FILES:
                self._write_lot()
        elif node.kind in NOT_MADE:
            self.skipped.append(place.path(node.name))
        else:
            self._try(place, node.name, self._write, place, node, b"")

    def _write_supplied(self, place: Place, node: Node, supply: Supply) -> bool:
        fd, path, owner = self._directories.open(place), place.path(node.name), self._owner(node)
        return write_supplied(fd, path, node, supply, owner=owner, direct=self._direct)

    def _write(self, place: Place, node: Node, data: bytes) -> None:
        """Write one entry in place of whatever has its name."""
        for _ in range(_ATTEMPTS):
            try:
                self._look(self._directories.open(place), place, node.name)
                self._write_once(self._directories.open(place), node, data)
            except IsADirectoryError:
                if self._direct:
                    raise
                self._clear(place, node.name)
            else:
                self.written += 1
                return
        raise OSError(errno.ESTALE, "is made anew by somebody else again and again")

    def _write_once(self, fd: int, node: Node, data: bytes) -> None:
        owner, direct = self._owner(node), self._direct
        if node.kind == SYMLINK:
            write_link(fd, node.name, node, self._opener, owner=owner, direct=direct)
        elif node.kind == FIFO:
            write_fifo(fd, node.name, node, self._opener, owner=owner, direct=direct)
        elif node.kind == PARTS:
            write_file(
                fd,
                node.name,
                node,
                lambda f: fill(f, node, self._trees.reader, self._check),
                owner=owner,
                direct=direct,
            )
        else:
            write_file(
                fd, node.name, node, lambda f: disk.write(f, data, 0), owner=owner, direct=direct
            )

    def _write_lot(self) -> None:
        lot, self._lot = self._lot, []
        by_content: dict[bytes, list[Step]] = {}
        for place, node in lot:
            if node.kind == PARTS:
                self._try(place, node.name, self._write, place, node, b"")
            else:
                by_content.setdefault(node.content, []).append((place, node))
        if not by_content:
            return
        for digest, data in self._trees.reader.read_many(BLOB, list(by_content)):
            for place, node in by_content.pop(digest, ()):
                check_length(digest, data, node.size)
                self._try(place, node.name, self._write, place, node, data)
        check_all_given(by_content)

    def _link(self, group: list[Step]) -> None:
        """Give a file that was just written its other names."""
        home, first = group[0]
        for place, node in group[1:]:
            self._try(place, node.name, self._link_once, home, first, place, node)

    def _link_once(self, home: Place, first: Node, place: Place, node: Node) -> None:
        for _ in range(_ATTEMPTS):
            into = self._directories.open(place)
            self._look(into, place, node.name)
            try:
                write_hard_link(
                    into, node.name, self._directories.open(home), first.name, direct=self._direct
                )
            except IsADirectoryError:
                if self._direct:
                    raise
                self._clear(place, node.name)
            else:
                self.written += 1
                return
        raise OSError(errno.ESTALE, "is made anew by somebody else again and again")

    def _touch(self, place: Place, old: Node, new: Node) -> None:
        fd, owner = self._directories.open(place), self._owner(new)
        self._look(fd, place, new.name)
        if touch_file(fd, old, new, self._opener, owner=owner):
            self.touched += 1
            return
        # It is something else by now, or has names elsewhere: a new file takes its name.
        self._entered[place].due = True
        self._take(place, new)
