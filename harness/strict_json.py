"""JSON as RFC 8259 has it: Python reads NaN and the infinities besides, and gives up on depth in a way of its own. Pure."""

from __future__ import annotations

import json
from typing import Any


def loads(text: str | bytes) -> Any:
    """The value of a JSON text; ValueError (`json.JSONDecodeError` where a place can be named) for what is none."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON value")
