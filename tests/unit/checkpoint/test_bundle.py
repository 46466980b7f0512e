"""A task in one file: what is read is what was written, or an error that says what is wrong."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import signal
import socket
import stat
import struct
import tracemalloc

import msgspec
import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from sandboxsdk import disk
from sandboxsdk.checkpoint import bundle, bundle_format, read_bundle, write_bundle
from sandboxsdk.codec import encode_msgpack
from sandboxsdk.errors import (
    Corrupt,
    Denied,
    FileConflict,
    FileMissing,
    HostFull,
    HostRefused,
    LimitExceeded,
    Unavailable,
)
from sandboxsdk.snapshot import needed_by, reachable
from sandboxsdk.store import BLOB, LIST, TREE, Store, compress, decompress
from tests import trees

HEAD, FRAME = struct.Struct("<8sI"), struct.Struct("<BII")
OBJECTS, JOURNAL, FACTS, END = 1, 2, 3, 4
JOURNAL_BYTES = b'{"seq":0}\n{"seq":1}\n'
TOLD = {"task": "t", "uid": 1000, "name": "ä \udcff \0"}
SYNCS = ("sync", "sync_data")
# What a full disk fails; removing always works.
NEEDS_SPACE = ("create", "write", "rename", "make_hard_link", *SYNCS)


@pytest.fixture
def opened(tmp_path):
    """Open stores below the directory of this test by name; they are closed at its end."""
    with contextlib.ExitStack() as stack:
        yield lambda name: stack.enter_context(contextlib.closing(Store(str(tmp_path / name))))


@pytest.fixture
def store(opened):
    return opened("store")


@pytest.fixture
def other(opened):
    return opened("other")


@pytest.fixture
def out(tmp_path):
    """An empty directory to write into, apart from the stores."""
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def planted(store, spec):
    with store.writing() as writer:
        root = trees.tree(writer, spec)
        writer.commit()
    return root


@pytest.fixture
def small(store, out):
    """A small bundle of two trees, and its path."""
    first = planted(store, {b"a": b"one", b"d": {b"e": b"three", b"l": "a"}})
    with store.writing() as writer:
        parts = trees.sparse(writer, b"p", [b"four", 4096, b"one"])
        second = trees.tree(writer, {b"a": b"two" * 100, b"p": parts})
        writer.commit()
    write_bundle(
        str(out / "small"), store=store, roots=[first, second], journal=JOURNAL_BYTES, facts=TOLD
    )
    return out / "small"


def written(path, store, roots, **more):
    return write_bundle(
        str(path), store=store, roots=roots, journal=JOURNAL_BYTES, facts=TOLD, **more
    )


def read(path, store, *, commit=False):
    with store.writing() as writer:
        found = read_bundle(str(path), writer)
        if commit:
            writer.commit()
    return found


# --- Frames, as docs/format.md has them -----------------------------------------------------------


def frames_of(data):
    found, at = [], HEAD.size
    while at < len(data):
        kind, length, stored = FRAME.unpack_from(data, at)
        at += FRAME.size + stored
        content = data[at - stored : at]
        found.append((kind, content if stored == length else decompress(content, length)))
    return found


def framed(kind, content, *, length=None):
    return FRAME.pack(kind, len(content) if length is None else length, len(content)) + content


def end_of(data, objects):
    return framed(END, msgspec.msgpack.encode([objects, blake3(data).hexdigest()]))


def begun(frames, *, version=1):
    """Give a file without its end: of frames by type and content, or ready bytes."""
    ready = (frame if isinstance(frame, bytes) else framed(*frame) for frame in frames)
    return HEAD.pack(b"SBXTASK\n", version) + b"".join(ready)


def sealed(frames, *, objects=None, version=1):
    """Give a file that is whole in itself."""
    data = begun(frames, version=version)
    return data + end_of(data, len(objects_of(frames)) if objects is None else objects)


def objects_of(frames):
    """Give the objects of those frames that hold some."""
    found = []
    for frame in frames:
        if isinstance(frame, tuple) and frame[0] == OBJECTS:
            with contextlib.suppress(msgspec.DecodeError, TypeError):
                found += [tuple(one) for one in msgspec.msgpack.decode(frame[1])]
    return found


def with_objects(frames, objects):
    """Give these frames with other objects, in one frame of their own."""
    packed = msgspec.msgpack.encode([list(o) for o in objects])
    return [*(f for f in frames if f[0] in (FACTS, JOURNAL)), (OBJECTS, packed)]


def described(path):
    """Read a bundle with nothing but the page, BLAKE3, zstd and MessagePack."""
    data = path.read_bytes()
    assert data[:12] == b"SBXTASK\n\x01\0\0\0"
    objects, journal, told, at, last = {}, b"", None, 12, 0
    while last != END:
        start = at
        kind, length, stored = FRAME.unpack_from(data, at)
        at += FRAME.size + stored
        content = data[at - stored : at]
        content = content if stored == length else decompress(content, length)
        if kind == FACTS:
            assert last == 0
            told = json.loads(content)
        elif kind == JOURNAL:
            assert last in (FACTS, JOURNAL)
            journal += content
        elif kind == OBJECTS:
            assert last in (FACTS, JOURNAL, OBJECTS)
            for what, found in msgspec.msgpack.decode(content):
                digest = blake3(struct.pack("<BQ", what, len(found)) + found).digest()
                objects[digest] = what, found
        else:
            count, digest = msgspec.msgpack.decode(content)
            assert (kind, count, digest) == (END, len(objects), blake3(data[:start]).hexdigest())
        last = kind
    assert at == len(data)
    return told, journal, objects


# --- What comes back ------------------------------------------------------------------------------


def test_real_trees_come_back_the_same(store, other, out, tmp_path):
    """Every object of directories with everything in them is in a store that had nothing."""
    work = tmp_path / "work"
    (work / "d" / "empty").mkdir(parents=True)
    (work / "a").write_bytes(b"a\n")
    os.link(work / "a", work / "d" / "linked")
    (work / "large").write_bytes(random.Random(1).randbytes(9 << 20))
    with (work / "holes").open("wb") as file:
        file.truncate(5 << 20)
        file.seek(3 << 20)
        file.write(b"here")
    (work / "l").symlink_to("../nowhere")
    os.mkfifo(work / "fifo")
    os.mkdir(os.fsencode(work) + b"/\xff name\n")
    (work / "none").touch()
    roots = []
    with store.writing() as writer:
        roots.append(trees.walked(writer, work).tree)
        (work / "a").write_bytes(b"other\n")
        (work / "large").unlink()
        roots.append(trees.walked(writer, work).tree)
        writer.commit()
    seen = []
    report = written(
        out / "b", store, [*roots, roots[0]], progress=lambda *numbers: seen.append(numbers)
    )
    found = read(out / "b", other, commit=True)
    assert (found.journal, found.facts, found.roots) == (JOURNAL_BYTES, TOLD, tuple(sorted(roots)))
    assert needed_by(other, roots) == needed_by(store, roots)
    for kind, digests in needed_by(store, roots).items():
        assert dict(other.read_many(kind, digests)) == dict(store.read_many(kind, digests))
    for root in roots:
        assert trees.nodes(other, root) == trees.nodes(store, root)
    assert other.verify("content").problems == ()
    assert report.objects == len(reachable(store, roots)) == seen[-1][0]
    assert report.bytes == (out / "b").stat().st_size
    assert seen == sorted(seen)
    assert len(seen) > 8
    assert stat.S_IMODE((out / "b").stat().st_mode) == 0o600
    assert os.listdir(out) == ["b"]


_names = st.binary(min_size=1, max_size=3).filter(
    lambda name: not {0, 47} & set(name) and name not in (b".", b"..")
)
_specs = st.recursive(
    st.binary(max_size=50) | st.text("ab/", min_size=1, max_size=5),
    lambda inner: st.dictionaries(_names, inner, max_size=4),
    max_leaves=12,
)


@given(
    st.lists(st.dictionaries(_names, _specs, max_size=4), max_size=3),
    st.binary(max_size=200),
    st.dictionaries(st.text(max_size=5), st.integers(-5, 5) | st.text(max_size=5), max_size=3),
)
def test_whatever_is_written_is_read(tmp_path_factory, specs, journal, facts):
    """Any trees, any journal and any facts come back, in a store that has some of it already."""
    place = tmp_path_factory.mktemp("bundle")
    with (
        contextlib.closing(Store(str(place / "from"))) as store,
        contextlib.closing(Store(str(place / "to"))) as other,
    ):
        roots = [planted(store, spec) for spec in specs]
        for spec in specs[:1]:
            planted(other, spec)
        write_bundle(str(place / "b"), store=store, roots=roots, journal=journal, facts=facts)
        found = read(place / "b", other, commit=True)
        assert (found.journal, found.facts) == (journal, facts)
        assert found.roots == tuple(sorted(set(roots)))
        assert needed_by(other, roots) == needed_by(store, roots)
        assert all(len(list(other.read_many(k, d))) == len(d) for k, d in _needed(other, roots))


def _needed(store, roots):
    return needed_by(store, roots).items()


def test_whoever_has_the_page_can_read_it(small, store):
    """A second reader, written from docs/format.md, finds the same objects, journal and facts."""
    told, journal, objects = described(small)
    roots = [bytes.fromhex(root) for root in told["roots"]]
    assert roots == sorted(roots)
    assert set(objects) == reachable(store, roots)
    assert all(store.read(kind, digest) == data for digest, (kind, data) in objects.items())
    assert journal == JOURNAL_BYTES
    assert told["facts"] == TOLD | {"name": "ä \0dcff \x000000"}


# What this version wrote once: facts, a journal of one line, and a file that holds "hello".
GOLDEN = bytes.fromhex(
    "5342585441534b0a0100000003680000006400000028b52ffd2068dd020082c6151990a76d9613d7f38ab872"
    "2d43672644b659b7d0e3a48c5d53024972036f610d9e4e60da8ea4b376689f101c150880c514e3e0ea6d91c8"
    "aaee6827c2548a1b69261e96e5cb030f2a3ec3ecd1edc672fc403a6b6b1d8e04000203000000030000007b7d"
    "0a010a0000000a000000919262c40568656c6c6f015100000051000000919274c44c9801cd01edcf0de0b6b3"
    "a7640000000090919ac4016600cd01a4cf0de0b6b3a7640007000005c420d0a0b90ffe447403b9514c72dad0"
    "6e889171ea28f1ca404de105bae22ef00c140090c4000444000000440000009202d940356663353430393033"
    "6165343530363763623037356533613536376430643237313836313934323034656138653033656335366363"
    "6337653735636233623537"
)


def test_what_was_written_once_can_be_read(out, other):
    """Bytes that version 1 has written stay readable."""
    (out / "golden").write_bytes(GOLDEN)
    found = read(out / "golden", other, commit=True)
    assert (found.journal, found.facts) == (b"{}\n", {"task": "golden"})
    (node,) = [n for n in trees.nodes(other, found.roots[0]).values() if n.is_file]
    assert (node.name, other.read(BLOB, node.content)) == (b"f", b"hello")


def test_the_same_is_written_the_same(small, store):
    """Nothing of a moment or of a process is in the file."""
    roots = read(small, store).roots
    written(small.parent / "again", store, reversed(roots))
    assert (small.parent / "again").read_bytes() == small.read_bytes()


def test_nothing_comes_back_too(store, other, out):
    """No trees, no journal, no facts: a bundle like any other."""
    report = write_bundle(str(out / "b"), store=store, roots=[], journal=b"", facts={})
    found = read(out / "b", other)
    assert (found.journal, found.facts, found.roots, report.objects) == (b"", {}, (), 0)


def test_frames_are_bounded(store, other, out, monkeypatch):
    """However many and however large the objects: each frame has what a reader takes."""
    root = planted(store, {b"%d" % n: b"%d" % n for n in range(20)} | {b"l": bytes(16 << 20)})
    monkeypatch.setattr(bundle, "BATCH_OBJECTS", 3)
    written(out / "b", store, [root])
    sizes = [
        len(msgspec.msgpack.decode(c)) for k, c in frames_of((out / "b").read_bytes()) if k == 1
    ]
    assert max(sizes) == 3
    assert sum(sizes) == 22
    assert read(out / "b", other).roots == (root,)


def test_a_long_journal_comes_in_pieces(store, other, out):
    """It is the same bytes, also where it fills its pieces exactly."""
    for length in (1 << 20, (2 << 20) + 1):
        journal = random.Random(length).randbytes(length)
        path = str(out / str(length))
        write_bundle(path, store=store, roots=[], journal=journal, facts={})
        assert read(path, other).journal == journal


def test_what_no_reader_would_take_is_not_written(store, out, monkeypatch):
    """A journal or facts above their bounds: LimitExceeded, and no file."""
    with pytest.raises(LimitExceeded):
        write_bundle(
            str(out / "b"), store=store, roots=[], journal=b"", facts={"a": "x" * (4 << 20)}
        )
    monkeypatch.setattr(bundle, "JOURNAL_BYTES_MAX", 5)
    with pytest.raises(LimitExceeded):
        write_bundle(str(out / "b"), store=store, roots=[], journal=b"123456", facts={})
    assert os.listdir(out) == []


def test_memory_does_not_grow_with_the_file(store, other, out):
    """48 MiB are written and read with a few."""
    chance = random.Random(2)
    with store.writing() as writer:
        spec = {b"%d" % n: chance.randbytes(1 << 20) for n in range(48)}
        root = trees.tree(writer, spec)
        writer.commit()
    del spec
    peaks = []
    for call in (lambda: written(out / "b", store, [root]), lambda: read(out / "b", other)):
        tracemalloc.start()
        try:
            call()
            peaks.append(tracemalloc.get_traced_memory()[1] >> 20)
        finally:
            tracemalloc.stop()
    assert max(peaks) < 24, peaks


# --- What is not what was written -----------------------------------------------------------------


def test_every_truncation_is_told(small, other):
    """However much is missing: Corrupt, and it says so."""
    whole = small.read_bytes()
    cut = small.parent / "cut"
    for length in range(len(whole)):
        cut.write_bytes(whole[:length])
        with pytest.raises(Corrupt, match="truncated"):
            read(cut, other)


@pytest.mark.parametrize("mask", [0x01, 0x80, 0xFF])
def test_every_changed_byte_is_told(small, other, mask):
    """Whichever byte is another one: Corrupt or Unavailable, with a remedy that fits a file."""
    whole = small.read_bytes()
    changed = small.parent / "changed"
    for at in range(len(whole)):
        changed.write_bytes(whole[:at] + bytes([whole[at] ^ mask]) + whole[at + 1 :])
        with pytest.raises((Corrupt, Unavailable)) as caught:
            read(changed, other)
        assert "export the task again" in caught.value.hint or "upgrade" in caught.value.hint


def test_what_is_no_bundle_is_told(out, other):
    """Another file is not called truncated, nor read on."""
    for data in (b"no", b"PK\3\4" + bytes(100), b"SBXTASK " + bytes(100)):
        (out / "b").write_bytes(data)
        with pytest.raises(Corrupt, match="no exported task"):
            read(out / "b", other)
    (out / "b").write_bytes(HEAD.pack(b"SBXTASK\n", 0))
    with pytest.raises(Corrupt, match="format 0"):
        read(out / "b", other)


@pytest.mark.parametrize("version", [2, 2**32 - 1])
def test_a_newer_version_says_to_upgrade(small, other, version):
    """Whatever stands behind its head, it is not guessed at."""
    for data in (sealed(frames_of(small.read_bytes())[:-1], version=version), b""):
        small.write_bytes(data or HEAD.pack(b"SBXTASK\n", version))
        with pytest.raises(Unavailable, match="upgrade sandboxsdk"):
            read(small, other)


def _swapped(frames, old, new):
    return with_objects(
        frames, [(k, new if data == old else data) for k, data in objects_of(frames)]
    )


def _of_another_kind(frames, one, another):
    first = next(o for o in objects_of(frames) if o[0] == one)
    return with_objects(
        frames, [(another if o == first else o[0], o[1]) for o in objects_of(frames)]
    )


def _told(frames, **changes):
    found = json.loads(frames[0][1]) | changes
    return [(FACTS, json.dumps(found).encode()), *frames[1:]]


def _roots(frames):
    return json.loads(frames[0][1])["roots"]


BLOB_FRAME = (OBJECTS, encode_msgpack([[BLOB, b"x"]]))
# What is wrong, as the error says it, and the files in which it is so.
FORGERIES = {
    r"is not whole: the content of a file is missing": {
        "another content": lambda f: _swapped(f, b"one", b"0ne"),
        "a blob as a tree": lambda f: _of_another_kind(f, BLOB, TREE),
    },
    r"is not whole: object [0-9a-f]+ is missing": {
        "a tree as a blob": lambda f: _of_another_kind(f, TREE, BLOB),
        "a list as a tree": lambda f: _of_another_kind(f, LIST, TREE),
        "a tree as a list": lambda f: _of_another_kind(f, TREE, LIST),
        "no objects": lambda f: [x for x in f if x[0] != OBJECTS],
        "roots that are short": lambda f: _told(f, roots=["00"]),
        "a root more": lambda f: _told(f, roots=[*_roots(f), "f" * 64]),
        "a root that is a blob": lambda f: _told(
            f, roots=[blake3(struct.pack("<BQ", BLOB, 3) + b"one").hexdigest()]
        ),
    },
    r"has an object that cannot be": {
        "an object of no kind": lambda f: _of_another_kind(f, BLOB, 9),
        "an object of a negative kind": lambda f: _of_another_kind(f, BLOB, -1),
        "an object too large": lambda f: with_objects(f, [(BLOB, bytes((16 << 20) + 1))]),
    },
    r"none of its trees needs": {
        "an object too many": lambda f: [*f, BLOB_FRAME],
        "a root less": lambda f: _told(f, roots=_roots(f)[:1]),
    },
    r"has an object twice": {
        "an object twice": lambda f: with_objects(f, [*objects_of(f), objects_of(f)[0]]),
        "an object twice in two frames": lambda f: [*f, (OBJECTS, f[-1][1])],
    },
    r"of another shape": {
        "a frame of no objects": lambda f: [*f, (OBJECTS, b"\x90")],
        "objects that are none": lambda f: [*f, (OBJECTS, b"\x91\x01")],
        "objects that are no MessagePack": lambda f: [*f, (OBJECTS, b"\xc1\xc1")],
        "objects in a longer way": lambda f: [*f, (OBJECTS, b"\xdc\0\x01\x92\x62\xc4\x01x")],
        "facts that are no JSON": lambda f: [(FACTS, b"{"), *f[1:]],
        "facts that are a list": lambda f: _told(f, facts=[]),
        "facts that are deep": lambda f: [
            (FACTS, b'{"roots":[],"facts":{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}}"),
            *f[1:],
        ],
        "facts that are deep, another way": lambda f: [
            (FACTS, b'{"\\u0000":0,"roots":[],"facts":{"a":' + b"[" * 5_000 + b"]" * 5_000 + b"}}"),
            *f[1:],
        ],
    },
    r"where none can be": {
        "no facts": lambda f: f[1:],
        "facts twice": lambda f: [f[0], *f],
        "facts later": lambda f: [f[1], f[0], *f[2:]],
        "a journal behind objects": lambda f: [f[0], *f[2:], f[1]],
        "an unknown frame": lambda f: [*f, (77, b"x")],
        "a frame of type 0": lambda f: [*f, (0, b"x")],
    },
    r"of a length that cannot be": {
        "an empty frame": lambda f: [f[0], framed(JOURNAL, b""), *f[1:]],
        "a length beyond the bound": lambda f: [*f, framed(OBJECTS, b"x", length=(18 << 20) + 1)],
        "the largest length": lambda f: [*f, framed(OBJECTS, b"x", length=2**32 - 1)],
        "more stored than there is": lambda f: [*f, framed(OBJECTS, b"xxxx", length=3)],
        "facts beyond their bound": lambda f: [
            framed(FACTS, compress(bytes(5 << 20)), length=5 << 20)
        ],
        "a piece of journal beyond its bound": lambda f: [
            f[0],
            framed(JOURNAL, compress(bytes(2 << 20)), length=2 << 20),
            *f[2:],
        ],
        "a bomb that says so": lambda f: [
            *f,
            framed(OBJECTS, compress(bytes(1 << 28)), length=1 << 28),
        ],
    },
    r"is not what was written": {
        "an end before the end": lambda f: [*f, (END, encode_msgpack([1, "0" * 64]))],
    },
    r"names a tree that cannot be": {
        "roots that are no digests": lambda f: _told(f, roots=["zz"]),
    },
    r"in another order": {
        "roots in capitals": lambda f: _told(f, roots=[r.upper() for r in _roots(f)]),
        "roots with spaces": lambda f: _told(f, roots=[f" {r}" for r in _roots(f)]),
        "roots in another order": lambda f: _told(f, roots=_roots(f)[::-1]),
        "roots twice": lambda f: _told(f, roots=_roots(f)[:1] * 2 + _roots(f)[1:]),
    },
    r"is truncated": {
        "a stored length beyond the file": lambda f: [*f, FRAME.pack(OBJECTS, 1 << 24, 1 << 24)],
    },
    r"has a frame that states 268435456 bytes": {
        "a bomb": lambda f: [*f, framed(OBJECTS, compress(bytes(1 << 28)), length=1 << 24)],
    },
    r"has a frame that": {
        "a frame that is no zstd": lambda f: [*f, framed(OBJECTS, b"x" * 10, length=20)],
        "something behind the zstd": lambda f: [
            *f,
            framed(OBJECTS, compress(bytes(999)) + b"x", length=999),
        ],
    },
    r"is not whole: is not a _TreePage": {
        "a tree that is none": lambda f: [
            *_told(f[:2], roots=[blake3(struct.pack("<BQ", TREE, 4) + b"junk").hexdigest()]),
            (OBJECTS, encode_msgpack([[TREE, b"junk"]])),
        ],
    },
}


@pytest.mark.parametrize(
    ("reason", "forgery"), [(reason, name) for reason, names in FORGERIES.items() for name in names]
)
def test_forged_files_are_refused(small, other, reason, forgery):
    """A file that is whole in itself and lies: Corrupt, and nothing of it is stored."""
    frames = frames_of(small.read_bytes())[:-1]
    small.write_bytes(sealed(frames))
    read(small, other)
    small.write_bytes(sealed(FORGERIES[reason][forgery](frames)))
    with pytest.raises(Corrupt, match=reason) as caught:
        read(small, other)
    assert caught.value.fields["path"] == str(small)
    assert "export the task again" in caught.value.hint
    assert other.has([blake3(struct.pack("<BQ", BLOB, 3) + b"one").digest()]) == set()
    assert other.verify("content").problems == ()


def test_an_end_that_lies_is_refused(small, other):
    """Another number of objects, another digest, an end that comes twice or goes on."""
    frames = frames_of(small.read_bytes())[:-1]
    count = len(objects_of(frames))
    whole = sealed(frames)
    begin = begun(frames)
    for objects in (0, count - 1, count + 1, -1, 2**63):
        small.write_bytes(sealed(frames, objects=objects))
        with pytest.raises(Corrupt, match="objects"):
            read(small, other)
    for end in (
        framed(END, encode_msgpack([count, "0" * 64])),
        framed(END, encode_msgpack([count, blake3(begin).hexdigest().upper()])),
        framed(END, encode_msgpack([count])),
        framed(END, encode_msgpack([count, blake3(begin).hexdigest(), 1])),
        framed(END, bytes(257)),
    ):
        small.write_bytes(begin + end)
        with pytest.raises(Corrupt):
            read(small, other)
    for more in (b"\0", whole[len(begin) :], framed(*BLOB_FRAME), whole):
        small.write_bytes(whole + more)
        with pytest.raises(Corrupt, match="after its end"):
            read(small, other)


def test_each_object_that_is_missing_is_told(small, other):
    """Blobs too, whoever else has them: the store that reads gives nothing to a forged tree."""
    frames = frames_of(small.read_bytes())[:-1]
    objects = objects_of(frames)
    missing = small.parent / "missing"
    for stored in (False, True):
        if stored:
            read(small, other, commit=True)
        for gone in objects:
            missing.write_bytes(sealed(with_objects(frames, [o for o in objects if o != gone])))
            with pytest.raises(Corrupt, match=r"is not whole: .* is missing"):
                read(missing, other)
    assert len(objects) > 6


def test_many_small_objects_are_refused_before_they_are_made(small, other):
    """A few kilobytes that stand for millions of objects, or of lists, cost no memory."""
    frames = frames_of(small.read_bytes())[:-1]
    number = 4_500_000
    many = b"\xdd" + struct.pack(">I", number) + b"\x92\x62\xc4\0" * number
    data = sealed([*frames, framed(OBJECTS, compress(many), length=len(many))], objects=number)
    small.write_bytes(data)
    assert len(data) < 10_000
    del many
    tracemalloc.start()
    try:
        with pytest.raises(Corrupt):
            read(small, other)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


def test_a_journal_beyond_its_bound_is_refused(small, other, monkeypatch):
    """Its pieces are counted together."""
    frames = frames_of(small.read_bytes())[:-1]
    monkeypatch.setattr(bundle, "JOURNAL_BYTES_MAX", 3 * len(JOURNAL_BYTES))
    for pieces in (3, 4):
        small.write_bytes(sealed([frames[0], *[frames[1]] * pieces, *frames[2:]]))
        if pieces == 3:
            assert read(small, other).journal == JOURNAL_BYTES * 3
            continue
        with pytest.raises(Corrupt, match="journal"):
            read(small, other)


_frames = st.lists(
    st.tuples(st.integers(0, 5), st.binary(max_size=40))
    | st.just((OBJECTS, b"\x91\x92\x62\xc4\x01x"))
    | st.just((FACTS, b'{"roots":[],"facts":{}}'))
    | st.binary(max_size=30).map(lambda data: (data,)),
    max_size=5,
)


@given(_frames)
def test_no_bytes_make_another_error(tmp_path_factory, frames):
    """Whatever frames there are: a bundle without trees, or Corrupt."""
    place = tmp_path_factory.mktemp("any")
    data = HEAD.pack(b"SBXTASK\n", 1)
    for frame in frames:
        data += framed(*frame) if len(frame) == 2 else frame[0]
    (place / "b").write_bytes(data + end_of(data, 0))
    with contextlib.closing(Store(str(place / "store"))) as store, contextlib.suppress(Corrupt):
        assert read(place / "b", store).roots == ()


# --- Where it is written --------------------------------------------------------------------------


def _file(path):
    path.write_bytes(b"theirs")


EXISTING = {
    "file": _file,
    "directory": lambda path: path.mkdir(),
    "link": lambda path: path.symlink_to(path.parent / "elsewhere"),
    "link to a file": lambda path: (_file(path.parent / "elsewhere"), path.symlink_to("elsewhere")),
    "FIFO": os.mkfifo,
}


@pytest.mark.parametrize("kind", EXISTING)
@pytest.mark.parametrize("moment", ["before", "meanwhile", "meanwhile, without the flag"])
def test_what_exists_is_not_touched(store, out, monkeypatch, kind, moment):
    """Whatever has the name, also if it comes at the last moment: a conflict, and it stays."""
    root = planted(store, {b"a": b"one"})
    target = out / "b"

    def put(call, arguments):
        if call == "rename":
            if not os.path.lexists(target):
                EXISTING[kind](target)
            if "without" in moment:
                raise OSError(errno.EINVAL, "no such flag")

    if moment == "before":
        EXISTING[kind](target)
    else:
        monkeypatch.setattr(disk, "watcher", put)
    with pytest.raises(FileConflict, match="name a file that is not there yet"):
        written(target, store, [root])
    monkeypatch.setattr(disk, "watcher", None)
    found = os.lstat(target)
    assert set(os.listdir(out)) <= {"b", "elsewhere"}
    if stat.S_ISREG(found.st_mode):
        assert target.read_bytes() == b"theirs"
    if (out / "elsewhere").exists():
        assert (out / "elsewhere").read_bytes() == b"theirs"
    else:
        assert kind != "link to a file"


def test_a_file_system_without_the_flag_will_do(store, other, out, monkeypatch):
    """Where no rename can refuse to replace, a link does."""
    root = planted(store, {b"a": b"one"})

    def refuse(call, arguments):
        if call == "rename":
            raise OSError(errno.EINVAL, "no such flag")

    monkeypatch.setattr(disk, "watcher", refuse)
    written(out / "b", store, [root])
    monkeypatch.setattr(disk, "watcher", None)
    assert os.listdir(out) == ["b"]
    assert (out / "b").stat().st_nlink == 1
    assert read(out / "b", other).roots == (root,)


def test_a_directory_that_is_none_is_told(store, out):
    """Missing, a link, a file: typed, and nothing is written through a link."""
    (out / "real").mkdir()
    (out / "link").symlink_to("real")
    (out / "file").touch()
    with pytest.raises(FileMissing):
        written(out / "none" / "b", store, [])
    for name in ("link", "file"):
        with pytest.raises(Denied, match="name the directory itself"):
            written(out / name / "b", store, [])
    with pytest.raises(FileConflict):
        written("/", store, [])
    assert os.listdir(out / "real") == []


@pytest.mark.parametrize("name", ["b" * 255, "ä" * 127 + "b", "€" * 85, os.fsdecode(b"\xff" * 255)])
def test_any_name_will_do(store, other, out, name):
    """As long as the file system takes it, whatever it is written as before."""
    written(out / name, store, [])
    assert os.listdir(out) == [name]
    assert read(out / name, other).roots == ()
    with pytest.raises(HostRefused):
        written(out / (name + "b"), store, [])
    assert os.listdir(out) == [name]


def calls_of(call):
    """Count what is asked of the disk."""
    seen = []
    disk.watcher = lambda name, _: seen.append(name)
    try:
        call()
    finally:
        disk.watcher = None
    return seen


@pytest.mark.parametrize("lasting", [False, True])
def test_a_full_disk_leaves_nothing(store, out, lasting):
    """Whichever call fails, and if all fail from then on: HostFull, and not even a name is left."""
    root = planted(store, {b"a": b"one", b"b": random.Random(3).randbytes(3 << 20)})
    seen = calls_of(lambda: written(out / "b", store, [root]))
    assert seen[0] == "create"
    assert seen[-3:] == ["sync_data", "rename", "sync"]
    (out / "b").unlink()
    for number in range(len(seen)):
        count = 0

        def full(call, _, number=number):
            nonlocal count
            if call in NEEDS_SPACE:
                count += 1
                if count == number + 1 or (lasting and count > number):
                    raise OSError(errno.ENOSPC, "No space left on device")

        disk.watcher = full
        try:
            with pytest.raises(HostFull):
                written(out / "b", store, [root])
        finally:
            disk.watcher = None
        assert os.listdir(out) == []


def test_ctrl_c_leaves_nothing(store, out):
    """At whichever call it is pressed: no name is left, and no descriptor."""
    root = planted(store, {b"a": b"one", b"b": random.Random(3).randbytes(3 << 20)})
    number = len(calls_of(lambda: written(out / "b", store, [root])))
    (out / "b").unlink()
    before = len(os.listdir("/proc/self/fd"))
    for at in range(number):
        left = at

        def press(*_):
            nonlocal left
            left -= 1
            if left == -1:
                signal.raise_signal(signal.SIGINT)

        disk.watcher = press
        try:
            with pytest.raises(KeyboardInterrupt):
                written(out / "b", store, [root])
        finally:
            disk.watcher = None
        assert os.listdir(out) == []
    assert len(os.listdir("/proc/self/fd")) <= before


def test_a_progress_that_raises_leaves_nothing(store, out):
    """What the caller's own function raises comes out as it is."""

    def stop(*_):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        written(out / "b", store, [planted(store, {b"a": b"one"})], progress=stop)
    assert os.listdir(out) == []


