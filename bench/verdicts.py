"""Functions whose truth is known, and the verdicts that `lambda-harness leak` gives on them.

Run it from the project's root: ``python bench/verdicts.py [NAME ...] [--json]``. It needs an engine and images for
python3.13 and nodejs22.x, and takes a few minutes. The exit code is 1 when more than one verdict is wrong.

``truth`` is what is so by the function's making: ``leak`` where each invocation keeps something for good, ``no_leak``
where what is kept is bounded, ``inconclusive`` where no invocation gets far enough to tell. ``also`` names what else
leaks; whatever is not named there must not be called a leak.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COUNT = 60
ACCEPTED_WRONG = 1


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A function, its truth, and the series to judge it by."""

    name: str
    truth: str
    source: str
    node: bool = False
    also: tuple[str, ...] = ()
    memory_mb: int = 512
    count: int = COUNT

    @property
    def runtime(self) -> str:
        return "nodejs22.x" if self.node else "python3.13"

    def write(self, folder: Path) -> list[str]:
        """Lay the source down; returns the arguments that name the function."""
        name = "index.mjs" if self.node else "app.py"
        (folder / name).write_text(textwrap.dedent(self.source))
        handler = "index.handler" if self.node else "app.handler"
        return [str(folder), "--runtime", self.runtime, "--handler", handler]


