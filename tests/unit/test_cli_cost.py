"""`cost`: a month priced from the command line."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from harness.__main__ import run

GUIDE = [(128, 8200, 17.0833), (512, 2100, 17.5), (1024, 1300, 21.6667), (1769, 900, 25.9131), (3008, 800, 39.1667)]
"""The tuning guide's table: memory size, duration, USD of compute for a million invocations."""


class Cost:
    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *words: object) -> SimpleNamespace:
        code = run(["cost", *map(str, words)])
        captured = self._capsys.readouterr()
        return SimpleNamespace(code=code, out=captured.out, err=captured.err)

    def findings(self, *words: object) -> dict[str, Any]:
        done = self(*words, "--json")
        assert done.code == 0, done.err
        found: dict[str, Any] = json.loads(done.out)
        assert found["kind"] == "cost"
        findings: dict[str, Any] = found["findings"]
        return findings


@pytest.fixture
def cost(capsys: pytest.CaptureFixture[str]) -> Cost:
    return Cost(capsys)


@pytest.mark.parametrize(("memory", "duration_ms", "compute_usd"), GUIDE)
def test_the_guides_prices_come_out(cost: Cost, memory: int, duration_ms: int, compute_usd: float) -> None:
    found = cost.findings("-m", memory, "--duration-ms", duration_ms, "-n", 1_000_000, "--no-free-tier")
    assert found["compute_usd"] == pytest.approx(compute_usd, rel=2e-4)
    assert found["request_usd"] == pytest.approx(0.20)
    assert found["total_usd"] == pytest.approx(found["compute_usd"] + 0.20)


def test_the_free_tier_is_taken_off_unless_it_is_used_up(cost: Cost) -> None:
    month = ("-m", 128, "--duration-ms", 100, "-n", 1_000_000)
    assert cost.findings(*month)["total_usd"] == 0
    assert cost.findings(*month, "--no-free-tier")["total_usd"] > 0.2


def test_the_parts_add_up_to_the_total(cost: Cost) -> None:
    found = cost.findings(
        "-m", 1024, "--duration-ms", 100, "-n", 50_000_000, "--tmp", 2048, "--cold-share", 0.01, "--init-ms", 300,
        "--failure-rate", 0.02, "--failure-duration-ms", 3000, "--cost-per-failure", 0.05,
    )  # fmt: skip
    parts = sum(found[name] for name in ("compute_usd", "request_usd", "tmp_usd", "failure_usd"))
    assert found["total_usd"] == pytest.approx(parts - found["free_tier_usd"])
    assert found["failure_usd"] == pytest.approx(50_000_000 * 0.02 * 0.05)
    assert all(found[name] > 0 for name in ("tmp_usd", "init_usd", "free_tier_usd"))


def test_regions_and_architectures_have_prices_of_their_own(cost: Cost) -> None:
    month = ("-m", 1024, "--duration-ms", 1000, "-n", 1_000_000, "--no-free-tier")
    assert cost.findings(*month, "--architecture", "arm64")["compute_usd"] == pytest.approx(13.3334)
    cape = cost.findings(*month, "--region", "af-south-1")
    assert (cape["compute_usd"], cape["request_usd"]) == (pytest.approx(22.1), pytest.approx(0.27))


def test_a_cut_that_fails_more_is_called_a_false_economy(cost: Cost) -> None:
    words = ("-m", 1024, "--duration-ms", 1000, "-n", 1_000_000, "--no-free-tier", "--cost-per-failure", 0.05)
    found = cost.findings(*words, "--against", "512:1500:0.02")
    assert found["comparison"]["verdict"] == "false_economy"
    assert found["comparison"]["failure_usd"] == pytest.approx(1000.0)
    assert "are lost" in cost(*words, "--against", "512:1500:0.02").out


def test_the_table_takes_the_free_tier_off_and_ends_with_the_total(cost: Cost) -> None:
    done = cost("-m", 128, "--duration-ms", 100, "-n", 5)
    rows = {line.rsplit(maxsplit=1)[0].strip(): line.rsplit(maxsplit=1)[1] for line in done.out.splitlines()[1:]}
    assert rows["free tier"].startswith("-$")
    assert list(rows)[-1] == "total"
    assert "2025-10" in done.err, "where the prices are from"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("-m", 100), 3, "100 MB"),
        (("--duration-ms", -1), 3, "duration_ms is -1"),
        (("--duration-ms", "nan"), 3, "duration_ms is nan"),
        (("--duration-ms", 900_001), 3, "duration_ms"),
        (("-n", -1), 3, "invocations is -1"),
        (("--failure-rate", 1.5), 3, "failure_rate is 1.5"),
        (("--cold-share", -0.1), 3, "cold_share"),
        (("--tmp", 100), 3, "tmp_mb is 100"),
        (("--region", "moon-1"), 3, "'moon-1' is not known"),
        (("--architecture", "sparc"), 3, "'sparc'"),
        (("--against", "512"), 2, "--against '512'"),
        (("--against", "512:many"), 2, "--against"),
        (("--against", "512.5:100"), 2, "--against"),
        (("--against", "64:100"), 3, "64 MB"),
    ],
)
def test_what_lambda_has_no_price_for_is_refused_by_name(
    cost: Cost, words: tuple[object, ...], code: int, said: str
) -> None:
    done = cost("-m", 128, "--duration-ms", 100, "-n", 1000, *words)
    assert (done.code, done.out) == (code, "")
    assert said in done.err
