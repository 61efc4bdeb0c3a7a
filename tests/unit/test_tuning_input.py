"""The input of aws-lambda-power-tuning: what is taken over, what is ignored by name, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.errors import InvalidInput
from harness.event import REQUEST_LIMIT_BYTES
from harness.experiments import tuning_input
from harness.experiments.tuning_input import TuningInput


def parse(**members: Any) -> TuningInput:
    return tuning_input.parse(members, "input.json")


def test_an_empty_input_says_nothing() -> None:
    assert parse() == TuningInput()


def test_the_members_are_taken_over_with_their_meanings() -> None:
    found = parse(
        lambdaARN="arn:aws:lambda:us-east-1:123456789012:function:f",
        powerValues=[128, 512, 1769],
        num=50,
        strategy="balanced",
        balancedWeight=0.25,
        discardTopBottom=0.2,
        sleepBetweenRunsMs=250,
        onlyColdStarts=True,
        allowedExceptions=["TypeError", "KeyError"],
        payload={"a": 1},
    )
    assert found.memory_mb == (128, 512, 1769)
    assert (found.count, found.strategy, found.weight, found.discard) == (50, "balanced", 0.25, 0.2)
    assert (found.pause_s, found.cold_only) == (0.25, True)
    assert found.allowed_exceptions == ("TypeError", "KeyError")
    assert [json.loads(each.event) for each in found.events] == [{"a": 1}]
    assert found.ignored == ("lambdaARN",)


def test_all_power_values_are_every_64_mb() -> None:
    found = parse(powerValues="ALL").memory_mb
    assert found is not None
    assert (found[0], found[1], found[-1]) == (128, 192, 10240)


def test_an_empty_list_of_power_values_stays_empty_so_that_the_plan_refuses_it() -> None:
    assert parse(powerValues=[]).memory_mb == ()


def test_weighted_payloads_keep_their_weights() -> None:
    found = parse(payload=[{"payload": {"n": 1}, "weight": 30}, {"payload": {"n": 2}, "weight": 10}]).events
    assert [(json.loads(each.event), each.weight) for each in found] == [({"n": 1}, 30.0), ({"n": 2}, 10.0)]


@pytest.mark.parametrize("payload", [[1, 2], [{"weight": 1, "payload": 1}, {"kilo": 2}], [], "plain text", None])
def test_a_list_in_which_not_every_member_has_a_weight_is_one_payload(payload: Any) -> None:
    found = parse(payload=payload).events
    assert [json.loads(each.event) for each in found] == ([] if payload is None else [payload])


def test_a_payload_may_be_text_that_holds_json() -> None:
    assert [each.event for each in parse(payload='{"a": 1}').events] == [b'{"a": 1}']


def test_a_payload_above_lambdas_limit_is_refused() -> None:
    with pytest.raises(InvalidInput, match="Lambda takes at most"):
        parse(payload="x" * REQUEST_LIMIT_BYTES)


@pytest.mark.parametrize(
    "name",
    ["autoOptimize", "autoOptimizeAlias", "dryRun", "includeOutputResults", "disablePayloadLogs", "parallelInvocation"],
)
def test_what_has_no_use_here_is_named_as_ignored(name: str) -> None:
    assert parse(**{name: True}).ignored == (name,)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("payloadS3", "s3://bucket/key"),
        ("preProcessorARN", "arn:..."),
        ("postProcessorARN", "arn:..."),
        ("powerValues", "auto"),
        ("powerValues", 128),
        ("powerValues", ["128"]),
        ("powerValues", [True]),
        ("num", 0),
        ("num", 2.5),
        ("num", "10"),
        ("num", True),
        ("strategy", "rating"),
        ("balancedWeight", 1.5),
        ("balancedWeight", float("nan")),
        ("discardTopBottom", 0.5),
        ("sleepBetweenRunsMs", -1),
        ("sleepBetweenRunsMs", float("inf")),
        ("onlyColdStarts", "false"),
        ("allowedExceptions", "TypeError"),
        ("allowedExceptions", [1]),
        ("powervalues", [128]),
    ],
)
def test_what_cannot_be_had_or_makes_no_sense_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(InvalidInput, match=f"input.json: .*{name}|input.json: strategy") as refused:
        parse(**{name: value})
    assert refused.value.remedy


@pytest.mark.parametrize("weight", [0, -1, "1", None, float("inf"), float("nan")])
def test_a_weight_is_a_number_above_zero(weight: Any) -> None:
    with pytest.raises(InvalidInput, match="weight"):
        parse(payload=[{"payload": 1, "weight": weight}])


@pytest.mark.parametrize("content", ["", "{", "[]", "7", '"text"'])
def test_a_file_that_holds_no_object_is_refused_with_its_name(tmp_path: Path, content: str) -> None:
    path = tmp_path / "input.json"
    path.write_text(content)
    with pytest.raises(InvalidInput, match=r"input\.json"):
        tuning_input.read(path)


def test_a_file_that_is_not_there_is_refused_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"missing\.json cannot be read"):
        tuning_input.read(tmp_path / "missing.json")
    with pytest.raises(InvalidInput, match="cannot be read"):
        tuning_input.read(tmp_path)


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "input.json"
    path.write_text('{"powerValues": [256], "num": 5}')
    assert tuning_input.read(path) == TuningInput(memory_mb=(256,), count=5)
