"""The dispatcher over real containers: what the service does between its operations and the sandboxes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import Lab, until

from harness.api.code_store import CodeStore
from harness.api.dispatch import Dispatcher
from harness.api.model import LATEST, EventInvokeConfig, ProvisionedConfig
from harness.api.registry import Registry
from harness.context import RequestContext
from harness.function import Overrides, load
from harness.invocation import Invocation, Outcome
from harness.stand import Ground
from harness.store import Store

SOURCE = """
    import os, time
    BORN = time.time_ns()
    def handler(event, context):
        time.sleep(event.get("sleep", 0))
        if event.get("raise"):
            raise ValueError("boom")
        return {"born": BORN, "id": context.aws_request_id, "arn": context.invoked_function_arn,
                "how": os.environ["AWS_LAMBDA_INITIALIZATION_TYPE"], "memory": context.memory_limit_in_mb}
"""


class Service:
    """A registry and a dispatcher over the engine."""

    def __init__(self, registry: Registry, dispatcher: Dispatcher, store: Store, lab: Lab) -> None:
        self.registry, self.dispatcher, self.store, self.lab = registry, dispatcher, store, lab
        self.folder: Path

    def deploy(self, name: str, **settings: Any) -> None:
        if not hasattr(self, "folder"):
            self.folder = self.lab.function({"app.py": SOURCE})
        overrides = Overrides(**{"runtime": "python3.13", "handler": "app.handler", "name": name, **settings})
        self.registry.deploy(load(str(self.folder), overrides))
        until(lambda: self.registry.function(name).latest.status.settled, f"{name} is ready")
        assert self.registry.function(name).latest.status.update == "Successful"

    def invoke(self, name: str, qualifier: str | None = None, **event: Any) -> Invocation:
        target = self.registry.resolve(name, qualifier)
        context = RequestContext(invoked_arn=target.invoked_arn)
        record = self.dispatcher.invoke(target, json.dumps(event).encode(), context)
        assert record.request_id == context.request_id
        return record


@contextmanager
def serving(lab: Lab, folder: Path, **settings: Any) -> Iterator[Service]:
    with (
        Ground() as ground,
        Store(folder / "runs.sqlite3") as store,
        Registry(store, CodeStore(folder / "code")) as registry,
        Dispatcher(ground, registry, store, pull=False, **settings) as dispatcher,
    ):
        registry.preparer = dispatcher.prepare
        registry.provisioned_status = dispatcher.provisioned_status
        yield Service(registry, dispatcher, store, lab)


@pytest.fixture
def service(lab: Lab, tmp_path: Path, host: str) -> Iterator[Service]:
    with serving(lab, tmp_path, retry_scale=1e-3) as service:
        yield service
    assert lab.containers() == set(), "the service left containers behind"


def test_requests_scale_out_come_back_to_warm_sandboxes_and_an_update_drains_them(service: Service) -> None:
    service.deploy("probe")
    with ThreadPoolExecutor(2) as callers:
        burst = list(callers.map(lambda _: service.invoke("probe", sleep=1), range(2)))
    assert len({each.response["born"] for each in burst}) == 2
    warm = service.invoke("probe")
    assert warm.response["born"] in {each.response["born"] for each in burst}
    assert warm.response["id"] == warm.request_id
    assert warm.response["arn"].endswith(":function:probe")
    assert service.store.list(kind="serve", function="probe")[0].invocations == 3
    service.deploy("probe", memory_mb=256)
    assert service.invoke("probe").response["memory"] == "256"
    until(lambda: len(service.lab.containers()) == 1, "the old sandboxes are gone")


def test_an_edit_is_seen_by_the_next_invocation(service: Service) -> None:
    service.deploy("probe")
    assert service.invoke("probe").outcome is Outcome.SUCCESS
    (service.folder / "app.py").write_text("def handler(event, context):\n    return 'edited'\n")
    edited = service.invoke("probe")
    assert (edited.response, edited.cold) == ("edited", True)


def test_provisioned_sandboxes_are_initialised_before_the_request(service: Service) -> None:
    service.deploy("probe")
    version = replace(service.registry.function("probe").latest, version="1")
    wanted = ProvisionedConfig(requested=1, modified_at="")
    service.registry.change("probe", lambda one: replace(one, versions={"1": version}, provisioned={"1": wanted}))
    until(lambda: service.dispatcher.provisioned_status("probe", "1").status != "IN_PROGRESS", "it is ready")
    assert service.dispatcher.provisioned_status("probe", "1").status == "READY"
    with ThreadPoolExecutor(2) as callers:
        records = list(callers.map(lambda _: service.invoke("probe", "1", sleep=1), range(2)))
    assert sorted(each.response["how"] for each in records) == ["on-demand", "provisioned-concurrency"]
    [ahead] = [each for each in records if each.response["how"] == "provisioned-concurrency"]
    assert ahead.phase_init is None


def test_after_all_containers_were_lost_one_request_fails_and_the_next_works(service: Service) -> None:
    service.deploy("probe")
    with ThreadPoolExecutor(2) as callers:
        list(callers.map(lambda _: service.invoke("probe", sleep=1), range(2)))
    for container in service.lab.containers():
        service.lab.engine.docker.containers.get(container).remove(force=True)
    assert service.invoke("probe").outcome is Outcome.ENGINE_ERROR
    assert service.dispatcher.sandboxes() == ()
    assert service.invoke("probe").outcome is Outcome.SUCCESS


def test_functions_share_the_memory_that_there_is(lab: Lab, tmp_path: Path, host: str) -> None:
    with serving(lab, tmp_path, memory_bytes=200 * 1024 * 1024) as service:
        for name in ("one", "other"):
            service.deploy(name, memory_mb=128)
        first, second = service.invoke("one"), service.invoke("other")
        assert [view.id for view in service.dispatcher.sandboxes()] == [second.sandbox_id]
        assert service.invoke("one").sandbox_id != first.sandbox_id


def test_an_asynchronous_failure_is_tried_again_and_told(service: Service, tmp_path: Path) -> None:
    service.deploy("probe")
    config = EventInvokeConfig(maximum_retry_attempts=1, on_failure="arn:aws:sqs:us-east-1:000000000000:failures")
    service.registry.change("probe", lambda one: replace(one, event_invoke={LATEST: config}))
    target, context = service.registry.resolve("probe"), RequestContext()
    service.dispatcher.enqueue(target, b'{"raise": true}', context)
    assert service.dispatcher.queue.wait_until_empty(30)
    [told] = (tmp_path / "destinations" / "sqs" / "failures.jsonl").read_text().splitlines()
    found = json.loads(told)
    assert found["requestContext"]["requestId"] == context.request_id
    assert found["requestContext"]["approximateInvokeCount"] == 2
    assert found["responsePayload"]["errorType"] == "ValueError"
