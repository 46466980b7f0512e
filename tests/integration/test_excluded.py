"""Excluded paths: they stay where they are, while all else is frozen and gone back to."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from sandboxsdk import Home, Sandbox, Task, Workspace
from sandboxsdk.errors import FileConflict

EXCLUDE = ["*.log", "cache/"]
# What a directory is, when it changed, and what is in its files.
LOOK = (
    "find . -mindepth 1 -printf '%P %y %m %s\\n' | sort | sed -E 's/^(.* d [0-7]+) .*/\\1/';"
    " find . -type f | sort | xargs head -v"
)

TIMES = (
    "(find . -printf '%P %y %m %u %t %l\\n';"
    " find . ! -type d '(' -name '*.log' -o -path '*/cache/*' ')' -printf '%P %n\\n') | sort"
)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    work = tmp_path / "work"
    for name in (
        "a",
        "d/f",
        "d/x.log",
        "d/cache/c",
        "e/sub/g",
        "e/sub/y.log",
        "cache/top",
        "z.log",
    ):
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_text(f"{name} at first\n")
    return work


def task_on(work: Path, home: Home, kind: str = "overlay") -> Task:
    workspace = Workspace.private(work, exclude=EXCLUDE, kind=kind)
    return Task.create("t", workspace=workspace, home=home)


def look(box: Sandbox) -> str:
    return box.exec(LOOK, check=True).stdout


def held(directory: Path) -> list[str]:
    """List what lies in an upper or a layer."""
    return sorted(
        str(Path(above, name).relative_to(directory))
        for above, inner, files in os.walk(directory)
        for name in [*inner, *files]
    )


def in_layers(home: Home) -> list[str]:
    return sorted(
        {name for layer in Path(home.path, "layers").glob("*.*/files") for name in held(layer)}
    )


CLOSED = "mkdir -p shut; echo 1 > shut/s.log; echo 1 > shut/s; chmod 500 shut"
CHANGES = {
    "new files": "echo 1 > n.log; echo 1 > d/n.log; mkdir new; echo 1 > new/n.log",
    "changed files": "echo 1 >> z.log; echo 1 >> d/x.log; echo 1 >> d/cache/c",
    "removed files": "rm z.log d/x.log e/sub/y.log",
    "a removed directory": "rm -r cache d/cache",
    "a directory instead of another": "rm -r d/cache; mkdir -p d/cache/in; echo > d/cache/in/n",
    "more in a directory": "mkdir d/cache/in; echo > d/cache/in/n; rm d/cache/c; mkfifo d/cache/p",
    "below another directory": "rm -r d; mkdir -p d/cache; echo 1 > d/cache/n; echo 1 > d/n.log",
    "below one that was removed": "rm -r e; mkdir -p e/sub; echo > e/sub/y.log",
    "links": "ln -s a l.log; mkdir cache/k; ln cache/top cache/k/t; ln -s /no d/cache/l",
    "attributes": "mkdir m; echo 1 > m/n.log; chmod 750 m; touch -d 2001-01-01 m; chmod 711 d",
    "a closed directory": CLOSED,
    "a file closed to everybody": "echo 1 > n.log; chmod 0 n.log; mkdir d/q; mkdir -m 0 d/q/cache",
}


@pytest.mark.parametrize("change", CHANGES)
def test_no_layer_holds_them_and_the_view_does(change: str, work: Path, home: Home) -> None:
    """They are moved from one upper into the next, and nothing in the box sees that."""
    task = task_on(work, home)
    with Sandbox(task) as box:
        box.checkpoint("start")
        box.exec(f"echo 1 > a; {CHANGES[change]}", check=True)
        seen = look_closely(box)
        first = box.checkpoint()
        assert look_closely(box) == seen
        assert box.diff(first) == []
        for number in range(9):  # So that layers are merged.
            box.exec(f"echo {number} > more; test -d d && echo {number} > d/more", check=True)
            seen, changes = look_closely(box), box.diff()
            last = box.checkpoint()
            assert look_closely(box) == seen
            assert box.diff() == changes
        frozen = [name for name in in_layers(home) if is_excluded(name)]
        assert frozen == []
        layers = [len(stack.layers) for stack in home.layers.stacks()]
        # Without root's rights we do not move what a guest has closed to us.
        if os.geteuid() == 0 or "closed" not in change:
            assert max(layers) > 0
    with Sandbox(task) as box:
        assert look_closely(box) == seen
        assert box.diff(last) == []


def look_closely(box: Sandbox) -> str:
    """With the times of everything, and of directories too."""
    files = box.exec("find . -type f -readable | sort | xargs head -v", check=True).stdout
    return box.exec(TIMES, check=True).stdout + files


def is_excluded(name: str) -> bool:
    return name.endswith(".log") or "cache" in name.split("/")


# Commands, "+" for a checkpoint, and a number for going back to one (0 is the first).
STORIES: dict[str, Sequence[str | int]] = {
    "nothing but them": ["+", "echo 1 > n.log; rm z.log", "+", 0, 1],
    "made and kept": [
        "+",
        "echo 1 > n.log; echo 1 > a",
        "+",
        "echo 2 > n.log; echo 2 > a",
        "+",
        0,
        2,
        1,
    ],
    "removed": ["+", "rm z.log d/x.log; echo 1 > a", "+", 0, "echo 2 > b", "+", 1, 0, 2],
    "removed directories": ["+", "rm -r cache d/cache; echo 1 > a", "+", 0, 1, 0],
    "put back": ["+", "rm z.log; echo 1 > a", "+", "echo again > z.log; echo 2 > a", "+", 0, 1, 2],
    "in a new directory": ["+", "mkdir -p n/m; echo 1 > n/m/n.log; echo 1 > n/f", "+", 0, 1, 0],
    "in a directory that goes": ["+", "echo 1 > d/n.log; rm d/f", "+", "rm -r d", "+", 0, 1, 2, 0],
    "in another directory": ["+", "rm -r e; mkdir -p e/sub; echo 1 > e/sub/n.log", "+", 0, 1, 0],
    "in a merged one of another": ["+", "rm -r d; mkdir -p d/cache; echo 1 > d/cache/n", "+", 0, 1],
    "in one that was another": [
        "+",
        "rm -r d; mkdir d",
        "+",
        "mkdir d/cache; echo 1 > d/cache/n",
        "+",
        0,
        1,
        2,
    ],
    "a file at their place": [
        "+",
        "mkdir n; echo 1 > n/n.log",
        "+",
        "rm -r n; echo file > n",
        "+",
        0,
        1,
        2,
    ],
    "a directory of the base changed": [
        "+",
        "echo 1 >> d/cache/c; echo 1 > d/cache/n",
        "+",
        "chmod 750 d",
        "+",
        0,
        2,
    ],
    "many points": [
        *(w for n in range(9) for w in (f"echo {n} > a; echo {n} >> n.log", "+")),
        0,
        4,
        8,
        1,
    ],
}


@pytest.mark.parametrize("save", ["keeping", "giving up"])
@pytest.mark.parametrize("story", STORIES)
def test_going_back_leaves_them_as_a_copy_does(
    story: str, save: str, work: Path, home: Home
) -> None:
    """Whatever happened to what they lie in: a layered view shows what a copied one shows."""
    with Sandbox(task_on(work, home)) as layered, Sandbox(task_on(work, home, "copy")) as copied:
        made = []
        for number, step in enumerate(STORIES[story]):
            for box in (layered, copied):
                if step == "+":
                    made.append(box.checkpoint())
                elif isinstance(step, int):
                    wanted = made[2 * step + (box is copied)]
                    box.restore(wanted, save_current=save == "keeping")
                else:
                    box.exec(step, check=True)
            assert look(layered) == look(copied), (number, step)


def test_what_is_in_the_way_is_told(work: Path, home: Home) -> None:
    """A file is wanted where one of them lies: nothing of it is lost, as in a copy."""
    for kind in ("overlay", "copy"):
        with Sandbox(task_on(work, home, kind)) as box:
            box.exec("echo file > n", check=True)
            first = box.checkpoint()
            box.exec("rm n; mkdir n; echo 1 > n/n.log; echo 1 > a", check=True)
            box.checkpoint()
            with pytest.raises(FileConflict):
                box.restore(first)
            assert box.files.read_text("n/n.log") == "1\n"


def test_a_restore_with_them_costs_a_switch(work: Path, home: Home) -> None:
    """Nothing is written through the mount: the upper holds what is excluded alone."""
    task = task_on(work, home)
    with Sandbox(task) as box:
        first = box.checkpoint()
        box.exec(
            "mkdir n; echo 1 > n/n.log; echo 1 > d/n.log; echo 1 > a; echo 1 > d/f", check=True
        )
        second = box.checkpoint()
        for wanted in (first, second):
            box.restore(wanted)
            holds = {"d", "d/n.log", "n", "n/n.log"}
            assert set(held(Path(task.directory, "upper"))) == holds
        assert sorted(str(change.path) for change in box.diff(first)) == ["a", "d/f", "n"]


@pytest.mark.parametrize("lose", ["", "losing layers"])
@pytest.mark.parametrize("kind", ["overlay", "copy"])
def test_forks_have_none_of_the_directory(
    kind: str, lose: str, work: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither now, nor at a point, nor in forks of forks; what is hidden counts as no change, and
    applying leaves the directory's own where they are.
    """
    if lose:
        monkeypatch.setenv("SANDBOXSDK_LOSE_LAYERS", "1")
    before = files_below(work)
    task = task_on(work, home, kind)
    with Sandbox(task) as box:
        first = box.checkpoint()
        box.exec("echo 1 > a; rm -r e; echo 1 > n.log", check=True)
        second = box.checkpoint()
    lasting = task.fork()[0]
    for fork in (*(task.fork(at=at)[0] for at in (first, second, None)), lasting, *lasting.fork()):
        with Sandbox(fork) as box:
            assert not [path for path in look(box).split() if is_excluded(path)]
            start, told = box.checkpoint(), box.diff()
            assert not [change.path for change in told if is_excluded(change.path)]
            assert "log" not in fork.patch()
            box.exec("mkdir -p d/cache; echo 2 > d/cache/n; echo 2 > z.log; echo 2 > b", check=True)
            seen = look(box)
            later = box.checkpoint()
            assert [change.path for change in box.diff(start)] == ["b"]
            box.restore(start)
            assert box.exec("cat d/cache/* z.log", check=True).stdout == "2\n2\n"
            box.restore(later)
            assert look(box) == seen
        with Sandbox(fork) as box:
            assert look(box) == seen
    task.apply()
    lasting.apply()
    after = files_below(work)
    kept = {path: text for path, text in before.items() if is_excluded(path)}
    assert {path: text for path, text in after.items() if is_excluded(path)} == kept
    assert after["b"] == "2\n"


def files_below(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): path.read_text()
        for path in directory.rglob("*")
        if path.is_file()
    }
