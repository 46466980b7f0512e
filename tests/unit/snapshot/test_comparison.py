"""What counts as a change, decided on values alone."""

from __future__ import annotations

import os
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxsdk.model import Change
from sandboxsdk.snapshot.comparison import (
    Content,
    Entry,
    compare,
    contents_matter,
    make_change,
    pair_renames,
    rename_candidates,
    with_renames,
)

_FILE = Entry(stat.S_IFREG, 0o644, 4)
_LINK = Entry(stat.S_IFLNK, 0o777, None, "there")
_DIRECTORY = Entry(stat.S_IFDIR, 0o755)
_DEVICE = Entry(stat.S_IFCHR, 0o600, None, None, 259)


@pytest.mark.parametrize(
    ("old", "new", "kind"),
    [
        (None, None, None),
        (None, _FILE, "added"),
        (_DIRECTORY, None, "removed"),
        (_FILE, _FILE, None),
        (_FILE, _DIRECTORY, "type"),
        (_LINK, _FILE, "type"),
        (_FILE, Entry(stat.S_IFREG, 0o644, 5), "modified"),
        (_FILE, Entry(stat.S_IFREG, 0o755, 5), "modified"),
        (_FILE, Entry(stat.S_IFREG, 0o755, 4), "mode"),
        (_FILE, Entry(stat.S_IFREG, 0o4644, 4), "mode"),
        (_DIRECTORY, Entry(stat.S_IFDIR, 0o1777), "mode"),
        (_LINK, Entry(stat.S_IFLNK, 0o777, None, "elsewhere"), "modified"),
        (_DEVICE, Entry(stat.S_IFCHR, 0o600, None, None, 260), "modified"),
    ],
)
def test_kind_of_change(old: Entry | None, new: Entry | None, kind: str | None) -> None:
    """Existence goes before type, type before content, content before mode."""
    assert compare(old, new) == kind


def test_content_decides_between_files_of_equal_size() -> None:
    """Only non-empty files of one size need to be read, and differ if their content does."""
    assert contents_matter(_FILE, _FILE)
    assert compare(_FILE, _FILE, same_content=False) == "modified"
    empty = Entry(stat.S_IFREG, 0o644, 0)
    for old, new in ((empty, empty), (_FILE, empty), (None, _FILE), (_FILE, None), (_LINK, _LINK)):
        assert not contents_matter(old, new)


def test_change_tells_both_sizes_and_the_mode_that_is() -> None:
    """A removed entry tells what it was; whatever is no file has no size."""
    old, new = _FILE, Entry(stat.S_IFREG, 0o755, 9)
    assert make_change("modified", "p", old, new) == Change(
        kind="modified", path="p", size=9, old_size=4, mode=0o755
    )
    assert make_change("removed", "p", old, None) == Change(
        kind="removed", path="p", old_size=4, mode=0o644
    )
    assert make_change("type", "p", old, _LINK) == Change(
        kind="type", path="p", old_size=4, mode=0o777
    )


def test_only_files_of_equal_size_can_have_moved() -> None:
    """Directories, links, empty files and sizes that occur on one side alone are never read."""
    changes = [
        make_change("removed", "a", _FILE, None),
        make_change("added", "b", None, _FILE),
        make_change("added", "c", None, Entry(stat.S_IFREG, 0o644, 5)),
        make_change("added", "d", None, _DIRECTORY),
        make_change("removed", "e", Entry(stat.S_IFREG, 0o644, 0), None),
        make_change("added", "f", None, Entry(stat.S_IFREG, 0o644, 0)),
        make_change("modified", "g", _FILE, _FILE),
    ]
    removed, added = rename_candidates(changes)
    assert [change.path for change in removed] == ["a"]
    assert [change.path for change in added] == ["b"]


def test_kept_name_goes_before_order() -> None:
    """Among files of equal content the one with the same name moved; the rest pair in order."""
    removed = [Content(path, 4, "x") for path in ("old/b", "old/a", "z/n", "old/n")]
    added = [Content(path, 4, "x") for path in ("new/n", "new/a", "new/c", "y/n")]
    assert pair_renames(removed, added) == {
        "new/a": "old/a",
        "new/n": "old/n",
        "y/n": "z/n",
        "new/c": "old/b",
    }


def test_renames_take_the_place_of_their_halves() -> None:
    """A pair is one change at the new path; the list goes by the bytes of the paths."""
    changes = [
        make_change("added", "\U0001f600", None, _FILE),
        make_change("added", "d/x", None, _FILE),
        make_change("added", "d-", None, _DIRECTORY),
        make_change("removed", "\udcff", _FILE, None),
        make_change("removed", "gone", _FILE, None),
    ]
    told = with_renames(changes, {"d/x": "gone"})
    assert [(c.kind, c.path, c.old_path) for c in told] == [
        ("added", "d-", None),
        ("renamed", "d/x", "gone"),
        ("added", "\U0001f600", None),
        ("removed", "\udcff", None),
    ]
    assert (told[1].size, told[1].old_size, told[1].mode) == (4, 4, 0o644)


_PATHS = st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map("/".join)
_CONTENTS = st.builds(Content, _PATHS, st.integers(1, 2), st.sampled_from("xy"))
_SIDE = st.lists(_CONTENTS, unique_by=lambda content: content.path, max_size=12)


@given(removed=_SIDE, added=_SIDE, order=st.randoms(use_true_random=False))
def test_pairs_are_the_same_in_any_order(
    removed: list[Content], added: list[Content], order: object
) -> None:
    """Pairs have equal content, use each path once, leave no pair unmade, and ignore order."""
    pairs = pair_renames(removed, added)
    old = {content.path: (content.size, content.digest) for content in removed}
    new = {content.path: (content.size, content.digest) for content in added}
    assert all(old[old_path] == new[path] for path, old_path in pairs.items())
    assert len(set(pairs.values())) == len(pairs)
    rest_old = {old[path] for path in old if path not in pairs.values()}
    rest_new = {new[path] for path in new if path not in pairs}
    assert not rest_old & rest_new
    order.shuffle(removed)  # type: ignore[attr-defined]
    order.shuffle(added)  # type: ignore[attr-defined]
    assert pair_renames(removed, added) == pairs
    for path, content in new.items():
        # A kept name is passed over only for another kept name.
        same = [p for p in old if os.path.basename(p) == os.path.basename(path)]
        if path not in pairs or pairs[path] not in same:
            assert all(p in pairs.values() for p in same if old[p] == content)
