"""Whether an overlay works in a place: mounted as a box has it, written through, and looked at.

A program: started, and gone when it has said what it found. Nothing outside of the scratch
directory that it is given is written, and nothing is mounted where anybody else would see it.
"""

from __future__ import annotations

import json
import os
import signal
import stat
from typing import Any, NoReturn

from sandboxsdk import syscalls as sc

from .cloning import clone, make_idmap
from .enclosure import enter_namespaces
from .workspace import Overlay

_SECONDS_MAX = 10
_LOOKED_AT_MAX = 100
_COPIED_BYTES_MAX = 1 << 16
_LAYER, _UPPER, _WORK, _MOUNTED = "layer", "upper", "work", "mounted"
# What the layer of ours holds, and what becomes of it; no file of a directory is called so.
_OWN = ".sandboxsdk-trial-"
_CHANGED, _GONE, _MOVED, _AGAIN, _NEW = (
    f"{_OWN}{name}" for name in ("changed", "gone", "moved", "again", "new")
)


def main(says: int, told: str) -> NoReturn:
    """Try it, and write to `says` what was found: nothing is fine.

    Args:
        told: JSON of base (a directory; null is an empty one), scratch (another one), owner (uid
            and gid of the base), uid and gid (whom commands run as), rootless.
    """
    os.set_inheritable(says, False)
    signal.alarm(_SECONDS_MAX)
    os.umask(0o022)
    spec = json.loads(told)
    found: dict[str, Any] = {}
    stage = "make"
    try:
        _make(spec)
        upper = os.open(f"{spec['scratch']}/{_UPPER}", os.O_RDONLY | os.O_DIRECTORY)
        found = _tried(spec)
        stage = "look"
        if not found:
            _look(upper)
    except OSError as error:
        found = _failure(stage, error)
    os.write(says, json.dumps(found).encode())
    os._exit(0)


def _make(spec: dict[str, Any]) -> None:
    """Make what is mounted, as the owner of the directory would have it."""
    os.chdir(spec["scratch"])
    if spec["base"] is None:
        spec["base"] = f"{spec['scratch']}/empty"
        os.mkdir("empty")
    for name in (_LAYER, _UPPER, _WORK, _MOUNTED, f"{_LAYER}/{_AGAIN}"):
        os.mkdir(name)
    for name in (_CHANGED, _GONE, _MOVED, f"{_AGAIN}/below"):
        with open(f"{_LAYER}/{name}", "w", encoding="ascii") as file:
            file.write(name)
    if not spec["rootless"]:
        for name in (_LAYER, _UPPER, f"{_LAYER}/{_AGAIN}"):
            os.chown(name, *spec["owner"])
            for below in os.listdir(name):
                os.chown(f"{name}/{below}", *spec["owner"])


def _failure(stage: str, error: OSError) -> dict[str, Any]:
    text = str(error) if error.errno else error.strerror
    return {"stage": stage, "errno": error.errno, "text": text}


