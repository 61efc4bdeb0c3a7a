"""Segments as the X-Ray SDKs send them, merged into trees, and those that Lambda itself sends."""

from __future__ import annotations

import datetime
import json
from itertools import permutations
from typing import Any

import pytest

from harness.context import Trace
from harness.invocation import Invocation, Outcome, PhaseInit
from harness.receivers import lambda_segments, xray
from harness.receivers.http_exchange import Request
from harness.receivers.xray import InvalidSegment, Traces

NOW = datetime.datetime(2026, 11, 22, 1, 20, tzinfo=datetime.UTC)
TRACE_ID = "1-69210000-0123456789abcdef01234567"
HEAD = b'{"format":"json","version":1}\n'

PYTHON_SDK_2_15 = [
    HEAD
    + b'{"id": "5e96e4e1b59cbded", "name": "inner", "start_time": 1795310036.495501, "parent_id": "4d31a6ab8227b973", '
    b'"in_progress": false, "trace_id": "1-69210000-0123456789abcdef01234567", "type": "subsegment", '
    b'"namespace": "local", "end_time": 1795310036.4955168}',
    HEAD + b'{"id": "4d31a6ab8227b973", "name": "## outer", "start_time": 1795310036.4954636, '
    b'"parent_id": "0123456789abcdef", "in_progress": false, "annotations": {"k": "v"}, '
    b'"trace_id": "1-69210000-0123456789abcdef01234567", "type": "subsegment", "namespace": "local", '
    b'"end_time": 1795310036.495866}',
]
NODE_SDK_3_12 = [
    HEAD + b'{"id":"c8e89563edbcdf83","name":"inner","start_time":1795310036.63,"end_time":1795310036.63,'
    b'"type":"subsegment","parent_id":"bfe89da490a2e008","trace_id":"1-69210000-0123456789abcdef01234567"}',
    HEAD + b'{"id":"bfe89da490a2e008","name":"outer","start_time":1795310036.629,"annotations":{"k":"v"},'
    b'"end_time":1795310036.632,"type":"subsegment","parent_id":"0123456789abcdef",'
    b'"trace_id":"1-69210000-0123456789abcdef01234567"}',
]


def segment(own_id: int, parent_id: int | None = None, **more: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "id": f"{own_id:016x}",
        "name": f"n{own_id}",
        "trace_id": TRACE_ID,
        "start_time": float(own_id),
        "end_time": own_id + 0.5,
    }
    if parent_id is not None:
        found |= {"parent_id": f"{parent_id:016x}", "type": "subsegment"}
    return found | more


def trees(*documents: dict[str, Any]) -> list[dict[str, Any]]:
    traces = Traces()
    for document in documents:
        traces.add(xray.read_document(json.dumps(document)))
    return traces.trees()


def names(tree: dict[str, Any]) -> Any:
    below = [names(one) for one in tree.get("subsegments", [])]
    return {tree["name"]: below} if below else tree["name"]


@pytest.mark.parametrize("datagrams", [PYTHON_SDK_2_15, NODE_SDK_3_12], ids=["python", "node"])
def test_inside_lambda_sdks_send_subsegments_one_by_one_children_first(datagrams: list[bytes]) -> None:
    traces = Traces()
    traces.add(segment(0x0123456789ABCDEF, origin="AWS::Lambda::Function", name="f"))
    for data in datagrams:
        traces.add(xray.read_datagram(data))
    (tree,) = traces.trees()
    (outer,) = tree["subsegments"]
    assert outer["annotations"] == {"k": "v"}
    assert [one["name"] for one in outer["subsegments"]] == ["inner"]


@pytest.mark.parametrize("order", list(permutations(range(4))))
def test_the_order_of_arrival_does_not_matter(order: tuple[int, ...]) -> None:
    documents = [
        segment(1),
        segment(2, 1),
        segment(3, 2, subsegments=[{"id": f"{4:016x}", "name": "n4", "start_time": 4, "end_time": 5}]),
        segment(5, 4),
    ]
    (tree,) = trees(*(documents[at] for at in order))
    assert names(tree) == {"n1": [{"n2": [{"n3": [{"n4": ["n5"]}]}]}]}


@pytest.mark.parametrize("late", [False, True])
def test_a_segment_in_progress_is_completed_whichever_comes_first(late: bool) -> None:
    begun = segment(1, in_progress=True, annotations={"early": 1}, user="begun")
    del begun["end_time"]
    done = segment(1, user="done")
    (tree,) = trees(done, begun) if late else trees(begun, done)
    assert (tree["end_time"], tree["user"]) == (1.5, "done")
    assert "in_progress" not in tree
    assert tree["annotations"] == {"early": 1}
    (open_tree,) = trees(begun)
    assert open_tree["in_progress"] is True


