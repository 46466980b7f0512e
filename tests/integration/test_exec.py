"""`box.exec` on real boxes: what a command sees, what comes back, and that nothing stays."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import pytest

from sandboxsdk import Home, Sandbox, Task
from sandboxsdk.errors import (
    BoxLost,
    CommandFailed,
    ExecStartError,
    ExecTimeout,
    SandboxError,
    UsageError,
)
from sandboxsdk.runtime import bubblewrap

from .marks import alive, until


@contextlib.contextmanager
def running(script: str, *arguments: str):
    """Run a Python program with this interpreter's modules; it does not outlive the block."""
    path = os.pathsep.join(part for part in sys.path if part)
    with subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
    ) as program:
        try:
            yield program
        except BaseException:
            program.kill()
            raise


# --- What comes back -------------------------------------------------------------------------


def test_streams_apart(box):
    """Standard output and error come back apart, as text and as bytes."""
    result = box.exec("echo out; echo err >&2")
    assert (result.stdout, result.stderr) == ("out\n", "err\n")
    assert (result.stdout_bytes, result.stderr_bytes) == (b"out\n", b"err\n")
    assert (result.exit_code, result.reason, result.signal) == (0, "exit", None)
    assert result.ok
    assert not result.truncated
    assert result.duration > 0


def test_a_str_is_for_the_shell_and_a_list_is_not(box):
    """A str is run by a shell, a list as it is."""
    assert box.exec("echo $((1 + 1)) | cat").stdout == "2\n"
    assert box.exec(["echo", "$HOME", "a  b", "*", ""]).stdout == "$HOME a  b * \n"


def test_every_exit_code(box):
    """All 256 exit codes come back; 128 + n is signal n and keeps its code."""
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda code: box.exec(["sh", "-c", f"exit {code}"]), range(256)))
    for code, result in enumerate(results):
        assert result.exit_code == code
        signalled = 128 < code <= 192
        assert result.reason == ("signal" if signalled else "exit")
        assert result.signal == (code - 128 if signalled else None)
        assert result.ok == (code == 0)


@pytest.mark.parametrize("name", ["KILL", "TERM", "SEGV", "ABRT", "PIPE", "INT", "HUP"])
def test_a_signal_is_told(box, name):
    """A program that dies by a signal says which."""
    number = signal.Signals[f"SIG{name}"]
    result = box.exec(["sh", "-c", f"kill -{name} $$"])
    assert (result.reason, result.signal, result.exit_code) == ("signal", number, 128 + number)


def test_no_signal_is_ignored_inside(box):
    """A program starts with no signal ignored or blocked, whatever Python does with its own."""
    status = box.exec(["grep", "-E", "^Sig(Ign|Blk)", "/proc/self/status"]).stdout
    # The C library keeps signals 32 and 33 to itself; no program can use them.
    seen = {int(line.split()[1], 16) & ~(3 << 31) for line in status.splitlines()}
    assert seen == {0}


def test_check_raises_with_the_result(box):
    """check=True turns a failure into an error that has the result and shows the last output."""
    with pytest.raises(CommandFailed, match="the reason") as caught:
        box.exec("echo partial; echo the reason >&2; exit 3", check=True)
    assert caught.value.result.exit_code == 3
    assert caught.value.result.stdout == "partial\n"
    assert box.exec("true", check=True).ok
    with pytest.raises(CommandFailed, match="signal"):
        box.exec("kill -9 $$", check=True)


def test_usage_is_told(box):
    """A result says what was used, as far as somebody counted."""
    usage = box.exec("i=0; while [ $i -lt 20000 ]; do i=$((i + 1)); done").usage
    assert usage.cpu_seconds is not None
    assert usage.cpu_seconds > 0
    assert usage.memory_bytes_max is not None
    assert usage.memory_bytes_max > 100_000


# --- What cannot start ------------------------------------------------------------------------


@pytest.fixture(params=["distribution", "wheel"])
def box_of_each_bubblewrap(request, home, monkeypatch):
    found = bubblewrap._candidates()
    wanted = [c for c in found if bool(c[1]) == (request.param == "wheel")][:1]
    if not wanted:
        pytest.skip(f"no bubblewrap of the {request.param} is installed")
    monkeypatch.setattr(bubblewrap, "_candidates", lambda: wanted)
    with Sandbox(home=home) as box:
        box.exec("touch plain; mkdir directory; printf '#!/no/such\\n' > script; chmod +x script")
        yield box


