"""Lambda's wire protocol (REST and JSON), read from AWS's own service model: routes, requests, constraints, answers.

The model is the one that botocore ships, so that every client of AWS agrees with it. Must not know what an operation
does. botocore is imported at the first use: commands that serve nothing do not pay for it.
"""

from __future__ import annotations

import base64
import binascii
import functools
import json
import re
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote

from harness import strict_json
from harness.api.faults import Fault, invalid
from harness.tiers import MAX_MEMORY_MB

if TYPE_CHECKING:
    from botocore.model import OperationModel, ServiceModel, Shape

MAX_PACKAGE_REQUEST_BYTES = 70_167_211
"""The largest request that may carry a zip: 50 MB as base64, and room for the rest [Lambda's own refusal names it]."""

JSON_CONTENT = "application/json"
EVENT_STREAM_CONTENT = "application/vnd.amazon.eventstream"

_LIMITS_OF_FUNCTIONS = {
    ("MemorySize",): ("MemorySize", MAX_MEMORY_MB),
    ("Timeout",): ("Timeout", 900),
    ("EphemeralStorage", "Size"): ("EphemeralStorage.Size", 10240),
}
"""The model also describes functions on machines of one's own, which may be larger than those that Lambda runs."""

_SEPARATORS = r"\u0020\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"  # Unicode's category Z


@dataclass(frozen=True, kw_only=True)
class Match:
    """The operation that a method and a path name, and what stands in the path's places."""

    operation: str
    places: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Response:
    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True, kw_only=True)
class _Route:
    operation: str
    method: str
    segments: tuple[str, ...]
    query: tuple[tuple[str, str], ...]
    """What the query must say for this route: two of Lambda's operations have nothing else to tell them apart."""


@functools.cache
def service_model() -> ServiceModel:
    """The model of Lambda that botocore carries."""
    import botocore.loaders
    import botocore.model

    found = botocore.loaders.Loader().load_service_model("lambda", "service-2")
    return botocore.model.ServiceModel(found, "lambda")


def request_limit(operation: str) -> int | None:
    """The size of a request that Lambda refuses by name for this operation; None where it is not one with a zip."""
    return MAX_PACKAGE_REQUEST_BYTES if operation in _WITH_ZIP else None


_WITH_ZIP = frozenset({"CreateFunction", "UpdateFunctionCode", "PublishLayerVersion"})


# Routes


def match(method: str, path: str, query: str = "") -> Match | None:
    """The operation of a request; None where Lambda has none. ``path`` and ``query`` as sent, still percent-encoded."""
    wanted = path.removeprefix("/").removesuffix("/").split("/")
    said = parse_qsl(query, keep_blank_values=True)
    for route in _routes():
        if route.method != method or len(route.segments) != len(wanted):
            continue
        places = _places(route, wanted)
        if places is not None and all(pair in said for pair in route.query):
            return Match(operation=route.operation, places=places)
    return None


@functools.cache
def _routes() -> tuple[_Route, ...]:
    found = []
    for name in service_model().operation_names:
        http = service_model().operation_model(name).http
        path, _, query = http["requestUri"].partition("?")
        segments = tuple(path.strip("/").split("/"))
        found.append(_Route(operation=name, method=http["method"], segments=segments, query=tuple(parse_qsl(query))))
    # A demand on the query is the more particular one of two routes.
    return tuple(sorted(found, key=lambda route: -len(route.query)))


def _places(route: _Route, wanted: list[str]) -> dict[str, str] | None:
    places = {}
    for pattern, part in zip(route.segments, wanted, strict=True):
        if pattern.startswith("{"):
            if not part or part in {".", ".."}:
                return None
            places[pattern.strip("{}+")] = unquote(part)
        elif pattern != part:
            return None
    return places


# Requests


