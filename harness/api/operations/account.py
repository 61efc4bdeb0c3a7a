"""GetAccountSettings: Lambda's limits, and what is in use of them."""

from __future__ import annotations

from typing import Any

from harness.api.code_store import MAX_ZIPPED_BYTES
from harness.api.registry import Registry
from harness.function.archive import MAX_UNZIPPED_BYTES

_TOTAL_CODE_BYTES = 80_530_636_800
"""Zips of functions and layers together [Lambda quotas: "75 GB"]."""


def get_account_settings(_: dict[str, Any], registry: Registry) -> dict[str, Any]:
    functions = registry.functions()
    code = [version.package.size_bytes or 0 for record in functions for version in record.numbered()]
    layers = [version.size_bytes for layer in registry.layers() for version in layer.versions.values()]
    return {
        "AccountLimit": {
            "TotalCodeSize": _TOTAL_CODE_BYTES,
            "CodeSizeUnzipped": MAX_UNZIPPED_BYTES,
            "CodeSizeZipped": MAX_ZIPPED_BYTES,
            "ConcurrentExecutions": registry.account_concurrency,
            "UnreservedConcurrentExecutions": max(0, registry.unreserved()),
        },
        "AccountUsage": {"TotalCodeSize": sum(code) + sum(layers), "FunctionCount": len(functions)},
    }
