"""Stand-ins for what the service's dispatcher works with: stands over fake cells, and a registry in memory."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from fakes import MIB, FakeCell, surroundings
from test_pool import FakeStand, stand_of, until

from harness.api import faults
from harness.api.model import (
    DIRECTORY,
    LATEST,
    ZIP,
    Alias,
    Configuration,
    EventInvokeConfig,
    FunctionRecord,
    FunctionVersion,
    Package,
    ProvisionedConfig,
    Target,
    new_id,
)
from harness.stand import Ground, Stand

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.api.registry import Registry
    from harness.function import Function

__all__ = ["FakeEngine", "FakeRegistry", "FakeStands", "ServiceStand", "until"]


@dataclass
class FakeEngine:
    """Lists the containers that live, as long as it is there."""

    stands: FakeStands
    away: bool = False
    gone: set[str] = field(default_factory=set)
    """Ids of sandboxes whose containers were lost."""

    @contextmanager
    def asked(self, what: str) -> Iterator[None]:
        from harness.errors import EngineError

        if self.away:
            raise EngineError(f"the engine went away while asked to {what}")
        yield

    @property
    def docker(self) -> Any:
        from harness.engine.client import LABEL_SANDBOX

        def containers(**_: Any) -> list[dict[str, Any]]:
            ids = {sandbox.id for made in self.stands.made for sandbox in made.sandboxes} - self.gone
            return [{"Labels": {LABEL_SANDBOX: each}, "State": "running", "Id": each} for each in ids]

        return SimpleNamespace(api=SimpleNamespace(containers=containers, remove_container=lambda *_, **__: None))


@dataclass
class ServiceStand(FakeStand):
    """A stand that knows whether it is open, and its sandboxes."""

    open: bool = False
    sandboxes: list[Any] = field(default_factory=list)

    def sandbox(self, function: Function | None = None, *, provisioned: bool = False) -> Any:
        assert self.open, "a sandbox of a stand that is closed"
        made = super().sandbox(function, provisioned=provisioned)
        self.sandboxes.append(made)
        return made


@dataclass
class FakeStands:
    """Opens stands; remembers them. ``trouble`` is raised by the next opening."""

    make_cell: Callable[[], FakeCell] = FakeCell
    made: list[ServiceStand] = field(default_factory=list)
    trouble: list[Exception] = field(default_factory=list)

    @contextmanager
    def __call__(self, function: Function) -> Iterator[Stand]:
        if self.trouble:
            raise self.trouble.pop()
        stand = ServiceStand(function=function, make_cell=self.make_cell, open=True)
        self.made.append(stand)
        try:
            yield stand_of(stand)
        finally:
            stand.open = False
            assert all(cell.closed for cell in stand.cells if cell.starts), "a stand was closed before its sandboxes"

    @property
    def cells(self) -> list[FakeCell]:
        return [cell for stand in self.made for cell in stand.cells]

    @property
    def ground(self) -> Ground:
        around = surroundings()
        found = SimpleNamespace(
            engine=FakeEngine(stands=self),
            vantage=around.vantage,
            facts=SimpleNamespace(memory_bytes=64 * 1024 * MIB),
            host={"kernel": "fake"},
        )
        return cast("Ground", found)


class FakeRegistry:
    """What the dispatcher and the queue ask of the registry, without a store behind it."""

    def __init__(self) -> None:
        self.records: dict[str, FunctionRecord] = {}
        self.listeners: list[Any] = []

    @property
    def real(self) -> Registry:
        return cast("Registry", self)

    def subscribe(self, listener: object) -> None:
        self.listeners.append(listener)

    def add(self, name: str = "probe", *, directory: Path | None = None, **settings: Any) -> FunctionVersion:
        package = Package(kind=ZIP, sha256="0", path=Path("/nowhere.zip"))
        if directory is not None:
            package = Package(kind=DIRECTORY, path=directory)
        configuration = Configuration(
            **{"runtime": "python3.13", "handler": "app.handler", "memory_mb": 256, **settings}
        )
        version = FunctionVersion(
            function_name=name,
            version=LATEST,
            arn=f"arn:aws:lambda:us-east-1:000000000000:function:{name}",
            region="us-east-1",
            configuration=configuration,
            package=package,
        )
        self.records[name] = FunctionRecord(name=name, latest=version, serving=version)
        return version

    def change(self, name: str, **changes: Any) -> None:
        self.records[name] = replace(self.records[name], **changes)

    def update(self, name: str, **settings: Any) -> FunctionVersion:
        """As the registry does when an update has been prepared."""
        latest = self.records[name].latest
        latest = replace(latest, configuration=replace(latest.configuration, **settings), deployment_id=new_id())
        self.change(name, latest=latest, serving=latest)
        self.tell("version_changed", latest)
        return latest

    def publish(self, name: str, number: str) -> FunctionVersion:
        latest = self.records[name].latest
        version = replace(latest, version=number, arn=f"{latest.arn}:{number}")
        self.change(name, versions={**self.records[name].versions, number: version})
        return version

    def alias(self, name: str, alias: str, version: str) -> None:
        self.change(name, aliases={**self.records[name].aliases, alias: Alias(name=alias, version=version)})

    def reserve(self, name: str, count: int | None) -> None:
        self.change(name, reserved=count)
        self.tell("concurrency_changed", name)

    def provide(self, name: str, qualifier: str, count: int) -> None:
        found = {qualifier: ProvisionedConfig(requested=count, modified_at="")} if count else {}
        self.change(name, provisioned=found)
        self.tell("provisioned_changed", name, qualifier)

    def configure(self, name: str, **settings: Any) -> None:
        self.change(name, event_invoke={LATEST: EventInvokeConfig(**settings)})

    def delete(self, name: str) -> None:
        del self.records[name]
        self.tell("function_deleted", name)

    def tell(self, what: str, *found: object) -> None:
        for listener in self.listeners:
            getattr(listener, what)(*found)

    # as the registry has them

    def functions(self) -> list[FunctionRecord]:
        return list(self.records.values())

    def function(self, name: str) -> FunctionRecord:
        if name not in self.records:
            raise faults.function_not_found(name)
        return self.records[name]

    def resolve(self, name: str, qualifier: str | None = None) -> Target:
        if name.startswith("arn:"):
            name, _, behind = name.split(":", 6)[6].partition(":")
            qualifier = behind or qualifier
        record = self.function(name)
        alias = record.aliases.get(qualifier or "")
        version = record.version(alias.version if alias else qualifier or LATEST)
        if version is None:
            raise faults.function_not_found(name)
        return Target(version=version, alias=alias.name if alias else None, invoked_arn=record.qualified_arn(qualifier))

    def reserved_concurrency(self, name: str) -> int | None:
        record = self.records.get(name)
        return record.reserved if record else None

    def event_invoke_config(self, name: str, qualifier: str | None = None) -> EventInvokeConfig | None:
        record = self.records.get(name)
        return record.event_invoke.get(qualifier or LATEST) if record else None

    def provisioned(self) -> list[tuple[str, str, ProvisionedConfig]]:
        return [
            (record.name, qualifier, config)
            for record in self.records.values()
            for qualifier, config in record.provisioned.items()
        ]
