"""Requests are read, and refused, as Lambda does it; the model is AWS's own."""

from __future__ import annotations

import json
from typing import Any

import botocore.eventstream
import pytest
from lambda_wire import ROLE, base64_text, breaches, zipped

from harness.api import faults, protocol
from harness.api.faults import Fault

FUNCTIONS = "/2015-03-31/functions"


def found(method: str, path: str, query: str = "") -> protocol.Match:
    match = protocol.match(method, path, query)
    assert match is not None
    return match


def parsed(method: str, path: str, body: Any = None, query: str = "", headers: Any = None) -> dict[str, Any]:
    raw = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    return protocol.parse(found(method, path, query), headers=headers or {}, query=query, body=raw)


def creation(**fields: Any) -> dict[str, Any]:
    code = {"ZipFile": base64_text(zipped())}
    return {"FunctionName": "f", "Runtime": "python3.13", "Handler": "app.handler", "Role": ROLE, "Code": code} | fields


def refusal(action: Any) -> Fault:
    with pytest.raises(Fault) as caught:
        action()
    return caught.value


def test_every_operation_of_the_model_is_found_by_its_own_method_and_path() -> None:
    model = protocol.service_model()
    for name in model.operation_names:
        http = model.operation_model(name).http
        path, _, query = http["requestUri"].partition("?")
        match = protocol.match(http["method"], path.replace("{", "").replace("}", ""), query)
        assert match is not None, name
        assert match.operation == name


def test_a_trailing_slash_and_an_encoded_arn_make_no_difference() -> None:
    assert found("GET", f"{FUNCTIONS}/").operation == "ListFunctions"
    match = found("GET", f"{FUNCTIONS}/arn%3Aaws%3Alambda%3Aus-east-1%3A000000000000%3Afunction%3Af%3Alive")
    assert match.operation == "GetFunction"
    assert match.places == {"FunctionName": "arn:aws:lambda:us-east-1:000000000000:function:f:live"}


def test_the_query_tells_operations_apart_that_share_a_path() -> None:
    assert found("GET", "/2018-10-31/layers").operation == "ListLayers"
    arn = "find=LayerVersion&Arn=arn%3Aaws%3Alambda%3Aus-east-1%3A000000000000%3Alayer%3Al%3A1"
    assert found("GET", "/2018-10-31/layers", arn).operation == "GetLayerVersionByArn"
    path = "/2019-09-30/functions/f/provisioned-concurrency"
    assert found("GET", path, "List=ALL").operation == "ListProvisionedConcurrencyConfigs"
    assert found("GET", path, "Qualifier=1").operation == "GetProvisionedConcurrencyConfig"


@pytest.mark.parametrize(
    "path",
    ["/", "", "/2015-03-31/nothing", f"{FUNCTIONS}/../../etc/passwd/invocations", f"{FUNCTIONS}//x", f"{FUNCTIONS}/.."],
)
def test_a_path_that_lambda_does_not_have_is_no_operation(path: str) -> None:
    assert protocol.match("GET", path) is None


def test_an_unknown_path_is_answered_as_a_call_that_nobody_could_allow() -> None:
    status, headers, body = faults.unknown_operation().to_response()
    assert (status, headers["x-amzn-errortype"]) == (403, "AccessDeniedException")
    assert "Unable to determine service/operation name" in json.loads(body)["Message"]


def test_parameters_come_from_path_query_headers_and_body() -> None:
    got = parsed("GET", f"{FUNCTIONS}/f", query="Qualifier=%24LATEST")
    assert got == {"FunctionName": "f", "Qualifier": "$LATEST"}
    got = parsed("POST", f"{FUNCTIONS}/f/invocations", b"{}", headers={"x-amz-log-type": "Tail"})
    assert got == {"FunctionName": "f", "LogType": "Tail", "Payload": b"{}"}
    got = parsed("GET", FUNCTIONS, query="MaxItems=7&FunctionVersion=ALL")
    assert got == {"MaxItems": 7, "FunctionVersion": "ALL"}
    arn = "arn%3Aaws%3Alambda%3Aus-east-1%3A000000000000%3Afunction%3Af"
    got = parsed("DELETE", f"/2017-03-31/tags/{arn}", query="tagKeys=a&tagKeys=b")
    assert got["TagKeys"] == ["a", "b"]


def test_a_zip_in_the_body_is_decoded_and_nulls_and_strangers_are_dropped() -> None:
    got = parsed("POST", FUNCTIONS, creation(Description=None, Stranger={"a": 1}))
    assert got["Code"]["ZipFile"] == zipped()
    assert "Description" not in got
    assert "Stranger" not in got


def test_memory_below_the_smallest_tier_is_refused_in_lambdas_words() -> None:
    fault = refusal(lambda: parsed("PUT", f"{FUNCTIONS}/f/configuration", {"MemorySize": 64}))
    assert (fault.code, fault.status) == ("ValidationException", 400)
    assert fault.message == (
        "1 validation error detected: Value '64' at 'memorySize' failed to satisfy constraint: "
        "Member must have value greater than or equal to 128"
    )


def test_limits_of_functions_hold_where_the_model_allows_more() -> None:
    for body, name in (({"MemorySize": 10241}, "MemorySize"), ({"Timeout": 901}, "Timeout")):
        fault = refusal(lambda body=body: parsed("PUT", f"{FUNCTIONS}/f/configuration", body))
        assert fault.code == "InvalidParameterValueException"
        assert fault.message.startswith(f"'{name}' value failed to satisfy constraint: Member must have value less")


