"""Layers: published here, used by functions of this service."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from harness.api import faults
from harness.api.code_store import StoredCode, shown_sha256
from harness.api.model import Layer, LayerVersion
from harness.api.operations.paging import page
from harness.api.registry import Registry, timestamp

Params = dict[str, Any]

_ARN = re.compile(r"arn:aws[a-zA-Z-]*:lambda:([a-z0-9-]+):(\d{12}):layer:(?P<name>[a-zA-Z0-9_-]+)(?::(?P<number>\d+))?")


def publish_layer_version(params: Params, registry: Registry) -> Params:
    content = params["Content"]
    if "ZipFile" not in content:
        raise faults.invalid(
            "Error occurred while GetObject. S3 Error Code: NoSuchBucket. S3 Error Message: The specified bucket does"
            " not exist (this service has no S3: send the layer as ZipFile)"
            if content.get("S3Bucket")
            else "Please provide a source for layer content."
        )
    name = _name(params, registry)
    with registry.admitted(content["ZipFile"], operation="PublishLayerVersion", layer=True) as stored:
        layer = registry.change_layer(name, lambda before: _with_new(before, params, stored))
    return _shown(layer, layer.versions[layer.last_number], registry)


def _with_new(layer: Layer, params: Params, stored: StoredCode) -> Layer:
    number = layer.last_number + 1
    version = LayerVersion(
        number=number,
        arn=f"{layer.arn}:{number}",
        sha256=stored.sha256,
        size_bytes=stored.size_bytes,
        unzipped_bytes=stored.unzipped_bytes,
        description=params.get("Description", ""),
        created_at=timestamp(),
        runtimes=tuple(params.get("CompatibleRuntimes", ())),
        architectures=tuple(params.get("CompatibleArchitectures", ())),
        license=params.get("LicenseInfo"),
    )
    return replace(layer, last_number=number, versions={**layer.versions, number: version})


def _name(params: Params, registry: Registry) -> str:
    """The plain name of a layer, which may be given as an ARN."""
    given: str = params["LayerName"]
    found = _ARN.fullmatch(given)
    if found is None:
        return given
    if given != registry.layer_arn(found["name"]):
        raise faults.not_found()
    return found["name"]


def _summary(version: LayerVersion) -> Params:
    """AWS's LayerVersionsListItem."""
    found: Params = {
        "LayerVersionArn": version.arn,
        "Version": version.number,
        "Description": version.description,
        "CreatedDate": version.created_at,
        "LicenseInfo": version.license,
    }
    if version.runtimes:
        found["CompatibleRuntimes"] = list(version.runtimes)
    if version.architectures:
        found["CompatibleArchitectures"] = list(version.architectures)
    return found


def _shown(layer: Layer, version: LayerVersion, registry: Registry) -> Params:
    content = {
        "Location": registry.code_address(version.sha256),
        "CodeSha256": shown_sha256(version.sha256),
        "CodeSize": version.size_bytes,
    }
    return {"Content": content, "LayerArn": layer.arn, **_summary(version)}


def _fits(version: LayerVersion, params: Params) -> bool:
    runtime, architecture = params.get("CompatibleRuntime"), params.get("CompatibleArchitecture")
    return (runtime is None or runtime in version.runtimes) and (
        architecture is None or architecture in version.architectures
    )


def list_layers(params: Params, registry: Registry) -> Params:
    fitting = []
    for layer in registry.layers():
        versions = [version for version in layer.versions.values() if _fits(version, params)]
        if versions:
            fitting.append((layer, max(versions, key=lambda one: one.number)))
    return page(
        fitting,
        params,
        key=lambda found: [found[0].name],
        member="Layers",
        shown=lambda found: {
            "LayerName": found[0].name,
            "LayerArn": found[0].arn,
            "LatestMatchingVersion": _summary(found[1]),
        },
    )


def list_layer_versions(params: Params, registry: Registry) -> Params:
    layer = registry.layer(_name(params, registry))
    versions = [version for version in layer.versions.values() if _fits(version, params)] if layer else []
    # The newest comes first.
    return page(versions, params, key=lambda one: [-one.number], member="LayerVersions", shown=_summary)


def get_layer_version(params: Params, registry: Registry) -> Params:
    return _get(_name(params, registry), params["VersionNumber"], registry)


def get_layer_version_by_arn(params: Params, registry: Registry) -> Params:
    found = _ARN.fullmatch(params["Arn"])
    if found is None or found["number"] is None:
        raise faults.invalid(f"Invalid layer version ARN: {params['Arn']}")
    if not params["Arn"].startswith(f"{registry.layer_arn(found['name'])}:"):
        raise faults.not_found()
    return _get(found["name"], int(found["number"]), registry)


def _get(name: str, number: int, registry: Registry) -> Params:
    _refuse_number(number)
    layer = registry.layer(name)
    if layer is None or number not in layer.versions:
        raise faults.not_found()
    return _shown(layer, layer.versions[number], registry)


def _refuse_number(number: int) -> None:
    if number < 1:
        raise faults.invalid("Layer Version Cannot be less than 1.")


def delete_layer_version(params: Params, registry: Registry) -> Params:
    """Deletes a version; functions that use it keep it. One that is not there is deleted already."""
    name, number = _name(params, registry), params["VersionNumber"]
    _refuse_number(number)
    if registry.layer(name) is not None:
        registry.change_layer(
            name,
            lambda layer: replace(
                layer, versions={key: version for key, version in layer.versions.items() if key != number}
            ),
        )
    return {}
