"""What a function sees of Lambda: its variables and its ARN."""

from __future__ import annotations

import datetime
import re

from fakes import function

from harness import environment
from harness.function import RESERVED_ENVIRONMENT


def variables(**changes: object) -> dict[str, str]:
    return environment.variables(function(**changes), log_stream="stream")


def test_lambda_s_variables_are_there() -> None:
    found = variables(memory_mb=512, name="probe")
    assert found["AWS_LAMBDA_FUNCTION_NAME"] == "probe"
    assert found["AWS_LAMBDA_FUNCTION_MEMORY_SIZE"] == "512"
    assert found["AWS_LAMBDA_FUNCTION_VERSION"] == "$LATEST"
    assert found["AWS_LAMBDA_LOG_GROUP_NAME"] == "/aws/lambda/probe"
    assert found["AWS_LAMBDA_LOG_STREAM_NAME"] == "stream"
    assert found["AWS_LAMBDA_INITIALIZATION_TYPE"] == "on-demand"
    assert found["AWS_EXECUTION_ENV"] == "AWS_Lambda_python3.13"
    assert found["AWS_XRAY_DAEMON_ADDRESS"] == "169.254.100.1:2000"
    assert found["AWS_REGION"] == found["AWS_DEFAULT_REGION"] == "us-east-1"
    assert found["TZ"] == ":UTC"


def test_the_timeout_is_not_told_as_on_lambda() -> None:
    assert "AWS_LAMBDA_FUNCTION_TIMEOUT" not in variables()


def test_the_function_s_own_variables_cannot_displace_lambda_s() -> None:
    own = {"TABLE": "orders", "AWS_LAMBDA_FUNCTION_NAME": "forged"}
    found = variables(environment=own)
    assert found["TABLE"] == "orders"
    assert found["AWS_LAMBDA_FUNCTION_NAME"] == "probe"


def test_no_credentials_of_this_machine_reach_a_function(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "real")
    found = variables()
    assert {found[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")} == {
        "lambda-harness"
    }


def test_an_image_without_a_runtime_has_no_execution_environment_name() -> None:
    assert "AWS_EXECUTION_ENV" not in variables(runtime=None)


def test_what_lambda_reserves_and_the_harness_sets_agree() -> None:
    set_by_us = {
        name for name in variables() if name.startswith("AWS_LAMBDA") or name in ("AWS_REGION", "AWS_DEFAULT_REGION")
    }
    assert set_by_us <= RESERVED_ENVIRONMENT


def test_the_arn_and_the_log_stream_have_lambda_s_form() -> None:
    assert environment.function_arn(function(name="a-b")) == "arn:aws:lambda:us-east-1:000000000000:function:a-b"
    name = environment.log_stream_name(function(), datetime.datetime(2026, 3, 4, tzinfo=datetime.UTC))
    assert re.fullmatch(r"2026/03/04/\[\$LATEST\][0-9a-f]{32}", name)
    assert environment.function_arn(function(region="eu-west-1")).startswith("arn:aws:lambda:eu-west-1:")