def test_what_is_lost_is_not_written(store, out):
    """A tree or a content that the store does not have: Corrupt, and no file."""
    with store.writing() as writer:
        lost = trees.file(trees.Memory(), b"lost", b"never stored")
        root = trees.directory(writer, [lost])
        writer.commit()
    for roots in ([root], [b"x" * 32]):
        with pytest.raises(Corrupt):
            written(out / "b", store, roots)
    assert os.listdir(out) == []


# --- Where it is read from ------------------------------------------------------------------------


def _socket(path):
    with socket.socket(socket.AF_UNIX) as made:
        # A path that is short enough for a socket, however long the test's own is.
        fd = os.open(path.parent, os.O_PATH)
        made.bind(f"/proc/self/fd/{fd}/{path.name}")
        os.close(fd)


def _looped(path):
    path.symlink_to(path.name)


NO_FILES = {
    "FIFO": os.mkfifo,
    "directory": lambda path: path.mkdir(),
    "link": lambda path: path.symlink_to("small"),
    "dangling link": lambda path: path.symlink_to("nowhere"),
    "looped link": _looped,
    "socket": _socket,
}


@pytest.mark.parametrize("kind", NO_FILES)
def test_what_is_no_file_is_refused_at_once(small, other, kind):
    """A link, also to a bundle, and whatever would block: Denied, and nobody waits."""
    NO_FILES[kind](small.parent / "x")
    with pytest.raises(Denied):
        read(small.parent / "x", other)


