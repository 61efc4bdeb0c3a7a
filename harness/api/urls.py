"""Function URLs: an HTTP request as the event of payload format 2.0, the function's answer as an HTTP response. Pure.

Source of the two formats: the AWS Lambda developer guide, "Invoking Lambda function URLs". An answer is buffered: the
Runtime Interface Emulator hands over whole responses, so RESPONSE_STREAM behaves like BUFFERED. AWS_IAM is kept and not
enforced: there are no identities here.
"""

from __future__ import annotations

import base64
import datetime
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

from harness.invocation import Invocation, Outcome

Headers = list[tuple[str, str]]

_TEXT_TYPES = re.compile(r"^(text/.*|application/(.*\+)?(json|xml)|application/javascript)$")
"""Bodies of these types are handed over as text, all others as base64 (forms, too, as Lambda does)."""
_NAME = re.compile(r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$")
_VALUE = re.compile(r"^[^\x00-\x08\x0a-\x1f\x7f]*$")
_OURS = frozenset({"connection", "content-length", "keep-alive", "transfer-encoding", "upgrade", "date"})
"""The connection's own headers: what a function says of them is not passed on."""
INTERNAL_ERROR = b"Internal Server Error"


@dataclass(frozen=True, kw_only=True)
class Cors:
    """A function URL's CORS configuration, as CreateFunctionUrlConfig takes it."""

    allow_origins: Sequence[str] = ()
    allow_methods: Sequence[str] = ()
    allow_headers: Sequence[str] = ()
    expose_headers: Sequence[str] = ()
    max_age_s: int | None = None
    allow_credentials: bool = False

    @classmethod
    def of(cls, found: Mapping[str, Any] | None) -> Cors | None:
        """From the API's shape; None where there is no configuration."""
        if not found:
            return None
        return cls(
            allow_origins=tuple(found.get("AllowOrigins") or ()),
            allow_methods=tuple(found.get("AllowMethods") or ()),
            allow_headers=tuple(found.get("AllowHeaders") or ()),
            expose_headers=tuple(found.get("ExposeHeaders") or ()),
            max_age_s=found.get("MaxAge"),
            allow_credentials=bool(found.get("AllowCredentials")),
        )

    def headers(self, origin: str | None, *, preflight: bool = False) -> Headers:
        """What to say to a page of that origin; nothing where it is not allowed."""
        allowed = _matches(origin, self.allow_origins)
        if origin is None or not allowed:
            return []
        anybody = "*" in self.allow_origins and not self.allow_credentials
        found = [("access-control-allow-origin", "*" if anybody else origin)]
        if not anybody:
            found.append(("vary", "Origin"))
        if self.allow_credentials:
            found.append(("access-control-allow-credentials", "true"))
        if self.expose_headers and not preflight:
            found.append(("access-control-expose-headers", ",".join(self.expose_headers)))
        if preflight:
            if self.allow_methods:
                found.append(("access-control-allow-methods", ",".join(self.allow_methods)))
            if self.allow_headers:
                found.append(("access-control-allow-headers", ",".join(self.allow_headers)))
            if self.max_age_s is not None:
                found.append(("access-control-max-age", str(self.max_age_s)))
        return found


@dataclass(frozen=True, kw_only=True)
class Asked:
    """An HTTP request to a function URL."""

    url_id: str
    domain: str
    method: str
    raw_path: str
    """As sent, percent-encoding kept."""
    path: str
    query: str
    headers: Headers
    body: bytes
    source_ip: str
    protocol: str = "HTTP/1.1"

    def first(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key == name), None)

    @property
    def is_preflight(self) -> bool:
        return self.method == "OPTIONS" and bool(self.first("origin") and self.first("access-control-request-method"))


@dataclass(frozen=True, kw_only=True)
class Reply:
    """An HTTP response."""

    status: int
    headers: Headers = field(default_factory=list)
    body: bytes = b""


