"""PutMetricData as SDKs send it. The bytes were recorded from real clients: their names stand beside them."""

from __future__ import annotations

import datetime
import gzip
import json
import xml.etree.ElementTree as ET
from typing import Any

import cbor2
import pytest

from harness.receivers import cloudwatch
from harness.receivers.cloudwatch import Answered
from harness.receivers.http_exchange import Request

NOW = datetime.datetime(2026, 11, 22, 1, 20, tzinfo=datetime.UTC)
TARGET = {"x-amz-target": "GraniteServiceVersion20100801.PutMetricData", "content-type": "application/x-amz-json-1.0"}

BOTO3_1_44 = (
    b'{"Namespace": "App", "MetricData": [{"MetricName": "latency", "Dimensions": [{"Name": "Stage", "Value": "test"}], '
    b'"Values": [1.5, 2], "Counts": [1, 3], "Unit": "Milliseconds", "StorageResolution": 1, '
    b'"Timestamp": 1795310035.866483}, '
    b'{"MetricName": "s", "StatisticValues": {"SampleCount": 2, "Sum": 3, "Minimum": 1, "Maximum": 2}}]}'
)
JS_3_1162_JSON = (
    b'{"Namespace":"App","MetricData":[{"MetricName":"js","Dimensions":[{"Name":"A","Value":"b"}],'
    b'"Timestamp":1795310036.32,"Value":1.25,"Unit":"Count"}]}'
)
JS_3_1162_CBOR = (
    b"\xa2iNamespacecAppjMetricData\x82\xa5jMetricNamebjsjDimensions\x81\xa2dNameaAeValueabiTimestamp\xc1\xfbA\xda\xc0"
    b"\x90\xa4\xbcZ\x1deValue\xfb?\xf4\x00\x00\x00\x00\x00\x00dUniteCount\xa3jMetricNameavfValues\x82\x01\xfb@\x04\x00"
    b"\x00\x00\x00\x00\x00fCounts\x82\x01\x02"
)
BOTO3_1_34_QUERY = (
    b"Action=PutMetricData&Version=2010-08-01&Namespace=App&MetricData.member.1.MetricName=latency"
    b"&MetricData.member.1.Dimensions.member.1.Name=Stage&MetricData.member.1.Dimensions.member.1.Value=te+st"
    b"&MetricData.member.1.Values.member.1=1.5&MetricData.member.1.Values.member.2=2"
    b"&MetricData.member.1.Counts.member.1=1&MetricData.member.1.Counts.member.2=3"
    b"&MetricData.member.1.Unit=Milliseconds&MetricData.member.1.StorageResolution=1"
    b"&MetricData.member.1.Timestamp=2026-11-22T01%3A15%3A22.565238Z"
)


def json_request(body: bytes, **headers: str) -> Request:
    return Request(method="POST", path="/", headers={**TARGET, **headers}, body=body)


def cbor_request(body: bytes, operation: str = "PutMetricData", **headers: str) -> Request:
    return Request(
        method="POST",
        path=f"/service/GraniteServiceVersion20100801/operation/{operation}",
        headers={"smithy-protocol": "rpc-v2-cbor", "content-type": "application/cbor", **headers},
        body=body,
    )


def query_request(body: bytes) -> Request:
    return Request(
        method="POST", path="/", headers={"content-type": "application/x-www-form-urlencoded; charset=utf-8"}, body=body
    )


def put(*data: dict[str, Any], namespace: str = "App", **more: Any) -> Answered:
    body = json.dumps({"Namespace": namespace, "MetricData": list(data), **more}).encode()
    return cloudwatch.answer(json_request(body), now=NOW)


def error_of(answered: Answered) -> tuple[int, str, str]:
    """Status, the code that existing programs look for, and the message."""
    assert not answered.metrics
    assert answered.warning, "a refusal is named"
    code = answered.reply.headers["x-amzn-query-error"].partition(";")[0]
    return answered.reply.status, code, json.loads(answered.reply.body)["message"]


def test_what_boto3_sends_today_is_aws_json() -> None:
    answered = cloudwatch.answer(json_request(BOTO3_1_44), now=NOW)
    assert (answered.reply.status, answered.reply.body) == (200, b"{}")
    assert answered.reply.content_type == "application/x-amz-json-1.0"
    assert answered.reply.headers["x-amzn-RequestId"]
    assert answered.metrics == (
        {
            "Namespace": "App",
            "MetricName": "latency",
            "Dimensions": [{"Name": "Stage", "Value": "test"}],
            "Values": [1.5, 2],
            "Counts": [1, 3],
            "Unit": "Milliseconds",
            "StorageResolution": 1,
            "Timestamp": "2026-11-22T01:13:55.866+00:00",
        },
        {
            "Namespace": "App",
            "MetricName": "s",
            "Dimensions": [],
            "StatisticValues": {"SampleCount": 2, "Sum": 3, "Minimum": 1, "Maximum": 2},
            "Unit": "None",
            "StorageResolution": 60,
            "Timestamp": "2026-11-22T01:20:00.000+00:00",
        },
    )


