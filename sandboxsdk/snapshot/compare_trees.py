"""What differs between two trees: equal directories are the same object and are not looked into."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Sequence

from sandboxsdk.codec import typed_digest
from sandboxsdk.model import Change
from sandboxsdk.store import BLOB, OBJECT_BYTES_MAX

from .comparison import (
    Content,
    Entry,
    compare,
    make_change,
    pair_renames,
    rename_candidates,
    with_renames,
)
from .measure import Trees, check_limits
from .pairs import differing
from .scratch import Forgotten
from .tree import (
    BLOCK,
    CHARACTER,
    DIRECTORY,
    FIFO,
    FILE,
    PARTS,
    SOCKET,
    SYMLINK,
    Node,
    Objects,
    Part,
    Reader,
    read_parts,
)

_TYPES = {
    FILE: stat.S_IFREG,
    PARTS: stat.S_IFREG,
    DIRECTORY: stat.S_IFDIR,
    SYMLINK: stat.S_IFLNK,
    FIFO: stat.S_IFIFO,
    SOCKET: stat.S_IFSOCK,
    CHARACTER: stat.S_IFCHR,
    BLOCK: stat.S_IFBLK,
}


def compare_trees(reader: Reader | Trees, old: bytes, new: bytes) -> list[Change]:
    """List what changed from one tree to another, in the order of the paths' bytes.

    Costs what differs. Times, owners and attributes are stored, and no change.

    Raises:
        Corrupt: a tree is missing or damaged.
        LimitExceeded: more differs than a checkpoint may hold.
    """
    trees = reader if isinstance(reader, Trees) else Trees(reader)
    reader = trees.reader
    changes: list[Change] = []
    contents: dict[tuple[str, bool], Content] = {}
    waiting: list[tuple[bytes, bytes, bytes]] = [(b"", old, new)]
    seen = 0
    while waiting:
        path, before, after = waiting.pop()
        if before == after:
            continue
        seen += 1
        # Directories that share what is below them may have more paths than anybody could visit.
        check_limits(seen + len(changes), path.count(b"/") + 1)
        for name, one, two in differing(_nodes(trees, before), _nodes(trees, after)):
            below = path + b"/" + name if path else name
            shown = os.fsdecode(below)
            first, second = _entry(trees, one), _entry(trees, two)
            same = one is None or two is None or same_content(reader, one, two)
            kind = compare(first, second, same_content=same)
            if kind is not None:
                changes.append(make_change(kind, shown, first, second))
            for node, is_new in ((one, False), (two, True)):
                if node is not None and node.is_file and node.size:
                    contents[shown, is_new] = Content(shown, node.size, node.content.hex())
            if _is_directory(one) or _is_directory(two):
                waiting.append((below, _below(one), _below(two)))
    removed, added = rename_candidates(changes)
    pairs = pair_renames(
        [contents[change.path, False] for change in removed],
        [contents[change.path, True] for change in added],
    )
    return with_renames(changes, pairs)


def _nodes(trees: Trees, tree: bytes) -> Sequence[Node]:
    return trees.directory(tree).nodes if tree else ()


def _is_directory(node: Node | None) -> bool:
    return node is not None and node.kind == DIRECTORY


def _below(node: Node | None) -> bytes:
    return node.content if node is not None and node.kind == DIRECTORY else b""


def _entry(trees: Trees, node: Node | None) -> Entry | None:
    if node is None:
        return None
    if node.kind == DIRECTORY:
        found = trees.directory(node.content)
        return Entry(stat.S_IFDIR, found.mode)
    target = os.fsdecode(node.content) if node.kind == SYMLINK else None
    size = node.size if node.is_file else None
    device = node.size if node.kind in (CHARACTER, BLOCK) else 0
    return Entry(_TYPES[node.kind], node.mode, size, target, device)


def same_content(reader: Objects, one: Node, two: Node) -> bool:
    """Compare two nodes of one type; a file may be stored in parts and still have equal bytes."""
    if not one.is_file or not two.is_file or one.size != two.size:
        return True  # Whatever else differs, `compare` sees.
    if (one.kind, one.content) == (two.kind, two.content):
        return True
    if one.kind == two.kind == FILE:
        return False
    try:
        return _equal_bytes(_Bytes(reader, one), _Bytes(reader, two), one.size)
    except Forgotten:
        # Of what is there now the contents were not kept, but the digests of all parts.
        for node, other in ((one, two), (two, one)):
            with contextlib.suppress(Forgotten):
                return _consists_of(reader, node, other)
        return False


def _equal_bytes(first: _Bytes, second: _Bytes, left: int) -> bool:
    while left:
        length = min(first.left, second.left)
        if not first.equals(second, length):
            return False
        first.skip(length)
        second.skip(length)
        left -= length
    return True


def _consists_of(reader: Objects, node: Node, other: Node) -> bool:
    """Tell whether a file whose content was kept has the parts of one whose content may not be."""
    content = _Bytes(reader, node)
    return all(content.begins_with(part) for part in _parts(reader, other))


def _parts(reader: Objects, node: Node) -> list[Part]:
    whole = [Part(node.size, node.content)]
    return whole if node.kind == FILE else read_parts(reader, node)


def _digest(part: Part) -> bytes:
    return part.content or typed_digest(BLOB, _zeros(part.length))


def _zeros(length: int) -> bytes:
    """Give what a hole has, to compare it with a blob: none is larger, whatever a list says."""
    return bytes(min(length, OBJECT_BYTES_MAX + 1))


class _Bytes:
    """A file's content, part by part; `left` is what the present part has left."""

    def __init__(self, reader: Objects, node: Node) -> None:
        self._reader = reader
        self._parts: Iterator[Part] = iter(_parts(reader, node))
        self._part = next(self._parts)
        self._data: bytes | None = None
        self._position = 0

    @property
    def left(self) -> int:
        return self._part.length - self._position

    def equals(self, other: _Bytes, length: int) -> bool:
        """Compare what comes next; equal parts are not read."""
        one, two = self._part, other._part
        if not (one.content or two.content):
            return True
        if self._position == other._position and one.length == two.length:
            # Of parts that cover the same, the digests say it; a hole's is that of zeros.
            return _digest(one) == _digest(two)
        return self._next(length) == other._next(length)

    def begins_with(self, part: Part) -> bool:
        """Tell whether a part of another file comes next, by its digest, and go behind it."""
        if part.content and part.length > OBJECT_BYTES_MAX:
            return False
        pieces, left = [], part.length
        while left:
            length = min(self.left, left)
            if part.content:
                pieces.append(self._next(length))
            elif self._part.content and any(self._next(length)):
                return False
            self.skip(length)
            left -= length
        return not part.content or typed_digest(BLOB, b"".join(pieces)) == part.content

    def skip(self, length: int) -> None:
        self._position += length
        if self.left == 0:
            self._part = next(self._parts, Part(0, b""))
            self._data, self._position = None, 0

    def _next(self, length: int) -> bytes:
        if not self._part.content:
            return _zeros(length)
        if self._data is None:
            self._data = self._reader.read(BLOB, self._part.content)
        return self._data[self._position : self._position + length]
