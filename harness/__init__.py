"""lambda-harness: AWS Lambda functions under exactly the CPU and memory of a memory size, frozen between invocations.

Words, AWS's own. A *function* is code plus configuration. Its *memory size* (tier), in MB of 1024 * 1024 bytes, decides its
CPU. A *sandbox* is one execution environment: *init*, then *invoke* after *invoke*, *frozen* in between, until *shutdown*;
a *reset* starts a runtime that died again in the same sandbox (a *suppressed init*). An *invocation* is one request and all
that was measured about it. The *engine* runs containers; the *vantage* is the place from which their cgroups are reached.
*Peak RSS* is the high-water mark of resident memory of the runtime's processes, *peak memory* that of the cgroup's charge.

The public Python API is what this module names; it is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from harness._version import __version__

if TYPE_CHECKING:
    from harness.function import Function, Overrides, load
    from harness.invocation import Invocation, Outcome
    from harness.pool import Pool
    from harness.sandbox import Sandbox
    from harness.stand import Stand

__all__ = ["Function", "Invocation", "Outcome", "Overrides", "Pool", "Sandbox", "Stand", "__version__", "load"]

_HOME = {
    "Function": "harness.function",
    "Invocation": "harness.invocation",
    "Outcome": "harness.invocation",
    "Overrides": "harness.function",
    "Pool": "harness.pool",
    "Sandbox": "harness.sandbox",
    "Stand": "harness.stand",
    "load": "harness.function",
}


def __getattr__(name: str) -> Any:
    # `import harness` must stay quick: the engine's SDK alone takes 0.2 s to load.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
