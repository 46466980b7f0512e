"""A session: somebody works on a task, from attaching to detaching."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Self

from sandboxsdk.errors import SandboxError, UsageError
from sandboxsdk.ids import new_id
from sandboxsdk.journal import FILE, Journal
from sandboxsdk.model import check_name

from . import lease

_TIMEOUT_MAX = 1_000_000_000


class Session:
    """The hold of this process on a task, with the name of who works. A context manager."""

    def __init__(
        self,
        directory: str,
        task: str,
        *,
        agent: str | None,
        model: str | None,
        session: str | None,
        timeout: float,
    ) -> None:
        for what, value in (("agent", agent), ("model", model), ("session", session)):
            if value is not None:
                check_name(value, what=what)
        check_timeout(timeout)
        self.id: str = session or new_id()
        self.agent = agent
        self.model = model
        self._directory = directory
        self._task = task
        self._timeout = timeout
        self._lease: lease.Lease | None = None

    def __enter__(self) -> Self:
        if self._lease is not None:
            hint = "attach() once more; sessions of one task nest"
            raise UsageError(what="session", value=self.id, reason="is entered already", hint=hint)
        try:
            held = self._lease = lease.lease_of(self._directory, self._task)
            first = not held.held
            held.take(self, self._timeout, agent=self.agent)
            if first or self.agent is not None:
                self._note("attached", agent=self.agent, model=self.model)
        except BaseException:
            self._let_go()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            # A child that was forked inside the block holds nothing and writes nothing.
            if self.agent is not None and self._lease is not None and self._lease.held:
                self._note("detached")
        except SandboxError:
            if error is None:
                raise
        finally:
            self._let_go()

    def _note(self, kind: str, **facts: str | None) -> None:
        said = {name: value for name, value in facts.items() if value is not None}
        Journal(os.path.join(self._directory, FILE)).append(kind, {"session": self.id, **said})

    def _let_go(self) -> None:
        held, self._lease = self._lease, None
        if held is not None and held.pid == os.getpid():
            held.give_back(self)


def check_timeout(timeout: float) -> None:
    """Refuse what is no time to wait.

    Raises:
        UsageError: not a number of seconds, negative, or NaN.
    """
    number = isinstance(timeout, int | float) and not isinstance(timeout, bool)
    if not number or not 0 <= timeout <= _TIMEOUT_MAX:
        hint = f"pass seconds, 0 to {_TIMEOUT_MAX:,}"
        raise UsageError(
            what="timeout", value=timeout, reason="is not a number of seconds", hint=hint
        )
