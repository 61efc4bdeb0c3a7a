"""What the service remembers of a function, as values: versions, aliases and everything that hangs on them. Pure.

Frozen; a change makes a new value. Each has a JSON form for the store. Paths of code are not in it: they follow from
the digests and from where the code store lies.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from harness.function import Code, DirectoryCode, Function, ImageCode, ZipCode

LATEST = "$LATEST"
ZIP, IMAGE, DIRECTORY = "zip", "image", "directory"
ACTIVE, PENDING, FAILED = "Active", "Pending", "Failed"
SUCCESSFUL, IN_PROGRESS = "Successful", "InProgress"

Locate = Callable[[str], Path]


def new_id() -> str:
    """A revision id, or any other that only has to be new."""
    return str(uuid.uuid4())


@dataclass(frozen=True, kw_only=True)
class Package:
    """The code of a version. ``generation`` is new with each upload: an image may change under one name."""

    kind: str
    generation: str = field(default_factory=new_id)
    sha256: str | None = None
    size_bytes: int | None = None
    unzipped_bytes: int | None = None
    path: Path | None = None
    reference: str | None = None

    def code(self) -> Code:
        match self.kind:
            case "zip" if self.path is not None:
                return ZipCode(path=self.path)
            case "directory" if self.path is not None:
                return DirectoryCode(path=self.path)
            case _:
                return ImageCode(reference=self.reference or "")

    def as_dict(self) -> dict[str, Any]:
        found = dataclasses.asdict(self)
        found["path"] = str(self.path) if self.kind == DIRECTORY else None
        return found

    @classmethod
    def from_dict(cls, found: Mapping[str, Any], locate: Locate) -> Package:
        path = Path(found["path"]) if found["path"] else None
        if found["kind"] == ZIP:
            path = locate(found["sha256"])
        return cls(**{**found, "path": path})


@dataclass(frozen=True, kw_only=True)
class LayerUse:
    """A layer version that a function uses; it keeps working when the layer is deleted."""

    arn: str
    sha256: str
    size_bytes: int
    unzipped_bytes: int
    path: Path

    def as_dict(self) -> dict[str, Any]:
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "path"}

    @classmethod
    def from_dict(cls, found: Mapping[str, Any], locate: Locate) -> LayerUse:
        return cls(**found, path=locate(found["sha256"]))


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """The settings of a version. ``kept`` are those that are shown again but have no effect here, keyed as in AWS."""

    runtime: str | None = None
    handler: str | None = None
    role: str = ""
    description: str = ""
    memory_mb: int = 128
    timeout_s: int = 3
    tmp_mb: int = 512
    architecture: str = "x86_64"
    environment: Mapping[str, str] = field(default_factory=dict)
    layers: tuple[LayerUse, ...] = ()
    tracing: str = "PassThrough"
    dead_letter_arn: str | None = None
    image_command: tuple[str, ...] = ()
    kept: Mapping[str, Any] = field(default_factory=dict)
    image: str | None = None
    """An image to run zip or directory code in, which function.toml may name and AWS's API cannot."""
    local_layers: tuple[str, ...] = ()
    """Layers as directories and archives, of a function.toml."""
    receivers: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        found = {one.name: getattr(self, one.name) for one in dataclasses.fields(self)}
        found["environment"], found["kept"] = dict(self.environment), dict(self.kept)
        found["layers"] = [layer.as_dict() for layer in self.layers]
        for name in ("image_command", "local_layers", "receivers"):
            found[name] = list(found[name])
        return found

    @classmethod
    def from_dict(cls, found: Mapping[str, Any], locate: Locate) -> Configuration:
        lists = {name: tuple(found[name]) for name in ("image_command", "local_layers", "receivers")}
        layers = tuple(LayerUse.from_dict(layer, locate) for layer in found["layers"])
        return cls(**{**found, **lists, "layers": layers})


@dataclass(frozen=True, kw_only=True)
class State:
    """Where a version stands, as GetFunctionConfiguration tells it and waiters read it."""

    state: str = ACTIVE
    reason: str | None = None
    reason_code: str | None = None
    update: str = SUCCESSFUL
    update_reason: str | None = None
    update_reason_code: str | None = None

    @property
    def settled(self) -> bool:
        return self.state != PENDING and self.update != IN_PROGRESS


CREATING = State(
    state=PENDING,
    reason="The function is being created.",
    reason_code="Creating",
    update=IN_PROGRESS,
    update_reason="The function is being created.",
)
UPDATING = State(update=IN_PROGRESS, update_reason="The function is being updated.")


