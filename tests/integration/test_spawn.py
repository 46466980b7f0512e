"""`box.spawn` and Process on real boxes: reading, writing, waiting, terminals, and the end."""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from sandboxsdk import Limits, Process, Sandbox
from sandboxsdk.errors import (
    CommandFailed,
    ExecStartError,
    HostRefused,
    UsageError,
    WaitTimeout,
)

from .crash.failing import open_files
from .marks import alive, until

# --- Reading and writing ----------------------------------------------------------------------


def test_iterating_gives_what_comes(box):
    """Iteration gives (stream, bytes) as they are printed and ends with the command; what was
    iterated is not in the result any more.
    """
    with box.spawn("echo out; echo err >&2; exit 3") as process:
        assert isinstance(process, Process)
        pieces = list(process)
        result = process.wait()
    joined = {s: b"".join(d for name, d in pieces if name == s) for s in ("stdout", "stderr")}
    assert joined == {"stdout": b"out\n", "stderr": b"err\n"}
    assert (result.exit_code, result.reason, result.stdout) == (3, "exit", "")


def test_the_result_has_what_nobody_read(box):
    """Output that nobody iterated is in the result, as it was when somebody first asked for it."""
    process = box.spawn("echo out; echo err >&2")
    until(lambda: process.over)
    assert next(iter(process))[0] in ("stdout", "stderr")
    result = process.wait()
    assert sorted([result.stdout, result.stderr]) in (["", "err\n"], ["", "out\n"])
    assert len(list(process)) == 1
    assert process.wait() == result


@pytest.mark.parametrize("wrong", [5, None, ["x"]])
def test_writing_what_is_no_text(box, wrong):
    """Only text and bytes can be written."""
    with box.spawn(["cat"]) as process, pytest.raises(UsageError):
        process.write(wrong)


def test_lines_are_whole(box):
    """lines() gives each line once and whole, however it was printed, and the last one without an
    end too.
    """
    command = "printf one; sleep 0.05; printf ' line\\ntwo\\r\\n'; printf 'err\\nlast' >&2"
    with box.spawn(command) as process:
        assert sorted(process.lines()) == ["err", "last", "one line", "two"]


def test_a_conversation(box):
    """What is written is read by the command at once, and what it answers comes at once."""
    with box.spawn("while read line; do echo got $line; done; echo end") as process:
        lines = process.lines()
        for word in ("one", "zwei", "three"):
            process.write(f"{word}\n" if word != "zwei" else b"zwei\n")
            assert next(lines) == f"got {word}"
        process.close_stdin()
        assert list(lines) == ["end"]
        with pytest.raises(UsageError, match="closed"):
            process.write("more")
    assert process.wait().exit_code == 0


def test_much_goes_through(box):
    """Megabytes written at once arrive whole while output flows back."""
    data = os.urandom(1024 * 1024)
    with box.spawn(["cat"]) as process:
        for _ in range(8):
            process.write(data)
        process.close_stdin()
        assert b"".join(chunk for _stream, chunk in process) == data * 8


def test_writing_is_bounded(box):
    """What a command never reads is refused beyond 64 MiB; after its end, input goes nowhere."""
    with box.spawn(["sleep", "1000"]) as process:
        with pytest.raises(UsageError, match="64 MiB"):
            for _ in range(5):
                process.write(b"x" * 16 * 1024 * 1024)
    assert process.wait().reason == "killed"
    process.write("to nobody")
    process.close_stdin()


def test_nobody_reads(box):
    """Unread output is bounded, marked, and never keeps the command from going on or ending."""
    process = box.spawn("head -c 50000000 /dev/zero; echo end >&2", max_output=100_000)
    result = process.wait(60)
    assert (len(result.stdout_bytes), result.stderr) == (100_000, "end\n")
    assert (result.truncated, result.exit_code) == (True, 0)


def test_a_chatty_process_that_nobody_reads(box):
    """A process that prints single bytes for ever is kept in little memory and can be killed."""
    script = "import os\nwhile True: os.write(1, b'x'); os.write(2, b'y')"
    with box.spawn(["python3", "-c", script], max_output=50_000) as process:
        until(lambda: process._truncated)
        assert len(process._unread) < 100_000
        assert box.exec("echo meanwhile").stdout == "meanwhile\n"
        process.kill()
        assert process.wait().truncated


