"""What the harness costs: the same hello-world function under plain `docker run`, this harness and SAM CLI, in one run.

Measurements are interleaved, in an order that rotates from round to round, so that a host that gets busier or slower
meets every subject alike; what counts are the ratios. Run it on a machine that has nothing else to do:

    .venv/bin/python bench/overhead.py            # a table
    .venv/bin/python bench/overhead.py --check    # exit code 8 if an aim is missed, 9 if one could not be judged

See README.md beside this file for what exactly is timed.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import gc
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import subjects  # beside this file; neither is part of the package

from harness.engine import images
from harness.errors import EngineError, HarnessError, NotMeasurable, ThresholdNotMet
from harness.function import Function, load
from harness.invocation import Outcome
from harness.sandbox import Sandbox
from harness.stand import Stand, work_base

SCHEMA = "lambda-harness-bench/1"
HANDLER = 'def handler(event, context):\n    return {"message": "hello world"}\n'
MANIFEST = 'name = "hello"\nruntime = "python3.13"\nhandler = "app.handler"\nmemory_mb = {memory_mb}\ntimeout_s = 30\n'

RAW, RAW_PORT, CURL = "raw: request", "raw: request, published port", "raw: curl command"
FROZEN, UNFROZEN = "harness: invocation, frozen between", "harness: invocation, not frozen"
THAW, FREEZE, PAUSES, CALL = (
    "harness: thaw",
    "harness: freeze",
    "harness: freeze + thaw",
    "harness: whole invoke() call",
)
SAM_WARM = "SAM CLI: start-lambda, warm container"
DOCKER_RUN, INVOKE = "raw: docker run, response, docker rm", "harness: lambda-harness invoke"
SAM_INVOKE, HELP = "SAM CLI: sam local invoke", "harness: lambda-harness --help"

_WARM_UP = 5
_RESAMPLES = 2000
_BUSY_LOAD = 0.5
"""A load average above this, before anything was started, spoils the figures."""


@dataclass(frozen=True, kw_only=True)
class Aim:
    """``subject``'s median, divided by ``base``'s if there is one, is at most ``limit`` (a factor, or ms)."""

    what: str
    subject: str
    base: str = ""
    limit: float


AIMS = (
    Aim(what="warm, frozen invocation against a raw request", subject=FROZEN, base=RAW, limit=1.5),
    Aim(what="freeze and thaw together", subject=PAUSES, limit=1.0),
    Aim(what="whole invoke command against plain docker", subject=INVOKE, base=DOCKER_RUN, limit=2.0),
    Aim(what="lambda-harness --help", subject=HELP, limit=250.0),
)
BASES = {
    **dict.fromkeys((RAW_PORT, CURL, FROZEN, UNFROZEN, CALL, SAM_WARM), RAW),
    **dict.fromkeys((INVOKE, SAM_INVOKE), DOCKER_RUN),
}
"""What each row's ratio is taken to."""
ORDER = (
    RAW,
    RAW_PORT,
    CURL,
    FROZEN,
    UNFROZEN,
    CALL,
    THAW,
    FREEZE,
    PAUSES,
    SAM_WARM,
    DOCKER_RUN,
    INVOKE,
    SAM_INVOKE,
    HELP,
)


@dataclass(kw_only=True)
class Found:
    """Samples in ms by row, each with the round it was taken in; and what could not be measured, in sentences."""

    samples: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    host: dict[str, Any] = field(default_factory=dict)
    image: str = ""
    vantage: str = ""

    def add(self, row: str, number: int, taken_ms: float | None) -> None:
        if taken_ms is not None:
            self.samples.setdefault(row, []).append((number, taken_ms))

    def values(self, row: str) -> list[float]:
        return [taken for _, taken in self.samples.get(row, [])]


# -- measuring ------------------------------------------------------------------------------------------------------------


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


Rows = dict[str, float | None]
Subject = tuple[int, Callable[[], Rows]]
"""Measured in every n-th round; gives the rows of one measurement, in ms."""