def test_commands_that_cannot_start(box_of_each_bubblewrap):
    """A missing program, one that is not executable, a directory, a missing interpreter and a
    missing working directory are typed errors that say so, whatever is kept of the output.
    """
    box = box_of_each_bubblewrap
    for command, cwd, reason in (
        (["no-such-program"], None, "No such file"),
        (["./plain"], None, "Permission denied"),
        (["./directory"], None, "Permission denied"),
        (["./script"], None, "No such file"),
        (["true"], "missing", "No such file"),
        (["true"], "plain", "Not a directory"),
    ):
        for max_output in (0, 5, 1000):
            with pytest.raises(ExecStartError, match=reason) as caught:
                box.exec(command, cwd=cwd, max_output=max_output)
            assert isinstance(caught.value, UsageError)
            assert caught.value.hint
    assert box.exec("true").ok


def test_a_program_that_talks_like_bubblewrap(box_of_each_bubblewrap):
    """A program that prints what bubblewrap prints when nothing starts, and fails, did start."""
    box = box_of_each_bubblewrap
    command = "echo 'bwrap: execvp x: No such file or directory' >&2; exit 1"
    assert box.exec(command).exit_code == 1
    assert box.exec("exit 127").exit_code == 127
    assert box.exec("exit 126").exit_code == 126


def test_an_argument_that_is_too_long(box):
    """An argument above the kernel's 128 KiB is refused before anything starts; below it works."""
    with pytest.raises(UsageError, match="128 KiB"):
        box.exec(["echo", "x" * 128 * 1024])
    assert len(box.exec(["echo", "x" * (128 * 1024 - 1)]).stdout) == 128 * 1024


def test_arguments_that_are_too_many(box):
    """8000 arguments work; more than the runtime takes, and more bytes than the kernel takes, are
    the caller's mistake and say so.
    """
    assert box.exec(["sh", "-c", "echo $#", *map(str, range(8000))]).stdout == "7999\n"
    with pytest.raises(UsageError, match="arguments"):
        box.exec(["true", *map(str, range(20_000))])
    with pytest.raises(ExecStartError, match="too long"):
        box.exec(["true", *["x" * 100_000] * 60])
    assert box.exec("true").ok


@pytest.mark.parametrize("timeout", [0, -1, True, "1", float("nan")])
def test_timeouts_that_cannot_be(box, timeout):
    """A timeout is a number of seconds above 0."""
    with pytest.raises(UsageError):
        box.exec("true", timeout=timeout)


@pytest.mark.parametrize("wrong", [{"max_output": -1}, {"input": 5}, {"on_output": "stdout"}])
def test_options_that_cannot_be(box, wrong):
    """An option of the wrong kind is refused, and nothing runs."""
    with pytest.raises(UsageError):
        box.exec("touch ran", **wrong)
    assert not box.files.exists("ran")


# --- What goes in -----------------------------------------------------------------------------


@pytest.mark.parametrize("data", ["grüße\n", b"\x00\xff", "", b"", bytearray(b"x"), None])
def test_input(box, data):
    """Text and bytes are read as they are; with nothing to read there is end of file at once."""
    expected = data.encode() if isinstance(data, str) else bytes(data or b"")
    assert box.exec(["cat"], input=data).stdout_bytes == expected


def test_huge_input(box):
    """20 MB of input arrive whole, while output flows back."""
    data = os.urandom(1024 * 1024) * 20
    assert box.exec(["sha256sum"], input=data).stdout.split()[0] == hashlib.sha256(data).hexdigest()
    echoed = box.exec(["cat"], input=data, max_output=len(data))
    assert echoed.stdout_bytes == data


@pytest.mark.parametrize("command", ["true", "exec 0<&-; sleep 0.05; echo done", "head -c 10"])
def test_input_that_is_not_read(box, command):
    """A program that does not read its input, or closes it, ends like any other."""
    assert box.exec(command, input=b"x" * 20_000_000).ok


