"""Excluded paths moved from one upper into the next: no layer holds them, no restore touches them.

They are renamed into an empty upper, into directories like those that they lay in, while nothing
has the view mounted. Until what lies below it is settled too, that upper is called `carried`:
killed meanwhile, its files are put back where they came from.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from sandboxsdk import disk
from sandboxsdk.errors import SandboxError
from sandboxsdk.host import Opener, has_openat2, owned
from sandboxsdk.ids import new_id
from sandboxsdk.snapshot import EXCLUDED_MAX, Directory

from .flattening import set_metadata
from .upper import UNFINISHED, UPPER, root_of

CARRIED = "carried"

Parts = tuple[bytes, ...]
Groups = dict[Parts, list[bytes]]
"""Names to be moved, by the directory that they lie in."""

# When the directory that one was made like had changed; overlay shows it to nobody.
_TIME = "user.overlay.sandboxsdk.mtime"
_ALL = stat.S_IRWXU
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PATH = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def grouped(paths: Sequence[bytes]) -> Groups:
    """Put paths together by the directory that they lie in."""
    groups: Groups = {}
    for path in dict.fromkeys(paths):
        *parts, name = path.split(b"/")
        groups.setdefault(tuple(parts), []).append(name)
    return groups


def are_movable(upper: int, paths: Sequence[bytes]) -> bool:
    """Tell whether these paths of an upper are not too many, and may be moved: a guest may have
    closed to us what they lie in.
    """
    if len(paths) > EXCLUDED_MAX:
        return False
    if os.geteuid() == 0:
        return True
    groups, opener = grouped(paths), _opener()
    with suppress(OSError):
        for parts in _with_those_above(groups):
            with owned(opener.directory(upper, parts)) as place:
                if not is_open(os.fstat(place).st_mode):
                    return False
                for name in groups.get(parts, ()):
                    found = os.stat(name, dir_fd=place, follow_symlinks=False)
                    # Moving a directory changes what `..` is in it.
                    if stat.S_ISDIR(found.st_mode) and not found.st_mode & stat.S_IWUSR:
                        return False
        return True
    return False


def is_open(mode: int) -> bool:
    """Tell whether we have all rights to a directory of ours that has this mode."""
    return mode & _ALL == _ALL or os.geteuid() == 0


@contextmanager
def carried(
    task: int, fresh: str, groups: Groups, like: Callable[[Parts], Directory | None]
) -> Iterator[str]:
    """Move paths of the upper into a fresh one for good, unless the block fails; gives the name of
    that upper then.

    Args:
        like: says how the directories above them are to look; None is as they do in the upper.
    """
    if not groups:
        yield fresh
        return
    with owned(_opened(task, UPPER)) as old, owned(_opened(task, fresh)) as new:
        _make_places(old, new, groups, like)
        disk.rename(fresh, CARRIED, old_dir=task, new_dir=task)
        try:
            _move(old, new, groups)
            yield CARRIED
        except (OSError, SandboxError):
            bring_back(task)
            raise


def bring_back(task: int) -> None:
    """Put what was carried back into the upper that it came from; done twice it does no harm.

    What that has under the same path stays: it is a directory to go into, or newer.
    """
    opener = _opener()
    with owned(_opened(task, UPPER)) as old, owned(_opened(task, CARRIED)) as new:
        waiting: list[Parts] = [()]
        while waiting:
            parts = waiting.pop()
            with (
                owned(opener.directory(old, parts)) as target,
                owned(opener.directory(new, parts)) as source,
                owned(os.open(".", _DIRECTORY, dir_fd=source)) as listed,
            ):
                for name in map(os.fsencode, os.listdir(listed)):
                    there = _type(name, target)
                    if there is None:
                        disk.rename(name, name, old_dir=source, new_dir=target)
                    elif there == _type(name, source) == stat.S_IFDIR:
                        waiting.append((*parts, name))
                with suppress(OSError):
                    disk.set_times(target, int(os.getxattr(listed, _TIME)), path_only=True)
    throw_away(task, CARRIED)


def throw_away(task: int, upper: str) -> None:
    """Have the next mount remove an upper."""
    disk.rename(upper, f"{UNFINISHED}{new_id()}", old_dir=task, new_dir=task)


def cover(task: int, fresh: str, groups: Groups, like: Callable[[Parts], Directory | None]) -> None:
    """Have an empty upper hide names of what will lie below it.

    Args:
        like: says how the directories above them look.
    """
    opener, places = _opener(), _with_those_above(groups)
    with owned(_opened(task, fresh)) as new:
        _make_directories(opener, new, places)
        for parts in reversed(places):
            with owned(opener.directory(new, parts)) as made:
                for name in groups.get(parts, ()):
                    disk.make_whiteout(name, dir_fd=made)
                directory = like(parts)
                assert directory is not None, "what is hidden lies in a directory"
                set_metadata(made, directory)


def _make_directories(opener: Opener, new: int, places: Sequence[Parts]) -> None:
    for *above, name in filter(None, places):
        with owned(opener.directory(new, above)) as place:
            disk.make_directory(name, dir_fd=place)


def _make_places(
    old: int, new: int, groups: Groups, like: Callable[[Parts], Directory | None]
) -> None:
    """Make the directories that names will be moved into."""
    opener, places = _opener(), _with_those_above(groups)
    _make_directories(opener, new, places)
    for parts in reversed(places):
        with (
            owned(opener.directory(old, parts)) as was,
            owned(opener.directory(new, parts)) as made,
        ):
            time = b"%d" % os.fstat(was).st_mtime_ns
            disk.set_attribute(made, _TIME, time, path_only=True)
            # Not opaque where the old one is: that lies below it, or is wanted no more.
            set_metadata(made, like(parts) or root_of(was))


def _move(old: int, new: int, groups: Groups) -> None:
    opener = _opener()
    for parts, names in groups.items():
        with (
            owned(opener.directory(old, parts)) as source,
            owned(opener.directory(new, parts)) as target,
        ):
            times = [(place, os.fstat(place).st_mtime_ns) for place in (source, target)]
            for name in names:
                disk.rename(name, name, old_dir=source, new_dir=target)
            for place, time in times:
                disk.set_times(place, time, path_only=True)


def _with_those_above(groups: Groups) -> list[Parts]:
    """Give the directories and all above them, each after the one above it."""
    return sorted({parts[:depth] for parts in groups for depth in range(len(parts) + 1)})


def _type(name: bytes, directory: int) -> int | None:
    try:
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return stat.S_IFMT(found.st_mode)


def _opener() -> Opener:
    return Opener(with_openat2=has_openat2())


def _opened(task: int, name: str) -> int:
    return os.open(name, _PATH, dir_fd=task)
