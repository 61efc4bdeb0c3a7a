"""The input JSON of aws-lambda-power-tuning as a sweep: its names, its meanings. Pure but for reading the file.

Source: that project's documentation of its input. What a local sweep has no use for (an ARN to tune, roles, S3) is named
as ignored; what would change the result and cannot be had (payloads in S3, processors in other functions) is refused.
``parallelInvocation`` is ignored as well: on Lambda each of the parallel invocations has a host of its own, here they would
share one and disturb each other.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import event
from harness.errors import InvalidInput
from harness.experiments.sweep import WeightedEvent, sizes

_STRATEGIES = {"cost", "speed", "balanced"}
_REFUSED = ("payloadS3", "preProcessorARN", "postProcessorARN")
_IGNORED = (
    "lambdaARN", "autoOptimize", "autoOptimizeAlias", "dryRun", "includeOutputResults", "disablePayloadLogs",
    "parallelInvocation",
)  # fmt: skip
_KNOWN = (
    "powerValues", "num", "payload", "strategy", "balancedWeight", "discardTopBottom",
    "sleepBetweenRunsMs", "onlyColdStarts", "allowedExceptions",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TuningInput:
    """What such a file asks for; None where it says nothing."""

    memory_mb: tuple[int, ...] | None = None
    count: int | None = None
    events: tuple[WeightedEvent, ...] = ()
    strategy: str | None = None
    weight: float | None = None
    discard: float | None = None
    pause_s: float | None = None
    cold_only: bool = False
    allowed_exceptions: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()


def read(path: Path) -> TuningInput:
    """Read a file; `InvalidInput` names the file and the member that is wrong."""
    try:
        found = json.loads(path.read_text())
    except OSError as error:
        raise InvalidInput(
            f"{path} cannot be read: {error.strerror or error}", remedy="name a file with --config"
        ) from error
    except ValueError as error:
        raise InvalidInput(
            f"{path} is not valid JSON: {error}", remedy="see the input of aws-lambda-power-tuning"
        ) from None
    if not isinstance(found, dict):
        raise InvalidInput(f"{path} holds no JSON object", remedy="see the input of aws-lambda-power-tuning")
    return parse(found, str(path))


def parse(found: Mapping[str, Any], where: str) -> TuningInput:
    """The members of such an object."""
    for name in _REFUSED:
        if found.get(name):
            raise InvalidInput(
                f"{where}: {name} needs other AWS services, which a local sweep does not have",
                remedy="put the payload into the file as payload, or pass -e",
            )
    unknown = sorted(set(found) - set(_KNOWN) - set(_IGNORED) - set(_REFUSED))
    if unknown:
        raise InvalidInput(
            f"{where}: {unknown[0]} is no input of aws-lambda-power-tuning", remedy=f"known: {', '.join(_KNOWN)}"
        )
    strategy = found.get("strategy")
    if strategy is not None and strategy not in _STRATEGIES:
        raise InvalidInput(f"{where}: strategy {strategy!r}", remedy=f"one of {', '.join(sorted(_STRATEGIES))}")
    return TuningInput(
        memory_mb=_power_values(found.get("powerValues"), where),
        count=_number(found, "num", where, whole=True, low=1),
        events=_payload(found.get("payload"), where),
        strategy=strategy,
        weight=_number(found, "balancedWeight", where, high=1),
        discard=_number(found, "discardTopBottom", where, high=0.4),
        pause_s=None if (ms := _number(found, "sleepBetweenRunsMs", where)) is None else ms / 1000,
        cold_only=_flag(found, "onlyColdStarts", where),
        allowed_exceptions=_names(found, "allowedExceptions", where),
        ignored=tuple(name for name in _IGNORED if name in found),
    )


def _power_values(value: Any, where: str) -> tuple[int, ...] | None:
    if value is None:
        return None
    if value == "ALL":
        return sizes(value)
    if not isinstance(value, list) or not all(isinstance(each, int) and not isinstance(each, bool) for each in value):
        raise InvalidInput(f'{where}: powerValues must be a list of MB, or "ALL"', remedy="such as [128, 512, 1024]")
    return tuple(value)


def _number(
    found: Mapping[str, Any], name: str, where: str, *, whole: bool = False, low: float = 0, high: float = math.inf
) -> Any:
    value = found.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        kind = "whole number" if whole else "number"
        raise InvalidInput(f"{where}: {name} is {value!r}, not a {kind}", remedy=f"give {name} as a {kind}")
    if not low <= value <= high or math.isinf(value):
        bounds = f"{low:g} or more" if math.isinf(high) else f"from {low:g} to {high:g}"
        raise InvalidInput(f"{where}: {name} is {value}", remedy=f"give a number that is {bounds}")
    return value


def _flag(found: Mapping[str, Any], name: str, where: str) -> bool:
    value = found.get(name)
    if value is not None and not isinstance(value, bool):
        raise InvalidInput(f"{where}: {name} is {value!r}", remedy="write true or false, without quotes")
    return bool(value)


def _names(found: Mapping[str, Any], name: str, where: str) -> tuple[str, ...]:
    value = found.get(name)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise InvalidInput(f"{where}: {name} is no list of names", remedy='write it as ["TypeError", "KeyError"]')
    return tuple(value)


def _payload(value: Any, where: str) -> tuple[WeightedEvent, ...]:
    """One payload, or a list of ``{"payload", "weight"}``: only a list whose every member has a weight is weighted."""
    if value is None:
        return ()
    if isinstance(value, list) and value and all(isinstance(each, dict) and "weight" in each for each in value):
        return tuple(
            WeightedEvent(event=_bytes(each.get("payload", {})), weight=_weight(each["weight"], where))
            for each in value
        )
    return (WeightedEvent(event=_bytes(value)),)


def _bytes(value: Any) -> bytes:
    # A payload may be given as text that holds JSON.
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            json.loads(value)
            return event.parse(value)
    return event.parse(json.dumps(value))


def _weight(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise InvalidInput(f"{where}: weight {value!r}", remedy="weights are numbers above 0")
    return float(value)
