"""Documents on a terminal: tables, a small chart, and one sentence that says what follows. Takes plain records.

Everything goes to the console that is handed in; whether that is stdout or stderr, and whether it has colours, is its
owner's choice. Text that functions and users chose is printed as text: neither markup nor control characters work.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table
from rich.text import Text

from harness import format as figures
from harness.reports import charts, hosts, pages
from harness.reports import leak as leaks
from harness.reports import load as loads
from harness.reports import oom as ooms

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

_EIGHTHS = " ▏▎▍▌▋▊▉"
_BAR_WIDTH = 24
_WIDE, _MIDDLE = 110, 96


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
    _predicted(findings, tiers, console)
    _hosts(document, console)
    _verdict(recommendation, console)
    for one in hosts.whole_run_warnings(document):
        console.print(Text.assemble(("note: ", "yellow"), plain(one["sentence"])))
    _ended(document, console)


def _hosts(document: dict[str, Any], console: Console) -> None:
    """How the hosts compare; nothing where a single one measured."""
    rows = hosts.comparison(document)
    if not rows:
        return
    table = _table(ascii_only=_ascii(console))
    for heading in hosts.HEADS:
        table.add_column(heading, overflow="fold")
    colours = {"faster": "green", "slower": "red"}
    for row in rows:
        *cells, verdict, choice = row
        table.add_row(*map(plain, cells), Text(verdict, style=colours.get(verdict, "")), plain(choice))
    console.print(table)
    names, sizes = hosts.durations(document)
    medians = _table(ascii_only=_ascii(console))
    for heading in ("memory", *(f"median on {name}" for name in names), "apart"):
        medians.add_column(heading, justify="right")
    for name, cells in sizes:
        medians.add_row(plain(name), *map(plain, cells))
    console.print(medians)
    found = hosts.findings(document) or {}
    console.print(Text.assemble(plain(found["sentence"]), style="bold yellow" if found["mixed"] else ""))


def _predicted(findings: dict[str, Any], tiers: list[charts.Tier], console: Console) -> None:
    """The sizes that were predicted and not measured; nothing where every size was measured."""
    prediction = findings.get("prediction") or {}
    measured = {one["memory_mb"] for one in tiers}
    points = [one for one in prediction.get("tiers") or [] if one["memory_mb"] not in measured]
    if not points:
        return
    console.print(Text(f"Predicted from {prediction['from_memory_mb']} MB, not measured:", style="bold"))
    for one in points:
        between = f"{figures.duration(one['low_ms'])} to {figures.duration(one['high_ms'])}"
        console.print(f"  {one['memory_mb']:>6} MB  {figures.duration(one['duration_ms'])} ({between})")
    error = prediction.get("error")
    if error is not None:
        console.print(f"  mean error against the sizes that were measured: {figures.share(error)}")


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


# Leaks, kills, loads

_PLOT_WIDTH, _PLOT_HEIGHT = 72, 9
_LANE_WIDTH, _MOST_LANES = 64, 16
_TONES = {"good": "bold green", "bad": "bold red", "open": "bold yellow"}


def leak(document: dict[str, Any], console: Console) -> None:
    """A leak hunt: the verdict, the points, what else grew, and what it was."""
    findings = document.get("findings") or {}
    ascii_only = _ascii(console)
    headline, aside, tone = leaks.verdict(findings)
    _headline(headline, aside, tone, str(findings.get("reason") or ""), console)
    points = leaks.points(document)
    if len(points) > 1:
        kills = [one["sequence"] for one in leaks.kills(document)]
        said = f"{leaks.measure(document)} memory after each invocation"
        if any(one["kind"] == "warm-up" for one in points):
            said += "; . is warm-up, not judged"
        marks = {"judged": "o" if ascii_only else "●", "warm-up": ".", "another life": "," if ascii_only else "○"}
        console.print(
            _plot(
                [(one["sequence"], one["bytes"], marks[one["kind"]]) for one in points],
                crosses=kills,
                title=said,
                console=console,
            )
        )
    if also := findings.get("also"):
        table = _table(ascii_only=ascii_only)
        table.add_column("beside memory")
        table.add_column("verdict")
        for heading in ("first", "last", "an invocation", "until exhausted"):
            table.add_column(heading, justify="right")
        for one in also:
            what, until = str(one.get("what")), one.get("invocations_until_exhausted")
            table.add_row(
                plain(leaks.RESOURCES.get(what, what)),
                _verdict_text(one.get("verdict")),
                _cell(leaks.quantity(what, one.get("first"))),
                _cell(leaks.quantity(what, one.get("last"))),
                _cell(leaks.rate(one)),
                Text("-" if until is None else figures.count(until)),
            )
        console.print(table)
    if grown := pages.growth(findings)[:_MOST_GROWTH]:
        table = _table(ascii_only=ascii_only)
        table.add_column("what grew", overflow="fold")
        table.add_column("kind")
        table.add_column("an invocation", justify="right", no_wrap=True)
        table.add_column("objects", justify="right")
        table.add_column("where", overflow="fold")
        for row in grown:
            table.add_row(
                plain(row["name"]), plain(row["kind"]), Text(row["bytes"]), Text(row["count"]), plain(row["where"])
            )
        console.print(table)
        console.print(Text(leaks.PERTURBED, style="dim"))
    _notes(document, console)


_MOST_GROWTH = 12


def oom(document: dict[str, Any], console: Console) -> None:
    """A search for the smallest size: the answer, the tries, and the story of the kill below it."""
    findings = document.get("findings") or {}
    ascii_only = _ascii(console)
    headline, aside, tone = ooms.verdict(findings)
    _headline(headline, aside, tone, ooms.reason(findings), console)
    if tried := ooms.tries(document):
        table = _table(ascii_only=ascii_only)
        table.add_column("memory", justify="right", no_wrap=True)
        table.add_column("", no_wrap=True)
        table.add_column("peak memory", justify="right", no_wrap=True)
        table.add_column("what happened", overflow="fold")
        for one in tried:
            lived = bool(one.get("survived"))
            table.add_row(
                figures.memory(one["memory_mb"]),
                Text("survived" if lived else "died", style="green" if lived else "red"),
                _cell(figures.size(one.get("peak_memory_bytes"))),
                plain(one.get("why") or "-"),
            )
        console.print(table)
    story = ooms.kill(document)
    if story:
        console.print(Text(ooms.heading(story), style="bold"))
        samples = ooms.timeline(document)
        if len(samples) > 1:
            console.print(_curve(samples, story, console))
        for label, text in ooms.told(document):
            console.print(Text.assemble((f"{label}: ", "dim"), plain(text)))
        for title, _, text in pages.quotes(story):
            console.print(Text(f"{title}:", style="dim"))
            for line in text.splitlines()[-_MOST_LINES:]:
                console.print(Text.assemble("  ", plain(line.replace("\t", "  "))))
    _notes(document, console)


_MOST_LINES = 12


def load(document: dict[str, Any], console: Console) -> None:
    """A load: what became of the requests, how long they took, and the sandboxes as lanes over time."""
    findings = document.get("findings") or {}
    ascii_only = _ascii(console)
    verdict = pages.load_verdict(document)
    _headline(verdict["headline"], verdict["aside"], verdict["tone"], verdict["sentence"], console)
    _cards(verdict["cards"], console)
    left_out = set() if console.width >= _WIDE else {"min"} if console.width >= _MIDDLE else {"min", "p95"}
    parts = [part for part in pages.STATISTICS if part not in left_out]
    table = _table(ascii_only=ascii_only)
    table.add_column("time", no_wrap=True)
    for part in parts:
        table.add_column(pages.HEADS.get(part, part), justify="right", no_wrap=True)
    for name, stats in pages.samples(findings):
        cells = [
            figures.count((stats or {}).get(part)) if part == "n" else pages.statistic(stats, part) for part in parts
        ]
        table.add_row(Text(name), *map(_cell, cells))
    console.print(table)
    if lanes := loads.lanes(document):
        console.print(_lanes(document, lanes, console))
    generator = findings.get("generator") or {}
    console.print(
        Text.assemble(
            ("the harness itself: ", "dim"),
            f"{figures.share(generator.get('cpu_share'))} of this host's CPUs, which were busy for "
            f"{figures.share(generator.get('host_busy_share'))} with anything",
        )
    )
    _notes(document, console)


def _headline(headline: str, aside: str, tone: str, sentence: str, console: Console) -> None:
    console.print(Text.assemble((headline, _TONES.get(tone, "bold")), (f"  {aside}" if aside else "", "dim")))
    if sentence:
        console.print(plain(sentence))


def _cards(cards: list[tuple[str, str]], console: Console) -> None:
    """Figures with their names, as many on a line as fit whole."""
    text, used = Text(), 0
    for label, figure in cards:
        length = len(label) + len(figure) + 4
        if used and used + length > console.width:
            text.append("\n")
            used = 0
        text.append(f"{label} ", style="dim").append(figure, style="bold").append("   ")
        used += length
    text.rstrip()
    console.print(text)


def _verdict_text(verdict: object) -> Text:
    colour = {"leak": "bold red", "no_leak": "green"}.get(str(verdict), "yellow")
    return Text(str(plain(figures.words(str(verdict)))), style=colour)


def _notes(document: dict[str, Any], console: Console) -> None:
    for one in (document.get("findings") or {}).get("warnings") or []:
        remedy = f" What to do: {one['remedy']}." if one.get("remedy") else ""
        console.print(Text.assemble(("note: ", "yellow"), plain(one["sentence"]), (str(plain(remedy)), "dim")))
    for note in pages.notes(document):
        console.print(Text.assemble(("note: ", "yellow"), plain(note)))
    _ended(document, console)


def _ended(document: dict[str, Any], console: Console) -> None:
    if document.get("state") in {"interrupted", "failed"}:
        ended = "was interrupted" if document["state"] == "interrupted" else "failed"
        console.print(Text(f"The run {ended}: these figures are of what had been measured.", style="yellow"))


def _plot(points: list[tuple[int, int, str]], *, crosses: list[int], title: str, console: Console) -> Text:
    """Points over the invocation's number; a cross at the bottom for each kill."""
    width = max(20, min(_PLOT_WIDTH, console.width - 14))
    last = max([n for n, _, _ in points] + crosses)
    low, high = min(value for _, value, _ in points), max(value for _, value, _ in points)
    room = leaks.span(low / 2**20, high / 2**20) * 2**20
    middle = (high + low) / 2
    low, high = int(max(0, middle - room / 2)), int(middle + room / 2)
    grid = [[" "] * width for _ in range(_PLOT_HEIGHT)]
    for n, value, mark in points:
        column = min(width - 1, round((n - 1) / max(1, last - 1) * (width - 1)))
        row = _PLOT_HEIGHT - 1 - round((value - low) / max(1, high - low) * (_PLOT_HEIGHT - 1))
        grid[min(_PLOT_HEIGHT - 1, max(0, row))][column] = mark
    for n in crosses:
        grid[-1][min(width - 1, round((n - 1) / max(1, last - 1) * (width - 1)))] = "X"
    text = Text()
    text.append(f"{title}{'; X: killed' if crosses else ''}\n", style="dim")
    bar, corner, line = ("|", "+", "-") if _ascii(console) else ("│", "└", "─")
    for at, cells in enumerate(grid):
        label = figures.size(high) if at == 0 else figures.size(low) if at == _PLOT_HEIGHT - 1 else ""
        text.append(f"{label:>9} {bar}", style="dim").append("".join(cells).rstrip() + "\n")
    text.append(f"{'':>9} {corner}{line * width}\n", style="dim")
    text.append(f"{'':>10} {'1':<{width - len(str(last))}}{last}\n", style="dim")
    return text


