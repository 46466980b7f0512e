"""How a patch is written: names, headers, and the hunks of a unified diff. (pure)

What both texts begin and end with is cut off first. Lines that occur once in both texts are the
anchors (patience diff: B. Cohen), the longest rising sequence of them is kept, and what lies
between two of them is looked at in the same way, a few times. What is left then is compared in full
where that is cheap, else it counts as replaced: a hostile text makes a longer patch, not a longer
wait.
"""

from __future__ import annotations

import base64
import bisect
import hashlib
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from difflib import SequenceMatcher
from itertools import pairwise
from typing import final

_CONTEXT = 3
# A line costs about a hundred bytes while lines are compared. More of them are replaced whole.
_LINES_MAX = 2_000_000
# Each level reads all lines that are left, and a text can be made that has an anchor per level.
_LEVELS_MAX = 24
# Old times new lines of a gap that is compared in full.
_COMPARED_MAX = 40_000
# Steps of comparing in full, for all gaps together: a few seconds.
_STEPS_MAX = 20_000_000
_ESCAPES = dict(zip(b'\a\b\t\n\v\f\r"\\', 'abtnvfr"\\', strict=True))
_BINARY_LINE_BYTES = 52
_NO_NEWLINE = "\\ No newline at end of file"

Block = tuple[int, int, int]
Stretch = tuple[int, int, int, int]


# --- Names and headers ----------------------------------------------------------------------------


def head(before: bytes, after: bytes) -> str:
    """Give the line that each part begins with."""
    # git needs no quotes because of a blank, patch does.
    names = [
        quoted(side + path, always=b" " in path) for side, path in ((b"a/", before), (b"b/", after))
    ]
    return f"diff --git {' '.join(names)}\n"


def changed_mode(old: str, new: str) -> str:
    """Give the headers of another mode, if it is another."""
    return "" if old == new else f"old mode {old}\nnew mode {new}\n"


def named(side: bytes, path: bytes) -> str:
    """Name a file before its hunks; a tab tells where a name with blanks ends, but not to patch if
    the last is one.
    """
    blank = path.endswith(b" ")
    return quoted(side + path, always=blank) + ("\t" if b" " in path and not blank else "")


def digest(data: bytes) -> str:
    """Give the name of a content in git, which checks it."""
    hashed = hashlib.sha1(b"blob %d\0" % len(data), usedforsecurity=False)
    hashed.update(data)
    return hashed.hexdigest()


def quoted(name: bytes, *, always: bool = False) -> str:
    """Write a name as git does: in quotes, if it has anything but printable ASCII."""
    told = "".join(map(_escaped, name))
    return f'"{told}"' if always or len(told) != len(name) else told


def _escaped(byte: int) -> str:
    if byte in _ESCAPES:
        return f"\\{_ESCAPES[byte]}"
    return chr(byte) if 0x20 <= byte < 0x7F else f"\\{byte:03o}"


# --- What stands below them -----------------------------------------------------------------------


def body(before: str, after: str, old: bytes, new: bytes) -> str:
    """Give what stands below the headers of a file: hunks, or both contents if one is no text."""
    if old == new:
        return ""
    was, now = _text(old), _text(new)
    if was is None or now is None:
        return "".join(("GIT binary patch\n", *_literal(new), *_literal(old)))
    return "".join((f"--- {before}\n+++ {after}\n", *hunks(was, now)))


def hunks(old: str, new: str) -> Iterator[str]:
    """Give the hunks that make one text of the other; none if they are equal.

    Lines end with a newline and nothing else. Both texts together may be of any length; above two
    million lines that differ in place there is one hunk, which replaces all of them.
    """
    if old == new:
        return
    start, old_end, new_end = _differing(old, new)
    lead, trail = _before(old, start), _after(old, old_end)
    count = old.count("\n", start, old_end) + new.count("\n", start, new_end)
    before = old.count("\n", 0, lead)
    if count > _LINES_MAX or start in (old_end, new_end):
        yield _replacement(
            before,
            (old[lead:start], old[start:old_end], new[start:new_end], old[old_end:trail]),
        )
        return
    ours = _lines(old[lead:trail])
    theirs = _lines(new[lead : new_end + trail - old_end])
    group: list[Stretch] = []
    for change in _changes(ours, theirs):
        if group and change[0] - group[-1][1] > 2 * _CONTEXT:
            yield _hunk(ours, theirs, group, before)
            group = []
        group.append(change)
    if group:
        yield _hunk(ours, theirs, group, before)