def parse(found: Match, *, headers: Mapping[str, str], query: str = "", body: bytes = b"") -> dict[str, Any]:
    """The parameters of a request as botocore names them, judged by the model.

    Blobs are bytes. Members that the model does not know are dropped, as Lambda drops them.

    Raises:
        Fault: the body cannot be read, or a value breaks a constraint of the model.
    """
    shape = service_model().operation_model(found.operation).input_shape
    if shape is None:
        return {}
    low = {name.lower(): value for name, value in headers.items()}
    said: dict[str, list[str]] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        said.setdefault(name, []).append(value)
    payload = shape.serialization.get("payload")
    params: dict[str, Any] = {}
    in_body: dict[str, Shape] = {}
    for name, member in shape.members.items():
        place = member.serialization.get("location")
        wire = member.serialization.get("name", name)
        if place == "uri":
            params[name] = _from_text(member, found.places[wire])
        elif place == "querystring" and wire in said:
            params[name] = (
                [_from_text(member.member, one) for one in said[wire]]
                if member.type_name == "list"
                else _from_text(member, said[wire][-1])
            )
        elif place == "header" and wire.lower() in low:
            params[name] = _from_text(member, low[wire.lower()])
        elif name == payload:
            params[name] = body
        elif place is None:
            in_body[name] = member
    if in_body and payload is None:
        params |= _body(in_body, body)
    _judge(shape, params)
    return params


def _body(members: Mapping[str, Shape], body: bytes) -> dict[str, Any]:
    if not body.strip():
        return {}
    try:
        found = strict_json.loads(body)
    except ValueError as error:
        raise Fault(
            "InvalidRequestContentException", 400, f"Could not parse request body into json: {_reason(error)}"
        ) from None
    if not isinstance(found, dict):
        raise _wrong("Start of structure or map expected")
    return _structure(members, found)


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg}: line {error.lineno}, column {error.colno}"
    return "the text cannot be read"


def _structure(members: Mapping[str, Shape], found: dict[str, Any]) -> dict[str, Any]:
    read = {}
    for name, member in members.items():
        value = found.get(member.serialization.get("name", name))
        if value is not None:
            read[name] = _from_json(member, value)
    return read


def _wrong(message: str) -> Fault:
    return Fault("SerializationException", 400, message)


def _from_text(shape: Shape, text: str) -> Any:
    """A value out of the path, the query or a header."""
    match shape.type_name:
        case "integer" | "long":
            if not re.fullmatch(r"[+-]?[0-9]{1,18}", text):
                raise _wrong(f"Value '{text}' can not be converted to an Integer")
            return int(text)
        case "boolean":
            if text.lower() not in {"true", "false"}:
                raise _wrong(f"Value '{text}' can not be converted to a Boolean")
            return text.lower() == "true"
        case _:
            return text


_SCALARS: Mapping[str, tuple[type | tuple[type, ...], str]] = {
    "integer": (int, "an Integer"),
    "long": (int, "an Integer"),
    "double": ((int, float), "a Double"),
    "boolean": (bool, "a Boolean"),
    "string": (str, "a String"),
    "blob": (str, "a Blob"),
}


def _from_json(shape: Shape, value: Any) -> Any:
    """A value out of a JSON body. What is null in a map or a list is dropped, as Lambda does."""
    match shape.type_name:
        case "structure" | "map" if not isinstance(value, dict):
            raise _wrong(f"{_kind(value)} can not be converted to a {shape.type_name}")
        case "structure":
            return _structure(shape.members, value)
        case "map":
            return {key: _from_json(shape.value, one) for key, one in value.items() if one is not None}
        case "list":
            if not isinstance(value, list):
                raise _wrong(f"{_kind(value)} can not be converted to a list")
            return [_from_json(shape.member, one) for one in value if one is not None]
    kinds, words = _SCALARS[shape.type_name]
    if not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool):
        raise _wrong(f"{_kind(value)} can not be converted to {words}")
    return _bytes(str(value)) if shape.type_name == "blob" else value


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise _wrong("Invalid base64 encoding") from None


def _kind(value: Any) -> str:
    """The word for a JSON value that AWS's own refusals use."""
    match value:
        case bool():
            return "TRUE_VALUE" if value else "FALSE_VALUE"
        case int() | float():
            return "NUMBER_VALUE" if isinstance(value, int) else "DECIMAL_VALUE"
        case str():
            return "STRING_VALUE"
        case list():
            return "START_ARRAY"
        case _:
            return "START_OBJECT"


# Constraints


