"""Requests reach sandboxes as on Lambda: within what is reserved, in the version that was asked for, and each is kept."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes import ENGINE_TROUBLE, MIB, FakeCell, event
from fakes_service import FakeRegistry, FakeStands, until

from harness.api.destinations import Destinations
from harness.api.dispatch import Concurrency, Dispatcher
from harness.api.queue import COLLECTION
from harness.context import RequestContext
from harness.debugger import Debug
from harness.errors import EngineError, InvalidFunction
from harness.invocation import Invocation, Outcome
from harness.store import RunState, Store


class Service:
    """A dispatcher over fakes, and a client's view of it."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.registry = FakeRegistry()
        self.stands = FakeStands()
        self.said: list[str] = []
        self.callers = ThreadPoolExecutor(32, thread_name_prefix="caller")
        self.dispatcher: Dispatcher

    @contextmanager
    def running(self, **settings: Any) -> Iterator[Dispatcher]:
        settings = {"memory_bytes": 64 * 1024 * MIB, "retry_scale": 1e-4} | settings
        with Dispatcher(
            self.stands.ground,
            self.registry.real,
            self.store,
            open_stand=self.stands,
            progress=self.said.append,
            **settings,
        ) as self.dispatcher:
            yield self.dispatcher
        assert all(not stand.open for stand in self.stands.made)
        assert all(cell.closed for cell in self.stands.cells if cell.starts), "a sandbox was left behind"

    def invoke(self, name: str = "probe", qualifier: str | None = None, do: str = "succeed") -> Invocation:
        target = self.registry.resolve(name, qualifier)
        return self.dispatcher.invoke(target, event(do), RequestContext(invoked_arn=target.invoked_arn))

    def hold(self, name: str = "probe", qualifier: str | None = None) -> tuple[threading.Event, Future[Invocation]]:
        """A request that lasts until its event is set."""
        begun, go = threading.Event(), threading.Event()
        make_cell, stands = FakeCell, self.stands

        def meanwhile() -> None:
            begun.set()
            assert go.wait(10)

        cells = len(stands.cells)
        stands.make_cell = make_cell
        for stand in stands.made:
            stand.make_cell = lambda: FakeCell(while_requesting=meanwhile)
        stands.make_cell = lambda: FakeCell(while_requesting=meanwhile)
        future = self.callers.submit(self.invoke, name, qualifier)
        assert begun.wait(10), future
        assert len(stands.cells) == cells + 1
        stands.make_cell = FakeCell
        for stand in stands.made:
            stand.make_cell = FakeCell
        return go, future

    def records(self, name: str = "probe") -> list[Invocation]:
        runs = self.store.list(kind="serve", function=name)
        return [record for run in runs for record in self.store.invocations(run.run_id)]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with Store(tmp_path / "runs.sqlite3") as store:
        service = Service(store)
        service.registry.add("probe")
        yield service
        service.callers.shutdown(wait=True)


def reason(record: Invocation) -> str:
    assert record.outcome is Outcome.THROTTLED
    return str(record.response["Reason"])


# -- requests -----------------------------------------------------------------------------------------------------------


def test_requests_share_a_sandbox_and_every_record_is_stored_at_once(service: Service) -> None:
    with service.running():
        first = service.invoke()
        assert service.records() == [first]
        second = service.invoke()
        assert (second.sandbox_id, second.sequence) == (first.sandbox_id, 2)
        [run] = service.store.list(kind="serve")
        assert (run.function, run.state, run.invocations) == ("probe", RunState.RUNNING, 2)
    assert service.store.list()[0].state is RunState.COMPLETE
    assert service.dispatcher.statistics().invocations == 2


def test_a_record_bears_the_id_of_its_request(service: Service) -> None:
    with service.running():
        context = RequestContext()
        record = service.dispatcher.invoke(service.registry.resolve("probe"), event(), context)
        assert record.request_id == context.request_id