def test_where_it_runs(box):
    """The working directory is the workspace, a directory below it, or an absolute one."""
    box.exec("mkdir -p sub/dir")
    assert box.exec(["pwd"]).stdout == "/workspace\n"
    assert box.exec(["pwd"], cwd="sub/dir").stdout == "/workspace/sub/dir\n"
    assert box.exec(["pwd"], cwd="/tmp").stdout == "/tmp\n"
    assert box.exec("pwd", cwd="/home/sandbox").stdout == "/home/sandbox\n"


def test_the_environment_is_exact(box, monkeypatch):
    """A command sees the promised variables and nothing of the caller's; PWD names its directory,
    as every shell would set it.
    """
    monkeypatch.setenv("OF_THE_CALLER", "secret")
    result = box.exec(["env", "-0"], cwd="/tmp")
    seen = dict(line.split("=", 1) for line in result.stdout.split("\0") if line)
    assert seen.pop("PWD") == "/tmp"
    assert seen == {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/home/sandbox",
        "USER": "sandbox",
        "LANG": "C.UTF-8",
        "TMPDIR": "/tmp",
    }


def test_variables_of_the_call_win(home):
    """A variable of the call goes over one of the Sandbox, and that over one of the task, and both
    over what every box has.
    """
    everywhere = dict.fromkeys("ABC", "task")
    task = Task.create("variables", env={**everywhere, "LANG": "task"}, home=home)
    with Sandbox(task, env={"B": "box", "C": "box"}) as box:
        assert box.exec("echo $A $B $C $LANG", env={"C": "call"}).stdout == "task box call task\n"
        assert box.exec("echo $A $B $C").stdout == "task box box\n"
        assert box.exec(["printenv", "HOME"], env={"HOME": "/tmp"}).stdout == "/tmp\n"


@pytest.mark.parametrize("value", ["two\nlines\n", "grüße", "\udcff\udcfe", "", "a'\"$(x)", "=="])
def test_odd_values(box, value):
    """A variable's value, and an argument, arrive byte for byte, whatever is in them."""
    raw = os.fsencode(value)
    assert box.exec(["sh", "-c", 'printf %s "$X"'], env={"X": value}).stdout_bytes == raw
    assert box.exec(["printf", "%s", value]).stdout_bytes == raw
    assert box.exec(["printf", "%s", raw]).stdout_bytes == raw


def test_output_that_is_not_utf8(box):
    """Bytes that are not UTF-8 survive in stdout as surrogates, and as they are in stdout_bytes."""
    result = box.exec(["printf", "%s", b"\xffa\xc3"])
    assert result.stdout_bytes == b"\xffa\xc3"
    assert os.fsencode(result.stdout) == b"\xffa\xc3"


def test_the_two_users(box):
    """The user is uid 1000 named sandbox, or root of the box, and neither has a capability."""
    for user, uid in (("sandbox", 1000), ("root", 0), (None, 1000)):
        result = box.exec("id -u; id -un; grep -E '^(Cap|NoNew)' /proc/self/status", user=user)
        number, name, *status = result.stdout.splitlines()
        assert (number, name) == (str(uid), user or "sandbox")
        rights = dict(line.split(":\t") for line in status)
        assert rights.pop("NoNewPrivs") == "1"
        assert {name: int(value, 16) for name, value in rights.items()} == dict.fromkeys(rights, 0)
    assert box.exec("touch by-root; stat -c %u by-root", user="root").stdout == "0\n"
    assert box.exec("stat -c %u by-root; echo x > by-root").stdout == "1000\n"


# --- Nothing stays ----------------------------------------------------------------------------

STUBBORN = {
    "setsid": "setsid sleep {0} & ",
    "double fork": "(setsid sh -c 'sleep {0} & sleep {0}' &) ; ",
    "ignores signals": "(trap '' TERM HUP INT QUIT; sleep {0}) & ",
    "stopped": "sleep {0} & kill -STOP $!; ",
}


