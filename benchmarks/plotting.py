"""Line plots as SVG, on two logarithmic axes: nothing but text is needed to make one."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape

from .bench_growth import Point

_WIDTH, _HEIGHT = 800, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 590, 44, 350
_LABELS, _LABEL_STEP = 620, 18
_INK, _FAINT, _FAINTER = "#1a1a1a", "#c8c8c8", "#ececec"
# The same in all plots, told apart by people who do not see all colours, and dark enough on white;
# peers are grey.
_COLOURS = {
    "checkpoint": "#0060a8",
    "restore": "#c04000",
    "restore of the oldest": "#7a5c00",
    "restore of the newest": "#8a1c1c",
    "fork": "#007a55",
    "fork's first command": "#9b2f78",
    "exec": "#2a7fb4",
    "bare bwrap": "#606060",
    "cp -a": "#606060",
    "git add -A, write-tree": "#606060",
}


class Line(NamedTuple):
    """Points joined by a line; a peer's is dashed."""

    label: str
    points: Sequence[tuple[float, float]]
    peer: bool = False


class _Axis(NamedTuple):
    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        part = math.log(value / self.low) / math.log(self.high / self.low)
        return self.start + part * (self.end - self.start)


def plot(title: str, across: str, lines: Sequence[Line]) -> str:
    """Give an SVG of milliseconds over something that is counted.

    Args:
        across: what is counted.
        lines: all values are above 0.
    """
    xs = sorted({x for line in lines for x, _ in line.points})
    ys = [y for line in lines for _, y in line.points]
    # With one value on it, an axis still has a length.
    horizontal = _Axis(xs[0], max(xs[-1], xs[0] * 1.01), _LEFT + 20, _RIGHT - 20)
    low, high = math.floor(math.log10(min(ys))), math.ceil(math.log10(max(ys)))
    vertical = _Axis(10.0**low, 10.0 ** max(high, low + 1), _BOTTOM, _TOP)
    size = f'width="{_WIDTH}" height="{_HEIGHT}" viewBox="0 0 {_WIDTH} {_HEIGHT}"'
    text = f'font-family="sans-serif" font-size="14" fill="{_INK}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} {text} role="img">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
        _text(_LEFT, 26, title, more='font-size="16" font-weight="bold"'),
        *_grid_up(vertical),
        *_grid_across(horizontal, xs),
        _text((_LEFT + _RIGHT) / 2, _HEIGHT - 10, across, anchor="middle"),
    ]
    for line in lines:
        parts += _drawn(line, horizontal, vertical)
    parts += _labels(lines, horizontal, vertical)
    return "\n".join([*parts, "</svg>", ""])


def write_plots(
    directory: str, sizes: Sequence[Point], counts: Sequence[Point], counted_on: str
) -> list[str]:
    """Write the plots of both kinds of growth; gives their paths."""
    os.makedirs(directory, exist_ok=True)
    drawn = {
        "cost-by-size.svg": plot(
            "Cost by size of the directory (20 files changed)", "files in the directory", _of(sizes)
        ),
        "cost-by-count.svg": plot(
            f"Cost by number of checkpoints ({counted_on})", "checkpoints of the task", _of(counts)
        ),
    }
    paths = [os.path.join(directory, name) for name in drawn]
    for path, text in zip(paths, drawn.values(), strict=True):
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
    return paths


_PEERS = ("git add -A, write-tree", "cp -a", "bare bwrap")


def _of(points: Sequence[Point]) -> list[Line]:
    steps = dict.fromkeys(point.step for point in points)
    return [
        Line(step, sorted((p.at, p.median) for p in points if p.step == step), step in _PEERS)
        for step in steps
    ]


def _text(x: float, y: float, text: str, *, anchor: str = "start", more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {more}>{escape(text)}</text>'


def _rule(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" stroke="{colour}"/>'


def _grid_up(axis: _Axis) -> list[str]:
    parts = []
    value = axis.low
    while value <= axis.high * 1.001:
        for factor in (2, 5):
            if value * factor < axis.high:
                height = axis.at(value * factor)
                parts.append(_rule(_LEFT, height, _RIGHT, height, _FAINTER))
        parts.append(_rule(_LEFT, axis.at(value), _RIGHT, axis.at(value), _FAINT))
        parts.append(_text(_LEFT - 8, axis.at(value) + 5, _duration(value), anchor="end"))
        value *= 10
    return parts


def _grid_across(axis: _Axis, values: Sequence[float]) -> list[str]:
    parts = []
    after = -math.inf
    for value in values:
        x = axis.at(value)
        parts.append(_rule(x, _TOP, x, _BOTTOM, _FAINTER))
        label = f"{value:,.0f}"
        half = len(label) * 4.2
        if x - half > after:  # else it would lie on the one before
            parts.append(_text(x, _BOTTOM + 20, label, anchor="middle"))
            after = x + half
    return parts


def _duration(milliseconds: float) -> str:
    if milliseconds >= 1000:
        return f"{milliseconds / 1000:,.0f} s"
    return f"{milliseconds:g} ms"


def _drawn(line: Line, across: _Axis, up: _Axis) -> list[str]:
    colour = _colour(line)
    places = [(across.at(x), up.at(y)) for x, y in line.points]
    joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dots = [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in places]
    dashes = ' stroke-dasharray="7 4"' if line.peer else ""
    path = f'<polyline points="{joined}" fill="none" stroke="{colour}" stroke-width="2"{dashes}/>'
    return [path, *dots]


def _labels(lines: Sequence[Line], across: _Axis, up: _Axis) -> list[str]:
    """Write each line's name where it ends, as far from the next one as text needs."""
    ends = sorted(
        (up.at(line.points[-1][1]), across.at(line.points[-1][0]), line) for line in lines
    )
    heights = spread([height for height, _, _ in ends], _LABEL_STEP, _BOTTOM)
    parts = []
    for (height, x, line), label in zip(ends, heights, strict=True):
        colour = _colour(line)
        parts += [
            _rule(x + 6, height, _LABELS - 6, label, colour),
            _text(_LABELS, label + 4, line.label, more=f'font-size="13" style="fill:{colour}"'),
        ]
    return parts


def spread(heights: Sequence[float], step: float, lowest: float) -> list[float]:
    """Move ascending heights apart, down first, and up where that led below the lowest."""
    apart: list[float] = []
    for height in heights:
        apart.append(max(height, apart[-1] + step) if apart else height)
    limit = lowest
    for number in reversed(range(len(apart))):
        apart[number] = min(apart[number], limit)
        limit = apart[number] - step
    return apart


def _colour(line: Line) -> str:
    return _COLOURS.get(line.label, _INK)
