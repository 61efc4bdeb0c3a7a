"""What survived the freeze, read from the responses side by side."""

from __future__ import annotations

from typing import Any

import pytest
from test_invocation import record

from harness.analysis import warm
from harness.cli.warm import side_by_side
from harness.invocation import Invocation


def runs(*responses: Any) -> list[Invocation]:
    return [
        record(sequence=number, cold=number == 1, response=response, resident_after_bytes=number * 1024 * 1024)
        for number, response in enumerate(responses, 1)
    ]


def test_the_arrays_of_the_freeze_post() -> None:
    found = warm.findings(
        runs(
            {"A": [1], "B": [1], "C": [1], "D": [1]},
            {"A": [1], "B": [1, 2], "C": [1], "D": [1]},
            {"A": [1], "B": [1, 2, 3], "C": [1], "D": [1]},
        )
    )
    assert found["survived"] == ["B"]
    assert [(row["path"], row["changed"]) for row in found["responses"]] == [
        ("A", False),
        ("B", True),
        ("C", False),
        ("D", False),
    ]
    assert found["sandboxes"] == 1


@pytest.mark.parametrize(
    ("values", "grew"),
    [
        ([1, 2, 3], True),
        ([1, 1, 2], False),
        ([3, 2, 1], False),
        (["a", "ab", "abc"], True),
        ([[1], [1, 2]], True),
        ([[1], [2, 3]], False),
        ([True, True], False),
        ([None, 1], False),
        ([{"a": 1}, 5], False),
        ([0.5, 0.75], True),
    ],
)
def test_what_counts_as_grown(values: list[Any], grew: bool) -> None:
    assert warm.findings(runs(*[{"x": value} for value in values]))["survived"] == (["x"] if grew else [])


def test_a_value_that_a_response_lacks_is_absent_and_did_not_grow() -> None:
    found = warm.findings(runs({"a": 1}, {}, {"a": 3}))
    assert found["responses"][0]["values"] == [1, warm.ABSENT, 3] or found["responses"][0]["path"] == "a"
    assert found["survived"] == []


def test_nested_values_are_named_by_their_path_and_a_bare_response_too() -> None:
    assert warm.findings(runs({"a": {"b": 1}}, {"a": {"b": 2}}))["survived"] == ["a.b"]
    assert warm.findings(runs(1, 2))["survived"] == ["response"]


def test_one_invocation_says_nothing_about_growth() -> None:
    assert warm.findings(runs({"a": 1}))["survived"] == []


def test_memory_stands_beside_and_what_was_not_measured_stays_none() -> None:
    memory = warm.findings(runs(1, 2))["memory"]
    assert [each["resident_after_bytes"] for each in memory] == [1024 * 1024, 2 * 1024 * 1024]
    assert memory[0]["peak_rss_bytes"] is None


def test_long_values_are_shortened_to_a_cell() -> None:
    assert warm.shorten({"a": 1}) == '{"a": 1}'
    assert warm.shorten("x" * 100) == '"' + "x" * 38 + "…"
    assert warm.shorten(warm.ABSENT) == "(absent)"


def test_the_table_marks_what_changed_and_names_what_survived() -> None:
    invocations = runs({"A": [1], "B": [1]}, {"A": [1], "B": [1, 2]})
    text = side_by_side(warm.findings(invocations), invocations)
    rows = {line.split()[0]: line for line in text.splitlines() if line.strip()}
    assert "*" not in rows["A"]
    assert "* [1, 2]" in rows["B"]
    assert "#1 cold" in text
    assert "Grew from one invocation to the next: B." in text
    nothing = runs({"A": 1}, {"A": 1})
    assert "Nothing in the responses grew" in side_by_side(warm.findings(nothing), nothing)
