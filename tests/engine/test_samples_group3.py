"""What the samples of metrics and traces send arrives in the local receivers, as their READMEs say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from conftest import ROOT, VANTAGES, checked

if TYPE_CHECKING:
    from conftest import Lab

    from harness.engine.client import EngineFacts

METRICS = ROOT / "sample_functions/cloudwatch_metrics_node"
TRACES = ROOT / "sample_functions/xray_tracing_node"
NAMES = {"ExecutionTime", "OperationTime", "MemoryUtilization", "CPUIntensiveOperations", "EstimatedCost"}


@pytest.fixture(params=[each for each in VANTAGES if each != "api"])
def into_its_network(request: pytest.FixtureRequest, facts: EngineFacts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every way there is into a sandbox's network."""
    monkeypatch.setenv("LAMBDA_HARNESS_VANTAGE", checked(request.param, facts))


@pytest.mark.usefixtures("into_its_network")
@pytest.mark.parametrize(("source", "namespace"), [("api", "Sample/ByApi"), ("emf", "Sample/ByLogLine")])
def test_the_same_metrics_arrive_by_a_call_and_by_a_log_line(lab: Lab, source: str, namespace: str) -> None:
    found = lab.document("invoke", METRICS, "--no-pull", "-n", 2)
    for record in found["invocations"]:
        arrived = [
            each
            for each in found["findings"]["cloudwatch"]
            if each["source"] == source and each["request_id"] == record["request_id"]
        ]
        values = {each["MetricName"]: each.get("Value", each.get("Values")) for each in arrived}
        assert values == record["response"]["metrics"]
        assert len(arrived) == len(NAMES)
        assert {each["Namespace"] for each in arrived} == {namespace}
        assert {way["error"] for way in record["response"]["sending"].values()} == {None}


def test_of_two_operations_of_the_same_length_one_is_cpu_intensive(lab: Lab) -> None:
    (record,) = lab.document("invoke", METRICS, "--no-pull", "-m", 512)["invocations"]
    metrics = record["response"]["metrics"]
    assert set(metrics) == NAMES
    assert len(metrics["OperationTime"]) == 2
    assert metrics["CPUIntensiveOperations"] == 1
    assert 0 < metrics["MemoryUtilization"] < 100


def test_people_get_the_metrics_as_a_table(lab: Lab) -> None:
    told = lab.cli("invoke", METRICS, "--no-pull").stderr
    table = told.partition("received by the local CloudWatch:")[2].splitlines()
    assert {line.split()[0] for line in table if "Sample/" in line} == NAMES
    assert "warning" not in told


def test_what_waits_for_a_timer_is_not_sent_in_the_freeze(lab: Lab) -> None:
    arguments = ("invoke", METRICS, "--no-pull", "-n", 3, "--gap", 1.5, "-e", METRICS / "events/timer.json")
    found = lab.document(*arguments)
    arrived = {each["Value"] for each in found["findings"]["cloudwatch"] if each["MetricName"] == "ExecutionTime"}
    first, _, last = [each["response"]["metrics"]["ExecutionTime"] for each in found["invocations"]]
    assert first in arrived, "the next invocation's time is used to send it"
    assert last not in arrived, "after the last one there is no such time any more"


def test_a_metric_that_cannot_be_delivered_does_not_fail_the_work(lab: Lab) -> None:
    nowhere = "AWS_ENDPOINT_URL_CLOUDWATCH=http://127.0.0.1:1"
    found = lab.document("invoke", METRICS, "--no-pull", "--receivers", "none", "--env", nowhere)
    assert "cloudwatch" not in found["findings"]
    sending = found["invocations"][0]["response"]["sending"]
    assert "ECONNREFUSED" in sending["api"]["error"]
    assert sending["embedded"]["error"] is None


def test_a_sweep_has_metrics_of_each_memory_size(lab: Lab) -> None:
    found = lab.document("sweep", METRICS, "--no-pull", "-m", "512,1024", "-n", 2)
    sizes = {
        dimension["Value"]
        for each in found["findings"]["cloudwatch"]
        for dimension in each["Dimensions"]
        if dimension["Name"] == "MemorySize"
    }
    assert sizes == {"512", "1024"}


@pytest.mark.usefixtures("into_its_network")
def test_the_steps_hang_below_the_segment_of_their_own_invocation(lab: Lab) -> None:
    found = lab.document("invoke", TRACES, "--no-pull", "-n", 3)
    traces = found["findings"]["xray"]
    assert len({trace["trace_id"] for trace in traces}) == len(traces) == 3
    for record, trace in zip(found["invocations"], traces, strict=True):
        assert trace["trace_id"] in record["response"]["trace"]
        assert "note" not in trace
        assert trace["origin"] == "AWS::Lambda"
        (function,) = trace["subsegments"]
        assert function["origin"] == "AWS::Lambda::Function"
        assert function["aws"]["request_id"] == record["request_id"]
        processing = below(function, "data-processing")
        assert names(processing) == {"read", "data-transformation", "store", "notify"}
        assert names(below(processing, "data-transformation")) == {"parse", "total"}
        assert {"records", "memory_delta_mb"} <= set(processing["annotations"])
        assert processing["metadata"]["process"]["memory"]["after"]["rss"] > 0
        assert not [each["name"] for each in every(trace) if each.get("fault")]


def test_a_step_that_fails_is_a_fault_all_the_way_up(lab: Lab) -> None:
    arguments = ("invoke", TRACES, "--no-pull", "-e", TRACES / "events/broken_record.json")
    (trace,) = lab.document(*arguments, expect=5)["findings"]["xray"]
    faults = {each["name"] for each in every(trace) if each.get("fault")}
    assert faults == {"xray_tracing_node", "Invocation", "data-processing", "data-transformation", "parse"}
    (parse,) = [each for each in every(trace) if each["name"] == "parse"]
    (exception,) = parse["cause"]["exceptions"]
    assert exception["type"] == "SyntaxError"
    assert "parse  " in (told := lab.cli(*arguments, expect=5).stderr)
    assert "ms  fault" in told


def test_a_trace_that_nobody_takes_is_not_sampled(lab: Lab) -> None:
    found = lab.document("invoke", TRACES, "--no-pull", "--receivers", "none")
    assert found["invocations"][0]["response"]["trace"].endswith(";Sampled=0")
    assert "xray" not in found["findings"]


def test_a_sweep_has_a_whole_trace_of_each_invocation(lab: Lab) -> None:
    found = lab.document("sweep", TRACES, "--no-pull", "-m", "512,1024", "-n", 2)
    traces = found["findings"]["xray"]
    assert len(traces) == len(found["invocations"])
    assert all(below(trace["subsegments"][0], "data-processing") for trace in traces)


def below(segment: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = [each for each in segment["subsegments"] if each["name"] == name]
    return dict(found)


def names(segment: dict[str, Any]) -> set[str]:
    return {each["name"] for each in segment["subsegments"]}


def every(segment: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield segment
    for each in segment.get("subsegments", ()):
        yield from every(each)