def interleave(found: Found, *, warm_up: int, rounds: int, gap_s: float, every: dict[str, Subject]) -> None:
    """Measure each subject once a round, starting with another one each time; one that fails is left out from there on."""
    left = dict(every)
    for number in range(-warm_up, rounds):
        names = list(left)
        shift = number % max(1, len(names))
        for name in names[shift:] + names[:shift]:
            nth, measure = left[name]
            if number % nth:
                continue
            time.sleep(gap_s)
            try:
                rows = measure()
            except (EngineError, OSError) as error:
                found.missing.append(f"{name}: stopped in round {number + 1}: {error}")
                del left[name]
                continue
            if number >= 0:
                for row, taken_ms in rows.items():
                    found.add(row, number, taken_ms)


def command_ms(*words: str) -> float:
    """The whole of a command, from its start to its end."""
    begin = time.perf_counter()
    subjects.command(*words)
    return (time.perf_counter() - begin) * 1e3


def program(found: Found) -> tuple[str, ...]:
    """`lambda-harness` of this very environment."""
    script = Path(sys.executable).with_name("lambda-harness")
    if script.is_file():
        return (str(script),)
    found.warnings.append(f"there is no {script}: 'python -m harness' was timed instead")
    return (sys.executable, "-m", "harness")


def measure_commands(
    found: Found, options: argparse.Namespace, stand: Stand | None, sam: subjects.Sam | None, image_id: str
) -> None:
    """Whole commands, each from nothing to nothing."""
    harness = program(found)
    every: dict[str, Subject] = {HELP: (1, lambda: {HELP: command_ms(*harness, "--help")})}
    if stand is not None:
        function, cpus = stand.function, stand.vantage.cpus()
        invoke = (*harness, "invoke", function.source, "--event", subjects.EVENT.decode(), "--no-pull")
        every[DOCKER_RUN] = (1, lambda: {DOCKER_RUN: subjects.whole_docker_command(function, image_id, cpus)})
        every[INVOKE] = (1, lambda: {INVOKE: command_ms(*invoke)})
    if sam is not None:
        every[SAM_INVOKE] = (1, lambda: {SAM_INVOKE: sam.invoke()})
    say(f"whole commands: {options.commands} rounds, and one for the caches")
    interleave(found, warm_up=1, rounds=options.commands, gap_s=0.1, every=every)


def measure_warm(
    found: Found, options: argparse.Namespace, stand: Stand, sam: subjects.Sam | None, image_id: str
) -> None:
    """Requests to sandboxes that are initialised already; the harness's is frozen before and after each of them."""
    with contextlib.ExitStack() as opened:
        raw = opened.enter_context(subjects.Raw(stand.function, image_id, stand.vantage.cpus()))
        frozen, unfrozen = opened.enter_context(stand.sandbox()), opened.enter_context(stand.sandbox())
        every: dict[str, Subject] = {
            RAW: (1, lambda: {RAW: raw.request_directly()}),
            RAW_PORT: (1, lambda: {RAW_PORT: raw.request()}),
            FROZEN: (1, lambda: _invocation(frozen)),
            UNFROZEN: (1, lambda: {UNFROZEN: _invocation(unfrozen, freeze=False)[FROZEN]}),
            CURL: (options.slow_every, lambda: {CURL: raw.curl()}),
        }
        if sam is not None:
            try:
                service = opened.enter_context(sam.service())
                every[SAM_WARM] = (options.slow_every, lambda: {SAM_WARM: service.request()})
            except (EngineError, OSError) as error:
                found.missing.append(f"{SAM_WARM}: {error}")
        say(f"warm requests: {options.requests} rounds, {_WARM_UP} before them to warm up")
        # A collection in the middle of a request would be the benchmark's, not the subject's.
        gc.collect()
        gc.disable()
        opened.callback(gc.enable)
        interleave(found, warm_up=_WARM_UP, rounds=options.requests, gap_s=options.gap_ms / 1e3, every=every)


def _invocation(sandbox: Sandbox, *, freeze: bool = True) -> Rows:
    begin = time.perf_counter()
    record = sandbox.invoke(subjects.EVENT, freeze_after=freeze)
    call_ms = (time.perf_counter() - begin) * 1e3
    if record.outcome is not Outcome.SUCCESS:
        raise EngineError(f"the invocation ended as {record.outcome}: {record.error_message}")
    pauses = None
    if record.freeze_ms is not None and record.thaw_ms is not None:
        pauses = record.freeze_ms + record.thaw_ms
    return {
        FROZEN: record.client_ms,
        THAW: record.thaw_ms,
        FREEZE: record.freeze_ms,
        PAUSES: pauses,
        CALL: call_ms,
    }


