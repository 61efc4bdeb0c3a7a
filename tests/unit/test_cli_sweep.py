"""`sweep` from its options to its document, on a stand whose sandboxes are none: plan, history, figures, exit codes."""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
from test_sweep_plan import FakeStand
from test_sweep_plan import without_pauses as without_pauses  # noqa: PLC0414  # a fixture

import harness.stand
from harness.__main__ import run
from harness.cli.sweep import measured_for_prediction
from harness.errors import EngineError, InvalidInput
from harness.function import Function
from harness.invocation import Invocation, Outcome
from harness.store import Run, Store


class OpenedStand(FakeStand):
    """A `FakeStand` that a command can enter; `entered` counts how often one was needed."""

    host: dict[str, Any] = {"hz": 250, "cpus": 8, "harness_version": "0"}  # noqa: RUF012
    warnings: tuple[str, ...] = ()
    entered = 0
    closed = False

    def __enter__(self) -> OpenedStand:
        self.entered += 1
        return self

    def __exit__(self, *_: object) -> None:
        assert not self.held, "the stand went before its sandboxes"
        self.closed = True


class Harness:
    """The command line with a function, a history and a stand of its own."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self._capsys = folder, capsys
        self.store = folder / "runs.sqlite3"
        self.stand = OpenedStand()
        self.functions: list[Function] = []
        code = folder / "fn"
        code.mkdir()
        (code / "app.py").write_text("def handler(event, context):\n    return 1\n")
        (code / "function.toml").write_text('runtime = "python3.13"\nhandler = "app.handler"\nmemory_mb = 640\n')
        self.code = code
        monkeypatch.setenv("LAMBDA_HARNESS_STORE", str(self.store))
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=64 * 1024**3))

        def stand(function: Function, **_: Any) -> OpenedStand:
            self.functions.append(function)
            return self.stand

        monkeypatch.setattr(harness.stand, "Stand", stand)

    def __call__(self, *words: object) -> SimpleNamespace:
        code = run([str(each) for each in words])
        captured = self._capsys.readouterr()
        return SimpleNamespace(code=code, out=captured.out, err=captured.err)

    def sweep(self, *words: object) -> SimpleNamespace:
        return self("sweep", self.code, *words)

    def document(self, *words: object) -> dict[str, Any]:
        done = self.sweep(*words, "--json")
        assert done.code == 0, done.err
        found: dict[str, Any] = json.loads(done.out)
        return found

    def runs(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self("runs", "list", "--json").out)["runs"]
        return found


@pytest.fixture
def cli(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Harness:
    return Harness(tmp_path, capsys, monkeypatch)


# -- what is measured -------------------------------------------------------------------------------------------------


def test_the_document_has_a_run_id_the_plan_the_state_and_every_record(cli: Harness) -> None:
    found = cli.document("-m", "128,512", "-n", 3, "--seed", 11)
    assert found["kind"] == "sweep"
    assert found["state"] == "complete"
    assert found["run_id"] == cli.runs()[0]["run_id"]
    assert found["plan"]["memory_mb"] == [128, 512]
    assert (found["plan"]["seed"], found["findings"]["seed"], found["plan"]["count"]) == (11, 11, 3)
    assert Counter((each["memory_mb"], each["cold"]) for each in found["invocations"]) == {
        (128, True): 1, (128, False): 3, (512, True): 1, (512, False): 3,
    }  # fmt: skip


def test_a_seed_is_recorded_also_where_none_was_given(cli: Harness) -> None:
    assert isinstance(cli.document("-m", "128", "-n", 1)["plan"]["seed"], int)


def test_without_sizes_the_configured_size_is_among_those_measured_and_the_saving_is_told(cli: Harness) -> None:
    found = cli.document("-n", 1)
    assert 640 in found["plan"]["memory_mb"]
    assert found["findings"]["recommendation"]["saving"]["against_memory_mb"] == 640


def test_sizes_that_were_named_are_all_that_is_measured(cli: Harness) -> None:
    found = cli.document("-m", "512,1024", "-n", 1)
    assert {each["memory_mb"] for each in found["invocations"]} == {512, 1024}
    assert found["findings"]["recommendation"]["saving"] is None


def test_a_preset_gives_the_sizes_of_a_workload(cli: Harness) -> None:
    assert cli.document("--preset", "ml", "-n", 1)["plan"]["memory_mb"] == [1769, 2048, 3008, 5308, 7077, 10240]


def test_auto_measures_more_around_the_best(cli: Harness) -> None:
    found = cli.document("-m", "auto", "-n", 2, "--strategy", "balanced")
    assert found["plan"]["auto"]
    sizes = {each["memory_mb"] for each in found["invocations"]}
    assert sizes > set(found["plan"]["memory_mb"])
    assert {each["memory_mb"] for each in found["findings"]["tiers"]} == sizes


def test_cold_measures_cold_starts_and_nothing_warm(cli: Harness) -> None:
    found = cli.document("-m", "128,512", "--cold", 4)
    assert [each["cold"] for each in found["invocations"]] == [True] * 8
    assert {each["cold"]["n"] for each in found["findings"]["tiers"]} == {4}
    assert found["findings"]["recommendation"]["memory_mb"] is not None


@pytest.mark.parametrize("option", ["--variant", "--env"])
def test_variants_of_the_environment_are_a_second_axis(cli: Harness, option: str) -> None:
    found = cli.document("-m", "512", "-n", 2, "--env", "ALL=1", option, "plain:", option, "big:HEAP=512")
    assert {(each["memory_mb"], each["variant"]) for each in found["findings"]["tiers"]} == {
        (512, "plain"),
        (512, "big"),
    }
    assert cli.functions[0].environment == {"ALL": "1"}
    assert {each.function.environment.get("HEAP") for each in cli.stand.made} == {None, "512"}
    assert found["plan"]["variants"][1] == {"name": "big", "environment": ["HEAP"]}, "names alone: values may be secret"


def test_a_power_tuning_file_is_taken_and_options_win(cli: Harness) -> None:
    config = cli.folder / "input.json"
    config.write_text(
        json.dumps(
            {
                "powerValues": [256, 512],
                "num": 5,
                "strategy": "speed",
                "discardTopBottom": 0.2,
                "payload": [{"payload": 1, "weight": 4}, {"payload": 2, "weight": 1}],
                "parallelInvocation": True,
            }
        )
    )
    found = cli.document("--config", config)
    assert found["plan"]["memory_mb"] == [256, 512]
    assert found["findings"]["recommendation"]["strategy"] == "speed"
    assert [(each["n"], each["n_measured"]) for each in found["findings"]["tiers"]] == [(3, 5), (3, 5)]
    assert Counter(cli.stand.events[256][1:]) == {b"1": 4, b"2": 1}
    assert not found["plan"]["parallel"], "side by side has to be asked for by name"
    changed = cli.document("--config", config, "-m", "1024", "-n", 2, "-e", "{}", "--strategy", "cost", "--discard", 0)
    assert changed["plan"]["memory_mb"] == [1024]
    assert (changed["plan"]["count"], changed["plan"]["discard"], changed["plan"]["strategy"]) == (2, 0.0, "cost")
    assert changed["plan"]["events"] == [{"bytes": 2, "weight": 1.0}]


def test_what_a_power_tuning_file_says_in_vain_is_named_on_stderr(cli: Harness) -> None:
    config = cli.folder / "input.json"
    config.write_text('{"lambdaARN": "arn", "powerValues": [512], "num": 1}')
    assert "lambdaARN" in cli.sweep("--config", config).err


def test_the_output_has_power_tunings_shape(cli: Harness) -> None:
    done = cli.sweep("-m", "128,512,1769", "-n", 3, "--format", "power-tuning", "--strategy", "speed")
    found = json.loads(done.out)["results"]
    assert set(found) == {"power", "cost", "duration", "stateMachine", "stats"}
    assert found["power"] == 1769
    assert [each["value"] for each in found["stats"]] == [128, 512, 1769]
    assert set(found["stats"][0]) == {"averagePrice", "averageDuration", "value"}
    records = cli("runs", "show", "latest", "--json")
    costs = [each["cost_usd"] for each in json.loads(records.out)["invocations"]]
    assert found["stateMachine"]["lambdaCost"] == pytest.approx(math.fsum(costs))


# -- prediction -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "measured"),
    [
        ((128, 512, 1769, 10240), (128, 1769)),
        ((512, 1024), (512, 1769)),
        ((1769,), (884, 1769)),
        ((1769, 3008), (884, 1769)),
        ((10240,), (884, 1769)),
    ],
)
def test_a_prediction_measures_a_size_that_is_throttled_and_one_that_is_not(
    wanted: tuple[int, ...], measured: tuple[int, int]
) -> None:
    assert measured_for_prediction(wanted) == measured


def test_predict_measures_two_sizes_predicts_the_rest_and_states_the_error(cli: Harness) -> None:
    found = cli.document("-m", "128,512,1024,1769,10240", "--predict", "-n", 3)
    assert {each["memory_mb"] for each in found["invocations"]} == {128, 1769}
    prediction = found["findings"]["prediction"]
    assert [each["memory_mb"] for each in prediction["tiers"]] == [128, 512, 1024, 1769, 10240]
    assert prediction["from_memory_mb"] == 1769
    assert prediction["error"] == pytest.approx(
        abs(prediction["tiers"][0]["duration_ms"] / found["findings"]["tiers"][0]["duration_ms"]["mean"] - 1)
    )
    assert prediction["scheduler"]["tick_ms"] == 4.0, "of the host that measured"


def test_predict_with_auto_measures_no_more_than_two_sizes(cli: Harness) -> None:
    found = cli.document("-m", "auto", "--predict", "-n", 1)
    assert len({each["memory_mb"] for each in found["invocations"]}) == 2


# -- figures ----------------------------------------------------------------------------------------------------------


def test_every_figure_of_a_tier_is_recomputed_from_the_records(cli: Harness) -> None:
    found = cli.document("-m", "128,512,1769", "-n", 60)
    assert len(found["findings"]["tiers"]) == 3
    for tier in found["findings"]["tiers"]:
        group = [each for each in found["invocations"] if each["memory_mb"] == tier["memory_mb"]]
        warm = [each for each in group if not each["cold"] and each["outcome"] == "success"]
        cold = [each for each in group if each["cold"]]
        assert tier["n"] == tier["n_measured"] == len(warm) == 60
        for name in ("duration_ms", "billed_ms", "cpu_ms", "client_ms"):
            recomputed(tier[name], [each[name] for each in warm])
        for name in ("init_ms", "duration_ms", "billed_ms", "client_ms"):
            recomputed(tier["cold"][name], [each[name] for each in cold])
        price = [each["billed_ms"] / 1000 * tier["memory_mb"] / 1024 * 0.0000166667 + 0.2e-6 for each in warm]
        assert tier["cost_usd_per_invocation"] == pytest.approx(statistics.mean(price))
        assert tier["cost_ci_low"] <= tier["cost_usd_per_invocation"] <= tier["cost_ci_high"]
        assert tier["cold"]["cost_usd_per_invocation"] == pytest.approx(cold[0]["cost_usd"])
        shares = [each["throttled_ms"] / each["duration_ms"] for each in warm]
        assert tier["throttled_share"] == pytest.approx(statistics.mean(shares))
        for name in ("peak_rss_bytes", "peak_memory_bytes", "max_memory_used_mb"):
            assert tier[name] == max(each[name] for each in group)
        assert tier["memory_used_share"] == pytest.approx(tier["max_memory_used_mb"] / tier["memory_mb"])
        assert tier["outcomes"] == {"success": 61}
        assert tier["notes"] == ["a note"]


def recomputed(stats: dict[str, Any], values: list[float]) -> None:
    assert stats["n"] == len(values)
    assert stats["mean"] == pytest.approx(statistics.mean(values))
    assert stats["p50"] == pytest.approx(statistics.median(values))
    assert (stats["min"], stats["max"]) == (min(values), max(values))
    assert stats["stdev"] == (pytest.approx(statistics.stdev(values)) if len(values) > 1 else None)
    assert stats["p90"] == (pytest.approx(np.percentile(values, 90)) if len(values) >= 50 else None)
    assert stats["p95"] is None
    assert stats["p99"] is None
    if len(values) < 3:
        assert stats["ci_low"] is None
        assert stats["ci_high"] is None
    else:
        assert stats["ci_low"] <= stats["mean"] <= stats["ci_high"]
        assert stats["p50_ci_low"] <= stats["p50"] <= stats["p50_ci_high"]


@pytest.mark.parametrize("strategy", ["cost", "speed", "balanced", "rating"])
def test_every_figure_of_a_recommendation_is_recomputed_from_the_tiers(cli: Harness, strategy: str) -> None:
    found = cli.document("--strategy", strategy, "--weight", "0.3", "--per-month", 5_000_000, "-n", 5)["findings"]
    tiers = {t["memory_mb"]: (t["cost_usd_per_invocation"], t["duration_ms"]["mean"]) for t in found["tiers"]}
    dearest, longest = (max(values) for values in zip(*tiers.values(), strict=True))
    scores: dict[str, Callable[[float, float], float]] = {
        "cost": lambda usd, ms: usd,
        "speed": lambda usd, ms: ms,
        "balanced": lambda usd, ms: 0.3 * usd / dearest + 0.7 * ms / longest,
        "rating": lambda usd, ms: usd / max(1, 10 - ms / 100),
    }
    score = scores[strategy]
    chosen = found["recommendation"]
    best = min(tiers, key=lambda size: (score(*tiers[size]), size))
    assert (chosen["memory_mb"], chosen["strategy"]) == (best, strategy)
    assert chosen["score"] == pytest.approx(score(*tiers[best]))
    saving = chosen["saving"]
    assert saving["usd_per_month"] == pytest.approx((tiers[640][0] - tiers[best][0]) * 5_000_000)
    assert saving["duration_ms_ratio"] == pytest.approx(tiers[best][1] / tiers[640][1])
    assert saving["cost_ratio"] == pytest.approx(tiers[best][0] / tiers[640][0])
    assert found["recommendations"][strategy]["memory_mb"] == best


# -- failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcome", "code"),
    [
        (Outcome.FUNCTION_ERROR, 5),
        (Outcome.TIMEOUT, 6),
        (Outcome.OUT_OF_MEMORY, 7),
        (Outcome.ENGINE_ERROR, 4),
    ],
)
@pytest.mark.parametrize("output", ["text", "json"])
def test_where_every_size_is_rejected_the_exit_code_is_that_of_the_failure(
    cli: Harness, outcome: Outcome, code: int, output: str
) -> None:
    cli.stand.behaviour = lambda function, number, event: outcome
    done = cli.sweep("-m", "128,512", "--format", output)
    assert done.code == code
    assert f"128 MB: {outcome}: Odd" in done.err, "what the function said"
    assert cli.runs()[0]["state"] == "complete"


def test_a_size_that_cannot_run_the_function_is_rejected_and_another_recommended(cli: Harness) -> None:
    cli.stand.behaviour = lambda function, number, event: (
        Outcome.OUT_OF_MEMORY if function.memory_mb < 512 else Outcome.SUCCESS
    )
    found = cli.document("-m", "128,512")["findings"]
    assert [each["memory_mb"] for each in found["rejected"]] == [128]
    assert "memory" in found["rejected"][0]["why"]
    assert found["recommendation"]["memory_mb"] == 512


@pytest.mark.parametrize("words", [["--allowed-exception", "Odd"], ["--config"]])
def test_an_allowed_exception_counts_as_success(cli: Harness, words: list[str]) -> None:
    cli.stand.behaviour = lambda function, number, event: Outcome.FUNCTION_ERROR
    config = cli.folder / "input.json"
    config.write_text('{"allowedExceptions": ["Odd"]}')
    found = cli.document("-m", "512", "-n", 4, *words, *([config] if words == ["--config"] else []))
    assert found["findings"]["tiers"][0]["n"] == 4
    assert found["findings"]["rejected"] == []
    assert {each["outcome"] for each in found["invocations"]} == {"function_error"}
    again = json.loads(cli("runs", "show", "latest", "--strategy", "speed", "--json").out)["findings"]
    assert again["tiers"] == found["findings"]["tiers"]


def test_a_report_is_not_measured_for_where_its_file_exists(cli: Harness) -> None:
    report = cli.folder / "report.html"
    report.write_text("mine")
    done = cli.sweep("-m", "512", "--report", report)
    assert done.code == 2
    assert "--force" in done.err
    assert report.read_text() == "mine"
    assert cli.stand.entered == 0
    assert cli.runs() == []
    assert cli.sweep("-m", "512", "-n", 3, "--report", report, "--force").code == 0
    assert report.read_text() != "mine"


def test_a_report_is_written_also_where_power_tunings_shape_has_nothing_to_say(cli: Harness) -> None:
    cli.stand.behaviour = lambda function, number, event: Outcome.TIMEOUT
    report = cli.folder / "report.json"
    done = cli.sweep("-m", "512", "--format", "power-tuning", "--report", report)
    assert done.code == 3
    assert json.loads(report.read_text())["findings"]["rejected"]


# -- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["-m", ""], 3, "no memory size"),
        (["-m", "512,512"], 3, "512 MB stands twice"),
        (["-m", "64"], 3, "64 MB is outside"),
        (["-m", "512", "-n", "0"], 2, "-n"),
        (["-m", "512", "--preset", "api"], 2, "--preset"),
        (["--preset", "none"], 3, "preset 'none'"),
        (["--cold", "3", "-n", "3"], 2, "--cold"),
        (["-m", "512", "--strategy", "best"], 3, "strategy 'best'"),
        (["-m", "512", "--weight", "2"], 2, "--weight"),
        (["-m", "512", "--discard", "0.5"], 2, "--discard"),
        (["-m", "512", "--variant", "big"], 2, "--variant 'big'"),
        (["-m", "512", "--variant", ":A=1"], 2, "--variant"),
        (["-m", "512", "--variant", "big:AWS_REGION=x"], 3, "AWS_REGION"),
        (["-m", "512", "--env", "nothing"], 2, "--env 'nothing'"),
        (["-m", "512", "--format", "yaml"], 2, "--format"),
        (["-m", "512", "--report", "report.docx"], 2, "docx"),
        (["-m", "512", "-e", "{"], 3, "not valid JSON"),
        (["--config", "missing.json"], 3, "missing.json cannot be read"),
    ],
)
def test_bad_input_is_refused_by_name_and_nothing_is_measured_or_stored(
    cli: Harness, words: list[str], code: int, said: str
) -> None:
    done = cli.sweep(*words)
    assert (done.code, done.out) == (code, "")
    assert said in done.err
    assert cli.stand.entered == 0
    assert cli.runs() == []


def test_an_empty_list_of_a_power_tuning_file_is_refused_with_predict_too(cli: Harness) -> None:
    config = cli.folder / "input.json"
    config.write_text('{"powerValues": []}')
    for words in ([], ["--predict"]):
        done = cli.sweep("--config", config, *words)
        assert (done.code, "no memory sizes" in done.err) == (3, True)


def test_a_template_whose_memory_size_is_empty_is_refused_with_its_line(cli: Harness) -> None:
    (cli.code / "template.yaml").write_text(
        "Transform: AWS::Serverless-2016-10-31\n"
        "Resources:\n"
        "  Fn:\n"
        "    Type: AWS::Serverless::Function\n"
        "    Properties: {Runtime: python3.13, Handler: app.handler, CodeUri: ., MemorySize: }\n"
    )
    done = cli("sweep", f"{cli.code}/template.yaml:Fn", "-m", "512")
    assert done.code == 3
    assert "template.yaml:5" in done.err
    assert "memory size" in done.err


@pytest.mark.parametrize("kind", ["text", "newer", "other"])
def test_a_history_that_cannot_be_used_is_refused_before_anything_is_measured_and_left_as_it_is(
    cli: Harness, kind: str
) -> None:
    import sqlite3

    if kind == "text":
        cli.store.write_text("not a database at all, but long enough to look at")
    else:
        with Store(cli.store):
            pass
        with sqlite3.connect(cli.store) as changed:
            changed.execute("PRAGMA user_version = 99" if kind == "newer" else "PRAGMA application_id = 7")
        changed.close()
    before = cli.store.read_bytes()
    done = cli.sweep("-m", "512")
    assert done.code == 3
    assert str(cli.store) in done.err
    assert cli.stand.entered == 0
    assert cli.store.read_bytes() == before


# -- what goes wrong on the way ---------------------------------------------------------------------------------------


def interrupt_at(number: int, error: BaseException) -> Any:
    def behaviour(function: Function, at: int, event: bytes) -> Outcome:
        if at == number:
            raise error
        return Outcome.SUCCESS

    return behaviour


@pytest.mark.parametrize("words", [[], ["--parallel"]])
def test_ctrl_c_keeps_what_was_measured(cli: Harness, words: list[str]) -> None:
    cli.stand.behaviour = interrupt_at(4, KeyboardInterrupt())
    done = cli.sweep("-m", "128,512", "-n", 50, *words)
    assert (done.code, done.out) == (130, "")
    listed = cli.runs()[0]
    assert listed["state"] == "interrupted"
    assert listed["run_id"] in done.err
    kept = json.loads(cli("runs", "show", listed["run_id"], "--json").out)
    assert len(kept["invocations"]) == listed["invocations"] >= 6
    assert [each["memory_mb"] for each in kept["findings"]["tiers"]] == [128, 512]
    assert cli.stand.closed


def test_a_run_that_is_interrupted_before_its_first_record_is_empty_and_can_be_shown(cli: Harness) -> None:
    cli.stand.behaviour = interrupt_at(1, KeyboardInterrupt())
    assert cli.sweep("-m", "512").code == 130
    listed = cli.runs()[0]
    assert (listed["state"], listed["invocations"]) == ("interrupted", 0)
    shown = cli("runs", "show", listed["run_id"], "--json")
    assert shown.code == 0
    assert json.loads(shown.out)["findings"]["recommendation"]["memory_mb"] is None
    assert cli("runs", "show", listed["run_id"]).code == 0


def test_an_error_on_the_way_keeps_what_was_measured_in_a_failed_run(cli: Harness) -> None:
    cli.stand.behaviour = interrupt_at(4, InvalidInput("something else"))
    done = cli.sweep("-m", "512", "-n", 50)
    assert done.code == 3
    assert "something else" in done.err
    listed = cli.runs()[0]
    assert (listed["state"], listed["invocations"]) == ("failed", 3)
    assert listed["run_id"] in done.err
    assert json.loads(cli("runs", "show", "latest", "--json").out)["findings"]["tiers"][0]["n"] == 2


def test_a_full_disk_ends_the_run_with_a_clear_error_and_keeps_what_was_stored(
    cli: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = Run.add

    def full_at_five(self: Run, invocation: Invocation) -> None:
        if cli.stand.seen[512] == 5:
            self._store._db.execute(f"PRAGMA max_page_count = {pages(self)}")
            invocation = Invocation(**{**vars(invocation), "log_tail": "x" * 10_000_000})
        add(self, invocation)

    def pages(run: Run) -> int:
        return int(run._store._db.execute("PRAGMA page_count").fetchone()[0])

    monkeypatch.setattr(Run, "add", full_at_five)
    done = cli.sweep("-m", "512", "-n", 50)
    assert done.code == 3
    assert "no room on the disk" in done.err
    assert str(cli.store) in done.err
    kept = json.loads(cli("runs", "show", "latest", "--json").out)
    assert (kept["state"], len(kept["invocations"])) == ("failed", 4)
    assert cli.stand.closed


def test_a_size_whose_sandbox_cannot_start_does_not_end_the_sweep(cli: Harness) -> None:
    cli.stand.refuse = frozenset({1024})
    done = cli.sweep("-m", "512,1024", "-n", 2, "--json")
    assert done.code == 0
    found = json.loads(done.out)["findings"]
    assert [each["memory_mb"] for each in found["rejected"]] == [1024]
    assert found["recommendation"]["memory_mb"] == 512
    assert "the engine refuses" in done.err


def test_an_engine_that_is_missing_is_said_before_a_run_is_begun(cli: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(function: Function, **_: Any) -> OpenedStand:
        raise EngineError("no engine", remedy="start one")

    monkeypatch.setattr(harness.stand, "Stand", missing)
    done = cli.sweep("-m", "512")
    assert (done.code, "start one" in done.err) == (4, True)
    assert cli.runs() == []
