"""What the service remembers outlives it, and who has to follow changes hears of them."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lambda_wire import ROLE, zipped

from harness.api.code_store import CodeStore, zip_of
from harness.api.faults import Fault
from harness.api.model import CREATING, Alias, FunctionRecord, FunctionVersion
from harness.api.operations import perform
from harness.api.registry import Registry
from harness.errors import InvalidFunction, InvalidInput
from harness.function import DirectoryCode, Function, InlineCode, ZipCode
from harness.store import Store


@contextlib.contextmanager
def opened(folder: Path, preparer: Any = None, **options: Any) -> Iterator[Registry]:
    with (
        Store(folder / "runs.sqlite3") as store,
        CodeStore(folder / "code") as code_store,
        Registry(store, code_store, **options) as registry,
    ):
        if preparer is not None:
            registry.preparer = preparer
        registry.resume()
        yield registry


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with opened(tmp_path) as registry:
        yield registry


class Heard:
    """A listener that keeps what it was told."""

    def __init__(self) -> None:
        self.told: queue.Queue[tuple[Any, ...]] = queue.Queue()

    def version_changed(self, version: FunctionVersion) -> None:
        self.told.put(("version_changed", version.version, version.configuration.memory_mb))

    def __getattr__(self, what: str) -> Any:
        if what.startswith("_"):
            raise AttributeError(what)
        return lambda *found: self.told.put((what, *found))

    def next(self) -> tuple[Any, ...]:
        return self.told.get(timeout=60)


def creation(name: str = "f", **fields: Any) -> dict[str, Any]:
    made = {"Runtime": "python3.13", "Handler": "app.handler", "Role": ROLE, "Code": {"ZipFile": zipped()}}
    return {"FunctionName": name, **made, **fields}


def ready(registry: Registry, name: str = "f") -> FunctionRecord:
    """Once nothing of the function is being prepared any more."""
    while not registry.function(name).latest.status.settled:
        os.sched_yield()
    return registry.function(name)


def make(registry: Registry, name: str = "f", **fields: Any) -> FunctionRecord:
    perform("CreateFunction", creation(name, **fields), registry)
    return ready(registry, name)


def change(registry: Registry, **fields: Any) -> FunctionRecord:
    perform("UpdateFunctionConfiguration", {"FunctionName": "f", **fields}, registry)
    return ready(registry)


def furnished(registry: Registry) -> FunctionRecord:
    """A function with one of everything."""
    f = {"FunctionName": "f"}
    layer = {"LayerName": "l", "Content": {"ZipFile": zipped("x", "shared.py")}}
    arn = perform("PublishLayerVersion", layer, registry)["LayerVersionArn"]
    make(registry, Layers=[arn], Environment={"Variables": {"A1": "b"}}, Tags={"k": "v"}, Publish=True)
    change(registry, MemorySize=512, VpcConfig={"SubnetIds": ["subnet-1"]})
    perform("PublishVersion", f, registry)
    routing = {"AdditionalVersionWeights": {"2": 0.5}}
    perform("CreateAlias", f | {"Name": "live", "FunctionVersion": "1", "RoutingConfig": routing}, registry)
    perform("CreateFunctionUrlConfig", f | {"AuthType": "NONE", "Cors": {"AllowOrigins": ["*"]}}, registry)
    permission = {"StatementId": "s", "Action": "lambda:InvokeFunction", "Principal": "*"}
    perform("AddPermission", f | permission, registry)
    perform("PutFunctionConcurrency", f | {"ReservedConcurrentExecutions": 5}, registry)
    provisioned = {"Qualifier": "2", "ProvisionedConcurrentExecutions": 1}
    perform("PutProvisionedConcurrencyConfig", f | provisioned, registry)
    perform("PutFunctionEventInvokeConfig", f | {"MaximumRetryAttempts": 1}, registry)
    return registry.function("f")


def test_everything_about_a_function_survives_a_restart(tmp_path: Path) -> None:
    with opened(tmp_path) as registry:
        before = furnished(registry)
        layers = registry.layers()
    with opened(tmp_path) as registry:
        after = registry.function("f")
        assert replace(after, serving=None) == replace(before, serving=None)
        assert after.serves == after.latest == before.latest
        assert registry.layers() == layers
        assert zipped() == after.latest.package.path.read_bytes()  # type: ignore[union-attr]
        assert registry.provisioned() == [("f", "2", before.provisioned["2"])]


def test_a_change_is_in_the_store_before_it_is_answered(registry: Registry, tmp_path: Path) -> None:
    make(registry)
    with Store(tmp_path / "runs.sqlite3") as other:
        perform("PutFunctionConcurrency", {"FunctionName": "f", "ReservedConcurrentExecutions": 7}, registry)
        assert other.documents("functions")["f"]["reserved"] == 7
        perform("DeleteFunction", {"FunctionName": "f"}, registry)
        assert other.documents("functions") == {}


def test_what_was_pending_is_prepared_by_the_next_service(tmp_path: Path) -> None:
    with opened(tmp_path) as registry:
        made = make(registry)
        # As it lies in the store when the service is killed in the middle.
        registry._store.put_document("functions", "f", _pending(made).as_dict())
    prepared: queue.Queue[str] = queue.Queue()
    with opened(tmp_path, preparer=lambda version: prepared.put(version.version)) as registry:
        assert prepared.get(timeout=60) == "$LATEST"
        assert ready(registry).latest.state == "Active"
        assert registry.resolve("f").version.version == "$LATEST"


def _pending(record: FunctionRecord) -> FunctionRecord:
    latest = replace(record.latest, status=CREATING)
    return replace(record, latest=latest, serving=None)


def test_version_numbers_are_not_used_again_after_a_restart(tmp_path: Path) -> None:
    with opened(tmp_path) as registry:
        make(registry, Publish=True)
        perform("DeleteFunction", {"FunctionName": "f"}, registry)
    with opened(tmp_path) as registry:
        assert registry.functions() == []
        assert make(registry, Publish=True).versions.keys() == {"2"}


def test_code_that_nobody_refers_to_is_removed(registry: Registry) -> None:
    def there() -> set[str]:
        return {path.name for path in registry.code_store.directory.glob("*.zip")}

    make(registry)
    first = there()
    perform("UpdateFunctionCode", {"FunctionName": "f", "ZipFile": zipped("x = 2")}, registry)
    ready(registry)
    assert len(there()) == 1
    assert there() != first
    perform("PublishVersion", {"FunctionName": "f"}, registry)
    perform("UpdateFunctionCode", {"FunctionName": "f", "ZipFile": zipped("x = 3")}, registry)
    ready(registry)
    assert len(there()) == 2
    make(registry, "g", Code={"ZipFile": zipped("x = 3")})
    perform("DeleteFunction", {"FunctionName": "f"}, registry)
    assert len(there()) == 1
    perform("UpdateFunctionCode", {"FunctionName": "g", "ZipFile": zipped("x = 4"), "DryRun": True}, registry)
    assert len(there()) == 1


def test_what_a_killed_service_left_in_the_code_directory_is_removed(tmp_path: Path) -> None:
    with opened(tmp_path) as registry:
        make(registry)
    code = tmp_path / "code"
    (code / f"{'a' * 64}.zip").write_bytes(b"x")
    (code / ("b" * 64)).mkdir()
    (code / "incoming-1").mkdir()
    (code / "something-else").touch()
    with opened(tmp_path):
        names = {path.name for path in code.iterdir()}
    assert "something-else" in names
    assert not names & {f"{'a' * 64}.zip", "b" * 64, "incoming-1"}
    assert len(names) == 3  # it, the lock, and the function's own


def test_two_services_do_not_share_a_code_directory(tmp_path: Path) -> None:
    with (
        CodeStore(tmp_path / "code"),
        pytest.raises(InvalidInput, match="another service keeps its functions"),
    ):
        CodeStore(tmp_path / "code")
    CodeStore(tmp_path / "code").close()


def test_code_is_not_removed_while_somebody_is_about_to_refer_to_it(registry: Registry) -> None:
    with registry.admitted(zipped(), operation="CreateFunction") as stored:
        registry.code_store.remove({stored.sha256})
        registry.code_store.remove_all_but(set())
        assert stored.path.exists()
    assert not stored.path.exists()


def test_an_alias_draws_versions_by_their_weights(registry: Registry) -> None:
    make(registry, Publish=True)
    change(registry, MemorySize=512)
    perform("PublishVersion", {"FunctionName": "f"}, registry)

    def drawn(weight: float) -> Counter[str]:
        alias = Alias(name="live", version="1", weights={"2": weight})
        registry.change("f", lambda record: replace(record, aliases={"live": alias}))
        return Counter(registry.resolve("f", "live").version.version for _ in range(4000))

    assert drawn(0.0) == {"1": 4000}
    assert drawn(1.0) == {"2": 4000}
    assert 800 < drawn(0.25)["2"] < 1200  # seven standard deviations of 27 to each side
    target = registry.resolve("f:live")
    assert target.alias == "live"
    assert target.invoked_arn == "arn:aws:lambda:us-east-1:000000000000:function:f:live"


def test_a_request_for_what_is_not_ready_is_refused(tmp_path: Path) -> None:
    go = threading.Event()
    try:
        with opened(tmp_path, preparer=lambda _: go.wait(60) and None) as registry:
            perform("CreateFunction", creation(), registry)
            with pytest.raises(Fault, match="currently in the following state: Pending") as caught:
                registry.resolve("f")
            assert (caught.value.code, caught.value.status) == ("ResourceConflictException", 409)
            go.set()
            ready(registry)
            assert registry.resolve("f").invoked_arn.endswith(":function:f")
    finally:
        go.set()


def test_listeners_hear_what_changed_and_nothing_else(registry: Registry) -> None:
    heard = Heard()
    registry.subscribe(heard)
    f = {"FunctionName": "f"}
    make(registry)
    assert heard.next() == ("version_changed", "$LATEST", 128)
    perform("TagResource", {"Resource": registry.arn("f"), "Tags": {"a": "b"}}, registry)
    permission = {"StatementId": "s", "Action": "lambda:InvokeFunction", "Principal": "*"}
    perform("AddPermission", f | permission, registry)
    change(registry, MemorySize=256)
    assert heard.next() == ("version_changed", "$LATEST", 256)
    perform("PublishVersion", f, registry)
    assert heard.next() == ("version_changed", "1", 256)
    perform("PutFunctionConcurrency", f | {"ReservedConcurrentExecutions": 3}, registry)
    assert heard.next() == ("concurrency_changed", "f")
    perform("CreateAlias", f | {"Name": "live", "FunctionVersion": "1"}, registry)
    provisioned = {"Qualifier": "live", "ProvisionedConcurrentExecutions": 1}
    perform("PutProvisionedConcurrencyConfig", f | provisioned, registry)
    assert heard.next() == ("provisioned_changed", "f", "live")
    change(registry, MemorySize=512)
    assert heard.next() == ("version_changed", "$LATEST", 512)
    perform("PublishVersion", f, registry)
    assert heard.next() == ("version_changed", "2", 512)
    # The alias points elsewhere now, and its sandboxes have to follow.
    perform("UpdateAlias", f | {"Name": "live", "FunctionVersion": "2"}, registry)
    assert heard.next() == ("provisioned_changed", "f", "live")
    perform("DeleteFunction", f | {"Qualifier": "1"}, registry)
    assert heard.next() == ("version_deleted", "f", "1")
    perform("DeleteFunction", f, registry)
    assert heard.next() == ("function_deleted", "f")


def test_sandboxes_stay_as_long_as_code_and_configuration_do(registry: Registry) -> None:
    before = make(registry).latest
    permission = {"FunctionName": "f", "StatementId": "s", "Action": "lambda:InvokeFunction", "Principal": "*"}
    perform("AddPermission", permission, registry)
    after = registry.resolve("f").version
    assert after.deployment_id == before.deployment_id
    assert after.revision_id != before.revision_id
    assert change(registry, MemorySize=256).latest.deployment_id != before.deployment_id


def test_one_of_many_changes_at_once_is_lost_in_none(registry: Registry) -> None:
    make(registry)
    threads = [
        threading.Thread(
            target=perform,
            args=("TagResource", {"Resource": registry.arn("f"), "Tags": {f"k{number}": "v"}}, registry),
        )
        for number in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(registry.function("f").tags) == 20


def test_one_name_is_created_once_by_many_at_once(registry: Registry) -> None:
    ended: queue.Queue[str] = queue.Queue()

    def create() -> None:
        try:
            perform("CreateFunction", creation(), registry)
            ended.put("made")
        except Fault as fault:
            ended.put(fault.code)

    threads = [threading.Thread(target=create) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(ended.queue) == {"made": 1, "ResourceConflictException": 7}
    assert ready(registry).latest.package.path.exists()  # type: ignore[union-attr]


def function(tmp_path: Path, **fields: Any) -> Function:
    folder = tmp_path / "source"
    folder.mkdir(exist_ok=True)
    (folder / "app.py").write_text("def handler(e, c): return e")
    given = {"name": "f", "runtime": "python3.13", "handler": "app.handler", "source": str(folder)}
    return Function(**{**given, "code": DirectoryCode(path=folder), **fields})


def test_a_function_of_the_command_line_is_served_in_place(registry: Registry, tmp_path: Path) -> None:
    wanted = function(tmp_path, memory_mb=256, environment={"A1": "b"}, receivers=("xray",), image="an:image")
    registry.deploy(wanted)
    ready(registry)
    got = registry.resolve("f").version
    assert replace(got.function(), source=wanted.source) == wanted
    assert perform("GetFunction", {"FunctionName": "f"}, registry)["Configuration"]["MemorySize"] == 256
    registry.deploy(replace(wanted, memory_mb=512))
    ready(registry)
    assert registry.resolve("f").version.configuration.memory_mb == 512


def test_zips_and_inline_code_of_the_command_line_go_to_the_code_store(registry: Registry, tmp_path: Path) -> None:
    path = tmp_path / "package.zip"
    path.write_bytes(zipped())
    inline = InlineCode(text="def handler(e, c): return 1", file_name="index.py")
    for code in (ZipCode(path=path), inline):
        registry.deploy(function(tmp_path, code=code))
        ready(registry)
        kept = registry.resolve("f").version.function().code
        assert isinstance(kept, ZipCode)
        assert kept.path.parent == registry.code_store.directory


def test_the_account_limit_of_a_small_account_is_kept_free(tmp_path: Path) -> None:
    with opened(tmp_path, account_concurrency=10) as registry:
        make(registry)
        with pytest.raises(Fault, match=r"below its minimum value of \[10\]"):
            perform("PutFunctionConcurrency", {"FunctionName": "f", "ReservedConcurrentExecutions": 1}, registry)


def test_a_function_as_json_holds_no_path_of_the_code_store(registry: Registry) -> None:
    document = json.dumps(furnished(registry).as_dict())
    assert str(registry.code_store.directory) not in document


def test_the_zip_of_a_directory_is_the_same_for_the_same_content(tmp_path: Path) -> None:
    source = function(tmp_path).code
    assert isinstance(source, DirectoryCode)
    before = zip_of(source.path)
    os.utime(source.path / "app.py", (1, 1))
    assert zip_of(source.path) == before
    (source.path / "app.py").write_text("x = 2")
    assert zip_of(source.path) != before
    os.truncate(source.path / "app.py", 262_144_001)
    with pytest.raises(InvalidFunction, match="and Lambda takes 262,144,000"):
        zip_of(source.path)
    with pytest.raises(InvalidFunction, match="cannot be read"):
        zip_of(source.path / "missing")
