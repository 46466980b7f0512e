"""What a caller insists on, held against what a runtime can enforce. (pure)"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from sandboxsdk.errors import CapabilityError, UsageError
from sandboxsdk.model import LimitState, check_many

_KNOWN = ("memory", "pids", "cpus", "disk", "network")


def check_required(require: Sequence[str], states: Callable[[], Iterable[LimitState]]) -> None:
    """Refuse what is asked for and not enforced; `states` is asked only if something is.

    Raises:
        UsageError: a name that nothing has.
        CapabilityError: what it names is watched only, or not kept at all.
    """
    wanted = (require,) if isinstance(require, str) else require
    names = check_many(wanted, str, what="require")
    known = {state.name: state for state in states()} if names else {}
    for name in names:
        if name not in _KNOWN:
            hint = f"one of: {', '.join(_KNOWN)}"
            raise UsageError(what="require", value=name, reason="is unknown", hint=hint)
        state = known.get(name)
        if state is None or state.how != "enforced":
            reason = f"is {state.how} here: {state.by}" if state else "is not enforced here"
            raise CapabilityError(
                wanted=name,
                reason=reason,
                hint="see `python -m sandboxsdk doctor`, or leave it out of require=",
            )
