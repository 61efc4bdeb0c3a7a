"""Does it bias a sweep to measure sizes side by side? The same function with --parallel and without, in one process.

Short sweeps of three kinds alternate, in an order drawn anew for each round: side by side, one by one, and one by one once
more. The third shows what two equal measurements differ by on this host: the noise that side by side is held against.

    .venv/bin/python bench/parallel.py                  # a table; at most 200 seconds
    .venv/bin/python bench/parallel.py --work memory    # a function that waits for memory instead of computing
    .venv/bin/python bench/parallel.py --check          # exit code 8 if a difference is beyond noise, 9 if it cannot be told

See README.md beside this file for what is compared.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student

from harness.analysis.statistics import CONFIDENCE, MIN_EFFECT
from harness.errors import EngineError, HarnessError, NotMeasurable, ThresholdNotMet
from harness.experiments.sweep import SweepPlan, WeightedEvent, run
from harness.function import Function, load
from harness.invocation import Outcome
from harness.stand import Stand, work_base
from harness.tiers import tier

SCHEMA = "lambda-harness-bench/1"
HANDLER = """
BLOCK = bytearray(32 << 20)

def handler(event, context):
    number = 0
    for each in range(event.get("n", 0)):
        number += each * each
    for _ in range(event.get("copies", 0)):
        number += len(bytes(BLOCK))
    return number % 7