@pytest.mark.parametrize("how", STUBBORN)
def test_a_timeout_leaves_nothing_alive(box, mark, how):
    """A timeout kills whatever the command has started, however it hides, and what was printed
    before is in the error.
    """
    command = STUBBORN[how].format(mark) + "echo before; echo error >&2; sleep " + mark
    with pytest.raises(ExecTimeout) as caught:
        box.exec(command, timeout=0.5)
    assert alive(mark) == []
    result = caught.value.result
    assert (result.reason, result.stdout, result.stderr) == ("timeout", "before\n", "error\n")
    assert not result.ok
    assert isinstance(caught.value, TimeoutError)
    assert box.exec("echo next").stdout == "next\n"


@pytest.mark.parametrize("how", STUBBORN)
def test_what_is_left_running_is_killed(box, mark, how):
    """Exec returns when its main process ended, with its output, and what it left in the
    background is dead, although it holds the pipes.
    """
    result = box.exec(STUBBORN[how].format(mark) + "sleep 0.02; echo out")
    assert alive(mark) == []
    assert (result.stdout, result.reason) == ("out\n", "exit")


def test_a_session_keeps_what_is_left_running(home, mark):
    """With session=True the background goes on from one exec to the next, until the block ends."""
    with Sandbox(home=home, session=True) as box:
        assert box.exec(f"sleep {mark} & echo out").stdout == "out\n"
        # The shell may not have turned into sleep yet.
        until(lambda: len(alive(mark)) == 1)
        box.exec("(while [ ! -e stop ]; do sleep 0.01; done; echo stopped > log) &")
        box.exec("touch stop")
        until(lambda: box.exec("cat log").stdout == "stopped\n")
        with pytest.raises(ExecTimeout):
            box.exec(f"sleep 1{mark} & sleep 1{mark}", timeout=0.3)
        assert alive(f"1{mark}") == []
        assert len(alive(mark)) == 1
    assert alive(mark) == []


def test_a_command_without_streams_is_waited_for(box):
    """A program that closes its output is not over before it ends."""
    assert box.exec("exec >&- 2>&-; sleep 0.1; touch finished").ok
    assert box.files.exists("finished")


def test_ctrl_c(tmp_path, mark):
    """Ctrl-C in the middle of an exec raises KeyboardInterrupt, leaves no process, and the box goes
    on.
    """
    script = """
import signal, sys
from sandboxsdk import Home, Sandbox
signal.signal(signal.SIGINT, signal.default_int_handler)
mark = sys.stdin.readline().strip()
with Sandbox(home=Home(sys.argv[1])) as box:
    for _ in range(2):
        try:
            box.exec(f"setsid sleep {mark} & echo x; sleep {mark}")
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        sys.stdin.readline()
    print(box.exec("echo next").stdout, flush=True)
"""
    with running(script, str(tmp_path / "home")) as program:
        program.stdin.write(f"{mark}\n")
        program.stdin.flush()
        for _ in range(2):
            until(lambda: len(alive(mark)) >= 2)
            program.send_signal(signal.SIGINT)
            assert program.stdout.readline() == "interrupted\n"
            assert alive(mark) == []
            program.stdin.write("\n")
            program.stdin.flush()
        assert program.stdout.read() == "next\n\n"
    assert program.returncode == 0


# --- Output -----------------------------------------------------------------------------------


def test_much_output_is_bounded(box):
    """100 MB of output are drained, the first bytes kept, and we do not grow by them."""
    tracemalloc.start()
    try:
        result = box.exec("head -c 100000000 /dev/zero; echo end >&2", max_output=1024 * 1024)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (len(result.stdout_bytes), result.truncated) == (1024 * 1024, True)
    assert (result.stderr, result.exit_code) == ("end\n", 0)
    assert peak < 8 * 1024 * 1024


def test_the_limit_is_exact(box):
    """Output of exactly the limit is whole; the limit counts for each stream; 0 keeps nothing."""
    result = box.exec("printf 12345; printf 123456 >&2", max_output=5)
    assert (result.stdout, result.stderr, result.truncated) == ("12345", "12345", True)
    assert not box.exec("printf 12345; printf 12345 >&2", max_output=5).truncated
    result = box.exec("printf x", max_output=0)
    assert (result.stdout, result.truncated, result.ok) == ("", True, True)
    assert not box.exec("true", max_output=0).truncated


def test_binary_output(box):
    """Every byte value comes back as it is."""
    data = bytes(range(256)) * 1000
    box.files.write("data", data)
    assert box.exec(["cat", "data"]).stdout_bytes == data


