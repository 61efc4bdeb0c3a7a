"""The functions and layers of a service: what there is, what a name means, and how it changes.

Every change is committed to the store before it is answered, and survives the process; code lies in the code store by
content. What a change means is decided by `harness.api.operations`; what it takes to run a function, by the
``preparer`` that the service sets. Must not know containers, HTTP or the wire.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, NamedTuple, Protocol

from harness.api import faults
from harness.api.code_store import CodeStore, StoredCode
from harness.api.faults import Fault
from harness.api.model import (
    ACTIVE,
    CREATING,
    DIRECTORY,
    FAILED,
    IMAGE,
    LATEST,
    PENDING,
    SUCCESSFUL,
    UPDATING,
    ZIP,
    Configuration,
    EventInvokeConfig,
    FunctionRecord,
    FunctionVersion,
    Layer,
    Package,
    ProvisionedConfig,
    ProvisionedStatus,
    State,
    Target,
    UrlConfig,
    new_id,
)
from harness.environment import ACCOUNT_ID
from harness.errors import EngineError, HarnessError, ImageError
from harness.function import Function, ImageCode, InlineCode, ZipCode
from harness.function.model import DEFAULT_REGION
from harness.store import Store

__all__ = ["Listener", "Named", "Registry", "Target"]

_FUNCTIONS, _LAYERS = "functions", "layers"
_PREPARING_THREADS = 4
_ALWAYS_UNRESERVED = 100
"""What reserved concurrency must leave to the functions that have none [developer guide, "Reserved concurrency"]."""

_NAME = re.compile(
    r"(?:arn:aws[a-zA-Z-]*:lambda:)?(?:(?P<region>[a-z]{2,5}(?:-[a-z]+)+-\d):)?(?:(?P<account>\d{12}):)?(?:function:)?"
    r"(?P<name>[a-zA-Z0-9_.-]+)(?::(?P<qualifier>\$LATEST|[a-zA-Z0-9_-]+))?"
)
MAX_NAME_LETTERS = 64


class Named(NamedTuple):
    """What one of the forms of a function's name says: name, partial ARN or ARN, each with ``:qualifier`` or not."""

    name: str
    qualifier: str | None


class Listener:
    """Who has to follow changes: override what you want to know. Called after the commit, from the changer's thread."""

    def version_changed(self, version: FunctionVersion) -> None:
        """Requests for this version go to this deployment of it from now on."""

    def version_deleted(self, name: str, version: str) -> None:
        """A published version is gone."""

    def function_deleted(self, name: str) -> None:
        """A function is gone with everything that hung on it."""

    def concurrency_changed(self, name: str) -> None:
        """The reserved concurrency is another one."""

    def provisioned_changed(self, name: str, qualifier: str) -> None:
        """The provisioned concurrency of a version or an alias is another one, or what the alias points to."""


class _ProvisionedStatus(Protocol):
    def __call__(self, name: str, qualifier: str, /) -> ProvisionedStatus: ...


