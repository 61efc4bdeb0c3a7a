"""The JSON document that every command prints."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

from fakes import function
from test_invocation import record

from harness import document
from harness.function import ImageCode, InlineCode


def test_a_document_says_what_it_is_and_when() -> None:
    found = document.make("invoke", host={"hz": 250}, function=function(), invocations=[record()], findings={"a": 1})
    assert found["schema"] == "lambda-harness/1"
    assert found["kind"] == "invoke"
    assert datetime.datetime.fromisoformat(found["created_at"]).tzinfo is not None
    assert found["host"] == {"hz": 250}
    assert found["findings"] == {"a": 1}
    assert [each["outcome"] for each in found["invocations"]] == ["success"]
    json.dumps(found)


def test_a_document_without_a_function_is_one_all_the_same() -> None:
    found = document.make("doctor", host={}, plan={"n": 3})
    assert found["function"] is None
    assert found["invocations"] == []
    assert found["plan"] == {"n": 3}


def test_the_values_of_variables_stay_out_for_they_may_be_secrets() -> None:
    found = document.describe_function(function(environment={"TOKEN": "s3cret", "A1": "b"}))
    assert found["environment"] == ["A1", "TOKEN"]
    assert "s3cret" not in json.dumps(found)


def test_each_form_of_code_is_named() -> None:
    assert document.describe_function(function())["code"] == "/nowhere"
    assert document.describe_function(function(code=ImageCode(reference="a:b")))["code"] == "a:b"
    assert document.describe_function(function(code=InlineCode(text="x", file_name="index.py")))["code"] == "inline"
    assert document.describe_function(function(layers=(Path("/layer"),)))["layers"] == ["/layer"]
