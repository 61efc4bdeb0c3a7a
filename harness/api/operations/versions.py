"""PublishVersion and ListVersionsByFunction: code and configuration that never change again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from harness.api import faults
from harness.api.model import LATEST, FunctionRecord, FunctionVersion, Package, new_id
from harness.api.operations import shapes
from harness.api.operations.packages import fixed
from harness.api.operations.paging import page
from harness.api.operations.preconditions import refuse_stale, refuse_while_busy
from harness.api.registry import Registry, timestamp

Params = dict[str, Any]


def published(record: FunctionRecord, package: Package, *, description: str | None = None) -> FunctionRecord:
    """The function with a new version made of ``$LATEST``; as it was where nothing has changed since the last one."""
    candidate = replace(record.latest, package=package)
    last = record.versions.get(str(record.last_number))
    if last is not None and candidate.same_as(last):
        return record
    number = str(record.last_number + 1)
    settings = record.latest.configuration
    version = replace(
        candidate,
        version=number,
        arn=record.qualified_arn(number),
        configuration=settings if description is None else replace(settings, description=description),
        status=replace(record.latest.status, update="Successful", update_reason=None, update_reason_code=None),
        revision_id=new_id(),
        deployment_id=new_id(),
        last_modified=timestamp(),
        latest_description=settings.description,
    )
    if not record.latest.status.settled:
        # Published together with an update: it is ready when $LATEST is.
        reason = "The function is being created."
        version = replace(
            version, status=replace(version.status, state="Pending", reason=reason, reason_code="Creating")
        )
    return replace(record, versions={**record.versions, number: version}, last_number=record.last_number + 1)


def publish_version(params: Params, registry: Registry) -> Params:
    name, qualifier = registry.named(params["FunctionName"])
    if qualifier not in {None, LATEST}:
        raise faults.invalid("This operation is permitted on $LATEST version only.")
    record = registry.function(name)
    refuse_while_busy(record)
    wanted = record.latest.package
    with fixed(wanted, registry) as package:

        def alter(before: FunctionRecord) -> FunctionRecord:
            refuse_while_busy(before)
            refuse_stale(params, before.latest.revision_id)
            if before.latest.package != wanted:
                raise faults.conflict(
                    "The operation cannot be performed at this time. An update is in progress for resource: "
                    f"{before.arn}"
                )
            _refuse_other_code(params, before)
            return published(before, package, description=params.get("Description"))

        after = registry.change(name, alter)
    return shapes.configuration(after.versions[str(after.last_number)])


def _refuse_other_code(params: Params, record: FunctionRecord) -> None:
    wanted, there = params.get("CodeSha256"), shapes.code_sha256(record.latest.package)
    if wanted and wanted != there:
        raise faults.invalid(
            f"CodeSHA256 ({wanted}) is different from current CodeSHA256 in $LATEST ({there}). Please try again with"
            " the CodeSHA256 in $LATEST."
        )


def list_versions_by_function(params: Params, registry: Registry) -> Params:
    name, _ = registry.named(params["FunctionName"])

    def shown(version: FunctionVersion) -> Params:
        return shapes.configuration(version, qualifier=version.version, listed=True)

    return page(
        registry.function(name).numbered(),
        params,
        key=lambda one: [0 if one.version == LATEST else int(one.version)],
        member="Versions",
        shown=shown,
    )
