"""Text that people pass to several functions: wrong values are refused before anything happens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sandboxsdk.errors import UsageError

from .settings import check_name

_DESCRIPTION_LENGTH_MAX = 100_000


def check_description(description: Any) -> str:
    """Give text of bounded length.

    Raises:
        UsageError: it cannot be that.
    """
    if not isinstance(description, str) or "\0" in description:
        hint = "say it in words"
        reason = "must be text without NUL"
        raise UsageError(what="description", value=description, reason=reason, hint=hint)
    if len(description) > _DESCRIPTION_LENGTH_MAX:
        reason = f"must have at most {_DESCRIPTION_LENGTH_MAX} characters"
        hint = "keep the long text in a file of the workspace"
        raise UsageError(
            what="description", value=f"{description[:60]}...", reason=reason, hint=hint
        )
    return description


def check_labels(labels: Mapping[str, str] | None) -> dict[str, str]:
    """Give a plain dict of labels.

    Raises:
        UsageError: it cannot be that.
    """
    checked: dict[str, str] = {}
    if labels is not None and not isinstance(labels, Mapping):
        hint = 'pass a dict such as {"team": "web"}'
        raise UsageError(what="labels", value=labels, reason="must be a mapping", hint=hint)
    for key, value in (labels or {}).items():
        checked[check_name(key, what="label")] = check_name(value, what=f"label {key}")
    return checked
