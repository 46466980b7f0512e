"""Checkpoints on top of each other: the sequences of edits that are the hardest for layers.

Each is made in a box on an overlay, in one on a copy, and in a plain directory, which is the truth.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sandboxsdk import Checkpoint, Home, Sandbox, Task, Workspace
from sandboxsdk.errors import BoxBusy
from tests.properties.branches import COMMAND
from tests.properties.naive import Seen, shown

from .marks import until

KINDS = ("overlay", "copy")
each_kind = pytest.mark.parametrize("kind", KINDS)

# What was set on purpose is older; the time of day differs from one place to the other.
_YEAR_2020 = 1_577_836_800 * 10**9

_BEGINNING = """
mkdir -p d/sub e deep/1/2/3
for name in f g d/a d/b d/sub/x d/sub/y deep/1/2/3/leaf; do echo "$name" > $name; done
ln -s f link
mkfifo pipe
chmod 700 d/sub
chmod 755 .
touch -d '2001-01-01 01:01:01.5' f d/a d/sub deep e .
"""
# The root of a view has the time at which it was made.
_TOUCH = "touch -d '2001-01-01 01:01:01.5' ."
_FUNCTIONS = """
set -e
umask 022
note() { python3 -IS -c 'import os, sys; os.setxattr(*sys.argv[1:3], sys.argv[3].encode())' "$@"; }
unnote() { python3 -IS -c 'import os, sys; os.removexattr(*sys.argv[1:3])' "$@"; }
"""

# A checkpoint is made before each of a row's scripts and after the last.
ROWS = {
    "whiteout over whiteout": [
        "rm f d/a",
        "echo 1 > f; echo 1 > d/a",
        "rm f d/a",
        "echo 2 > f",
        "rm f; rm d/b d/sub/*",
    ],
    "opaque over opaque": [
        "rm -r d; mkdir d; echo 1 > d/a",
        "rm -r d; mkdir d; echo 2 > d/b",
        "rm -r d; mkdir -p d/sub; echo 3 > d/sub/x",
        "rm -r d/sub; mkdir d/sub; echo 4 > d/sub/y",
        "rm -r d; mkdir d",
    ],
    "opaque below opaque, then the upper one merged with nothing": [
        "rm -r d/sub; mkdir d/sub",
        "rm -r d; mkdir -p d/sub",
        "echo x > d/sub/x",
        "rm -r d; mkdir -p d/sub; echo y > d/sub/y",
    ],
    "file, directory, file": [
        "rm f; mkdir f; echo 1 > f/in",
        "rm -r f; echo 2 > f",
        "rm f; mkdir f",
        "rmdir f; ln -s d f",
        "rm f; mkfifo f",
        "rm f; echo f > f; touch -d '2001-01-01 01:01:01.5' f",
    ],
    "directory, file, directory": [
        "rm -r d; echo 1 > d",
        "rm d; mkdir d; echo 2 > d/a",
        "rm -r d; ln -s e d",
        "rm d; mkdir -p d/sub; echo x > d/sub/x",
        "rm -r d; mkfifo d",
        "rm d",
    ],
    "a directory removed and made again and removed": [
        "rm -r d",
        "mkdir d; echo n > d/new",
        "rm -r d",
        "mkdir -p d/sub; echo n > d/a",
        "rm -r d deep",
        "mkdir -p deep/1/2; echo l > deep/1/2/3",
    ],
    "renamed over": [
        "mv f g",
        "echo n > n; mv n g",
        "mv g d/a",
        "mv d/a d/sub/x; echo a > d/a",
        "mv d/sub/x f; mv link d/b",
    ],
    "directories moved": [
        "mv d moved",
        "mv moved d; mv deep/1 one",
        "mv d/sub d/sub2; echo 1 > d/sub2/z",
        "mkdir t; mv d t/",
        "mv t/d d; rmdir t; mv one/2 d/sub2/",
        "mv -T d/sub2 e",
    ],
    "names that change places": [
        "mv f t; mv g f; mv t g",
        "mv d t; mv e d; mv t e",
        "mv f t; mv g f; mv t g",
        "mv d t; mv e d; mv t e",
    ],
    "links across checkpoints": [
        "ln f h; echo 1 >> f",
        "echo 2 >> h",
        "ln h d/k; echo 3 >> f",
        "rm f; echo 4 >> h",
        "mv h f; echo 5 >> d/k",
        "echo 6 > n; mv n f; echo 7 >> d/k",
    ],
    "links that part and come together": [
        "echo x > a; ln a b; ln a d/c",
        "rm b; echo x > b",
        "echo y >> a",
        "rm b; ln a b; echo z >> b",
        "rm a d/c; echo w >> b; ln b a",
        "mv d moved; echo v >> a; mv moved d; ln a d/c; echo u >> d/c",
    ],
    "one mode, time and note of all links": [
        "echo x > a; ln a b; chmod 600 a; mkfifo p; ln p q",
        "chmod 755 b; note a user.n 1; chmod 600 q",
        "touch -d 2001-02-03 a; unnote b user.n",
        "truncate -s 0 b",
        "chmod 600 b; rm b",
    ],
    "modes and times of directories": [
        "chmod 700 d; chmod 711 .; touch -d 2001-02-03 d",
        "chmod 1777 d/sub; touch -d 2001-02-03 . d/sub",
        "echo x > d/n; touch -d 2002-02-03 d .",
        "chmod 755 . d; touch -d 1970-01-01 e; touch -d 1969-01-01 deep",
        "rm -r d/sub; touch -d 2003-01-01 d; chmod 1755 .",
        "mkdir d/sub; chmod 751 d/sub; touch -d 2003-01-01 d/sub d",
    ],
    "notes on directories": [
        "note d user.n 1; note f user.n 1",
        "note d user.n 2; note d/sub user.m 1; note . user.root 1",
        "unnote d user.n; note e user.n x; echo x > d/x",
        "rm -r d; mkdir d; note d user.fresh 1; unnote . user.root",
        "chmod 700 d; note f user.n 2; note deep/1 user.n 3",
        "rm -r e; mkdir e",
    ],
    "closed files and directories": [
        "echo s > c; chmod 000 c; mkdir v; echo v > v/f; chmod 555 v d/sub",
        "chmod 700 c; echo t > c; chmod 000 c; chmod 400 f",
        "chmod 755 v; rm v/f; chmod 555 v; mv c d/c",
        "chmod 755 v d/sub; rm -r v d/sub; rm -f f",
    ],
    "names that overlays might take for something else": [
        "echo 1 > .wh.f; echo 1 > 'lowerdir=a,b:c\\d'; mkdir \"$(printf '\\377x')\" '#7'",
        "echo 2 > d/.wh..wh..opq; rm f; echo n > \"$(printf 'new\\nline')\"",
        "rm .wh.f; echo f > f; mkdir .wh.d; mv \"$(printf 'new\\nline')\" ' '",
        "mv 'lowerdir=a,b:c\\d' \"$(printf '\\377x')\"; echo x > $(printf %0255d 0)",
        "rm -r d .wh.d \"$(printf '\\377x')\" $(printf %0255d 0); mkdir d",
    ],
    "as large and as old as before": [
        "printf aaaa > q; touch -d 2001-02-03 q d",
        "printf bbbb > q; touch -d 2001-02-03 q",
        "printf cccc > t; touch -d 2001-02-03 t; mv t q",
        "rm -r d/sub; cp -p q d/sub; touch -d 2001-02-03 d",
        "printf aaaa > q; touch -d 2001-02-03 q",
    ],
    "no edits at all": ["true", "true", "echo 1 > f", "true", "true"],
    "all gone": [
        "find . -mindepth 1 -delete",
        "mkdir d; echo 1 > d/a",
        "find . -mindepth 1 -delete",
        "echo 1 > d; mkdir f; mkfifo e; ln -s f deep",
        "find . -mindepth 1 -delete",
    ],
    "a thousand files of the directory": [
        "cd many; rm *[02468]",
        "cd many; for name in *; do echo $name; done > list; rm f*",
        "rm -r many",
        "mkdir many; echo 1 > many/f1; echo 2 > many/f2",
        "rm many/f1; echo 3 > many/f2",
    ],
    "holes": [
        "truncate -s 5M big; printf island | dd of=big bs=1 seek=2000000 conv=notrunc 2>&1",
        "printf more >> big; chmod 600 holes",
        "truncate -s 3M big; printf x | dd of=holes bs=1 seek=9000 conv=notrunc 2>&1",
        "truncate -s 6M big; cp --sparse=always big big2; mv holes d/holes",
        "rm big; mv big2 big; truncate -s 0 d/holes",
    ],
}
_BEFORE = {
    "a thousand files of the directory": (
        "mkdir many; cd many; for n in $(seq 1000); do : > f$n; done"
    ),
    "holes": "truncate -s 2M holes; printf island | dd of=holes bs=1 seek=90000 conv=notrunc 2>&1",
}


def run_plainly(directory: Path, script: str) -> None:
    subprocess.run(["/bin/sh", "-c", _FUNCTIONS + script], cwd=directory, check=True)


def plain(directory: Path) -> Seen:
    """Tell what a plain directory holds."""
    command = [sys.executable, *COMMAND[1:]]
    done = subprocess.run(command, input=b"[]", cwd=directory, stdout=subprocess.PIPE, check=True)
    found: Seen = json.loads(done.stdout)
    return found


def look(box: Sandbox) -> Seen:
    """Tell what a box shows, directories' times included."""
    found: Seen = json.loads(box.exec(COMMAND, input="[]", check=True).stdout)
    return found


