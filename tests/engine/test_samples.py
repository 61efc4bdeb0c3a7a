"""The sample functions show what their READMEs say."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from conftest import ROOT, invoke

from harness.invocation import Outcome

if TYPE_CHECKING:
    from conftest import Lab

SAMPLES = ROOT / "sample_functions"


def sample(name: str) -> Path:
    return SAMPLES / name


@pytest.mark.parametrize("name", ["freeze_arrays_node", "freeze_arrays_python"])
def test_of_four_arrays_one_survives_and_grows(lab: Lab, name: str) -> None:
    found = lab.document("warm", sample(name), "--no-pull", "-n", 3)
    assert len(found["findings"]["survived"]) == 1
    assert found["findings"]["sandboxes"] == 1
    assert len(found["findings"]["responses"]) == 4
    text = lab.cli("warm", sample(name), "--no-pull").stdout
    assert "#1 cold" in text
    assert f"Grew from one invocation to the next: {found['findings']['survived'][0]}." in text


def test_a_timer_does_not_tick_in_the_freeze(lab: Lab) -> None:
    import time

    with lab.sandbox(sample("background_work_node"), memory_mb=512) as sandbox:
        invoke(sandbox)
        time.sleep(1.5)
        found = invoke(sandbox).response
    assert found["ticks_if_it_had_run"] >= 140
    assert found["ticks_since_last_invocation"] < 40


def test_the_hungry_one_is_killed_at_128_mb_and_fits_with_its_second_event(lab: Lab) -> None:
    folder = sample("out_of_memory_python")
    found = lab.document("invoke", folder, "--no-pull", expect=7)["invocations"][0]
    assert found["outcome"] == Outcome.OUT_OF_MEMORY
    assert found["max_memory_used_mb"] == 128
    fits = lab.document("invoke", folder, "--no-pull", "-e", folder / "events/fits.json")["invocations"][0]
    assert fits["outcome"] == Outcome.SUCCESS


def test_the_busy_one_is_throttled_less_the_more_memory_it_has(lab: Lab) -> None:
    throttled = []
    for memory_mb in (128, 1769):
        (record,) = lab.document("invoke", sample("cpu_bound_python"), "--no-pull", "-m", memory_mb)["invocations"]
        assert record["outcome"] == Outcome.SUCCESS
        throttled.append(record["throttled_periods"])
    assert throttled[0] > throttled[1]


@pytest.mark.parametrize("folder", sorted(SAMPLES.iterdir()), ids=lambda folder: folder.name)
def test_every_sample_has_a_manifest_an_event_and_a_readme(folder: Path) -> None:
    from harness.function import load

    assert load(str(folder)).events
    assert "function.toml" in {each.name for each in folder.iterdir()}
    assert (folder / "README.md").read_text().strip()
