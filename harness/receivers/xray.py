"""X-Ray: segments as they come from SDKs, by UDP or HTTP, merged into trees. Pure; knows no sockets.

The daemon's protocol: a datagram is a line ``{"format":"json","version":1}`` and a segment document. A document is a
segment, or a subsegment that was sent on its own (inside Lambda there are no others: the segment itself is Lambda's), and
may hold subsegments. Documents come in any order, and twice where one was first in progress [X-Ray developer guide,
"X-Ray segment documents"].
"""

from __future__ import annotations

import datetime
import json
import re
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from harness.receivers.http_exchange import BodyRefused, Reply, Request, new_request_id, plain_body

BODY_BYTES = 4 * 1024 * 1024
"""Of an HTTP call: PutTraceSegments takes 50 documents of 64 KB."""
MOST_DOCUMENTS_A_CALL = 50
_DEEPEST = 100
"""Below that, a tree is cut: what hangs lower is shown beside it, and says so."""

_ID = re.compile(r"[0-9a-fA-F]{16}")
_TRACE_ID = re.compile(r"1-[0-9a-fA-F]{8}-[0-9a-fA-F]{24}")

DEFAULT_RULE: dict[str, Any] = {
    "RuleName": "Default",
    "RuleARN": "*",
    "ResourceARN": "*",
    "Priority": 10000,
    "FixedRate": 1.0,
    "ReservoirSize": 1,
    "ServiceName": "*",
    "ServiceType": "*",
    "Host": "*",
    "HTTPMethod": "*",
    "URLPath": "*",
    "Version": 1,
    "Attributes": {},
}
"""Everything is sampled: here it costs nothing, and a trace that is looked for should be there."""
_RULE_CHANGED = 0.0
_TARGET_INTERVAL_S = 10


class InvalidSegment(Exception):
    """A document that X-Ray would not take; the message names the member and the rule."""


# -- documents ----------------------------------------------------------------------------------------------------------


def read_datagram(data: bytes) -> dict[str, Any]:
    """The document of one datagram, checked; raises `InvalidSegment`."""
    head, _, body = data.partition(b"\n")
    try:
        header = json.loads(head)
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict) or header.get("format") != "json" or header.get("version") != 1:
        raise InvalidSegment('the datagram does not begin with the line {"format":"json","version":1}')
    return read_document(body)


