"""What a function sees of Lambda: its environment variables and its ARN. Pure."""

from __future__ import annotations

import datetime
import uuid

from harness.function import Function

ACCOUNT_ID = "000000000000"


def function_arn(function: Function) -> str:
    """The ARN that the context object shows where nobody asked by another one; the account is a made-up one."""
    return f"arn:aws:lambda:{function.region}:{ACCOUNT_ID}:function:{function.name}"


def log_group_name(function: Function) -> str:
    return f"/aws/lambda/{function.name}"


def log_stream_name(function: Function, now: datetime.datetime) -> str:
    """A log stream name in Lambda's form, one a sandbox."""
    return f"{now:%Y/%m/%d}/[{function.version}]{uuid.uuid4().hex}"


def variables(function: Function, *, log_stream: str, initialization_type: str = "on-demand") -> dict[str, str]:
    """The reserved variables as Lambda sets them, and the function's own.

    Source: the AWS developer guide, "Defined runtime environment variables", and what was observed inside Lambda:
    AWS_LAMBDA_FUNCTION_TIMEOUT is not among them. The keys are placeholders: nothing here may reach a real account
    unless the user passes keys of his own.
    """
    found = dict(function.environment)
    found |= {
        "AWS_LAMBDA_FUNCTION_NAME": function.name,
        "AWS_LAMBDA_FUNCTION_VERSION": function.version,
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(function.memory_mb),
        "AWS_LAMBDA_LOG_GROUP_NAME": log_group_name(function),
        "AWS_LAMBDA_LOG_STREAM_NAME": log_stream,
        "AWS_LAMBDA_INITIALIZATION_TYPE": initialization_type,
        "AWS_REGION": function.region,
        "AWS_DEFAULT_REGION": function.region,
        "AWS_XRAY_CONTEXT_MISSING": "LOG_ERROR",
        "AWS_XRAY_DAEMON_ADDRESS": "169.254.100.1:2000",
        "_AWS_XRAY_DAEMON_ADDRESS": "169.254.100.1",
        "_AWS_XRAY_DAEMON_PORT": "2000",
        "TZ": ":UTC",
    }
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        found.setdefault(name, "lambda-harness")
    if function.runtime:
        found["AWS_EXECUTION_ENV"] = f"AWS_Lambda_{function.runtime}"
    return found
