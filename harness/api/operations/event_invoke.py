"""Event invoke configs: retries, maximum age and destinations of asynchronous invocations. Keeping to them is the queue's."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from harness.api import faults
from harness.api.model import LATEST, EventInvokeConfig, FunctionRecord
from harness.api.operations.paging import page
from harness.api.registry import Registry, now_s

Params = dict[str, Any]

_DESTINATION = re.compile(r"arn:aws[a-zA-Z-]*:(sqs|sns|lambda|events|s3):[a-z0-9-]*:(\d{12})?:.+")


def put_function_event_invoke_config(params: Params, registry: Registry) -> Params:
    return _write(params, registry, keep=False)


def update_function_event_invoke_config(params: Params, registry: Registry) -> Params:
    return _write(params, registry, keep=True)


def _write(params: Params, registry: Registry, *, keep: bool) -> Params:
    if not any(name in params for name in ("MaximumRetryAttempts", "MaximumEventAgeInSeconds", "DestinationConfig")):
        raise faults.invalid("You must specify at least one of error handling or destination setting.")
    record, qualifier = _found(params, registry)

    def alter(before: FunctionRecord) -> FunctionRecord:
        there = before.event_invoke.get(qualifier)
        if keep and there is None:
            raise _none(before, qualifier)
        config = there if keep and there is not None else EventInvokeConfig()
        config = replace(
            config,
            maximum_retry_attempts=params.get("MaximumRetryAttempts", config.maximum_retry_attempts),
            maximum_event_age_s=params.get("MaximumEventAgeInSeconds", config.maximum_event_age_s),
            modified_at_s=now_s(),
        )
        destinations = params.get("DestinationConfig", {})
        for member, field in (("OnSuccess", "on_success"), ("OnFailure", "on_failure")):
            if member in destinations:
                arn = destinations[member].get("Destination") or None
                _judge_destination(arn, before, registry)
                config = replace(config, **{field: arn})  # type: ignore[arg-type]  # both are of one type
        return replace(before, event_invoke={**before.event_invoke, qualifier: config})

    return _shown(registry.change(record.name, alter), qualifier)


def _judge_destination(arn: str | None, record: FunctionRecord, registry: Registry) -> None:
    if arn is None:
        return
    found = _DESTINATION.fullmatch(arn)
    if found is None:
        raise faults.invalid(f"The destination ARN {arn} is invalid.")
    if found[1] != "lambda":
        return
    try:
        name, _ = registry.named(arn)
        registry.function(name)
    except faults.Fault:
        raise faults.invalid(f"The destination ARN {arn} is invalid.") from None
    if name == record.name:
        raise faults.invalid("You can't specify the function as a destination for itself.")


def _found(params: Params, registry: Registry) -> tuple[FunctionRecord, str]:
    try:
        record, qualifier = registry.find(params["FunctionName"], params.get("Qualifier"))
    except faults.Fault as fault:
        if fault.status == 404:
            raise faults.not_found("The function doesn't exist.") from None
        raise
    return record, qualifier or LATEST


def _none(record: FunctionRecord, qualifier: str) -> faults.Fault:
    return faults.not_found(f"The function {record.qualified_arn(qualifier)} doesn't have an EventInvokeConfig")


def get_function_event_invoke_config(params: Params, registry: Registry) -> Params:
    record, qualifier = _found(params, registry)
    if qualifier not in record.event_invoke:
        raise _none(record, qualifier)
    return _shown(record, qualifier)


def delete_function_event_invoke_config(params: Params, registry: Registry) -> Params:
    record, qualifier = _found(params, registry)

    def alter(before: FunctionRecord) -> FunctionRecord:
        if qualifier not in before.event_invoke:
            raise _none(before, qualifier)
        rest = {key: config for key, config in before.event_invoke.items() if key != qualifier}
        return replace(before, event_invoke=rest)

    registry.change(record.name, alter)
    return {}


def list_function_event_invoke_configs(params: Params, registry: Registry) -> Params:
    record, _ = _found({"FunctionName": params["FunctionName"]}, registry)
    return page(
        record.event_invoke,
        params,
        key=lambda qualifier: [qualifier],
        member="FunctionEventInvokeConfigs",
        shown=lambda qualifier: _shown(record, qualifier),
    )


def _shown(record: FunctionRecord, qualifier: str) -> Params:
    config = record.event_invoke[qualifier]
    found = (("OnSuccess", config.on_success), ("OnFailure", config.on_failure))
    return {
        "LastModified": config.modified_at_s,
        "FunctionArn": record.qualified_arn(qualifier),
        "MaximumRetryAttempts": config.maximum_retry_attempts,
        "MaximumEventAgeInSeconds": config.maximum_event_age_s,
        "DestinationConfig": {name: {"Destination": arn} if arn else {} for name, arn in found},
    }
