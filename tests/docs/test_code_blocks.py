"""Every code block of README.md, docs/ and the root docstring runs, as a reader would type it.

How a block is taken, by the language of its fence:

- `python` runs; all blocks of one page share their names.
- `text` right after a `python` block is what that block prints.
- `console` runs the lines after "$ " by /bin/sh; the lines below each are what it prints (nothing
  there: not compared). It must exit with 0.
- `sh` is not run: that is for set-up, which the test run itself has come through.

In expected output "..." stands for anything, and a duration ("4.21 ms", "1.5 s") for any duration.
A block below `<!-- skip: next -->` is left out. The reader's home holds a small project,
~/code/app, which is also the working directory: README.md, app.py, notes.txt and a build step,
build.py.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from sybil import Example, Sybil
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import ClearNamespaceParser, CodeBlockParser, SkipParser

import sandboxsdk

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    if path.is_file()
]
_PROJECT = {
    "README.md": "# App\n",
    "app.py": 'print("hello from the app")\n',
    "build.py": (
        "import pathlib\n"
        'pathlib.Path("out").mkdir(exist_ok=True)\n'
        'pathlib.Path("out/app.txt").write_text("built\\n")\n'
        'print("built out/app.txt")\n'
    ),
    "notes.txt": "to do\n",
}
_COMMAND_SECONDS = 100
_DURATION = re.compile(r"\d[\d.]* ?(?:ns|µs|us|ms|s|min)\b")
_VAGUE = re.compile(rf"({_DURATION.pattern}|\.\.\.)")


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the project of a reader who has just installed sandboxsdk, and work in it."""
    project = tmp_path / "reader" / "code" / "app"
    project.mkdir(parents=True)
    for name, text in _PROJECT.items():
        (project / name).write_text(text)
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("python", "python3"):
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        (programs / name).chmod(0o755)
    monkeypatch.setenv("HOME", str(tmp_path / "reader"))
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(Path(sandboxsdk.__file__).parents[1]))
    monkeypatch.chdir(project)
    return project


class _Reader:
    """What is kept between the blocks of a page: what the last one printed and where it ended."""

    def __init__(self) -> None:
        self._printed = ""
        self._end = -1
        self._evaluate = PythonEvaluator()

    def python(self, example: Example) -> str | None:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            problem = self._evaluate(example)
        self._printed, self._end = printed.getvalue(), example.region.end
        return problem

    def text(self, example: Example) -> str | None:
        between = example.document.text[self._end : example.region.start]
        if self._end < 0 or between.strip():
            return None  # an illustration, not the output of the block above
        return _difference(example.parsed, self._printed)

    def console(self, example: Example) -> str | None:
        commands = re.split(r"^\$ ", example.parsed, flags=re.MULTILINE)[1:]
        for command, _, expected in (entry.partition("\n") for entry in commands):
            done = subprocess.run(
                ["/bin/sh", "-c", command],
                capture_output=True,
                check=False,
                stdin=subprocess.DEVNULL,
                text=True,
                timeout=_COMMAND_SECONDS,
            )
            if done.returncode:
                return f"$ {command}\nexit code {done.returncode}\n{done.stdout}{done.stderr}"
            problem = _difference(expected, done.stdout) if expected.strip() else None
            if problem:
                return f"$ {command}\n{problem}"
        return None


def _pattern(expected: str) -> str:
    parts = _VAGUE.split(expected)
    pieces = []
    for part in parts:
        if part == "...":
            pieces.append(r"[\s\S]*?")
        elif _DURATION.fullmatch(part):
            pieces.append(_DURATION.pattern)
        else:
            # Durations differ in width, so a column beside one may be wider or narrower.
            pieces.append(re.sub(r"(\\ )+", r"[ ]+", re.escape(part)))
    return "".join(pieces)


def _plain(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def _difference(expected: str, printed: str) -> str | None:
    if re.fullmatch(_pattern(_plain(expected)), _plain(printed)):
        return None
    return f"expected:\n{_plain(expected)}\nprinted:\n{_plain(printed)}"


def _run(path: Path) -> int:
    reader = _Reader()
    parsers = [
        CodeBlockParser("python", reader.python),
        CodeBlockParser("text", reader.text),
        CodeBlockParser("console", reader.console),
        SkipParser(),
        ClearNamespaceParser(),
    ]
    document = Sybil(parsers=parsers).parse(path)
    document.namespace["__name__"] = "__main__"
    count = 0
    for example in document.examples():
        example.evaluate()
        count += 1
    return count


@pytest.mark.parametrize("page", PAGES)
def test_code_blocks_of_pages_run(page: str, reader: Path) -> None:
    """Each block of the page runs without an error and prints what the page says."""
    _run(ROOT / page)


def test_code_blocks_of_the_root_docstring_run(reader: Path, tmp_path: Path) -> None:
    """The first example that help(sandboxsdk) shows runs as it is."""
    page = tmp_path / "docstring.md"
    page.write_text(sandboxsdk.__doc__ or "")
    assert _run(page) == 1


def test_a_wrong_page_is_noticed(reader: Path, tmp_path: Path) -> None:
    """Output that differs from what a page says is a failure; durations and dots may differ."""
    page = tmp_path / "page.md"
    good = "```python\nprint('a', 'took 3.1 ms')\n```\n\n```text\na   took 12 s\n```\n"
    good += "\n```console\n$ cat notes.txt\nto ...\n$ true\n```\n"
    page.write_text(good)
    assert _run(page) == 3
    wrong = {"a   took": "b   took", "to ...": "from ...", "$ true": "$ false", "'a'": "1 / 0"}
    for part, other in wrong.items():
        page.write_text(good.replace(part, other))
        with pytest.raises(Exception, match=r"expected:|exit code 1|division by zero"):
            _run(page)