def test_what_the_javascript_sdk_sends_is_understood_in_both_of_its_protocols() -> None:
    as_json = cloudwatch.answer(json_request(JS_3_1162_JSON), now=NOW)
    as_cbor = cloudwatch.answer(cbor_request(JS_3_1162_CBOR), now=NOW)
    assert as_cbor.reply.status == 200
    assert cbor2.loads(as_cbor.reply.body) == {}
    assert as_cbor.reply.headers["smithy-protocol"] == "rpc-v2-cbor"
    assert as_cbor.metrics[0] | {"Timestamp": ""} == as_json.metrics[0] | {"Timestamp": ""}
    assert as_cbor.metrics[0]["Timestamp"] == "2026-11-22T01:17:06.943+00:00"
    assert (as_cbor.metrics[1]["Values"], as_cbor.metrics[1]["Counts"]) == ([1, 2.5], [1, 2])


def test_older_sdks_send_forms_and_get_xml() -> None:
    answered = cloudwatch.answer(query_request(BOTO3_1_34_QUERY), now=NOW)
    assert answered.reply.status == 200
    assert ET.fromstring(answered.reply.body).tag.endswith("PutMetricDataResponse")  # noqa: S314  # our own words
    (metric,) = answered.metrics
    assert metric["Dimensions"] == [{"Name": "Stage", "Value": "te st"}]
    assert (metric["Values"], metric["Counts"], metric["StorageResolution"]) == ([1.5, 2.0], [1.0, 3.0], 1)
    assert metric["Timestamp"] == "2026-11-22T01:15:22.565+00:00"


@pytest.mark.parametrize(
    "request_",
    [
        json_request(gzip.compress(BOTO3_1_44), **{"content-encoding": "gzip"}),
        cbor_request(gzip.compress(JS_3_1162_CBOR), **{"content-encoding": "gzip"}),
    ],
    ids=["json", "cbor"],
)
def test_bodies_may_be_compressed_with_gzip_as_sdks_do_above_10_kb(request_: Request) -> None:
    assert len(cloudwatch.answer(request_, now=NOW).metrics) == 2


def test_a_small_body_that_becomes_huge_is_refused_before_it_does() -> None:
    bomb = gzip.compress(b" " * (20 * 1024 * 1024))
    status, _, message = error_of(cloudwatch.answer(json_request(bomb, **{"content-encoding": "gzip"}), now=NOW))
    assert status == 413
    assert "decompressed" in message


def test_a_body_of_more_than_a_megabyte_is_refused() -> None:
    status, code, _ = error_of(cloudwatch.answer(json_request(b" " * (1024 * 1024 + 1)), now=NOW))
    assert (status, code) == (413, "RequestEntityTooLarge")


@pytest.mark.parametrize(
    ("datum", "code", "says"),
    [
        ({"Value": 1}, "MissingParameter", "MetricData.member.1.MetricName is required"),
        ({"MetricName": "a"}, "MissingParameter", "At least one of the parameters"),
        (
            {"MetricName": "a", "Value": 1, "Values": [1]},
            "InvalidParameterCombination",
            "MetricData.member.1.Value and MetricData.member.1.Values are mutually exclusive",
        ),
        (
            {
                "MetricName": "a",
                "Value": 1,
                "StatisticValues": {"SampleCount": 1, "Sum": 1, "Minimum": 1, "Maximum": 1},
            },
            "InvalidParameterCombination",
            "StatisticValues",
        ),
        ({"MetricName": "a", "Values": [1, 2], "Counts": [1]}, "InvalidParameterValue", "same size"),
        ({"MetricName": "a", "Values": [1], "Counts": [0]}, "InvalidParameterValue", "Counts.member.1"),
        ({"MetricName": "a", "Values": list(range(151))}, "InvalidParameterValue", "size greater than 150"),
        ({"MetricName": "a", "Values": []}, "MissingParameter", "Values"),
        ({"MetricName": "a", "Value": "NaN"}, "InvalidParameterValue", "MetricData.member.1.Value is invalid"),
        ({"MetricName": "a", "Value": 2.0**361}, "InvalidParameterValue", "MetricData.member.1.Value is invalid"),
        ({"MetricName": "a", "Value": [1]}, "InvalidParameterValue", "must be a number"),
        ({"MetricName": "a", "Value": 1, "Unit": "Parsecs"}, "InvalidParameterValue", "must be a value in the set"),
        ({"MetricName": "a", "Value": 1, "StorageResolution": 5}, "InvalidParameterValue", "StorageResolution"),
        ({"MetricName": "a", "Value": 1, "Timestamp": "yesterday"}, "MalformedInput", "Timestamp"),
        ({"MetricName": "a", "Value": 1, "Timestamp": NOW.timestamp() + 7300}, "InvalidParameterValue", "two hours"),
        (
            {"MetricName": "a", "Value": 1, "Timestamp": NOW.timestamp() - 15 * 86400},
            "InvalidParameterValue",
            "two weeks",
        ),
        (
            {"MetricName": "a", "StatisticValues": {"SampleCount": 1, "Sum": 1, "Minimum": 2, "Maximum": 1}},
            "InvalidParameterValue",
            "Maximum",
        ),
        ({"MetricName": "a", "StatisticValues": {"Sum": 1}}, "MissingParameter", "StatisticValues.SampleCount"),
        ({"MetricName": "", "Value": 1}, "InvalidParameterValue", "MetricName must be from 1 to 255"),
        ({"MetricName": "a", "Value": 1, "Dimensions": [{"Name": ":a", "Value": "b"}]}, "InvalidParameterValue", ":a"),
        (
            {"MetricName": "a", "Value": 1, "Dimensions": [{"Name": "a", "Value": " "}]},
            "InvalidParameterValue",
            "Value",
        ),
        (
            {"MetricName": "a", "Value": 1, "Dimensions": [{"Name": f"d{i}", "Value": "b"} for i in range(31)]},
            "InvalidParameterValue",
            "size greater than 30",
        ),
    ],
)
def test_data_that_break_cloudwatchs_rules_are_refused_by_name(datum: dict[str, Any], code: str, says: str) -> None:
    status, found, message = error_of(put(datum))
    assert (status, found) == (400, code)
    assert says in message


