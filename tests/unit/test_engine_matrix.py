"""The matrix of docs/engines.md says what the stored runs say, and the judgement behind it can fail."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from harness.invocation import PeakMethod

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_engines", ROOT / "bench" / "engines.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = found  # dataclasses look their module up
    spec.loader.exec_module(found)
    return found


def test_the_document_has_the_matrix_of_the_stored_runs(bench: ModuleType) -> None:
    document = (ROOT / "docs" / "engines.md").read_text()
    rows = list(bench.matrix(bench.stored()))
    assert len(rows) > 2, "there are no runs"
    assert "\n".join(rows) in document, "put what 'bench/engines.py --table' prints into docs/engines.md"


def test_each_run_is_stored_under_its_own_name(bench: ModuleType) -> None:
    for path in bench.RESULTS.glob("*.json"):
        assert path.name == bench.name_of(json.loads(path.read_text()))


@pytest.mark.parametrize(
    ("measured", "method", "worth"),
    [
        (100.0, None, "exact"),
        (103.0, PeakMethod.RESET, "exact"),
        (103.0, PeakMethod.SAMPLED, "sampled"),
        (80.0, PeakMethod.SAMPLED, "sampled"),
        (80.0, PeakMethod.HIGH_WATER, "wrong"),
        (104.0, None, "wrong"),
        (None, None, "missing"),
    ],
)
def test_what_a_figure_is_worth(
    bench: ModuleType, measured: float | None, method: PeakMethod | None, worth: str
) -> None:
    assert bench.compared("any", measured, 100, within=3, method=method).is_worth == worth


def test_a_peak_above_the_truth_is_wrong_though_it_was_sampled(bench: ModuleType) -> None:
    """Looking now and then misses peaks; it cannot see one that was not there."""
    assert bench.compared("any", 120, 100, within=3, method=PeakMethod.SAMPLED).is_worth == "wrong"


def test_a_run_with_a_wrong_figure_is_in_no_matrix(bench: ModuleType) -> None:
    run: dict[str, Any] = json.loads(next(iter(bench.RESULTS.glob("*.json"))).read_text())
    run["figures"][0]["is_worth"] = "wrong"
    with pytest.raises(SystemExit, match="wrong: cpu_ms, cold"):
        list(bench.matrix([run]))
