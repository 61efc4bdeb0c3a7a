"""Documents on a terminal: tables, a small chart, and one sentence that says what follows. Takes plain records.

Everything goes to the console that is handed in; whether that is stdout or stderr, and whether it has colours, is its
owner's choice. Text that functions and users chose is printed as text: neither markup nor control characters work.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table
from rich.text import Text

from harness.reports import charts
from harness.reports import format as figures

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

_EIGHTHS = " ▏▎▍▌▋▊▉"
_BAR_WIDTH = 24
_WIDE = 110


def sweep(document: dict[str, Any], console: Console) -> None:
    """A sweep: the table of sizes, duration and cost as bars, what was rejected, the verdict and its warnings."""
    findings = document.get("findings") or {}
    recommendation = findings.get("recommendation") or {}
    tiers = charts.tiers_of(document)
    if tiers:
        console.print(_tier_table(tiers, recommendation, wide=console.width >= _WIDE, ascii_only=_ascii(console)))
        console.print(_bars(tiers, recommendation, ascii_only=_ascii(console)))
    for one in findings.get("rejected") or []:
        console.print(Text.assemble(("rejected ", "red"), (_name(one), "bold"), ": ", plain(one["why"])))
    _verdict(recommendation, console)
    if document.get("state") in {"interrupted", "failed"}:
        ended = "was interrupted" if document["state"] == "interrupted" else "failed"
        console.print(Text(f"The run {ended}: these figures are of what had been measured.", style="yellow"))


def runs(listed: Sequence[dict[str, Any]], console: Console) -> None:
    """The list of stored runs, as `RunSummary.as_dict` gives them."""
    if not listed:
        console.print(Text("No run is stored yet.", style="dim"))
        return
    table = _table(ascii_only=_ascii(console))
    for heading in ("run", "kind", "function", "state"):
        table.add_column(heading, overflow="fold")
    table.add_column("invocations", justify="right")
    table.add_column("memory sizes (MB)", overflow="fold")
    table.add_column("started")
    colours = {"running": "cyan", "complete": "green", "interrupted": "yellow", "failed": "red"}
    for one in listed:
        table.add_row(
            Text(one["run_id"], style="bold"),
            plain(one["kind"]),
            plain(one["function"]),
            Text(one["state"], style=colours.get(one["state"], "")),
            figures.count(one["invocations"]),
            ", ".join(map(str, one["memory_mb"])),
            figures.instant(one["created_at"]),
        )
    console.print(table)


def comparison(document: dict[str, Any], console: Console) -> None:
    """Two runs against each other, size by size, and the thresholds that were set."""
    findings = document.get("findings") or {}
    table = _table(ascii_only=_ascii(console))
    table.add_column("memory", justify="right")
    for heading in ("before, mean", "after, mean", "ratio", "95 % interval"):
        table.add_column(heading, justify="right")
    table.add_column("verdict")
    colours = {"faster": "green", "slower": "red"}
    for one in findings.get("tiers") or []:
        low, high, ratio = one.get("ci_low"), one.get("ci_high"), one.get("ratio")
        table.add_row(
            plain(_name(one)),
            _mean((one.get("baseline") or {}).get("duration_ms")),
            _mean((one.get("candidate") or {}).get("duration_ms")),
            _NONE if ratio is None else f"{ratio:.2f}",
            _NONE if low is None or high is None else f"{low:.2f} to {high:.2f}",
            Text(figures.words(str(one["verdict"])), style=colours.get(one["verdict"], "")),
        )
    console.print(table)
    for one in findings.get("thresholds") or []:
        console.print(
            Text.assemble(
                ("met " if one["met"] else "NOT MET ", "green" if one["met"] else "bold red"), plain(one["sentence"])
            )
        )


def plain(text: object) -> Text:
    """Text that cannot steer the terminal: every control character is shown as a replacement."""
    return Text("".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in str(text)))


_NONE = Text(figures.NOT_MEASURED, style="dim italic")


def _name(one: dict[str, Any]) -> str:
    variant = one.get("variant")
    return figures.memory(one["memory_mb"]) + (f" ({plain(variant)})" if variant else "")


def _ascii(console: Console) -> bool:
    return not console.encoding.lower().startswith("utf")


def _table(*, ascii_only: bool) -> Table:
    return Table(box=box.ASCII2 if ascii_only else box.SIMPLE_HEAD, header_style="bold", pad_edge=False)


def _cell(text: str) -> Text:
    return _NONE if text == figures.NOT_MEASURED else Text(text)


def _mean(stats: dict[str, Any] | None) -> Text:
    return _cell(figures.duration((stats or {}).get("mean")))


def _tier_table(tiers: list[charts.Tier], chosen: dict[str, Any], *, wide: bool, ascii_only: bool) -> Table:
    table = _table(ascii_only=ascii_only)
    table.add_column("memory", justify="right", no_wrap=True)
    table.add_column("n", justify="right")
    table.add_column("duration", justify="right")
    if wide:
        table.add_column("95 % interval", justify="right")
    table.add_column("median", justify="right")
    table.add_column("cost of a million", justify="right")
    table.add_column("throttled", justify="right")
    table.add_column("memory used", justify="right")
    if wide:
        table.add_column("init", justify="right")
    for one in tiers:
        stats = charts.judged(one) or {}
        low, high = stats.get("ci_low"), stats.get("ci_high")
        used = figures.memory(one.get("max_memory_used_mb"))
        cells = [
            plain(_name(one)),
            Text(figures.count(stats.get("n"))),
            _cell(figures.duration(stats.get("mean"))),
            Text("too few" if low is None or high is None else f"{figures.duration(low)} to {figures.duration(high)}"),
            _cell(figures.duration(stats.get("p50"))),
            _cell(figures.per_million(charts.judged_cost_usd(one))),
            _cell(figures.share(one.get("throttled_share"))),
            _cell(used),
            _mean((one.get("cold") or {}).get("init_ms")) if one.get("cold") else Text("-"),
        ]
        if not wide:
            del cells[8], cells[3]
        table.add_row(*cells, style="bold" if _is(one, chosen) else "")
    return table


def _bars(tiers: list[charts.Tier], chosen: dict[str, Any], *, ascii_only: bool) -> Text:
    durations = [(charts.judged(one) or {})["mean"] for one in tiers]
    costs = [charts.judged_cost_usd(one) for one in tiers]
    names = [plain(_name(one)) for one in tiers]
    left = max(len(name) for name in names)
    longest, dearest = max(durations), max((cost or 0 for cost in costs), default=0)
    text = Text()
    text.append(f"  {'':{left}}  {'duration':{_BAR_WIDTH + 10}}  cost of a million\n", style="dim")
    for one, name, ms, usd in zip(tiers, names, durations, costs, strict=True):
        mark = ("> " if ascii_only else "▸ ") if _is(one, chosen) else "  "
        text.append(mark, style="bold yellow")
        text.append(f"{name.plain:>{left}}  ", style="bold" if _is(one, chosen) else "")
        text.append(_bar(ms, longest, ascii_only=ascii_only), style="dark_orange3")
        text.append(f" {figures.duration(ms):<9}  ")
        text.append(_bar(usd or 0, dearest, ascii_only=ascii_only), style="dodger_blue2")
        text.append(f" {figures.per_million(usd)}\n")
    return text


def _bar(value: float, largest: float, *, ascii_only: bool) -> str:
    eighths = round(value / largest * _BAR_WIDTH * 8) if largest else 0
    if value:
        eighths = max(eighths, 1)
    if ascii_only:
        return ("#" * max(1 if value else 0, round(eighths / 8))).ljust(_BAR_WIDTH)
    whole, rest = divmod(eighths, 8)
    return ("█" * whole + (_EIGHTHS[rest] if rest else "")).ljust(_BAR_WIDTH)


def _is(one: dict[str, Any], chosen: dict[str, Any]) -> bool:
    return one["memory_mb"] == chosen.get("memory_mb") and one.get("variant") == chosen.get("variant")


def _verdict(recommendation: dict[str, Any], console: Console) -> None:
    if not recommendation:
        return
    console.print(Text.assemble(plain(recommendation["reason"]), style="bold"))
    if saving := recommendation.get("saving"):
        console.print(plain(saving["sentence"]))
    for one in recommendation.get("warnings") or []:
        remedy = f" What to do: {one['remedy']}." if one.get("remedy") else ""
        console.print(Text.assemble(("note: ", "yellow"), plain(one["sentence"]), (str(plain(remedy)), "dim")))
