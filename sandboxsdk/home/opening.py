"""Whether a directory is a home, and making one."""

from __future__ import annotations

import contextlib
import os
import stat

import msgspec

from sandboxsdk import disk
from sandboxsdk.codec import decode_json, encode_json
from sandboxsdk.errors import Corrupt, Denied, NotFound, Unavailable, UsageError

FORMAT = 1
_DIRECTORIES = ("tasks", "throwaway", "caches", "trash", "store", "scans")
_LITTER = ("sweep.lock", "lost+found")
_UNFINISHED = ".new"


class _Format(msgspec.Struct):
    format: int


def open_home(path: str, *, read_only: bool) -> None:
    """Look whether a directory is a home, and unless `read_only` make one of it.

    Raises:
        Denied, UsageError, NotFound, Corrupt, Unavailable: as `Home` says.
    """
    if not read_only:
        _make_parents(path)
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
    try:
        found = os.stat(path)
    except FileNotFoundError:
        hint = "open it without read_only to make it, or name another directory"
        raise NotFound(reason=f"there is no home at {path}", hint=hint) from None
    _check_owner(path, found)
    names = os.listdir(path)
    format_path = os.path.join(path, "format")
    if "format" in names:
        with open(format_path, "rb") as file:
            written = decode_json(file.read(4096), _Format, path=format_path).format
        if written < 1:
            raise Corrupt(path=format_path, reason=f"says format {written}")
        if written > FORMAT:
            raise Unavailable(
                reason=f"{path} was written by a newer version (format {written})",
                hint="upgrade sandboxsdk, or use another home",
            )
    elif any(not _may_be_ours(name) for name in names):
        raise UsageError(
            what="home",
            value=path,
            reason="is not empty and not a home of sandboxsdk",
            hint="name an empty or new directory",
        )
    if not read_only:
        _complete(path, found)


def _complete(path: str, found: os.stat_result) -> None:
    if stat.S_IMODE(found.st_mode) != 0o700:
        os.chmod(path, 0o700)
    for name in _DIRECTORIES:
        with contextlib.suppress(FileExistsError):
            os.mkdir(os.path.join(path, name), 0o700)
    if not os.path.exists(os.path.join(path, "format")):
        # The store with it: the first checkpoint need not pay for that.
        from sandboxsdk.store import Store

        Store(os.path.join(path, "store")).close()
        _write_format(path)


def _write_format(path: str) -> None:
    # Whole or not at all: half of it would make a damaged home of a new one.
    directory = disk.open_directory(path)
    try:
        disk.replace("format", encode_json(_Format(FORMAT)), dir_fd=directory, durable=True)
    finally:
        os.close(directory)
    # What is said to be safe in it is not before its own name is.
    _sync_names(os.path.dirname(path))


def _check_owner(path: str, found: os.stat_result) -> None:
    if not stat.S_ISDIR(found.st_mode):
        hint = "name an empty or new directory"
        raise UsageError(what="home", value=path, reason="is not a directory", hint=hint)
    if found.st_uid != os.geteuid():
        raise Denied(
            path=path,
            reason=f"the home belongs to uid {found.st_uid}, not to you (uid {os.geteuid()})",
            hint="name a directory of your own with SANDBOXSDK_HOME",
        )
    if stat.S_IMODE(found.st_mode) & 0o022 and os.listdir(path):
        raise Denied(
            path=path,
            reason="others may write into this home",
            hint=f"look at what is in it, then `chmod 700 {path}`",
        )


def _make_parents(path: str) -> None:
    missing = []
    # No recursion, as os.makedirs has: a path may have more levels than Python has frames.
    while not os.path.lexists(path := os.path.dirname(path)):
        missing.append(path)
    for directory in reversed(missing):
        with contextlib.suppress(FileExistsError):
            os.mkdir(directory)
        _sync_names(os.path.dirname(directory))


def _sync_names(directory: str) -> None:
    """Have the names in a directory on disk, as far as we may open it."""
    try:
        opened = disk.open_directory(directory)
    except PermissionError:
        return
    try:
        disk.sync(opened)
    finally:
        os.close(opened)


def _may_be_ours(name: str) -> bool:
    """Tell whether a home that is being made may hold this name."""
    unfinished = name.startswith("format.") and name.endswith(_UNFINISHED)
    return unfinished or name in (*_DIRECTORIES, *_LITTER)