def read_document(text: bytes | str) -> dict[str, Any]:
    """A document, checked; raises `InvalidSegment`."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidSegment(f"the document is no JSON: {error}") from error
    if not isinstance(document, dict):
        raise InvalidSegment("the document is no JSON object")
    _check(document)
    return document


def _check(document: dict[str, Any]) -> None:
    trace_id = document.get("trace_id")
    if not isinstance(trace_id, str) or not _TRACE_ID.fullmatch(trace_id):
        raise InvalidSegment(f"{_named(document)} has no valid trace_id: {_shown(trace_id)}")
    if document.get("type", "subsegment") != "subsegment":
        raise InvalidSegment(f"{_named(document)} has the type {_shown(document['type'])}; only subsegment is known")
    parent_id = document.get("parent_id")
    if "type" in document and parent_id is None:
        raise InvalidSegment(f"{_named(document)} is a subsegment and has no parent_id")
    if parent_id is not None and (not isinstance(parent_id, str) or not _ID.fullmatch(parent_id)):
        raise InvalidSegment(f"{_named(document)} has no valid parent_id: {_shown(parent_id)}")
    waiting = [document]
    while waiting:
        one = waiting.pop()
        _check_one(one)
        for below in one.get("subsegments") or []:
            if not isinstance(below, dict):
                # X-Ray also knows ids here, of subsegments that were sent on their own; they bring their parent's id.
                continue
            waiting.append(below)


def _check_one(one: dict[str, Any]) -> None:
    if not isinstance(one.get("id"), str) or not _ID.fullmatch(one["id"]):
        raise InvalidSegment(f"{_named(one)} has no valid id: {_shown(one.get('id'))}")
    if not isinstance(one.get("name"), str) or not one["name"]:
        raise InvalidSegment(f"{_named(one)} has no name")
    if not _is_number(one.get("start_time")):
        raise InvalidSegment(f"{_named(one)} has no start_time in seconds: {_shown(one.get('start_time'))}")
    if not one.get("in_progress") and not _is_number(one.get("end_time")):
        raise InvalidSegment(f"{_named(one)} has no end_time in seconds and is not in_progress")
    if not isinstance(one.get("subsegments") or [], list):
        raise InvalidSegment(f"{_named(one)} has subsegments that are no array")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _named(document: dict[str, Any]) -> str:
    name = document.get("name")
    return f"segment {name[:80]!r}" if isinstance(name, str) else "a segment without a name"


def _shown(value: object) -> str:
    return repr(value)[:80]


# -- trees --------------------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class _Node:
    own: dict[str, Any]
    """The document without its subsegments."""
    parent_id: str | None


@dataclass(kw_only=True)
class _Trace:
    nodes: dict[str, _Node] = field(default_factory=dict)


class Traces:
    """All segments by trace. Safe to use from threads. The oldest traces are let go when there are too many segments."""

    def __init__(self, *, most_segments: int = 50_000) -> None:
        self._most = most_segments
        self._traces: OrderedDict[str, _Trace] = OrderedDict()
        self._count = 0
        self._lock = threading.Lock()
        self.dropped = 0
        """How many segments were let go."""

    def add(self, document: dict[str, Any]) -> None:
        """Take a checked document in, over what was known of the same segments."""
        with self._lock:
            trace = self._traces.setdefault(document["trace_id"], _Trace())
            waiting: list[tuple[dict[str, Any], str | None]] = [(document, document.get("parent_id"))]
            while waiting:
                one, parent_id = waiting.pop()
                self._add_one(trace, one, parent_id)
                waiting += [(below, one["id"]) for below in one.get("subsegments") or [] if isinstance(below, dict)]
            while self._count > self._most and len(self._traces) > 1:
                _, gone = self._traces.popitem(last=False)
                self._count -= len(gone.nodes)
                self.dropped += len(gone.nodes)

    def _add_one(self, trace: _Trace, one: dict[str, Any], parent_id: str | None) -> None:
        own = {name: value for name, value in one.items() if name != "subsegments"}
        known = trace.nodes.get(one["id"])
        if known is None:
            trace.nodes[one["id"]] = _Node(own=own, parent_id=parent_id)
            self._count += 1
            return
        late = own.get("in_progress") and "end_time" in known.own
        known.own = own | known.own if late else known.own | own
        if "end_time" in known.own:
            known.own.pop("in_progress", None)
        known.parent_id = known.parent_id or parent_id

    def trees(self) -> list[dict[str, Any]]:
        """Each root with all that hangs below it under ``subsegments``, in the order of their beginnings.

        Roots are segments without a parent, and those whose parent was not received: these carry a ``note``.
        """
        with self._lock:
            return [tree for trace in self._traces.values() for tree in _trees(trace)]


def _trees(trace: _Trace) -> list[dict[str, Any]]:
    below: dict[str, list[str]] = {}
    roots: list[tuple[str, str]] = []
    for own_id, node in trace.nodes.items():
        if node.parent_id is None:
            roots.append((own_id, ""))
        elif node.parent_id not in trace.nodes:
            what = "its parent" if node.own.get("type") == "subsegment" else "the caller's segment"
            roots.append((own_id, f"{what} {node.parent_id} was not received"))
        else:
            below.setdefault(node.parent_id, []).append(own_id)
    seen: set[str] = set()
    made = []
    waiting = deque(roots or [(next(iter(trace.nodes)), "its parents form a circle")])
    while waiting:
        own_id, note = waiting.popleft()
        tree, cut = _tree(trace, own_id, below, seen)
        made.append(tree | {"note": note} if note else tree)
        waiting += ((one, f"its parent {trace.nodes[one].parent_id} is nested too deeply") for one in cut)
        if not waiting:
            # What is left has parents that are each other's children: no root leads there, and it is shown all the same.
            waiting += [(one, "its parents form a circle") for one in trace.nodes if one not in seen][:1]
    return sorted(made, key=_begun)


def _tree(trace: _Trace, root_id: str, below: dict[str, list[str]], seen: set[str]) -> tuple[dict[str, Any], list[str]]:
    """The tree below a root, and the ids that hang too deep in it."""
    seen.add(root_id)
    root = dict(trace.nodes[root_id].own)
    cut: list[str] = []
    waiting = [(root_id, root, 0)]
    while waiting:
        own_id, made, depth = waiting.pop()
        children = [one for one in below.get(own_id, []) if one not in seen]
        if depth >= _DEEPEST:
            cut += children
            continue
        seen.update(children)
        nested = sorted(((one, dict(trace.nodes[one].own)) for one in children), key=lambda pair: _begun(pair[1]))
        if nested:
            made["subsegments"] = [child for _, child in nested]
        waiting += [(one, child, depth + 1) for one, child in nested]
    return root, cut


def _begun(node: dict[str, Any]) -> float:
    return float(node["start_time"])


# -- HTTP ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Answered:
    """What to send back, the documents that were accepted, and what the user should know."""

    reply: Reply
    documents: tuple[dict[str, Any], ...] = ()
    warnings: tuple[str, ...] = ()


def answer(request: Request, *, now: datetime.datetime) -> Answered:
    """X-Ray's answer to a call of its REST protocol; never raises for what the function sent."""
    operation = {
        "/TraceSegments": _put_trace_segments,
        "/GetSamplingRules": _sampling_rules,
        "/SamplingTargets": _sampling_targets,
        "/TelemetryRecords": _telemetry,
    }.get(request.path)
    if request.method != "POST" or operation is None:
        message = f"{request.method} {request.path[:80]} is no call that this local X-Ray receiver answers"
        return Answered(
            reply=_refused(404, "UnknownOperationException", message), warnings=(f"X-Ray receiver: {message}",)
        )
    try:
        parameters = json.loads(plain_body(request, most_bytes=BODY_BYTES) or b"{}")
    except (BodyRefused, ValueError, RecursionError) as error:
        return _invalid(f"the body of {request.path} cannot be read: {error}", getattr(error, "status", 400))
    if not isinstance(parameters, dict):
        return _invalid(f"the body of {request.path} is no JSON object", 400)
    return operation(parameters, now)