def measure(options: argparse.Namespace) -> Found:
    found = Found()
    if os.getloadavg()[0] > _BUSY_LOAD:
        found.warnings.append(
            f"load average {os.getloadavg()[0]:.2f} before the start: the figures are not to be trusted"
        )
    with contextlib.ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="bench-", dir=work_base())))
        folder.chmod(0o755)
        function = _function(folder / "hello", options.memory)
        stand, image = _stand(opened, found, options, function)
        sam = None
        if options.no_sam:
            found.missing.append("SAM CLI: left out by --no-sam")
        elif stand is not None and image is not None:
            sam = _sam(opened, found, stand, image, folder)
        image_id = image.image_id if image is not None else ""
        measure_commands(found, options, stand, sam, image_id)
        if stand is not None:
            measure_warm(found, options, stand, sam, image_id)
    return found


def _function(folder: Path, memory_mb: int) -> Function:
    folder.mkdir()
    (folder / "app.py").write_text(HANDLER)
    (folder / "function.toml").write_text(MANIFEST.format(memory_mb=memory_mb))
    return load(str(folder))


def _stand(
    opened: contextlib.ExitStack, found: Found, options: argparse.Namespace, function: Function
) -> tuple[Stand | None, images.ResolvedImage | None]:
    try:
        stand = opened.enter_context(Stand(function, vantage=options.vantage, pull=False, progress=say))
        image = images.resolve(stand.engine.docker, function.runtime, function.architecture, pull=False)
    except EngineError as error:
        found.missing.append(f"everything that needs a container: {error} ({error.remedy})")
        return None, None
    found.host, found.image, found.vantage = stand.host, image.reference, stand.vantage.name
    if stand.vantage.name != "host":
        found.warnings.append("freezing goes through the engine here: those aims hold for vantage host")
    return stand, image


def _sam(
    opened: contextlib.ExitStack, found: Found, stand: Stand, image: images.ResolvedImage, folder: Path
) -> subjects.Sam | None:
    try:
        executable = subjects.install_sam(say)
        rooms = folder / "sam"
        rooms.mkdir()
        return opened.enter_context(subjects.sam(executable, stand.function, image.reference, rooms))
    except HarnessError as error:
        found.missing.append(f"SAM CLI {subjects.SAM_VERSION}: {error}")
        return None


# -- findings -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """Of two medians over the rounds that have both, with a 95 % interval from resampling those rounds."""

    value: float
    low: float
    high: float
    rounds: int


def ratio(found: Found, row: str, base: str) -> Ratio | None:
    above, below = dict(found.samples.get(row, [])), dict(found.samples.get(base, []))
    both = sorted(above.keys() & below.keys())
    if not both:
        return None
    top, bottom = np.array([above[each] for each in both]), np.array([below[each] for each in both])
    picked = np.random.default_rng(1769).integers(len(both), size=(_RESAMPLES, len(both)))
    resampled = np.median(top[picked], axis=1) / np.median(bottom[picked], axis=1)
    low, high = np.percentile(resampled, (2.5, 97.5))
    value = float(np.median(top) / np.median(bottom))
    return Ratio(value=value, low=float(low), high=float(high), rounds=len(both))


def row_of(found: Found, name: str) -> dict[str, Any] | None:
    values = found.values(name)
    if not values:
        return None
    p10, p90 = np.percentile(values, (10, 90))
    base = BASES.get(name)
    against = ratio(found, name, base) if base else None
    return {
        "name": name,
        "n": len(values),
        "median_ms": statistics.median(values),
        "min_ms": min(values),
        "p10_ms": float(p10),
        "p90_ms": float(p90),
        "max_ms": max(values),
        "base": base,
        "ratio": None if against is None else asdict(against),
    }


def judged(found: Found) -> list[dict[str, Any]]:
    """Each aim with what was found; ``met`` is None where it could not be judged."""
    results = []
    for aim in AIMS:
        values = found.values(aim.subject)
        if aim.base:
            against = ratio(found, aim.subject, aim.base)
            value = None if against is None else against.value
        else:
            value = statistics.median(values) if values else None
        # What the engine's API takes to pause is not what these aims are about.
        if aim.subject in (FROZEN, PAUSES) and found.vantage != "host":
            value = None
        unit = "x" if aim.base else "ms"
        met = None if value is None else value <= aim.limit
        results.append({"aim": aim.what, "limit": aim.limit, "unit": unit, "value": value, "met": met})
    return results