# --- Waiting ----------------------------------------------------------------------------------


def test_wait_gives_up_and_goes_on(box):
    """wait(timeout) raises when it is not over, the command goes on, and a later wait succeeds."""
    with box.spawn("read x; echo $x; exit 4") as process:
        with pytest.raises(WaitTimeout) as caught:
            process.wait(0.05)
        assert isinstance(caught.value, TimeoutError)
        assert process.poll() is None
        process.write("on\n")
        result = process.wait(20)
    assert (result.exit_code, result.stdout) == (4, "on\n")
    assert process.wait() == process.poll() == result


def test_wait_for_a_port(box):
    """wait_for(port=) returns once somebody in the box listens there, on either IP version."""
    script = "import socket, sys; s = socket.create_server((sys.argv[1], 8124)); input()"
    with box.spawn(["python3", "-c", script, "127.0.0.1"]) as server:
        server.wait_for(port=8124)
        assert not box._entered().listening(8125)
        with pytest.raises(WaitTimeout):
            server.wait_for(port=8125, timeout=0.05)


def test_wait_for_a_pattern(box):
    """wait_for(pattern=) finds what was printed, in pieces and before the call too, and takes
    nothing away from readers.
    """
    with box.spawn("printf 'listening '; sleep 0.05; echo on 80; sleep 1000") as process:
        process.wait_for(pattern=r"listening on \d+")
        process.wait_for(pattern="listening")
        assert next(process.lines()) == "listening on 80"
        with pytest.raises(WaitTimeout):
            process.wait_for(pattern="never", timeout=0.05)


def test_what_is_waited_for_does_not_come(box):
    """When the command ends first, wait_for raises with its result; what it printed last counts."""
    process = box.spawn("echo last words; exit 5")
    with pytest.raises(CommandFailed, match="last words") as caught:
        process.wait_for(pattern="never")
    assert caught.value.result.exit_code == 5
    with pytest.raises(CommandFailed):
        process.wait_for(port=8126)
    process.wait_for(pattern="last w")


@pytest.mark.parametrize("limit", [-1, True, "1", 1.5])
def test_an_output_limit_that_cannot_be(box, limit):
    """The limit of unread output is a number of bytes."""
    with pytest.raises(UsageError, match="max_output"):
        box.spawn(["true"], max_output=limit)


@pytest.mark.parametrize("wrong", [{}, {"port": 1, "pattern": "x"}, {"pattern": "("}])
def test_waiting_for_nonsense(box, wrong):
    """wait_for takes exactly one of a port and a valid pattern."""
    with box.spawn(["cat"]) as process, pytest.raises(UsageError):
        process.wait_for(**wrong)


def test_poll_never_waits(box):
    """Poll gives None while the command runs, and its result afterwards."""
    process = box.spawn("read x")
    assert process.poll() is None
    process.close_stdin()
    assert until(process.poll).exit_code == 1


# --- The end ----------------------------------------------------------------------------------


def test_kill_reaches_the_whole_tree(box, mark):
    """Kill ends the command with everything that it started, and the result says who did it."""
    script = f"setsid sleep {mark} & (setsid sh -c 'sleep {mark} & sleep {mark}' &) ; "
    process = box.spawn(script + f"trap '' TERM; echo before; sleep {mark}")
    process.wait_for(pattern="before")
    until(lambda: len(alive(mark)) >= 4)
    process.kill()
    result = process.wait(20)
    assert alive(mark) == []
    assert (result.reason, result.stdout) == ("killed", "before\n")
    assert not result.ok
    process.kill()


def test_leaving_its_block_kills(box, mark):
    """The process is dead when its block ends, by an exception too."""
    with pytest.raises(ZeroDivisionError), box.spawn(["sleep", mark]):
        until(lambda: alive(mark))
        raise ZeroDivisionError
    assert alive(mark) == []


