"""CloudWatch's PutMetricData, in the three protocols in which SDKs send it. Pure: a request in, an answer and data out.

AWS query (forms in, XML out: all SDKs of before 2025), AWS JSON 1.0 (boto3 1.44) and Smithy RPC v2 CBOR (the JavaScript
SDK 3.1162); see docs/receivers.md. What members there are and which types they have is read from botocore's own
model of the service; the rules between members are CloudWatch's [API reference, PutMetricData and MetricDatum].
"""

from __future__ import annotations

import datetime
import functools
import importlib
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl
from xml.sax.saxutils import escape

from harness.receivers.http_exchange import BodyRefused, Reply, Request, new_request_id, plain_body

TARGET = "GraniteServiceVersion20100801"
"""CloudWatch's name in ``X-Amz-Target`` and in the paths of RPC v2."""
OPERATION = "PutMetricData"
_XML_NAMESPACE = "http://monitoring.amazonaws.com/doc/2010-08-01/"
_ERROR_NAMESPACE = "com.amazonaws.cloudwatch"
_FRAMEWORK_NAMESPACE = "com.amazon.coral.service"
"""Of errors that AWS's front end gives before any service is asked."""

REQUEST_BYTES = 1024 * 1024
"""As CloudWatch limits the body of a PutMetricData request."""
_PLAIN_BYTES = 16 * 1024 * 1024
"""After decompression: CloudWatch states no limit; this keeps a small body from filling the memory."""
_MOST_FIELDS = 200_000
_DEEPEST = 16

MOST_METRICS = 1000
MOST_VALUES = 150
MOST_DIMENSIONS = 30
LARGEST_VALUE = 2.0**360
_OLDEST = datetime.timedelta(weeks=2)
_NEWEST = datetime.timedelta(hours=2)

_RPC_PATH = re.compile(r"(?:/[^/]+)*/service/([A-Za-z0-9_.]+)/operation/([A-Za-z0-9_]+)")


class Refused(Exception):
    """CloudWatch would refuse this. ``code`` as the query protocol names it, ``shape`` as the newer ones do."""

    def __init__(self, code: str, message: str, *, shape: str = "", status: int = 400) -> None:
        super().__init__(message)
        self.code, self.status = code, status
        self.shape = shape or code


def _invalid(message: str) -> Refused:
    return Refused("InvalidParameterValue", message, shape="InvalidParameterValueException")


def _missing(path: str) -> Refused:
    return Refused("MissingParameter", f"The parameter {path} is required.", shape="MissingRequiredParameterException")


def _both(one: str, other: str) -> Refused:
    return Refused(
        "InvalidParameterCombination",
        f"The parameters {one} and {other} are mutually exclusive and you have specified both.",
        shape="InvalidParameterCombinationException",
    )


@dataclass(frozen=True, kw_only=True)
class Answered:
    """What to send back, what was accepted, and a sentence for the user where the call was refused."""

    reply: Reply
    metrics: tuple[dict[str, Any], ...] = ()
    warning: str = ""


@dataclass(frozen=True, kw_only=True)
class _Protocol:
    name: str
    service: str
    operation: str
    parameters: Callable[[bytes], Any]
    accepted: Callable[[str], Reply]
    refused: Callable[[str, Refused], Reply]


def answer(request: Request, *, now: datetime.datetime) -> Answered:
    """CloudWatch's answer to a request; never raises for what the function sent."""
    request_id = new_request_id()
    protocol = _protocol(request)
    try:
        entries = _put_metric_data(request, protocol, now)
    except Refused as refusal:
        what = f"{protocol.service} {protocol.operation}".strip() or f"{request.method} {request.path[:80]}"
        return Answered(
            reply=protocol.refused(request_id, refusal),
            warning=f"CloudWatch receiver refused {what}: {refusal.code}: {refusal}",
        )
    return Answered(reply=protocol.accepted(request_id), metrics=tuple(entries))


def throttled(request: Request) -> Reply:
    """The answer where too many calls wait."""
    refusal = Refused("Throttling", "Rate exceeded", shape="ThrottlingException")
    return _protocol(request).refused(new_request_id(), refusal)


