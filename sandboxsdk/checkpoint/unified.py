"""The lines that two texts share, and the hunks of a unified diff. (pure)

Lines that occur once in both texts are the anchors (patience diff: B. Cohen), the longest rising
sequence of them is kept, and what lies between two of them is looked at in the same way. Where none
is left, small stretches are compared in full and large ones count as replaced: a hostile text makes
a longer patch, not a longer wait.
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from itertools import pairwise

_CONTEXT = 3
# Comparing in full takes more than quadratic time in the worst case.
_COMPARED_MAX = 40_000

Block = tuple[int, int, int]


def hunks(old: Sequence[str], new: Sequence[str]) -> Iterator[str]:
    """Give the hunks that make one list of lines of the other; each line has its newline, except
    that the last may lack it.
    """
    group: list[tuple[int, int, int, int]] = []
    for change in _changes(old, new):
        if group and change[0] - group[-1][1] > 2 * _CONTEXT:
            yield _hunk(old, new, group)
            group = []
        group.append(change)
    if group:
        yield _hunk(old, new, group)


def _hunk(
    old: Sequence[str], new: Sequence[str], group: Sequence[tuple[int, int, int, int]]
) -> str:
    start, end = max(group[0][0] - _CONTEXT, 0), min(group[-1][1] + _CONTEXT, len(old))
    begin = group[0][2] - (group[0][0] - start)
    finish = group[-1][3] + (end - group[-1][1])
    lines = [f"@@ -{_range(start, end)} +{_range(begin, finish)} @@\n"]
    at = start
    for first, last, low, high in group:
        lines += [_line(" ", line) for line in old[at:first]]
        lines += [_line("-", line) for line in old[first:last]]
        lines += [_line("+", line) for line in new[low:high]]
        at = last
    lines += [_line(" ", line) for line in old[at:end]]
    return "".join(lines)


def _range(start: int, end: int) -> str:
    length = end - start
    # An empty range names the line before it.
    return f"{start + 1 if length else start},{length}"


def _line(sign: str, line: str) -> str:
    return sign + line if line.endswith("\n") else f"{sign}{line}\n\\ No newline at end of file\n"


def _changes(old: Sequence[str], new: Sequence[str]) -> Iterator[tuple[int, int, int, int]]:
    """Give the stretches that differ, in order: of the old lines, and of the new."""
    i = j = 0
    for first, second, length in (*_matches(old, new), (len(old), len(new), 0)):
        if first > i or second > j:
            yield i, first, j, second
        i, j = first + length, second + length


def _matches(old: Sequence[str], new: Sequence[str]) -> list[Block]:
    """Give stretches of equal lines, in order."""
    found: list[Block] = []
    waiting = [(0, len(old), 0, len(new))]
    while waiting:
        low, high, start, end = waiting.pop()
        head = 0
        while low + head < high and start + head < end and old[low + head] == new[start + head]:
            head += 1
        if head:
            found.append((low, start, head))
            low, start = low + head, start + head
        tail = 0
        while (
            low < high - tail and start < end - tail and old[high - tail - 1] == new[end - tail - 1]
        ):
            tail += 1
        if tail:
            found.append((high - tail, end - tail, tail))
            high, end = high - tail, end - tail
        if low == high or start == end:
            continue
        anchors = _anchors(old, new, low, high, start, end)
        if anchors:
            # From one anchor to the next; the anchor itself is the head of its stretch.
            edges = [(low, start), *anchors, (high, end)]
            waiting += [(one[0], two[0], one[1], two[1]) for one, two in pairwise(edges)]
        elif (high - low) * (end - start) <= _COMPARED_MAX:
            matcher = SequenceMatcher(None, old[low:high], new[start:end], autojunk=False)
            found += [
                (low + i, start + j, length)
                for i, j, length in matcher.get_matching_blocks()
                if length
            ]
    return _joined(sorted(found))


def _anchors(
    old: Sequence[str], new: Sequence[str], low: int, high: int, start: int, end: int
) -> list[tuple[int, int]]:
    """Give the lines that occur once on both sides, as far as they come in the same order."""
    ours, theirs = Counter(old[low:high]), Counter(new[start:end])
    places = {new[j]: j for j in range(start, end) if theirs[new[j]] == 1}
    unique = [
        (i, places[old[i]]) for i in range(low, high) if ours[old[i]] == 1 and old[i] in places
    ]
    # The longest rising sequence: piles by their smallest end, each knowing the one before.
    tops: list[int] = []
    ends: list[int] = []
    before: list[int] = []
    for number, (_, j) in enumerate(unique):
        pile = bisect.bisect_left(tops, j)
        before.append(ends[pile - 1] if pile else -1)
        if pile == len(tops):
            tops.append(j)
            ends.append(number)
        else:
            tops[pile], ends[pile] = j, number
    kept = []
    number = ends[-1] if ends else -1
    while number >= 0:
        kept.append(unique[number])
        number = before[number]
    return kept[::-1]


def _joined(blocks: Sequence[Block]) -> list[Block]:
    joined: list[Block] = []
    for first, second, length in blocks:
        if joined:
            i, j, before = joined[-1]
            if (first, second) == (i + before, j + before):
                joined[-1] = (i, j, before + length)
                continue
        joined.append((first, second, length))
    return joined
