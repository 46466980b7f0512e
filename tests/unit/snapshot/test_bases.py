"""Directories of a base that are remembered: what is laid over them is what it is without."""

from __future__ import annotations

import os
import threading

import pytest

from sandboxsdk.errors import Corrupt
from sandboxsdk.snapshot import Merge
from sandboxsdk.snapshot import bases as module
from sandboxsdk.snapshot import tree as t
from sandboxsdk.snapshot.bases import Bases
from sandboxsdk.snapshot.laying import Base, Laid
from tests import trees


class Counting(trees.Memory):
    """A store that counts what is read from it."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def read(self, kind: int, digest: bytes) -> bytes:
        self.asked += 1
        return super().read(kind, digest)


def directory(number: int, count: int = 3) -> t.Directory:
    """Give a directory that is like no other."""
    nodes = [t.Node(b"%d-%03d" % (number, n), t.FIFO) for n in range(count)]
    return t.Directory(0o755, number, 0, 0, (), nodes)


def test_what_is_laid_over_remembered_directories_is_the_same(tmp_path):
    """With and without, walk after walk: the same tree, and nothing is read a second time."""
    sink, bases = Counting(), Bases()
    base, upper = tmp_path / "base", tmp_path / "upper"
    for path in (base, upper):
        (path / "a" / "b").mkdir(parents=True)
        (path / "a" / "b" / path.name).write_text("x")
    (base / "a" / "kept").write_text("kept")
    (base / "gone").mkdir()
    (base / "gone" / "file").write_text("gone")
    (upper / "gone").write_text("a file by now")
    below = trees.walked(sink, base)
    plain = Merge(sink, below.tree, below.totals)
    wanted = trees.walked(sink, upper, overlay=True, merge=plain)
    merge = Merge(sink, below.tree, below.totals, bases)
    for number in range(3):
        before = sink.asked
        assert trees.walked(sink, upper, overlay=True, merge=merge) == wanted
        assert (sink.asked == before) == (number > 0)


def test_what_a_walk_of_a_base_stored_is_remembered(tmp_path):
    """Laying over a base that this process has captured reads nothing of it."""
    base, upper = tmp_path / "base", tmp_path / "upper"
    (base / "d").mkdir(parents=True)
    (base / "d" / "f").write_text(str(tmp_path))
    (upper / "d").mkdir(parents=True)
    (upper / "d" / "g").write_text("g")
    sink = Counting()
    below = trees.walked(sink, base, overlay=True)
    merge = Merge(sink, below.tree, below.totals, module.BASES)
    got = trees.walked(sink, upper, overlay=True, merge=merge)
    assert not sink.asked
    assert set(trees.nodes(sink, got.tree)) >= {b"d/f", b"d/g"}


def test_what_is_damaged_is_not_remembered():
    """A directory that was refused is asked for again, and found when it is whole again."""
    sink, bases = Counting(), Bases()
    digest = t.write_directory(sink, directory(1))
    whole = sink.objects.pop(digest)
    for _ in range(2):
        with pytest.raises(Corrupt):
            bases.read(sink, digest)
    assert sink.asked == 2
    sink.objects[digest] = whole
    assert list(bases.read(sink, digest).directory.nodes) == directory(1).nodes


def test_it_does_not_grow_without_end(monkeypatch):
    """What was not asked for lately is forgotten; what is asked for again and again is not."""
    monkeypatch.setattr(module, "_WEIGHT_MAX", 40)
    sink, bases = Counting(), Bases()
    digests = [t.write_directory(sink, directory(number)) for number in range(20)]
    for digest in digests:
        bases.read(sink, digest)
        bases.read(sink, digests[0])
        assert len(bases._recent) + len(bases._former) <= 10
    assert sink.asked == 20
    bases.read(sink, digests[1])
    assert sink.asked == 21
    large = t.write_directory(sink, directory(99, count=21))
    for _ in range(2):
        bases.read(sink, large)
    assert sink.asked == 23


def test_what_shares_its_nodes_weighs_less(monkeypatch):
    """Of one directory, many states with one change each are remembered together."""
    monkeypatch.setattr(module, "_WEIGHT_MAX", 400)
    bases, base = Bases(), Base(directory(1, count=100))
    bases.keep(b"base", base)
    for number in range(40):
        laid = Laid(base)
        laid[b"1-000"] = t.Node(b"1-000", t.FIFO, mtime=number)
        bases.keep(b"%d" % number, laid.finished(base.directory))
        assert sum(found.weight for found in bases._recent.values()) <= 200
        assert len(bases._recent | bases._former) >= min(number + 1, 7)


def test_several_threads_ask_at_once(monkeypatch):
    """Whoever asks gets the directory of the digest, while others push it out."""
    monkeypatch.setattr(module, "_WEIGHT_MAX", 40)
    sink, bases = trees.Memory(), Bases()
    written = {t.write_directory(sink, directory(n)): directory(n).nodes for n in range(20)}
    wrong: list[bytes] = []

    def ask() -> None:
        for _ in range(30):
            for digest, nodes in written.items():
                if list(bases.read(sink, digest).directory.nodes) != nodes:
                    wrong.append(digest)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert bases._recent_weight <= 20


def test_a_forked_child_does_not_wait_for_its_parents_threads():
    """A lock that a thread of the parent held is not the child's."""
    sink, bases = trees.Memory(), Bases()
    digest = t.write_directory(sink, directory(1))
    bases.read(sink, digest)
    with bases._guard:
        child = os.fork()
        if not child:
            try:
                os._exit(len(bases.read(sink, digest).names))
            finally:
                os._exit(99)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
