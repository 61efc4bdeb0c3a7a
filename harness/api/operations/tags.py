"""Tags of functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from harness.api import faults
from harness.api.model import FunctionRecord
from harness.api.registry import Registry

Params = dict[str, Any]

_MAX_TAGS = 50


def judge_tags(there: Mapping[str, str], more: Mapping[str, str]) -> dict[str, str]:
    """The tags together; refused where Lambda would refuse them."""
    if any(name.lower().startswith("aws:") for name in more):
        raise faults.invalid("Tag keys that begin with aws: are reserved")
    found = {**there, **more}
    if len(found) > _MAX_TAGS:
        raise faults.invalid(f"Number of tags exceeds resource tag limit of {_MAX_TAGS}.")
    return found


def _function(params: Params, registry: Registry) -> FunctionRecord:
    resource: str = params["Resource"]
    if ":function:" not in resource:
        raise faults.not_found()
    name, qualifier = registry.named(resource)
    if qualifier:
        raise faults.invalid("Tags on function aliases and versions are not supported. Please specify a function ARN.")
    return registry.function(name)


def tag_resource(params: Params, registry: Registry) -> Params:
    if not params["Tags"]:
        raise faults.invalid("An error occurred and the request cannot be processed.")
    registry.change(
        _function(params, registry).name,
        lambda record: replace(record, tags=judge_tags(record.tags, params["Tags"])),
    )
    return {}


def untag_resource(params: Params, registry: Registry) -> Params:
    def alter(record: FunctionRecord) -> FunctionRecord:
        return replace(record, tags={key: tag for key, tag in record.tags.items() if key not in params["TagKeys"]})

    registry.change(_function(params, registry).name, alter)
    return {}


def list_tags(params: Params, registry: Registry) -> Params:
    return {"Tags": dict(_function(params, registry).tags)}
