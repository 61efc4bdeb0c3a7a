"""Documents as files: HTML, PNG, SVG, CSV, JSON, and the shape that aws-lambda-power-tuning gives its output.

The suffix of the file decides. An existing file is not overwritten unless that is asked for, and a file is never left half
written. `check_target` is for those who measure for half an hour before they have something to write.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import InvalidInput, UsageError
from harness.reports import charts, hosts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

_NOT_IN_CSV = {"log_tail", "report", "response", "notes"}
"""Text of many lines, or structures: they are in the JSON."""


def write(document: dict[str, Any], path: Path, *, force: bool = False) -> Path:
    """Write a document to a file and return its path; `UsageError` as `check_target`, `InvalidInput` if it fails."""
    make = check_target(path, force=force)
    content = make(document)
    try:
        _put(path, content, force=force)
    except FileExistsError as error:  # it appeared while the content was being made
        raise _exists(path) from error
    except OSError as error:
        raise InvalidInput(
            f"{path} cannot be written: {error.strerror or error}", remedy="choose another place, or make room"
        ) from error
    return path


def check_target(path: Path, *, force: bool = False) -> Callable[[dict[str, Any]], bytes]:
    """What would make the content of this file; `UsageError` where `write` could not or should not write it."""
    name = path.name.lower()
    known = sorted(_WRITERS, key=len, reverse=True)
    suffix = next((one for one in known if name.endswith(one) and name != one), None)
    if suffix is None:
        raise UsageError(
            f"{path}: what to write is chosen by the suffix, and {path.suffix or 'none'} is not known",
            remedy=f"use one of {', '.join(_WRITERS)}",
        )
    if path.is_dir():
        raise UsageError(f"{path} is a folder", remedy=f"name a file in it, such as {path / 'report.html'}")
    if path.exists() and not force:
        raise _exists(path)
    if not path.absolute().parent.is_dir():
        raise UsageError(
            f"there is no folder {path.absolute().parent} to write {path.name} into", remedy="make it first"
        )
    return _WRITERS[suffix]


def _exists(path: Path) -> UsageError:
    return UsageError(f"{path} exists already and was left as it is", remedy="choose another name, or give --force")


def _put(path: Path, content: bytes, *, force: bool) -> None:
    handle, name = tempfile.mkstemp(dir=path.absolute().parent, prefix=f".{path.name}.")
    beside = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        umask = os.umask(0)
        os.umask(umask)
        beside.chmod(0o666 & ~umask)  # mkstemp makes files for the owner alone; a report is like any other file
        if force:
            beside.replace(path)
        else:
            # link refuses an existing name, where replace would not.
            path.hardlink_to(beside)
    finally:
        beside.unlink(missing_ok=True)


def strict_json(found: Any, *, indent: int | None = None) -> str:
    """JSON in ASCII that every parser takes: NaN and infinities, which Python would write, become null."""
    separators = (",", ":") if indent is None else None
    try:
        return json.dumps(found, allow_nan=False, indent=indent, separators=separators, default=str)
    except ValueError:
        return json.dumps(_without_nan(found), indent=indent, separators=separators, default=str)


def _without_nan(found: Any) -> Any:
    if isinstance(found, float):
        return found if math.isfinite(found) else None
    if isinstance(found, dict):
        return {key: _without_nan(value) for key, value in found.items()}
    if isinstance(found, list | tuple):
        return [_without_nan(value) for value in found]
    return found


def invocations_csv(document: dict[str, Any]) -> str:
    """One row for each invocation, one column for each field of the record with a single value; null is empty."""
    records = document.get("invocations") or []
    names = list(dict.fromkeys(name for one in records for name in one if name not in _NOT_IN_CSV))
    return _csv(names, ([one.get(name) for name in names] for one in records))


def tiers_csv(document: dict[str, Any]) -> str:
    """One row for each memory size (and variant); statistics become columns such as ``duration_ms.p50``."""
    rows = [_flat(one) for one in (document.get("findings") or {}).get("tiers") or []]
    names = list(dict.fromkeys(name for row in rows for name in row))
    return _csv(names, ([row.get(name) for name in names] for row in rows))


def power_tuning(document: dict[str, Any]) -> dict[str, Any]:
    """The output of aws-lambda-power-tuning's state machine, with its ``stats`` [README-INPUT-OUTPUT of that project].

    ``power`` in MB, ``cost`` and ``averagePrice`` in USD for one invocation, ``duration`` in ms. ``executionCost`` is 0,
    since no state machine ran; ``lambdaCost`` is what these invocations would have cost on Lambda, null if one's cost is
    not known; there is no ``visualization`` but the HTML report. With variants, those of the recommended one.
    """
    recommendation = (document.get("findings") or {}).get("recommendation") or {}
    wanted = (recommendation.get("memory_mb"), recommendation.get("variant"))
    tiers = [one for one in hosts.basis(document) if one.get("variant") == wanted[1]]
    chosen = next((one for one in tiers if one["memory_mb"] == wanted[0]), None)
    if chosen is None:
        raise InvalidInput(
            f"run {document.get('run_id') or '(not stored)'} recommends no memory size, which power-tuning's output needs",
            remedy="export a sweep in which at least one memory size could run the function",
        )
    costs = [one.get("cost_usd") for one in document.get("invocations") or []]
    return {
        "results": {
            "power": chosen["memory_mb"],
            "cost": charts.judged_cost_usd(chosen),
            "duration": (charts.judged(chosen) or {}).get("mean"),
            "stateMachine": {
                "executionCost": 0.0,
                "lambdaCost": None if None in costs else math.fsum(costs),
                "visualization": None,
            },
            "stats": [
                {
                    "averagePrice": charts.judged_cost_usd(one),
                    "averageDuration": (charts.judged(one) or {}).get("mean"),
                    "value": one["memory_mb"],
                }
                for one in tiers
            ],
        }
    }


def _flat(found: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in found.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list | tuple):
            flat[prefix + name] = " ".join(map(str, value))
        else:
            flat[prefix + name] = value
    return flat


def _csv(names: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    # RFC 4180, with the line ends of this world; a number is written so that it reads back as the same number.
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([_cell(value) for value in row] for row in rows)
    return text.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    return value if value is None or isinstance(value, int | float) else str(value)


def _html(document: dict[str, Any]) -> bytes:
    from harness.reports import html

    return _bytes(html.render(document))


def _picture(document: dict[str, Any]) -> charts.Spec:
    from harness.reports import pictures

    return pictures.main_chart(document)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "replace")  # lone surrogates are no text


_WRITERS: dict[str, Callable[[dict[str, Any]], bytes]] = {
    ".html": _html,
    ".svg": lambda document: _bytes(charts.svg(_picture(document))),
    ".png": lambda document: charts.png(_picture(document)),
    ".csv": lambda document: _bytes(invocations_csv(document)),
    ".tiers.csv": lambda document: _bytes(tiers_csv(document)),
    ".json": lambda document: _bytes(strict_json(document, indent=2) + "\n"),
    ".power-tuning.json": lambda document: _bytes(strict_json(power_tuning(document), indent=2) + "\n"),
}
