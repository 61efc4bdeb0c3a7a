"""Reserved and provisioned concurrency: what is asked for. Keeping it is the dispatcher's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from harness.api import faults
from harness.api.faults import Fault
from harness.api.model import LATEST, FunctionRecord, ProvisionedConfig
from harness.api.operations.paging import page
from harness.api.registry import Registry, timestamp

Params = dict[str, Any]


def _below_minimum(registry: Registry, word: str) -> Fault:
    return faults.invalid(
        f"Specified {word} for function decreases account's UnreservedConcurrentExecution below its minimum value of"
        f" [{registry.always_unreserved}]."
    )


def put_function_concurrency(params: Params, registry: Registry) -> Params:
    name, qualifier = registry.named(params["FunctionName"])
    if qualifier:
        raise faults.invalid("This operation is not permitted on versions or aliases: reserve for the function itself.")
    reserved = params["ReservedConcurrentExecutions"]

    def alter(record: FunctionRecord) -> FunctionRecord:
        if registry.unreserved(without=record.name) - reserved < registry.always_unreserved and reserved:
            raise _below_minimum(registry, "ReservedConcurrentExecutions")
        if reserved < sum(config.requested for config in record.provisioned.values()):
            raise faults.invalid(
                "Requested ReservedConcurrentExecutions for function should not be less than its provisioned"
                " concurrency"
            )
        return replace(record, reserved=reserved)

    registry.change(name, alter)
    return {"ReservedConcurrentExecutions": reserved}


def get_function_concurrency(params: Params, registry: Registry) -> Params:
    reserved = registry.function(registry.named(params["FunctionName"]).name).reserved
    return {} if reserved is None else {"ReservedConcurrentExecutions": reserved}


def delete_function_concurrency(params: Params, registry: Registry) -> Params:
    registry.change(registry.named(params["FunctionName"]).name, lambda record: replace(record, reserved=None))
    return {}


def put_provisioned_concurrency_config(params: Params, registry: Registry) -> Params:
    record, qualifier = _qualified(params, registry)
    config = ProvisionedConfig(requested=params["ProvisionedConcurrentExecutions"], modified_at=timestamp())

    def alter(before: FunctionRecord) -> FunctionRecord:
        _refuse_overlap(before, qualifier)
        others = sum(one.requested for key, one in before.provisioned.items() if key != qualifier)
        total = others + config.requested
        if before.reserved is not None and total > before.reserved:
            raise faults.invalid(
                "Requested Provisioned Concurrency should not be greater than the reservedConcurrentExecution for"
                " function"
            )
        if before.reserved is None and registry.unreserved(without=before.name) - total < registry.always_unreserved:
            raise _below_minimum(registry, "ConcurrentExecutions")
        return replace(before, provisioned={**before.provisioned, qualifier: config})

    registry.change(record.name, alter)
    return {
        "RequestedProvisionedConcurrentExecutions": config.requested,
        "AllocatedProvisionedConcurrentExecutions": 0,
        "AvailableProvisionedConcurrentExecutions": 0,
        "Status": "IN_PROGRESS",
        "LastModified": config.modified_at,
    }


def _refuse_overlap(record: FunctionRecord, qualifier: str) -> None:
    alias = record.aliases.get(qualifier)
    if alias is None:
        if any(record.aliases[key].version == qualifier for key in record.provisioned if key in record.aliases):
            raise faults.conflict("Version is pointed by a Provisioned Concurrency alias")
        return
    if alias.version == LATEST:
        raise faults.invalid("Provisioned Concurrency Configs cannot be applied to unpublished function versions.")
    if alias.weights:
        raise faults.invalid("Alias with weights can not be used with Provisioned Concurrency")
    if alias.version in record.provisioned:
        raise faults.conflict(
            "Alias can't be used for Provisioned Concurrency configuration on an already Provisioned version"
        )


def _qualified(params: Params, registry: Registry) -> tuple[FunctionRecord, str]:
    """Function and qualifier of a request, which is for a version or an alias and nothing else."""
    name, qualifier = registry.named(params["FunctionName"], params["Qualifier"])
    if qualifier == LATEST:
        raise faults.invalid("Provisioned Concurrency Configs cannot be applied to unpublished function versions.")
    record, found = registry.find(name, qualifier)
    return record, str(found)


def get_provisioned_concurrency_config(params: Params, registry: Registry) -> Params:
    record, qualifier = _qualified(params, registry)
    config = record.provisioned.get(qualifier)
    if config is None:
        raise Fault(
            "ProvisionedConcurrencyConfigNotFoundException",
            404,
            "No Provisioned Concurrency Config found for this function",
        )
    return _shown(record, qualifier, config, registry)


def _shown(record: FunctionRecord, qualifier: str, config: ProvisionedConfig, registry: Registry) -> Params:
    status = registry.provisioned_status(record.name, qualifier)
    return {
        "RequestedProvisionedConcurrentExecutions": config.requested,
        "AllocatedProvisionedConcurrentExecutions": status.allocated,
        "AvailableProvisionedConcurrentExecutions": status.available,
        "Status": status.status,
        "StatusReason": status.reason,
        "LastModified": config.modified_at,
    }


def delete_provisioned_concurrency_config(params: Params, registry: Registry) -> Params:
    record, qualifier = _qualified(params, registry)

    def alter(before: FunctionRecord) -> FunctionRecord:
        rest = {key: config for key, config in before.provisioned.items() if key != qualifier}
        return replace(before, provisioned=rest)

    registry.change(record.name, alter)
    return {}


def list_provisioned_concurrency_configs(params: Params, registry: Registry) -> Params:
    record = registry.function(registry.named(params["FunctionName"]).name)

    def shown(found: tuple[str, ProvisionedConfig]) -> Params:
        qualifier, config = found
        arn = record.qualified_arn(qualifier)
        return {"FunctionArn": arn, **_shown(record, qualifier, config, registry)}

    return page(
        record.provisioned.items(),
        params,
        key=lambda found: [found[0]],
        member="ProvisionedConcurrencyConfigs",
        shown=shown,
    )
