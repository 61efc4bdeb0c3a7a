"""Metrics inside of log lines: CloudWatch's embedded metric format."""

from __future__ import annotations

import datetime
import json
from typing import Any

import pytest

from harness.receivers import emf

NOW = datetime.datetime(2026, 11, 22, 1, 20, tzinfo=datetime.UTC)
STAMP = 1795310231199

AWS_EMBEDDED_METRICS_NODE_4 = (
    b'{"LogGroup":"f","ServiceName":"f","ServiceType":"AWS::Lambda::Function","Stage":"test","RequestId":"x",'
    b'"executionEnvironment":"AWS_Lambda_nodejs22.x","logStreamId":"2026/11/22/[$LATEST]0123","_aws":{"Timestamp":'
    b'1795310231199,"CloudWatchMetrics":[{"Dimensions":[["LogGroup","ServiceName","ServiceType","Stage"]],"Metrics":'
    b'[{"Name":"Latency","Unit":"Milliseconds","StorageResolution":1},{"Name":"Calls","Unit":"Count"}],'
    b'"Namespace":"App"}]},"Latency":[12.5,13],"Calls":1}'
)


def event(*, metrics: Any = None, dimensions: Any = None, stamp: Any = STAMP, **values: Any) -> bytes:
    directive = {
        "Namespace": "App",
        "Dimensions": [["Stage"]] if dimensions is None else dimensions,
        "Metrics": [{"Name": "Calls"}] if metrics is None else metrics,
    }
    root = {"Stage": "test", "Calls": 1, **values}
    return json.dumps({"_aws": {"Timestamp": stamp, "CloudWatchMetrics": [directive]}, **root}).encode()


def read(line: bytes) -> emf.Found:
    found = emf.read(line, now=NOW)
    assert found is not None
    return found


def test_what_awss_own_library_prints_becomes_metric_data() -> None:
    found = read(AWS_EMBEDDED_METRICS_NODE_4)
    assert not found.complaints
    dimensions = [
        {"Name": "LogGroup", "Value": "f"},
        {"Name": "ServiceName", "Value": "f"},
        {"Name": "ServiceType", "Value": "AWS::Lambda::Function"},
        {"Name": "Stage", "Value": "test"},
    ]
    when = "2026-11-22T01:17:11.199+00:00"
    assert found.metrics == [
        {
            "Namespace": "App",
            "MetricName": "Latency",
            "Unit": "Milliseconds",
            "StorageResolution": 1,
            "Values": [12.5, 13],
            "Dimensions": dimensions,
            "Timestamp": when,
        },
        {
            "Namespace": "App",
            "MetricName": "Calls",
            "Unit": "Count",
            "StorageResolution": 60,
            "Value": 1,
            "Dimensions": dimensions,
            "Timestamp": when,
        },
    ]


def test_the_prefix_that_the_node_runtime_gives_console_log_does_not_hide_it() -> None:
    prefix = b"2026-11-22T01:17:11.199Z\t6f1b1f4e-0000-4000-8000-000000000000\tINFO\t"
    assert len(read(prefix + AWS_EMBEDDED_METRICS_NODE_4 + b"\r").metrics) == 2


def test_each_set_of_dimensions_makes_a_metric_of_its_own() -> None:
    found = read(event(dimensions=[["Stage"], ["Stage", "Zone"], []], Zone="a"))
    assert [[one["Name"] for one in metric["Dimensions"]] for metric in found.metrics] == [
        ["Stage"],
        ["Stage", "Zone"],
        [],
    ]


@pytest.mark.parametrize(
    "line",
    [
        b"hello",
        b"CloudWatchMetrics are sent",
        b'{"CloudWatchMetrics": 1}',
        b'{"_aws": {"other": 1}, "CloudWatchMetrics": 2}',
        b'{"_aws": "CloudWatchMetrics"}',
    ],
)
def test_other_lines_are_no_business_of_it(line: bytes) -> None:
    assert emf.read(line, now=NOW) is None


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b'{"_aws": {"CloudWatchMetrics": [', "no JSON"),
        (event(stamp=None), "_aws.Timestamp"),
        (event(stamp="1795310231199"), "_aws.Timestamp"),
        (event(stamp=10**30), "_aws.Timestamp"),
        (event(stamp=1), "two weeks"),
        (event(metrics=[{"Name": "Gone"}]), "'Gone'"),
        (event(metrics=[{"Name": "Calls", "Unit": "count"}]), "Metrics[0].Unit 'count'"),
        (event(metrics=[{"Name": "Calls", "Unit": ["Count"]}]), "Metrics[0].Unit"),
        (event(metrics=[{"Name": "Calls", "StorageResolution": 30}]), "StorageResolution is 30"),
        (event(metrics=[{"Unit": "Count"}]), "Metrics[0].Name"),
        (event(metrics=["Calls"]), "Metrics[0] is no object"),
        (event(metrics="Calls"), "Metrics is not there or no array"),
        (event(metrics=[{"Name": "Calls"}] * 101), "101 metrics"),
        (event(Calls="1"), 'the value "1"'),
        (event(Calls=True), "no number"),
        (event(Calls=[]), "0 values"),
        (event(Calls=[1] * 101), "101 values"),
        (event(Calls=float("nan")), "nan"),
        (event(Calls=10**400), "does not take"),
        (event(dimensions=[["Gone"]]), "dimension 'Gone'"),
        (event(dimensions=[["Calls"]]), "dimension 'Calls'"),
        (event(dimensions=[["Stage"] * 31]), "31 dimensions"),
        (event(dimensions="Stage"), "Dimensions is not there or no array"),
        (event(dimensions=["Stage"]), "Dimensions[0] is no array"),
        (event().replace(b'"App"', b'""'), "Namespace"),
    ],
)
def test_what_is_invalid_is_named_and_makes_no_metric(line: bytes, complaint: str) -> None:
    found = read(line)
    assert not found.metrics
    assert complaint in " ".join(found.complaints)


def test_what_is_valid_beside_it_is_kept() -> None:
    found = read(event(metrics=[{"Name": "Gone"}, {"Name": "Calls"}], dimensions=[["Gone"], ["Stage"]]))
    assert [metric["MetricName"] for metric in found.metrics] == ["Calls"]
    assert len(found.complaints) == 2