def document(found: Found, options: argparse.Namespace) -> dict[str, Any]:
    rows = [row for name in ORDER if (row := row_of(found, name)) is not None]
    return {
        "schema": SCHEMA,
        "created_at": datetime.datetime.now(datetime.UTC).isoformat(),
        "host": found.host,
        "image": found.image,
        "memory_mb": options.memory,
        "sam_version": None if options.no_sam else subjects.SAM_VERSION,
        "rows": rows,
        "aims": judged(found),
        "missing": found.missing,
        "warnings": found.warnings,
        "samples_ms": {name: [round(taken, 4) for taken in found.values(name)] for name in found.samples},
    }


def table(made: dict[str, Any]) -> str:
    """The document, for people."""
    width = max([len(row["name"]) for row in made["rows"]], default=0)
    lines = [f"{'ms':{width}}  {'median':>9} {'p10':>9} {'p90':>9} {'n':>5}  ratio of medians [95 %]"]
    for row in made["rows"]:
        line = f"{row['name']:{width}}  {_ms(row['median_ms'])} {_ms(row['p10_ms'])} {_ms(row['p90_ms'])} {row['n']:>5}"
        against = row["ratio"]
        if against is not None:
            line += f"  {against['value']:.2f} x [{against['low']:.2f}, {against['high']:.2f}] of '{row['base']}'"
        lines.append(line)
    lines.append("")
    words = {True: "met", False: "MISSED", None: "not judged"}
    for aim in made["aims"]:
        value = "-" if aim["value"] is None else f"{aim['value']:.2f} {aim['unit']}"
        lines.append(f"{words[aim['met']]:>10}  {aim['aim']}: {value}, at most {aim['limit']:g} {aim['unit']}")
    lines += [f"not measured: {each}" for each in made["missing"]]
    lines += [f"warning: {each}" for each in made["warnings"]]
    return "\n".join(lines)


def _ms(value: float) -> str:
    return f"{value:9.3f}" if value < 100 else f"{value:9.0f}"


# -- the command ----------------------------------------------------------------------------------------------------------


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="overhead.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=200, metavar="N", help="rounds of warm requests (200)")
    parser.add_argument("--commands", type=int, default=10, metavar="N", help="rounds of whole commands (10)")
    parser.add_argument(
        "--slow-every", type=int, default=5, metavar="N", help="curl and SAM CLI take part in every N-th warm round (5)"
    )
    parser.add_argument("--gap-ms", type=float, default=5.0, metavar="MS", help="pause before each warm request (5)")
    parser.add_argument("-m", "--memory", type=int, default=1769, metavar="MB", help="memory size (1769: one vCPU)")
    parser.add_argument("--vantage", default="auto", choices=("auto", "host", "api"))
    parser.add_argument("--no-sam", action="store_true", help="without SAM CLI")
    parser.add_argument("--json", action="store_true", help="print one JSON document, samples included")
    parser.add_argument("--check", action="store_true", help="exit code 8 if an aim is missed, 9 if one is not judged")
    options = parser.parse_args(arguments)
    for name in ("requests", "commands", "slow_every"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} has to be at least 1")
    return options


def run(options: argparse.Namespace) -> None:
    """Measure and print. Raises `ThresholdNotMet` or `NotMeasurable` under --check."""
    made = document(measure(options), options)
    print(json.dumps(made, indent=2) if options.json else table(made))
    if not options.check:
        return
    if missed := [aim["aim"] for aim in made["aims"] if aim["met"] is False]:
        raise ThresholdNotMet(f"aims missed: {'; '.join(missed)}")
    if unjudged := [aim["aim"] for aim in made["aims"] if aim["met"] is None]:
        raise NotMeasurable(f"aims that could not be judged here: {'; '.join(unjudged)}")


def _on_signal(number: int, _frame: object) -> None:
    # Once: what is being removed must not be left half-way by an impatient second signal.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt(number)


def main() -> int:
    signal.signal(signal.SIGINT, _on_signal)
    signal.signal(signal.SIGTERM, _on_signal)
    try:
        run(parse(None))
    except HarnessError as error:
        say(f"overhead.py: {error}" + (f"\n  {error.remedy}" if error.remedy else ""))
        return error.exit_code
    except KeyboardInterrupt:
        say("overhead.py: interrupted; everything that was started has been removed")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