def timeless(seen: Seen) -> Seen:
    """Leave out the times that nobody set."""
    return {
        path: [*facts[:3], facts[3] if facts[3] < _YEAR_2020 else None, *facts[4:]]
        for path, facts in seen.items()
    }


def unlike(got: Seen, wanted: Seen) -> dict[str, Any]:
    paths = got.keys() | wanted.keys()
    return {p: (got.get(p), wanted.get(p)) for p in paths if got.get(p) != wanted.get(p)}


def task_on(directory: Path, home: Home, kind: str, **how: Any) -> Task:
    workspace = Workspace.private(directory, kind=kind, **how)
    return Task.create(kind, workspace=workspace, home=home)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    made = tmp_path / "work"
    made.mkdir()
    run_plainly(made, _BEGINNING)
    return made


@each_kind
def test_a_file_with_holes_that_was_only_copied_up_keeps_its_content(kind, tmp_path, home) -> None:
    """An overlay fills holes when it copies a file up: what changed is the mode, told from the
    beginning and from a checkpoint.
    """
    work = tmp_path / "work"
    work.mkdir()
    with open(work / "island", "wb") as file:
        file.truncate(1 << 20)
        file.seek(300_000)
        file.write(b"island")
    with Sandbox(task_on(work, home, kind)) as box:
        kept = box.checkpoint()
        box.exec("chmod 600 island", check=True)
        for changes in (box.diff(kept), box.diff()):
            assert [(change.kind, change.path) for change in changes] == [("mode", "island")]