def test_leaving_the_box_kills(home, mark):
    """What still runs when the box's block ends is dead then, and its result can be asked for."""
    with Sandbox(home=home) as box:
        processes = [box.spawn(f"echo x; setsid sleep {mark} & sleep {mark}") for _ in range(3)]
        ended = box.spawn("exit 6")
        assert ended.wait().exit_code == 6
        for process in processes:
            process.wait_for(pattern="x")
    assert alive(mark) == []
    assert [process.wait(20).reason for process in processes] == ["killed"] * 3
    assert ended.wait().exit_code == 6


def test_a_kill_and_an_end_at_the_same_moment(home):
    """A kill that comes just when the command ends by itself gives one result, at once."""
    with Sandbox(home=home) as box:
        for turn in range(40):
            process = box.spawn(["sleep", f"0.00{turn % 10}"])
            time.sleep(turn % 7 / 1000)
            process.kill()
            result = process.wait(20)
            assert result.reason in ("killed", "exit")


def test_programs_that_cannot_start(box):
    """Spawn itself raises for what cannot start, on pipes and on a terminal, and leaves nothing."""
    box.exec("true", check=True)
    before = open_files()
    for pty in (False, True):
        for command, cwd, reason in (
            (["no-such-program"], None, "No such file"),
            (["/tmp"], None, "Permission denied"),
            (["true"], "missing", "No such file"),
        ):
            with pytest.raises(ExecStartError, match=reason):
                box.spawn(command, cwd=cwd, pty=pty)
    gc.collect()
    # The watch of the box may be looking at the disk right now.
    until(lambda: open_files() <= before)


def test_a_program_that_is_over_at_once(box):
    """A program that ends before anybody can look at it did start."""
    for _ in range(20):
        assert box.spawn(["true"]).wait().exit_code == 0
        assert box.spawn(["sh", "-c", "exit 1"], pty=True).wait().exit_code == 1


def test_wall_time_holds_for_what_stays(home, mark):
    """A box's wall time ends a spawned process too, and its result says so."""
    with Sandbox(home=home, limits=Limits(wall_time=0.3)) as box:
        process = box.spawn(f"echo x; sleep {mark}")
        result = process.wait(20)
    assert (result.reason, result.stdout) == ("timeout", "x\n")
    assert alive(mark) == []


def test_fifty_at_once(box):
    """Fifty processes run side by side, each with its own streams."""
    processes = [box.spawn(f"read x; echo {number} $x") for number in range(50)]
    for process in processes:
        process.write("answers\n")
    for number, process in enumerate(processes):
        assert process.wait(30).stdout == f"{number} answers\n"
    assert box._processes == []


def test_starting_from_many_threads(box):
    """Spawn may be called from many threads, and each thread waits for its own."""
    found: dict[int, str] = {}

    def work(number: int) -> None:
        with box.spawn(["echo", str(number)]) as process:
            found[number] = process.wait(30).stdout

    threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: f"{number}\n" for number in range(12)}


def test_nothing_leaks(home):
    """Boxes, commands and processes leave no descriptor and no thread behind."""

    def everything() -> None:
        with Sandbox(home=home) as box:
            for _ in range(4):
                box.exec("echo x", input="y")
                box.spawn(["cat"]).write("unread")
                with box.spawn(["cat"], pty=True) as process:
                    process.write("x\n")
                    process.wait_for(pattern="x")
                with pytest.raises(ExecStartError):
                    box.exec("true", cwd="missing")
                with pytest.raises(ExecStartError):
                    box.spawn(["no-such-program"], pty=True)
            box.files.write("x", "y")

    everything()
    gc.collect()
    descriptors, threads = open_files(), threading.active_count()
    for _ in range(5):
        everything()
    gc.collect()
    until(lambda: threading.active_count() <= threads)
    until(lambda: open_files() <= descriptors)