def test_versions_have_sandboxes_of_their_own(service: Service) -> None:
    service.registry.publish("probe", "1")
    service.registry.alias("probe", "live", "1")
    with service.running():
        latest, published = service.invoke(), service.invoke(qualifier="1")
        assert latest.sandbox_id != published.sandbox_id
        assert service.invoke(qualifier="live").sandbox_id == published.sandbox_id
        assert {view.version for view in service.dispatcher.sandboxes()} == {"$LATEST", "1"}


def test_a_store_that_is_full_costs_no_answer(service: Service) -> None:
    with service.running():
        service.invoke()
        service.store._db.execute("DROP TABLE invocations")
        assert service.invoke().outcome is Outcome.SUCCESS
        assert "could not be stored" in service.said[-1]


# -- concurrency --------------------------------------------------------------------------------------------------------


def test_reserved_concurrency_counts_over_versions_and_aliases(service: Service) -> None:
    service.registry.publish("probe", "1")
    service.registry.reserve("probe", 2)
    with service.running():
        held = [service.hold(), service.hold(qualifier="1")]
        refused = service.invoke()
        assert reason(refused) == "ReservedFunctionConcurrentInvocationLimitExceeded"
        for go, future in held:
            go.set()
            assert future.result(10).outcome is Outcome.SUCCESS
        assert service.invoke().outcome is Outcome.SUCCESS
        assert refused not in service.records(), "nothing ran: it is counted and not kept"
        assert service.dispatcher.statistics().throttled == 1


def test_idle_sandboxes_from_before_do_not_lift_a_reservation(service: Service) -> None:
    with service.running():
        for go, future in [service.hold(), service.hold(), service.hold()]:
            go.set()
            future.result(10)
        service.registry.reserve("probe", 0)
        assert reason(service.invoke()) == "ReservedFunctionConcurrentInvocationLimitExceeded"
        service.registry.reserve("probe", None)
        assert service.invoke().outcome is Outcome.SUCCESS


def test_with_nothing_reserved_a_throttle_needs_no_sandbox_to_be_told(service: Service) -> None:
    service.registry.reserve("probe", 0)
    with service.running():
        assert reason(service.invoke()).startswith("Reserved")
    assert service.stands.made == []


def test_what_others_have_reserved_is_not_the_accounts() -> None:
    found = Concurrency(10)
    found.reserve("mine", 7)
    assert [found.enter("other") for _ in range(3)] == [None] * 3
    refused = found.enter("another")
    assert refused is not None
    assert refused[0] == "ConcurrentInvocationLimitExceeded"
    assert [found.enter("mine") for _ in range(7)] == [None] * 7
    refused = found.enter("mine")
    assert refused is not None
    assert refused[0] == "ReservedFunctionConcurrentInvocationLimitExceeded"
    found.leave("other")
    assert found.enter("another") is None
    assert found.in_flight == 10


def test_provisioned_concurrency_is_its_functions_own() -> None:
    found = Concurrency(5)
    found.provision("mine", 2)
    assert [found.enter("other") for _ in range(3)] == [None] * 3
    assert found.enter("other") is not None
    assert [found.enter("mine") for _ in range(2)] == [None] * 2
    assert found.enter("mine") is not None


def test_memory_is_shared_by_all_functions(service: Service) -> None:
    service.registry.add("other")
    with service.running(memory_bytes=2 * 272 * MIB):
        go, future = service.hold()
        service.invoke("other")
        [idle] = [view for view in service.dispatcher.sandboxes() if view.function == "other"]
        assert (idle.busy, idle.phase) == (False, "Frozen")
        second_go, second = service.hold()
        assert {view.function for view in service.dispatcher.sandboxes()} == {"probe"}
        assert reason(service.invoke("other")) == "ConcurrentInvocationLimitExceeded"
        go.set()
        second_go.set()
        future.result(10)
        second.result(10)


def test_a_debugger_has_one_sandbox_of_all_functions(service: Service) -> None:
    service.registry.add("other")
    service.registry.provide("other", "$LATEST", 1)
    with service.running(debug=Debug(port=5678)):
        service.invoke()
        service.invoke("other")
        assert [view.function for view in service.dispatcher.sandboxes()] == ["other"]
        go, future = service.hold()
        assert service.invoke("other").outcome is Outcome.THROTTLED
        go.set()
        future.result(10)


