"""What is remembered of a function as AWS shows it. Must not decide anything."""

from __future__ import annotations

from typing import Any

from harness.api.code_store import shown_sha256
from harness.api.model import DIRECTORY, IMAGE, LATEST, Alias, FunctionVersion, Package
from harness.api.registry import Registry

_STATE = (
    ("State", "state"),
    ("StateReason", "reason"),
    ("StateReasonCode", "reason_code"),
    ("LastUpdateStatus", "update"),
    ("LastUpdateStatusReason", "update_reason"),
    ("LastUpdateStatusReasonCode", "update_reason_code"),
)


def configuration(version: FunctionVersion, *, qualifier: str | None = None, listed: bool = False) -> dict[str, Any]:
    """AWS's FunctionConfiguration. ``qualifier`` is what the caller asked by; in lists the state is left out."""
    settings, package = version.configuration, version.package
    arn = version.arn
    if qualifier and version.version != qualifier:  # an alias
        arn = f"{arn.removesuffix(':' + version.version)}:{qualifier}"
    elif qualifier == LATEST:
        arn = f"{arn}:{LATEST}"
    found: dict[str, Any] = {
        "FunctionName": version.function_name,
        "FunctionArn": arn,
        "Runtime": settings.runtime,
        "Role": settings.role,
        "Handler": settings.handler,
        "CodeSize": 0 if package.kind == IMAGE else package.size_bytes,
        "Description": settings.description,
        "Timeout": settings.timeout_s,
        "MemorySize": settings.memory_mb,
        "LastModified": version.last_modified,
        "CodeSha256": code_sha256(package),
        "Version": version.version,
        "TracingConfig": {"Mode": settings.tracing},
        "RevisionId": version.revision_id,
        "PackageType": "Image" if package.kind == IMAGE else "Zip",
        "Architectures": [settings.architecture],
        "EphemeralStorage": {"Size": settings.tmp_mb},
        "SnapStart": {"ApplyOn": "None", "OptimizationStatus": "Off"},
        "LoggingConfig": {"LogFormat": "Text", "LogGroup": f"/aws/lambda/{version.function_name}"},
    }
    found |= _kept(settings.kept)
    if settings.environment:
        found["Environment"] = {"Variables": dict(settings.environment)}
    if settings.layers:
        found["Layers"] = [{"Arn": layer.arn, "CodeSize": layer.size_bytes} for layer in settings.layers]
    if settings.dead_letter_arn:
        found["DeadLetterConfig"] = {"TargetArn": settings.dead_letter_arn}
    if not listed:
        found |= {name: getattr(version.status, field) for name, field in _STATE}
    return {name: value for name, value in found.items() if value is not None}


def _kept(kept: Any) -> dict[str, Any]:
    """Settings without an effect here, as the answers name them, which is not always as the requests do."""
    found = dict(kept)
    if "ImageConfig" in found:
        found["ImageConfigResponse"] = {"ImageConfig": found.pop("ImageConfig")}
    if "VpcConfig" in found:
        found["VpcConfig"] = {"SubnetIds": [], "SecurityGroupIds": [], "VpcId": "", **found["VpcConfig"]}
    if "SnapStart" in found:
        found["SnapStart"] = {**found["SnapStart"], "OptimizationStatus": "Off"}
    return found


def code_sha256(package: Package) -> str | None:
    """Lambda's digest of a zip; of an image the one that its reference names. None where nothing tells it."""
    if package.kind == IMAGE:
        _, at, digest = (package.reference or "").partition("@sha256:")
        return digest if at else None
    return shown_sha256(package.sha256) if package.sha256 else None


def location(package: Package, registry: Registry) -> dict[str, Any]:
    """AWS's FunctionCodeLocation."""
    if package.kind == IMAGE:
        reference = package.reference or ""
        resolved = {"ResolvedImageUri": reference} if "@sha256:" in reference else {}
        return {"RepositoryType": "ECR", "ImageUri": reference, **resolved}
    if package.kind == DIRECTORY and package.path is not None:
        return {"RepositoryType": "S3", "Location": package.path.as_uri()}
    return {"RepositoryType": "S3", "Location": registry.code_address(package.sha256 or "")}


def alias_configuration(alias: Alias, function_arn: str) -> dict[str, Any]:
    """AWS's AliasConfiguration."""
    found: dict[str, Any] = {
        "AliasArn": f"{function_arn}:{alias.name}",
        "Name": alias.name,
        "FunctionVersion": alias.version,
        "Description": alias.description,
        "RevisionId": alias.revision_id,
    }
    if alias.weights:
        found["RoutingConfig"] = {"AdditionalVersionWeights": dict(alias.weights)}
    return found
