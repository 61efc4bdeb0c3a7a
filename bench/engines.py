"""What each figure is worth on the engine that answers here: a function that knows what it did, and the record beside it.

The function measures itself (its CPU time, its resident memory at the peak, its descriptors, ...), and the record's figures
are compared with that, mostly as differences between two invocations, in which what the runtime itself needs cancels out.
A figure is then ``exact``, ``sampled`` where the record says so, ``rough`` in a way that docs/engines.md tells (the freeze
and the deadline are late, the RIE's throttling is in it), ``missing`` (null), or ``wrong``, which must not be. In an emulated
machine what surrounds a handler takes up to a second, in one whose kernel is a program some 40 ms: figures that hold it
are ``not judged`` there, but where init is seconds off.

    .venv/bin/python bench/engines.py [--vantage V] [--machine emulated|program] [--out docs/results/engines]
    .venv/bin/python bench/engines.py --table        the matrix of docs/engines.md, from the stored runs

Prints a line a figure; --out stores the run as one JSON file, named by what it ran on. --json prints the same, and --take
stores what --json printed elsewhere. Exit code 8: a figure is wrong. Takes a minute, in an emulated machine some eight;
scripts/vm/engines.sh does it in such a machine in every way.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from harness import Invocation, Overrides, Stand, load
from harness.invocation import Outcome, PeakMethod
from harness.kernel import is_this_machine
from harness.tiers import tier

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results" / "engines"
MIB = 1024 * 1024
EMULATED = 15.0
"""How much longer everything takes in software emulation."""
SOURCE = """
import os, threading, time

INIT_MS = float(os.environ.get("INIT_MS", "0"))
time.sleep(INIT_MS / 1000)
KEPT, TICKS = [], []


def tick():
    while True:
        time.sleep(0.01)
        TICKS.append(time.time())


def own(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field + ":"))


def handler(event, context):
    came, began, cpu = time.time(), time.perf_counter(), time.process_time()
    said = {"remaining_ms": context.get_remaining_time_in_millis(), "request_id": context.aws_request_id, "came": came}
    time.sleep(event.get("sleep_s", 0))
    while time.process_time() - cpu < event.get("cpu_s", 0):
        pass
    while time.perf_counter() - began < event.get("burn_s", 0):
        pass
    if "spike_mb" in event:
        spike = b"x" * (event["spike_mb"] << 20)
        time.sleep(event.get("hold_s", 0))
        said["peak_bytes"] = own("VmRSS")
        del spike
    if "keep_mb" in event:
        KEPT.append(b"x" * (event["keep_mb"] << 20))
    for _ in range(event.get("open", 0)):
        KEPT.append(open("/dev/null"))
    for _ in range(event.get("threads", 0)):
        threading.Thread(target=threading.Event().wait, daemon=True).start()
    for _ in range(event.get("children", 0)):
        if os.fork() == 0:
            while True:
                time.sleep(60)
    if "tmp_mb" in event:
        with open("/tmp/written", "wb") as file:
            for _ in range(event["tmp_mb"]):
                file.write(b"x" * (1 << 20))
    if event.get("tick"):
        threading.Thread(target=tick, daemon=True).start()
    if event.get("ticks"):
        said["ticks"] = list(TICKS)
    wall = time.perf_counter() - began
    return said | {
        "cpu_ms": (time.process_time() - cpu) * 1000, "wall_ms": wall * 1000, "left": time.time(),
        "anonymous_bytes": own("RssAnon"), "resident_bytes": own("VmRSS"),
    }
