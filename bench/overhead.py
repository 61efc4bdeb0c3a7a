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

HERE = Path(__file__).resolve().parent
with contextlib.suppress(ValueError):
    sys.path.remove(str(HERE.parent))
sys.path[:0] = [str(HERE.parent), str(HERE)]

import subjects  # noqa: E402  # beside this file; neither is part of the package

from harness import host  # noqa: E402
from harness.errors import EngineError, HarnessError, InvalidInput, NotMeasurable, ThresholdNotMet  # noqa: E402
from harness.function import Function, load  # noqa: E402
from harness.invocation import Outcome  # noqa: E402
from harness.stand import Stand, work_base  # noqa: E402

SCHEMA = "lambda-harness-bench/1"
HANDLER = 'def handler(event, context):\n    return {"message": "hello world"}\n'
MANIFEST = 'name = "hello"\nruntime = "python3.13"\nhandler = "app.handler"\nmemory_mb = {memory_mb}\ntimeout_s = 30\n'

RAW, RAW_PORT, CURL = "raw: request", "raw: request, published port", "raw: curl command"
FROZEN, UNFROZEN = "harness: invocation, frozen between", "harness: invocation, not frozen"
THAW, FREEZE, PAUSES, CALL = "harness: thaw", "harness: freeze", "harness: freeze + thaw", "harness: whole invoke() call"
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


@dataclass(kw_only=True)
class Found:
    """Samples in ms by row, each with the round it was taken in; and what could not be measured, in sentences."""

    samples: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
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


def interleave(found: Found, rounds: int, gap_s: float, every: dict[str, tuple[int, Callable[[int], None]]]) -> None:
    """Call each subject once in every n-th round, starting with another one each time; one that fails is left out."""
    left = dict(every)
    for number in range(rounds):
        names = list(left)
        shift = number % max(1, len(names))
        for name in names[shift:] + names[:shift]:
            nth, subject = left[name]
            if number % nth:
                continue
            time.sleep(gap_s)
            try:
                subject(number)
            except (EngineError, OSError) as error:
                found.missing.append(f"{name}: stopped in round {number + 1}: {error}")
                del left[name]


def timed(found: Found, row: str, measure: Callable[[], float]) -> Callable[[int], None]:
    return lambda number: found.add(row, number, measure())


def command_ms(*words: str) -> float:
    begin = time.perf_counter()
    subjects.command(*words)
    return (time.perf_counter() - begin) * 1e3


def executable() -> list[str]:
    """`lambda-harness` of this very environment."""
    script = Path(sys.executable).with_name("lambda-harness")
    if not script.is_file():
        raise InvalidInput(f"there is no {script}", remedy="install the harness into this environment: pip install -e .")
    return [str(script)]


def measure_commands(
    found: Found, options: argparse.Namespace, function: Function, stand: Stand | None, sam: subjects.Sam | None
) -> None:
    """Whole commands, each from nothing to nothing."""
    every: dict[str, tuple[int, Callable[[int], None]]] = {
        HELP: (1, timed(found, HELP, lambda: command_ms(*executable(), "--help")))
    }
    if stand is not None:
        source = str(Path(function.source or "").resolve())
        image, cpus = stand.image.image_id, stand.cpus
        words = (*executable(), "invoke", source, "--event", subjects.EVENT.decode(), "--no-pull")
        every[DOCKER_RUN] = (1, timed(found, DOCKER_RUN, lambda: subjects.whole_docker_command(function, image, cpus)))
        every[INVOKE] = (1, timed(found, INVOKE, lambda: command_ms(*words)))
    if sam is not None:
        every[SAM_INVOKE] = (1, timed(found, SAM_INVOKE, sam.invoke))
    say("whole commands: once each for the caches")
    interleave(Found(), 1, 0.0, {name: (1, lambda _, go=go: go(-1)) for name, (_, go) in every.items()})
    for row in every:
        found.samples.pop(row, None)
    say(f"whole commands: {options.commands} rounds of {', '.join(every)}")
    interleave(found, options.commands, 0.1, every)


def measure_warm(
    found: Found, options: argparse.Namespace, function: Function, stand: Stand, sam: subjects.Sam | None
) -> None:
    """Requests to sandboxes that have been initialised."""