@dataclass(frozen=True, kw_only=True)
class FunctionVersion:
    """``$LATEST`` or a published version.

    ``deployment_id`` is new whenever code or configuration are, and only then: sandboxes of one id are alike.
    ``revision_id`` is what clients see; it also moves with the state and with the policy.
    ``latest_description`` is what ``$LATEST`` said of itself when this version was published.
    """

    function_name: str
    version: str
    arn: str
    """Without a qualifier for ``$LATEST``, with the number for a published version."""
    region: str
    configuration: Configuration
    package: Package
    status: State = field(default_factory=State)
    revision_id: str = field(default_factory=new_id)
    deployment_id: str = field(default_factory=new_id)
    last_modified: str = ""
    latest_description: str | None = None

    @property
    def name(self) -> str:
        return self.function_name

    @property
    def state(self) -> str:
        """``Pending``, ``Active`` or ``Failed``."""
        return self.status.state

    def function(self) -> Function:
        """The function as sandboxes are made for it."""
        settings = self.configuration
        in_image = self.package.kind == IMAGE
        command = settings.image_command[0] if settings.image_command else None
        return Function(
            name=self.function_name,
            runtime=None if in_image else settings.runtime,
            handler=command if in_image else settings.handler,
            memory_mb=settings.memory_mb,
            timeout_s=settings.timeout_s,
            tmp_mb=settings.tmp_mb,
            architecture=settings.architecture,
            environment=settings.environment,
            code=self.package.code(),
            layers=(*(Path(layer) for layer in settings.local_layers), *(layer.path for layer in settings.layers)),
            image=settings.image,
            receivers=settings.receivers,
            description=settings.description,
            source=self.arn,
            version=self.version,
            region=self.region,
        )

    def digests(self) -> set[str]:
        """What of the code store this version needs."""
        found = {layer.sha256 for layer in self.configuration.layers}
        return found | {self.package.sha256} if self.package.kind == ZIP and self.package.sha256 else found

    def same_as(self, other: FunctionVersion) -> bool:
        """Are code and configuration those of ``other``, a version that was published from ``$LATEST``?"""
        published = replace(other.configuration, description=other.latest_description or "")
        mine, theirs = self.package, other.package
        same_code = mine.sha256 == theirs.sha256 if mine.kind == theirs.kind == ZIP else mine == theirs
        return self.configuration == published and same_code

    def as_dict(self) -> dict[str, Any]:
        found = {one.name: getattr(self, one.name) for one in dataclasses.fields(self)}
        found["configuration"] = self.configuration.as_dict()
        found["package"] = self.package.as_dict()
        found["status"] = dataclasses.asdict(self.status)
        return found

    @classmethod
    def from_dict(cls, found: Mapping[str, Any], *, zips: Locate, layers: Locate) -> FunctionVersion:
        inner = {
            "configuration": Configuration.from_dict(found["configuration"], layers),
            "package": Package.from_dict(found["package"], zips),
            "status": State(**found["status"]),
        }
        return cls(**{**found, **inner})


@dataclass(frozen=True, kw_only=True)
class Alias:
    """``weights``: other versions and the share of requests that they get; what is left goes to ``version``."""

    name: str
    version: str
    description: str = ""
    weights: Mapping[str, float] = field(default_factory=dict)
    revision_id: str = field(default_factory=new_id)


@dataclass(frozen=True, kw_only=True)
class UrlConfig:
    """A function URL of ``$LATEST`` or of an alias. ``cors`` is keyed as in AWS."""

    url_id: str
    function_name: str
    qualifier: str
    auth_type: str
    invoke_mode: str
    cors: Mapping[str, Any] | None
    created_at: str
    modified_at: str


@dataclass(frozen=True, kw_only=True)
class EventInvokeConfig:
    """How asynchronous invocations end; None: Lambda's own default (2 attempts more, 6 hours, no destination)."""

    maximum_retry_attempts: int | None = None
    maximum_event_age_s: int | None = None
    on_success: str | None = None
    on_failure: str | None = None
    modified_at_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ProvisionedConfig:
    requested: int
    modified_at: str


@dataclass(frozen=True, kw_only=True)
class ProvisionedStatus:
    """How far the sandboxes of a provisioned concurrency are: ``IN_PROGRESS``, ``READY`` or ``FAILED``."""

    status: str = "IN_PROGRESS"
    reason: str | None = None
    allocated: int = 0
    available: int = 0