def _put_metric_data(request: Request, protocol: _Protocol, now: datetime.datetime) -> list[dict[str, Any]]:
    if protocol.service not in ("", TARGET):
        raise Refused(
            "UnknownOperationException", f"{protocol.service} is no service that these receivers stand for", status=404
        )
    if protocol.operation != OPERATION:
        known = protocol.operation in _model().operation_names
        why = "is not one that this local receiver answers" if known else "is not one of CloudWatch"
        raise Refused(
            "InvalidAction" if protocol.name == "query" else "UnknownOperationException",
            f"Could not find operation {protocol.operation} for version 2010-08-01: it {why}",
            status=400 if protocol.name == "query" else 404,
        )
    if len(request.body) > REQUEST_BYTES:
        raise Refused("RequestEntityTooLarge", f"The request has more than {REQUEST_BYTES} bytes", status=413)
    try:
        found = protocol.parameters(plain_body(request, most_bytes=_PLAIN_BYTES))
    except BodyRefused as error:
        raise Refused("MalformedInput", str(error), shape="SerializationException", status=error.status) from error
    except (ValueError, RecursionError) as error:
        raise Refused("MalformedInput", f"the body cannot be read: {error}", shape="SerializationException") from error
    shape = _model().operation_model(OPERATION).input_shape
    return _entries(_typed(shape, found, ""), now)


# -- protocols ----------------------------------------------------------------------------------------------------------


def _protocol(request: Request) -> _Protocol:
    rpc = _RPC_PATH.fullmatch(request.path)
    if rpc is not None or request.header("smithy-protocol") == "rpc-v2-cbor":
        service, operation = (rpc[1], rpc[2]) if rpc is not None else ("", "")
        return _Protocol(
            name="cbor",
            service=service.rpartition(".")[2],
            operation=operation,
            parameters=_from_cbor,
            accepted=_cbor_accepted,
            refused=_cbor_refused,
        )
    target = request.header("x-amz-target")
    if target:
        service, _, operation = target.rpartition(".")
        return _Protocol(
            name="json",
            service=service,
            operation=operation,
            parameters=_from_json,
            accepted=_json_accepted,
            refused=_json_refused,
        )
    return _Protocol(
        name="query",
        service="",
        operation=_action(request),
        parameters=lambda body: _from_form(body.decode() if request.method == "POST" else request.query),
        accepted=_xml_accepted,
        refused=_xml_refused,
    )


def _from_cbor(body: bytes) -> Any:
    import cbor2

    try:
        return cbor2.loads(body) if body else {}
    except cbor2.CBORDecodeError as error:
        raise ValueError(str(error)) from error


def _from_json(body: bytes) -> Any:
    return json.loads(body) if body else {}


def _action(request: Request) -> str:
    """The operation of a query request; "" where it names none or is no form."""
    try:
        text = plain_body(request, most_bytes=_PLAIN_BYTES).decode() if request.method == "POST" else request.query
        return dict(parse_qsl(text, keep_blank_values=True, max_num_fields=_MOST_FIELDS)).get("Action", "")[:128]
    except (BodyRefused, ValueError):
        return ""


class _Branch(dict[str, Any]):
    """Parameters below one name of a form; tells them apart from the maps of the other protocols."""


def _from_form(text: str) -> _Branch:
    """``MetricData.member.1.MetricName=x`` as nested branches."""
    root = _Branch()
    for name, value in parse_qsl(text, keep_blank_values=True, max_num_fields=_MOST_FIELDS):
        *parents, last = name.split(".")
        if len(parents) > _DEEPEST:
            raise ValueError(f"parameter {name[:80]} is nested too deeply")
        branch = root
        for part in parents:
            below = branch.setdefault(part, _Branch())
            if not isinstance(below, _Branch):
                raise ValueError(f"parameter {name[:80]} is both a value and a structure")  # noqa: TRY004
            branch = below
        branch[last] = value
    for known in ("Action", "Version"):
        root.pop(known, None)
    return root


def _headers(request_id: str, refusal: Refused | None = None) -> dict[str, str]:
    found = {"x-amzn-RequestId": request_id}
    if refusal is not None:
        # By it SDKs find the code of the query protocol, which existing programs look for.
        found["x-amzn-query-error"] = f"{refusal.code};{'Sender' if refusal.status < 500 else 'Receiver'}"
    return found