class Registry:
    """See the module. Thread-safe; use as a context manager, or call `close`.

    ``preparer`` makes a version ready to run and raises a `HarnessError` where that cannot be; ``provisioned_status``
    tells how far provisioned sandboxes are; ``port`` is where the service listens, for the addresses that it gives out.
    Call `resume` once they are set.
    """

    def __init__(
        self,
        store: Store,
        code_store: CodeStore,
        *,
        region: str = DEFAULT_REGION,
        account_id: str = ACCOUNT_ID,
        account_concurrency: int = 1000,
    ) -> None:
        self.code_store = code_store
        self.region = region
        self.account_id = account_id
        self.account_concurrency = account_concurrency
        self.port: int | None = None
        self.preparer: Callable[[FunctionVersion], None] = lambda _: None
        self.provisioned_status: _ProvisionedStatus = lambda _name, _qualifier: ProvisionedStatus()
        self._store = store
        self._lock = threading.RLock()
        self._listeners: list[Any] = []
        self._workers = ThreadPoolExecutor(_PREPARING_THREADS, thread_name_prefix="prepare")
        self._records: dict[str, FunctionRecord] = {}
        self._last_numbers: dict[str, int] = {}
        self._layers = {name: Layer.from_dict(found) for name, found in store.documents(_LAYERS).items()}
        for name, found in store.documents(_FUNCTIONS).items():
            if found.get("deleted"):
                self._last_numbers[name] = found["last_number"]
            else:
                self._records[name] = FunctionRecord.from_dict(found, zips=code_store.path, layers=code_store.unzipped)
        code_store.remove_all_but(self._digests())

    def __enter__(self) -> Registry:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Take up no more preparations; what is not ready yet is prepared again by the next service."""
        self._workers.shutdown(wait=True, cancel_futures=True)

    def resume(self) -> None:
        """Prepare what an earlier service did not finish preparing."""
        with self._lock:
            waiting = [record for record in self._records.values() if not record.latest.status.settled]
        for record in waiting:
            self._workers.submit(self._prepare, record.name, record.latest)

    def subscribe(self, listener: object) -> None:
        """Tell a `Listener`, or whatever has some of its methods, about changes from now on."""
        self._listeners.append(listener)

    # Reading

    def functions(self) -> list[FunctionRecord]:
        """Every function, by name."""
        with self._lock:
            return [self._records[name] for name in sorted(self._records)]

    def function(self, name: str) -> FunctionRecord:
        """A function by its plain name.

        Raises:
            Fault: there is none.
        """
        with self._lock:
            record = self._records.get(name)
        if record is None:
            raise faults.function_not_found(self.arn(name))
        return record

    def named(self, name: str, qualifier: str | None = None) -> Named:
        """The plain name and the qualifier that a caller means.

        Raises:
            Fault: it is a name of another region or account, or says one qualifier while the caller says another.
        """
        found = _NAME.fullmatch(name)
        if found is None:
            raise faults.invalid(f"Invalid function name: {name}")
        if found["region"] not in {None, self.region}:
            raise faults.not_found(
                f"Functions from '{found['region']}' are not reachable in this region ('{self.region}')"
            )
        if found["account"] not in {None, self.account_id}:
            raise Fault(
                "AccessDeniedException",
                403,
                f"Functions of account {found['account']} are not those of this service, which is {self.account_id}",
            )
        if qualifier and found["qualifier"] and qualifier != found["qualifier"]:
            raise faults.invalid("The derived qualifier from the function name does not match the specified qualifier.")
        return Named(found["name"], qualifier or found["qualifier"])

    def arn(self, name: str, qualifier: str | None = None) -> str:
        found = f"arn:aws:lambda:{self.region}:{self.account_id}:function:{name}"
        return f"{found}:{qualifier}" if qualifier else found

    def find(self, name: str, qualifier: str | None = None) -> tuple[FunctionRecord, str | None]:
        """The function and the qualifier that a caller means; the qualifier is one that the function has.

        Raises:
            Fault: there is no such function, version or alias.
        """
        meant = self.named(name, qualifier)
        with self._lock:
            record = self._records.get(meant.name)
        if record is None or (meant.qualifier and not record.has(meant.qualifier)):
            raise faults.function_not_found(self.arn(meant.name, meant.qualifier))
        return record, meant.qualifier

    def resolve(self, name: str, qualifier: str | None = None) -> Target:
        """What a request for this name and qualifier runs; where an alias has weights, they are drawn.

        Raises:
            Fault: there is no such function, version or alias, or it is not ready to run.
        """
        record, meant = self.find(name, qualifier)
        alias = record.aliases.get(meant) if meant else None
        number = _drawn(alias.version, alias.weights) if alias else (meant or LATEST)
        version = record.serves if number == LATEST else record.versions[number]
        if version.state in {PENDING, FAILED}:
            raise faults.conflict(
                "The operation cannot be performed at this time. The function is currently in the following state: "
                f"{version.state}"
            )
        return Target(version=version, alias=alias.name if alias else None, invoked_arn=record.qualified_arn(meant))

    def reserved_concurrency(self, name: str) -> int | None:
        with self._lock:
            record = self._records.get(name)
        return record.reserved if record else None

    def event_invoke_config(self, name: str, qualifier: str | None = None) -> EventInvokeConfig | None:
        """How asynchronous requests for this qualifier (none: the function itself) end; None: as by default."""
        with self._lock:
            record = self._records.get(name)
        return record.event_invoke.get(qualifier or LATEST) if record else None

    def provisioned(self) -> list[tuple[str, str, ProvisionedConfig]]:
        """Every provisioned concurrency: function, version or alias, and what is asked for."""
        with self._lock:
            return [
                (record.name, qualifier, config)
                for record in self._records.values()
                for qualifier, config in record.provisioned.items()
            ]

    def function_url(self, url_id: str) -> UrlConfig | None:
        """The function URL whose host begins with this id."""
        with self._lock:
            every = (url for record in self._records.values() for url in record.urls.values())
            return next((url for url in every if url.url_id == url_id), None)

    def url_address(self, url_id: str) -> str:
        """The address of a function URL on this service."""
        return f"http://{url_id}.lambda-url.{self.region}.localhost{self._port}/"

    def code_address(self, sha256: str) -> str:
        """Where a client could fetch a zip from this service."""
        return f"http://127.0.0.1{self._port}/_harness/code/{sha256}.zip"

    @property
    def _port(self) -> str:
        return "" if self.port is None else f":{self.port}"

    @property
    def always_unreserved(self) -> int:
        """What reserved concurrency must leave: 100, or all that a small account has."""
        return min(_ALWAYS_UNRESERVED, self.account_concurrency)

    def unreserved(self, *, without: str | None = None) -> int:
        """The account's concurrency that no function has to itself (``without``: as if this one had nothing)."""
        with self._lock:
            others = [record for record in self._records.values() if record.name != without]
        return self.account_concurrency - sum(_taken(record) for record in others)

    # Changing functions

    def create(self, name: str, make: Callable[[int], FunctionRecord]) -> FunctionRecord:
        """Add a function; ``make`` gets the highest version number that a function of this name ever had.

        Raises:
            Fault: there is one already.
        """
        with self._lock:
            if name in self._records:
                raise faults.conflict(f"Function already exist: {name}")
            record = make(self._last_numbers.get(name, 0))
            self._commit(None, record)
        self._follow(None, record)
        return record

    def change(self, name: str, alter: Callable[[FunctionRecord], FunctionRecord]) -> FunctionRecord:
        """Put what ``alter`` makes of a function in its place. ``alter`` runs alone, and changes nothing by raising.

        Raises:
            Fault: there is no such function, or what ``alter`` raised.
        """
        with self._lock:
            before = self.function(name)
            record = alter(before)
            self._commit(before, record)
        self._follow(before, record)
        return record

    def delete(self, name: str) -> None:
        """Remove a function and everything that hangs on it; its version numbers stay used.

        Raises:
            Fault: there is no such function.
        """
        with self._lock:
            record = self.function(name)
            if record.last_number:
                self._store.put_document(_FUNCTIONS, name, {"deleted": True, "last_number": record.last_number})
                self._last_numbers[name] = record.last_number
            else:
                self._store.delete_document(_FUNCTIONS, name)
            del self._records[name]
            self._remove_unused(record.digests())
        self._tell("function_deleted", name)

    @contextlib.contextmanager
    def admitted(
        self, data: bytes, *, operation: str, uploaded: bool = True, layer: bool = False
    ) -> Iterator[StoredCode]:
        """Judge and keep a zip; what nobody refers to at the end of the block is removed again.

        Raises:
            Fault: Lambda would refuse it.
        """
        digest: set[str] = set()
        try:
            with self.code_store.admit(data, operation=operation, uploaded=uploaded, keep_unzipped=layer) as stored:
                digest.add(stored.sha256)
                yield stored
        finally:
            with self._lock:
                self._remove_unused(digest)

    def deploy(self, function: Function) -> FunctionVersion:
        """Create or update a function in place from what the user named on the command line.

        Raises:
            Fault: Lambda would refuse its code.
        """
        if isinstance(function.code, InlineCode | ZipCode):
            code = function.code
            data = code.path.read_bytes() if isinstance(code, ZipCode) else _inline_zip(code)
            with self.admitted(data, operation="CreateFunction", uploaded=False) as stored:
                return self._deploy(function, zip_package(stored))
        if isinstance(function.code, ImageCode):
            return self._deploy(function, Package(kind=IMAGE, reference=function.code.reference))
        return self._deploy(function, Package(kind=DIRECTORY, path=function.code.path))

    def _deploy(self, function: Function, package: Package) -> FunctionVersion:
        configuration = _configuration_of(function, f"arn:aws:iam::{self.account_id}:role/lambda-harness")
        with self._lock:
            there = self._records.get(function.name)
        if there is None:
            made = self.new_latest(function.name, configuration, package)
            return self.create(
                function.name, lambda last: FunctionRecord(name=function.name, latest=made, last_number=last)
            ).latest
        return self.change(
            function.name, lambda record: updated(record, configuration=configuration, package=package)
        ).latest

    def new_latest(self, name: str, configuration: Configuration, package: Package) -> FunctionVersion:
        """The ``$LATEST`` of a function that is being created."""
        return FunctionVersion(
            function_name=name,
            version=LATEST,
            arn=self.arn(name),
            region=self.region,
            configuration=configuration,
            package=package,
            status=CREATING,
            last_modified=timestamp(),
        )

    # Layers

    def layers(self) -> list[Layer]:
        """Every layer that has a version, by name."""
        with self._lock:
            return [layer for _, layer in sorted(self._layers.items()) if layer.versions]

    def layer(self, name: str) -> Layer | None:
        with self._lock:
            return self._layers.get(name)

    def layer_arn(self, name: str) -> str:
        return f"arn:aws:lambda:{self.region}:{self.account_id}:layer:{name}"

    def change_layer(self, name: str, alter: Callable[[Layer], Layer]) -> Layer:
        """Put what ``alter`` makes of a layer in its place; of a name that is new it gets a layer without versions."""
        with self._lock:
            before = self._layers.get(name) or Layer(name=name, arn=self.layer_arn(name))
            layer = alter(before)
            self._store.put_document(_LAYERS, name, layer.as_dict())
            self._layers[name] = layer
            self._remove_unused({version.sha256 for version in before.versions.values()})
        return layer

    # Inside

    def _commit(self, before: FunctionRecord | None, record: FunctionRecord) -> None:
        self._store.put_document(_FUNCTIONS, record.name, record.as_dict())
        self._records[record.name] = record
        if before is not None:
            self._remove_unused(before.digests() - record.digests())

    def _follow(self, before: FunctionRecord | None, record: FunctionRecord) -> None:
        """Whatever comes after a change: preparations are begun, and listeners hear what differs."""
        if not record.latest.status.settled and (
            before is None or before.latest.deployment_id != record.latest.deployment_id
        ):
            self._workers.submit(self._prepare, record.name, record.latest)
        if before is None:
            return
        for version in _newly_serving(before, record):
            self._tell("version_changed", version)
        for number in before.versions.keys() - record.versions.keys():
            self._tell("version_deleted", record.name, number)
        if before.reserved != record.reserved:
            self._tell("concurrency_changed", record.name)
        for qualifier in sorted(before.provisioned.keys() | record.provisioned.keys()):
            aimed = [_aim(one, qualifier) for one in (before, record)]
            if before.provisioned.get(qualifier) != record.provisioned.get(qualifier) or aimed[0] != aimed[1]:
                self._tell("provisioned_changed", record.name, qualifier)

    def _tell(self, what: str, *found: object) -> None:
        for listener in tuple(self._listeners):
            heard = getattr(listener, what, None)
            if heard is not None:
                heard(*found)

    def _prepare(self, name: str, version: FunctionVersion) -> None:
        """In a thread of its own: make a ``$LATEST`` ready, and write down how that ended."""
        first = version.state == PENDING
        try:
            self.preparer(version)
            status = State()
        except HarnessError as error:
            status = _failed(error, first=first)
        except Exception as error:  # noqa: BLE001  whatever it was: a function must not stay pending for ever
            status = _failed(EngineError(f"{type(error).__name__}: {error}"), first=first)

        def settle(record: FunctionRecord) -> FunctionRecord:
            if record.latest.deployment_id != version.deployment_id:
                return record  # it was deleted meanwhile, and made anew
            latest = replace(record.latest, status=status, revision_id=new_id())
            versions = {
                number: replace(one, status=status, revision_id=new_id()) if one.state == PENDING else one
                for number, one in record.versions.items()
            }
            good = status.update == SUCCESSFUL
            return replace(record, latest=latest, versions=versions, serving=latest if good else record.serving)

        with contextlib.suppress(Fault):  # it was deleted meanwhile
            self.change(name, settle)

    def _digests(self) -> set[str]:
        layers = {version.sha256 for layer in self._layers.values() for version in layer.versions.values()}
        return layers.union(*(record.digests() for record in self._records.values()))

    def _remove_unused(self, digests: set[str]) -> None:
        if digests:
            self.code_store.remove(digests - self._digests())


