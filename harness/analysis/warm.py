"""What survived the freeze: the responses of one sandbox side by side, and what grew. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from harness.invocation import Invocation

ABSENT = "(absent)"


def findings(invocations: Sequence[Invocation]) -> dict[str, Any]:
    """The findings of `warm`.

    ``responses``: one entry a value in the responses, named by its path, with its value in each invocation (the text
    ``(absent)`` where a response lacks it), ``changed`` whether it differs from one invocation to the next, and
    ``grew`` whether it is a list, text or number that only ever grew. ``memory``: what the kernel saw after each.
    """
    flat = [dict(_flatten(each.response, "response")) for each in invocations]
    paths = list(dict.fromkeys(path for each in flat for path in each))
    rows = []
    for path in paths:
        values = [each.get(path, ABSENT) for each in flat]
        rows.append(
            {
                "path": path,
                "values": values,
                "changed": any(a != b for a, b in pairwise(values)),
                "grew": _grew(values),
            }
        )
    return {
        "responses": rows,
        "survived": [row["path"] for row in rows if row["grew"]],
        "memory": [
            {
                "sequence": each.sequence,
                "resident_after_bytes": each.resident_after_bytes,
                "peak_rss_bytes": each.peak_rss_bytes,
                "threads": each.threads,
                "open_files": each.open_files,
                "tmp_bytes": each.tmp_bytes,
            }
            for each in invocations
        ],
        "sandboxes": len({each.sandbox_id for each in invocations}),
    }


def _flatten(value: Any, path: str) -> Iterable[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for name, member in value.items():
            yield from _flatten(member, f"{path}.{name}" if path != "response" else name)
    else:
        yield path, value


def _size(value: Any) -> float | None:
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int | float):
        return float(value)
    return float(len(value)) if isinstance(value, list | str) and value != ABSENT else None


def _grew(values: Sequence[Any]) -> bool:
    """Grew in every step; a list also has to begin with what it held before."""
    sizes = [_size(value) for value in values]
    if len(values) < 2 or any(size is None for size in sizes):
        return False
    known = [size for size in sizes if size is not None]
    if not all(a < b for a, b in pairwise(known)):
        return False
    return all(b[: len(a)] == a for a, b in pairwise(values) if isinstance(a, list) and isinstance(b, list))


def shorten(value: Any, width: int = 40) -> str:
    """A value as one cell of a table."""
    text = value if value == ABSENT else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= width else f"{text[: width - 1]}…"