SUBJECTS = (
    # -- Python: what each invocation keeps
    Subject(
        name="py_list_60_kb",
        truth="leak",
        source="""
            kept = []
            def handler(event, context):
                kept.append(bytearray(b"x") * 60_000)
                return len(kept)
        """,
    ),
    Subject(
        name="py_dict_1_mb",
        truth="leak",
        source="""
            kept = {}
            def handler(event, context):
                kept[context.aws_request_id] = bytearray(b"x") * 1_000_000
                return len(kept)
        """,
    ),
    Subject(
        name="py_small_objects_20_kb",
        truth="leak",
        source="""
            kept = []
            def handler(event, context):
                kept.extend({"id": n} for n in range(80))
                return len(kept)
        """,
    ),
    Subject(
        name="py_lru_cache_unbounded",
        truth="leak",
        source="""
            import functools
            @functools.lru_cache(maxsize=None)
            def render(request_id):
                return request_id * 1000
            def handler(event, context):
                return len(render(context.aws_request_id))
        """,
    ),
    Subject(
        name="py_closures",
        truth="leak",
        source="""
            callbacks = []
            def handler(event, context):
                body = bytearray(b"x") * 40_000
                callbacks.append(lambda: body)
                return len(callbacks)
        """,
    ),
    Subject(
        name="py_leak_under_noise",
        truth="leak",
        source="""
            import random
            kept = []
            def handler(event, context):
                work = bytearray(b"x") * random.randrange(100_000, 4_000_000)
                kept.append(bytearray(b"x") * 100_000)
                return len(work)
        """,
    ),
    Subject(
        name="py_mmap_kept",
        truth="leak",
        source="""
            import mmap
            kept = []
            def handler(event, context):
                block = mmap.mmap(-1, 256 * 1024)
                block.write(b"x" * len(block))
                kept.append(block)
                return len(kept)
        """,
    ),
    Subject(
        name="py_leak_under_sawtooth",
        truth="leak",
        source="""
            kept, queue = [], []
            def handler(event, context):
                kept.append(bytearray(b"x") * 100_000)
                queue.append(bytearray(b"x") * 300_000)
                if len(queue) == 9:
                    queue.clear()
                return len(kept)
        """,
    ),
    Subject(
        name="py_killed_in_the_series",
        truth="leak",
        memory_mb=128,
        source="""
            kept = []
            def handler(event, context):
                kept.append(bytearray(b"x") * (8 << 20))
                return len(kept)
        """,
    ),
    # -- Python: what fills, falls or settles
    Subject(
        name="py_steady",
        truth="no_leak",
        source="""
            def handler(event, context):
                return sum(len(bytearray(b"x") * 500_000) for _ in range(4))
        """,
    ),
    Subject(
        name="py_cache_that_fills",
        truth="no_leak",
        source="""
            cache = {}
            def handler(event, context):
                for _ in range(4):
                    cache[len(cache) % 40] = bytearray(b"x") * 200_000
                return len(cache)
        """,
    ),
    Subject(
        name="py_cache_that_fills_slowly",
        truth="no_leak",
        source="""
            cache = {}
            turn = 0
            def handler(event, context):
                global turn
                cache[turn % 30] = bytearray(b"x") * 300_000
                turn += 1
                return len(cache)
        """,
    ),
    Subject(
        name="py_sawtooth",
        truth="no_leak",
        source="""
            kept = []
            def handler(event, context):
                kept.append(bytearray(b"x") * 400_000)
                if len(kept) == 10:
                    kept.clear()
                return len(kept)
        """,
    ),
    Subject(
        name="py_sawtooth_slow",
        truth="no_leak",
        source="""
            kept = []
            def handler(event, context):
                kept.append(bytearray(b"x") * 200_000)
                if len(kept) == 23:
                    kept.clear()
                return len(kept)
        """,
    ),
    Subject(
        name="py_lazy_imports",
        truth="no_leak",
        source="""
            import importlib
            names = ["decimal", "email.parser", "http.client", "xml.dom.minidom", "sqlite3", "asyncio", "unittest",
                     "concurrent.futures", "multiprocessing.pool", "argparse", "difflib", "csv", "statistics", "zipfile"]
            def handler(event, context):
                if names:
                    try:
                        importlib.import_module(names.pop())
                    except ImportError:
                        pass
                return len(names)
        """,
    ),
    Subject(
        name="py_fragmentation",
        truth="no_leak",
        source="""
            import random
            kept = {}
            def handler(event, context):
                for _ in range(200):
                    kept[random.randrange(500)] = bytearray(random.randrange(50, 9_000))
                return len(kept)
        """,
    ),
    Subject(
        name="py_cycles",
        truth="no_leak",
        source="""
            class Node:
                pass
            def handler(event, context):
                for _ in range(300):
                    node = Node()
                    node.itself, node.body = node, bytearray(2_000)
                return 1
        """,
    ),
    Subject(
        name="py_random_sizes",
        truth="no_leak",
        source="""
            import random
            last = None
            def handler(event, context):
                global last
                last = bytearray(b"x") * random.randrange(1_000, 6_000_000)
                return len(last)
        """,
    ),
    Subject(
        name="py_child_that_is_killed",
        truth="no_leak",
        source="""
            import subprocess, sys
            def handler(event, context):
                child = subprocess.Popen([sys.executable, "-c", "b = b'x' * 20_000_000; print(1, flush=True); input()"],
                                         stdin=subprocess.PIPE, stdout=subprocess.PIPE)
                child.stdout.readline()
                child.kill()
                child.communicate()
                return child.returncode
        """,
    ),
    # -- Python: other things than memory
    Subject(
        name="py_tmp_files",
        truth="no_leak",
        also=("tmp",),
        source="""
            def handler(event, context):
                with open(f"/tmp/{context.aws_request_id}", "wb") as file:
                    file.write(bytes(1_000_000))
                return 1
        """,
    ),
    Subject(
        name="py_descriptors",
        truth="no_leak",
        also=("open_files",),
        source="""
            import os
            def handler(event, context):
                return os.open("/dev/null", os.O_RDONLY)
        """,
    ),
    Subject(
        name="py_threads",
        truth="leak",
        also=("threads",),
        source="""
            import threading
            def handler(event, context):
                threading.Thread(target=threading.Event().wait, daemon=True).start()
                return threading.active_count()
        """,
    ),
    Subject(
        name="py_children_left_behind",
        truth="leak",
        also=("processes", "threads", "open_files"),
        source="""
            import subprocess
            def handler(event, context):
                return subprocess.Popen(["sleep", "1000"]).pid
        """,
    ),
    Subject(
        name="py_fails_every_time",
        truth="inconclusive",
        source="""
            def handler(event, context):
                raise ValueError("never")
        """,
    ),
    Subject(
        name="py_too_few",
        truth="inconclusive",
        count=6,
        source="""
            kept = []
            def handler(event, context):
                kept.append(bytearray(b"x") * 300_000)
                return len(kept)
        """,
    ),
    # -- Node.js: what each invocation keeps
    Subject(
        name="node_array_of_buffers",
        truth="leak",
        node=True,
        source="""
            const arrayB = [];
            export const handler = async () => { arrayB.push(Buffer.alloc(200_000, 1)); return arrayB.length; };
        """,
    ),
    Subject(
        name="node_map_1_mb",
        truth="leak",
        node=True,
        source="""
            const kept = new Map();
            export const handler = async (event, context) => {
              kept.set(context.awsRequestId, Buffer.alloc(1_000_000, 1));
              return kept.size;
            };
        """,
    ),
    Subject(
        name="node_heap_objects",
        truth="leak",
        node=True,
        source="""
            const kept = [];
            export const handler = async () => {
              for (let i = 0; i < 1000; i++) kept.push({ id: i, name: `item ${i} of ${kept.length}` });
              return kept.length;
            };
        """,
    ),
    Subject(
        name="node_timers",
        truth="leak",
        node=True,
        source="""
            export const handler = async () => {
              const body = new Array(12_000).fill(1);
              setInterval(() => body.length, 60_000);
              return 1;
            };
        """,
    ),
    Subject(
        name="node_listeners",
        truth="leak",
        node=True,
        source="""
            import { EventEmitter } from "node:events";
            const bus = new EventEmitter();
            bus.setMaxListeners(0);
            export const handler = async () => {
              const body = Buffer.alloc(100_000, 1);
              bus.on("never", () => body.length);
              return bus.listenerCount("never");
            };
        """,
    ),
    Subject(
        name="node_closures",
        truth="leak",
        node=True,
        source="""
            let last = null;
            export const handler = async () => {
              const before = last;
              const body = new Array(10_000).fill(before ? 1 : 2);
              last = () => [before, body];
              return 1;
            };
        """,
    ),
    Subject(
        name="node_leak_under_garbage",
        truth="leak",
        node=True,
        source="""
            const kept = [];
            export const handler = async () => {
              let text = "";
              for (let i = 0; i < 20_000; i++) text = JSON.stringify({ i, text: text.slice(0, 100) });
              kept.push(new Array(5_000).fill(text.length));
              return kept.length;
            };
        """,
    ),
    # -- Node.js: what fills, falls or settles
    Subject(
        name="node_steady",
        truth="no_leak",
        node=True,
        source="""
            export const handler = async () => {
              const list = [];
              for (let i = 0; i < 20_000; i++) list.push({ i, text: `n${i}` });
              return list.length;
            };
        """,
    ),
    Subject(
        name="node_echo",
        truth="no_leak",
        node=True,
        source="""
            export const handler = async (event) => event;
        """,
    ),
    Subject(
        name="node_cache_bounded",
        truth="no_leak",
        node=True,
        source="""
            const cache = new Map();
            export const handler = async (event, context) => {
              cache.set(context.awsRequestId, Buffer.alloc(300_000, 1));
              if (cache.size > 12) cache.delete(cache.keys().next().value);
              return cache.size;
            };
        """,
    ),
    Subject(
        name="node_sawtooth",
        truth="no_leak",
        node=True,
        source="""
            let kept = [];
            export const handler = async () => {
              kept.push(Buffer.alloc(400_000, 1));
              if (kept.length === 10) kept = [];
              return kept.length;
            };
        """,
    ),
    Subject(
        name="node_lazy_imports",
        truth="no_leak",
        node=True,
        source="""
            const names = ["crypto", "http2", "zlib", "readline", "dgram", "tls", "worker_threads", "vm", "repl", "inspector"];
            export const handler = async () => {
              if (names.length) await import(`node:${names.pop()}`);
              return names.length;
            };
        """,
    ),
    Subject(
        name="node_descriptors",
        truth="no_leak",
        also=("open_files",),
        node=True,
        source="""
            import { openSync } from "node:fs";
            export const handler = async () => openSync("/dev/null", "r");
        """,
    ),
)