def test_a_paused_box_can_be_left(home, mark):
    """In a paused box the processes stand still, new ones are refused, and leaving a process's
    block or the box's kills what is paused.
    """
    with Sandbox(home=home) as box:
        process = box.spawn(f"while :; do echo x >> log; done; sleep {mark}")
        until(lambda: box.files.exists("log"))
        box.pause()
        size = box.files.stat("log").size
        with pytest.raises(UsageError, match="paused"):
            box.exec("true")
        with pytest.raises(UsageError, match="paused"):
            box.spawn("true")
        assert box.files.stat("log").size == size
        box.unpause()
        until(lambda: box.files.stat("log").size > size)
        box.pause()
        process.kill()
        assert process.wait(20).reason == "killed"
        assert box.exec("echo on").stdout == "on\n"
        box.spawn(["sleep", mark])
        box.pause()
    assert alive(mark) == []


# --- Terminals --------------------------------------------------------------------------------

LOOK = "import os; print([os.isatty(n) for n in range(3)], os.ttyname(0), os.environ['TERM'])"


def test_a_terminal(box):
    """With pty=True all three streams are one terminal that has a name in the box, a TERM, and is
    the session's controlling one.
    """
    with box.spawn(["python3", "-c", LOOK], pty=True) as process:
        assert process.wait(20).stdout == "[True, True, True] /dev/pts/0 xterm-256color\r\n"
    with box.spawn("echo through /dev/tty > /dev/tty; ls -l $(tty) >&2", pty=True) as process:
        result = process.wait(20)
    assert "through /dev/tty\r\n" in result.stdout
    assert "sandbox" in result.stdout
    assert result.stderr == ""
    with box.spawn("test -t 0 || test -t 1 || echo none") as process:
        assert process.wait(20).stdout == "none\n"


def test_the_terminals_size(box):
    """A terminal has 24 rows of 80 characters, or what was asked for."""
    with box.spawn("stty size", pty=True) as process:
        assert process.wait(20).stdout == "24 80\r\n"
    with box.spawn("stty -echo; read x; stty size", pty=True, rows=50, columns=132) as process:
        process.write("\n")
        assert process.wait(20).stdout.strip() == "50 132"
    for rows, columns in ((0, 80), (24, 65536), (True, 80), ("24", 80)):
        with pytest.raises(UsageError, match="size"):
            box.spawn("true", pty=True, rows=rows, columns=columns)


def test_resizing(box):
    """A new size reaches the program as SIGWINCH; without a terminal there is nothing to resize."""
    script = """
import os, signal
signal.signal(signal.SIGWINCH, lambda *_: os.write(1, b"%d %d" % os.get_terminal_size()))
print("ready", flush=True)
while True: signal.pause()
"""
    with box.spawn(["python3", "-c", script], pty=True) as process:
        process.wait_for(pattern="ready")
        process.resize(30, 90)
        process.wait_for(pattern="90 30")
        with pytest.raises(UsageError):
            process.resize(0, 90)
    process.resize(31, 91)
    with box.spawn(["cat"]) as process, pytest.raises(UsageError, match="terminal"):
        process.resize(30, 90)


def test_ctrl_c_reaches_the_program_alone(box, mark):
    """Ctrl-C on a terminal interrupts its program, which may go on; its exit code is honest, and
    the rest of the box feels nothing.
    """
    script = """
import time
for _ in range(2):
    try:
        print("ready", flush=True)
        time.sleep(1000)
    except KeyboardInterrupt:
        print("caught", flush=True)
raise SystemExit(7)
"""
    with box.spawn(["sleep", mark]) as other, box.spawn(["python3", "-c", script], pty=True) as one:
        for times in (1, 2):
            one.wait_for(pattern=f"(ready(.|\\s)*){{{times}}}")
            one.write("\x03")
        result = one.wait(20)
        assert (result.exit_code, result.reason) == (7, "exit")
        assert result.stdout.count("caught") == 2
        assert other.poll() is None
        assert alive(mark)


def test_ctrl_c_that_kills(box):
    """A program that does not handle Ctrl-C ends by SIGINT, by SIGQUIT likewise, and says so."""
    for key, number in (("\x03", signal.SIGINT), ("\x1c", signal.SIGQUIT)):
        with box.spawn("echo ready; exec sleep 1000", pty=True) as process:
            process.wait_for(pattern="ready")
            process.write(key)
            result = process.wait(20)
        assert (result.reason, result.signal) == ("signal", number)


