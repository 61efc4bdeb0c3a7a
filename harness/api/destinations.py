"""Where asynchronous invocations report their end: another function, or a file that stands for an AWS service.

The documents are AWS's own: the invocation record of a destination (version 1.0), EventBridge's envelope around it, and
the message of a dead-letter queue with its three attributes. Nothing leaves this machine: an SQS queue, an SNS topic, an
S3 bucket or an event bus is a file of JSON lines, ``destinations/<service>/<name>.jsonl`` in the data directory. Must not
know queues or retries.
"""

from __future__ import annotations

import datetime
import json
import os
import re
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from harness.errors import InvalidInput
from harness.invocation import Invocation, Outcome

_LAMBDA, _EVENTS = "lambda", "events"
_MESSAGE_LETTERS = 1024
"""A dead-letter message tells the first kilobyte of the error [developer guide, "Adding a dead-letter queue"]."""
_NO_INVOCATION = "Function not invoked: its reserved concurrency is 0."


class Condition(StrEnum):
    """Why an asynchronous invocation is over: AWS's own words."""

    SUCCESS = "Success"
    RETRIES_EXHAUSTED = "RetriesExhausted"
    EVENT_AGE_EXCEEDED = "EventAgeExceeded"
    ZERO_RESERVED_CONCURRENCY = "ZeroReservedConcurrency"


@dataclass(frozen=True, kw_only=True)
class Ended:
    """An asynchronous invocation that is over. ``record`` is that of its last attempt; None where there was none."""

    request_id: str
    function_arn: str
    """With the qualifier, ``$LATEST`` where there is none."""
    executed_version: str
    condition: Condition
    attempts: int
    event: bytes
    record: Invocation | None
    failure: str | None = None
    """What kept the last attempt from running, where the harness failed and not the function."""
    hops: int = 0
    """How many functions handed on to the next one before this."""


def invocation_record(ended: Ended, *, now: datetime.datetime | None = None) -> dict[str, Any]:
    """What a destination is told [developer guide, "Capturing records of Lambda asynchronous invocations"]."""
    stamp = (now or datetime.datetime.now(datetime.UTC)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    found: dict[str, Any] = {
        "version": "1.0",
        "timestamp": stamp,
        "requestContext": {
            "requestId": ended.request_id,
            "functionArn": ended.function_arn,
            "condition": str(ended.condition),
            "approximateInvokeCount": ended.attempts,
        },
        "requestPayload": _parsed(ended.event),
    }
    status = _status(ended)
    if status is not None:
        found["responseContext"] = {"statusCode": status, "executedVersion": ended.executed_version}
        if status == 200 and ended.condition is not Condition.SUCCESS:
            found["responseContext"]["functionError"] = "Unhandled"
    if ended.record is not None and status == 200:
        found["responsePayload"] = ended.record.response
    return found


def event_bridge_event(record: dict[str, Any], arn: str) -> dict[str, Any]:
    """The event that an event bus gets, with the invocation record as its detail."""
    function_arn = record["requestContext"]["functionArn"]
    how = "Success" if record["requestContext"]["condition"] == Condition.SUCCESS else "Failure"
    _, _, _, region, account, *_ = function_arn.split(":")
    return {
        "version": "0",
        "id": str(uuid.uuid4()),
        "detail-type": f"Lambda Function Invocation Result - {how}",
        "source": "lambda",
        "account": account,
        "time": record["timestamp"],
        "region": region,
        "resources": [arn, function_arn],
        "detail": record,
    }


def dead_letter(ended: Ended) -> dict[str, Any]:
    """The message that a dead-letter queue or topic gets: the event itself, and what went wrong in three attributes."""
    message = (ended.record.error_message if ended.record is not None else ended.failure) or _NO_INVOCATION
    return {
        "Body": ended.event.decode("utf-8", "replace"),
        "MessageAttributes": {
            "RequestID": {"DataType": "String", "StringValue": ended.request_id},
            "ErrorCode": {"DataType": "Number", "StringValue": str(_status(ended) or 429)},
            "ErrorMessage": {"DataType": "String", "StringValue": message[:_MESSAGE_LETTERS]},
        },
    }


def _status(ended: Ended) -> int | None:
    if ended.record is None:
        return None if ended.failure is None else 500
    return {Outcome.THROTTLED: 429, Outcome.ENGINE_ERROR: 500}.get(ended.record.outcome, 200)


def _parsed(event: bytes) -> Any:
    try:
        return json.loads(event)
    except ValueError:
        return event.decode("utf-8", "replace")


class Destinations:
    """Delivers what is over. Thread-safe.

    ``to_function`` invokes the function of an ARN asynchronously, with an event and the number of hops before it.
    """

    def __init__(self, folder: Path, to_function: Callable[[str, bytes, int], None]) -> None:
        self._folder = folder
        self._to_function = to_function
        self._lock = threading.Lock()

    def deliver(self, ended: Ended, *, to: str) -> None:
        """Tell a destination.

        Raises:
            InvalidInput: the file cannot be written, or the ARN names nothing.
        """
        record = invocation_record(ended)
        service, name = _destination(to)
        if service == _LAMBDA:
            self._to_function(to, json.dumps(record).encode(), ended.hops + 1)
        else:
            self._append(service, name, event_bridge_event(record, to) if service == _EVENTS else record)

    def bury(self, ended: Ended, *, to: str) -> None:
        """Put the event into a dead-letter queue; the errors are those of `deliver`."""
        service, name = _destination(to)
        if service == _LAMBDA:
            self._to_function(to, ended.event, ended.hops + 1)
        else:
            self._append(service, name, dead_letter(ended))

    def path(self, arn: str) -> Path:
        """The file that stands for a destination."""
        service, name = _destination(arn)
        return self._folder / service / f"{name}.jsonl"

    def _append(self, service: str, name: str, document: dict[str, Any]) -> None:
        path = self._folder / service / f"{name}.jsonl"
        line = json.dumps(document, separators=(",", ":")).encode() + b"\n"
        try:
            with self._lock:
                path.parent.mkdir(parents=True, exist_ok=True)
                # For the owner alone: payloads may hold secrets.
                with open(path, "ab", opener=_private) as file:  # Path.open takes no opener
                    file.write(line)
        except OSError as error:
            raise InvalidInput(
                f"the destination {path} cannot be written: {error.strerror or error}",
                remedy="free some space, or see to the modes of the data directory",
            ) from error


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _destination(arn: str) -> tuple[str, str]:
    """Service and name, fit to be names of files whatever somebody wrote into the ARN."""
    parts = arn.split(":")
    if len(parts) < 6 or parts[0] != "arn":
        raise InvalidInput(
            f"{arn!r} is no ARN of a destination", remedy="name an SQS queue, SNS topic, bus or function"
        )
    return _file_name(parts[2]), _file_name(re.split(r"[:/]", ":".join(parts[5:]))[-1])


def _file_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "_", text)[:200] or "unnamed"