def _curve(samples: list[dict[str, Any]], story: dict[str, Any], console: Console) -> Text:
    """Memory until the kill as columns; the top of the chart is the limit."""
    width = max(20, min(_PLOT_WIDTH, console.width - 14))
    ascii_only = _ascii(console)
    first, last = float(samples[0]["ms"]), float(samples[-1]["ms"])
    limit = story["memory_mb"] * 1024 * 1024
    highest: list[float | None] = [None] * width
    for one in samples:
        column = min(width - 1, int((one["ms"] - first) / max(1e-9, last - first) * width))
        highest[column] = max(highest[column] or 0.0, float(one["memory_bytes"]))
    level, levels = 0.0, []
    for value in highest:
        level = level if value is None else value
        levels.append(min(1.0, level / limit) * _PLOT_HEIGHT)
    killed_ms = story.get("killed_at_ms")
    at = None if killed_ms is None else min(width - 1, int((killed_ms - first) / max(1e-9, last - first) * width))
    steps, full = (" #", "#") if ascii_only else (" ▁▂▃▄▅▆▇", "█")
    bar, corner, line, limits = ("|", "+", "-", "=") if ascii_only else ("│", "└", "─", "┄")
    text = Text()
    text.append(f"{figures.memory(story['memory_mb']):>9} {limits}", style="red")
    text.append(limits * width if at is None else limits * at + "X" + limits * (width - at - 1), style="red")
    text.append("  limit, X: killed\n" if at is not None and console.width > width + 32 else "\n", style="red")
    for row in range(_PLOT_HEIGHT, 0, -1):
        cells = "".join(
            full if level >= row else steps[int((level - row + 1) * len(steps))] if level > row - 1 else " "
            for level in levels
        )
        text.append(f"{'':>9} {bar}", style="dim").append(cells.rstrip() + "\n", style="dodger_blue2")
    text.append(f"{'0 B':>9} {corner}{line * width}\n", style="dim")
    begin, end = figures.duration(first), figures.duration(last)
    text.append(f"{'':>10} {begin:<{width - len(end)}}{end}\n", style="dim")
    return text


