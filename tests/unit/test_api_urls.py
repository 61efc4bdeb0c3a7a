"""Function URLs: requests as events of payload format 2.0, answers as responses."""

from __future__ import annotations

import base64
import dataclasses
import datetime
import json
from typing import Any

import pytest
from test_api_app import record

from harness.api import urls
from harness.api.urls import Asked, Cors, Reply
from harness.invocation import Outcome

NOW = datetime.datetime(2026, 3, 12, 19, 3, 58, 390_000, tzinfo=datetime.UTC)
ID = "b" * 32


def asked(**changes: Any) -> Asked:
    found: dict[str, Any] = {
        "url_id": ID,
        "domain": f"{ID}.lambda-url.us-east-1.localhost",
        "method": "POST",
        "raw_path": "/my/path",
        "path": "/my/path",
        "query": "",
        "headers": [("host", f"{ID}.lambda-url.us-east-1.localhost:4577")],
        "body": b"",
        "source_ip": "127.0.0.1",
    }
    return Asked(**found | changes)


def event(**changes: Any) -> dict[str, Any]:
    return urls.event(asked(**changes), request_id="the-id", trace_header="Root=1-2-3", now=NOW)


def test_an_event_has_the_form_that_lambda_documents() -> None:
    found = event(query="a=1&a=2&b=%20x&c=", headers=[("host", "h:1"), ("user-agent", "curl"), ("x", "1"), ("x", "2")])
    assert found == {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": "/my/path",
        "rawQueryString": "a=1&a=2&b=%20x&c=",
        "headers": {
            "host": "h:1",
            "user-agent": "curl",
            "x": "1,2",
            "x-amzn-trace-id": "Root=1-2-3",
            "x-forwarded-for": "127.0.0.1",
            "x-forwarded-proto": "http",
            "x-forwarded-port": "1",
        },
        "queryStringParameters": {"a": "1,2", "b": " x", "c": ""},
        "requestContext": {
            "accountId": "anonymous",
            "apiId": ID,
            "domainName": f"{ID}.lambda-url.us-east-1.localhost",
            "domainPrefix": ID,
            "http": {
                "method": "POST",
                "path": "/my/path",
                "protocol": "HTTP/1.1",
                "sourceIp": "127.0.0.1",
                "userAgent": "curl",
            },
            "requestId": "the-id",
            "routeKey": "$default",
            "stage": "$default",
            "time": "12/Mar/2026:19:03:58 +0000",
            "timeEpoch": 1773342238390,
        },
        "isBase64Encoded": False,
    }


def test_cookies_have_a_list_of_their_own() -> None:
    found = event(headers=[("cookie", "a=1; b=2"), ("cookie", "c=3")])
    assert found["cookies"] == ["a=1", "b=2", "c=3"]
    assert "cookie" not in found["headers"]


@pytest.mark.parametrize("kind", ["text/plain; charset=utf-8", "application/json", "application/ld+json", "TEXT/HTML"])
def test_a_body_of_text_is_handed_over_as_text(kind: str) -> None:
    found = event(headers=[("content-type", kind)], body="grüß".encode())
    assert (found["body"], found["isBase64Encoded"]) == ("grüß", False)


@pytest.mark.parametrize(
    ("kind", "body"),
    [("image/png", b"\x89PNG"), ("application/x-www-form-urlencoded", b"a=1"), ("text/plain", b"\xff"), (None, b"x")],
)
def test_any_other_body_is_handed_over_as_base64(kind: str | None, body: bytes) -> None:
    found = event(headers=[("content-type", kind)] if kind else [], body=body)
    assert found["isBase64Encoded"] is True
    assert base64.b64decode(found["body"]) == body


def reply(answer: Any, outcome: Outcome = Outcome.SUCCESS) -> Reply:
    payload = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    return urls.reply(record(outcome=outcome), payload)


def test_an_answer_that_is_a_response_becomes_it() -> None:
    found = reply(
        {
            "statusCode": 201,
            "headers": {"Content-Type": "text/html", "X-Number": 3, "Content-Length": "999", "Connection": "close"},
            "cookies": ["a=1; HttpOnly", "b=2"],
            "body": "<p>",
        }
    )
    assert found == Reply(
        status=201,
        headers=[
            ("content-type", "text/html"),
            ("x-number", "3"),
            ("set-cookie", "a=1; HttpOnly"),
            ("set-cookie", "b=2"),
        ],
        body=b"<p>",
    )


