"""How close the emulated CPU lies to real Lambda's, over memory sizes; and what the rest is made of.

A handler that needs 16.0 ms of CPU, as the one that was measured on Lambda did (harness/data/lambda_cpu_curve.csv), at
sizes spread over the steep part of the curve. All sandboxes are open at once and frozen; rounds visit them in random
order, each invocation after a pause of random length, so that the phase of the period is spread as arrivals spread it.
Nothing else may run meanwhile.

    python bench/fidelity.py [--sizes 16] [--rounds 40] [--out docs/fidelity]
    python bench/fidelity.py --factors [--rounds 25]

Prints a line a size; writes PREFIX.csv and the curve over Lambda's as PREFIX.svg. With --factors one thing at a time is
done otherwise than the harness does it, side by side with the harness's way, to see what it is worth.
"""

from __future__ import annotations

import argparse
import csv
import importlib.resources
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from harness import Function, Overrides, Stand, load
from harness.analysis.predict import LAMBDA, Work, host_scheduler, predict
from harness.cgroup import locate
from harness.kernel import tick_hz
from harness.tiers import CPU_PERIOD_US, Tier, tier
from harness.vantage.reach import CgroupReach

CPU_MS = 16.0
SOURCE = """
import time


def handler(event, context):
    start, end = time.perf_counter(), time.process_time() + 0.016
    while time.process_time() < end:
        x = 0
        for i in range(300):
            x += i * i
    return (time.perf_counter() - start) * 1000
"""


def reference() -> dict[int, dict[str, float]]:
    text = importlib.resources.files("harness").joinpath("data/lambda_cpu_curve.csv").read_text()
    return {
        int(row["memory_mb"]): {name: float(value) for name, value in row.items()}
        for row in csv.DictReader(text.splitlines())
    }


def spread(sizes: list[int], count: int) -> list[int]:
    """Sizes in logarithmic steps below one vCPU: the steep part of the curve is at the small ones."""
    below = [size for size in sizes if size < 1769]
    return sorted({below[round(len(below) ** (i / (count - 1))) - 1] for i in range(count)})


def _function(stack: ExitStack) -> Function:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    folder.chmod(0o755)
    (folder / "app.py").write_text(SOURCE)
    return load(str(folder), Overrides(runtime="python3.13", handler="app.handler", timeout_s=60, name="fidelity"))


def measure(sizes: list[int], rounds: int, seed: int) -> dict[int, list[float]]:
    rng = random.Random(seed)  # noqa: S311  # an order, not a secret
    seen: dict[int, list[float]] = {size: [] for size in sizes}
    with ExitStack() as stack:
        stand = stack.enter_context(Stand(_function(stack)))
        boxes = {size: stack.enter_context(stand.sandbox(stand.variant(memory_mb=size))) for size in sizes}
        for box in boxes.values():
            box.invoke(b"{}")
        for _ in range(rounds):
            order = list(sizes)
            rng.shuffle(order)
            for size in order:
                time.sleep(0.03 + rng.random() * CPU_PERIOD_US / 1e6)
                record = boxes[size].invoke(b"{}")
                if record.outcome != "success":
                    raise SystemExit(f"{size} MB: {record.outcome}: {record.error_message}")
                seen[size].append(float(record.response))
    return seen


def _rie_inside(reach: CgroupReach, size: Tier) -> None:
    """The RIE is charged to the function's quota, as under a limit on the whole container."""
    group = Path(locate(reach.relay_pid or 0).directories.get("cpu") or locate(reach.relay_pid or 0).directories[""])
    reach.cgroup.set_cpu(size.cpu_quota_us, size.cpu_period_us)
    (group / "runtime" / "cgroup.procs").write_text(str(reach.relay_pid))


def _long_period(reach: CgroupReach, size: Tier) -> None:
    """What ``docker run --cpus`` does."""
    reach.cgroup.set_cpu(size.cpu_quota_us * 5, 100_000)


def _no_limit(reach: CgroupReach, size: Tier) -> None:
    reach.cgroup.set_cpu(None, size.cpu_period_us)


FACTORS: dict[str, Callable[[CgroupReach, Tier], None]] = {
    "as it is": lambda _reach, _size: None,
    "RIE inside the quota": _rie_inside,
    "100 ms period (--cpus)": _long_period,
    "no limit": _no_limit,
}


def factors(sizes: list[int], rounds: int, seed: int) -> dict[str, dict[int, list[float]]]:
    """The same handler, each factor and each size in a sandbox of its own, all interleaved; one more with fixed gaps."""
    rng = random.Random(seed)  # noqa: S311  # an order, not a secret
    with ExitStack() as stack:
        stand = stack.enter_context(Stand(_function(stack)))
        boxes = {}
        for name, change in FACTORS.items():
            for size in sizes:
                box = boxes[name, size] = stack.enter_context(stand.sandbox(stand.variant(memory_mb=size)))
                box.invoke(b"{}")
                reach = box.cell.reach
                if not isinstance(reach, CgroupReach):
                    raise SystemExit("--factors needs vantage host")
                change(reach, tier(size))
        seen: dict[str, dict[int, list[float]]] = {name: {size: [] for size in sizes} for name in FACTORS}
        for _ in range(rounds):
            order = list(boxes)
            rng.shuffle(order)
            for name, size in order:
                time.sleep(0.03 + rng.random() * CPU_PERIOD_US / 1e6)
                seen[name][size].append(float(boxes[name, size].invoke(b"{}").response))
        fixed = "gaps of 60 ms exactly"
        seen[fixed] = {}
        for size in sizes:
            box = boxes["as it is", size]
            seen[fixed][size] = []
            for _ in range(rounds):
                time.sleep(0.06)
                seen[fixed][size].append(float(box.invoke(b"{}").response))
    return seen