def _signed(sign: str, text: str) -> str:
    """Put a sign before each line, and say so if the last one lacks its newline."""
    if not text:
        return ""
    ended = text.endswith("\n")
    lines = (text[:-1] if ended else text).replace("\n", f"\n{sign}")
    return f"{sign}{lines}\n" if ended else f"{sign}{lines}\n{_NO_NEWLINE}\n"


# --- Text or not ----------------------------------------------------------------------------------


def _text(data: bytes) -> str | None:
    """Give text; None is anything that a text file would not carry unchanged."""
    if b"\0" in data:
        return None
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def _literal(data: bytes) -> Iterator[str]:
    """Give a content as git writes it: deflated, 52 bytes a line, each with its length before."""
    yield f"literal {len(data)}\n"
    packed = zlib.compress(data)
    for start in range(0, len(packed), _BINARY_LINE_BYTES):
        piece = packed[start : start + _BINARY_LINE_BYTES]
        length = len(piece)
        letter = chr(ord("A") + length - 1) if length <= 26 else chr(ord("a") + length - 27)
        yield f"{letter}{base64.b85encode(piece, pad=True).decode('ascii')}\n"
    yield "\n"


# --- What both texts begin and end with -----------------------------------------------------------


def _differing(old: str, new: str) -> tuple[int, int, int]:
    """Give where the first line begins that differs, and where the last one ends in each text."""
    shortest = min(len(old), len(new))
    shared = _shared(shortest, lambda low, high: old[low:high] == new[low:high])
    start = old.rfind("\n", 0, shared) + 1
    ours, theirs = len(old), len(new)
    shared = _shared(
        shortest - start,
        lambda low, high: old[ours - high : ours - low] == new[theirs - high : theirs - low],
    )
    end = ours - shared
    if not (_begins_line(old, end) and _begins_line(new, theirs - shared)):
        end = old.find("\n", end) + 1 or ours
    return start, end, theirs - (ours - end)


def _shared(limit: int, equal: Callable[[int, int], bool]) -> int:
    """Count what is equal from 0 on, at most `limit`."""
    at, step = 0, 1 << 16
    while step:
        while at + step <= limit and equal(at, at + step):
            at += step
        step >>= 1
    return at


def _begins_line(text: str, at: int) -> bool:
    return at == 0 or text[at - 1] == "\n"


def _before(text: str, at: int) -> int:
    """Give where the lines of context before a line begin."""
    for _ in range(_CONTEXT):
        if at:
            at = text.rfind("\n", 0, at - 1) + 1
    return at


def _after(text: str, at: int) -> int:
    """Give where the lines of context behind a line end."""
    for _ in range(_CONTEXT):
        at = text.find("\n", at) + 1 or len(text)
    return at


def _lines(text: str) -> list[str]:
    """Cut a text into lines. One without newline is like no line that has one."""
    lines = text.split("\n")
    if lines[-1]:
        lines[-1] += f"\n{_NO_NEWLINE}"
    else:
        lines.pop()
    return lines


# --- Hunks ----------------------------------------------------------------------------------------


def _replacement(before: int, pieces: tuple[str, str, str, str]) -> str:
    """Give one hunk: context, what goes, what comes, context; `before` lines stand before it."""
    head, old, new, tail = pieces
    around = _count(head) + _count(tail)
    ours, theirs = around + _count(old), around + _count(new)
    body = _signed(" ", head) + _signed("-", old) + _signed("+", new) + _signed(" ", tail)
    return f"@@ -{_range(before, ours)} +{_range(before, theirs)} @@\n{body}"


def _count(text: str) -> int:
    return text.count("\n") + (bool(text) and not text.endswith("\n"))