def test_a_subsegment_whose_parent_never_came_stays_visible_and_says_so() -> None:
    known, orphan = trees(segment(1), segment(5, 4))
    assert "note" not in known
    assert orphan["name"] == "n5"
    assert orphan["note"] == f"its parent {4:016x} was not received"


def test_parents_that_are_each_others_children_are_shown_once() -> None:
    (tree,) = trees(segment(1, 2), segment(2, 1))
    assert names(tree) == {"n1": ["n2"]}
    assert "circle" in tree["note"]
    (own,) = trees(segment(3, 3))
    assert own["name"] == "n3"


def test_a_chain_that_is_too_deep_to_be_shown_is_cut_and_nothing_is_lost() -> None:
    found = trees(segment(1), *(segment(one, one - 1) for one in range(2, 1001)))
    json.dumps(found)

    def count(tree: dict[str, Any]) -> int:
        return 1 + sum(count(one) for one in tree.get("subsegments", []))

    assert sum(count(tree) for tree in found) == 1000
    assert "nested too deeply" in found[1]["note"]


def test_the_oldest_traces_go_when_there_are_too_many_segments() -> None:
    traces = Traces(most_segments=10)
    for at in range(20):
        traces.add(segment(at + 1, trace_id=f"1-69210000-{at:024x}"))
    assert len(traces.trees()) == 10
    assert traces.dropped == 10
    assert traces.trees()[0]["name"] == "n11"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "does not begin"),
        (b'{"format":"xml","version":1}\n{}', "does not begin"),
        (HEAD + b"{", "no JSON"),
        (HEAD + b"[1]", "no JSON object"),
        (HEAD + b"[" * 50_000, "no JSON"),
        (HEAD + json.dumps(segment(1, trace_id="x")).encode(), "trace_id"),
        (HEAD + json.dumps(segment(1, id="x")).encode(), "no valid id"),
        (HEAD + json.dumps(segment(1, name="")).encode(), "name"),
        (HEAD + json.dumps(segment(1, start_time="now")).encode(), "start_time"),
        (HEAD + json.dumps(segment(1, end_time=None)).encode(), "end_time"),
        (HEAD + json.dumps(segment(1, type="subsegment")).encode(), "parent_id"),
        (HEAD + json.dumps(segment(1, type="thing")).encode(), "type"),
        (HEAD + json.dumps(segment(1) | {"parent_id": "x"}).encode(), "parent_id"),
        (HEAD + json.dumps(segment(1, subsegments="x")).encode(), "subsegments"),
        (HEAD + json.dumps(segment(1, subsegments=[{"id": "x"}])).encode(), "without a name has no valid id"),
    ],
)
def test_what_is_no_segment_is_refused_by_name(data: bytes, says: str) -> None:
    with pytest.raises(InvalidSegment, match=says):
        xray.read_datagram(data)


def call(path: str, body: Any, method: str = "POST") -> xray.Answered:
    return xray.answer(Request(method=method, path=path, body=json.dumps(body).encode()), now=NOW)


def test_segments_may_come_by_http_and_bad_ones_are_named_one_by_one() -> None:
    answered = call("/TraceSegments", {"TraceSegmentDocuments": [json.dumps(segment(1)), '{"id":"x"}', "{"]})
    assert answered.reply.status == 200
    assert [one["id"] for one in answered.documents] == [f"{1:016x}"]
    unprocessed = json.loads(answered.reply.body)["UnprocessedTraceSegments"]
    assert [one["Id"] for one in unprocessed] == ["x", ""]
    assert all(one["ErrorCode"] and one["Message"] for one in unprocessed)
    assert len(answered.warnings) == 2
    assert call("/TraceSegments", {"TraceSegmentDocuments": ["{}"] * 51}).reply.status == 400


def test_the_sampling_rule_samples_everything() -> None:
    (record,) = json.loads(call("/GetSamplingRules", {}).reply.body)["SamplingRuleRecords"]
    assert (record["SamplingRule"]["RuleName"], record["SamplingRule"]["FixedRate"]) == ("Default", 1.0)
    node_sdk_3_12 = {
        "SamplingStatisticsDocuments": [
            {"RuleName": "Default", "ClientID": "7b62133d16b820293061728b", "RequestCount": 0, "SampledCount": 0},
            {"RuleName": "another"},
        ]
    }
    found = json.loads(call("/SamplingTargets", node_sdk_3_12).reply.body)
    assert [one["RuleName"] for one in found["SamplingTargetDocuments"]] == ["Default"]
    assert isinstance(found["LastRuleModification"], float)
    assert [one["RuleName"] for one in found["UnprocessedStatistics"]] == ["another"]