def _judge(shape: Shape, params: dict[str, Any]) -> None:
    """Everything that the model demands of parameters, in AWS's words, all breaches in one message."""
    breaches: list[str] = []
    _judge_structure(shape, params, (), breaches)
    if breaches:
        count = f"{len(breaches)} validation error{'s' if len(breaches) > 1 else ''} detected: "
        raise Fault("ValidationException", 400, count + "; ".join(breaches))
    for path, (name, most) in _LIMITS_OF_FUNCTIONS.items():
        value: Any = params
        for part in path:
            value = value.get(part) if isinstance(value, dict) else None
        if path[0] in shape.members and isinstance(value, int) and value > most:
            raise invalid(
                f"'{name}' value failed to satisfy constraint: Member must have value less than or equal to {most}"
            )


def _judge_structure(shape: Shape, found: dict[str, Any], path: tuple[str, ...], breaches: list[str]) -> None:
    missing = [name for name in shape.required_members if name not in found]
    breaches += [_breach(None, (*path, _camel(name)), "Member must not be null") for name in missing]
    for name, value in found.items():
        _judge_value(shape.members[name], value, (*path, _camel(name)), breaches)


def _judge_value(shape: Shape, value: Any, path: tuple[str, ...], breaches: list[str]) -> None:
    if shape.name == "Runtime":
        known = [name for name in shape.metadata["enum"] if name != "custom"]
        if value not in known:
            raise invalid(
                f"Value {value} at 'runtime' failed to satisfy constraint: Member must satisfy enum value set: "
                f"[{', '.join(known)}] or be a valid ARN"
            )
        return
    shown = "***" if shape.metadata.get("sensitive") else value
    breaches += [_breach(shown, path, demand) for demand in _demands(shape, value)]
    match shape.type_name:
        case "structure":
            _judge_structure(shape, value, path, breaches)
        case "list" if shape.member.type_name == "structure":
            for number, one in enumerate(value, 1):
                _judge_value(shape.member, one, (*path, str(number), "member"), breaches)
        case "list":
            wrong = next((demands for one in value if (demands := _demands(shape.member, one))), None)
            if wrong:
                breaches.append(_breach(shown, path, f"Member must satisfy constraint: [{', '.join(wrong)}]"))
        case "map":
            for part, members in (("keys", value), ("value", value.values())):
                of = shape.key if part == "keys" else shape.value
                wrong = next((demands for one in members if (demands := _demands(of, one))), None)
                if wrong:
                    demand = f"Map {part} must satisfy constraint: [{', '.join(wrong)}]"
                    breaches.append(_breach(shown, path, demand))


def _demands(shape: Shape, value: Any) -> list[str]:
    """The constraints of a shape itself that a value does not meet."""
    limits = shape.metadata
    found = []
    if isinstance(value, int | float) and not isinstance(value, bool):
        if "min" in limits and value < limits["min"]:
            found.append(f"Member must have value greater than or equal to {limits['min']}")
        if "max" in limits and value > limits["max"]:
            found.append(f"Member must have value less than or equal to {limits['max']}")
    elif isinstance(value, str | bytes | list | dict):
        if len(value) < limits.get("min", 0):
            found.append(f"Member must have length greater than or equal to {limits['min']}")
        if "max" in limits and len(value) > limits["max"]:
            found.append(f"Member must have length less than or equal to {limits['max']}")
    if isinstance(value, str):
        pattern = limits.get("pattern")
        if pattern and not _compiled(pattern).fullmatch(value):
            found.append(f"Member must satisfy regular expression pattern: {pattern}")
        if "enum" in limits and value not in limits["enum"]:
            found.append(f"Member must satisfy enum value set: [{', '.join(limits['enum'])}]")
    return found


@functools.cache
def _compiled(pattern: str) -> re.Pattern[str]:
    """Java's pattern as Python's: it has no categories of letters, which appear in the patterns of tags alone."""
    if r"\p{" not in pattern:
        return re.compile(pattern, re.ASCII | re.DOTALL)
    return re.compile(pattern.replace(r"\p{L}", r"\w").replace(r"\p{N}", "").replace(r"\p{Z}", _SEPARATORS))