"""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """``is_worth`` is exact, sampled, rough, missing, not judged or wrong; ``measured`` and ``true`` are what was compared."""

    name: str
    is_worth: str
    measured: float | str | None
    true: float | str | None


def compared(
    name: str, measured: float | None, true: float, *, within: float, method: PeakMethod | str | None = None
) -> Figure:
    """Exact within so much of the truth, or sampled: then it may lie below the truth, and never above. Else wrong."""
    if measured is None:
        is_worth = "missing"
    elif method == PeakMethod.SAMPLED and measured <= true + within:
        is_worth = "sampled"
    else:
        is_worth = "exact" if abs(measured - true) <= within else "wrong"
    return Figure(name=name, is_worth=is_worth, measured=measured, true=true)


def difference(name: str, pair: Sequence[Invocation], field: str, true: float, *, within: float) -> Figure:
    """Of a field between two invocations."""
    before, after = (getattr(each, field) for each in pair)
    found = None if before is None or after is None else float(after - before)
    return compared(name, found, true, within=within)


def at_leisure(figure: Figure) -> Figure:
    """What can be said of a figure where everything around the function is slow: that it is there."""
    return figure if figure.is_worth == "missing" else dataclasses.replace(figure, is_worth="not judged")


class Trial:
    """Sandboxes on one stand, and what is found in them."""

    def __init__(self, stand: Stand, patience: float) -> None:
        self._stand = stand
        self._patience = patience
        self._timed: Callable[[Figure], Figure] = at_leisure if patience > 1 else lambda figure: figure

    def sandbox(self, events: Sequence[Mapping[str, Any]], *, gap_s: float = 0.0, **changed: Any) -> list[Invocation]:
        """One sandbox, one invocation of each event."""
        environment = changed.pop("environment", {})
        changed["environment"] = {**self._stand.function.environment, **environment}
        with self._stand.sandbox(dataclasses.replace(self._stand.function, **changed)) as sandbox:
            found = []
            for event in events:
                found.append(sandbox.invoke(json.dumps(event).encode()))
                time.sleep(gap_s)
            return found

    def figures(self) -> Iterator[Figure]:
        for step in (
            self._cpu,
            self._share,
            self._init,
            self._times,
            self._memory,
            self._counts,
            self._freeze,
            self._ends,
        ):
            yield from step()

    def _cpu(self) -> Iterator[Figure]:
        cold, little, much = self.sandbox([{"cpu_s": 0.8}, {"cpu_s": 0.1}, {"cpu_s": 1.1}])
        own = cold.response["cpu_ms"]
        yield self._timed(compared("cpu_ms, cold", cold.cpu_ms, own, within=0.05 * own))
        own = much.response["cpu_ms"] - little.response["cpu_ms"]
        yield difference("cpu_ms, warm", (little, much), "cpu_ms", own, within=0.05 * own)
        yield said("request id", little.request_id, little.response["request_id"])

    def _share(self) -> Iterator[Figure]:
        size, brief_s = 512, 0.5
        long_s = brief_s + (2.0 if self._patience == 1 else 6.0)
        _, brief, record = self.sandbox([{}, {"burn_s": brief_s}, {"burn_s": long_s}], memory_mb=size)
        granted = tier(size).cpu_quota_us / tier(size).cpu_period_us
        share = record.response["cpu_ms"] / record.response["wall_ms"]
        yield compared("CPU share", round(share, 3), round(granted, 3), within=0.1 * granted)
        # A difference of two, as the runtime is throttled around its handler, too: seldom, but in an emulated machine much.
        pair = (brief, record)
        before_ms, after_ms = (each.response["wall_ms"] - each.response["cpu_ms"] for each in pair)
        waited = after_ms - before_ms
        found = difference("throttled_ms", pair, "throttled_ms", waited, within=0.25 * waited)
        # It may be less: what other programs took of the processor is waiting, too, and no throttling. More is the RIE's on
        # vantage api: one quota holds for both, and the kernel adds up what is throttled on each CPU. In an emulated machine
        # it may be the runtime's, around its handler: that takes up to a second, and not the same time twice.
        if found.measured is not None and found.measured > 1.1 * waited:
            if record.vantage == "api":
                found = dataclasses.replace(found, is_worth="rough")
            else:
                found = self._timed(dataclasses.replace(found, is_worth="wrong"))
        yield found

    def _init(self) -> Iterator[Figure]:
        pair = [self.sandbox([{}], environment={"INIT_MS": str(ms)})[0] for ms in (0, 2000)]
        found = difference("init_ms", pair, "init_ms", 2000, within=300 if self._patience == 1 else 1500)
        # However slow the machine is: more than that is a quota that holds init back.
        yield found if found.is_worth == "wrong" else self._timed(found)

    def _times(self) -> Iterator[Figure]:
        _, *records = self.sandbox([{}, *[{"sleep_s": 0.5}] * 5])
        # What the runtime does around the handler differs from one to the next: the least of it is told.
        record = min(records, key=lambda each: (each.duration_ms or 0) - each.response["wall_ms"])
        yield self._timed(compared("duration_ms", record.duration_ms, record.response["wall_ms"], within=5))
        timeout_s = int(5 * self._patience)
        _, record, late = self.sandbox([{}, {}, {"sleep_s": 100 + 4 * timeout_s}], timeout_s=timeout_s)
        left = record.response["remaining_ms"]
        is_worth = "rough" if left > 1000 * timeout_s else "exact" if left > 900 * timeout_s else "wrong"
        yield Figure(name="deadline", is_worth=is_worth, measured=left, true=1000 * timeout_s)
        yield said("time-out", late.outcome, Outcome.TIMEOUT)

    def _memory(self) -> Iterator[Figure]:
        events = [{}, {"spike_mb": 80}, {"spike_mb": 20, "hold_s": 0.5}, {"keep_mb": 30}]
        _, high, low, kept = self.sandbox(events, memory_mb=512)
        near = 3 * MIB
        for name, record in (("peak_rss_bytes, higher than before", high), ("peak_rss_bytes, lower", low)):
            true = record.response["peak_bytes"]
            yield compared(name, record.peak_rss_bytes, true, within=near, method=record.peak_method)
        used = None if high.max_memory_used_mb is None else high.max_memory_used_mb * MIB
        yield compared("max_memory_used_mb", used, high.response["peak_bytes"], within=near, method=high.peak_method)
        for field, own in (("anonymous_after_bytes", "anonymous_bytes"), ("resident_after_bytes", "resident_bytes")):
            yield compared(field, getattr(kept, field), kept.response[own], within=near)
        fits, full = (self.sandbox([{}, {"keep_mb": mb}], memory_mb=256)[1] for mb in (210, 260))
        yield said("memory limit", f"{fits.outcome}, {full.outcome}", f"{Outcome.SUCCESS}, {Outcome.OUT_OF_MEMORY}")

    def _counts(self) -> Iterator[Figure]:
        pair = self.sandbox([{}, {"open": 7, "threads": 5, "tmp_mb": 25}])
        yield difference("open_files", pair, "open_files", 7, within=0)
        yield difference("threads", pair, "threads", 5, within=0)
        yield difference("tmp_bytes", pair, "tmp_bytes", 25 * MIB, within=64 * 1024)
        yield difference("processes", self.sandbox([{}, {"children": 3}]), "processes", 3, within=0)

    def _freeze(self) -> Iterator[Figure]:
        _, before, after = self.sandbox([{}, {"tick": True}, {"ticks": True}], gap_s=3.0)
        left, came = before.response["left"], after.response["came"]
        ticks = [left, *(at for at in after.response["ticks"] if left < at < came), came]
        still_s, since = max((later - at, at) for at, later in pairwise(ticks))
        went_on = round((since - left) * 1000, 1)
        found = Figure(name="freeze", is_worth="exact" if went_on <= 15 else "rough", measured=went_on, true=0)
        yield self._timed(found) if still_s >= 1.5 else dataclasses.replace(found, is_worth="wrong")

    def _ends(self) -> Iterator[Figure]:
        record = self.sandbox([{}, {"keep_mb": 400}], memory_mb=128)[1]
        told = record.outcome is Outcome.OUT_OF_MEMORY
        missing = record.outcome is Outcome.RUNTIME_EXIT and bool(record.notes)
        is_worth = "exact" if told else "missing" if missing else "wrong"
        yield Figure(name="out-of-memory kill", is_worth=is_worth, measured=record.outcome, true=Outcome.OUT_OF_MEMORY)


def said(name: str, measured: str, true: str) -> Figure:
    """A word: it is the same or it is wrong."""
    return Figure(name=name, is_worth="exact" if measured == true else "wrong", measured=str(measured), true=str(true))


# -- runs and their matrix ------------------------------------------------------------------------------------------------

COLUMNS = (
    *("engine", "cgroup, driver", "kernel", "vantage", "exact", "sampled", "late, or holds the RIE's", "missing"),
    *("not judged", "run on"),
)
MACHINES = {"emulated": ", emulated", "program": ", as a program"}
NOT_EXACT = ("sampled", "rough", "missing", "not judged", "wrong")


def run(vantage: str, show: Callable[[str], None], *, machine: str | None) -> dict[str, Any]:
    """One run: the engine, the day, and each figure. ``machine``: of MACHINES, None for one like any other."""
    # What surrounds a handler is slow in a kernel that is a program as well.
    patience = {None: 1.0, "program": 2.0, "emulated": EMULATED}[machine]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.chmod(0o755)
        (folder / "app.py").write_text(SOURCE)
        overrides = Overrides(runtime="python3.13", handler="app.handler", timeout_s=60 * int(patience), name="engines")
        stand = stack.enter_context(Stand(load(str(folder), overrides), vantage=vantage, pull=False))
        host, figures = stand.host, []
        for figure in Trial(stand, patience).figures():
            figures.append(dataclasses.asdict(figure))
            show(f"{figure.name:35} {figure.is_worth:10} {figure.measured} ({figure.true})")
    kept = (
        "engine",
        "engine_version",
        "cgroup_version",
        "cgroup_driver",
        "rootless",
        "vantage",
        "kernel",
        "architecture",
    )
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "host": {name: host[name] for name in kept} | {"kernel": ".".join(re.findall(r"\d+", host["kernel"])[:2])},
        "root": os.geteuid() == 0,
        "elsewhere": not is_this_machine(stand.facts.kernel, stand.facts.memory_bytes),
        "machine": machine,
        "figures": figures,
    }


def _maker(host: Mapping[str, Any]) -> str:
    """Docker calls its part "Engine", Podman "Podman Engine"."""
    return str(host["engine"]).removesuffix("Engine").strip() or "Docker"


def name_of(found: Mapping[str, Any]) -> str:
    host = found["host"]
    words = [_maker(host), host["engine_version"].partition("+")[0]]
    words += ["rootless"] * host["rootless"] + [f"v{host['cgroup_version']}", host["cgroup_driver"], host["kernel"]]
    words += [host["vantage"], *["user"] * (not found["root"]), *["elsewhere"] * found["elsewhere"]]
    return "_".join(words).lower() + ".json"


def matrix(runs: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The rows of docs/engines.md."""
    yield f"| {' | '.join(COLUMNS)} |"
    yield "|---" * len(COLUMNS) + "|"
    for found in runs:
        host = found["host"]
        by_worth = {
            worth: [each["name"] for each in found["figures"] if each["is_worth"] == worth] for worth in NOT_EXACT
        }
        if by_worth["wrong"]:
            raise SystemExit(f"{name_of(found)}: wrong: {', '.join(by_worth['wrong'])}")
        exact = sum(each["is_worth"] == "exact" for each in found["figures"])
        engine = f"{_maker(host)} {host['engine_version'].partition('+')[0]}" + ", rootless" * host["rootless"]
        where = ", from another kernel" * found["elsewhere"] + ", not as root" * (not found["root"])
        cells = [
            engine,
            f"{host['cgroup_version']}, {host['cgroup_driver']}",
            host["kernel"] + MACHINES.get(found["machine"], ""),
            host["vantage"] + where,
            f"{exact} of {len(found['figures'])}",
            *("; ".join(by_worth[worth]) or "-" for worth in NOT_EXACT[:-1]),
            found["date"],
        ]
        yield f"| {' | '.join(cells)} |"