def test_ctrl_d(box):
    """close_stdin on a terminal is Ctrl-D: end of file for whoever reads it."""
    with box.spawn(["cat"], pty=True) as process:
        process.write("hello\n")
        process.close_stdin()
        result = process.wait(20)
    assert (result.exit_code, result.stdout.count("hello")) == (0, 2)


def test_a_shell_with_job_control(box, mark):
    """An interactive shell on a terminal has job control, and Ctrl-C ends the job alone."""
    with box.spawn(["bash", "--norc", "-i"], pty=True, env={"PS1": "$ "}) as shell:
        shell.write(f"sleep {mark}\n")
        until(lambda: alive(mark))
        shell.write("\x03")
        shell.write("echo still $((40 + 2))\n")
        shell.wait_for(pattern="still 42")
        shell.write("exit 9\n")
        assert shell.wait(20).exit_code == 9


def test_killing_on_a_terminal(box, mark):
    """What runs on a terminal is killed whole, with background jobs and what left the session."""
    script = f"setsid sleep {mark} & trap '' HUP INT TERM; sleep {mark} & echo x; sleep {mark}"
    with box.spawn(script, pty=True) as process:
        until(lambda: len(alive(mark)) >= 3)
    assert alive(mark) == []
    assert process.wait().reason == "killed"
    with box.spawn(f"setsid sleep {mark} & sleep 0.02; echo out", pty=True) as process:
        assert process.wait(20).stdout == "out\r\n"
        assert alive(mark) == []


def test_many_terminals(box):
    """Terminals are numbered by the box alone, and their numbers are free again afterwards."""
    shells = [box.spawn("tty; read x", pty=True) for _ in range(5)]
    for number, shell in enumerate(shells):
        shell.wait_for(pattern=f"/dev/pts/{number}")
    for shell in shells:
        shell.write("\n")
        assert shell.wait(20).exit_code == 0
    with box.spawn("tty", pty=True) as shell:
        assert shell.wait(20).stdout == "/dev/pts/0\r\n"


def test_crowded_box(home):
    """When no more processes fit into a box, starting one says so and blames no program."""
    with Sandbox(home=home, limits=Limits(pids=12)) as box:
        started = []
        with pytest.raises(HostRefused) as caught:
            started.extend(box.spawn(["sleep", "1000"]) for _ in range(12))
        assert started
        assert not isinstance(caught.value, ExecStartError)
        for process in started:
            process.kill()
            process.wait(20)
        assert box.exec("true").ok


def test_a_line_without_end_comes_in_parts(box):
    """A program that never ends its line cannot make its reader hold more than max_output."""
    with box.spawn("cat", max_output=1000) as process, ThreadPoolExecutor(1) as executor:
        lines = process.lines()
        first = executor.submit(next, lines)
        for _ in range(2):
            process.write("x" * 900)
            until(lambda: process._searched.endswith(b"x" * 900) and not process._unread)
            process._searched = b""
        assert first.result(20) == "x" * 1800
        process.write("y\n")
        assert next(lines) == "y"


@pytest.mark.parametrize("pty", [False, True])
def test_a_start_without_descriptors_left_leaks_none(box, pty):
    """However few descriptors are left, a start succeeds or is refused, and leaves none open."""
    box.exec("true", check=True)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = open_files()
    for free in range(16):
        taken = [os.dup(0)]
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(taken[0], len(before)) + 40, hard))
            with contextlib.suppress(OSError):
                while True:
                    taken.append(os.dup(0))
            for descriptor in [taken.pop() for _ in range(min(free, len(taken)))]:
                os.close(descriptor)
            try:
                process = box.spawn("true", pty=pty)
            except HostRefused:
                process = None
        finally:
            for descriptor in taken:
                os.close(descriptor)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        if process is not None:
            with contextlib.suppress(HostRefused):
                process.wait(20)
            process.join()
        # The watch of the box may be looking at the disk right now.
        until(lambda: open_files() <= before)
