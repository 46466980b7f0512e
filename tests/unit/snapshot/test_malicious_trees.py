"""Trees and lists from whoever wrote the store: rows D08 to D15 of the table of malicious stores.

The rows that concern packs, frames and the index have a table beside the store.
"""

from __future__ import annotations

import os
import resource
import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from sandboxsdk.codec import checksum, encode_msgpack
from sandboxsdk.errors import Corrupt, LimitExceeded, SandboxError
from sandboxsdk.snapshot import compare_trees, damaged_paths, reachable, restore_to, totals_of
from sandboxsdk.snapshot import tree as t
from sandboxsdk.snapshot.cache import StatCache
from sandboxsdk.store import LIST, TREE
from tests import trees

# An object of at most 16 MiB in memory twice (the bytes, and what they are encoded to again), and
# what the nodes of one page are.
GROWTH_BYTES_MAX = (64 << 20) + 2 * (16 << 20)
DIGEST = b"\x11" * 32
ROOT_HEAD = encode_msgpack([1, 0o755, 0, 0, 0, [], [], b""])[:-3]


def as_tree(data: bytes) -> Callable[[], object]:
    """Give what reads these bytes as a directory."""
    sink = trees.Memory()
    digest = sink.add(TREE, data)
    return lambda: t.read_directory(sink, digest)


def as_list(data: bytes, size: int = t.SIZE_MAX) -> Callable[[], object]:
    sink = trees.Memory()
    node = t.Node(b"f", t.PARTS, size=size, content=sink.add(LIST, data))
    return lambda: t.read_parts(sink, node)


def as_cache(data: bytes, directory: str) -> Callable[[], object]:
    """Give what reads these bytes as a stat cache: it refuses by knowing nothing."""

    def read() -> None:
        path = os.path.join(directory, "scan")
        with open(path, "wb") as file:
            file.write(data)
        fd = os.open(directory, os.O_RDONLY)
        try:
            cache = StatCache.load("scan", fd, generation="g", has=set)
        finally:
            os.close(fd)
        assert not cache._rows
        raise Corrupt(path="scan", reason="knows nothing")

    return read


def claims(head: bytes) -> Iterator[bytes]:
    """Give claims of 4 GiB in each form that MessagePack has, behind a head."""
    for code in (0xC6, 0xC9, 0xDB, 0xDD, 0xDF):
        yield head + bytes([code]) + struct.pack(">I", 2**32 - 1)
        yield head + bytes([code]) + struct.pack(">I", 2**32 - 1) + b"\0" * 100


def bomb(levels: int) -> tuple[trees.Memory, bytes]:
    """Give a tree of few directories and very many paths."""
    sink = trees.Memory()
    digest = trees.directory(sink, [trees.file(sink, b"f", b"x")])
    for _ in range(levels):
        digest = trees.directory(sink, [trees.below(b"a", digest), trees.below(b"b", digest)])
    return sink, digest


def small_nodes(count: int) -> bytes:
    """Give a page of the smallest nodes that decode, more than a page may have."""
    return ROOT_HEAD + b"\xdd" + struct.pack(">I", count) + b"\x92\xc4\x00\x00" * count + b"\xc4\0"


def small_parts(count: int) -> bytes:
    return b"\x93\x01\xdd" + struct.pack(">I", count) + b"\x92\x01\xc4\x00" * count + b"\xc4\0"