def throttled() -> Reply:
    """The answer where too many calls wait."""
    return _refused(429, "ThrottledException", "Rate exceeded")


def _invalid(message: str, status: int) -> Answered:
    return Answered(
        reply=_refused(status, "InvalidRequestException", message), warnings=(f"X-Ray receiver refused: {message}",)
    )


def _refused(status: int, code: str, message: str) -> Reply:
    return _json(status, {"__type": code, "Message": message}, {"x-amzn-ErrorType": code})


def _json(status: int, document: dict[str, Any], headers: dict[str, str] | None = None) -> Reply:
    return Reply(
        status=status,
        content_type="application/json",
        body=json.dumps(document).encode(),
        headers={"x-amzn-RequestId": new_request_id(), **(headers or {})},
    )


def _put_trace_segments(parameters: dict[str, Any], _: datetime.datetime) -> Answered:
    given = parameters.get("TraceSegmentDocuments")
    if not isinstance(given, list):
        return _invalid("TraceSegmentDocuments is not there or no list", 400)
    if len(given) > MOST_DOCUMENTS_A_CALL:
        return _invalid(f"TraceSegmentDocuments has {len(given)} documents, {MOST_DOCUMENTS_A_CALL} are allowed", 400)
    accepted, unprocessed, warnings = [], [], []
    for text in given:
        try:
            accepted.append(read_document(text if isinstance(text, str) else ""))
        except InvalidSegment as error:
            unprocessed.append({"Id": _id_in(text), "ErrorCode": "InvalidSegment", "Message": str(error)})
            warnings.append(f"X-Ray receiver did not take a segment: {error}")
    return Answered(
        reply=_json(200, {"UnprocessedTraceSegments": unprocessed}),
        documents=tuple(accepted),
        warnings=tuple(warnings),
    )


def _id_in(text: object) -> str:
    try:
        found = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        return ""
    return str(found.get("id", "")) if isinstance(found, dict) else ""


def _sampling_rules(_: dict[str, Any], __: datetime.datetime) -> Answered:
    record = {"SamplingRule": DEFAULT_RULE, "CreatedAt": _RULE_CHANGED, "ModifiedAt": _RULE_CHANGED}
    return Answered(reply=_json(200, {"SamplingRuleRecords": [record]}))


def _sampling_targets(parameters: dict[str, Any], now: datetime.datetime) -> Answered:
    known, unknown = _rules_named(parameters.get("SamplingStatisticsDocuments") or [])
    ends = int((now + datetime.timedelta(seconds=_TARGET_INTERVAL_S)).timestamp())
    targets = [
        {
            "RuleName": name,
            "FixedRate": DEFAULT_RULE["FixedRate"],
            "ReservoirQuota": DEFAULT_RULE["ReservoirSize"],
            "ReservoirQuotaTTL": ends,
            "Interval": _TARGET_INTERVAL_S,
        }
        for name in known
    ]
    unprocessed = [{"RuleName": name, "ErrorCode": "404", "Message": "there is no such rule"} for name in unknown]
    return Answered(
        reply=_json(
            200,
            {
                "SamplingTargetDocuments": targets,
                "LastRuleModification": _RULE_CHANGED,
                "UnprocessedStatistics": unprocessed,
            },
        )
    )


def _rules_named(documents: Iterable[Any]) -> tuple[list[str], list[str]]:
    names = [str(one.get("RuleName", "")) for one in documents if isinstance(one, dict)]
    is_known: Callable[[str], bool] = lambda name: name == DEFAULT_RULE["RuleName"]  # noqa: E731
    return [name for name in names if is_known(name)], [name for name in names if not is_known(name)]


def _telemetry(_: dict[str, Any], __: datetime.datetime) -> Answered:
    return Answered(reply=_json(200, {}))