# -- changes ------------------------------------------------------------------------------------------------------------


def test_an_update_drains_the_old_sandboxes(service: Service) -> None:
    with service.running():
        go, future = service.hold()
        service.invoke()
        old = service.stands.made[0]
        service.registry.update("probe", memory_mb=512)
        after = service.invoke()
        assert after.memory_mb == 512
        assert old.open
        go.set()
        assert future.result(10).memory_mb == 256
        until(lambda: not old.open, "the old stand is closed")


def test_an_update_that_is_being_prepared_leaves_requests_alone(service: Service) -> None:
    with service.running() as dispatcher:
        first = service.invoke()
        latest = service.registry.resolve("probe").version
        successor = replace(latest, deployment_id="next")
        dispatcher.prepare(successor)
        assert service.invoke().sandbox_id == first.sandbox_id


def test_a_version_that_cannot_be_prepared_says_why_and_can_be_prepared_later(service: Service) -> None:
    service.stands.trouble.append(InvalidFunction("no such handler"))
    with service.running() as dispatcher:
        version = service.registry.resolve("probe").version
        with pytest.raises(InvalidFunction, match="no such handler"):
            dispatcher.prepare(version)
        dispatcher.prepare(version)
        assert len(service.stands.made) == 1
        service.invoke()
        assert len(service.stands.made) == 1


def test_a_function_that_is_deleted_takes_its_sandboxes_with_it(service: Service) -> None:
    with service.running() as dispatcher:
        service.invoke()
        service.registry.delete("probe")
        until(lambda: not service.stands.made[0].open, "its stand is closed")
        assert dispatcher.sandboxes() == ()


def test_a_version_that_is_deleted_takes_its_sandboxes_with_it(service: Service) -> None:
    service.registry.publish("probe", "1")
    with service.running() as dispatcher:
        service.invoke()
        service.invoke(qualifier="1")
        dispatcher.version_deleted("probe", "1")
        until(lambda: len(dispatcher.sandboxes()) == 1, "one is left")
        assert dispatcher.sandboxes()[0].version == "$LATEST"


def test_what_idles_beyond_the_keep_alive_ends(service: Service) -> None:
    with service.running(keep_alive_s=0.05) as dispatcher:
        service.invoke()
        until(lambda: dispatcher.sandboxes() == (), "it ends")
        assert service.invoke().cold


def test_what_a_late_request_opened_anew_goes_with_the_keep_alive(service: Service) -> None:
    with service.running(keep_alive_s=0.05):
        late = service.registry.resolve("probe")
        service.registry.update("probe", memory_mb=512)
        service.dispatcher.invoke(late, event(), RequestContext())
        until(lambda: not service.stands.made[0].open, "nothing leads to it")


def test_a_change_in_its_directory_gives_a_function_a_new_sandbox(service: Service, tmp_path: Path) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (code / "app.py").write_text("1")
    service.registry.add("local", directory=code)
    with service.running():
        before = service.invoke("local")
        assert service.invoke("local").sandbox_id == before.sandbox_id
        (code / "app.py").write_text("22")
        after = service.invoke("local")
        assert after.cold
        assert after.sandbox_id != before.sandbox_id
        assert any("its code has changed" in line for line in service.said)
        (code / "package").mkdir()
        until(lambda: service.invoke("local").sandbox_id != after.sandbox_id, "the watch has told")


# -- provisioned concurrency ----------------------------------------------------------------------------------------------


def test_provisioned_sandboxes_are_ready_before_requests_come(service: Service) -> None:
    service.registry.publish("probe", "1")
    service.registry.alias("probe", "live", "1")
    with service.running() as dispatcher:
        service.registry.provide("probe", "live", 2)
        until(lambda: dispatcher.provisioned_status("probe", "live").status == "READY", "they are ready")
        assert dispatcher.provisioned_status("probe", "live").available == 2
        assert service.invoke(qualifier="1").phase_init is None
        assert service.invoke().phase_init is not None
        service.registry.provide("probe", "live", 0)
        until(lambda: not any(view.provisioned for view in dispatcher.sandboxes()), "they end")