"""
MANIFEST = 'name = "parallel"\nruntime = "python3.13"\nhandler = "app.handler"\nmemory_mb = 512\ntimeout_s = 60\n'
EVENTS = {"cpu": {"n": 250_000}, "memory": {"copies": 3}}

TOGETHER, ALONE, AGAIN = "side by side", "one by one", "one by one, again"
_BUSY_LOAD = 0.5
"""A load average above this, before anything was started, spoils the figures."""
_MIN_ROUNDS = 4


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """Geometric mean of the rounds' ratios of medians, with a 95 % interval (Student's t on their logarithms)."""

    value: float
    low: float | None
    high: float | None
    rounds: int

    @property
    def within_noise(self) -> bool | None:
        if self.low is None or self.high is None:
            return None
        return self.low <= 1 <= self.high or abs(self.value - 1) < MIN_EFFECT


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def one_sweep(stand: Stand, options: argparse.Namespace, *, parallel: bool, seed: int) -> dict[int, float]:
    """The median duration of the warm invocations of each size."""
    plan = SweepPlan(
        memory_mb=tuple(options.memory),
        count=options.invocations,
        events=(WeightedEvent(event=json.dumps(EVENTS[options.work]).encode()),),
        seed=seed,
        parallel=parallel,
    )
    found: dict[int, list[float]] = {}
    with contextlib.closing(run(stand, plan)) as records:
        for each in records:
            if each.outcome is not Outcome.SUCCESS or each.duration_ms is None:
                raise EngineError(f"{each.memory_mb} MB: {each.outcome}: {each.error_message}")
            if not each.cold:
                found.setdefault(each.memory_mb, []).append(each.duration_ms)
    return {size: statistics.median(durations_ms) for size, durations_ms in found.items()}


def measure(stand: Stand, options: argparse.Namespace) -> list[dict[str, dict[int, float]]]:
    """One entry a round; stops when another round would not end in time."""
    rng = random.Random(options.seed)  # noqa: S311  # an order, not a secret
    begun, longest_s = time.monotonic(), 0.0
    rounds: list[dict[str, dict[int, float]]] = []
    while time.monotonic() - begun + longest_s < options.seconds:
        since = time.monotonic()
        kinds = [TOGETHER, ALONE, AGAIN]
        rng.shuffle(kinds)
        rounds.append(
            {kind: one_sweep(stand, options, parallel=kind == TOGETHER, seed=rng.randrange(2**31)) for kind in kinds}
        )
        longest_s = max(longest_s, time.monotonic() - since)
        say(f"round {len(rounds)} took {time.monotonic() - since:.0f} s")
    return rounds


def ratio(above: Sequence[float], below: Sequence[float]) -> Ratio:
    logs = np.log(np.asarray(above) / np.asarray(below))
    value, n = float(np.exp(logs.mean())), len(logs)
    if n < _MIN_ROUNDS:
        return Ratio(value=value, low=None, high=None, rounds=n)
    half = float(student.ppf(1 - (1 - CONFIDENCE) / 2, n - 1)) * float(logs.std(ddof=1)) / math.sqrt(n)
    return Ratio(value=value, low=value * math.exp(-half), high=value * math.exp(half), rounds=n)


def rows(rounds: Sequence[Mapping[str, Mapping[int, float]]], sizes: Sequence[int]) -> list[dict[str, Any]]:
    found = []
    for size in sizes:
        by_kind = {kind: [each[kind][size] for each in rounds] for kind in (TOGETHER, ALONE, AGAIN)}
        # Both sequential sweeps of a round are as good: their mean is what side by side is compared with.
        alone = [math.sqrt(a * b) for a, b in zip(by_kind[ALONE], by_kind[AGAIN], strict=True)]
        compared = ratio(by_kind[TOGETHER], alone)
        found.append(
            {
                "memory_mb": size,
                "together_ms": statistics.median(by_kind[TOGETHER]),
                "alone_ms": statistics.median(alone),
                "ratio": asdict(compared),
                "within_noise": compared.within_noise,
                "same_twice": asdict(ratio(by_kind[AGAIN], by_kind[ALONE])),
            }
        )
    return found


def table(made: Mapping[str, Any]) -> str:
    lines = [
        f"{'MB':>6} {'alone':>9} {'together':>9}  together / alone [95 %]     alone / alone [95 %]       within noise"
    ]
    lines += [
        f"{row['memory_mb']:>6} {row['alone_ms']:>6.1f} ms {row['together_ms']:>6.1f} ms  "
        f"{_interval(row['ratio']):26}  {_interval(row['same_twice']):26} "
        f"{ {True: 'yes', False: 'NO', None: 'too few rounds'}[row['within_noise']] }"
        for row in made["rows"]
    ]
    lines += ["", made["sentence"], *(f"warning: {each}" for each in made["warnings"])]
    return "\n".join(lines)


def _interval(found: Mapping[str, Any]) -> str:
    if found["low"] is None:
        return f"{found['value']:.3f}"
    return f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"


def sentence(found: Sequence[Mapping[str, Any]]) -> str:
    beyond = [row for row in found if row["within_noise"] is False]
    if any(row["within_noise"] is None for row in found):
        return f"Fewer than {_MIN_ROUNDS} rounds: nothing can be said."
    if not beyond:
        return "Side by side differs from one by one by no more than noise at every size."
    worst = max(beyond, key=lambda row: abs(math.log(row["ratio"]["value"])))
    return (
        f"Side by side is not the same at {', '.join(str(row['memory_mb']) for row in beyond)} MB, most at "
        f"{worst['memory_mb']} MB: {worst['ratio']['value']:.3f} times the duration."
    )


def _function(folder: Path) -> Function:
    folder.mkdir()
    (folder / "app.py").write_text(HANDLER)
    (folder / "function.toml").write_text(MANIFEST)
    return load(str(folder))


def measured(options: argparse.Namespace) -> dict[str, Any]:
    warnings = []
    if os.getloadavg()[0] > _BUSY_LOAD:
        warnings.append(f"load average {os.getloadavg()[0]:.2f} before the start: the figures are not to be trusted")
    with contextlib.ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="bench-", dir=work_base())))
        folder.chmod(0o755)
        stand = opened.enter_context(Stand(_function(folder / "parallel"), pull=False, progress=say))
        vcpus = sum(tier(size).vcpus for size in options.memory)
        if stand.facts.cpus < 2 or vcpus > stand.facts.cpus - 1:
            raise NotMeasurable(
                f"{vcpus:.2f} vCPUs do not fit beside the harness on {stand.facts.cpus} CPUs: nothing would run side by side",
                remedy="choose smaller sizes with --memory, or a host with more CPUs",
            )
        found = rows(measure(stand, options), options.memory)
        host = stand.host
    return {
        "schema": SCHEMA,
        "host": host,
        "work": options.work,
        "invocations": options.invocations,
        "seed": options.seed,
        "rows": found,
        "sentence": sentence(found),
        "warnings": warnings,
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Sizes swept side by side against one by one.")
    parser.add_argument("--work", choices=sorted(EVENTS), default="cpu", help="what the function does")
    parser.add_argument("--memory", type=int, nargs="+", default=[128, 256, 512, 768], help="sizes in MB")
    parser.add_argument("--invocations", type=int, default=6, help="warm ones a size and sweep")
    parser.add_argument("--seconds", type=float, default=200, help="begin no round that would end later")
    parser.add_argument("--seed", type=int, default=1769)
    parser.add_argument("--json", action="store_true", help="print one document")
    parser.add_argument("--check", action="store_true", help="exit code 8 if a difference is beyond noise")
    return parser.parse_args()


def main() -> int:
    options = _options()
    try:
        made = measured(options)
    except HarnessError as error:
        say(f"{error}\n  {error.remedy}")
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    print(json.dumps(made, indent=1) if options.json else table(made))
    verdicts = [row["within_noise"] for row in made["rows"]]
    if options.check and False in verdicts:
        return ThresholdNotMet.exit_code
    if options.check and None in verdicts:
        return NotMeasurable.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
