"""Lines for people: fitted to the terminal, coloured where that is wanted, plain elsewhere.

Whatever came from a file system or a journal goes through `printable` before it gets here.
"""

from __future__ import annotations

import re
import shutil
import sys
import unicodedata
from collections.abc import Sequence
from typing import final

from sandboxsdk.host import environment

_STYLES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}
_STYLING = re.compile(r"\033\[\d*m")
_WIDTH_MAX = 120  # columns; in longer lines a cost would stand far from what it belongs to
_INDENT = 5
_SIGN_STYLES = {"+": "green", "-": "red", "~": "yellow", ">": "cyan"}


def printable(text: str) -> str:
    """Escape what would move the cursor, change colours, or is no character at all. (pure)"""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def cells(text: str) -> int:
    """Count the columns that a text takes on a terminal. (pure)"""
    return sum(
        0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF")
        for c in _STYLING.sub("", text)
    )


@final
class Screen:
    """Standard output, as wide and as colourful as it is."""

    def __init__(self) -> None:
        stream = sys.stdout
        # A lone surrogate or a terminal that is not UTF-8 must not end the program.
        getattr(stream, "reconfigure", lambda **_: None)(errors="backslashreplace")
        self.terminal: bool = stream.isatty()
        self.width: int = max(40, min(shutil.get_terminal_size().columns, _WIDTH_MAX))
        plain = environment("NO_COLOR") or environment("TERM") == "dumb"
        self._coloured = self.terminal and not plain
        drawing = stream.encoding.lower().replace("-", "") == "utf8"
        marks = ("·", "…", "✓", "✗") if drawing else (".", "...", "ok", "NO")
        self.dot, self.ellipsis, self.yes, self.no = marks
        self._steps = 0

    def paint(self, text: str, style: str) -> str:
        """Colour a text, where colours are wanted."""
        return f"\033[{_STYLES[style]}m{text}\033[0m" if self._coloured and text else text

    def change(self, text: str) -> str:
        """Colour a change by the sign that it begins with."""
        return self.paint(text, _SIGN_STYLES.get(text[:1], "dim"))

    def fit(self, text: str, room: int) -> str:
        """Shorten a plain text to so many columns."""
        if cells(text) <= room:
            return text
        while text and cells(text) + len(self.ellipsis) > room:
            text = text[:-1]
        return text.rstrip() + self.ellipsis

    def names(self, paths: Sequence[str], room: int, *, count: bool = True) -> str:
        """Give as many paths as there is room for, and with `count` how many there are."""
        if len(paths) == 1:
            return self.fit(printable(paths[0]), room)
        tail = f" {self.ellipsis} ({len(paths):,} files)" if count else f" {self.ellipsis}"
        shown = ""
        for path in paths:
            longer = f"{shown} {printable(path)}".lstrip()
            if cells(longer + tail) > room:
                break
            shown = longer
        else:
            return shown
        return (shown + tail).lstrip()

    def say(self, text: str = "") -> None:
        """Print a line at once, so that a reader of a pipe sees it when it happens."""
        print(text, flush=True)

    def progress(self, text: str) -> None:
        """Show on a terminal how far something is; nothing removes what was shown."""
        if self.terminal:
            print(f"\r\033[K{'':{_INDENT}}{text}" if text else "\r\033[K", end="", flush=True)

    def step(self, title: str, cost: str = "") -> None:
        """Begin a numbered paragraph, with what it cost at the right."""
        self._steps += 1
        number = self.paint(f"{self._steps:>3}", "cyan")
        leader = self.dot * (self.room - cells(title) - cells(cost) - 2) if cost else ""
        told = f"{self.paint(leader, 'dim')} {self.paint(cost, 'cyan')}"
        self.say(f"\n{number}  {self.paint(title, 'bold')} {told}".rstrip())

    def tell(self, text: str, end: str = "", style: str = "dim") -> None:
        """Print a line of a paragraph, with what stands at its end at the right."""
        gap = max(self.room - cells(text) - cells(end), 1) if end else 0
        self.say(f"{'':{_INDENT}}{text}{'':{gap}}{self.paint(end, style)}")

    def judge(self, good: bool, text: str, answer: str = "") -> None:  # noqa: FBT001
        """Print a line of a paragraph that says whether something is as it should be."""
        mark, style = (self.yes, "green") if good else (self.no, "red")
        self.tell(f"{self.paint(mark, style)} {text}", answer, style)

    def table(self, rows: Sequence[Sequence[str]]) -> None:
        """Print rows in columns below a heading; a terminal gets the last column shortened."""
        widths = [max(map(cells, column)) for column in zip(*rows, strict=True)]
        for number, row in enumerate(rows):
            *first, last = row
            head = "".join(
                f"{text}{'':{width - cells(text)}}  "
                for text, width in zip(first, widths, strict=False)
            )
            if self.terminal:
                last = self.fit(last, max(self.width - cells(head), 1))
            line = f"{head}{last}".rstrip()
            self.say(self.paint(line, "dim") if number == 0 else line)

    @property
    def room(self) -> int:
        """Columns that a line of a paragraph has."""
        return self.width - _INDENT