def test_a_service_that_starts_provisions_what_it_did_before(service: Service) -> None:
    service.registry.publish("probe", "1")
    service.registry.provide("probe", "1", 1)
    with service.running() as dispatcher:
        until(lambda: dispatcher.provisioned_status("probe", "1").status == "READY", "it is ready")


def test_a_provisioned_alias_that_points_elsewhere_moves_its_sandboxes(service: Service) -> None:
    for number in ("1", "2"):
        service.registry.publish("probe", number)
    service.registry.alias("probe", "live", "1")
    with service.running() as dispatcher:
        service.registry.provide("probe", "live", 1)
        until(lambda: dispatcher.provisioned_status("probe", "live").status == "READY", "it is ready")
        service.registry.alias("probe", "live", "2")
        dispatcher.provisioned_changed("probe", "live")
        until(lambda: [view.version for view in dispatcher.sandboxes()] == ["2"], "it has moved")


@pytest.mark.parametrize("where", ["stand", "init"])
def test_why_provisioned_sandboxes_are_not_ready_is_told(service: Service, where: str) -> None:
    service.registry.publish("probe", "1")
    if where == "stand":
        service.stands.trouble.append(InvalidFunction("init: no such image"))
    else:
        service.stands.make_cell = lambda: FakeCell(fail_inits_ahead=1)
    with service.running() as dispatcher:
        service.registry.provide("probe", "1", 1)
        until(lambda: dispatcher.provisioned_status("probe", "1").status == "FAILED", "it fails")
        assert "init" in (dispatcher.provisioned_status("probe", "1").reason or "")


# -- an engine that goes away -------------------------------------------------------------------------------------------


def test_after_an_engine_restart_one_request_fails_and_the_next_ones_work(service: Service) -> None:
    with service.running() as dispatcher:
        held = [service.hold(), service.hold(), service.hold()]
        for go, future in held:
            go.set()
            future.result(10)
        engine: Any = dispatcher._ground.engine
        engine.gone = {view.id for view in dispatcher.sandboxes()}
        for cell in service.stands.cells:
            cell.while_requesting = _raise_gone
        assert service.invoke().outcome is Outcome.ENGINE_ERROR
        assert dispatcher.sandboxes() == ()
        assert service.invoke().outcome is Outcome.SUCCESS


def test_while_the_engine_is_away_requests_fail_and_afterwards_the_stand_is_opened_anew(service: Service) -> None:
    with service.running() as dispatcher:
        service.invoke()
        engine: Any = dispatcher._ground.engine
        engine.away = True
        service.stands.make_cell = lambda: FakeCell(start_trouble=ENGINE_TROUBLE)
        service.registry.update("probe", description="new")
        for _ in range(2):
            with pytest.raises(EngineError, match="went away"):
                service.invoke()
        engine.away = False
        service.stands.make_cell = FakeCell
        assert service.invoke().outcome is Outcome.SUCCESS
        assert len(service.stands.made) == 4


def _raise_gone() -> None:
    from harness.rie import RieGoneError

    raise RieGoneError("connection reset")


def test_a_lost_container_costs_only_its_own_sandbox(service: Service) -> None:
    service.registry.add("other")
    with service.running() as dispatcher:
        other = service.invoke("other")
        assert service.invoke(do="lose").outcome is Outcome.ENGINE_ERROR
        assert service.invoke("other").sandbox_id == other.sandbox_id
        assert len(dispatcher.sandboxes()) == 1


def test_requests_that_are_under_way_when_the_service_ends_do_not_hang(service: Service) -> None:
    begun = threading.Event()

    def until_closed(cell: FakeCell) -> Callable[[], None]:
        def wait() -> None:
            begun.set()
            until(lambda: cell.closed, "it is ended")
            _raise_gone()

        return wait

    def make() -> FakeCell:
        cell = FakeCell()
        cell.while_requesting = until_closed(cell)
        return cell

    service.stands.make_cell = make
    with service.running():
        future = service.callers.submit(service.invoke)
        assert begun.wait(10)
    assert future.result(10).outcome is Outcome.ENGINE_ERROR
    with pytest.raises(EngineError, match="is ending"):
        service.invoke()