def stored() -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vantage", default="auto", help="auto, host, agent or api")
    parser.add_argument(
        "--machine",
        choices=sorted(MACHINES),
        help="its processor is emulated, or its kernel is a program: the row tells",
    )
    parser.add_argument("--out", type=Path, help="the folder in which the run is stored")
    parser.add_argument("--json", action="store_true", help="print the run instead of its lines")
    parser.add_argument(
        "--take", action="store_true", help="store a run that stands on standard input, and measure nothing"
    )
    parser.add_argument("--table", action="store_true", help="print the matrix of the stored runs, and measure nothing")
    asked = parser.parse_args()
    if asked.table:
        print("\n".join(matrix(stored())))
        return 0
    into = sys.stderr if asked.json else sys.stdout
    if asked.take:
        found = json.load(sys.stdin)
    else:
        found = run(asked.vantage, lambda line: print(line, file=into, flush=True), machine=asked.machine)
    text = json.dumps(found, indent=2) + "\n"
    if asked.json:
        print(text, end="")
    if asked.out:
        asked.out.mkdir(parents=True, exist_ok=True)
        (asked.out / name_of(found)).write_text(text)
    return 8 if any(each["is_worth"] == "wrong" for each in found["figures"]) else 0


if __name__ == "__main__":
    sys.exit(main())
