"""CreateFunction and its like: a function's code, its configuration, and its end."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from harness.api import faults
from harness.api.model import (
    IMAGE,
    LATEST,
    Configuration,
    FunctionRecord,
    FunctionVersion,
    Package,
)
from harness.api.operations import shapes
from harness.api.operations.configuration import configured, refuse_gaps
from harness.api.operations.packages import fixed, named_package
from harness.api.operations.paging import page
from harness.api.operations.preconditions import refuse_stale, refuse_while_busy
from harness.api.operations.tags import judge_tags
from harness.api.operations.versions import published
from harness.api.registry import MAX_NAME_LETTERS, Registry, updated

Params = dict[str, Any]


def create_function(params: Params, registry: Registry) -> Params:
    name, qualifier = registry.named(params["FunctionName"])
    if len(name) > MAX_NAME_LETTERS:
        raise faults.Fault(
            "ValidationException",
            400,
            f"1 validation error detected: Value '{name}' at 'functionName' failed to satisfy constraint: Member must"
            f" have length less than or equal to {MAX_NAME_LETTERS}",
        )
    if qualifier:
        raise faults.invalid(f"The function name {params['FunctionName']} must not carry a qualifier.")
    judge_tags({}, params.get("Tags", {}))
    if any(record.name == name for record in registry.functions()):  # before the code is looked at, as on Lambda
        raise faults.conflict(f"Function already exist: {name}")
    with named_package(params["Code"], registry, operation="CreateFunction") as package:
        _agree(params.get("PackageType", "Zip"), package)
        configuration = configured(Configuration(), params, registry, package=package)
        refuse_gaps(configuration, package)
        latest = registry.new_latest(name, configuration, package)
        with fixed(package, registry, wanted=bool(params.get("Publish"))) as frozen:

            def make(last: int) -> FunctionRecord:
                record = FunctionRecord(name=name, latest=latest, last_number=last, tags=dict(params.get("Tags", {})))
                return published(record, frozen) if params.get("Publish") else record

            record = registry.create(name, make)
    return shapes.configuration(_newest(record) if params.get("Publish") else record.latest)


def _newest(record: FunctionRecord) -> FunctionVersion:
    return record.numbered()[-1]


def _agree(package_type: str, package: Package) -> None:
    if (package_type == "Image") != (package.kind == IMAGE):
        raise faults.invalid(
            "Please provide ImageUri when creating a function with packageType Image."
            if package_type == "Image"
            else "Please don't provide ImageUri when creating a function with packageType Zip."
        )


def update_function_code(params: Params, registry: Registry) -> Params:
    record, _ = registry.find(_plain(params, registry))
    refuse_while_busy(record)
    refuse_stale(params, record.latest.revision_id)
    with named_package(params, registry, operation="UpdateFunctionCode") as package:
        if (package.kind == IMAGE) != (record.latest.package.kind == IMAGE):
            raise faults.invalid(
                "Please provide ImageUri when updating a function with packageType Image."
                if record.latest.package.kind == IMAGE
                else "Please don't provide ImageUri when updating a function with packageType Zip."
            )
        with fixed(package, registry, wanted=bool(params.get("Publish"))) as frozen:

            def alter(before: FunctionRecord) -> FunctionRecord:
                refuse_while_busy(before)
                refuse_stale(params, before.latest.revision_id)
                # Zip and image stay what they are, so the settings are judged for the sizes alone.
                changes = {name: params[name] for name in ("Architectures",) if name in params}
                settings = configured(before.latest.configuration, changes, registry, package=package)
                after = updated(before, configuration=settings, package=package)
                return published(after, frozen) if params.get("Publish") else after

            after = alter(record) if params.get("DryRun") else registry.change(record.name, alter)
    return shapes.configuration(_newest(after) if params.get("Publish") else after.latest)


def update_function_configuration(params: Params, registry: Registry) -> Params:
    record, _ = registry.find(_plain(params, registry))

    def alter(before: FunctionRecord) -> FunctionRecord:
        refuse_while_busy(before)
        refuse_stale(params, before.latest.revision_id)
        latest = before.latest
        return updated(before, configuration=configured(latest.configuration, params, registry, package=latest.package))

    return shapes.configuration(registry.change(record.name, alter).latest)


def _plain(params: Params, registry: Registry) -> str:
    """The name for operations that change ``$LATEST`` and no published version, which is immutable."""
    name, qualifier = registry.named(params["FunctionName"])
    if qualifier not in {None, LATEST}:
        raise faults.invalid("This operation is permitted on $LATEST version only.")
    return name


def _asked(params: Params, registry: Registry) -> tuple[FunctionRecord, FunctionVersion, str | None]:
    record, qualifier = registry.find(params["FunctionName"], params.get("Qualifier"))
    alias = record.aliases.get(qualifier) if qualifier else None
    version = record.version(alias.version if alias else qualifier or LATEST)
    if version is None:
        raise faults.function_not_found(record.qualified_arn(qualifier))
    return record, version, qualifier


def get_function(params: Params, registry: Registry) -> Params:
    record, version, qualifier = _asked(params, registry)
    found: Params = {
        "Configuration": shapes.configuration(version, qualifier=qualifier),
        "Code": shapes.location(version.package, registry),
    }
    if record.tags:
        found["Tags"] = dict(record.tags)
    if record.reserved is not None:
        found["Concurrency"] = {"ReservedConcurrentExecutions": record.reserved}
    return found


def get_function_configuration(params: Params, registry: Registry) -> Params:
    _, version, qualifier = _asked(params, registry)
    return shapes.configuration(version, qualifier=qualifier)


def get_function_code_signing_config(params: Params, registry: Registry) -> Params:
    """Nothing is signed here. Deployers ask this of every zip function; AWS answers without members then."""
    registry.function(registry.named(params["FunctionName"])[0])
    return {}


def list_functions(params: Params, registry: Registry) -> Params:
    every = params.get("FunctionVersion") == "ALL"
    versions = [
        version for record in registry.functions() for version in (record.numbered() if every else [record.latest])
    ]

    def shown(version: FunctionVersion) -> Params:
        return shapes.configuration(version, qualifier=version.version if every else None, listed=True)

    return page(
        versions,
        params,
        key=lambda one: [one.function_name, 0 if one.version == LATEST else int(one.version)],
        member="Functions",
        shown=shown,
    )


def delete_function(params: Params, registry: Registry) -> Params:
    name, qualifier = registry.named(params["FunctionName"], params.get("Qualifier"))
    registry.function(name)
    if qualifier is None:
        registry.delete(name)
    elif qualifier == LATEST:
        raise faults.invalid("$LATEST version cannot be deleted without deleting the function.")
    elif not qualifier.isdecimal():
        raise faults.invalid("Deletion of aliases is not currently supported.")
    else:
        registry.change(name, lambda record: _without(record, qualifier))
    return {"StatusCode": 204}


def _without(record: FunctionRecord, number: str) -> FunctionRecord:
    """The function without a version; one that is not there is deleted already."""
    users = [alias.name for alias in record.aliases.values() if number == alias.version or number in alias.weights]
    if users:
        raise faults.conflict(
            f"Unable to delete version because the following aliases reference it: [{', '.join(sorted(users))}]"
        )
    rest = {
        part: {key: value for key, value in getattr(record, part).items() if key != number}
        for part in ("versions", "policies", "event_invoke", "provisioned")
    }
    return replace(record, **rest)  # type: ignore[arg-type]  # every part keeps its own type
