"""The two experiments of docs/experiments.md: measures them, or prints their tables from the stored runs.

    .venv/bin/python bench/experiments.py              the tables, from docs/results/
    .venv/bin/python bench/experiments.py --measure    measure anew (about two minutes; a machine that does nothing else)

Every figure is computed from the records of the runs; nothing is taken from their findings.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"
SAMPLE = "sample_functions/image_resize_python"
SWEEPS = {
    "over_allocation": ["-m", "1024,3008", "-n", "10"],
    "false_economy": [
        *("-m", "448,896", "-n", "10", "--timeout", "1", "--allowed-errors", "1"),
        *("-e", f"{SAMPLE}/events/default.json", "-e", f"{SAMPLE}/events/shrink_on_load.json"),
    ],
}
RETRIES = 2  # what Lambda does with a failed asynchronous invocation
EVENTS = 1_000_000
SHRUNK_BYTES = 315_933  # of the picture of 1600 x 1200 that comes of the half-size decoding
LOST_USD = 0.0001  # what an event that is never served costs its owner: ten cents for a thousand


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="measure anew and overwrite docs/results/")
    if parser.parse_args().measure:
        RESULTS.mkdir(exist_ok=True)
        for name, options in SWEEPS.items():
            place = RESULTS / f"{name}.json"
            report = ["--report", str(place), "--force"]
            subprocess.run([sys.executable, "-m", "harness", "sweep", SAMPLE, *options, *report], cwd=ROOT, check=True)
            place.write_text(place.read_text().replace(f"{ROOT}/", ""))  # where this checkout lies is nobody's business
    over_allocation(stored("over_allocation"))
    print()
    false_economy(stored("false_economy"))
    return 0


def stored(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return found


def warm(document: dict[str, Any], memory_mb: int) -> list[dict[str, Any]]:
    return [each for each in document["invocations"] if each["memory_mb"] == memory_mb and not each["cold"]]


def over_allocation(document: dict[str, Any]) -> None:
    rows = []
    for memory_mb in (1024, 3008):
        records = warm(document, memory_mb)
        duration_ms = statistics.fmean(each["duration_ms"] for each in records)
        cost = statistics.fmean(each["cost_usd"] for each in records)
        cpu = statistics.fmean(each["cpu_ms"] for each in records)
        rows.append((memory_mb, duration_ms, cpu, cost * EVENTS))
    (_, slow_ms, _, cheap), (_, fast_ms, _, dear) = rows
    print("over-allocation: one thread, 1024 MB and 3008 MB")
    table(
        ("memory", "mean duration", "CPU time", "a million", "a millisecond of a million"),
        [
            (f"{mb} MB", f"{ms:.0f} ms", f"{cpu:.0f} ms", f"${cost:.2f}", f"${cost / ms:.4f}")
            for mb, ms, cpu, cost in rows
        ],
    )
    print(f"{1 - fast_ms / slow_ms:.0%} less time for {dear / cheap - 1:.0%} more money")
    print(
        f"each of the {slow_ms - fast_ms:.0f} ms that were saved: ${(dear - cheap) / (slow_ms - fast_ms):.4f} a million"
    )


def false_economy(document: dict[str, Any]) -> None:
    print(
        f"false economy: {EVENTS:,} events, {RETRIES} retries of what failed, ${LOST_USD} for each that is never served"
    )
    rows = []
    for memory_mb in (896, 448):
        by_kind = kinds(document, memory_mb)
        tries = failed = lambda_usd = 0.0
        for records in by_kind:
            rate = statistics.fmean(each["outcome"] != "success" for each in records)
            cost = statistics.fmean(each["cost_usd"] for each in records)
            n = sum(rate**attempt for attempt in range(RETRIES + 1))
            tries += n / len(by_kind)
            failed += rate ** (RETRIES + 1) / len(by_kind)
            lambda_usd += n * cost / len(by_kind)
        survivors = statistics.fmean(
            each["cost_usd"] for each in warm(document, memory_mb) if each["outcome"] == "success"
        )
        lost = failed * EVENTS * LOST_USD
        rows.append(
            (
                f"{memory_mb} MB",
                f"${survivors * EVENTS:.2f}",
                f"{tries:.2f}",
                f"{failed:.0%}",
                f"${lambda_usd * EVENTS:.2f}",
                f"${lost:.2f}",
                f"${lambda_usd * EVENTS + lost:.2f}",
            )
        )
    table(("memory", "a million successes", "tries an event", "never served", "Lambda", "lost", "total"), rows)


def kinds(document: dict[str, Any], memory_mb: int) -> list[list[dict[str, Any]]]:
    """The invocations of a size by their event: the whole picture decoded, or shrunk on load.

    A record does not hold its event. The largest picture made from the whole one has another length; what timed out, without
    a response, was given the whole one, as the CPU time that it had used up says.
    """
    whole, shrunk = [], []
    for each in document["invocations"]:
        if each["memory_mb"] == memory_mb:
            is_shrunk = each["outcome"] == "success" and each["response"]["made"][0]["bytes"] == SHRUNK_BYTES
            (shrunk if is_shrunk else whole).append(each)
    return [whole, shrunk]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    for row in (header, *rows):
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))


if __name__ == "__main__":
    sys.exit(main())