def _breach(value: Any, path: tuple[str, ...], demand: str) -> str:
    shown = "null" if value is None else f"'{_shown(value)}'"
    return f"Value {shown} at '{'.'.join(path)}' failed to satisfy constraint: {demand}"


def _shown(value: Any) -> str:
    """As AWS prints it, which is how Java prints it."""
    match value:
        case bool():
            return str(value).lower()
        case list():
            return f"[{', '.join(map(_shown, value))}]"
        case dict():
            return "{" + ", ".join(f"{key}={_shown(one)}" for key, one in value.items()) + "}"
        case bytes():
            return f"{len(value)} bytes"
        case _:
            return str(value)


def _camel(name: str) -> str:
    return name[:1].lower() + name[1:]


# Answers


def serialise(operation: str, result: Mapping[str, Any]) -> Response:
    """An answer: status, headers and body. ``result`` is keyed as botocore will show it; None members are left out.

    Raises:
        KeyError: the model has no such member.
    """
    model = service_model().operation_model(operation)
    status = int(model.http["responseCode"])
    shape = model.output_shape
    headers: dict[str, str] = {}
    body: dict[str, Any] = {}
    payload = shape.serialization.get("payload") if shape is not None else None
    for name, value in result.items():
        if value is None:
            continue
        if shape is None:
            raise KeyError(name)
        member = shape.members[name]
        wire = member.serialization.get("name", name)
        match member.serialization.get("location"):
            case "statusCode":
                status = int(value)
            case "header":
                headers[wire.lower()] = str(value)
            case _ if name != payload:
                body[wire] = _to_json(member, value)
    if payload is not None:
        return _payload(model, result, payload, status, headers)
    if status == 204:
        return Response(status=status, headers=headers, body=b"")
    return Response(status=status, headers=headers | {"content-type": JSON_CONTENT}, body=json.dumps(body).encode())


def _payload(
    model: OperationModel, result: Mapping[str, Any], name: str, status: int, headers: dict[str, str]
) -> Response:
    value = result.get(name)
    if model.has_event_stream_output:
        stream = b"".join(map(_stream_event, value or ()))
        return Response(status=status, headers=headers | {"content-type": EVENT_STREAM_CONTENT}, body=stream)
    content = {"content-type": JSON_CONTENT} if value else {}
    return Response(status=status, headers=headers | content, body=bytes(value or b""))


def _to_json(shape: Shape, value: Any) -> Any:
    match shape.type_name:
        case "structure":
            return {
                shape.members[name].serialization.get("name", name): _to_json(shape.members[name], one)
                for name, one in value.items()
                if one is not None
            }
        case "map":
            return {key: _to_json(shape.value, one) for key, one in value.items()}
        case "list":
            return [_to_json(shape.member, one) for one in value]
        case "blob":
            return base64.b64encode(value).decode("ascii")
        case "timestamp":
            return value.timestamp() if isinstance(value, datetime) else float(value)
        case _:
            return value


def _stream_event(event: Mapping[str, Any]) -> bytes:
    """One event of InvokeWithResponseStream: ``{"PayloadChunk": {"Payload": bytes}}`` or ``{"InvokeComplete": {...}}``."""
    ((kind, members),) = event.items()
    if kind == "PayloadChunk":
        return _message(kind, "application/octet-stream", bytes(members["Payload"]))
    found = {name: value for name, value in members.items() if value is not None}
    return _message(kind, JSON_CONTENT, json.dumps(found).encode())


def _message(kind: str, content: str, payload: bytes) -> bytes:
    """A message of AWS's event stream encoding: lengths, their checksum, headers, payload, checksum of everything."""
    headers = b"".join(
        _stream_header(name, value)
        for name, value in ((":event-type", kind), (":content-type", content), (":message-type", "event"))
    )
    prelude = struct.pack("!II", 16 + len(headers) + len(payload), len(headers))
    message = prelude + struct.pack("!I", zlib.crc32(prelude)) + headers + payload
    return message + struct.pack("!I", zlib.crc32(message))


def _stream_header(name: str, value: str) -> bytes:
    text = value.encode()
    return struct.pack("!B", len(name)) + name.encode() + struct.pack("!BH", 7, len(text)) + text  # 7: a string