def _error_type(refusal: Refused) -> str:
    unknown = refusal.shape == "UnknownOperationException"
    return f"{_FRAMEWORK_NAMESPACE if unknown else _ERROR_NAMESPACE}#{refusal.shape}"


def _cbor_accepted(request_id: str) -> Reply:
    return _cbor(200, {}, _headers(request_id))


def _cbor_refused(request_id: str, refusal: Refused) -> Reply:
    document = {"__type": _error_type(refusal), "message": str(refusal)}
    return _cbor(refusal.status, document, _headers(request_id, refusal))


def _cbor(status: int, document: Mapping[str, str], headers: dict[str, str]) -> Reply:
    import cbor2

    return Reply(
        status=status,
        content_type="application/cbor",
        body=cbor2.dumps(document),
        headers={"smithy-protocol": "rpc-v2-cbor", **headers},
    )


def _json_accepted(request_id: str) -> Reply:
    return Reply(status=200, content_type="application/x-amz-json-1.0", body=b"{}", headers=_headers(request_id))


def _json_refused(request_id: str, refusal: Refused) -> Reply:
    document = {"__type": _error_type(refusal), "message": str(refusal)}
    return Reply(
        status=refusal.status,
        content_type="application/x-amz-json-1.0",
        body=json.dumps(document).encode(),
        headers=_headers(request_id, refusal),
    )


def _xml_accepted(request_id: str) -> Reply:
    text = (
        f'<{OPERATION}Response xmlns="{_XML_NAMESPACE}"><ResponseMetadata><RequestId>{request_id}</RequestId>'
        f"</ResponseMetadata></{OPERATION}Response>"
    )
    return Reply(status=200, content_type="text/xml", body=text.encode(), headers=_headers(request_id))


def _xml_refused(request_id: str, refusal: Refused) -> Reply:
    text = (
        f'<ErrorResponse xmlns="{_XML_NAMESPACE}"><Error><Type>Sender</Type><Code>{refusal.code}</Code>'
        f"<Message>{escape(str(refusal))}</Message></Error><RequestId>{request_id}</RequestId></ErrorResponse>"
    )
    return Reply(status=refusal.status, content_type="text/xml", body=text.encode(), headers=_headers(request_id))


# -- types, by the model ------------------------------------------------------------------------------------------------


@functools.cache
def _model() -> Any:
    """Botocore's model of CloudWatch; it carries no types, and reading it takes tens of milliseconds."""
    loader = importlib.import_module("botocore.loaders").Loader()
    description = loader.load_service_model("cloudwatch", "service-2")
    return importlib.import_module("botocore.model").ServiceModel(description, "cloudwatch")


def preload() -> None:
    """Load what the first call would wait for: 80 ms that a function's duration must not hold."""
    import cbor2  # noqa: F401

    _model()
    units()


@functools.cache
def units() -> frozenset[str]:
    """CloudWatch's units."""
    return frozenset(_model().shape_for("StandardUnit").enum)


def _typed(shape: Any, value: Any, path: str) -> Any:
    """The value as the shape has it; `Refused` names the parameter that is not."""
    kind: str = shape.type_name
    if kind == "structure":
        return _structure(shape, value, path)
    if kind == "list":
        return _list(shape, value, path)
    if kind == "map":
        return _map(shape, value, path)
    if kind == "string":
        return _text(shape, value, path)
    if kind == "timestamp":
        return _instant(value, path)
    if kind in ("double", "float", "integer", "long"):
        return _number(value, path, whole=kind in ("integer", "long"))
    if kind == "boolean":
        if value in (True, False, "true", "false"):
            return value in (True, "true")
        raise _invalid(f"The parameter {path} must be a boolean.")
    raise _invalid(f"The parameter {path} is of a kind that is not understood.")