def event(asked: Asked, *, request_id: str, trace_header: str, now: datetime.datetime) -> dict[str, Any]:
    """The event of payload format 2.0."""
    headers: dict[str, str] = {}
    cookies: list[str] = []
    for name, value in asked.headers:
        if name == "cookie":
            cookies += [each.strip() for each in value.split(";") if each.strip()]
        else:
            headers[name] = f"{headers[name]},{value}" if name in headers else value
    headers |= {
        "x-amzn-trace-id": trace_header,
        "x-forwarded-for": asked.source_ip,
        "x-forwarded-proto": "http",
        "x-forwarded-port": _port(asked.first("host") or ""),
    }
    found: dict[str, Any] = {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": asked.raw_path,
        "rawQueryString": asked.query,
    }
    if cookies:
        found["cookies"] = cookies
    found["headers"] = headers
    parameters: dict[str, str] = {}
    for name, value in parse_qsl(asked.query, keep_blank_values=True):
        parameters[name] = f"{parameters[name]},{value}" if name in parameters else value
    if parameters:
        found["queryStringParameters"] = parameters
    found["requestContext"] = {
        "accountId": "anonymous",
        "apiId": asked.url_id,
        "domainName": asked.domain,
        "domainPrefix": asked.url_id,
        "http": {
            "method": asked.method,
            "path": asked.path,
            "protocol": asked.protocol,
            "sourceIp": asked.source_ip,
            "userAgent": asked.first("user-agent"),
        },
        "requestId": request_id,
        "routeKey": "$default",
        "stage": "$default",
        "time": now.strftime("%d/%b/%Y:%H:%M:%S +0000"),
        "timeEpoch": int(now.timestamp() * 1000),
    }
    text = _as_text(asked)
    if asked.body:
        found["body"] = base64.b64encode(asked.body).decode() if text is None else text
    found["isBase64Encoded"] = bool(asked.body) and text is None
    return found


def reply(record: Invocation, payload: bytes) -> Reply:
    """The function's answer as a response; a function that failed is 502, one that was throttled 429."""
    if record.outcome is Outcome.THROTTLED:
        return Reply(status=429, headers=[("content-type", "application/json")], body=payload)
    if record.outcome is Outcome.ENGINE_ERROR:
        return _internal_error(500)
    if record.outcome is not Outcome.SUCCESS:
        return _internal_error(502)
    try:
        found = json.loads(payload or b"null")
    except ValueError:
        return _internal_error(502)
    if isinstance(found, dict) and "statusCode" in found:
        try:
            return _formed(found)
        except (ValueError, TypeError, AttributeError):
            return _internal_error(502)
    return Reply(status=200, headers=[("content-type", "application/json")], body=payload)


def _internal_error(status: int) -> Reply:
    return Reply(status=status, headers=[("content-type", "application/json")], body=INTERNAL_ERROR)


def _formed(found: Mapping[str, Any]) -> Reply:
    """A response that says what it is. Raises ValueError or TypeError where it is none."""
    status = int(found["statusCode"])
    if not 200 <= status <= 599:
        raise ValueError(status)
    body = found.get("body")
    text = "" if body is None else body if isinstance(body, str) else json.dumps(body)
    headers: Headers = []
    for name, value in (found.get("headers") or {}).items():
        said = value if isinstance(value, str) else json.dumps(value)
        if not _NAME.match(name) or not _VALUE.match(said):
            raise ValueError(name)
        if name.lower() not in _OURS:
            headers.append((name.lower(), said.strip()))
    if not any(name == "content-type" for name, _ in headers):
        headers.append(("content-type", "application/json"))
    for cookie in found.get("cookies") or ():
        if not isinstance(cookie, str) or not _VALUE.match(cookie):
            raise ValueError("cookies")
        headers.append(("set-cookie", cookie.strip()))
    encoded = found.get("isBase64Encoded") is True
    return Reply(status=status, headers=headers, body=base64.b64decode(text) if encoded else text.encode())


def with_cors(answer: Reply, cors: Cors | None, origin: str | None) -> Reply:
    """The configuration's headers lie over those that the function gives itself, as on Lambda."""
    if cors is None:
        return answer
    kept = [(name, value) for name, value in answer.headers if not name.startswith("access-control-")]
    return Reply(status=answer.status, headers=kept + cors.headers(origin), body=answer.body)


def preflight(cors: Cors, asked: Asked) -> Reply:
    """The answer to a browser's question; the function is not invoked for it."""
    return Reply(status=200, headers=cors.headers(asked.first("origin"), preflight=True))


def _matches(origin: str | None, allowed: Sequence[str]) -> bool:
    if origin is None:
        return False
    return any(
        re.fullmatch(".*".join(re.escape(part) for part in each.split("*")), origin, re.IGNORECASE) for each in allowed
    )


def _as_text(asked: Asked) -> str | None:
    """The body as text, where its type says that it is some; None: base64."""
    kind = (asked.first("content-type") or "").partition(";")[0].strip().lower()
    if not _TEXT_TYPES.match(kind):
        return None
    try:
        return asked.body.decode()
    except UnicodeDecodeError:
        return None


def _port(host: str) -> str:
    found = re.search(r":(\d+)$", host)
    return found[1] if found else "80"