def _hunk(old: Sequence[str], new: Sequence[str], group: Sequence[Stretch], before: int) -> str:
    start, end = max(group[0][0] - _CONTEXT, 0), min(group[-1][1] + _CONTEXT, len(old))
    begin = group[0][2] - (group[0][0] - start)
    finish = group[-1][3] + (end - group[-1][1])
    ranges = _range(before + start, end - start), _range(before + begin, finish - begin)
    lines = [f"@@ -{ranges[0]} +{ranges[1]} @@\n"]
    at = start
    for first, last, low, high in group:
        lines += [f" {line}\n" for line in old[at:first]]
        lines += [f"-{line}\n" for line in old[first:last]]
        lines += [f"+{line}\n" for line in new[low:high]]
        at = last
    lines += [f" {line}\n" for line in old[at:end]]
    return "".join(lines)


def _range(start: int, length: int) -> str:
    # An empty range names the line before it.
    shown = start + 1 if length else start
    return f"{shown}" if length == 1 else f"{shown},{length}"


# --- Which lines are the same ---------------------------------------------------------------------


def _changes(old: Sequence[str], new: Sequence[str]) -> Iterator[Stretch]:
    """Give the stretches that differ, in order: of the old lines, and of the new."""
    # Numbers are compared faster than lines, which may be long and alike.
    numbers: dict[str, int] = {}
    ours, theirs = (
        [numbers.setdefault(line, len(numbers)) for line in lines] for lines in (old, new)
    )
    i = j = 0
    for first, second, length in (*_Matching(ours, theirs).blocks(), (len(old), len(new), 0)):
        if first > i or second > j:
            yield i, first, j, second
        i, j = first + length, second + length


@final
class _Matching:
    """Finds stretches of equal lines, with a bound on the work."""

    def __init__(self, old: Sequence[int], new: Sequence[int]) -> None:
        self._old, self._new = old, new
        self._found: list[Block] = []
        self._steps = _STEPS_MAX

    def blocks(self) -> list[Block]:
        """Give the stretches in order."""
        waiting = [((0, len(self._old), 0, len(self._new)), 0)]
        while waiting:
            gap, level = waiting.pop()
            gap = low, high, start, end = self._trim(gap)
            if low == high or start == end:
                continue
            anchors = _anchors(self._old, self._new, gap) if level < _LEVELS_MAX else []
            if anchors:
                # From one anchor to the next; the anchor itself is the head of its stretch.
                edges = [(low, start), *anchors, (high, end)]
                waiting += [
                    ((one[0], two[0], one[1], two[1]), level + 1) for one, two in pairwise(edges)
                ]
            else:
                self._compare(gap)
        return sorted(self._found)

    def _trim(self, gap: Stretch) -> Stretch:
        """Note what both sides begin and end with; gives what is between."""
        old, new = self._old, self._new
        low, high, start, end = gap
        first, last = low, high
        while low < high and start < end and old[low] == new[start]:
            low, start = low + 1, start + 1
        if low > first:
            self._found.append((first, gap[2], low - first))
        while low < high and start < end and old[high - 1] == new[end - 1]:
            high, end = high - 1, end - 1
        if high < last:
            self._found.append((high, end, last - high))
        return low, high, start, end

    def _compare(self, gap: Stretch) -> None:
        """Compare a gap in full, if that is cheap."""
        low, high, start, end = gap
        if (high - low) * (end - start) > _COMPARED_MAX:
            return
        ours, theirs = self._old[low:high], self._new[start:end]
        counts = Counter(theirs)
        pairs = sum(counts[line] for line in ours)
        # It looks at each pair of equal lines again for each stretch that it finds.
        steps = (pairs + len(ours)) * min(len(ours), len(theirs))
        if not pairs or steps > self._steps:
            return
        self._steps -= steps
        matcher = SequenceMatcher(None, ours, theirs, autojunk=False)
        self._found += [
            (low + i, start + j, length) for i, j, length in matcher.get_matching_blocks() if length
        ]


def _anchors(old: Sequence[int], new: Sequence[int], gap: Stretch) -> list[tuple[int, int]]:
    """Give the lines that occur once on both sides, as far as they come in the same order."""
    low, high, start, end = gap
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
