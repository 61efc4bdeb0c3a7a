"""The verdicts of `leak`, from records."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from harness.analysis import leak
from harness.analysis.leak import EXPLAINED, SETTLED, Explanation, findings, leaks, undecided, why_unexplained
from harness.experiments import explain
from harness.experiments import leak as experiment
from harness.function import Function, ImageCode
from harness.invocation import Invocation, Outcome, PhaseInit

KB, MB = 1024, 1024 * 1024
BASE = 8 * MB


def record(number: int, memory: int | None, **changed: Any) -> Invocation:
    found = Invocation(
        request_id=str(number),
        function="leaky",
        runtime="python3.13",
        memory_mb=128,
        architecture="x86_64",
        image="image",
        rie_version=None,
        sandbox_id="one",
        sequence=number,
        cold=number == 1,
        phase_init=PhaseInit.INIT if number == 1 else None,
        started_at="2026-01-01T00:00:00+00:00",
        outcome=Outcome.SUCCESS,
        anonymous_after_bytes=memory,
        resident_after_bytes=None if memory is None else memory + 9 * MB,
        peak_rss_bytes=None if memory is None else memory + 9 * MB,
        processes=1,
        threads=2,
        open_files=6,
        tmp_bytes=4096,
    )
    return replace(found, **changed)


def series(memory: Sequence[int | None], variant: str | None = None) -> list[Invocation]:
    return [record(number, each, variant=variant) for number, each in enumerate(memory, 1)]


def growing(count: int = 40, step: int = 100 * KB, variant: str | None = None) -> list[Invocation]:
    return series([BASE + step * n for n in range(count)], variant)


def steady(count: int = 40, variant: str | None = None) -> list[Invocation]:
    return series([BASE] * count, variant)


def test_memory_that_grows_and_stays_after_a_collection_is_a_leak() -> None:
    found = findings(growing() + growing(variant=SETTLED))
    assert found["verdict"] == "leak"
    assert found["slope_bytes_per_invocation"] == 100 * KB
    assert (found["ci_low"], found["ci_high"]) == (100 * KB, 100 * KB)
    assert "100 KB" in found["reason"]
    assert leaks(found)


def test_what_the_collector_takes_away_is_no_leak() -> None:
    found = findings(growing() + steady(variant=SETTLED))
    assert found["verdict"] == "no_leak"
    assert "not for good" in found["reason"]
    assert (found["slope_bytes_per_invocation"], found["slope_series"]) == (0, SETTLED)
    assert found["invocations_until_out_of_memory"] is None
    assert not leaks(found)


def test_memory_that_stays_is_no_leak_and_needs_no_second_series() -> None:
    assert findings(steady())["verdict"] == "no_leak"
    assert not undecided(steady())
    assert undecided(growing())
    assert not undecided(growing() + growing(variant=SETTLED))


def test_the_out_of_memory_forecast_counts_from_the_end_at_the_slope() -> None:
    found = findings(growing(41) + growing(41, variant=SETTLED))
    left = 128 * MB - (BASE + 40 * 100 * KB)
    assert found["invocations_until_out_of_memory"] == left // (100 * KB)


def test_what_an_invocation_needs_while_it_runs_is_kept_free_by_the_forecast() -> None:
    needs = [replace(each, peak_rss_bytes=(each.resident_after_bytes or 0) + 20 * MB) for each in growing(41)]
    found = findings(needs)
    assert found["invocations_until_out_of_memory"] == (108 * MB - (BASE + 40 * 100 * KB)) // (100 * KB)


def killed_again_and_again(lives: int = 3, length: int = 14) -> list[Invocation]:
    found = []
    for number in range(lives * (length + 1)):
        life, place = divmod(number, length + 1)
        phase = None if place else (PhaseInit.SUPPRESSED if life else PhaseInit.INIT)
        dies = place == length
        found.append(
            record(
                number + 1,
                None if dies else 6 * MB + 8 * MB * (place + 1),
                phase_init=phase,
                outcome=Outcome.OUT_OF_MEMORY if dies else Outcome.SUCCESS,
            )
        )
    return found


def test_a_leak_that_kills_within_the_series_is_a_leak_and_the_series_goes_on() -> None:
    found = findings(killed_again_and_again())
    assert found["verdict"] == "leak"
    assert "killed 3 times, after 15 invocations, and began anew" in found["reason"]
    assert found["slope_bytes_per_invocation"] == 8 * MB
    assert found["invocations_until_out_of_memory"] == 15
    assert found["out_of_memory_kills"] == 3
    assert not undecided(killed_again_and_again())


def test_a_leak_that_kills_every_third_invocation_is_a_leak_too() -> None:
    fast = [
        replace(each, anonymous_after_bytes=None if each.anonymous_after_bytes is None else place * 45 * MB + 9 * MB)
        for life in range(4)
        for place, each in enumerate(killed_again_and_again(1, 2), 1)
        for each in [replace(each, phase_init=PhaseInit.SUPPRESSED if place == 1 else None, sandbox_id=str(life))]
    ]
    assert findings(fast)["verdict"] == "leak"


def test_a_kill_that_growth_did_not_bring_about_is_no_leak() -> None:
    once = steady(30)
    once[10] = replace(once[10], outcome=Outcome.OUT_OF_MEMORY, anonymous_after_bytes=None)
    once[11] = replace(once[11], phase_init=PhaseInit.SUPPRESSED)
    found = findings(once)
    assert found["verdict"] == "no_leak"
    assert found["notes"][0] == "1 of 30 invocations ended as out of memory"


@pytest.mark.parametrize("count", [0, 1, 2, 9])
def test_fewer_than_ten_invocations_are_inconclusive(count: int) -> None:
    found = findings(growing(count))
    assert found["verdict"] == "inconclusive"
    assert ("too few" if count else "nothing was measured") in found["reason"].lower()
    assert not undecided(growing(count))


@pytest.mark.parametrize("outcome", [each for each in Outcome if each is not Outcome.SUCCESS])
def test_a_function_that_fails_every_time_is_inconclusive_and_says_how(outcome: Outcome) -> None:
    failing = [replace(each, outcome=outcome, error_type="E", error_message="no") for each in growing(20)]
    found = findings(failing)
    assert found["verdict"] == "inconclusive"
    assert "none of 20 invocations succeeded" in found["reason"].lower()
    assert "E: no" in found["reason"]
    assert all(each["verdict"] == "inconclusive" for each in found["also"])
    assert leak.hopeless(failing)
    assert not undecided(failing)


def test_a_runtime_that_keeps_dying_is_inconclusive() -> None:
    dying = [
        replace(each, outcome=Outcome.TIMEOUT, anonymous_after_bytes=None)
        if number % 5 == 4
        else replace(each, phase_init=PhaseInit.SUPPRESSED if number % 5 == 0 and number else each.phase_init)
        for number, each in enumerate(growing(30))
    ]
    found = findings(dying)
    assert found["verdict"] == "inconclusive"
    assert "5 times by timeout" in found["reason"]


def test_resident_memory_stands_in_where_anonymous_memory_is_unknown() -> None:
    unknown = [replace(each, anonymous_after_bytes=None) for each in growing()]
    found = findings(unknown)
    assert (found["verdict"], found["memory"]) == ("leak", "resident")
    assert any("only resident memory is known" in note for note in found["notes"])


def test_memory_that_nobody_could_measure_is_inconclusive() -> None:
    found = findings(series([None] * 20))
    assert found["verdict"] == "inconclusive"
    assert "cannot be measured" in found["reason"]
    assert found["slope_bytes_per_invocation"] is None


def test_shared_memory_that_grows_is_a_leak_though_no_anonymous_memory_does() -> None:
    shared = [
        replace(each, resident_after_bytes=(each.resident_after_bytes or 0) + 256 * KB * number)
        for number, each in enumerate(steady())
    ]
    found = findings(shared)
    assert found["verdict"] == "leak"
    assert found["slope_bytes_per_invocation"] == 256 * KB
    assert "shared memory" in found["reason"].lower()


@pytest.mark.parametrize(("field", "what", "step"), [("open_files", "open_files", 1), ("tmp_bytes", "tmp", 1_000_000)])
def test_other_things_that_grow_are_leaks_of_their_own(field: str, what: str, step: int) -> None:
    using = []
    for number, each in enumerate(steady()):
        used: dict[str, Any] = {field: 6 + step * number}
        using.append(replace(each, **used))
    found = findings(using)
    assert found["verdict"] == "no_leak"
    assert {each["what"] for each in found["also"] if each["verdict"] == "leak"} == {what}
    assert leaks(found)


def test_open_files_are_forecast_against_their_limit() -> None:
    using = [replace(each, open_files=24 + number) for number, each in enumerate(steady())]
    (found,) = (each for each in findings(using)["also"] if each["what"] == "open_files")
    assert found["invocations_until_exhausted"] == 1024 - 24 - 39


def test_what_was_not_measured_is_not_judged() -> None:
    blind = [replace(each, open_files=None, tmp_bytes=None) for each in steady()]
    assert [each["what"] for each in findings(blind)["also"]] == ["threads", "processes"]


def grew(kind: str, name: str, size: float) -> dict[str, Any]:
    return {"name": name, "kind": kind, "grew_bytes_per_invocation": size, "grew_count_per_invocation": 1, "where": ""}


def test_growth_is_told_largest_first_and_of_equals_the_one_that_is_held() -> None:
    told = [
        grew("type", "dict", 20),
        grew("type", "list", 2),
        grew("allocation site", "app.py:4", 1001),
        grew("module global", "app.kept", 1000),
        grew("type", "tuple", 500),
    ]
    found = findings(growing(), Explanation(entries=told, first=8, last=18, memory_mb=1024))
    assert [each["name"] for each in found["growth"]] == ["app.kept", "app.py:4", "tuple", "dict"]
    assert found["explained"]["perturbed"] is True


def test_a_probe_that_could_not_tell_says_why() -> None:
    found = findings(growing(), Explanation(error="no probe"))
    assert found["growth"] == []
    assert "what grew is not known: no probe" in found["notes"]


def test_a_probe_that_told_nothing_is_explained_by_the_invocation_that_it_ended_in() -> None:
    probed = series([BASE] * 20, "explained")
    assert why_unexplained([*growing(), *probed]) == "the probe's series ended before it could tell"
    probed[17] = replace(probed[17], outcome=Outcome.TIMEOUT)
    assert why_unexplained([*growing(), *probed]).endswith(
        "tell: invocation 18 of it ended in timeout; with a longer --timeout the probe has more time"
    )
    probed[2] = replace(probed[2], outcome=Outcome.RUNTIME_EXIT)
    assert why_unexplained([*growing(), *probed]).endswith("tell: invocation 3 of it ended in runtime_exit")
    failing = replace(growing()[1], outcome=Outcome.TIMEOUT)
    assert "ended in" not in why_unexplained([failing]), "of the function's own series"


def test_perturbed_records_are_not_in_the_series() -> None:
    found = findings(growing(20) + growing(20, variant=SETTLED) + growing(18, 9 * MB, EXPLAINED))
    assert len(found["series"]) == 20
    assert found["slope_bytes_per_invocation"] == 100 * KB


def test_findings_are_json() -> None:
    for records in ([], growing(), killed_again_and_again(), steady()):
        json.dumps(findings(records), allow_nan=False)


# -- probes ---------------------------------------------------------------------------------------------------------------


def function(runtime: str | None, **environment: str) -> Function:
    return Function(
        name="leaky", runtime=runtime, handler="app.handler", code=ImageCode(reference="x"), source="",
        environment=environment,
    )  # fmt: skip


def test_probes_come_in_by_the_environment_and_leave_the_users_own_in_place() -> None:
    python = explain.probe(function("python3.12", PYTHONPATH="/opt/mine"), "settle")
    assert python is not None
    assert python.environment["PYTHONPATH"] == f"{explain.MOUNTED_AT}:/opt/mine"
    node = explain.probe(function("nodejs22.x", NODE_OPTIONS="--enable-source-maps"), "settle")
    assert node is not None
    assert node.environment["NODE_OPTIONS"] == f"--enable-source-maps --require {explain.MOUNTED_AT}/probe.cjs"
    assert explain.probe(function("provided.al2023"), "settle") is None
    for each in (python, node):
        assert all(path.is_dir() for path in each.binds)


def test_a_listener_takes_out_what_a_probe_says_and_nothing_else() -> None:
    passed: list[bytes] = []
    listener = explain.Listener(pass_on=passed.append)
    probe = explain.probe(function("python3.13"), "explain:8:18")
    assert probe is not None
    listener.listen_to(probe)
    said = {"runtime": "python", "entries": [grew("type", "dict", 10)]}
    text = base64.b64encode(zlib.compress(json.dumps(said).encode())).decode()
    half = len(text) // 2
    listener(b"the function's own line\n")
    listener(f"{probe.token} 1/2 {text[:half]}\n".encode())
    listener(f"more of it\n{probe.token} 2/2 {text[half:]}\n".encode())
    assert listener.heard == said
    assert passed == [b"the function's own line\n", b"more of it\n"]


def test_what_arrives_in_pieces_is_an_error_and_no_crash() -> None:
    listener = explain.Listener()
    probe = explain.probe(function("python3.13"), "explain:8:18")
    assert probe is not None
    listener.listen_to(probe)
    listener(f"{probe.token} 1/1 bm90IGEgemxpYiBzdHJlYW0=\n".encode())
    assert listener.heard is not None
    assert "error" in listener.heard


def test_the_log_of_a_perturbed_record_does_not_show_the_probe() -> None:
    assert explain.without_probe("START\ntoken 1/1 abc\nEND\n", "token") == "START\nEND\n"


def test_a_plan_needs_at_least_one_invocation_and_one_event() -> None:
    from harness.errors import InvalidInput

    with pytest.raises(InvalidInput, match="0 invocations"):
        experiment.LeakPlan(events=(b"{}",), count=0)
    with pytest.raises(InvalidInput, match="no events"):
        experiment.LeakPlan(events=(), count=1)
