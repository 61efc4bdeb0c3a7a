"""Lists in pages: ``MaxItems`` and ``Marker`` as Lambda reads them, ``NextMarker`` as it writes it."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from harness.api.faults import invalid

MAX_PAGE = 50
"""Lambda never gives more at a time, however many are asked for [API reference, ListFunctions]."""

T = TypeVar("T")
Key = list[Any]


def page(
    items: Iterable[T], params: dict[str, Any], *, key: Callable[[T], Key], member: str, shown: Callable[[T], Any]
) -> dict[str, Any]:
    """One page as an answer: the items after the marker, in the order of their keys, below ``member``.

    A marker names the last key that was given, so that nothing is skipped or shown twice where items come and go.
    """
    after = _read(params.get("Marker"))
    ordered = sorted(items, key=key)
    rest = [item for item in ordered if after is None or key(item) > after]
    size = min(params.get("MaxItems") or MAX_PAGE, MAX_PAGE)
    found: dict[str, Any] = {member: [shown(item) for item in rest[:size]]}
    if len(rest) > size:
        found["NextMarker"] = base64.urlsafe_b64encode(json.dumps(key(rest[size - 1])).encode()).decode("ascii")
    return found


def _read(marker: str | None) -> Key | None:
    if not marker:
        return None
    try:
        found = json.loads(base64.urlsafe_b64decode(marker))
    except (ValueError, binascii.Error, RecursionError):
        found = None
    if not isinstance(found, list) or not all(isinstance(one, int | str) for one in found):
        raise invalid(f"Invalid marker: {marker}")
    return found