def test_all_breaches_stand_in_one_message() -> None:
    fault = refusal(lambda: parsed("POST", FUNCTIONS, {"FunctionName": "f", "Role": "nobody", "Timeout": 0}))
    assert fault.message.startswith("3 validation errors detected: ")
    assert "Value null at 'code' failed to satisfy constraint: Member must not be null" in fault.message
    assert (
        "Value 'nobody' at 'role' failed to satisfy constraint: Member must satisfy regular expression" in fault.message
    )
    assert "Value '0' at 'timeout'" in fault.message


def test_values_of_environment_variables_are_in_no_message() -> None:
    body = {"Environment": {"Variables": {"1bad": "hunter2"}}}
    fault = refusal(lambda: parsed("PUT", f"{FUNCTIONS}/f/configuration", body))
    assert "'environment.variables'" in fault.message
    assert "hunter2" not in fault.message


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"Architectures": ["sparc"]}, "Value '[sparc]' at 'architectures' failed to satisfy constraint: Member must satisfy constraint: [Member must satisfy enum value set: [x86_64, arm64]]"),  # noqa: E501
        ({"Tags": {"k": "v" * 257}}, "at 'tags' failed to satisfy constraint: Map value must satisfy constraint: [Member must have length less than or equal to 256]"),  # noqa: E501
        ({"TracingConfig": {"Mode": "Loud"}}, "Value 'Loud' at 'tracingConfig.mode' failed to satisfy constraint: Member must satisfy enum value set"),  # noqa: E501
        ({"FunctionName": "a b"}, "Value 'a b' at 'functionName' failed to satisfy constraint: Member must satisfy regular expression pattern"),  # noqa: E501
    ],
)  # fmt: skip
def test_constraints_are_told_where_they_are_broken(fields: dict[str, Any], words: str) -> None:
    assert words in refusal(lambda: parsed("POST", FUNCTIONS, creation(**fields))).message


def test_an_unknown_runtime_is_refused_with_the_list_of_runtimes() -> None:
    fault = refusal(lambda: parsed("POST", FUNCTIONS, creation(Runtime="cobol85")))
    assert fault.code == "InvalidParameterValueException"
    assert fault.message.startswith("Value cobol85 at 'runtime' failed to satisfy constraint: Member must satisfy enum")
    assert fault.message.endswith("or be a valid ARN")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{not json", "InvalidRequestContentException"),
        (b"[" * 100_000, "InvalidRequestContentException"),
        (b"[]", "SerializationException"),
        ({"MemorySize": "512"}, "SerializationException"),
        ({"MemorySize": True}, "SerializationException"),
        ({"Environment": []}, "SerializationException"),
        ({"Layers": "one"}, "SerializationException"),
        ({"Description": 5}, "SerializationException"),
    ],
)
def test_a_body_of_the_wrong_form_is_refused(body: Any, code: str) -> None:
    fault = refusal(lambda: parsed("PUT", f"{FUNCTIONS}/f/configuration", body))
    assert (fault.code, fault.status) == (code, 400)


def test_a_zip_that_is_no_base64_is_refused() -> None:
    body = creation(Code={"ZipFile": "*not base64*"})
    assert refusal(lambda: parsed("POST", FUNCTIONS, body)).code == "SerializationException"
    assert refusal(lambda: parsed("GET", FUNCTIONS, query="MaxItems=ten")).code == "SerializationException"


def test_an_invocations_answer_is_headers_and_the_payload_as_it_is() -> None:
    result = {"StatusCode": 200, "FunctionError": None, "ExecutedVersion": "3", "Payload": b'{"a":1}'}
    answer = protocol.serialise("Invoke", result)
    assert (answer.status, answer.body) == (200, b'{"a":1}')
    assert answer.headers == {"x-amz-executed-version": "3", "content-type": "application/json"}
    assert protocol.serialise("Invoke", {"StatusCode": 202, "Payload": b""}).status == 202


def test_a_streamed_answer_is_read_by_botocore_as_one_chunk_and_its_end() -> None:
    events = [{"PayloadChunk": {"Payload": b"whole"}}, {"InvokeComplete": {"LogResult": "bG9n", "ErrorCode": None}}]
    answer = protocol.serialise("InvokeWithResponseStream", {"StatusCode": 200, "EventStream": events})
    buffer = botocore.eventstream.EventStreamBuffer()
    buffer.add_data(answer.body)
    chunk, end = [message.to_response_dict() for message in buffer]
    assert (chunk["headers"][":event-type"], chunk["body"]) == ("PayloadChunk", b"whole")
    assert (end["headers"][":event-type"], json.loads(end["body"])) == ("InvokeComplete", {"LogResult": "bG9n"})


def test_a_member_that_aws_does_not_know_is_a_mistake_of_ours() -> None:
    with pytest.raises(KeyError):
        protocol.serialise("GetAlias", {"Nmae": "live"})


def test_errors_are_spelt_as_the_model_spells_them() -> None:
    model = protocol.service_model()
    for shape in model.error_shapes:
        status = shape.metadata["error"]["httpStatusCode"]
        if shape.name in faults._LOWER_CASE_MESSAGE or "Message" in shape.members:
            _, headers, body = Fault(shape.name, status, "why").to_response()
            assert headers["x-amzn-errortype"] == shape.name
            assert not breaches(shape, json.loads(body)), shape.name


def test_errors_of_the_service_are_not_the_callers() -> None:
    assert json.loads(faults.service("the engine is away").to_response()[2])["Type"] == "Service"
    assert json.loads(faults.not_found().to_response()[2])["Type"] == "User"


def test_requests_with_a_zip_have_lambdas_limit() -> None:
    assert protocol.request_limit("CreateFunction") == 70_167_211
    assert protocol.request_limit("UpdateFunctionConfiguration") is None
