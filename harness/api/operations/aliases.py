"""Aliases: names for versions, with routing weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from harness.api import faults
from harness.api.model import LATEST, Alias, FunctionRecord, new_id
from harness.api.operations import shapes
from harness.api.operations.paging import page
from harness.api.operations.preconditions import refuse_stale
from harness.api.registry import Registry

Params = dict[str, Any]


def create_alias(params: Params, registry: Registry) -> Params:
    name = params["Name"]

    def alter(record: FunctionRecord) -> FunctionRecord:
        alias = Alias(name=name, version=params["FunctionVersion"], description=params.get("Description", ""))
        alias = _routed(alias, params, record)
        if name in record.aliases:
            raise faults.conflict(f"Alias already exists: {record.qualified_arn(name)}")
        return replace(record, aliases={**record.aliases, name: alias})

    return _shown(registry.change(registry.named(params["FunctionName"]).name, alter), name)


def update_alias(params: Params, registry: Registry) -> Params:
    name = params["Name"]

    def alter(record: FunctionRecord) -> FunctionRecord:
        before = record.aliases.get(name)
        if before is None:
            raise faults.not_found(f"Alias not found: {record.qualified_arn(name)}")
        refuse_stale(params, before.revision_id)
        alias = replace(
            before,
            version=params.get("FunctionVersion", before.version),
            description=params.get("Description", before.description),
            revision_id=new_id(),
        )
        alias = _routed(alias, params, record)
        if alias.weights and name in record.provisioned:
            raise faults.invalid("Alias with weights can not be used with Provisioned Concurrency")
        return replace(record, aliases={**record.aliases, name: alias})

    return _shown(registry.change(registry.named(params["FunctionName"]).name, alter), name)


def _routed(alias: Alias, params: Params, record: FunctionRecord) -> Alias:
    """The alias with the weights of a request, once version and weights make sense."""
    if "RoutingConfig" in params:
        alias = replace(alias, weights=dict(params["RoutingConfig"].get("AdditionalVersionWeights", {})))
    if len(alias.weights) > 1:
        raise faults.invalid("Number of items in AdditionalVersionWeights cannot be greater than 1")
    if alias.version in alias.weights:
        raise faults.invalid(
            f"Invalid function version {alias.version}. Function version {alias.version} is already included in"
            " routing configuration."
        )
    if alias.weights and alias.version == LATEST:
        raise faults.invalid("$LATEST is not supported for an alias pointing to more than 1 version")
    for number in (alias.version, *alias.weights):
        if record.version(number) is None:
            raise faults.function_not_found(record.qualified_arn(number))
    return alias


def _shown(record: FunctionRecord, name: str) -> Params:
    return shapes.alias_configuration(record.aliases[name], record.arn)


def get_alias(params: Params, registry: Registry) -> Params:
    name = registry.named(params["FunctionName"]).name
    record = next((one for one in registry.functions() if one.name == name), None)
    if record is None or params["Name"] not in record.aliases:
        raise faults.not_found(f"Cannot find alias arn: {registry.arn(name, params['Name'])}")
    return _shown(record, params["Name"])


def delete_alias(params: Params, registry: Registry) -> Params:
    """Deletes an alias and what hangs on it; one that is not there is deleted already."""
    parts = ("aliases", "policies", "urls", "event_invoke", "provisioned")

    def alter(record: FunctionRecord) -> FunctionRecord:
        rest = {
            part: {key: value for key, value in getattr(record, part).items() if key != params["Name"]}
            for part in parts
        }
        return replace(record, **rest)  # type: ignore[arg-type]  # every part keeps its own type

    registry.change(registry.named(params["FunctionName"]).name, alter)
    return {}


def list_aliases(params: Params, registry: Registry) -> Params:
    record = registry.function(registry.named(params["FunctionName"]).name)
    wanted = params.get("FunctionVersion")
    aliases = [alias for alias in record.aliases.values() if wanted in {None, alias.version}]
    return page(
        aliases,
        params,
        key=lambda one: [one.name],
        member="Aliases",
        shown=lambda one: shapes.alias_configuration(one, record.arn),
    )
