"""Init, memory and duration of a hello-world function here, beside what real Lambda had.

    .venv/bin/python bench/hello_world.py [--cold 20] [--json]

Each measurement is a cold start in a sandbox of its own; sizes and runtimes take turns. Medians here; means there, as its
authors give them. The reference is harness/data/lambda_hello_world.csv (zip packages of this machine's architecture).
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import statistics
import sys
import tempfile
from pathlib import Path

from harness import Overrides, Stand, load

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "harness/data/lambda_hello_world.csv"
SIZES_MB = (128, 256, 512, 1024)
MACHINE = {"aarch64": "arm64"}.get(platform.machine(), "x86_64")
RUNTIMES = {
    "python3.13": (
        "python313",
        "app.py",
        "def handler(event, context):\n    return {'statusCode': 200, 'body': 'hello'}\n",
    ),
    "nodejs22.x": (
        "nodejs22x",
        "app.mjs",
        "export const handler = async () => ({ statusCode: 200, body: 'hello' });\n",
    ),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cold", type=int, default=20, help="cold starts of each size (default 20)")
    parser.add_argument("--json", action="store_true", help="every measurement, on stdout")
    options = parser.parse_args()
    there = {}
    with REFERENCE.open() as file:
        for row in csv.DictReader(file):
            if row["package"] == "zip" and row["architecture"] == MACHINE:
                there[row["runtime"], int(row["memory_mb"])] = row
    found = measured(options.cold)
    if options.json:
        print(
            json.dumps(
                [{"runtime": runtime, "memory_mb": mb, **one} for (runtime, mb), all_ in found.items() for one in all_]
            )
        )
        return 0
    print(
        "| runtime | memory | init here | on Lambda | max memory used here | on Lambda | cold duration here | on Lambda |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for (runtime, memory_mb), each in found.items():
        row = there[RUNTIMES[runtime][0], memory_mb]
        print(
            f"| {runtime} | {memory_mb} MB | {median(each, 'init_ms'):.0f} ms | {float(row['init_ms_mean']):.0f} ms "
            f"| {median(each, 'max_memory_used_mb'):.0f} MB | {float(row['max_memory_used_mb']):.0f} MB "
            f"| {median(each, 'duration_ms'):.1f} ms | {float(row['duration_ms_mean']):.1f} ms |"
        )
    return 0


def median(measurements: list[dict[str, float]], name: str) -> float:
    return statistics.median(each[name] for each in measurements if name in each)


def measured(cold: int) -> dict[tuple[str, int], list[dict[str, float]]]:
    found: dict[tuple[str, int], list[dict[str, float]]] = {(name, mb): [] for name in RUNTIMES for mb in SIZES_MB}
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        for runtime, (_, file, source) in RUNTIMES.items():
            folder = Path(name, runtime)
            folder.mkdir()
            (folder / file).write_text(source)
        for _ in range(cold):
            for (runtime, memory_mb), records in found.items():
                asked = Overrides(runtime=runtime, handler="app.handler", memory_mb=memory_mb)
                function = load(str(Path(name, runtime)), asked)
                with Stand(function, pull=False) as stand, stand.sandbox() as sandbox:
                    record = sandbox.invoke(b"{}")
                if record.init_ms is None:
                    print(
                        f"{runtime} at {memory_mb} MB: {record.outcome} without an init time {record.notes}",
                        file=sys.stderr,
                    )
                values = {key: getattr(record, key) for key in ("init_ms", "max_memory_used_mb", "duration_ms")}
                records.append({key: float(value) for key, value in values.items() if value is not None})
    return found


if __name__ == "__main__":
    sys.exit(main())