def many_parts(count: int) -> Callable[[], object]:
    """Give what reads a list of very many parts that is paged as ours are."""
    sink = trees.Memory()
    following = b""
    part = t.Part(1, DIGEST)
    for _ in range(count // 150_000 + 1):
        following = sink.add(LIST, encode_msgpack([1, [part] * 150_000, following]))
    node = t.Node(b"f", t.PARTS, size=count, content=following)
    return lambda: t.read_parts(sink, node)


class Row(NamedTuple):
    """One case: what is read, and how it must end."""

    id: str
    what: str
    attempts: Callable[[str], list[Callable[[], object]]]
    expected: type[SandboxError] = Corrupt


def _bomb(read: Callable[[trees.Memory, bytes], object]) -> Callable[[], object]:
    sink, digest = bomb(40)
    return lambda: read(sink, digest)


def _missing(lost: str) -> list[Callable[[], object]]:
    sink = trees.Memory()
    inner = trees.tree(sink, {b"f": b"one"})
    node = trees.sparse(sink, b"s", [b"two", 5])
    root = trees.directory(sink, [trees.below(b"d", inner), node])
    gone = {"tree": inner, "list": node.content}[lost]
    del sink.objects[gone]
    return [
        lambda: reachable(sink, [root]),
        lambda: t.read_directory(sink, inner) if lost == "tree" else t.read_parts(sink, node),
    ]


def _restored(sink: trees.Memory, digest: bytes, place: str) -> object:
    return restore_to(sink, digest, os.path.join(place, "out"), owners=None, durable=False)


def _lost_blob(place: str) -> list[Callable[[], object]]:
    sink = trees.Memory()
    node = trees.file(sink, b"f", b"content")
    root = trees.directory(sink, [node])
    del sink.objects[node.content]
    return [lambda: _restored(sink, root, place)]


ROWS = [
    Row(
        "D08",
        "tree claims array/map/bin/ext of 4 GiB",
        lambda _: [
            *(
                as_tree(data)
                for head in (b"", b"\x98", b"\x98\x01", ROOT_HEAD)
                for data in claims(head)
            )
        ],
    ),
    Row(
        "D08",
        "list claims array/map/bin/ext of 4 GiB",
        lambda _: [
            *(as_list(data) for head in (b"", b"\x93", b"\x93\x01") for data in claims(head))
        ],
    ),
    Row(
        "D08",
        "cache claims array/map/bin/ext of 4 GiB",
        lambda place: [
            as_cache(_summed(data), place)
            for head in (b"", b"\x93\x02\xa1g", b"\x93\x02\xa1g\x81\xc4\x00")
            for data in claims(head)
        ],
    ),
    Row(
        "D08",
        "millions of the smallest nodes and parts",
        lambda _: [as_tree(small_nodes(3_000_000)), as_list(small_parts(3_000_000))],
    ),
    Row(
        "D09",
        "nesting of 200,000 levels",
        lambda place: [
            as_tree(b"\x91" * 200_000 + b"\xc0"),
            as_tree(ROOT_HEAD + b"\x91" * 200_000 + b"\xc0"),
            as_list(b"\x93\x01" + b"\x91" * 200_000 + b"\xc0"),
            as_list(b"\x81\x01" * 200_000 + b"\xc0"),
            as_cache(_summed(b"\x91" * 200_000 + b"\xc0"), place),
        ],
    ),
    Row(
        "D10",
        "extra fields, maps and their keys twice",
        lambda _: [
            as_tree(encode_msgpack([1, 0o755, 0, 0, 0, [], [], b"", 0])),
            as_tree(
                encode_msgpack(
                    [1, 0o755, 0, 0, 0, [], [[b"f", 0, 0, 0, 0, 0, 0, b"", 0, [], 1]], b""]
                )
            ),
            as_tree(b"\x82\xa7version\x01\xa7version\x01"),
            as_list(encode_msgpack([1, [[1, b"", 0]], b""]), 1),
            as_list(b"\x82\xa7version\x01\xa7version\x01"),
        ],
    ),
    Row(
        "D11",
        "NaN, bool as int, str as bytes",
        lambda _: [
            as_tree(encode_msgpack([1, float("nan"), 0, 0, 0, [], [], b""])),
            as_tree(encode_msgpack([1, True, 0, 0, 0, [], [], b""])),
            as_tree(encode_msgpack([1, 0o755, 0, 0, 0, [], [], ""])),
            as_list(encode_msgpack([1, [[True, b""]], b""]), 1),
            as_list(encode_msgpack([1, [[1.0, b""]], b""]), 1),
            as_list(encode_msgpack([1, [[1, ""]], b""]), 1),
        ],
    ),
    Row(
        "D13",
        "version 2^31",
        lambda _: [
            as_tree(encode_msgpack([2**31, 0o755, 0, 0, 0, [], [], b""])),
            as_list(encode_msgpack([2**31, [], b""])),
        ],
    ),
    Row("D14", "a list of 10^7 parts", lambda _: [many_parts(10**7)]),
    Row("D15", "a tree is missing", lambda _: _missing("tree")),
    Row("D15", "a list is missing", lambda _: _missing("list")),
    Row("D15", "a blob is missing: nothing is restored", _lost_blob),
    Row(
        "P25",
        "40 directories of 2^40 paths are restored",
        lambda place: [_bomb(lambda sink, digest: _restored(sink, digest, place))],
        LimitExceeded,
    ),
]


def _summed(data: bytes) -> bytes:
    return checksum(data) + data


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """Take a line a row, and print them when all rows of this process are done."""
    lines: list[str] = []
    yield lines
    reporter = request.config.pluginmanager.getplugin("terminalreporter")
    capture = request.config.pluginmanager.getplugin("capturemanager")
    if reporter is not None and capture is not None:
        with capture.global_and_fixture_disabled():
            reporter.write_line("")
            for line in sorted(lines):
                reporter.write_line(line)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.id}-{row.what[:20]}")
def test_malicious_objects_end_as_the_table_says(row: Row, table: list[str], tmp_path) -> None:
    """What a malicious store gives as trees and lists is a typed error, and takes little memory."""
    attempts = row.attempts(str(tmp_path))
    before = set(os.listdir(tmp_path))
    verdict = "FAILED"
    try:
        for attempt in attempts:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            with pytest.raises(row.expected):
                attempt()
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * 1024
            assert row.id == "D14" or grown <= GROWTH_BYTES_MAX, f"{grown:,} bytes"
        assert set(os.listdir(tmp_path)) - before <= {"scan"}
        verdict = "held"
    finally:
        expected = row.expected.__name__
        table.append(f"{row.id}  {row.what:<45} {expected:<15} {len(attempts):>3}  {verdict}")


def test_a_shared_subtree_costs_what_it_holds():
    """Where 40 directories are 2^40 paths, counting and searching look at each directory once."""
    sink, digest = bomb(40)
    totals = totals_of(sink, digest)
    assert totals == (2**40, 2**40)
    assert len(reachable(sink, [digest])) == 42
    (blob,) = {key for key, (kind, _) in sink.objects.items() if kind not in (TREE, LIST)}
    sink.reads = 0
    assert damaged_paths(sink, digest, {blob}) == ["/".join("b" * 40) + "/f"]
    assert sink.reads <= 3 * 42


def test_comparing_a_bomb_with_itself_costs_nothing():
    """Equal trees are not looked into, however many paths they have."""
    sink, digest = bomb(40)
    sink.reads = 0
    assert compare_trees(sink, digest, digest) == []
    assert sink.reads == 0
