"""Documents become files of the kind that the suffix names; nothing is overwritten or left half written."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
import struct
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import pytest
from test_reports_document import cost_usd, hostile_document, invoke_document, sweep_document
from test_reports_labs_document import (
    hostile_documents,
    killed_leak_document,
    leak_document,
    load_document,
    oom_document,
    warm_document,
)

from harness.errors import InvalidInput, UsageError
from harness.reports import export

if TYPE_CHECKING:
    from pathlib import Path


def test_pictures_are_drawn_without_a_browser(tmp_path: Path) -> None:
    for document, stem in ((sweep_document(), "sweep"), (invoke_document(), "invoke")):
        png = export.write(document, tmp_path / f"{stem}.png").read_bytes()
        assert png.startswith(b"\x89PNG")
        width, height = struct.unpack(">II", png[16:24])
        assert width > 1500
        assert height > 400
        svg = export.write(document, tmp_path / f"{stem}.svg").read_text()
        assert svg.startswith("<svg")
        assert "thumbnails" in svg
        ElementTree.fromstring(svg)  # noqa: S314 (made here)


def test_a_picture_file_needs_no_style_sheet(tmp_path: Path) -> None:
    svg = export.write(sweep_document(), tmp_path / "a.svg").read_text()
    assert "var(--" not in svg, "few viewers know CSS variables"
    for memory in ("128", "256", "512", "1024", "1769"):
        assert f">{memory}<" in svg


@pytest.mark.parametrize(
    ("make", "title"),
    [
        (leak_document, "thumbnails: memory after each warm invocation"),
        (killed_leak_document, "thumbnails: memory after each warm invocation"),
        (oom_document, "thumbnails: the kill at 307 MB"),
        (lambda: oom_document(needs_mb=1), "thumbnails: the memory sizes that were tried"),
        (load_document, "thumbnails: its sandboxes under load"),
        (warm_document, "thumbnails: one sandbox at 512 MB"),
    ],
)
def test_each_kind_has_a_picture_of_its_own(tmp_path: Path, make: Any, title: str) -> None:
    document = make()
    svg = export.write(document, tmp_path / "a.svg").read_text()
    assert f">{title}<" in svg
    assert "var(--" not in svg
    ElementTree.fromstring(svg)  # noqa: S314 (made here)
    assert export.write(document, tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads(export.write(document, tmp_path / "a.json").read_text()) == document
    rows = list(csv.DictReader(io.StringIO(export.write(document, tmp_path / "a.csv").read_text())))
    assert len(rows) == len(document["invocations"])


def test_hostile_text_breaks_no_picture_of_any_kind(tmp_path: Path) -> None:
    for at, document in enumerate(hostile_documents()):
        root = ElementTree.fromstring(export.write(document, tmp_path / f"{at}.svg").read_text())  # noqa: S314
        assert not [one for one in root.iter() if one.tag.endswith(("img", "image", "script"))]


def test_a_hostile_name_does_not_break_a_picture(tmp_path: Path) -> None:
    root = ElementTree.fromstring(export.write(hostile_document(), tmp_path / "a.svg").read_text())  # noqa: S314
    assert not [one for one in root.iter() if one.tag.endswith(("img", "image", "script"))]
    export.write(hostile_document(), tmp_path / "a.png")


def test_every_record_is_a_row_whose_figures_read_back(tmp_path: Path) -> None:
    document = sweep_document()
    rows = list(csv.DictReader(io.StringIO(export.write(document, tmp_path / "a.csv").read_text())))
    assert len(rows) == len(document["invocations"]) == 105
    for row, record in zip(rows, document["invocations"], strict=True):
        assert float(row["duration_ms"]) == record["duration_ms"]
        assert row["request_id"] == record["request_id"]
        assert (row["frozen_ms"] == "") is (record["frozen_ms"] is None), "null is empty and not 0"
    warm = [float(row["duration_ms"]) for row in rows if row["memory_mb"] == "512" and row["cold"] == "false"]
    tiers = {row["memory_mb"]: row for row in csv.DictReader(io.StringIO(export.tiers_csv(document)))}
    assert math.isclose(float(tiers["512"]["duration_ms.mean"]), statistics.mean(warm), rel_tol=1e-12)
    assert float(tiers["512"]["duration_ms.p50"]) == statistics.median(warm)
    assert tiers["512"]["duration_ms.p99"] == ""


def test_text_with_commas_and_lines_stays_in_its_cell() -> None:
    document = invoke_document()
    document["invocations"][0]["error_message"] = 'a, "b"\nc'
    rows = list(csv.DictReader(io.StringIO(export.invocations_csv(document))))
    assert rows[0]["error_message"] == 'a, "b"\nc'
    assert len(rows) == 4


def test_the_suffix_tiers_csv_writes_the_sizes(tmp_path: Path) -> None:
    text = export.write(sweep_document(), tmp_path / "a.tiers.csv").read_text()
    assert text.startswith("memory_mb,")
    assert len(text.splitlines()) == 6


def test_json_is_the_document_in_json_that_every_parser_takes(tmp_path: Path) -> None:
    document = sweep_document()
    assert json.loads(export.write(document, tmp_path / "a.json").read_text()) == document

    def refuse(name: str) -> None:
        raise AssertionError(name)

    text = export.write(hostile_document(), tmp_path / "b.json").read_text()
    assert json.loads(text, parse_constant=refuse)["invocations"][3]["response"] is None, "NaN is not JSON"


def test_power_tunings_shape(tmp_path: Path) -> None:
    document = sweep_document()
    found = json.loads(export.write(document, tmp_path / "a.power-tuning.json").read_text())["results"]
    warm = [one for one in document["invocations"] if one["memory_mb"] == 1769 and not one["cold"]]
    assert found["power"] == 1769
    assert math.isclose(found["duration"], statistics.mean(one["duration_ms"] for one in warm), rel_tol=1e-12)
    assert math.isclose(found["cost"], statistics.mean(cost_usd(one["billed_ms"], 1769) for one in warm), rel_tol=1e-6)
    everything = math.fsum(cost_usd(one["billed_ms"], one["memory_mb"]) for one in document["invocations"])
    assert math.isclose(found["stateMachine"]["lambdaCost"], everything, rel_tol=1e-6)
    assert [one["value"] for one in found["stats"]] == [128, 256, 512, 1024, 1769]
    assert set(found["stats"][0]) == {"averagePrice", "averageDuration", "value"}


def test_power_tunings_shape_needs_a_recommendation() -> None:
    with pytest.raises(InvalidInput, match="recommends no memory size"):
        export.power_tuning(invoke_document())


def test_a_run_without_invocations_has_no_picture(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="261121-203000-v3k has no invocation") as caught:
        export.write({**invoke_document(), "invocations": []}, tmp_path / "a.svg")
    assert ".csv" in caught.value.remedy
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_left_as_it_is_unless_forced(tmp_path: Path) -> None:
    target = tmp_path / "a.csv"
    target.write_text("mine")
    with pytest.raises(UsageError) as caught:
        export.write(invoke_document(), target)
    assert str(target) in str(caught.value)
    assert "--force" in caught.value.remedy
    assert target.read_text() == "mine"
    export.write(invoke_document(), target, force=True)
    assert target.read_text().startswith("request_id")
    assert list(tmp_path.iterdir()) == [target], "nothing is left beside it"


def test_a_file_that_appears_meanwhile_is_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "a.csv"

    def appear(document: object) -> bytes:
        target.write_text("mine")
        return b"ours"

    monkeypatch.setitem(export._WRITERS, ".csv", appear)
    with pytest.raises(UsageError, match="exists already"):
        export.write(invoke_document(), target)
    assert target.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("name", ["report.pdf", "report", ".html"])
def test_an_unknown_suffix_names_the_known_ones(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError) as caught:
        export.check_target(tmp_path / name)
    assert name in str(caught.value)
    for suffix in (".html", ".png", ".svg", ".csv", ".json"):
        assert suffix in caught.value.remedy


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no folder"):
        export.check_target(tmp_path / "nowhere" / "a.html")
    (tmp_path / "a.html").mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        export.check_target(tmp_path / "a.html", force=True)


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = OSError(28, "No space left on device")

    def refuse(*_: object) -> None:
        raise full

    monkeypatch.setattr("os.fdopen", refuse)
    with pytest.raises(InvalidInput, match="No space left on device"):
        export.write(invoke_document(), tmp_path / "a.csv")
    assert list(tmp_path.iterdir()) == []


def test_suffixes_may_be_written_in_capitals(tmp_path: Path) -> None:
    assert export.write(sweep_document(), tmp_path / "A.PNG").read_bytes().startswith(b"\x89PNG")
