"""Frozen layers: uppers that will not be written any more, shared by all tasks of a home.

A layer says what turns one tree into another, in overlay's own format. Whoever has that first tree
below it shows the other one. Layers are a cache: everything that one shows is in the store, and a
task that misses one has its files put into place from there.

Invariants: a layer is never written once it has its files; what `about` says of it was captured
from it; a layer of another boot is not used, because its files were never synced; one that some
task's stack names is not removed. (So no lock has to be held as long as one is mounted.)
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Collection, Iterator
from typing import NamedTuple, final

import msgspec

from sandboxsdk import clock, disk
from sandboxsdk.codec import digest, seal, unseal
from sandboxsdk.errors import Corrupt, SandboxError
from sandboxsdk.host import FileLock, boot_id, environment, owned, remove_tree
from sandboxsdk.ids import is_id, new_id

from .stack import NOTHING, Stack, Torn, read_stack

FILES = "files"
GONE = ".gone"
LAYERS_MAX = 200
"""So many layers may lie over each other; the kernel takes 500."""

_ABOUT = "about"
_LOCK = "lock"
_KEY = 16
_ABOUT_BYTES_MAX = 4096
_VERSION = 1
_LOCK_SECONDS_MAX = 5.0
# What no task lies on any more is kept for going back to, up to this.
_KEPT_MAX = 512
_KEPT_BYTES_MAX = 2 << 30
# Looking for what is too much reads the stacks of all tasks: it is done when there may be much.
_MANY = 2 * _KEPT_MAX
_MUCH_BYTES = 512 << 20
_LOOKS_NS = 600_000_000_000
# One that is being made is in no task's stack for a moment.
_YOUNG_NS = 60_000_000_000
_LOSING = "SANDBOXSDK_LOSE_LAYERS"

# Bytes frozen by this process since it looked last, by the path of the layers.
_frozen: dict[str, int] = {}
# What layers say of themselves, by their path: names are used once.
_abouts: dict[str, About] = {}
_ABOUTS_MAX = 4096
# Layers that tests have lost, or that were found to hold something else than they should.
_lost: set[str] = set()
# Layers that this process made, or found to hold what they should.
_sound: set[str] = set()


class About(msgspec.Struct, array_like=True, frozen=True):
    """What a layer is.

    Attributes:
        parent, tree: digests of the tree that it lies over, and of the one that it shows then.
        boot: of the kernel under which it was written.
        span: how many freezes are in it.
        disk_bytes: what it takes on disk.
    """

    version: int
    parent: bytes
    tree: bytes
    boot: str
    span: int
    disk_bytes: int


class Edge(NamedTuple):
    """A layer as its name tells it: the beginnings of digests."""

    name: str
    tree: str
    parent: str
    boot: str


@final
class Layers:
    """The frozen layers of a home.

    Args:
        path: of their directory; it is made when it is needed.
        owners: directories whose entries are directories of tasks.
    """

    def __init__(self, path: str, owners: tuple[str, ...]) -> None:
        self.path = path
        self._owners = owners
        self._boot_id = boot_id()
        self._boot = digest(self._boot_id.encode())[:_KEY]

    def opened(self) -> int:
        """Give a descriptor of the directory, which the caller closes."""
        with contextlib.suppress(FileExistsError):
            disk.make_directory(self.path)
        return disk.open_directory(self.path)

    def begin(self, parent: bytes, tree: bytes, *, span: int, disk_bytes: int) -> str:
        """Make a layer that has no files yet; gives its name."""
        name = f"{tree.hex()[:_KEY]}.{parent.hex()[:_KEY]}.{self._boot}.{new_id()}"
        with contextlib.suppress(FileExistsError):
            disk.make_directory(self.path)
        disk.make_directory(f"{self.path}/{name}")
        about = seal(About(_VERSION, parent, tree, self._boot_id, span, disk_bytes))
        with owned(disk.open_directory(f"{self.path}/{name}")) as directory:
            disk.replace(_ABOUT, about, dir_fd=directory, durable=False)
        _frozen[self.path] = _frozen.get(self.path, 0) + disk_bytes
        _sound.add(name)
        return name

    def about(self, name: str, *, empty: bool = False) -> About | None:
        """Say what a layer is; None if it is not there, has no files, or cannot be used.

        Args:
            empty: of one that has no files yet.
        """
        if _edge(name) is None or name in _lost:
            return None
        path = f"{self.path}/{name}"
        if os.path.isdir(f"{path}/{FILES}") is empty:
            return None
        about = _read_about(path)
        return about if about is not None and about.boot == self._boot_id else None

    def chain(self, start: bytes, target: bytes) -> list[str] | None:
        """Give the layers, top first, that make one tree of another; the fewest there are.

        None if there are none that do. Costs a look at the names of all layers of the home.
        """
        if start == target:
            return []
        if are_to_be_lost():
            return None
        above: dict[str, list[Edge]] = {}
        for edge in self._edges():
            above.setdefault(edge.tree, []).append(edge)
        # From the wanted tree down, in the order of distance.
        waiting: deque[tuple[bytes, tuple[str, ...]]] = deque([(target, ())])
        seen = {target}
        while waiting:
            tree, found = waiting.popleft()
            for edge in above.get(tree.hex()[:_KEY], ()):
                about = self.about(edge.name)
                if about is None or about.tree != tree or about.parent in seen:
                    continue
                chain = (*found, edge.name)
                if about.parent == start:
                    return list(chain)
                if len(chain) < LAYERS_MAX:
                    seen.add(about.parent)
                    waiting.append((about.parent, chain))
        return None

    def _edges(self) -> list[Edge]:
        return [edge for edge in map(_edge, self._names()) if edge is not None]

    def _names(self) -> list[str]:
        try:
            return os.listdir(self.path)
        except FileNotFoundError:
            return []

    @contextlib.contextmanager
    def held(self) -> Iterator[bool]:
        """Keep layers from being removed during the block; False if that cannot be had."""
        path = f"{self.path}/{_LOCK}"
        lock = FileLock(path)
        try:
            with contextlib.suppress(FileExistsError):
                disk.make_directory(self.path)
            with contextlib.suppress(FileExistsError):
                os.close(disk.create(path))
            held = lock.acquire(_LOCK_SECONDS_MAX)
        except (OSError, SandboxError):
            held = False
        try:
            yield held
        finally:
            lock.release()

    def sweep(self, *, keep: Collection[bytes] | None = None) -> int:
        """Remove layers of another boot, and those that no task lies on, but the newest; gives how
        many went. Cheap when there cannot be much to do.

        Args:
            keep: trees that somebody may go back to; then those that show others go too.
        """
        edges = self._edges()
        gone = [edge.name for edge in edges if edge.boot != self._boot]
        much = len(edges) > _MANY and self._is_time()
        much = much or keep is not None or _frozen.get(self.path, 0) > _MUCH_BYTES
        litter = any(name.endswith(GONE) for name in self._names())
        if not (gone or much or litter):
            return 0
        _frozen[self.path] = 0
        with self.held() as held:
            if held:
                stacked = self.stacked()
                free = [e.name for e in edges if e.name not in stacked and e.name not in gone]
                for name in (*gone, *self._dispensable(free, keep)):
                    with contextlib.suppress(OSError):
                        disk.rename(f"{self.path}/{name}", f"{self.path}/{name}{GONE}")
        gone = [name for name in self._names() if name.endswith(GONE)]
        self._remove(gone)
        return len(gone)

    def _is_time(self) -> bool:
        """Tell whether nobody has looked for a while; whoever is told so looks now."""
        path = f"{self.path}/{_LOCK}"
        try:
            if clock.now_ns() - os.stat(path).st_mtime_ns < _LOOKS_NS:
                return False
            os.utime(path)
        except OSError:
            return True
        return True

    def stacked(self) -> set[str]:
        """Give the names of all layers that tasks lie on."""
        return {name for stack in self.stacks() for name in stack.layers}

    def stacks(self) -> Iterator[Stack]:
        """Give the stack of each task that has one."""
        for owner in self._owners:
            for name in _listed(owner):
                with (
                    contextlib.suppress(OSError, Torn),
                    owned(disk.open_directory(f"{owner}/{name}")) as task,
                ):
                    stack = read_stack(task)
                    if stack is not NOTHING:
                        yield stack

    def _dispensable(self, names: list[str], keep: Collection[bytes] | None) -> Iterator[str]:
        """Give those of the names that are too many, the oldest first among them."""
        aged = []
        for name in names:
            with contextlib.suppress(OSError):
                aged.append((os.stat(f"{self.path}/{name}").st_mtime_ns, name))
        size = 0
        # Where somebody asks for garbage to go, only what a crash may have left half-made is young.
        young = clock.now_ns() - (_YOUNG_NS if keep is None else 0)
        for number, (made, name) in enumerate(sorted(aged, reverse=True), 1):
            about = self.about(name)
            size += about.disk_bytes if about is not None else 0
            lost = about is None or number > _KEPT_MAX or size > _KEPT_BYTES_MAX
            lost = lost or (keep is not None and about is not None and about.tree not in keep)
            if lost and made < young:
                yield name

    def is_checked(self, name: str) -> bool:
        """Whether this process knows that a layer holds what it should."""
        return name in _sound

    def note_checked(self, name: str, *, sound: bool) -> None:
        """Note down whether a layer holds what it should; another one is not used any more."""
        (_sound if sound else _lost).add(name)

    def lose(self, stack: Stack) -> None:
        """Remove the layers of a task that no box has mounted, or make them useless for it."""
        others = {n for other in self.stacks() if other.id != stack.id for n in other.layers}
        self._remove([name for name in stack.layers if name not in others])
        _lost.update(stack.layers)

    def _remove(self, names: list[str]) -> None:
        for name in names:
            with (
                contextlib.suppress(OSError, SandboxError),
                owned(disk.open_directory(self.path)) as directory,
            ):
                remove_tree(directory, name)


def are_to_be_lost() -> bool:
    """Whether layers are to be lost at every occasion: how it is tested that none is needed."""
    return bool(environment(_LOSING))


def _read_about(path: str) -> About | None:
    """Read what a layer says of itself, which never changes; None if it is damaged."""
    known = _abouts.get(path)
    if known is not None:
        return known
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        with owned(os.open(f"{path}/{_ABOUT}", flags)) as file:
            data = os.read(file, _ABOUT_BYTES_MAX)
        about = unseal(data, About, path=path)
    except (OSError, Corrupt):
        return None
    if about.version != _VERSION:
        return None
    if len(_abouts) >= _ABOUTS_MAX:
        _abouts.clear()
    _abouts[path] = about
    return about


def _edge(name: str) -> Edge | None:
    """Read a name; None if it is none of a layer."""
    parts = name.split(".")
    if len(parts) != 4 or not is_id(parts[3]) or any(len(part) != _KEY for part in parts[:3]):
        return None
    return Edge(name, *parts[:3])


def _listed(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []
