"""Made-up documents of leaks, kills and loads; their findings are those that the analysis makes of their records."""

from __future__ import annotations

import dataclasses
import random
from datetime import UTC, datetime, timedelta
from typing import Any

from test_reports_document import EVIL, cost_usd, records, sweep_document

from harness.analysis.leak import EXPLAINED, SETTLED, Explanation
from harness.analysis.leak import findings as leak_findings
from harness.analysis.load import load_findings
from harness.analysis.oom import oom_findings
from harness.experiments.oom import Search, Try, Watched
from harness.invocation import Invocation, Outcome, PhaseInit
from harness.memory_watch import Killed, MemoryPoint

MB = 1 << 20


def document(kind: str, invocations: list[Invocation], findings: dict[str, Any], **plan: Any) -> dict[str, Any]:
    """A complete document around records and findings."""
    whole = sweep_document((512,), 3)
    return {
        **whole,
        "kind": kind,
        "plan": plan,
        "invocations": [one.as_dict() for one in invocations],
        "findings": findings,
    }


def warm_series(
    n: int, *, grows_bytes: int, memory_mb: int = 512, variant: str | None = None, begins_mb: float = 20
) -> list[Invocation]:
    """One sandbox whose anonymous memory first settles, in four invocations, and then grows, or stays."""
    chance = random.Random(grows_bytes + memory_mb)  # noqa: S311 (made-up figures)
    made = []
    for one in records(memory_mb, n - 1, seed=3):
        settling = min(one.sequence, 5) * 800_000
        stays = int(begins_mb * MB + settling + grows_bytes * max(0, one.sequence - 5) + chance.uniform(-9_000, 9_000))
        made.append(
            dataclasses.replace(
                one,
                anonymous_after_bytes=stays,
                resident_after_bytes=stays + 9 * MB,
                peak_rss_bytes=stays + 11 * MB,
                variant=variant,
                sandbox_id=f"sb-{variant or 'plain'}",
                request_id=f"{variant or 'plain'}-{one.sequence}",
                open_files=6 + one.sequence,
                threads=2,
                tmp_bytes=4096,
            )
        )
    return made


def leak_document(n: int = 40, *, grows_bytes: int = 150_000, explained: bool = True) -> dict[str, Any]:
    """A series that grows by so many bytes an invocation, with descriptors that leak as well."""
    main = warm_series(n, grows_bytes=grows_bytes)
    settled = warm_series(n, grows_bytes=grows_bytes, variant=SETTLED)
    probed = warm_series(18, grows_bytes=grows_bytes, variant=EXPLAINED, memory_mb=1024) if explained else []
    entries = [
        {"name": "app.kept", "kind": "module global", "grew_bytes_per_invocation": grows_bytes - 800.0,
         "grew_count_per_invocation": 1.0, "where": "/var/task/app.py"},
        {"name": "builtins.bytearray", "kind": "type", "grew_bytes_per_invocation": grows_bytes / 2,
         "grew_count_per_invocation": 0.5, "where": None},
    ]  # fmt: skip
    explanation = Explanation(entries=entries, first=8, last=18, memory_mb=1024) if explained else None
    return document("leak", [*main, *settled, *probed], leak_findings([*main, *settled, *probed], explanation))


def killed_leak_document() -> dict[str, Any]:
    """A leak that is killed twice in the middle of its series, and begins anew each time."""
    made: list[Invocation] = []
    for life in range(3):
        for at, one in enumerate(warm_series(14, grows_bytes=6 * MB, memory_mb=128)):
            number = life * 14 + at + 1
            last = at == 13 and life < 2
            made.append(
                dataclasses.replace(
                    one,
                    sequence=number,
                    cold=number == 1,
                    phase_init=PhaseInit.INIT if number == 1 else PhaseInit.SUPPRESSED if at == 0 else None,
                    request_id=f"life-{number}",
                    outcome=Outcome.OUT_OF_MEMORY if last else Outcome.SUCCESS,
                    anonymous_after_bytes=None if last else int((30 + 6.6 * at) * MB),
                    resident_after_bytes=None if last else int((36 + 6.6 * at) * MB),
                    peak_rss_bytes=int((37 + 6.6 * at) * MB),
                    notes=("The runtime was gone when its memory was to be read.",) if last else (),
                )
            )
    return document("leak", made, leak_findings(made))


def curve(limit_mb: int, *, samples: int, killed: bool) -> list[MemoryPoint]:
    """Memory that climbs to its end, or to the limit, and falls to nothing after a kill."""
    made = []
    for at in range(samples):
        share = min(1.0, at / (samples * 0.9)) if killed else at / samples * 0.8
        gone = killed and at > samples * 0.94
        memory = 0 if gone else int(limit_mb * MB * share)
        made.append(
            MemoryPoint(
                ms=at * 2.1,
                memory_bytes=memory,
                anon_bytes=int(memory * 0.9),
                file_bytes=int(memory * 0.07),
                kernel_bytes=int(memory * 0.03),
            )
        )
    return made


def oom_document(*, samples: int = 400, needs_mb: int = 308) -> dict[str, Any]:
    """A search among 128 to 1024 MB for a function that needs so much."""
    search = Search(128, 1024, 2)
    tries: list[Try] = []
    made = []
    while (memory_mb := search.next()) is not None:
        survived = memory_mb >= needs_mb
        record = dataclasses.replace(
            records(memory_mb, 0)[0],
            request_id=f"try-{len(tries)}",
            sandbox_id=f"sb-try-{len(tries)}",
            outcome=Outcome.SUCCESS if survived else Outcome.OUT_OF_MEMORY,
            error_type=None if survived else "Runtime.ExitError",
            error_message=None if survived else "Error: Runtime exited with error: signal: killed",
            response=5 if survived else {"errorType": "Runtime.ExitError", "errorMessage": "signal: killed"},
            peak_memory_bytes=min(memory_mb, needs_mb) * MB,
            log_tail="START RequestId: 1\nread part 80\n",
            report=f"REPORT RequestId: {len(tries)}\tMemory Size: {memory_mb} MB\t",
        )
        made.append(record)
        watched = Watched(
            record=record,
            timeline=curve(memory_mb, samples=samples, killed=not survived),
            killed=[]
            if survived
            else [Killed(name="python3.13", pid=4711, source="kernel_log", runtime=True, anon_bytes=300 * MB)],
            oom_kills=0 if survived else 1,
            killed_at_ms=None if survived else samples * 0.94 * 2.1,
        )
        tries.append(Try(memory_mb=memory_mb, invocations=(watched,), survived=survived))
        search.tell(memory_mb, survived=survived)
    findings = oom_findings(tries, search, from_mb=128, to_mb=1024, confirm=2, configured_mb=256)
    return document("oom", made, findings, from_mb=128, to_mb=1024, confirm=2)