def updated(
    record: FunctionRecord, *, configuration: Configuration | None = None, package: Package | None = None
) -> FunctionRecord:
    """The function with another code or configuration of ``$LATEST``, on its way to be prepared."""
    first = record.serving is None  # it never ran yet: the state tells, not the update
    latest = replace(
        record.latest,
        configuration=configuration or record.latest.configuration,
        package=package or record.latest.package,
        status=CREATING if first else UPDATING,
        revision_id=new_id(),
        deployment_id=new_id(),
        last_modified=timestamp(),
    )
    return replace(record, latest=latest)


def zip_package(stored: StoredCode) -> Package:
    return Package(
        kind=ZIP,
        sha256=stored.sha256,
        size_bytes=stored.size_bytes,
        unzipped_bytes=stored.unzipped_bytes,
        path=stored.path,
    )


def timestamp() -> str:
    """Now, as Lambda writes ``LastModified``."""
    now = datetime.now(UTC)
    return f"{now:%Y-%m-%dT%H:%M:%S}.{now.microsecond // 1000:03d}+0000"


def fine_timestamp() -> str:
    """Now, as Lambda writes the times of function URLs."""
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%f}Z"


def now_s() -> float:
    """Now, in seconds since the epoch."""
    return round(time.time(), 3)


def _drawn(version: str, weights: Mapping[str, float]) -> str:
    """Which version a request gets: the weights are shares of one, the rest is for ``version``."""
    left = secrets.SystemRandom().random()
    for number, weight in weights.items():
        if left < weight:
            return number
        left -= weight
    return version