@pytest.mark.parametrize("do", ["crash", "succeed"])
def test_a_function_that_the_end_of_the_service_killed_has_not_failed(service: Service, do: str) -> None:
    service.registry.configure("probe", maximum_retry_attempts=0)
    with service.running() as dispatcher:
        begun, go = threading.Event(), threading.Event()

        def meanwhile() -> None:
            begun.set()
            assert go.wait(10)

        service.stands.make_cell = lambda: FakeCell(while_requesting=meanwhile)
        context = RequestContext()
        dispatcher.enqueue(service.registry.resolve("probe"), event(do), context)
        assert begun.wait(10)
        dispatcher._closed.set()
        dispatcher.queue.stop()
        go.set()
        until(lambda: not dispatcher.queue._running, "the attempt is over")
        dispatcher._closed.clear()
    waiting = service.store.documents(COLLECTION)
    [record] = service.records()
    if do == "crash":
        # The next service makes the attempt again.
        assert [each["attempts"] for each in waiting.values()] == [0]
        assert (record.outcome, record.error_type, record.report) == (Outcome.ENGINE_ERROR, "SandboxGone", "")
    else:
        assert waiting == {}
        assert record.outcome is Outcome.SUCCESS


# -- asynchronous invocations -------------------------------------------------------------------------------------------


def test_an_accepted_event_is_in_the_store_and_runs(service: Service) -> None:
    with service.running() as dispatcher:
        go, future = service.hold()
        context = RequestContext()
        service.registry.reserve("probe", 1)
        dispatcher.enqueue(service.registry.resolve("probe"), event(), context)
        assert list(service.store.documents(COLLECTION)) == [context.request_id]
        go.set()
        future.result(10)
        assert dispatcher.queue.wait_until_empty(10)
        assert context.request_id in [record.request_id for record in service.records()]


def test_a_failure_is_handed_on_to_another_function(service: Service, tmp_path: Path) -> None:
    rescue = service.registry.add("rescue")
    service.registry.configure("probe", on_failure=rescue.arn)
    service.stands.make_cell = _Obliging
    with service.running() as dispatcher:
        dispatcher.enqueue(service.registry.resolve("probe"), event("raise"), RequestContext())
        until(lambda: len(service.records("probe")) == 3, "two more attempts")
        until(lambda: service.records("rescue"), "the other function runs")
        assert dispatcher.queue.wait_until_empty(10)


def test_functions_that_hand_on_in_a_circle_are_stopped(service: Service, tmp_path: Path) -> None:
    probe = service.registry.resolve("probe").version
    service.registry.configure("probe", on_success=probe.arn)
    with service.running() as dispatcher:
        service.stands.make_cell = _Obliging
        dispatcher.enqueue(service.registry.resolve("probe"), event(), RequestContext())
        until(lambda: any("loop" in line for line in service.said), "it is stopped")
        assert dispatcher.queue.wait_until_empty(10)
        assert len(service.records()) == 17


class _Obliging(FakeCell):
    """Succeeds where the event does not say what to do."""

    def request(self, event: bytes, *, timeout_s: float) -> Any:
        return super().request(event if b'"do"' in event[:6] else b'{"do": "succeed"}', timeout_s=timeout_s)


def test_destinations_lie_beside_the_store(service: Service, tmp_path: Path) -> None:
    arn = "arn:aws:sqs:us-east-1:000000000000:done"
    service.registry.configure("probe", on_success=arn)
    with service.running() as dispatcher:
        dispatcher.enqueue(service.registry.resolve("probe"), event(), RequestContext())
        assert dispatcher.queue.wait_until_empty(10)
    path = Destinations(tmp_path / "destinations", lambda *_: None).path(arn)
    assert json.loads(path.read_text())["requestContext"]["condition"] == "Success"


def test_nothing_is_left_running(service: Service) -> None:
    before = {each.name for each in threading.enumerate()}
    with service.running():
        service.invoke()
        service.dispatcher.enqueue(service.registry.resolve("probe"), event(), RequestContext())
    assert {each.name for each in threading.enumerate()} <= before | {"caller_0"}
