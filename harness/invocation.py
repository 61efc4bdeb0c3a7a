"""The record of one invocation, and Lambda's REPORT line made from it. Pure; must not touch engines or files.

Units stand in the names. A value that could not be measured is None: never 0, never a guess.
"""

from __future__ import annotations

import dataclasses
import datetime
import uuid
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.function import Function

SCHEMA = "lambda-harness/1"

WORKER_LOST = "WorkerLost"
"""The error type of the record that stands for invocations which another host was to make, and which are lost."""


class Outcome(StrEnum):
    """How an invocation ended: a closed set."""

    SUCCESS = "success"
    FUNCTION_ERROR = "function_error"
    TIMEOUT = "timeout"
    OUT_OF_MEMORY = "out_of_memory"
    RUNTIME_EXIT = "runtime_exit"
    INIT_ERROR = "init_error"
    INIT_TIMEOUT = "init_timeout"
    RESPONSE_TOO_LARGE = "response_too_large"
    THROTTLED = "throttled"
    ENGINE_ERROR = "engine_error"


class PhaseInit(StrEnum):
    """Which init an invocation had to wait for."""

    INIT = "init"
    SUPPRESSED = "suppressed"


class PeakMethod(StrEnum):
    """How a peak was found: by resetting the kernel's mark, by a mark that rose, or by sampling only."""

    RESET = "reset"
    HIGH_WATER = "high_water"
    SAMPLED = "sampled"


@dataclass(frozen=True, kw_only=True)
class Invocation:
    """One request and all that was measured about it.

    ``response`` is the parsed JSON of the function's answer (or of Lambda's error body); where the answer was not JSON
    it is the base64 text of its bytes and ``response_encoding`` says ``base64``.
    """

    request_id: str
    function: str
    runtime: str | None
    memory_mb: int
    architecture: str
    image: str
    rie_version: str | None
    sandbox_id: str
    sequence: int
    cold: bool
    phase_init: PhaseInit | None
    started_at: str
    """When the sandbox was asked: UTC, ISO 8601, as `invoked_at`."""
    outcome: Outcome
    error_type: str | None = None
    error_message: str | None = None
    init_ms: float | None = None
    duration_ms: float | None = None
    billed_ms: int | None = None
    restore_ms: float | None = None
    invoked_at: str | None = None
    """When the event was handed to the runtime, thaw and init being over."""
    frozen_ms: float | None = None
    freeze_ms: float | None = None
    thaw_ms: float | None = None
    boost_lag_ms: float | None = None
    client_ms: float | None = None
    cpu_ms: float | None = None
    throttled_ms: float | None = None
    throttled_periods: int | None = None
    peak_rss_bytes: int | None = None
    peak_memory_bytes: int | None = None
    resident_after_bytes: int | None = None
    anonymous_after_bytes: int | None = None
    page_cache_bytes: int | None = None
    processes: int | None = None
    threads: int | None = None
    open_files: int | None = None
    tmp_bytes: int | None = None
    max_memory_used_mb: int | None = None
    peak_method: PeakMethod | None = None
    vantage: str = "api"
    cgroup_version: int | None = None
    cpu_quota_us: int | None = None
    cpu_period_us: int | None = None
    cpuset: str | None = None
    memory_limit_bytes: int | None = None
    cpu_capped: bool = False
    cost_usd: float | None = None
    response: Any = None
    response_encoding: str = "json"
    response_bytes: int | None = None
    log_tail: str = ""
    report: str = ""
    variant: str | None = None
    """Which side of an A/B comparison of environment variables this was; None where there is none."""
    host_id: str | None = None
    """The fingerprint of the host that measured this; None: the one that the document's ``host`` describes."""
    notes: tuple[str, ...] = ()
    """What was not measured or not enforced in this invocation, and why: one sentence each."""
    payload: bytes | None = field(default=None, repr=False, compare=False, metadata={"kept": False})
    """The answer's bytes as the function gave them, while the process lasts; documents hold ``response`` alone."""
    pool_ms: float | None = field(default=None, compare=False, metadata={"kept": False})
    """How long the pool had the request: a container's start, the freeze and the record included, but not what
    observers did with the record. In no document."""

    def as_dict(self) -> dict[str, Any]:
        """The record as JSON types, in the order of the fields."""
        found = {
            each.name: getattr(self, each.name) for each in dataclasses.fields(self) if each.metadata.get("kept", True)
        }
        found["notes"] = list(self.notes)
        return found

    @classmethod
    def from_dict(cls, found: dict[str, Any]) -> Invocation:
        """The inverse of `as_dict`; unknown fields (of a newer harness) are dropped."""
        names = {each.name for each in dataclasses.fields(cls) if each.metadata.get("kept", True)}
        kept = {name: value for name, value in found.items() if name in names}
        kept["outcome"] = Outcome(kept["outcome"])
        kept["phase_init"] = PhaseInit(kept["phase_init"]) if kept.get("phase_init") else None
        kept["peak_method"] = PeakMethod(kept["peak_method"]) if kept.get("peak_method") else None
        kept["notes"] = tuple(kept.get("notes", ()))
        return cls(**kept)


def not_run(function: Function, *, vantage: str, outcome: Outcome, **found: Any) -> Invocation:
    """The record of a request of which nothing ran: it has no sandbox, and no figures. ``found`` has fields of the record."""
    return Invocation(
        **{
            "request_id": str(uuid.uuid4()),
            "function": function.name,
            "runtime": function.runtime,
            "memory_mb": function.memory_mb,
            "architecture": function.architecture,
            "image": function.image or "",
            "rie_version": None,
            "sandbox_id": "",
            "sequence": 0,
            "cold": False,
            "phase_init": None,
            "started_at": datetime.datetime.now(datetime.UTC).isoformat(),
            "outcome": outcome,
            "vantage": vantage,
        }
        | found
    )


def report_line(
    *,
    request_id: str,
    duration_ms: float | None,
    billed: int | None,
    memory_mb: int,
    max_memory_used_mb: int | None,
    init_ms: float | None,
    outcome: Outcome,
    error_type: str | None,
) -> str:
    """The REPORT line as Lambda prints it, tabs included (forms recorded from Lambda's own logs).

    A figure that was not measured stands as ``-``: Lambda has no word for it.
    """
    duration = "-" if duration_ms is None else f"{duration_ms:.2f}"
    fields = [
        f"REPORT RequestId: {request_id}",
        f"Duration: {duration} ms",
        f"Billed Duration: {'-' if billed is None else billed} ms",
        f"Memory Size: {memory_mb} MB",
        f"Max Memory Used: {'-' if max_memory_used_mb is None else max_memory_used_mb} MB",
    ]
    if init_ms is not None:
        fields.append(f"Init Duration: {init_ms:.2f} ms")
    if outcome in (Outcome.TIMEOUT, Outcome.INIT_TIMEOUT):
        fields.append("Status: timeout")
    elif outcome is Outcome.OUT_OF_MEMORY:
        fields += ["Status: error", "Error Type: Runtime.OutOfMemory"]
    elif outcome in (Outcome.RUNTIME_EXIT, Outcome.INIT_ERROR):
        fields += ["Status: error", f"Error Type: {error_type or 'Runtime.ExitError'}"]
    return "\t".join(fields) + "\t"