def _lanes(document: dict[str, Any], lanes: list[loads.Lane], console: Console) -> Text:
    """Each sandbox as a row of slices of time: the fuller a slice, the more of it the sandbox was at work."""
    ascii_only = _ascii(console)
    width = max(20, min(_LANE_WIDTH, console.width - 12))
    origin, length = loads.zero(document), loads.span_s(document)
    shades = ".:+#" if ascii_only else "░▒▓█"
    marks = {"cold start": ("C", "bold yellow"), "failure": ("!", "bold magenta"), "kill": ("X", "bold red")}
    text = Text()
    text.append(
        "sandboxes over time: the fuller, the more at work; C cold start, X killed, ! other failure\n", style="dim"
    )
    for lane in lanes[:_MOST_LANES]:
        cells: list[tuple[str, str]] = [(" ", "")] * width
        shares = loads.busy_shares(lane, origin, length / width, width)
        if shares:
            for cell in range(min(shares), max(shares) + 1):
                share = shares.get(cell, 0.0)
                cells[cell] = (shades[min(3, int(share * 4))], "dodger_blue2" if share >= 0.25 else "dim")
        for kind, at in loads.events(lane, origin):
            cells[min(width - 1, int(at / length * width))] = marks[kind]
        text.append(f"{lane.number:>8} ", style="dim")
        for character, style in cells:
            text.append(character, style=style)
        text.append("\n")
    more = len(loads.all_lanes(document)) - min(len(lanes), _MOST_LANES)
    if more:
        text.append(f"{'':>8} and {more} more sandboxes\n", style="dim")
    end = figures.duration(length * 1000)
    text.append(f"{'':>8} {'0':<{max(1, width - len(end))}}{end}\n", style="dim")
    return text
