"""What Lambda answers when it refuses: a code, a status and a message, in the JSON and the header that clients read.

Must not know operations. The codes, statuses and sentences are Lambda's own, so that clients which look for them find
them; where the harness has more to say, it says so behind the sentence.
"""

from __future__ import annotations

import json
from typing import Any

_LOWER_CASE_MESSAGE = frozenset(
    {
        "CodeStorageExceededException",
        "InvalidParameterValueException",
        "InvalidRequestContentException",
        "PolicyLengthExceededException",
        "PreconditionFailedException",
        "ProvisionedConcurrencyConfigNotFoundException",
        "RequestTooLargeException",
        "ResourceConflictException",
        "ResourceNotReadyException",
        "TooManyRequestsException",
        "UnsupportedMediaTypeException",
    }
)
"""Lambda writes ``Message`` in some of its errors and ``message`` in others; a test holds this to the service model."""

_FRAMEWORK = frozenset({"ValidationException", "SerializationException"})
"""Errors of the framework before Lambda itself: they carry a ``message`` and no ``Type``."""

STATUS_UNAVAILABLE = 500


class Fault(Exception):
    """A refusal. ``fields`` are further members of its JSON; ``headers`` further headers (Retry-After)."""

    def __init__(
        self, code: str, status: int, message: str, *, headers: dict[str, str] | None = None, **fields: Any
    ) -> None:
        super().__init__(message)
        self.code = code
        self.status = status
        self.message = message
        self.headers = dict(headers or {})
        self.fields = fields

    def to_response(self) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body as Lambda sends them."""
        body: dict[str, Any] = {}
        if self.code in _FRAMEWORK:
            body["message"] = self.message
        else:
            body["Type"] = "Service" if self.status >= STATUS_UNAVAILABLE else "User"
            body["message" if self.code in _LOWER_CASE_MESSAGE else "Message"] = self.message
        body |= self.fields
        headers = {"content-type": "application/json", "x-amzn-errortype": self.code, **self.headers}
        return self.status, headers, json.dumps(body).encode()


def invalid(message: str) -> Fault:
    """A parameter whose value Lambda does not take."""
    return Fault("InvalidParameterValueException", 400, message)


def conflict(message: str) -> Fault:
    """A resource that is there already, or busy."""
    return Fault("ResourceConflictException", 409, message)


def not_found(message: str = "The resource you requested does not exist.") -> Fault:
    return Fault("ResourceNotFoundException", 404, message)


def function_not_found(arn: str) -> Fault:
    return not_found(f"Function not found: {arn}")


def stale_revision() -> Fault:
    """The caller changed something on the grounds of what is no longer so."""
    return Fault(
        "PreconditionFailedException",
        412,
        "The Revision Id provided does not match the latest Revision Id. "
        "Call the GetFunction/GetAlias API to retrieve the latest Revision Id",
    )


def service(message: str) -> Fault:
    """The service itself failed."""
    return Fault("ServiceException", 500, message)


def unknown_operation() -> Fault:
    """A path or method that Lambda does not have: it fails before anybody knows what would have to be allowed."""
    return Fault("AccessDeniedException", 403, "Unable to determine service/operation name to be authorized")


def request_too_large(limit_bytes: int, operation: str) -> Fault:
    """A request with a deployment package in it that is larger than Lambda reads."""
    return Fault(
        "RequestEntityTooLargeException",
        413,
        f"Request must be smaller than {limit_bytes} bytes for the {operation} operation",
    )