def test_output_is_told_as_it_comes(box):
    """on_output gets each stream's bytes in order, in the calling thread, while it runs."""
    box.exec("mkfifo gate")
    heard: list[tuple[str, bytes]] = []
    threads = set()

    def hear(stream: str, data: bytes) -> None:
        heard.append((stream, data))
        threads.add(threading.get_ident())
        if b"open" in data:
            # Only a running command can be answered.
            box.exec("echo go > gate")

    command = "echo one; echo two >&2; echo open; read answer < gate; echo $answer"
    result = box.exec(command, on_output=hear)
    told = {s: b"".join(d for name, d in heard if name == s) for s in ("stdout", "stderr")}
    assert told == {"stdout": b"one\nopen\ngo\n", "stderr": b"two\n"}
    assert result.stdout_bytes == told["stdout"]
    assert threads == {threading.get_ident()}


def test_an_exception_of_the_callback_kills_the_command(box, mark):
    """What on_output raises is raised, and the command is dead by then."""

    def angry(_stream: str, data: bytes) -> None:
        raise LookupError(data)

    with pytest.raises(LookupError):
        box.exec(f"setsid sleep {mark} & echo x; sleep {mark}", on_output=angry)
    assert alive(mark) == []
    with pytest.raises(LookupError):
        box.exec("echo last words", on_output=angry)
    assert box.exec("echo next").stdout == "next\n"


def test_output_goes_to_our_own_streams(box, capfdbinary):
    """on_output="inherit" copies both streams to the caller's, byte for byte, and keeps them."""
    result = box.exec(["sh", "-c", r"printf 'out\377'; echo err >&2"], on_output="inherit")
    assert capfdbinary.readouterr() == (b"out\xff", b"err\n")
    assert (result.stdout_bytes, result.stderr) == (b"out\xff", "err\n")


# --- Several at once, and what lasts ----------------------------------------------------------


def test_eight_threads(box):
    """Exec may be called from many threads at once, also for the call that starts the box."""

    def work(number: int) -> list[str]:
        return [box.exec(f"echo {number} {turn}").stdout for turn in range(5)]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(work, range(8)))
    assert found == [[f"{n} {turn}\n" for turn in range(5)] for n in range(8)]


def test_two_at_once_see_each_other(box):
    """Two commands that run at once share the workspace and /tmp."""

    def meet(mine: str, theirs: str) -> str:
        wait = f"while [ ! -s {theirs} ]; do sleep 0.01; done; cat {theirs}"
        return box.exec(f"echo {mine} > {mine}; {wait}", timeout=30).stdout

    with ThreadPoolExecutor(2) as pool:
        pairs = [("a", "/tmp/b"), ("/tmp/b", "a")]
        assert list(pool.map(lambda pair: meet(*pair), pairs)) == ["/tmp/b\n", "a\n"]


SERVER = """
import socket
server = socket.create_server(("127.0.0.1", 8123))
while True:
    client, _ = server.accept()
    client.sendall(b"hello from the server")
    client.close()
"""


def test_a_server_is_reached_from_the_next_command(box):
    """What one command serves on the box's loopback, another reaches; the host does not have it."""
    ask = "import socket; print(socket.create_connection(('127.0.0.1', 8123)).recv(100).decode())"
    with box.spawn(["python3", "-c", SERVER]) as server:
        server.wait_for(port=8123)
        assert box.exec(["python3", "-c", ask]).stdout == "hello from the server\n"
        assert box.exec(["python3", "-c", ask], user="root").ok
    assert "refused" in box.exec(["python3", "-c", ask]).stderr


def test_scratch_lasts_as_long_as_the_box(home):
    """/tmp and HOME are kept from one command to the next, and gone with the box; the workspace of
    a task stays.
    """
    task = Task.create("scratch", home=home)
    files = "/tmp/t ~/h /workspace/w /dev/shm/s"
    with Sandbox(task) as box:
        box.exec(f"for f in {files}; do echo kept > $f; done", check=True)
        assert box.exec(f"cat {files}").stdout == "kept\n" * 4
    with Sandbox(task) as box:
        assert box.exec("ls -A /tmp ~ /dev/shm | grep -v :").stdout.split() == []
        assert box.exec("cat w").stdout == "kept\n"