def _structure(shape: Any, value: Any, path: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise _invalid(f"The parameter {path or OPERATION} must be a structure.")
    below = f"{path}." if path else ""
    found = {
        name: _typed(member, value[name], below + name)
        for name, member in shape.members.items()
        if value.get(name) is not None
    }
    for name in shape.required_members:
        if name not in found:
            raise _missing(below + name)
    return found


def _list(shape: Any, value: Any, path: str) -> list[Any]:
    if isinstance(value, _Branch):
        members = value.get("member", _Branch())
        if not isinstance(members, _Branch) or not all(key.isdigit() for key in members):
            raise _invalid(f"The parameter {path} must be a list.")
        value = [members[key] for key in sorted(members, key=int)]
    elif value == "":
        value = []
    if not isinstance(value, list | tuple):
        raise _invalid(f"The parameter {path} must be a list.")
    most = shape.metadata.get("max")
    if most is not None and len(value) > most:
        raise _too_many(path, most)
    return [_typed(shape.member, member, f"{path}.member.{at}") for at, member in enumerate(value, start=1)]


def _too_many(path: str, most: int) -> Refused:
    return _invalid(f"The collection {path} must not have a size greater than {most}.")


def _map(shape: Any, value: Any, path: str) -> dict[str, Any]:
    if isinstance(value, _Branch):
        entries = value.get("entry", _Branch())
        value = {entry.get("key"): entry.get("value") for entry in entries.values() if isinstance(entry, _Branch)}
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise _invalid(f"The parameter {path} must be a map.")
    return {key: _typed(shape.value, member, f"{path}.{key}") for key, member in value.items()}


def _text(shape: Any, value: Any, path: str) -> str:
    if not isinstance(value, str):
        raise _invalid(f"The parameter {path} must be a string.")
    least, most = shape.metadata.get("min", 0), shape.metadata.get("max", math.inf)
    if not least <= len(value) <= most:
        raise _invalid(f"The parameter {path} must be from {least} to {most} characters long; it has {len(value)}.")
    choices = getattr(shape, "enum", None)
    if choices and value not in choices:
        raise _invalid(f"The parameter {path} must be a value in the set [ {', '.join(choices)} ]")
    return value


def _number(value: Any, path: str, *, whole: bool) -> float | int:
    if isinstance(value, str):
        try:
            value = int(value) if whole else float(value)
        except ValueError:
            raise _invalid(f"The parameter {path} must be a number.") from None
    fraction = whole and isinstance(value, float) and not value.is_integer()
    if isinstance(value, bool) or not isinstance(value, int | float) or fraction:
        raise _invalid(f"The parameter {path} must be {'a whole number' if whole else 'a number'}.")
    return int(value) if whole else value


def _instant(value: Any, path: str) -> datetime.datetime:
    if isinstance(value, datetime.datetime):  # CBOR's tag 1
        found = value
    else:
        parse = importlib.import_module("botocore.utils").parse_timestamp
        try:
            found = parse(value)
        except (ValueError, TypeError, OverflowError, OSError):
            raise Refused(
                "MalformedInput", f"The parameter {path} is no timestamp.", shape="SerializationException"
            ) from None
    if found.tzinfo is None:
        found = found.replace(tzinfo=datetime.UTC)
    return found.astimezone(datetime.UTC)


# -- CloudWatch's own rules ---------------------------------------------------------------------------------------------


def _entries(parameters: dict[str, Any], now: datetime.datetime) -> list[dict[str, Any]]:
    namespace: str = parameters["Namespace"]
    if not namespace.strip() or namespace.startswith((":", "AWS/")) or not namespace.isascii():
        shown = "AWS/" if namespace.startswith("AWS/") else namespace[:40]
        raise _invalid(f"The value {shown} for parameter Namespace is invalid.")
    groups: list[tuple[str, dict[str, Any], list[dict[str, Any]]]] = [
        ("MetricData", {}, parameters.get("MetricData", []))
    ]
    for at, group in enumerate(parameters.get("EntityMetricData", []), start=1):
        groups.append(
            (f"EntityMetricData.member.{at}.MetricData", group.get("Entity", {}), group.get("MetricData", []))
        )
    if sum(len(data) for _, _, data in groups) > MOST_METRICS:
        raise _too_many("MetricData", MOST_METRICS)
    if not any(data for _, _, data in groups):
        raise _missing("MetricData")
    return [
        _entry(namespace, entity, datum, f"{path}.member.{at}", now)
        for path, entity, data in groups
        for at, datum in enumerate(data, start=1)
    ]


def _entry(
    namespace: str, entity: dict[str, Any], datum: dict[str, Any], path: str, now: datetime.datetime
) -> dict[str, Any]:
    given = [name for name in ("Value", "Values", "StatisticValues") if name in datum]
    if len(given) > 1:
        raise _both(f"{path}.{given[0]}", f"{path}.{given[1]}")
    if not given:
        raise Refused(
            "MissingParameter",
            f"At least one of the parameters {path}.Value, {path}.Values and {path}.StatisticValues must be specified.",
            shape="MissingRequiredParameterException",
        )
    if "Counts" in datum and "Values" not in datum:
        raise _missing(f"{path}.Values")
    found: dict[str, Any] = {"Namespace": namespace, "MetricName": datum["MetricName"]}
    found["Dimensions"] = _dimensions(datum.get("Dimensions", []), path)
    if "Value" in datum:
        found["Value"] = _finite(datum["Value"], f"{path}.Value")
    elif "Values" in datum:
        found |= _values(datum, path)
    else:
        found["StatisticValues"] = _statistics(datum["StatisticValues"], f"{path}.StatisticValues")
    found["Unit"] = datum.get("Unit", "None")
    resolution = datum.get("StorageResolution", 60)
    if resolution not in (1, 60):
        raise _invalid(f"The value {resolution} for parameter {path}.StorageResolution is invalid: it is 1 or 60.")
    found["StorageResolution"] = resolution
    found["Timestamp"] = timestamp_text(_timestamp(datum.get("Timestamp", now), f"{path}.Timestamp", now))
    if entity:
        found["Entity"] = entity
    return found


def _dimensions(dimensions: list[dict[str, str]], path: str) -> list[dict[str, str]]:
    for at, dimension in enumerate(dimensions, start=1):
        for part in ("Name", "Value"):
            text, where = dimension[part], f"{path}.Dimensions.member.{at}.{part}"
            if not text.strip() or not text.isascii() or any(ord(sign) < 32 or ord(sign) == 127 for sign in text):
                raise _invalid(f"The value {text[:40]!r} for parameter {where} is invalid.")
        if dimension["Name"].startswith(":"):
            raise _invalid(f"The value {dimension['Name'][:40]} for parameter {path}.Dimensions is invalid.")
    names = [dimension["Name"] for dimension in dimensions]
    if len(set(names)) != len(names):
        raise _invalid(f"The parameter {path}.Dimensions names a dimension twice.")
    return dimensions


def _values(datum: dict[str, Any], path: str) -> dict[str, Any]:
    values, counts = datum["Values"], datum.get("Counts")
    if not values:
        raise _missing(f"{path}.Values")
    if len(values) > MOST_VALUES:
        raise _too_many(f"{path}.Values", MOST_VALUES)
    found: dict[str, Any] = {
        "Values": [_finite(value, f"{path}.Values.member.{at}") for at, value in enumerate(values, start=1)]
    }
    if counts:
        if len(counts) != len(values):
            raise _invalid(f"The parameters {path}.Values and {path}.Counts must be of the same size.")
        found["Counts"] = [_count(count, f"{path}.Counts.member.{at}") for at, count in enumerate(counts, start=1)]
    return found


def _count(value: float, path: str) -> float:
    if not _finite(value, path) > 0:
        raise _invalid(f"The value {value} for parameter {path} is invalid.")
    return value


def _statistics(found: dict[str, float], path: str) -> dict[str, float]:
    for name, value in found.items():
        _finite(value, f"{path}.{name}")
    _count(found["SampleCount"], f"{path}.SampleCount")
    if found["Minimum"] > found["Maximum"]:
        raise _invalid(f"The parameter {path}.Maximum must be greater than or equal to {path}.Minimum.")
    return found


def _finite(value: float, path: str) -> float:
    if abs(value) <= LARGEST_VALUE:  # not so for NaN and infinities
        return value
    raise _invalid(f"The value {value} for parameter {path} is invalid.")


def _timestamp(value: datetime.datetime, path: str, now: datetime.datetime) -> datetime.datetime:
    if value > now + _NEWEST:
        raise _invalid(f"The parameter {path} must specify a time no more than two hours in the future.")
    if value < now - _OLDEST:
        raise _invalid(f"The parameter {path} must specify a time within the past two weeks.")
    return value


def timestamp_text(value: datetime.datetime) -> str:
    """An instant as the harness's documents have it: UTC, ISO 8601, to the millisecond."""
    return value.astimezone(datetime.UTC).isoformat(timespec="milliseconds")
