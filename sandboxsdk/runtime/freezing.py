"""Making what runs in a box stand still: by the cgroup freezer, or by the box's holder.

Both stop all or nothing, and say so when something cannot be stopped in time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, Protocol

from sandboxsdk import holder
from sandboxsdk.errors import BoxBusy, BoxLost, HostRefused, WaitTimeout

from .cgroup import BoxCgroup
from .running import readable

FREEZE_SECONDS_MAX = 5.0
_ANSWER_SECONDS_MAX = 30.0


# A message, and the descriptors that came with it.
Answer = tuple[dict[str, Any], list[int]]


class Freezer(Protocol):
    """A means to stop the processes of a box for a while."""

    def stop(self) -> bool:
        """Stop all; returns when all stand. False if there was nothing of the guest to stop.

        Raises:
            BoxBusy: one could not be stopped in time; all go on.
            BoxLost: the box is gone.
        """

    def go_on(self) -> None:
        """Let those go on that were stopped."""

    def disown(self) -> None:
        """In a forked child: let go of what we have, and leave the parent's processes alone."""


class Asking:
    """The caller's end of the talk with a holder about all that runs in its box.

    Args:
        box: its id, for errors.
    """

    def __init__(self, box: str, channel: holder.Channel) -> None:
        self.box = box
        self._channel = channel

    def ask(self, about: str) -> holder.Channel:
        """Ask; the answer comes on the channel that is given.

        Raises:
            BoxLost: the holder is gone.
            HostRefused: the kernel refused (descriptors).
        """
        mine, theirs = self._pair()
        try:
            self._send({"op": about}, theirs)
        except BaseException:
            mine.close()
            raise
        return mine

    @contextlib.contextmanager
    def prepared(self) -> Iterator[Callable[[dict[str, Any], float], Answer]]:
        """Give what asks once, within some seconds, and brings the answer with its descriptor.

        When it is called it needs no more descriptors of ours than it has.

        Raises:
            HostRefused: the kernel refused (descriptors).
            BoxLost: (when it is called) the holder is gone, or gave no answer in time.
        """
        mine, theirs = self._pair()

        def ask(message: dict[str, Any], seconds: float) -> Answer:
            self._send(message, theirs)  # And with its end we have room for one.
            if not readable(mine.fileno(), seconds):
                reason = f"its holder gave no answer within {seconds:g} s"
                raise BoxLost(box=self.box, reason=reason)
            return self._received(mine)

        try:
            yield ask
        finally:
            mine.close()
            theirs.drop()

    def _pair(self) -> tuple[holder.Channel, holder.Channel]:
        try:
            return holder.pair()
        except OSError as error:
            raise HostRefused(what="ask", path="a holder", reason=str(error)) from error

    def _send(self, message: dict[str, Any], theirs: holder.Channel) -> None:
        """Send a question with a channel for its answer, of which we let go."""
        try:
            self._channel.send(message, [theirs.fileno()])
        except OSError as error:
            raise BoxLost(box=self.box, reason="its holder is gone") from error
        finally:
            theirs.drop()

    def answer(self, channel: holder.Channel, seconds: float) -> dict[str, Any] | None:
        """Wait for an answer; None if none came in time.

        Raises:
            BoxLost: the holder is gone.
            HostRefused: the holder could not do it.
        """
        if not readable(channel.fileno(), seconds):
            return None
        return self._received(channel)[0]

    def _received(self, channel: holder.Channel) -> Answer:
        received = channel.receive()
        if received is None:
            raise BoxLost(box=self.box, reason="its holder is gone")
        message, descriptors = received
        if "errno" in message:
            raise HostRefused(what="ask", path="a holder", reason=message["text"])
        return message, descriptors

    def busy(self) -> bool:
        """Tell whether anything of the guest is alive; raises as `ask` and `answer`."""
        channel = self.ask("busy")
        try:
            message = self.answer(channel, _ANSWER_SECONDS_MAX)
        finally:
            channel.close()
        if message is None:
            reason = f"its holder gave no answer within {_ANSWER_SECONDS_MAX:g} s"
            raise BoxLost(box=self.box, reason=reason)
        return bool(message["busy"])


class CgroupFreezer:
    """Freezes by the box's cgroup."""

    def __init__(self, box: str, cgroup: BoxCgroup) -> None:
        self._box = box
        self._cgroup = cgroup

    def stop(self) -> bool:
        """See `Freezer.stop`."""
        try:
            self._cgroup.freeze(timeout=FREEZE_SECONDS_MAX)
        except WaitTimeout:
            _refuse(self._box, "a process")
        return True

    def go_on(self) -> None:
        self._cgroup.thaw()

    def disown(self) -> None:
        """See `Freezer.disown`."""


class HolderFreezer:
    """Has the holder send SIGSTOP, and SIGCONT to those that it reached."""

    def __init__(self, asking: Asking) -> None:
        self._asking = asking
        self._hold: holder.Channel | None = None

    def stop(self) -> bool:
        """See `Freezer.stop`."""
        hold = self._asking.ask("stop")
        try:
            message = self._asking.answer(hold, FREEZE_SECONDS_MAX)
            if message is None:
                # It knows no time: it goes on trying until we say that this is enough.
                hold.send({"op": "enough"})
                message = self._asking.answer(hold, FREEZE_SECONDS_MAX) or {}
                _refuse(self._asking.box, message.get("moving") or "a process")
            if "moving" in message:
                _refuse(self._asking.box, message["moving"])
        except OSError as error:
            hold.close()
            raise BoxLost(box=self._asking.box, reason="its holder is gone") from error
        except BaseException:
            hold.close()
            raise
        self._hold = hold
        return bool(message["busy"])

    def go_on(self) -> None:
        hold, self._hold = self._hold, None
        if hold is None:
            return
        with contextlib.suppress(OSError, BoxLost, HostRefused):
            hold.send({"op": "enough"})
            self._asking.answer(hold, FREEZE_SECONDS_MAX)
        hold.close()

    def disown(self) -> None:
        """See `Freezer.disown`."""
        if self._hold is not None:
            self._hold.drop()


def _refuse(box: str, name: str) -> NoReturn:
    hint = "what waits for a device or a network file system cannot be stopped; try again later"
    what = f"it could not be frozen ({name} does not stop)"
    raise BoxBusy(box=box, what=what, hint=hint)