def _tried(spec: dict[str, Any]) -> dict[str, Any]:
    """Mount and write in a child, whose namespaces and rights go with it."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(_SECONDS_MAX)
        stage = "namespaces"
        try:
            idmap = -1
            if not spec["rootless"]:
                idmap = make_idmap(spec["uid"], tuple(spec["owner"]))
            given = _given(spec["base"], spec["owner"][0])
            enter_namespaces(
                uid=spec["uid"],
                gid=spec["gid"],
                rootless=spec["rootless"],
                flags=sc.CLONE_NEWNS,
            )
            sc.mount("none", "/", None, sc.MS_REC | sc.MS_PRIVATE)
            stage = "mount"
            _mount(spec, idmap)
            stage = "write"
            os.chdir(_MOUNTED)
            if not spec["rootless"]:
                os.setgroups([])
                os.setresgid(*[spec["gid"]] * 3)
                os.setresuid(*[spec["uid"]] * 3)
            _write()
            if given is not None:
                _copy_up(*given)
            os.write(writer, b"{}")
        except OSError as error:
            os.write(writer, json.dumps(_failure(stage, error)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        said = file.read()
    os.waitpid(child, 0)
    found: dict[str, Any] = json.loads(said or b'{"stage": "make", "text": "it did not end"}')
    return found


def _mount(spec: dict[str, Any], idmap: int) -> None:
    clones = {}
    places = {"base": spec["base"], "task": spec["scratch"], "layers": spec["scratch"]}
    for name, path in places.items():
        found = os.stat(path)
        clones[name] = clone(path, [found.st_dev, found.st_ino], userns=idmap)
    view = {"stack": [_LAYER], "upper": _UPPER, "work": _WORK}
    Overlay(**clones).mount(view, _MOUNTED)


def _given(base: str, owner: int) -> tuple[str, int] | None:
    """Give a small file of the directory, and a descriptor of it; None if there is none at hand."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with os.scandir(base) as entries:
        for entry, _ in zip(entries, range(_LOOKED_AT_MAX), strict=False):
            found = entry.stat(follow_symlinks=False)
            writable = found.st_uid == owner and found.st_mode & 0o600 == 0o600
            if writable and stat.S_ISREG(found.st_mode) and found.st_size <= _COPIED_BYTES_MAX:
                return entry.name, os.open(entry.path, flags)
    return None


def _write() -> None:
    """Do through the mount what programs do."""
    with open(_CHANGED, "a", encoding="ascii") as file:
        file.write("+")
    with open(_NEW, "w", encoding="ascii") as file:
        file.write("new")
    os.unlink(_GONE)
    os.rename(_MOVED, f"{_MOVED}-on")
    os.unlink(f"{_AGAIN}/below")
    os.rmdir(_AGAIN)
    os.mkdir(_AGAIN)
    os.rename(_NEW, f"{_AGAIN}/{_NEW}")
    _check(os.listdir(_AGAIN) == [_NEW], "a directory that was replaced shows what it had")
    own = {name for name in os.listdir(".") if name.startswith(_OWN)}
    _check(own == {_CHANGED, f"{_MOVED}-on", _AGAIN}, "names that are gone are listed")


def _copy_up(name: str, original: int) -> None:
    """Change a file of the directory, which must not notice."""
    before = os.pread(original, _COPIED_BYTES_MAX + 1, 0)
    try:
        with open(name, "ab") as file:
            file.write(b"+")
    except PermissionError:
        return  # Somebody has closed it in another way than by its mode.
    with open(name, "rb") as file:
        _check(file.read() == before + b"+", "a file of the directory is not what it was")
    same = os.pread(original, _COPIED_BYTES_MAX + 1, 0) == before
    _check(same, "the directory itself was written")


def _look(upper: int) -> None:
    """See that the upper has what the next box, and a checkpoint, will read."""
    for name in (_GONE, _MOVED):
        found = os.stat(name, dir_fd=upper, follow_symlinks=False)
        gone = stat.S_ISCHR(found.st_mode) and found.st_rdev == 0
        _check(gone, "a name that is gone has left no whiteout")
    directory = os.open(_AGAIN, os.O_RDONLY | os.O_DIRECTORY, dir_fd=upper)
    opaque = os.getxattr(directory, "user.overlay.opaque")
    _check(opaque == b"y", "a directory that was replaced is not opaque")
    for name, place, wanted in (
        (_CHANGED, upper, f"{_CHANGED}+"),
        (f"{_MOVED}-on", upper, _MOVED),
        (_NEW, directory, "new"),
    ):
        content = os.read(os.open(name, os.O_RDONLY, dir_fd=place), _COPIED_BYTES_MAX)
        _check(content == wanted.encode(), "a file that was written is not what it should be")


def _check(held: bool, otherwise: str) -> None:  # noqa: FBT001
    if not held:
        raise OSError(0, otherwise)