def test_a_box_is_used_inside_its_block(home):
    """Before and after its block a box refuses every use with a word on how to do it."""
    box = Sandbox(home=home)
    uses = (
        lambda: box.exec("true"),
        lambda: box.spawn("true"),
        box.diff,
        box.stats,
        box.describe,
        lambda: box.files.read_text("x"),
    )
    for _ in range(2):
        for use in uses:
            with pytest.raises(UsageError, match="with"):
                use()
        with box:
            box.exec("true", check=True)


def test_blocks_do_not_nest_but_repeat(home):
    """Entering a box that is open is refused and does it no harm; after its block it may be entered
    again, and begins anew.
    """
    box = Sandbox(home=home)
    with box:
        box.exec("touch here")
        with pytest.raises(UsageError, match="already"):
            box.__enter__()
        assert box.exec("ls").stdout == "here\n"
    with box:
        assert box.exec("ls").stdout == ""


def test_events_tell_what_happened(home):
    """Callbacks hear of the start, of each command and of the end, in the calling thread."""
    heard = []
    box = Sandbox(home=home)
    for event in ("entered", "exec", "spawn", "closed"):
        box.on(event, lambda facts, event=event: heard.append((event, facts.get("command"))))
    with pytest.raises(UsageError):
        box.on("nothing", print)
    with box:
        box.exec("exit 1")
        box.spawn(["true"]).wait()
    expected = [("entered", None), ("exec", "exit 1"), ("spawn", "true"), ("closed", None)]
    assert heard == expected


def test_two_boxes_of_one_home(home):
    """Boxes of one home run side by side and see nothing of each other."""
    with Sandbox(home=home) as one, Sandbox(home=Home(home.path)) as other:
        one.exec("echo one > f; echo t > /tmp/t")
        assert other.exec("ls -A . /tmp").stdout.split() == [".:", "/tmp:"]
        assert one.exec("cat f").stdout == "one\n"


def test_files_in_use_when_the_block_ends_reach_no_other_directory(home, tmp_path):
    """Who still holds the box's files after its end cannot write into what was opened since."""
    tmp_path.chmod(0o777)
    with Sandbox(home=home) as box:
        box.files.write("a", b"")
        tree = box._entered().trees["/workspace"]
    opened = [os.open(tmp_path, os.O_RDONLY) for _ in range(30)]
    try:
        with pytest.raises(SandboxError):
            tree.write(b"evil", [b"x"])
    finally:
        for descriptor in opened:
            os.close(descriptor)
    assert not list(tmp_path.glob("evil*"))


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_threads_that_go_on_after_the_block_get_typed_errors(home):
    """A box that one thread leaves refuses the others, at whatever moment it catches them."""
    seen: list[BaseException] = []

    def go_on(box: Sandbox) -> None:
        while True:
            try:
                box.exec("true")
                box.spawn("sleep 60")
            except UsageError:
                return
            except BoxLost:
                continue
            except BaseException as error:
                seen.append(error)
                return

    for _ in range(3):
        with Sandbox(home=home) as box:
            box.exec("true")
            threads = [threading.Thread(target=go_on, args=(box,)) for _ in range(3)]
            for thread in threads:
                thread.start()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
    assert seen == []


def test_usage_of_a_killed_command_is_not_made_up(box):
    """What the kernel counted is told; of a command that was killed it counts nothing."""
    spin = "i=0; while [ $i -lt 50000 ]; do i=$((i+1)); done"
    assert box.exec(spin).usage.cpu_seconds > 0
    with pytest.raises(ExecTimeout) as caught:
        box.exec("while :; do :; done", timeout=0.3)
    usage = caught.value.result.usage
    assert (usage.cpu_seconds, usage.memory_bytes_max) == (None, None)


def test_argument_that_is_no_bytes_is_refused(box):
    """A surrogate that stands for no byte is the caller's mistake; one that does is passed on."""
    with pytest.raises(UsageError, match="surrogate"):
        box.exec(["echo", "\ud800"])
    assert box.exec(["printf", "%s", "\udcff"]).stdout_bytes == b"\xff"
