"""A command without isolation: what bubblewrap tells about a command, told by a process of ours."""

from __future__ import annotations

import json
import os
import signal
from typing import NoReturn

from sandboxsdk import syscalls as sc

from . import descendants
from .terminal import FROM_TERMINAL


def monitor(status: int, arguments: int, *, linger: bool) -> NoReturn:
    """Run a command and wait for it; say on `status` that it runs and, later, how it ended.

    What it leaves running is killed here, where it cannot be taken for another command's; with
    `linger`, or when this process is killed, it becomes the holder's.
    """
    if not linger:
        sc.prctl(sc.PR_SET_CHILD_SUBREAPER)
    with os.fdopen(arguments, "rb") as file:
        told = json.loads(file.read())
    os.set_inheritable(status, False)
    failed, says_failed = os.pipe2(os.O_CLOEXEC)
    program = os.fork()
    if program == 0:
        try:
            os.close(failed)
            os.chdir(told["cwd"])
            os.execvpe(told["argv"][0], told["argv"], told["env"])
        except OSError as error:
            text = f"{os.fsdecode(error.filename or told['argv'][0])}: {error.strerror}"
            os.write(says_failed, os.fsencode(text))
        finally:
            os._exit(127)
    for number in FROM_TERMINAL:
        # They are meant for the program; it has its own ways with them.
        signal.signal(number, signal.SIG_IGN)
    os.close(says_failed)
    with os.fdopen(failed, "rb") as file:
        trouble = file.read()
    if trouble:
        said = {"errno": 2, "text": f"execvp {trouble.decode('utf-8', 'surrogateescape')}"}
        _say(status, said)
        os._exit(1)
    _say(status, {"child-pid": os.getpid()})
    while True:
        pid, ended = os.wait()
        if pid == program:
            signalled = os.WIFSIGNALED(ended)
            code = 128 + os.WTERMSIG(ended) if signalled else os.WEXITSTATUS(ended)
            if not linger:
                descendants.end_all()
            _say(status, {"exit-code": code})
            os._exit(0)


def _say(status: int, said: dict[str, object]) -> None:
    os.write(status, json.dumps(said).encode() + b"\n")
