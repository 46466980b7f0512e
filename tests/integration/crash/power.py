"""What a power cut may leave on a disk: calls are recorded, and states that are legal after a cut
are made from the record.

The model is of a file system that keeps no promise but POSIX's: what no sync covers may be there,
be lost, be torn at a sector or be zeros; a name is durable when its directory was synced; content
and length are durable when the file was. A rename is one step. How the order of names is kept is
the mode: `journal` keeps the order of all, `directory` that of each directory, `harsh` none.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import shutil
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from sandboxsdk import disk

MODES = ("journal", "directory", "harsh")
_SECTORS = (512, 4096)
# SQLite writes past the recorder, so its files are copied whenever they have changed.
_INDEX = "store/index.sqlite"


class Event(NamedTuple):
    """One call, before it was made: its name, and paths in place of descriptors."""

    call: str
    arguments: tuple[Any, ...]


class Recorder:
    """The calls of everything that runs in the block, below some directories.

    Attributes:
        events: in order.
        told: what was acknowledged, each with the number of events before it.
    """

    def __init__(self, home: Path, *directories: Path) -> None:
        self._home, self._directories = home, (home, *directories)
        self.areas = [str(path) for path in self._directories]
        self.events: list[Event] = []
        self.told: list[tuple[int, list[Any]]] = []
        self.indexes: list[tuple[int, bytes | None]] = []
        self._guard = threading.RLock()
        self._is_paused = False
        self.root = os.path.commonpath([path.parent for path in self._directories]).rstrip("/")

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Record what the block does."""
        for directory in self._directories:
            self.image(directory)
        self._note_index()
        disk.watcher = self._watch
        originals = {name: getattr(os, name) for name in ("mkdir", "unlink", "rmdir", "rename")}
        try:
            for name, original in originals.items():
                setattr(os, name, functools.partial(self._beside, name, original))
            yield
        finally:
            disk.watcher = None
            for name, original in originals.items():
                setattr(os, name, original)
            self._note_index()

    def tell(self, *facts: Any) -> None:
        """Note what was acknowledged."""
        with self._guard:
            self._note_index()
            self.told.append((len(self.events), list(facts)))

    def left_out(self, directory: Path, action: Callable[[], None]) -> None:
        """Let somebody else write a directory, who sees to it that it lasts."""
        self._is_paused = True
        try:
            action()
        finally:
            self._is_paused = False
        self.image(directory)

    def image(self, directory: Path) -> None:
        """Note that a directory has, durably, what it has now: somebody else wrote it."""
        self._add("image", str(directory), _image(directory) if directory.exists() else None)

    def _add(self, call: str, *arguments: Any) -> None:
        with self._guard:
            self._note_index()
            self.events.append(Event(call, arguments))

    def _note_index(self) -> None:
        try:
            data: bytes | None = (self._home / _INDEX).read_bytes()
        except FileNotFoundError:
            data = None
        if not self.indexes or self.indexes[-1][1] != data:
            self.indexes.append((len(self.events), data))

    def _watch(self, call: str, arguments: tuple[Any, ...]) -> None:
        shape = _SHAPES.get(call)
        if shape is None:
            return
        self._add(call, *shape(*arguments))

    def _beside(self, name: str, original: Callable[..., Any], *paths: Any, **options: Any) -> Any:
        """Record a call that was not made through `disk`."""
        # The frame above is the caller's: functools.partial has none.
        if sys._getframe(1).f_globals.get("__name__") != "sandboxsdk.disk":
            if name == "rename":
                found = [
                    _at(paths[0], options.get("src_dir_fd")),
                    _at(paths[1], options.get("dst_dir_fd")),
                ]
            else:
                found = [_at(paths[0], options.get("dir_fd"))]
            if all(self._is_ours(path) for path in found):
                call = {"mkdir": "make_directory", "unlink": "remove", "rmdir": "remove_directory"}
                self._add(call.get(name, name), *found)
        return original(*paths, **options)

    def _is_ours(self, path: str) -> bool:
        return not self._is_paused and any(path.startswith(area) for area in self.areas)


def _path(fd: int) -> str:
    return os.readlink(f"/proc/self/fd/{fd}").removesuffix(" (deleted)")


def _at(name: Any, dir_fd: int | None) -> str:
    text = os.fsdecode(name)
    return text if dir_fd is None else os.path.normpath(os.path.join(_path(dir_fd), text))