@dataclass(frozen=True, kw_only=True)
class FunctionRecord:
    """A function and everything that hangs on it: what one commit of the store holds.

    ``serving`` is the ``$LATEST`` that requests go to while its successor is being prepared, or failed to be.
    ``last_number`` never falls: Lambda gives no version number twice, not even to a function that was made anew.
    ``policies``: statements by qualifier, the empty one for the function itself.
    """

    name: str
    latest: FunctionVersion
    serving: FunctionVersion | None = None
    last_number: int = 0
    versions: Mapping[str, FunctionVersion] = field(default_factory=dict)
    aliases: Mapping[str, Alias] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    policies: Mapping[str, tuple[Mapping[str, Any], ...]] = field(default_factory=dict)
    urls: Mapping[str, UrlConfig] = field(default_factory=dict)
    event_invoke: Mapping[str, EventInvokeConfig] = field(default_factory=dict)
    provisioned: Mapping[str, ProvisionedConfig] = field(default_factory=dict)
    reserved: int | None = None

    @property
    def arn(self) -> str:
        return self.latest.arn

    def qualified_arn(self, qualifier: str | None) -> str:
        return f"{self.arn}:{qualifier}" if qualifier else self.arn

    @property
    def serves(self) -> FunctionVersion:
        """The ``$LATEST`` that requests go to; one that never became ready where there is no other."""
        if self.serving is None or self.serving.deployment_id == self.latest.deployment_id:
            return self.latest
        return self.serving

    def version(self, number: str) -> FunctionVersion | None:
        return self.latest if number == LATEST else self.versions.get(number)

    def numbered(self) -> list[FunctionVersion]:
        """``$LATEST``, then what was published, oldest first."""
        return [self.latest, *sorted(self.versions.values(), key=lambda one: int(one.version))]

    def has(self, qualifier: str) -> bool:
        return qualifier in self.aliases or self.version(qualifier) is not None

    def digests(self) -> set[str]:
        every = [self.latest, *self.versions.values(), *([self.serving] if self.serving else [])]
        return set().union(*(version.digests() for version in every))

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "latest": self.latest.as_dict(),
            "serving": None if self.serving is None or self.serves is self.latest else self.serving.as_dict(),
            "serving_is_latest": self.serving is not None and self.serves is self.latest,
            "last_number": self.last_number,
            "versions": {number: version.as_dict() for number, version in self.versions.items()},
            "aliases": {name: dataclasses.asdict(alias) for name, alias in self.aliases.items()},
            "tags": dict(self.tags),
            "policies": {qualifier: list(statements) for qualifier, statements in self.policies.items()},
            "urls": {qualifier: dataclasses.asdict(url) for qualifier, url in self.urls.items()},
            "event_invoke": {qualifier: dataclasses.asdict(one) for qualifier, one in self.event_invoke.items()},
            "provisioned": {qualifier: dataclasses.asdict(one) for qualifier, one in self.provisioned.items()},
            "reserved": self.reserved,
        }

    @classmethod
    def from_dict(cls, found: Mapping[str, Any], *, zips: Locate, layers: Locate) -> FunctionRecord:
        def version(one: Mapping[str, Any]) -> FunctionVersion:
            return FunctionVersion.from_dict(one, zips=zips, layers=layers)

        latest = version(found["latest"])
        serving = version(found["serving"]) if found["serving"] else None
        return cls(
            name=found["name"],
            latest=latest,
            serving=latest if found["serving_is_latest"] else serving,
            last_number=found["last_number"],
            versions={number: version(one) for number, one in found["versions"].items()},
            aliases={name: Alias(**one) for name, one in found["aliases"].items()},
            tags=found["tags"],
            policies={qualifier: tuple(statements) for qualifier, statements in found["policies"].items()},
            urls={qualifier: UrlConfig(**one) for qualifier, one in found["urls"].items()},
            event_invoke={qualifier: EventInvokeConfig(**one) for qualifier, one in found["event_invoke"].items()},
            provisioned={qualifier: ProvisionedConfig(**one) for qualifier, one in found["provisioned"].items()},
            reserved=found["reserved"],
        )


@dataclass(frozen=True, kw_only=True)
class LayerVersion:
    number: int
    arn: str
    sha256: str
    size_bytes: int
    unzipped_bytes: int
    description: str
    created_at: str
    runtimes: tuple[str, ...]
    architectures: tuple[str, ...]
    license: str | None


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer and those of its versions that were not deleted; numbers are never used again."""

    name: str
    arn: str
    last_number: int = 0
    versions: Mapping[int, LayerVersion] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Layer:
        versions = {}
        for number, one in found["versions"].items():
            lists = {name: tuple(one[name]) for name in ("runtimes", "architectures")}
            versions[int(number)] = LayerVersion(**{**one, **lists})
        return cls(**{**found, "versions": versions})


@dataclass(frozen=True, kw_only=True)
class Target:
    """What a name and a qualifier mean for one request: the weights of an alias have been drawn."""

    version: FunctionVersion
    alias: str | None
    invoked_arn: str