def test_devices_and_nothing_are_refused(small, other):
    """A device has no end, and what is not there is missing."""
    with pytest.raises(Denied):
        read("/dev/zero", other)
    with pytest.raises(FileMissing):
        read(small.parent / "none", other)
    with pytest.raises(Denied):
        read(small / "below", other)


def test_a_file_of_somebody_else_is_refused(small, other):
    """It might change while it is read, and says who else wants it imported."""
    path = small
    if os.geteuid() == 0:
        os.chown(path, 12345, -1)
    else:
        path = "/etc/passwd"
    with pytest.raises(Denied, match="make a copy of your own"):
        read(path, other)


@pytest.mark.parametrize("number", range(8))
def test_a_full_disk_stores_nothing(small, other, number):
    """Whichever call of the store fails: HostFull, and then it works."""
    count = 0

    def full(call, _):
        nonlocal count
        if call in NEEDS_SPACE:
            count += 1
            if count == number + 1:
                raise OSError(errno.ENOSPC, "No space left on device")

    disk.watcher = full
    try:
        with contextlib.suppress(HostFull):
            read(small, other, commit=True)
    finally:
        disk.watcher = None
    assert other.verify("content").problems == ()
    roots = read(small, other, commit=True).roots
    assert len(reachable(other, roots)) == len(described(small)[2])


def test_nothing_is_stored_before_the_caller_says_so(small, other):
    """Who does not commit has an empty store; who does has all of it."""
    objects = set(described(small)[2])
    read(small, other)
    assert other.has(objects) == set()
    read(small, other, commit=True)
    assert other.has(objects) == objects


def test_the_bounds_are_those_of_the_page():
    """docs/format.md says these numbers; a file that was written may need all of them."""
    megabytes = {kind: limit >> 20 for kind, limit in bundle_format.BYTES_MAX.items()}
    assert megabytes == {FACTS: 4, JOURNAL: 1, OBJECTS: 18, END: 0}
    assert (bundle_format.BATCH_OBJECTS, bundle_format.JOURNAL_BYTES_MAX >> 20) == (65_536, 256)
    # The most that a frame of objects can need: an array, and for each its kind and length.
    longest = bundle_format.BATCH_BYTES + 5 + 8 * bundle_format.BATCH_OBJECTS
    assert max(longest, (16 << 20) + 13) <= bundle_format.BYTES_MAX[OBJECTS]
