"""Figures as text: the one place that formats money, bytes, durations, shares and times. Pure.

Nothing here rounds what is stored. None becomes `NOT_MEASURED` and never 0: whoever knows the reason prints it beside.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime

NOT_MEASURED = "not measured"
_KB, _MB, _GB = 1024, 1024**2, 1024**3
PER_MILLION = 1_000_000


def duration(ms: float | None) -> str:
    """Milliseconds with three digits that carry something: 0.42 ms, 57.7 ms, 1.30 s, 2 min 05 s."""
    if ms is None:
        return NOT_MEASURED
    if ms < 0:
        return "-" + duration(-ms)
    if round(ms, 1) < 1000:
        return f"{_significant(ms)} ms"
    if ms < 59_995:
        return f"{_significant(ms / 1000)} s"
    seconds = round(ms / 1000)
    hours, minutes = seconds // 3600, seconds // 60 % 60
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds % 60:02d} s"


def milliseconds(ms: float | None) -> str:
    """Milliseconds as a plain figure for a column that names its unit; two decimals, as REPORT lines have."""
    return NOT_MEASURED if ms is None else f"{ms:,.2f}"


def size(found: float | None) -> str:
    """Bytes; 1 MB = 1024 * 1024 bytes, as everywhere in Lambda's memory sizes."""
    if found is None:
        return NOT_MEASURED
    if found < 0:
        return "-" + size(-found)
    for unit, name in ((_GB, "GB"), (_MB, "MB"), (_KB, "KB")):
        if found >= unit:
            return f"{_significant(found / unit)} {name}"
    return f"{found:.0f} B"


def memory(mb: int | None) -> str:
    """A memory size, as Lambda prints it: a whole number of MB without separators."""
    return NOT_MEASURED if mb is None else f"{mb} MB"


def money(usd: float | None) -> str:
    """US dollars: cents from ten cents up, four digits that carry something below, never an exponent."""
    if usd is None:
        return NOT_MEASURED
    if usd < 0:
        return "-" + money(-usd)
    if usd == 0:
        return "$0"
    if round(usd, 2) >= 0.1:
        return f"${usd:,.2f}"
    return f"${_fixed(usd, 4)}"


def per_million(usd: float | None) -> str:
    """The cost of one invocation, told for a million of them: a figure that people can compare."""
    return NOT_MEASURED if usd is None else money(usd * PER_MILLION)


def share(found: float | None) -> str:
    """A share from 0 to 1 in per cent."""
    if found is None:
        return NOT_MEASURED
    percent = found * 100
    if percent and abs(percent) < 0.1:
        return "< 0.1 %" if percent > 0 else "> -0.1 %"
    return f"{percent:.1f} %" if abs(percent) < 10 else f"{percent:.0f} %"


def count(found: float | None) -> str:
    """A whole number with separators."""
    return NOT_MEASURED if found is None else f"{found:,.0f}"


def instant(iso: str | None) -> str:
    """A moment in UTC, to the second; what is no ISO 8601 is given back as it is."""
    if not iso:
        return NOT_MEASURED
    try:
        moment = datetime.fromisoformat(iso)
    except ValueError:
        return iso
    # Records and documents are in UTC; a zone that was left out means the same.
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def named(name: str, value: object) -> str:
    """A value formatted by the unit that stands in its name; what has no unit is given back as text."""
    if value is None:
        return NOT_MEASURED
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{words(str(key))}: {named(str(key), one)}" for key, one in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(named(name, one) for one in value) or "none"
    if name.endswith("_at"):
        return instant(str(value))
    return _by_unit(name.split("_"), value) if isinstance(value, int | float) else str(value)


def _by_unit(name: list[str], value: float) -> str:
    if "usd" in name:
        return money(value)
    match name:
        case [_, *_, "ms"]:
            return duration(value)
        case [_, *_, "s"]:
            return duration(value * 1000)
        case [_, *_, "bytes"]:
            return size(value)
        case [_, *_, "share"]:
            return share(value)
        case [_, *_, "mb"]:
            return f"{value:g} MB"
        case _:
            return f"{value:g}"


def label(name: str) -> str:
    """A field's name in plain words, without the unit that its value, formatted by `named`, brings along."""
    head, _, unit = name.rpartition("_")
    return words(head if head and unit in {"ms", "s", "bytes", "share", "mb", "usd", "at"} else name)


def words(name: str) -> str:
    """A closed-set value such as ``out_of_memory`` in plain words."""
    return name.replace("_", " ")


def _significant(found: float) -> str:
    """Three digits that carry something, at most two decimals."""
    if found >= 99.95:
        return f"{found:,.0f}"
    return f"{found:.1f}" if found >= 9.995 else f"{found:.2f}"


def _fixed(found: float, digits: int) -> str:
    decimals = digits - 1 - math.floor(math.log10(found))
    return f"{found:.{decimals}f}"
