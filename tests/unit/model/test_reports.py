"""What reports say, in one look."""

from __future__ import annotations

from sandboxsdk.model import GcReport, HomeStats, Problem, RestoreReport, VerifyReport


def test_a_whole_store_is_ok() -> None:
    """No problem, one line."""
    report = VerifyReport(level="content", packs=2, objects=1234, bytes=2048, seconds=0.5)
    assert report.ok
    assert str(report) == "ok: 2 packs, 1,234 objects, 2.0 KiB read in 500 ms"


def test_damage_is_named() -> None:
    """Each problem has a line, with checkpoints and files, and no raw control character."""
    problem = Problem(
        path="p\033.pack", reason="bad\nsum", checkpoints=("c1", "c2"), files=("a\033b", "d")
    )
    report = VerifyReport(level="index", problems=(problem,))
    assert not report.ok
    first, second = str(report).split("\n")
    assert first.startswith("DAMAGED: 0 objects")
    assert second == r"  p\x1b.pack: bad\nsum; in checkpoints c1, c2: a\x1bb, d"


def test_what_was_repaired_is_ok_unless_files_are_lost() -> None:
    """An index can be made anew; what was stored cannot."""
    index = Problem(path="index", reason="is damaged", lost=False)
    lost = Problem(path="pack", reason="is damaged")
    assert VerifyReport(level="index", problems=(index,), repaired=True).ok
    assert not VerifyReport(level="index", problems=(index,)).ok
    assert not VerifyReport(level="index", problems=(index, lost), repaired=True).ok


def test_collected_garbage_is_told() -> None:
    """In the past tense only when it was done."""
    facts = {"deleted": ("a",), "rewritten": ("b", "c"), "freed_bytes": 1 << 20}
    text = ": 1 packs deleted, 2 rewritten; 0 B stay"
    assert str(GcReport(**facts)) == f"freed 1.0 MiB{text}"
    assert str(GcReport(dry_run=True, **facts)) == f"would free 1.0 MiB{text}"
    assert GcReport().ok


def test_a_restore_is_told() -> None:
    """Counts, what was kept, and what could not be made."""
    report = RestoreReport(checkpoint="c", written=1, removed=2, touched=3, seconds=0.25)
    assert report.ok
    assert str(report) == "restored c: 1 written, 2 removed, 3 touched in 250 ms"
    more = RestoreReport(checkpoint="c", saved="s", skipped=("sock\033",))
    assert "what was there is checkpoint s; not restored: sock\\x1b" in str(more)


def test_a_home_is_told_in_one_line() -> None:
    """Tasks, bytes of checkpoints, and free space."""
    stats = HomeStats(path="/h", tasks=1, throwaway=2, store_bytes=1024, free_bytes=2048)
    text = "/h: 1 tasks, 2 throwaway, 1.0 KiB in checkpoints, 2.0 KiB free"
    assert str(stats) == text