@dataclass(frozen=True, kw_only=True)
class Result:
    """What the harness said of a subject, and what is wrong with it."""

    subject: Subject
    verdict: str
    reason: str
    slope: float | None
    also: tuple[str, ...]
    seconds: float

    @property
    def wrong(self) -> bool:
        return self.verdict != self.subject.truth or set(self.also) != set(self.subject.also)

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.subject.name,
            "runtime": self.subject.runtime,
            "invocations": self.subject.count,
            "memory_mb": self.subject.memory_mb,
            "truth": self.subject.truth,
            "truth_also": list(self.subject.also),
            "verdict": self.verdict,
            "also": list(self.also),
            "slope_bytes_per_invocation": self.slope,
            "reason": self.reason,
            "seconds": round(self.seconds, 1),
            "wrong": self.wrong,
        }


def run(subject: Subject) -> Result:
    """One subject through the command line, as a user would."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="verdicts-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        command = [sys.executable, "-m", "harness", "leak", *subject.write(folder), "-m", str(subject.memory_mb)]
        command += [
            "-n",
            str(subject.count),
            "--timeout",
            "10",
            "--store",
            str(folder.parent / f"{folder.name}.sqlite3"),
        ]
        try:
            done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False, timeout=600)
        finally:
            for left in folder.parent.glob(f"{folder.name}.sqlite3*"):
                left.unlink()
    if not done.stdout:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        found: dict[str, Any] = {"verdict": "none", "reason": lines[-1], "slope_bytes_per_invocation": None, "also": []}
    else:
        found = json.loads(done.stdout)["findings"]
    return Result(
        subject=subject,
        verdict=found["verdict"],
        reason=found["reason"],
        slope=found["slope_bytes_per_invocation"],
        also=tuple(each["what"] for each in found["also"] if each["verdict"] == "leak"),
        seconds=time.monotonic() - begun,
    )


def row(result: Result) -> str:
    """One line of a Markdown table."""
    subject = result.subject
    truth = ", ".join([subject.truth, *subject.also])
    said = ", ".join([result.verdict, *result.also])
    slope = "" if result.slope is None else f"{result.slope:,.0f}"
    mark = "**wrong**" if result.wrong else "right"
    return f"| `{subject.name}` | {subject.runtime} | {truth} | {said} | {slope} | {mark} |"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Verdicts of `lambda-harness leak` on functions of known truth.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these")
    parser.add_argument("--json", action="store_true", help="print one JSON document and nothing else on stdout")
    options = parser.parse_args(arguments)
    chosen = [each for each in SUBJECTS if not options.names or each.name in options.names]
    unknown = set(options.names) - {each.name for each in SUBJECTS}
    if unknown:
        parser.error(f"there is no function {min(unknown)}")
    if not options.json:
        print("| function | runtime | truth | verdict | bytes an invocation | |\n|---|---|---|---|---:|---|")
    results = []
    for subject in chosen:
        result = run(subject)
        results.append(result)
        if not options.json:
            print(row(result), flush=True)
        if result.wrong:
            print(f"{subject.name}: {result.reason}", file=sys.stderr, flush=True)
    wrong = sum(each.wrong for each in results)
    if options.json:
        print(
            json.dumps(
                {"functions": len(results), "wrong": wrong, "results": [each.as_dict() for each in results]}, indent=1
            )
        )
    else:
        print(f"\n{len(results)} functions, {wrong} wrong verdicts")
    return 1 if wrong > ACCEPTED_WRONG else 0


if __name__ == "__main__":
    sys.exit(main())
