"""What is told of an asynchronous invocation that is over: AWS's documents, in files or to another function."""

from __future__ import annotations

import datetime
import json
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes import function

from harness.api.destinations import (
    Condition,
    Destinations,
    Ended,
    dead_letter,
    event_bridge_event,
    invocation_record,
)
from harness.context import RequestContext
from harness.errors import InvalidInput
from harness.invocation import Invocation, Outcome
from harness.pool import throttled

QUEUE = "arn:aws:sqs:us-east-1:000000000000:failures"
ARN = "arn:aws:lambda:us-east-1:000000000000:function:probe:$LATEST"
NOON = datetime.datetime(2026, 11, 22, 12, 0, 0, 568_000, tzinfo=datetime.UTC)


def record(outcome: Outcome, **found: Any) -> Invocation:
    made = throttled(function(), RequestContext(), reason="", why="", vantage="host")
    return replace(made, outcome=outcome, **found)


FAILED = record(
    Outcome.FUNCTION_ERROR,
    error_type="ValueError",
    error_message="boom " * 300,
    response={"errorType": "ValueError", "errorMessage": "boom"},
)


def ended(**changes: Any) -> Ended:
    found: dict[str, Any] = {
        "request_id": "e4b46cbf",
        "function_arn": ARN,
        "executed_version": "$LATEST",
        "condition": Condition.RETRIES_EXHAUSTED,
        "attempts": 3,
        "event": b'{"ORDER_IDS": ["1"]}',
        "record": FAILED,
    }
    return Ended(**(found | changes))


def test_a_failure_is_told_in_awss_form() -> None:
    assert invocation_record(ended(), now=NOON) == {
        "version": "1.0",
        "timestamp": "2026-11-22T12:00:00.568Z",
        "requestContext": {
            "requestId": "e4b46cbf",
            "functionArn": ARN,
            "condition": "RetriesExhausted",
            "approximateInvokeCount": 3,
        },
        "requestPayload": {"ORDER_IDS": ["1"]},
        "responseContext": {"statusCode": 200, "executedVersion": "$LATEST", "functionError": "Unhandled"},
        "responsePayload": {"errorType": "ValueError", "errorMessage": "boom"},
    }


def test_a_success_has_no_function_error() -> None:
    good = record(Outcome.SUCCESS, response=[1])
    found = invocation_record(ended(condition=Condition.SUCCESS, record=good))
    assert found["responseContext"] == {"statusCode": 200, "executedVersion": "$LATEST"}
    assert found["responsePayload"] == [1]


@pytest.mark.parametrize(
    ("changes", "status"),
    [({"record": record(Outcome.THROTTLED)}, 429), ({"record": None, "failure": "no engine"}, 500)],
)
def test_what_did_not_reach_the_function_has_no_response(changes: dict[str, Any], status: int) -> None:
    found = invocation_record(ended(condition=Condition.EVENT_AGE_EXCEEDED, **changes))
    assert found["responseContext"] == {"statusCode": status, "executedVersion": "$LATEST"}
    assert "responsePayload" not in found


def test_a_dead_letter_is_the_event_with_three_attributes() -> None:
    found = dead_letter(ended())
    assert found["Body"] == '{"ORDER_IDS": ["1"]}'
    attributes = {name: (one["DataType"], one["StringValue"]) for name, one in found["MessageAttributes"].items()}
    assert attributes["RequestID"] == ("String", "e4b46cbf")
    assert attributes["ErrorCode"] == ("Number", "200")
    assert attributes["ErrorMessage"] == ("String", ("boom " * 300)[:1024])


def test_an_event_bus_gets_an_envelope() -> None:
    found = event_bridge_event(
        invocation_record(ended(), now=NOON), "arn:aws:events:us-east-1:000000000000:event-bus/b"
    )
    assert found["detail-type"] == "Lambda Function Invocation Result - Failure"
    assert (found["source"], found["region"], found["account"]) == ("lambda", "us-east-1", "000000000000")
    assert found["detail"]["requestContext"]["requestId"] == "e4b46cbf"


@pytest.fixture
def handed_on() -> list[tuple[str, Any, int]]:
    return []


@pytest.fixture
def destinations(tmp_path: Path, handed_on: list[tuple[str, Any, int]]) -> Destinations:
    return Destinations(tmp_path, lambda arn, event, hops: handed_on.append((arn, json.loads(event), hops)))


@pytest.mark.parametrize(
    ("arn", "file"),
    [
        (QUEUE, "sqs/failures.jsonl"),
        ("arn:aws:sns:us-east-1:000000000000:topic", "sns/topic.jsonl"),
        ("arn:aws:s3:::bucket", "s3/bucket.jsonl"),
        ("arn:aws:events:us-east-1:000000000000:event-bus/bus", "events/bus.jsonl"),
        ("arn:aws:sqs:us-east-1:000000000000:../../etc/..", "sqs/__.jsonl"),
        ("arn:aws:../..:us-east-1:000000000000:queue.fifo", "_____/queue_fifo.jsonl"),
    ],
)
def test_aws_services_are_files_below_the_data_directory(
    destinations: Destinations, tmp_path: Path, arn: str, file: str
) -> None:
    for _ in range(2):
        destinations.deliver(ended(), to=arn)
    lines = (tmp_path / file).read_text().splitlines()
    assert [json.loads(line).get("version") for line in lines] == (["0"] if "events" in arn else ["1.0"]) * 2
    assert destinations.path(arn) == tmp_path / file
    assert stat.S_IMODE((tmp_path / file).stat().st_mode) == 0o600


def test_a_function_is_invoked_with_the_record(
    destinations: Destinations, handed_on: list[tuple[str, Any, int]]
) -> None:
    destinations.deliver(ended(hops=2), to=ARN)
    [(arn, event, hops)] = handed_on
    assert (arn, event["requestContext"]["condition"], hops) == (ARN, "RetriesExhausted", 3)


def test_a_dead_letter_lies_in_its_queue(destinations: Destinations) -> None:
    destinations.bury(ended(), to=QUEUE)
    assert json.loads(destinations.path(QUEUE).read_text())["Body"] == '{"ORDER_IDS": ["1"]}'


def test_what_is_no_arn_and_what_cannot_be_written_is_refused(destinations: Destinations, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no ARN"):
        destinations.deliver(ended(), to="failures")
    (tmp_path / "sqs").write_text("in the way")
    with pytest.raises(InvalidInput, match="cannot be written"):
        destinations.deliver(ended(), to=QUEUE)