def test_at_most_1000_metrics_fit_into_a_call_those_with_entities_included() -> None:
    data = [{"MetricName": "a", "Value": 1}] * 1000
    assert len(put(*data).metrics) == 1000
    group = {"Entity": {"KeyAttributes": {"Name": "svc"}}, "MetricData": [{"MetricName": "b", "Value": 2}]}
    assert "size greater than 1000" in error_of(put(*data, EntityMetricData=[group]))[2]
    (metric,) = put(EntityMetricData=[group]).metrics
    assert metric["Entity"] == {"KeyAttributes": {"Name": "svc"}}
    assert error_of(put())[1] == "MissingParameter"


def test_namespaces_of_aws_are_its_own() -> None:
    assert error_of(put({"MetricName": "a", "Value": 1}, namespace="AWS/Lambda")) == (
        400,
        "InvalidParameterValue",
        "The value AWS/ for parameter Namespace is invalid.",
    )


def test_calls_that_are_not_stood_for_get_an_error_of_their_protocol_and_are_named() -> None:
    as_json = Request(
        method="POST", path="/", headers={"x-amz-target": "GraniteServiceVersion20100801.ListMetrics"}, body=b"{}"
    )
    answered = cloudwatch.answer(as_json, now=NOW)
    assert answered.reply.status == 404
    assert json.loads(answered.reply.body)["__type"].endswith("#UnknownOperationException")
    assert "ListMetrics" in answered.warning
    answered = cloudwatch.answer(cbor_request(b"\xa0", "ListMetrics"), now=NOW)
    assert cbor2.loads(answered.reply.body)["__type"].endswith("#UnknownOperationException")
    answered = cloudwatch.answer(query_request(b"Action=ListMetrics&Version=2010-08-01"), now=NOW)
    assert answered.reply.status == 400
    assert b"<Code>InvalidAction</Code>" in answered.reply.body
    logs = Request(method="POST", path="/", headers={"x-amz-target": "Logs_20140328.PutLogEvents"}, body=b"{}")
    assert "Logs_20140328 PutLogEvents" in cloudwatch.answer(logs, now=NOW).warning


@pytest.mark.parametrize(
    "request_",
    [
        json_request(b"{not json"),
        json_request(b"[1]"),
        json_request(b"\xff\xfe"),
        json_request(b"[" * 100_000),
        json_request(b"not gzip", **{"content-encoding": "gzip"}),
        json_request(gzip.compress(BOTO3_1_44)[:40], **{"content-encoding": "gzip"}),
        json_request(gzip.compress(BOTO3_1_44)[:-8], **{"content-encoding": "gzip"}),
        json_request(b"{}", **{"content-encoding": "br"}),
        cbor_request(b"\xff\xff"),
        cbor_request(b"\xa2iName"),
        cbor_request(b""),
        query_request(b"Action=PutMetricData&Namespace=A&MetricData=1&MetricData.member.1.MetricName=a"),
        query_request(b"Action=PutMetricData&Namespace=A&" + b"a." * 40 + b"b=1"),
        query_request(b"\xff\xfe"),
        Request(method="GET", path="/favicon.ico"),
    ],
)
def test_bytes_that_mean_nothing_are_refused_and_never_raise(request_: Request) -> None:
    answered = cloudwatch.answer(request_, now=NOW)
    assert 400 <= answered.reply.status < 500
    assert answered.warning
