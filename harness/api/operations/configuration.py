"""The settings of a function: what CreateFunction and UpdateFunctionConfiguration may say, and what Lambda refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from harness.api.faults import invalid
from harness.api.model import IMAGE, Configuration, LayerUse, Package
from harness.api.registry import Registry
from harness.function import RESERVED_ENVIRONMENT
from harness.function.archive import MAX_UNZIPPED_BYTES

MAX_LAYERS = 5
MAX_ENVIRONMENT_BYTES = 4096

_PLAIN = {
    "Runtime": "runtime",
    "Handler": "handler",
    "Role": "role",
    "Description": "description",
    "MemorySize": "memory_mb",
    "Timeout": "timeout_s",
}
_KEPT = ("VpcConfig", "KMSKeyArn", "FileSystemConfigs", "SnapStart", "LoggingConfig", "ImageConfig", "TenancyConfig")
"""Shown again as they were given; ``ImageConfig`` has an effect as far as its command names a handler."""


def configured(before: Configuration, params: dict[str, Any], registry: Registry, *, package: Package) -> Configuration:
    """The settings with what a request says laid over them.

    Raises:
        Fault: Lambda would refuse them.
    """
    found = replace(before, **{field: params[name] for name, field in _PLAIN.items() if name in params})
    if "EphemeralStorage" in params:
        found = replace(found, tmp_mb=params["EphemeralStorage"]["Size"])
    if "Architectures" in params:
        found = replace(found, architecture=params["Architectures"][0])
    if "TracingConfig" in params:
        found = replace(found, tracing=params["TracingConfig"].get("Mode", "PassThrough"))
    if "DeadLetterConfig" in params:
        found = replace(found, dead_letter_arn=params["DeadLetterConfig"].get("TargetArn") or None)
    if "Environment" in params:
        found = replace(found, environment=_environment(params["Environment"].get("Variables", {})))
    if "Layers" in params:
        found = replace(found, layers=_layers(params["Layers"], registry))
    if "ImageConfig" in params:
        found = replace(found, image_command=tuple(params["ImageConfig"].get("Command", ())))
    kept = {**found.kept, **{name: params[name] for name in _KEPT if name in params}}
    if "LoggingConfig" in params:
        name, _ = registry.named(params["FunctionName"])
        default = {"LogFormat": "Text", "LogGroup": f"/aws/lambda/{name}"}
        kept["LoggingConfig"] = default | before.kept.get("LoggingConfig", {}) | params["LoggingConfig"]
    # What is set to nothing is taken away.
    found = replace(found, kept={name: value for name, value in kept.items() if value})
    _refuse_mismatch(params, package)
    _refuse_size(found, package)
    return found


def _refuse_mismatch(params: dict[str, Any], package: Package) -> None:
    if package.kind == IMAGE:
        if any(params.get(name) for name in ("Runtime", "Handler", "Layers")):
            raise invalid(
                "Please don't provide handler or runtime or layer when the intended function PackageType is Image."
            )
        return
    if params.get("ImageConfig"):
        raise invalid("Please don't provide ImageConfig when PackageType is Zip.")


def refuse_gaps(found: Configuration, package: Package) -> None:
    """What a function that is being created has to say; those of the command line may have an image say it."""
    if package.kind != IMAGE and not (found.runtime and found.handler):
        raise invalid("Runtime and Handler are mandatory parameters for functions created with deployment packages.")


def _environment(variables: dict[str, str]) -> dict[str, str]:
    reserved = [name for name in variables if name in RESERVED_ENVIRONMENT]
    if reserved:
        raise invalid(
            "Lambda was unable to configure your environment variables because the environment variables you have"
            " provided contains reserved keys that are currently not supported for modification. Reserved keys used in"
            f" this request: {', '.join(reserved)}"
        )
    try:
        measured = len(json.dumps(variables, ensure_ascii=False, separators=(",", ":")).encode())
    except UnicodeEncodeError:
        raise invalid("An environment variable holds half of a surrogate pair, which is no text") from None
    if variables and measured > MAX_ENVIRONMENT_BYTES:
        # Lambda repeats the variables here. They may hold secrets, and this message may be logged.
        raise invalid(
            "Lambda was unable to configure your environment variables because the environment variables you have"
            f" provided exceeded the 4KB limit. String measured: {measured} bytes"
        )
    unfit = [name for name, value in variables.items() if "\0" in value]
    if unfit:
        raise invalid(f"Environment variable {unfit[0]} holds a NUL character, which no process can be given")
    return dict(variables)


def _layers(arns: list[str], registry: Registry) -> tuple[LayerUse, ...]:
    if len(arns) > MAX_LAYERS:
        raise invalid(f"Cannot reference more than {MAX_LAYERS} layers.")
    found: dict[str, LayerUse] = {}
    for arn in arns:
        layer_arn, _, number = arn.rpartition(":")
        name = layer_arn.rpartition(":")[2]
        layer = registry.layer(name) if layer_arn == registry.layer_arn(name) else None
        version = layer.versions.get(int(number)) if layer and number.isdecimal() else None
        if version is None:
            raise invalid(
                f"Layer version {arn} does not exist. (This service knows the layers that were published to it:"
                " PublishLayerVersion puts one there)"
            )
        if layer_arn in found:
            raise invalid(
                "Two different versions of the same layer are not allowed to be referenced in the same function. "
                f"{found[layer_arn].arn} and {arn} are versions of the same layer."
            )
        found[layer_arn] = LayerUse(
            arn=arn,
            sha256=version.sha256,
            size_bytes=version.size_bytes,
            unzipped_bytes=version.unzipped_bytes,
            path=registry.code_store.unzipped(version.sha256),
        )
    return tuple(found.values())


def _refuse_size(found: Configuration, package: Package) -> None:
    total = sum(layer.unzipped_bytes for layer in found.layers) + (package.unzipped_bytes or 0)
    if found.layers and total > MAX_UNZIPPED_BYTES:
        raise invalid(
            f"Function code combined with layers exceeds the maximum allowed size of {MAX_UNZIPPED_BYTES} bytes. "
            f"The actual size is {total} bytes."
        )