@pytest.mark.parametrize(("path", "method"), [("/Groups", "POST"), ("/TraceSegments", "GET"), ("/", "POST")])
def test_other_calls_get_xrays_shape_of_error_and_are_named(path: str, method: str) -> None:
    answered = call(path, {}, method)
    assert answered.reply.status == 404
    assert answered.reply.headers["x-amzn-ErrorType"] == "UnknownOperationException"
    assert path in answered.warnings[0]


@pytest.mark.parametrize("body", [b"{", b"[]", b"\xff", b"[" * 100_000])
def test_bodies_that_mean_nothing_are_refused(body: bytes) -> None:
    answered = xray.answer(Request(method="POST", path="/TraceSegments", body=body), now=NOW)
    assert answered.reply.status == 400
    assert answered.warnings


# -- what Lambda itself sends -------------------------------------------------------------------------------------------

TRACE = Trace(trace_id=TRACE_ID, parent_id="0123456789abcdef", sampled=True)


def record(**changes: Any) -> Invocation:
    settings: dict[str, Any] = {
        "request_id": "6f1b1f4e-0000-4000-8000-000000000000",
        "function": "probe",
        "runtime": "python3.13",
        "memory_mb": 128,
        "architecture": "x86_64",
        "image": "image:tag",
        "rie_version": "1.37",
        "sandbox_id": "sandbox",
        "sequence": 1,
        "cold": True,
        "phase_init": PhaseInit.INIT,
        "started_at": "2026-11-22T01:00:00+00:00",
        "outcome": Outcome.SUCCESS,
        "init_ms": 100.0,
        "duration_ms": 50.0,
        "client_ms": 160.0,
    }
    return Invocation(**(settings | changes))


BEGUN = datetime.datetime(2026, 11, 22, 1, tzinfo=datetime.UTC).timestamp()


def test_a_cold_invocation_has_the_services_segment_the_functions_and_its_two_phases() -> None:
    service, own = lambda_segments.segments(record(), TRACE, caller_id="fedcba9876543210")
    assert (service["origin"], own["origin"]) == ("AWS::Lambda", "AWS::Lambda::Function")
    assert own["id"] == TRACE.parent_id, "what the SDKs send hangs below it"
    assert own["parent_id"] == service["id"]
    assert service["parent_id"] == "fedcba9876543210"
    assert (service["start_time"], service["end_time"]) == pytest.approx((BEGUN, BEGUN + 0.16))
    init, invocation = own["subsegments"]
    assert [init["name"], invocation["name"]] == ["Initialization", "Invocation"]
    assert init["end_time"] - init["start_time"] == pytest.approx(0.1)
    assert invocation["end_time"] - invocation["start_time"] == pytest.approx(0.05)
    assert invocation["end_time"] == own["end_time"] == service["end_time"]
    assert init["end_time"] == invocation["start_time"] == own["start_time"]
    for document in (service, own):
        xray.read_document(json.dumps(document))


def test_a_warm_one_has_no_initialization_and_a_suppressed_init_is_part_of_the_invocation() -> None:
    warm = record(cold=False, sequence=2, phase_init=None, init_ms=None)
    again = record(phase_init=PhaseInit.SUPPRESSED, init_ms=10_000.0)
    for one in (warm, again):
        _, own = lambda_segments.segments(one, TRACE)
        assert [part["name"] for part in own["subsegments"]] == ["Invocation"]


def test_nothing_is_invented_where_nothing_was_measured() -> None:
    service, own = lambda_segments.segments(record(client_ms=None, duration_ms=None, init_ms=None), TRACE)
    for document in (service, own):
        assert document["in_progress"] is True
        assert "end_time" not in document
        xray.read_document(json.dumps(document))
    assert own["subsegments"] == []


def test_a_failed_function_is_a_fault_of_its_own_and_an_error_at_the_service() -> None:
    failed = record(outcome=Outcome.FUNCTION_ERROR, error_type="ValueError", error_message="boom")
    service, own = lambda_segments.segments(failed, TRACE)
    assert service["error"] is True
    assert "fault" not in service
    assert own["fault"] is True
    assert own["cause"]["exceptions"][0] | {"id": ""} == {"id": "", "type": "ValueError", "message": "boom"}


def test_a_throttled_request_never_reached_the_function() -> None:
    (service,) = lambda_segments.segments(record(outcome=Outcome.THROTTLED, client_ms=1.0), TRACE)
    assert (service["throttle"], service["error"], service["http"]["response"]["status"]) == (True, True, 429)


def test_a_request_that_its_caller_did_not_sample_leaves_no_segments() -> None:
    unsampled = Trace(trace_id=TRACE_ID, parent_id=TRACE.parent_id, sampled=False)
    assert lambda_segments.segments(record(), unsampled) == ()