def load_document(*, sandboxes: int = 5, each: int = 30, kills: int = 2, throttled: int = 3) -> dict[str, Any]:
    """A closed loop over so many sandboxes; some die for want of memory, some requests find all of them busy."""
    chance = random.Random(sandboxes * each)  # noqa: S311 (made-up figures)
    begun = datetime(2026, 11, 21, 20, 30, tzinfo=UTC)
    pattern = records(128, 1)
    made = []
    for number in range(sandboxes):
        at = begun + timedelta(milliseconds=number * 3)
        for sequence in range(1, each + 1):
            cold = sequence == 1
            init, duration = (chance.uniform(120, 200) if cold else None), chance.lognormvariate(4.6, 0.4)
            frozen = None if cold else chance.uniform(2, 40)
            at += timedelta(milliseconds=frozen or 0)
            killed = number < kills and sequence == each // 2
            made.append(
                dataclasses.replace(
                    pattern[0] if cold else pattern[1],
                    request_id=f"{number}-{sequence}",
                    sandbox_id=f"sandbox{number:04d}",
                    sequence=sequence,
                    started_at=at.isoformat(),
                    init_ms=init,
                    duration_ms=duration,
                    frozen_ms=frozen,
                    client_ms=duration + (init or 0) + 2,
                    billed_ms=int(duration + (init or 0)) + 1,
                    cost_usd=cost_usd(int(duration + (init or 0)) + 1, 128),
                    outcome=Outcome.OUT_OF_MEMORY if killed else Outcome.SUCCESS,
                    error_type="Runtime.ExitError" if killed else None,
                    phase_init=PhaseInit.INIT if cold else None,
                )
            )
            at += timedelta(milliseconds=duration + (init or 0) + 2)
    made.extend(
        dataclasses.replace(
            pattern[1],
            request_id=f"throttled-{number}",
            sandbox_id="",
            sequence=0,
            started_at=(begun + timedelta(milliseconds=500 + number)).isoformat(),
            outcome=Outcome.THROTTLED,
            duration_ms=None,
            billed_ms=None,
            frozen_ms=None,
            cpu_ms=None,
            client_ms=0.4,
            cost_usd=None,
            notes=("all sandboxes that may be were busy",),
        )
        for number in range(throttled)
    )
    made.sort(key=lambda one: one.started_at)
    observed = {
        "wall_s": 8.0, "lateness_ms": [0.3] * len(made), "waited_ms": [0.0] * len(made), "capacity": sandboxes,
        "most_busy": sandboxes, "start_ms": [], "generator_cpu_s": 0.5, "host_cpus": 2, "host_busy_share": 0.4,
        "peak_memory_bytes": 300 * MB, "memory_samples": 90, "loop": "closed",
    }  # fmt: skip
    return document("load", made, load_findings(made, observed), concurrency=sandboxes, rate_per_s=None)


def warm_document() -> dict[str, Any]:
    """Three invocations side by side, of which one value grows."""
    from harness.analysis import warm

    made = [dataclasses.replace(one, response={"calls": one.sequence, "region": "local"}) for one in records(512, 2)]
    return document("warm", made, warm.findings(made))


def hostile_documents() -> list[dict[str, Any]]:
    """A leak, a kill, a load and a warm series in which everything that a function may choose tries to break out."""
    leak, oom, load, warm = leak_document(), oom_document(samples=40), load_document(), warm_document()
    leak["findings"]["growth"][0].update(name=EVIL, kind=EVIL, where=EVIL)
    leak["findings"]["also"][0]["why"] = leak["findings"]["reason"] = EVIL
    leak["findings"]["notes"] = [EVIL]
    story = oom["findings"]["kill"]
    story.update(killed_process=EVIL, why=EVIL, response={EVIL: EVIL}, report=EVIL, last_output=[EVIL], log_tail=EVIL)
    story["killed"][0]["name"] = EVIL
    oom["findings"]["reason"] = oom["findings"]["tries"][0]["why"] = EVIL
    load["findings"]["warnings"] = [{"sentence": EVIL, "remedy": EVIL}]
    warm["findings"]["responses"][0].update(path=EVIL, values=[EVIL, {EVIL: 1}, [EVIL]])
    for found in (leak, oom, load, warm):
        found["function"]["name"] = EVIL
        for one in found["invocations"]:
            one.update(function=EVIL, response={EVIL: EVIL}, log_tail=EVIL, error_message=EVIL, error_type=EVIL)
            one["notes"] = [EVIL]
    return [leak, oom, load, warm]


def test_the_made_up_documents_are_what_they_say() -> None:
    assert leak_document()["findings"]["verdict"] == "leak"
    assert leak_document(grows_bytes=0, explained=False)["findings"]["verdict"] == "no_leak"
    assert killed_leak_document()["findings"]["out_of_memory_kills"] == 2
    assert oom_document()["findings"]["smallest_memory_mb"] == 308
    assert load_document()["findings"]["outcomes"]["out_of_memory"] == 2
    assert warm_document()["findings"]["survived"] == ["calls"]