@pytest.mark.parametrize("name", ROWS)
def test_layers_show_what_a_plain_directory_would(name: str, work: Path, home: Home) -> None:
    """Each state is as it should be, tells the same changes in both kinds, and comes back with all
    times: backwards, forwards, in forks and after a pause.
    """
    truth = work.with_name("truth")
    truth.mkdir()
    run_plainly(truth, _BEGINNING + _BEFORE.get(name, ""))
    run_plainly(work, _BEFORE.get(name, ""))
    told: dict[str, list[Any]] = {}
    states: list[Seen] = []
    for script in [_TOUCH, *ROWS[name]]:
        run_plainly(truth, script)
        states.append(timeless(plain(truth)))
    for kind in KINDS:
        task = task_on(work, home, kind)
        with Sandbox(task) as box:
            seen, kept = _through(box, ROWS[name], states)
            told[kind] = [
                shown(box.diff()),
                *([shown(box.diff(c)) for c in kept] if name != "holes" else []),
            ]
            last = len(kept) - 1
            order = [*range(last, -1, -1), last, 1, last // 2 + 1, 0, 0]
            for number in order:
                box.restore(kept[number], save_current=False)
                assert unlike(look(box), seen[number]) == {}, (kind, number)
                assert box.diff(kept[number]) == []
        with Sandbox(task) as box:
            assert unlike(look(box), seen[0]) == {}, kind
            for number in (last, last // 2):
                (fork,) = box.fork(at=kept[number])
                assert unlike(look(fork), seen[number]) == {}, (kind, number)
            # Forward again, by the same edits, from an old state.
            _through(fork, ROWS[name][last // 2 :], states[last // 2 :], first=False)
            assert unlike(look(box), seen[0]) == {}, kind
    assert told["overlay"] == told["copy"]


def _through(
    box: Sandbox, scripts: list[str], states: list[Seen], *, first: bool = True
) -> tuple[list[Seen], list[Checkpoint]]:
    """Make the edits, with a checkpoint before and after each; gives what was there, and them."""
    seen, kept = [], []
    for number, script in enumerate([_TOUCH if first else "true", *scripts]):
        box.exec(_FUNCTIONS + script, check=True)
        seen.append(look(box))
        assert unlike(timeless(seen[-1]), states[number]) == {}, script
        kept.append(box.checkpoint())
        assert unlike(look(box), seen[-1]) == {}, f"changed by a checkpoint after: {script}"
    return seen, kept


@each_kind
def test_a_hundred_checkpoints_and_back_to_each(work: Path, home: Home, kind: str) -> None:
    """Each holds what was there when it was made, and all come back, newest first and by chance."""
    seen, kept = [], []
    with Sandbox(task_on(work, home, kind)) as box:
        for number in range(100):
            box.exec(
                f"echo {number} >> f; echo {number} > new{number}; rm -f new{number - 3};"
                f"rm -rf e; mkdir e; echo {number} > e/{number % 4}",
                check=True,
            )
            seen.append(look(box))
            kept.append(box.checkpoint(f"c{number}"))
        for number in [*range(99, -1, -1), *((7 * n) % 100 for n in range(15))]:
            box.restore(kept[number], save_current=False)
            assert unlike(look(box), seen[number]) == {}, number
        assert kept[99].read("new99") == b"99\n"
        assert kept[50].verify().ok


@each_kind
def test_forks_of_forks_and_back(work: Path, home: Home, kind: str) -> None:
    """Each goes on from where it was made, and the deepest one's state is taken by the first."""
    with Sandbox(task_on(work, home, kind)) as box:
        boxes, made = [box], []
        for depth in range(5):
            boxes[-1].exec(
                f"rm -r d; mkdir d; echo {depth} > d/a; echo {depth} > deep/1/n{depth};"
                f"ln -f d/a linked; echo more >> linked; rm -f deep/1/n{depth - 2}",
                check=True,
            )
            made.append((boxes[-1].checkpoint(), look(boxes[-1])))
            boxes += boxes[-1].fork()
        assert unlike(look(boxes[-1]), made[-1][1]) == {}
        boxes[-1].exec("rm -r deep; echo last >> d/a; touch -d 2001-02-03 d", check=True)
        deepest = boxes[-1].checkpoint()
        for one, (_, seen) in zip(boxes, made, strict=False):
            assert unlike(look(one), seen) == {}
        box.restore(deepest)
        assert unlike(look(box), look(boxes[-1])) == {}
        assert box.exec("cat linked", check=True).stdout == "4\nmore\nlast\n"
        for checkpoint, seen in made:
            box.restore(checkpoint)
            assert unlike(look(box), seen) == {}


@each_kind
def test_what_is_excluded_stays_where_it_is(work: Path, home: Home, kind: str) -> None:
    """Through checkpoints and restores, on top of each other; forks begin without what was made."""
    (work / "d/cache").mkdir()
    (work / "d/cache/from-the-directory").write_text("old")
    (work / "old.log").write_text("old")
    task = task_on(work, home, kind, exclude=["*.log", "cache/"])
    with Sandbox(task) as box:
        first = box.checkpoint()
        box.exec("echo 1 > d/cache/n; echo 1 > a.log; echo 1 >> f; echo 1 >> old.log", check=True)
        second = box.checkpoint()
        box.exec("echo 2 >> d/cache/n; echo 2 >> a.log; rm d/sub/x; rm old.log", check=True)
        third = box.checkpoint()
        box.exec("echo 3 >> d/cache/n; echo 3 >> a.log; mkdir new; echo 3 > new/b.log", check=True)
        kept = "cat d/cache/* a.log new/b.log; ls old.log"
        wanted = box.exec(kept).stdout
        assert wanted == "old1\n2\n3\n1\n2\n3\n3\n"
        for checkpoint in (first, third, second, first, first, third):
            box.restore(checkpoint)
            assert box.exec(kept).stdout == wanted
        assert not {f.path for f in third.files()} & {"a.log", "d/cache", "old.log", "d/cache/n"}
        for at in (None, first, third):
            (fork,) = box.fork(at=at)
            assert not any(map(fork.files.exists, ("a.log", "d/cache/n", "new/b.log")))
            fork.exec("mkdir -p d/cache; echo fork > d/cache/n; echo fork > a.log", check=True)
            fork.checkpoint()
    with Sandbox(task) as box:
        assert box.exec(kept).stdout == wanted


@each_kind
def test_sockets_whose_server_is_dead(work: Path, home: Home, kind: str) -> None:
    """They are passed over and told, stay in the view, and make place for what a restore needs."""
    bind = "import socket, sys; socket.socket(socket.AF_UNIX).bind(sys.argv[1])"
    with Sandbox(task_on(work, home, kind)) as box:
        box.exec(["python3", "-c", bind, "d/sock"], check=True)
        first = box.checkpoint()
        assert first.record.skipped == ("d/sock",)
        assert box.exec("test -S d/sock").ok
        box.exec("rm f; mkdir e/dir", check=True)
        box.exec(["python3", "-c", bind, "f"], check=True)
        second = box.checkpoint()
        assert set(second.record.skipped) == {"d/sock", "f"}
        box.restore(first, save_current=False)
        assert box.exec("cat f", check=True).stdout == "f\n"
        box.exec("rm -r d; mkdir d; echo n > d/sock", check=True)
        third = box.checkpoint()
        assert third.record.skipped == ()
        box.restore(second, save_current=False)
        assert box.exec("ls d").stdout == "a\nb\nsub\n"
        box.restore(third, save_current=False)
        assert box.exec("cat d/sock", check=True).stdout == "n\n"


@each_kind
def test_a_large_file_that_grows(work: Path, home: Home, kind: str) -> None:
    """A hundred mebibytes, appended to and patched between checkpoints, with a second name."""
    fill = "import random, sys; sys.stdout.buffer.write(random.Random(7).randbytes(1 << 20) * 100)"
    digest = "sha256sum large d/large | cut -d' ' -f1 | uniq; stat -c '%s %h' large"
    with Sandbox(task_on(work, home, kind)) as box:
        box.exec(f"python3 -c '{fill}' > large; ln large d/large", check=True)
        states = []
        for step in ("true", "echo more >> large", "printf x | dd of=d/large bs=1 conv=notrunc"):
            box.exec(step, check=True)
            states.append((box.checkpoint(), box.exec(digest, check=True).stdout))
            assert len(states[-1][1].splitlines()) == 2
        assert len({state for _, state in states}) == 3
        box.exec("rm large", check=True)
        for checkpoint, state in [*states[::-1], states[2]]:
            box.restore(checkpoint, save_current=False)
            assert box.exec(digest, check=True).stdout == state


_WRITER = """
import os, sys
os.chdir("d")
log = open("log", "a")
base = open("../f", "r+")
gone = open("unlinked", "w+")
os.unlink("unlinked")
print("ready", flush=True)
for number, _ in enumerate(sys.stdin):
    log.write(f"{number}\\n"); log.flush()
    base.seek(0); base.write(f"{number}\\n"); base.flush()
    gone.write(f"{number}\\n"); gone.flush()
    open(f"made{number}", "w").write(f"{number}")
    os.rename("made0", "moved") if number == 1 else None
    gone.seek(0)
    print("did", number, len(gone.read()), flush=True)
"""


@each_kind
def test_a_process_goes_on_over_checkpoints(work: Path, home: Home, kind: str) -> None:
    """What it has open, and where it stands, is what others see; no checkpoint gets its later
    writes; a restore waits for it to be gone.
    """
    with Sandbox(task_on(work, home, kind)) as box:
        with box.spawn(["python3", "-c", _WRITER]) as process:
            process.wait_for(pattern="ready")
            kept = []
            for number in range(5):
                process.write("go\n")
                process.wait_for(pattern=f"did {number} ")
                lines = "".join(f"{n}\n" for n in range(number + 1))
                assert box.exec("cat d/log", check=True).stdout == lines
                assert box.exec("cat f", check=True).stdout == f"{number}\n"
                assert box.exec(f"cat d/made{number}", check=True).stdout == f"{number}"
                (fork,) = box.fork()
                assert fork.exec("cat d/log", check=True).stdout == lines
                kept.append((box.checkpoint(), lines, look(box)))
                assert not box.files.exists("d/unlinked")
            with pytest.raises(BoxBusy):
                box.restore(kept[0][0])
            for checkpoint, lines, _ in kept:
                assert checkpoint.read("d/log") == lines.encode()
            box.restore(kept[1][0], kill=True)
            assert not process.wait(30).ok
        for checkpoint, _, seen in [kept[1], *kept, *kept[::-1]]:
            box.restore(checkpoint)
            assert unlike(look(box), seen) == {}


@each_kind
def test_checkpoints_while_somebody_writes(work: Path, home: Home, kind: str) -> None:
    """Files that are made, moved, linked and removed without a stop: each checkpoint is of one
    moment, and can be gone back to.
    """
    script = """
    n=0
    while :; do
        n=$((n + 1))
        mkdir t$n; echo $n > t$n/n; mv t$n now$n; rm -rf now$((n - 1))
        echo $n >> d/log; ln -f d/log log2; rm -rf e; mkdir e; echo $n > e/n; echo $n > number
    done
    """
    with Sandbox(task_on(work, home, kind)) as box:
        with box.spawn(script) as process:
            until(lambda: box.files.exists("number"))
            made = [box.checkpoint() for _ in range(8)]
            assert process.poll() is None
        read = []
        for checkpoint in made:
            assert checkpoint.verify().ok
            # Whoever writes a number has begun the next line, at most.
            number = int(checkpoint.read("number") or b"0")
            lines = checkpoint.read("d/log").split()
            assert len(lines) - number in {0, 1} or not number
            assert lines == [b"%d" % n for n in range(1, len(lines) + 1)]
            read.append({f.path: f.mtime_ns for f in checkpoint.files() if f.kind != "directory"})
        for checkpoint, wanted in [*zip(made, read, strict=True)][::-1]:
            box.restore(checkpoint)
            found = {p: facts[3] for p, facts in look(box).items() if facts[0] != 0o40000}
            assert found == wanted
            assert os.fsdecode(checkpoint.read("d/log")) == box.exec("cat d/log").stdout
