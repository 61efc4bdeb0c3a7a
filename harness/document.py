"""The JSON document that every command with ``--json`` prints, and that runs are stored and exported as. Pure."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping
from typing import Any

from harness.function import DirectoryCode, Function, ImageCode, ZipCode
from harness.invocation import SCHEMA, Invocation


def describe_function(function: Function) -> dict[str, Any]:
    """The ``function`` of a document. Environment variables stand by name alone: their values may be secrets."""
    code = function.code
    return {
        "name": function.name,
        "source": function.source,
        "runtime": function.runtime,
        "handler": function.handler,
        "memory_mb": function.memory_mb,
        "timeout_s": function.timeout_s,
        "tmp_mb": function.tmp_mb,
        "architecture": function.architecture,
        "environment": sorted(function.environment),
        "code": str(code.path)
        if isinstance(code, DirectoryCode | ZipCode)
        else code.reference
        if isinstance(code, ImageCode)
        else "inline",
        "layers": [str(layer) for layer in function.layers],
    }


def make(
    kind: str,
    *,
    host: Mapping[str, Any],
    function: Function | None = None,
    invocations: Iterable[Invocation] = (),
    findings: Mapping[str, Any] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """One document of this kind."""
    return {
        "schema": SCHEMA,
        "kind": kind,
        "created_at": datetime.datetime.now(datetime.UTC).isoformat(),
        **more,
        "host": dict(host),
        "function": None if function is None else describe_function(function),
        "invocations": [each.as_dict() for each in invocations],
        "findings": dict(findings or {}),
    }