_SHAPES: dict[str, Callable[..., tuple[Any, ...]]] = {
    "create": lambda name, at: (_at(name, at),),
    "make_directory": lambda name, at: (_at(name, at),),
    "make_link": lambda target, name, at: (_at(name, at), os.fsencode(target)),
    "make_hard_link": lambda old, new, a, b: (_at(old, a), _at(new, b)),
    "rename": lambda old, new, a, b: (_at(old, a), _at(new, b)),
    "exchange": lambda old, new, a, b: (_at(old, a), _at(new, b)),
    "remove": lambda name, at: (_at(name, at),),
    "remove_directory": lambda name, at: (_at(name, at),),
    "write": lambda fd, data, offset: (_path(fd), data, offset),
    "truncate": lambda fd, length: (_path(fd), length),
    "sync_data": lambda fd: (_path(fd),),
    "sync": lambda fd: (_path(fd),),
    "sync_file_system": lambda fd: (_path(fd),),
    "set_mode": lambda fd, mode: (_path(fd), "mode", mode & 0o1777),
    "set_times": lambda *found: (
        (_path(found[0]), "time", found[1])
        if len(found) == 2
        else (_at(found[0], found[2]), "time", found[1])
    ),
}


# --- The model ------------------------------------------------------------------------------------


class Inode:
    """A file, link or directory; its number is its identity."""

    __slots__ = ("content", "kind", "mode", "mtime", "number")

    def __init__(self, number: int, kind: str, mode: int = 0o600, content: bytes = b"") -> None:
        self.number, self.kind, self.mode, self.content = number, kind, mode, content
        self.mtime = 0

    def copy(self) -> Inode:
        made = Inode(self.number, self.kind, self.mode, self.content)
        made.mtime = self.mtime
        return made


class Step(NamedTuple):
    """What one call changed.

    Attributes:
        at: number of the event.
        kind: names, data, attribute or image.
        where: inode whose sync makes it durable; of names the directory, of images nothing.
        area: which of the recorded directories it is in, each being a file system of its own.
        change: of names the slots (directory, name) with what they get; else as the kind needs.
        durable: number of the event behind which it is durable; a large number if none.
    """

    at: int
    kind: str
    where: int
    area: int
    change: Any
    durable: int = 1 << 40


_NEVER = 1 << 40
Slot = tuple[int, str]