def test_a_binary_body_is_decoded() -> None:
    found = reply({"statusCode": "200", "isBase64Encoded": True, "body": base64.b64encode(b"\x00\xff").decode()})
    assert found.body == b"\x00\xff"
    assert found.headers == [("content-type", "application/json")]


@pytest.mark.parametrize("answer", [b'{"message" : 1.0}', b'"Hello"', b"null", b"[1]", b"3"])
def test_any_other_answer_is_a_body_of_json_as_the_function_wrote_it(answer: bytes) -> None:
    assert reply(answer) == Reply(status=200, headers=[("content-type", "application/json")], body=answer)


@pytest.mark.parametrize(
    "answer",
    [
        {"statusCode": "many"},
        {"statusCode": 99},
        {"statusCode": 1000},
        {"statusCode": None},
        {"statusCode": 200, "headers": {"a b": "1"}},
        {"statusCode": 200, "headers": {"a": "1\r\nset-cookie: x"}},
        {"statusCode": 200, "cookies": ["a\nb"]},
        {"statusCode": 200, "cookies": 3},
        {"statusCode": 200, "headers": ["a"]},
        {"statusCode": 200, "isBase64Encoded": True, "body": "a"},
        b"not json",
    ],
)
def test_an_answer_that_is_no_response_is_a_bad_gateway(answer: Any) -> None:
    found = reply(answer)
    assert (found.status, found.body) == (502, b"Internal Server Error")


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        (Outcome.FUNCTION_ERROR, 502),
        (Outcome.TIMEOUT, 502),
        (Outcome.OUT_OF_MEMORY, 502),
        (Outcome.RESPONSE_TOO_LARGE, 502),
        (Outcome.ENGINE_ERROR, 500),
    ],
)
def test_a_function_that_failed_shows_nothing_of_its_error(outcome: Outcome, status: int) -> None:
    found = reply({"errorMessage": "a secret"}, outcome)
    assert (found.status, found.body) == (status, b"Internal Server Error")


def test_a_throttled_request_is_told_so() -> None:
    assert reply({"Reason": "x"}, Outcome.THROTTLED).status == 429


CORS = Cors(
    allow_origins=("https://*.shop.example", "https://one.example"),
    allow_methods=("GET", "POST"),
    allow_headers=("x-a",),
    expose_headers=("x-b",),
    max_age_s=5,
    allow_credentials=True,
)


def test_the_configuration_answers_a_browsers_question() -> None:
    question = asked(
        method="OPTIONS", headers=[("origin", "https://a.shop.example"), ("access-control-request-method", "GET")]
    )
    assert question.is_preflight
    found = dict(urls.preflight(CORS, question).headers)
    assert found == {
        "access-control-allow-origin": "https://a.shop.example",
        "vary": "Origin",
        "access-control-allow-credentials": "true",
        "access-control-allow-methods": "GET,POST",
        "access-control-allow-headers": "x-a",
        "access-control-max-age": "5",
    }
    assert not asked(method="OPTIONS").is_preflight


def test_an_origin_that_is_not_allowed_is_told_nothing() -> None:
    for origin in ("https://evil.example", "https://shop.example", "https://one.example.evil", None):
        assert CORS.headers(origin) == []


def test_the_configuration_lies_over_what_the_function_says() -> None:
    own = Reply(status=200, headers=[("access-control-allow-origin", "*"), ("x", "1")])
    found = urls.with_cors(own, CORS, "https://one.example")
    assert ("access-control-allow-origin", "*") not in found.headers
    assert ("access-control-expose-headers", "x-b") in found.headers
    assert urls.with_cors(own, None, "https://one.example") == own


def test_everybody_is_allowed_by_a_star() -> None:
    anybody = Cors(allow_origins=("*",))
    assert anybody.headers("https://x.example") == [("access-control-allow-origin", "*")]
    named = dataclasses.replace(anybody, allow_credentials=True)
    assert ("access-control-allow-origin", "https://x.example") in named.headers("https://x.example")


def test_a_configuration_is_read_from_the_apis_shape() -> None:
    assert Cors.of(None) is None
    assert Cors.of({}) is None
    assert Cors.of({"AllowOrigins": ["*"], "MaxAge": 3}) == Cors(allow_origins=("*",), max_age_s=3)
