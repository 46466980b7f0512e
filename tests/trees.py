"""Trees for tests: objects in memory, trees written by hand, and what lies on a disk as a tree."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from typing import Any

from sandboxsdk import snapshot as product
from sandboxsdk.codec import typed_digest
from sandboxsdk.errors import Corrupt
from sandboxsdk.snapshot import Captured, Rules, StatCache
from sandboxsdk.snapshot import tree as t
from sandboxsdk.store import BLOB

Spec = dict[bytes, Any]


class Memory:
    """Objects by digest; each is checked when it is read, as a store does."""

    def __init__(self) -> None:
        self.objects: dict[bytes, tuple[int, bytes]] = {}
        self.reads = 0

    def add(self, kind: int, data: bytes) -> bytes:
        digest = typed_digest(kind, data)
        self.objects[digest] = kind, bytes(data)
        return digest

    def read(self, kind: int, digest: bytes) -> bytes:
        self.reads += 1
        _, data = self.objects.get(digest, (0, b""))
        if typed_digest(kind, data) != digest:
            raise Corrupt(path=f"object {digest.hex()}", reason="is damaged", digest=digest.hex())
        return data

    def read_many(self, kind: int, digests: Iterable[bytes]) -> Iterator[tuple[bytes, bytes]]:
        order = {digest: at for at, digest in enumerate(self.objects)}
        for digest in sorted(set(digests), key=lambda d: order.get(d, -1)):
            yield digest, self.read(kind, digest)


class Counting(Memory):
    """Counts what it is given of one kind."""

    def __init__(self, kind: int) -> None:
        super().__init__()
        self._kind, self.taken = kind, 0

    def add(self, kind: int, data: bytes) -> bytes:
        self.taken += kind == self._kind
        return super().add(kind, data)


LONG_AGO = 10**18


def aged(generation: str = "g") -> StatCache:
    """Give a cache of a walk that begins long after everything was written."""
    cache = StatCache(generation)
    cache._began += LONG_AGO
    return cache


def directory(
    sink: Memory,
    nodes: Iterable[t.Node] = (),
    *,
    mode: int = 0o755,
    mtime: int = 10**18,
    attributes: t.Attributes = (),
    owner: tuple[int, int] = (0, 0),
) -> bytes:
    """Store a directory of these nodes; gives its digest."""
    listed = sorted(nodes, key=lambda node: node.name)
    return t.write_directory(sink, t.Directory(mode, mtime, *owner, attributes, listed))


def crowded(sink: Memory) -> list[bytes]:
    """Store two trees of 41 directories each, which share what is below them: nothing in one is in
    the other, and each has more paths than anybody could visit.
    """
    roots = []
    for turn in (b"1", b"2"):
        digest = directory(sink, [file(sink, b"f", turn)])
        for _ in range(40):
            digest = directory(sink, [below(b"a", digest), below(b"b", digest)])
        roots.append(digest)
    return roots


def file(sink: Memory, name: bytes, data: bytes = b"", mode: int = 0o644, **more: Any) -> t.Node:
    content = sink.add(BLOB, data) if data else b""
    more.setdefault("mtime", 10**18 + 7)
    return t.Node(name, t.FILE, mode, size=len(data), content=content, **more)


def sparse(sink: Memory, name: bytes, parts: Iterable[bytes | int], **more: Any) -> t.Node:
    """Give a file of parts: bytes are a blob, a number is a hole."""
    listed = [
        t.Part(part, b"") if isinstance(part, int) else t.Part(len(part), sink.add(BLOB, part))
        for part in parts
    ]
    size = sum(part.length for part in listed)
    content = t.write_parts(sink, listed)
    return t.Node(name, t.PARTS, 0o644, 10**18 + 7, size=size, content=content, **more)


def below(name: bytes, digest: bytes) -> t.Node:
    return t.Node(name, t.DIRECTORY, content=digest)


def symlink(name: bytes, target: bytes, mtime: int = 10**18 + 9, **more: Any) -> t.Node:
    return t.Node(name, t.SYMLINK, 0o777, mtime, content=target, **more)


def tree(sink: Memory, spec: Spec, **own: Any) -> bytes:
    """Store a tree written as a dict: bytes are a file, a str a link, a dict a directory, a node
    itself.
    """
    nodes = []
    for name, what in spec.items():
        if isinstance(what, bytes):
            nodes.append(file(sink, name, what))
        elif isinstance(what, str):
            nodes.append(symlink(name, what.encode()))
        elif isinstance(what, dict):
            nodes.append(below(name, tree(sink, what)))
        else:
            nodes.append(what)
    return directory(sink, nodes, **own)


_KINDS = {
    stat.S_IFREG: t.FILE,
    stat.S_IFLNK: t.SYMLINK,
    stat.S_IFIFO: t.FIFO,
    stat.S_IFSOCK: t.SOCKET,
    stat.S_IFCHR: t.CHARACTER,
    stat.S_IFBLK: t.BLOCK,
}


def capture(sink: Memory, path: str | bytes | os.PathLike[Any]) -> bytes:
    """Store what lies below a path, the plain way: nobody changes it meanwhile.

    A file is stored as parts if it is sparse. Names of one inode are one file if there are two.
    """
    root = os.fsencode(path)
    inodes: dict[int, int] = {}
    for folder, _, names in os.walk(root):
        for name in names:
            found = os.lstat(os.path.join(folder, name))
            inodes[found.st_ino] = inodes.get(found.st_ino, 0) + 1
    return _captured(sink, root, {ino for ino, count in inodes.items() if count > 1})


def _captured(sink: Memory, path: bytes, linked: set[int]) -> bytes:
    nodes = []
    own = os.lstat(path)
    for name in os.listdir(path):
        inner = os.path.join(path, name)
        found = os.lstat(inner)
        if stat.S_ISDIR(found.st_mode):
            nodes.append(below(name, _captured(sink, inner, linked)))
            continue
        node = t.Node(
            name,
            _KINDS[stat.S_IFMT(found.st_mode)],
            stat.S_IMODE(found.st_mode),
            found.st_mtime_ns,
            found.st_uid,
            found.st_gid,
        )
        changes: dict[str, Any] = {}
        if node.kind == t.SYMLINK:
            changes["content"] = os.readlink(inner)
        elif node.kind == t.FIFO:
            changes["link"] = found.st_ino if found.st_ino in linked else 0
        elif node.kind == t.FILE:
            with open(inner, "rb") as opened:
                made = _content(sink, opened.fileno(), found)
            changes = {"kind": made.kind, "size": made.size, "content": made.content}
            changes["attributes"] = _attributes(inner)
            changes["link"] = found.st_ino if found.st_ino in linked else 0
        elif node.kind in (t.CHARACTER, t.BLOCK):
            changes["size"] = found.st_rdev
        nodes.append(t.msgspec.structs.replace(node, **changes))
    return directory(
        sink,
        nodes,
        mode=stat.S_IMODE(own.st_mode),
        mtime=own.st_mtime_ns,
        attributes=_attributes(path),
        owner=(own.st_uid, own.st_gid),
    )


def _content(sink: Memory, fd: int, found: os.stat_result) -> t.Node:
    if found.st_blocks * 512 >= found.st_size:
        data = os.pread(fd, found.st_size, 0)
        return file(sink, b"x", data)
    parts: list[bytes | int] = []
    at = 0
    while at < found.st_size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:
            start = found.st_size
        if start > at:
            parts.append(start - at)
        end = os.lseek(fd, start, os.SEEK_HOLE) if start < found.st_size else start
        pieces = range(start, end, 1 << 20)
        parts += [os.pread(fd, min(1 << 20, end - piece), piece) for piece in pieces]
        at = end
    return sparse(sink, b"x", parts)


def _attributes(path: bytes) -> t.Attributes:
    found = sorted(os.fsencode(name) for name in os.listxattr(path))
    return tuple((n, os.getxattr(path, n)) for n in found if n.startswith(b"user."))


def walked(
    sink: Any,
    path: str | bytes | os.PathLike[Any],
    *,
    known: StatCache | None = None,
    learned: StatCache | None = None,
    **rules: Any,
) -> Captured:
    """Capture a path as the library does it, by default without a stat cache."""
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY)
    try:
        return product.capture(
            sink, fd, known or StatCache("g"), learned or StatCache("g"), Rules(**rules)
        )
    finally:
        os.close(fd)


def nodes(reader: t.Reader, tree: bytes) -> dict[bytes, t.Node]:
    """Give every entry of a tree by its path; a directory as a node with its own metadata."""
    found: dict[bytes, t.Node] = {}
    waiting = [(b"", tree)]
    while waiting:
        path, digest = waiting.pop()
        here = t.read_directory(reader, digest)
        name = path.rpartition(b"/")[2] or b"."
        own = (here.mode, here.mtime, here.uid, here.gid)
        found[path or b"."] = t.Node(name, t.DIRECTORY, *own, attributes=here.attributes)
        for node in here.nodes:
            inner = path + b"/" + node.name if path else node.name
            if node.kind == t.DIRECTORY:
                waiting.append((inner, node.content))
            else:
                found[inner] = node
    return found


def content(reader: t.Reader, node: t.Node) -> bytes:
    """Give the whole content of a file, holes as zeros."""
    if node.kind == t.PARTS:
        parts = t.read_parts(reader, node)
        return b"".join(
            reader.read(BLOB, part.content) if part.content else bytes(part.length)
            for part in parts
        )
    return reader.read(BLOB, node.content) if node.size else b""
