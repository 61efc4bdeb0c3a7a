"""A real botocore client whose requests go to the service's own reading and writing, without a server between.

Every answer is held to botocore's model of Lambda: members, types, constraints, statuses and errors.
"""

from __future__ import annotations

import base64
import functools
import io
import json
import zipfile
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import botocore.awsrequest
import botocore.config
import botocore.session

from harness.api import faults, protocol
from harness.api.faults import Fault
from harness.api.operations import perform
from harness.api.registry import Registry

ROLE = "arn:aws:iam::000000000000:role/any"
BEFORE_THE_SERVICE = {
    "AccessDeniedException",
    "RequestEntityTooLargeException",
    "SerializationException",
    "ValidationException",
    "InvalidRequestContentException",
}
"""Errors that come before an operation is known or read: the model names them for none."""

_TYPES: dict[str, type | tuple[type, ...]] = {
    "string": str,
    "integer": int,
    "long": int,
    "double": (int, float),
    "boolean": bool,
    "timestamp": (int, float),
    "blob": str,
    "list": list,
    "map": dict,
    "structure": dict,
}


EMPTY_ANSWERS = {"GetFunctionCodeSigningConfig"}
"""Of these the model requires members that Lambda leaves out where there is nothing to tell."""


def breaches(shape: Any, value: Any, path: str = "answer") -> list[str]:
    """What is wrong with a JSON value as an answer of this shape."""
    kinds: Any = _TYPES[shape.type_name]
    if not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool):
        return [f"{path} is {value!r}, not a {shape.type_name}"]
    found = [f"{path}: {demand}" for demand in protocol._demands(shape, value)]
    if shape.type_name == "structure":
        wires = {member.serialization.get("name", name): member for name, member in shape.members.items()}
        found += [f"{path}.{name} is missing" for name in shape.required_members if name not in value]
        for name, one in value.items():
            if name not in wires:
                found.append(f"{path}.{name} is unknown to AWS")
            else:
                found += breaches(wires[name], one, f"{path}.{name}")
    elif shape.type_name == "list":
        for number, one in enumerate(value):
            found += breaches(shape.member, one, f"{path}[{number}]")
    elif shape.type_name == "map":
        for key, one in value.items():
            found += breaches(shape.key, key, f"{path} key")
            found += breaches(shape.value, one, f"{path}[{key}]")
    return found


def judge_answer(operation: str, status: int, headers: dict[str, str], body: bytes) -> None:
    """Fails where AWS's model says something else than this answer to this operation."""
    model = protocol.service_model().operation_model(operation)
    if status >= 300:
        _judge_error(model, status, headers, body)
        return
    shape = model.output_shape
    if shape is None or status == 204:
        assert body == b"", (operation, body)
        assert status == (model.http["responseCode"] if shape is None else 204), (operation, status)
        return
    assert status == model.http["responseCode"], (operation, status)
    if operation in EMPTY_ANSWERS:
        assert json.loads(body) == {}
    elif "payload" not in shape.serialization:
        found = breaches(shape, json.loads(body))
        assert not found, (operation, found)


def _judge_error(model: Any, status: int, headers: dict[str, str], body: bytes) -> None:
    code = headers["x-amzn-errortype"]
    if code in BEFORE_THE_SERVICE:
        return
    shapes = {shape.name: shape for shape in model.error_shapes}
    assert code in shapes, (model.name, code)
    assert status == shapes[code].metadata["error"]["httpStatusCode"], (model.name, code, status)
    found = breaches(shapes[code], json.loads(body))
    assert not found, (model.name, code, found)


@functools.cache
def _session() -> Any:
    """One for all tests: it reads the models of AWS's services once."""
    return botocore.session.Session()


class _Raw(io.BytesIO):
    """What urllib3 would have given."""

    def stream(self, **_: Any) -> Iterator[bytes]:
        yield self.read()


class Wire:
    """Answers the requests of a client; ``seen`` are the operations that were answered well."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.seen: set[str] = set()
        self.last: tuple[int, dict[str, str], bytes] = (0, {}, b"")

    def answer(self, method: str, url: str, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        parts = urlsplit(url)
        found = None
        try:
            found = protocol.match(method, parts.path, parts.query)
            if found is None:
                raise faults.unknown_operation()
            params = protocol.parse(found, headers=headers, query=parts.query, body=body)
            response = protocol.serialise(found.operation, perform(found.operation, params, self.registry))
            self.last = response.status, response.headers, response.body
            self.seen.add(found.operation)
        except Fault as fault:
            self.last = fault.to_response()
        if found is not None:
            judge_answer(found.operation, *self.last)
        return self.last

    def client(self) -> Any:
        client = _session().create_client(
            "lambda",
            region_name=self.registry.region,
            aws_access_key_id="x",
            aws_secret_access_key="y",  # noqa: S106  every client wants one, and nothing checks it
            endpoint_url="http://127.0.0.1:1",
            config=botocore.config.Config(retries={"max_attempts": 0}, parameter_validation=False),
        )
        client.meta.events.register("before-send.lambda", self._send)
        return client

    def _send(self, request: botocore.awsrequest.AWSPreparedRequest, **_: Any) -> botocore.awsrequest.AWSResponse:
        headers = {
            key: value.decode() if isinstance(value, bytes) else str(value) for key, value in request.headers.items()
        }
        body = request.body or b""
        if hasattr(body, "read"):
            body = body.read()
        status, answered, content = self.answer(
            request.method, request.url, headers, body.encode() if isinstance(body, str) else bytes(body)
        )
        return botocore.awsrequest.AWSResponse(request.url, status, answered, _Raw(content))


def zipped(source: str = "def handler(e, c): return e", name: str = "app.py") -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as made:
        info = zipfile.ZipInfo(name)
        info.external_attr = 0o644 << 16
        made.writestr(info, source)
    return out.getvalue()


def base64_text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
