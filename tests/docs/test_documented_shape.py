"""Shapes agree where only figures differ, and disagree where a row, a word or a column does."""

from __future__ import annotations

import pytest
from documented import ROOT, commands
from shape import agree

TABLE = [
    "  memory   n   duration      95 % interval   cost of a million",
    " ─────────────────────────────────────────────────────────────",
    "  128 MB   4     4.58 s   4.42 s to 4.71 s               $9.75",
    " 1024 MB   4     529 ms   510 ms to 564 ms               $9.03",
]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (TABLE, [line.replace("529 ms", "1.2 s").replace("$9.03", "$11.10").replace("─", "──") for line in TABLE]),
        (['{"rows": 6, "ms": 15.9, "lost": null}'], ['{"rows": 1234, "ms": 0, "lost": null}']),
        (
            ["REPORT RequestId: d3498a25-f93d-44b7-a1c6-81fe0305b2c1\tDuration: 948.76 ms\t"],
            ["REPORT RequestId: 228bcfa2-fd7a-4fa6-8130-04351a9bdc2e\tDuration: 0.1 ms"],
        ),
        (["  512 MB  ██████  258 ms"], ["▸ 512 MB  █▏ 1.2 s"]),
        (["12:01:02 serving Lambda on http://127.0.0.1:4577"], ["23:59:01 serving Lambda on http://127.0.0.1:39041"]),
        (["first", "...", "last"], ["first", "a", "b", "last"]),
        (["first", "...", "last"], ["first", "last"]),
        (["all of it"], ["all of it", "note: this host is busy"]),
        (
            ["It grew by 1 KB " + "x" * 175, "until the 128 MB are used up."],
            ["It grew by 10 KB " + "x" * 175 + " until the 128 MB", "are used up."],
        ),
    ],
)
def test_figures_may_differ(one: list[str], other: list[str]) -> None:
    assert agree(one, other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (TABLE, TABLE[:-1]),
        (TABLE[:-1], TABLE),
        (TABLE, [line.replace("interval", "range") for line in TABLE]),
        (['{"rows": 6, "lost": null}'], ['{"rows": 6, "lost": 3}']),
        (['{"rows": 6, "lost": null}'], ['{"rows": 6}']),
        (["Max Memory Used: 36 MB"], ["Max Memory Used: 36 ms"]),
        (["nodejs22.x"], ["nodejs24.x"]),
        (["first", "...", "last"], ["first", "a", "b"]),
        (["a leak"], ["no leak"]),
        (["something"], []),
    ],
)
def test_rows_and_words_may_not(one: list[str], other: list[str]) -> None:
    assert not agree(one, other)


def test_commands_are_found_in_blocks_in_running_text_and_behind_a_prompt() -> None:
    found = {(each.text, bool(each.output)) for each in commands(ROOT / "README.md")}
    assert ("make demo", False) in found
    assert ("lambda-harness doctor", False) in found
    freeze = [*commands(ROOT / "sample_functions/freeze_arrays_node/README.md")]
    assert [len(each.output) > 5 for each in freeze if each.text.startswith("lambda-harness warm")] == [False, True]


def test_lines_of_two_streams_may_come_in_any_order_but_each_in_its_own() -> None:
    out, error = ["answer one", "answer two"], ["report one", "report two"]
    assert agree(["answer one", "report one", "answer two", "report two"], out, error)
    assert agree(["report one", "...", "answer two"], out, error)
    assert not agree(["answer two", "report one", "answer one", "report two"], out, error)