def _taken(record: FunctionRecord) -> int:
    if record.reserved is not None:
        return record.reserved
    return sum(config.requested for config in record.provisioned.values())


def _aim(record: FunctionRecord, qualifier: str) -> str:
    """The version that a qualifier stands for."""
    alias = record.aliases.get(qualifier)
    return alias.version if alias else qualifier


def _newly_serving(before: FunctionRecord, record: FunctionRecord) -> Sequence[FunctionVersion]:
    found = []
    if record.serving and (before.serving is None or before.serving.deployment_id != record.serving.deployment_id):
        found.append(record.serving)
    for number, version in record.versions.items():
        there = before.versions.get(number)
        if version.state == ACTIVE and (there is None or there.state != ACTIVE):
            found.append(version)
    return found


def _failed(error: HarnessError, *, first: bool) -> State:
    code = "InvalidConfiguration"
    if isinstance(error, EngineError):
        code = "InvalidImage" if isinstance(error, ImageError) else "InternalError"
    reason = f"{error}; {error.remedy}" if error.remedy else str(error)
    return State(
        state=FAILED if first else ACTIVE,
        reason=reason if first else None,
        reason_code=code if first else None,
        update="Failed",
        update_reason=reason,
        update_reason_code=code,
    )


def _configuration_of(function: Function, role: str) -> Configuration:
    in_image = isinstance(function.code, ImageCode)
    return Configuration(
        runtime=None if in_image else function.runtime,
        handler=None if in_image else function.handler,
        role=role,
        description=function.description[:256],
        memory_mb=function.memory_mb,
        timeout_s=function.timeout_s,
        tmp_mb=function.tmp_mb,
        architecture=function.architecture,
        environment=dict(function.environment),
        image=function.image,
        image_command=(function.handler,) if in_image and function.handler else (),
        local_layers=tuple(str(layer) for layer in function.layers),
        receivers=function.receivers,
    )


def _inline_zip(code: InlineCode) -> bytes:
    import io
    import zipfile

    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as made:
        info = zipfile.ZipInfo(code.file_name)
        info.external_attr = 0o644 << 16
        made.writestr(info, code.text)
    return packed.getvalue()
