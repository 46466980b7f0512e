"""Looking into a checkpoint without restoring it."""

from __future__ import annotations

import os
import stat
from typing import Literal

from sandboxsdk import clock
from sandboxsdk.errors import Corrupt, Denied, FileConflict, FileMissing, LimitExceeded, UsageError
from sandboxsdk.model import CheckpointRecord, FileStat, Problem, VerifyReport
from sandboxsdk.snapshot import (
    BLOCK,
    CHARACTER,
    DIRECTORY,
    FIFO,
    FILE,
    PARTS,
    SOCKET,
    SYMLINK,
    Node,
    damaged_paths,
    reachable,
    read_directory,
    read_parts,
)
from sandboxsdk.store import BLOB, Store

_Kind = Literal["file", "directory", "symlink", "fifo", "socket", "device"]
_KINDS: dict[int, _Kind] = {
    FILE: "file",
    PARTS: "file",
    DIRECTORY: "directory",
    SYMLINK: "symlink",
    FIFO: "fifo",
    SOCKET: "socket",
    CHARACTER: "device",
    BLOCK: "device",
}
_LOST_SHOWN_MAX = 10


def list_files(store: Store, root: bytes) -> list[FileStat]:
    """Describe everything in a tree, in the order of the paths' bytes.

    Raises:
        Corrupt: part of it is missing or damaged.
    """
    found: list[tuple[bytes, FileStat]] = []
    waiting = [(b"", root)]
    while waiting:
        above, tree = waiting.pop()
        for node in read_directory(store, tree).nodes:
            path = above + b"/" + node.name if above else node.name
            mode, mtime = node.mode, node.mtime
            if node.kind == DIRECTORY:
                waiting.append((path, node.content))
                itself = read_directory(store, node.content)
                mode, mtime = itself.mode, itself.mtime
            described = FileStat(
                path=os.fsdecode(path),
                kind=_KINDS[node.kind],
                size=node.size if node.is_file else 0,
                mode=stat.S_IMODE(mode),
                mtime_ns=mtime,
                target=os.fsdecode(node.content) if node.kind == SYMLINK else None,
            )
            found.append((path, described))
    found.sort(key=lambda pair: pair[0])
    return [described for _, described in found]


def read_file(store: Store, root: bytes, path: str | os.PathLike[str], limit: int) -> bytes:
    """Give the content of one file of a tree; raises as `Checkpoint.read` says."""
    if not isinstance(path, str | os.PathLike):
        hint = "pass a str or a pathlib.Path"
        raise UsageError(what="path", value=path, reason="is not a path", hint=hint)
    shown = os.fsdecode(path)
    try:
        names = [name for name in os.fsencode(shown).split(b"/") if name not in (b"", b".")]
    except UnicodeEncodeError:
        raise UsageError(what="path", value=shown, reason="is not encodable") from None
    if shown.startswith("/") or b".." in names or "\0" in shown:
        raise Denied(path=shown, reason="must be a relative path of plain names, without `..`")
    node = _find(store, root, names, shown)
    if node.size > limit:
        raise LimitExceeded(reason=f"{shown}: has {node.size:,} bytes, more than {limit:,}")
    if node.kind == FILE:
        return store.read(BLOB, node.content) if node.content else b""
    pieces = []
    for part in read_parts(store, node):
        data = store.read(BLOB, part.content) if part.content else bytes(part.length)
        if len(data) != part.length:
            raise Corrupt(path=shown, reason="has a part of another length than its list says")
        pieces.append(data)
    return b"".join(pieces)


def _find(store: Store, root: bytes, names: list[bytes], shown: str) -> Node:
    """Go down to a regular file."""
    here = Node(b"", DIRECTORY, content=root)
    for name in names:
        if here.kind == SYMLINK:
            break
        if here.kind != DIRECTORY:
            raise FileMissing(path=shown)
        nodes = read_directory(store, here.content).nodes
        found = next((node for node in nodes if node.name == name), None)
        if found is None:
            raise FileMissing(path=shown)
        here = found
    if here.kind == SYMLINK:
        reason = "is a symbolic link or leads through one, and none is followed"
        raise Denied(path=shown, reason=reason)
    if not here.is_file:
        raise FileConflict(path=shown, reason=f"is a {_KINDS[here.kind]}, not a regular file")
    return here


def check_content(store: Store, record: CheckpointRecord) -> VerifyReport:
    """Read everything that a checkpoint needs and check it against its digests."""
    began = clock.monotonic()
    root = bytes.fromhex(record.tree)
    problems: list[Problem] = []
    objects = size = 0
    try:
        needed = reachable(store, [root])
        objects = len(needed)
        lost, size = _unreadable(store, root, needed)
        reason = f"{len(lost)} stored objects are missing or damaged"
    except Corrupt as error:
        lost, reason = {root}, f"{error.fields.get('path')}: {error.fields.get('reason')}"
    if lost:
        files = tuple(damaged_paths(store, root, lost))
        path = f"checkpoint {record.id}"
        problems.append(Problem(path=path, reason=reason, checkpoints=(record.id,), files=files))
    return VerifyReport(
        level="content",
        problems=tuple(problems),
        objects=objects,
        bytes=size,
        seconds=clock.monotonic() - began,
    )


def _unreadable(store: Store, root: bytes, needed: set[bytes]) -> tuple[set[bytes], int]:
    """Give the objects that cannot be read, and the bytes of those that can."""
    blobs = _blobs(store, root)
    lost: set[bytes] = set()
    size = 0
    waiting = sorted(blobs)
    while waiting:
        seen: set[bytes] = set()
        try:
            for digest, data in store.read_many(BLOB, waiting):
                seen.add(digest)
                size += len(data)
        except Corrupt as error:
            bad = bytes.fromhex(str(error.fields["digest"]))
            lost.add(bad)
            seen.add(bad)
        waiting = [digest for digest in waiting if digest not in seen]
        if not seen:
            break
    return lost & needed, size


def _blobs(store: Store, root: bytes) -> set[bytes]:
    """Give the contents of all files of a tree; trees and lists were read to find them."""
    blobs: set[bytes] = set()
    seen: set[bytes] = set()
    waiting = [root]
    while waiting:
        tree = waiting.pop()
        if tree in seen:
            continue
        seen.add(tree)
        for node in read_directory(store, tree).nodes:
            if node.kind == DIRECTORY:
                waiting.append(node.content)
            elif node.kind == FILE and node.content:
                blobs.add(node.content)
            elif node.kind == PARTS:
                blobs.update(part.content for part in read_parts(store, node) if part.content)
    return blobs