def show_factors(rounds: int, seed: int) -> None:
    there = reference()
    sizes = [min(there, key=lambda known, wanted=wanted: abs(known - wanted)) for wanted in (151, 310, 512, 752)]
    seen = factors(sizes, rounds, seed)
    print("mean against Lambda's mean".ljust(26), *(f"{size:>5} MB" for size in sizes), "  mean absolute")
    for name, by_size in seen.items():
        errors = [statistics.mean(by_size[size]) / there[size]["handler_mean"] - 1 for size in sizes]
        print(name.ljust(26), *(f"{error:+8.1%}" for error in errors), f"{statistics.mean(map(abs, errors)):15.1%}")


def draw(rows: list[dict[str, float]], lambda_rows: dict[int, dict[str, float]], path: Path) -> None:
    """Lambda's mean as a line with its 5 to 95 % band, ours as points with theirs."""
    import vl_convert

    everywhere = [
        {"memory_mb": size, "mean": row["handler_mean"], "p05": row["handler_p05"], "p95": row["handler_p95"]}
        for size, row in lambda_rows.items()
        if size < 1800
    ]
    here = [{name: row[name] for name in ("memory_mb", "mean", "p05", "p95")} for row in rows]
    axis_x = {
        "field": "memory_mb", "type": "quantitative", "title": "memory size (MB)",
        "scale": {"type": "log", "domain": [120, 1850], "nice": False},
        "axis": {"values": [128, 192, 256, 384, 512, 768, 1024, 1536, 1769], "format": "d", "grid": False},
    }  # fmt: skip

    def y(field: str) -> dict[str, object]:
        return {
            "field": field, "type": "quantitative", "title": "handler of 16.0 ms CPU (ms)",
            "scale": {"type": "log", "domain": [10, 260], "nice": False},
            "axis": {"values": [16, 20, 40, 60, 80, 100, 200], "format": "d"},
        }  # fmt: skip

    spec = {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "width": 720, "height": 380, "background": "white",
        "title": {
            "text": "Emulated CPU (points) over real Lambda (line)",
            "subtitle": "mean; bars and band from the 5th to the 95th percentile; both axes logarithmic",
            "anchor": "start",
        },
        "layer": [
            {"data": {"values": everywhere}, "mark": {"type": "area", "color": "#9ecae1", "opacity": 0.5},
             "encoding": {"x": axis_x, "y": y("p05"), "y2": {"field": "p95"}}},
            {"data": {"values": everywhere}, "mark": {"type": "line", "color": "#08519c"},
             "encoding": {"x": axis_x, "y": y("mean")}},
            {"data": {"values": here}, "mark": {"type": "rule", "color": "#d94801"},
             "encoding": {"x": axis_x, "y": y("p05"), "y2": {"field": "p95"}}},
            {"data": {"values": here}, "mark": {"type": "point", "color": "#d94801", "filled": True, "size": 60},
             "encoding": {"x": axis_x, "y": y("mean")}},
        ],
    }  # fmt: skip
    path.write_text(vl_convert.vegalite_to_svg(spec))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--factors", action="store_true", help="what single differences are worth, at four sizes")
    given = parser.parse_args()
    if given.factors:
        show_factors(given.rounds, given.seed)
        return 0
    there = reference()
    sizes = spread(sorted(there), given.sizes)
    seen = measure(sizes, given.rounds, given.seed)
    work = Work(serial_cpu_ms=CPU_MS, parallel_cpu_ms=0.0, wait_ms=0.0, parallelism=1)
    ours = host_scheduler(tick_hz() or 250)
    models = {
        "here": {point.memory_mb: point.duration_ms for point in predict(work, sizes, scheduler=ours)},
        "lambda": {point.memory_mb: point.duration_ms for point in predict(work, sizes, scheduler=LAMBDA)},
    }
    rows = []
    print("   MB   mean  p05   p50   p95 | Lambda mean p05   p50   p95 |  error | model here, on Lambda")
    for size in sizes:
        values, lam = sorted(seen[size]), there[size]
        row = {
            "memory_mb": size,
            "n": len(values),
            "mean": statistics.mean(values),
            "p05": values[round(0.05 * (len(values) - 1))],
            "p50": statistics.median(values),
            "p95": values[round(0.95 * (len(values) - 1))],
            "lambda_mean": lam["handler_mean"],
            "model_here": models["here"][size],
            "model_lambda": models["lambda"][size],
        }
        row["error"] = row["mean"] / row["lambda_mean"] - 1
        rows.append(row)
        print(
            f"{size:5} {row['mean']:6.1f} {row['p05']:5.1f} {row['p50']:5.1f} {row['p95']:5.1f} | {lam['handler_mean']:10.1f} "
            f"{lam['handler_p05']:5.1f} {lam['handler_p50']:5.1f} {lam['handler_p95']:5.1f} | {row['error']:+6.1%} | "
            f"{row['model_here']:6.1f} {row['model_lambda']:6.1f}"
        )
    error = statistics.mean(abs(row["error"]) for row in rows)
    own = statistics.mean(abs(row["mean"] / row["model_here"] - 1) for row in rows)
    gap = statistics.mean(abs(row["model_here"] / row["model_lambda"] - 1) for row in rows)
    print(f"mean absolute error against Lambda {error:.3f} over {len(rows)} sizes")
    print(f"against the model of this host {own:.3f}; between the models of this host and of Lambda {gap:.3f}")
    if given.out:
        with given.out.with_suffix(".csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()} for row in rows)
        draw(rows, there, given.out.with_suffix(".svg"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