class Model:
    """All states that a power cut in the course of a record may leave."""

    def __init__(self, recorder: Recorder) -> None:
        self.events, self.told, self.indexes = recorder.events, recorder.told, recorder.indexes
        self.root = recorder.root
        self._slots: dict[Slot, int] = {}
        self._new: dict[int, Inode] = {0: Inode(0, "directory", 0o700)}
        self._steps: list[Step] = []
        self._areas = recorder.areas
        syncs = _Syncs()
        for at, event in enumerate(self.events):
            self._follow(at, event, syncs)
        self._steps = [step._replace(durable=syncs.first(step)) for step in self._steps]

    # --- Following the record, as it really went --------------------------------------------------

    def _follow(self, at: int, event: Event, syncs: _Syncs) -> None:
        call, arguments = event
        path = arguments[0]
        inode = None if call == "image" else self._find(path)
        if call == "image":
            self._take_image(at, path, arguments[1])
        elif call == "sync_file_system":
            syncs.of_area.append((at, self._area(path)))
        elif call in ("sync", "sync_data"):
            if inode is not None:
                syncs.of_inode.setdefault(inode, []).append((at, call == "sync"))
        elif call in ("write", "truncate", "set_mode", "set_times"):
            if inode is not None:
                kind = "data" if call in ("write", "truncate") else "attribute"
                change = (call, *arguments[1:])
                self._steps.append(Step(at, kind, inode, self._area(path), change))
        else:
            self._rename_slots(at, call, arguments)

    def _area(self, path: str) -> int:
        found = [n for n, area in enumerate(self._areas) if f"{path}/".startswith(f"{area}/")]
        return found[0] if found else -1

    def _rename_slots(self, at: int, call: str, arguments: tuple[Any, ...]) -> None:
        found = [self._slot(path) for path in arguments if isinstance(path, str)]
        if any(slot is None for slot in found):
            return
        slots: list[Slot] = [slot for slot in found if slot is not None]
        first = self._slots.get(slots[0])
        change: dict[Slot, int | None] = {}
        where = slots[-1][0]
        if call in ("create", "make_directory", "make_link"):
            if first is not None:
                return
            kind = {"create": "file", "make_directory": "directory", "make_link": "link"}[call]
            mode = 0o700 if kind == "directory" else 0o600
            content = arguments[1] if kind == "link" else b""
            number = len(self._new)
            self._new[number] = Inode(number, kind, mode, content)
            change = {slots[0]: number}
        elif first is None:
            return
        elif call == "rename":
            change = {slots[0]: None, slots[1]: first}
        elif call == "exchange":
            change = {slots[0]: self._slots.get(slots[1]), slots[1]: first}
        elif call == "make_hard_link":
            change = {slots[1]: first}
        elif call == "remove":
            if self._new[first].kind == "directory":
                return
            change = {slots[0]: None}
        elif call == "remove_directory":
            if self._new[first].kind != "directory" or any(
                d == first and target is not None for (d, _), target in self._slots.items()
            ):
                return
            change = {slots[0]: None}
        self._apply(self._slots, change)
        area = self._area(str(arguments[0]))
        self._steps.append(Step(at, "names", where, area, change))

    @staticmethod
    def _apply(slots: dict[Slot, int], change: dict[Slot, int | None]) -> None:
        for slot, target in change.items():
            if target is None:
                slots.pop(slot, None)
            else:
                slots[slot] = target

    def _parts(self, path: str) -> list[str] | None:
        if path != self.root and not path.startswith(self.root + "/"):
            return None
        return [part for part in path[len(self.root) :].split("/") if part]

    def _find(self, path: str) -> int | None:
        parts = self._parts(path)
        if parts is None:
            return None
        at: int | None = 0
        for part in parts:
            at = None if at is None else self._slots.get((at, part))
        return at

    def _slot(self, path: str) -> Slot | None:
        above = self._find(os.path.dirname(path))
        return None if above is None else (above, os.path.basename(path))

    def _take_image(self, at: int, path: str, image: Any) -> None:
        parts = self._parts(path)
        assert parts is not None
        where = 0
        # What lies above the directory itself was there before everything.
        for part in parts[:-1]:
            slot = (where, part)
            if slot not in self._slots:
                number = len(self._new)
                self._new[number] = Inode(number, "directory", 0o700)
                self._slots[slot] = number
                self._steps.append(Step(at, "image", -1, -1, {slot: number}))
            where = self._slots[slot]
        change: dict[Slot, int | None] = {(where, parts[-1]): None}
        if image is not None:
            self._number(where, parts[-1], image, change)
        self._apply(self._slots, change)
        self._steps.append(Step(at, "image", -1, -1, change))

    def _number(self, where: int, name: str, image: Any, change: dict[Slot, int | None]) -> None:
        kind, mode, mtime, content = image
        number = len(self._new)
        made = self._new[number] = Inode(
            number, kind, mode, b"" if kind == "directory" else content
        )
        made.mtime = mtime
        change[where, name] = number
        if kind == "directory":
            for inner, what in content.items():
                self._number(number, inner, what, change)

    # --- States -----------------------------------------------------------------------------------

    def as_it_ended(self) -> State:
        """Give the state in which nothing is lost."""
        return self._state(len(self.events), Losses())

    def state(self, chance: random.Random) -> State:
        """Make one state that is legal after a cut at some moment."""
        cut = chance.randint(len(self._areas), len(self.events))
        mode = chance.choice(MODES)
        kept = self._kept_names(chance, cut, mode)
        made = self._state(cut, _SomeLosses(chance, cut, kept))
        made.mode = mode
        made.index = self._index(chance, cut)
        return made

    def _kept_names(self, chance: random.Random, cut: int, mode: str) -> set[int]:
        pending = [step for step in self._steps if step.kind == "names" and step.at < cut]
        if mode == "harsh":
            share = chance.choice([0.0, 0.3, 0.5, 0.8, 1.0])
            return {step.at for step in pending if chance.random() < share}
        groups: dict[int, list[Step]] = {}
        for step in pending:
            groups.setdefault(0 if mode == "journal" else step.where, []).append(step)
        kept: set[int] = set()
        for group in groups.values():
            # What came before a durable step is durable.
            floor = max((n + 1 for n, step in enumerate(group) if step.durable < cut), default=0)
            end = chance.choice([floor, len(group), chance.randint(floor, len(group))])
            kept |= {step.at for step in group[:end]}
        return kept

    def _state(self, cut: int, losses: Losses) -> State:
        slots: dict[Slot, int] = {}
        inodes: dict[int, Inode] = {}
        versions: dict[int, list[bytes]] = {}
        for step in self._steps:
            if step.at >= cut:
                break
            if step.kind == "image" or (step.kind == "names" and losses.keeps(step)):
                self._apply(slots, step.change)
            elif step.kind in ("data", "attribute"):
                inode = inodes.get(step.where)
                if inode is None:
                    inode = inodes[step.where] = self._new[step.where].copy()
                if step.kind == "attribute":
                    if losses.keeps(step):
                        kind, value = step.change[1:]
                        setattr(inode, {"mode": "mode", "time": "mtime"}[kind], value)
                    continue
                if step.durable >= cut:
                    versions.setdefault(step.where, [inode.content])
                inode.content = _written(inode.content, *step.change)
                if step.durable >= cut:
                    versions[step.where].append(inode.content)
        for number, found in versions.items():
            inodes[number].content = losses.content(found)
        return State(self, cut, slots, inodes)

    def _index(self, chance: random.Random, cut: int) -> bytes | None:
        """Give an index that may be there: none, an older one, a mix of pages, or garbage."""
        written = [data for at, data in self.indexes if at <= cut and data]
        how = chance.random()
        if not written or how < 0.2:
            return None
        newest = written[-1]
        if how < 0.6:
            return newest
        older = chance.choice(written)
        if how < 0.8:
            return older
        if how < 0.9:
            return chance.randbytes(chance.randint(1, 3000)) + newest[3000:]
        pages = [
            chance.choice([newest, older])[at : at + 4096] for at in range(0, len(newest), 4096)
        ]
        return b"".join(pages)[: chance.choice([len(newest), len(newest) // 2])]

    def inode(self, number: int) -> Inode:
        return self._new[number]


class _Syncs:
    """Which events made what durable."""

    def __init__(self) -> None:
        # Of an inode: whether what describes it was meant too.
        self.of_inode: dict[int, list[tuple[int, bool]]] = {}
        self.of_area: list[tuple[int, int]] = []

    def first(self, step: Step) -> int:
        """Give the number of the first event that makes a step durable."""
        if step.kind == "image":
            return -1
        found = [
            at
            for at, whole in self.of_inode.get(step.where, ())
            if at > step.at and (whole or step.kind != "attribute")
        ]
        found += [at for at, area in self.of_area if at > step.at and area == step.area]
        return min(found, default=_NEVER)


class State:
    """One state of the disk.

    Attributes:
        cut: number of events that had been.
        told: what had been acknowledged.
    """

    def __init__(
        self, model: Model, cut: int, slots: dict[Slot, int], inodes: dict[int, Inode]
    ) -> None:
        self._model, self.cut = model, cut
        self._slots, self._inodes = slots, inodes
        self.mode = ""
        self.index: bytes | None = None
        self.told = [facts for at, facts in model.told if at <= cut]
        self.begun = [facts for at, facts in model.told if at <= cut or _is_next(model, at, cut)]

    def tree(self) -> dict[str, Inode]:
        """Give what can be reached, by path below the root."""
        children: dict[int, list[tuple[str, int]]] = {}
        for (where, name), target in self._slots.items():
            children.setdefault(where, []).append((name, target))
        found: dict[str, Inode] = {}
        waiting = [("", 0, (0,))]
        while waiting:
            path, where, above = waiting.pop()
            for name, target in children.get(where, ()):
                if target in above:
                    continue  # Made by losing one of two renames.
                inode = self._inodes.get(target) or self._model.inode(target)
                inner = f"{path}/{name}"
                found[inner] = inode
                if inode.kind == "directory":
                    waiting.append((inner, target, (*above, target)))
        return found

    def key(self) -> int:
        """Tell states apart."""
        tree = tuple(
            sorted(
                (path, inode.kind, inode.mode, inode.mtime, inode.content)
                for path, inode in self.tree().items()
            )
        )
        return hash((self.index, tuple(map(str, self.told)), tree))

    def write(self, home: Path, directories: list[Path]) -> None:
        """Make it real, at the paths that the record has; nothing else is touched."""
        for directory in (home, *directories):
            if os.path.lexists(directory):
                shutil.rmtree(directory)
        root = self._model.root
        made: dict[int, str] = {}
        finish: list[tuple[str, Inode]] = []
        ours = tuple(str(directory) for directory in (home, *directories))
        for path, inode in sorted(self.tree().items(), key=lambda found: found[0].count("/")):
            full = root + path
            if not any(f"{full}/".startswith(f"{place}/") for place in ours):
                continue
            if inode.kind == "directory":
                with contextlib.suppress(FileExistsError):
                    os.mkdir(full, 0o700)
                finish.append((full, inode))
            elif inode.number in made:
                os.link(made[inode.number], full)
            elif inode.kind == "link":
                os.symlink(inode.content, full)
                if inode.mtime:
                    times = (inode.mtime, inode.mtime)
                    os.utime(full, ns=times, follow_symlinks=False)
            else:
                _write_file(full, inode)
                made[inode.number] = full
        for full, inode in reversed(finish):
            os.chmod(full, inode.mode)
            if inode.mtime:
                os.utime(full, ns=(inode.mtime, inode.mtime))
        if self.index is not None and (home / _INDEX).parent.is_dir():
            (home / _INDEX).write_bytes(self.index)
            os.chmod(home / _INDEX, 0o600)


def _write_file(path: str, inode: Inode) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        if any(inode.content[:4096]) or len(inode.content) < 100_000:
            os.write(fd, inode.content)
        else:
            os.ftruncate(fd, len(inode.content))
        os.fchmod(fd, inode.mode)
        if inode.mtime:
            os.utime(fd, ns=(inode.mtime, inode.mtime))
    finally:
        os.close(fd)


def _is_next(model: Model, at: int, cut: int) -> bool:
    """Tell whether this is the first thing that was acknowledged after the cut."""
    return at == min((n for n, _ in model.told if n > cut), default=-1)


class Losses:
    """What is lost: nothing."""

    def keeps(self, step: Step) -> bool:
        """Tell whether a change of names or attributes is there."""
        del step
        return True

    def content(self, versions: list[bytes]) -> bytes:
        """Give the content of a file, from the one that is durable and all that came after it."""
        return versions[-1]


class _SomeLosses(Losses):
    """A choice of losses.

    The kernel writes sectors as they are at some moment: each is of one of the versions, and the
    length is that of one of them.
    """

    def __init__(self, chance: random.Random, cut: int, kept: set[int]) -> None:
        self._chance, self._cut, self._kept = chance, cut, kept
        self._sector = chance.choice(_SECTORS)
        self._leaning = chance.choice(["new", "old", "zeros", "some", "some", "some"])

    def keeps(self, step: Step) -> bool:
        """See `Losses.keeps`."""
        if step.durable < self._cut:
            return True
        return step.at in self._kept if step.kind == "names" else self._chance.random() < 0.5

    def content(self, versions: list[bytes]) -> bytes:
        """See `Losses.content`."""
        chance = self._chance
        how = self._leaning if chance.random() < 0.8 else chance.choice(["new", "old", "zeros"])
        if how == "new":
            return versions[-1]
        if how == "old":
            return versions[0]
        if how == "zeros":
            return versions[0] + bytes(max(len(versions[-1]) - len(versions[0]), 0))
        length = len(chance.choice(versions))
        border = len(versions[-1]) // self._sector * self._sector
        if chance.random() < 0.2 and border > len(versions[0]):
            # Longer by whole sectors, as if the file had been written in parts.
            length = border
        parts = []
        for at in range(0, length, self._sector):
            part = chance.choice(versions)[at : min(at + self._sector, length)]
            parts.append(part + bytes(min(self._sector, length - at) - len(part)))
        return b"".join(parts)


def _written(old: bytes, call: str, *facts: Any) -> bytes:
    if call == "truncate":
        return old[: facts[0]] + bytes(max(facts[0] - len(old), 0))
    data, offset = facts
    return old[:offset] + bytes(max(offset - len(old), 0)) + data + old[offset + len(data) :]


def _image(path: Path) -> Any:
    about = os.lstat(path)
    mode = stat.S_IMODE(about.st_mode)
    if stat.S_ISDIR(about.st_mode):
        content: Any = {
            entry: _image(path / entry)
            for entry in os.listdir(path)
            if not entry.startswith("index.sqlite")
        }
        return "directory", mode, about.st_mtime_ns, content
    if stat.S_ISLNK(about.st_mode):
        return "link", mode, about.st_mtime_ns, os.fsencode(os.readlink(path))
    return "file", mode, about.st_mtime_ns, path.read_bytes()
