"""The feed behind the page: what it keeps, what it tells, and that it makes nobody wait."""

from __future__ import annotations

import asyncio
import json
import math
import re
import threading
import typing
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from fakes import function
from fakes_page import MIB, PlayedSandbox, PlayedService, Served, record
from test_reports_document import sweep_document

from harness import lifecycle
from harness.api import feed as feed_module
from harness.api.feed import Feed, TooManyPages, card
from harness.document import describe_function
from harness.invocation import Outcome
from harness.store import Store

HOST = sweep_document()["host"]
T = typing.TypeVar("T")


@pytest.fixture
def feed() -> Iterator[Feed]:
    with Feed(sample_s=0.01) as made:
        yield made


async def soon(step: typing.Awaitable[T]) -> T:
    return await asyncio.wait_for(step, timeout=20)


def visit(feed: Feed, then: Callable[[Any], typing.Awaitable[T]]) -> T:
    """Be a page: ``then`` gets a function that awaits the next frame, as its name and its data."""

    async def stay() -> T:
        frames = feed.frames()

        async def following() -> tuple[str, Any]:
            frame = await soon(frames.__anext__())
            data = frame["data"]
            return frame["event"], json.loads(data) if frame["event"] != "reconnect" else data

        try:
            return await then(following)
        finally:
            await frames.aclose()

    return asyncio.run(stay())


def until_event(kind: str) -> Callable[[Any], typing.Awaitable[dict[str, Any]]]:
    async def wait(following: Any) -> dict[str, Any]:
        while True:
            name, data = await following()
            found = [one for one in data if one["type"] == kind] if name == "events" else []
            if found:
                return cast("dict[str, Any]", found[0])

    return wait


def no_sampler() -> bool:
    return all(thread.name != "feed-memory" for thread in threading.enumerate())


def wait_until(condition: Callable[[], object]) -> None:
    gate = threading.Event()
    for _ in range(2000):
        if condition():
            return
        gate.wait(0.01)
    pytest.fail("waited in vain")


# What a page gets


def test_every_phase_of_a_sandbox_has_a_name_for_the_page(feed: Feed) -> None:
    assert set(feed_module._PHASES) == set(typing.get_args(lifecycle.Phase))


def test_a_page_gets_the_snapshot_first_and_then_what_happens(feed: Feed) -> None:
    box = PlayedSandbox(function(name="orders"), feed)

    async def page(following: Any) -> None:
        name, snapshot = await following()
        assert name == "snapshot"
        assert [one["id"] for one in snapshot["sandboxes"]] == [box.id]
        assert [one["name"] for one in snapshot["functions"]] == ["orders"], "sandboxes make their function known"
        box.enter(lifecycle.Initialising())
        found = await until_event("sandbox")(following)
        assert (found["id"], found["phase"], found["memory_mb"]) == (box.id, "initialising", 256)

    visit(feed, page)


def test_nothing_is_missing_or_told_twice_between_the_snapshot_and_the_events(feed: Feed) -> None:
    played = function()
    done = threading.Event()

    def invoke() -> None:
        for _ in range(500):
            feed.recorded(record(played))
        done.set()

    async def page(following: Any) -> None:
        writer = threading.Thread(target=invoke)
        writer.start()
        _, snapshot = await following()
        counted = snapshot["totals"]["outcomes"].get("success", 0)
        while counted < 500:
            name, data = await following()
            assert name == "events"
            counted += sum(one["type"] == "report" for one in data)
        writer.join()
        assert counted == 500

    visit(feed, page)
    assert done.is_set()


def test_a_page_that_comes_back_sees_what_a_sandbox_did_before(feed: Feed) -> None:
    box = PlayedSandbox(function(), feed)
    for phase in (
        lifecycle.Initialising(),
        lifecycle.Invoking(warm=0),
        lifecycle.Idle(warm=1),
        lifecycle.Frozen(warm=1),
    ):
        box.enter(phase)
    (told,) = feed.snapshot()["sandboxes"]
    assert [name for _, name in told["phases"]] == ["created", "started", "initialising", "invoking", "idle", "frozen"]
    moments = [at for at, _ in told["phases"]]
    assert moments == sorted(moments)


def test_a_sandbox_that_is_shut_down_leaves_the_snapshot(feed: Feed) -> None:
    box = PlayedSandbox(function(), feed)
    box.enter(lifecycle.ShutDown())
    box.enter(lifecycle.ShutDown())
    assert feed.snapshot()["sandboxes"] == []


def test_the_kill_stays_on_a_sandbox_until_its_runtime_begins_anew(feed: Feed) -> None:
    box = PlayedSandbox(function(memory_mb=128), feed)
    box.sequence = 1
    box.enter(lifecycle.Invoking(warm=0))
    box.enter(lifecycle.Broken())
    box.enter(lifecycle.FrozenBroken())
    box.tell(
        Outcome.OUT_OF_MEMORY, error_type="Runtime.OutOfMemory", error_message="signal: killed", max_memory_used_mb=128
    )
    (told,) = feed.snapshot()["sandboxes"]
    assert told["failure"] == {
        "outcome": "out_of_memory",
        "error_type": "Runtime.OutOfMemory",
        "error_message": "signal: killed",
        "max_memory_used_mb": 128,
    }
    assert told["resident_bytes"] is None, "nothing is left that could hold memory"
    box.enter(lifecycle.Reinitialising())
    (told,) = feed.snapshot()["sandboxes"]
    assert told["failure"] is None


def test_an_error_of_the_handler_is_no_end_of_the_runtime(feed: Feed) -> None:
    box = PlayedSandbox(function(), feed)
    box.tell(Outcome.FUNCTION_ERROR, error_type="ValueError")
    (told,) = feed.snapshot()["sandboxes"]
    assert told["failure"] is None
    assert feed.snapshot()["totals"]["outcomes"] == {"function_error": 1}


def test_a_throttled_request_is_told_though_no_sandbox_stands_behind_it(feed: Feed) -> None:
    feed.recorded(record(function(), outcome=Outcome.THROTTLED))
    snapshot = feed.snapshot()
    assert snapshot["reports"][-1]["outcome"] == "throttled"
    assert snapshot["totals"]["cold"] == 0


@pytest.mark.parametrize(
    ("response", "size", "shown"),
    [
        ({"ok": True}, 11, '{"ok": true}'),
        ("x" * 50_000, 50_002, None),
        ({"large": 1}, 6_000_000, ""),
        (None, None, None),
    ],
)
def test_a_report_carries_the_beginning_of_the_response_at_most(
    feed: Feed, response: Any, size: int | None, shown: str | None
) -> None:
    feed.recorded(record(function(), response=response, response_bytes=size, log_tail="y" * 100_000))
    (report,) = feed.snapshot()["reports"]
    if size == 50_002:
        assert report["response"].startswith('"xxx')
    else:
        assert report["response"] == shown
    assert len(json.dumps(report)) < 10_000


def test_what_is_kept_is_bounded(feed: Feed) -> None:
    box = PlayedSandbox(function(), feed)
    for at in range(1000):
        box.enter(lifecycle.Frozen(warm=at))
        feed.recorded(record(function()))
        feed.metrics({"MetricName": "n", "Value": at})
        feed.segment({"trace_id": str(at), "id": str(at)})
        feed.message("x" * 10_000)
    assert len(json.dumps(feed.snapshot())) < 500_000


def test_metrics_that_are_no_numbers_are_still_json_for_a_browser(feed: Feed) -> None:
    async def page(following: Any) -> None:
        await following()
        feed.metrics([{"MetricName": "Latency", "Value": math.nan}, {"MetricName": "Latency", "Value": 3}])
        found = await until_event("metric")(following)
        assert found["datum"] == {"MetricName": "Latency", "Value": None}

    visit(feed, page)


def test_a_segment_that_comes_again_takes_the_place_of_the_first(feed: Feed) -> None:
    feed.segment({"trace_id": "t", "id": "a", "in_progress": True})
    feed.segment({"trace_id": "t", "id": "a", "end_time": 2.0})
    assert [one["segment"] for one in feed.snapshot()["segments"]] == [{"trace_id": "t", "id": "a", "end_time": 2.0}]


# Functions


def test_the_card_of_a_function_offers_its_sample_events(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": 1}')
    events = (tmp_path / "a.json", tmp_path / "missing.json")
    assert card(function(events=events))["events"] == [{"name": "a.json", "text": '{"a": 1}'}]


def test_a_function_that_changes_keeps_its_sample_events_and_loses_its_old_state(feed: Feed, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    feed.function(card(function(name="orders", events=(tmp_path / "a.json",))))
    feed.function({"name": "orders", "state": "Failed", "state_reason": "no such image"})
    feed.function({"name": "orders", "state": "Active", "state_reason": None})
    (told,) = feed.snapshot()["functions"]
    assert (told["state"], told["state_reason"]) == ("Active", None)
    assert [one["name"] for one in told["events"]] == ["a.json"]


def test_a_function_goes_with_all_its_versions_or_by_one(feed: Feed) -> None:
    for number in ("$LATEST", "1", "2"):
        feed.function({"name": "orders", "version": number})
    feed.function({"name": "other"})
    feed.function_deleted("orders", "1")
    assert [one["version"] for one in feed.snapshot()["functions"]] == ["$LATEST", "2", "$LATEST"]
    feed.function_deleted("orders")
    assert [one["name"] for one in feed.snapshot()["functions"]] == ["other"]


# Pages that are slow, many, or gone


def test_a_page_that_does_not_keep_up_is_told_to_come_back(feed: Feed) -> None:
    async def page(following: Any) -> tuple[str, str]:
        await following()
        for at in range(feed_module.QUEUE_EVENTS + 1):
            feed.message(str(at))  # would hang here if anybody waited for the page
        while True:
            name, data = await following()
            if name == "reconnect":
                return name, data

    assert visit(feed, page) == ("reconnect", "behind")
    assert feed.pages == 0


def test_a_slow_page_costs_the_others_nothing(feed: Feed) -> None:
    async def both() -> None:
        slow, quick = feed.frames(), feed.frames()
        await soon(slow.__anext__())
        await soon(quick.__anext__())
        told: list[str] = []
        for number in range(3 * feed_module.QUEUE_EVENTS):
            feed.message(str(number))
            if number % 1000 == 999:
                while len(told) <= number:
                    frame = await soon(quick.__anext__())
                    assert frame["event"] == "events", "the quick page is not sent away"
                    told += [one["text"] for one in json.loads(frame["data"])]
        assert told == [str(number) for number in range(3 * feed_module.QUEUE_EVENTS)]
        assert (await soon(slow.__anext__()))["event"] == "reconnect"
        await slow.aclose()
        await quick.aclose()

    asyncio.run(both())


def test_the_number_of_pages_is_bounded(feed: Feed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "MAX_PAGES", 1)

    async def pages(following: Any) -> None:
        await following()
        assert feed.full
        with pytest.raises(TooManyPages):
            await feed.frames().__anext__()

    visit(feed, pages)
    assert not feed.full


def test_closing_sends_every_page_away(feed: Feed) -> None:
    async def page(following: Any) -> tuple[str, str]:
        await following()
        await asyncio.to_thread(feed.close)
        return cast("tuple[str, str]", await following())

    assert visit(feed, page) == ("reconnect", "over")
    assert no_sampler()


# Memory


def test_memory_is_read_by_one_thread_and_only_while_a_page_looks(feed: Feed) -> None:
    box = PlayedSandbox(function(memory_mb=128), feed)
    box.resident = 40 * MIB
    assert no_sampler()

    async def page(following: Any) -> None:
        found = await until_event("memory")(following)
        assert (found["id"], found["resident_bytes"], found["limit_bytes"]) == (box.id, 40 * MIB, 128 * MIB)
        assert sum(thread.name == "feed-memory" for thread in threading.enumerate()) == 1

    visit(feed, page)
    wait_until(no_sampler)
    visit(feed, page)
    wait_until(no_sampler)


def test_a_sandbox_without_a_runtime_has_no_memory(feed: Feed) -> None:
    lost, alive = PlayedSandbox(function(), feed), PlayedSandbox(function(), feed)
    lost.enter(lifecycle.Broken())
    lost.enter(lifecycle.FrozenBroken())

    async def page(following: Any) -> dict[str, Any]:
        return await until_event("memory")(following)

    assert visit(feed, page)["id"] == alive.id
    assert {one["id"]: one["resident_bytes"] for one in feed.snapshot()["sandboxes"]}[lost.id] is None


def test_memory_that_cannot_be_read_is_not_told(feed: Feed) -> None:
    blind, seen = PlayedSandbox(function(), feed), PlayedSandbox(function(), feed)
    blind.resident = None

    async def page(following: Any) -> set[str]:
        found = set()
        for _ in range(5):
            name, data = await following()
            found |= {one["id"] for one in data if one["type"] == "memory"} if name == "events" else set()
        return found

    assert visit(feed, page) == {seen.id}
    assert {one["id"]: one["resident_bytes"] for one in feed.snapshot()["sandboxes"]}[blind.id] is None


# The routes


@pytest.fixture
def service(tmp_path: Path) -> Iterator[PlayedService]:
    with Store(tmp_path / "runs.sqlite3") as store:
        run = store.begin("serve", describe_function(function()) | {"name": "<b>orders</b>"}, HOST)
        run.add(record(function(name="orders")))
        run.finish()
        made = PlayedService(function(name="orders"), store=store, speed=20)
        yield made
        made.feed.close()


@pytest.fixture
def client(service: PlayedService) -> Iterator[httpx.Client]:
    with Served(service.app) as url, httpx.Client(base_url=url, timeout=30) as made:
        yield made


def test_the_page_may_load_its_own_files_and_nothing_else(client: httpx.Client) -> None:
    answer = client.get("/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"https?:", answer.text), "no other origin is named"
    assert not re.search(r"<script(?![^>]* src=)|<style|\sstyle=|\son\w+=", answer.text), "nothing is inline"
    for name in re.findall(r'/_harness/static/([\w.]+)"', answer.text):
        assert client.get(f"/_harness/static/{name}").status_code == 200


def test_the_pages_scripts_never_make_html_of_text() -> None:
    scripts = [one for one in (resources.files("harness.api") / "page").iterdir() if one.name.endswith(".js")]
    assert len(scripts) >= 5
    for script in scripts:
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", script.read_text())


@pytest.mark.parametrize("name", ["nothing.js", "runs.html.j2", "..%2ffeed.py", "%2e%2e%2fpages.py"])
def test_other_files_are_not_served(client: httpx.Client, name: str) -> None:
    assert client.get(f"/_harness/static/{name}").status_code == 404


def test_the_state_is_there_as_json(client: httpx.Client) -> None:
    assert [one["name"] for one in client.get("/_harness/state").json()["functions"]] == ["orders"]


def test_the_stream_begins_with_the_snapshot_and_ends_with_the_service(service: PlayedService) -> None:
    with Served(service.app) as url, httpx.stream("GET", f"{url}/_harness/events", timeout=20) as answer:
        lines = answer.iter_lines()
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert next(lines) == "event: snapshot"
        wait_until(lambda: service.feed.pages == 1)
        service.feed.close()
        assert "event: reconnect" in list(lines)


def test_a_page_that_goes_away_is_forgotten(service: PlayedService) -> None:
    with Served(service.app) as url:
        with httpx.stream("GET", f"{url}/_harness/events", timeout=20) as answer:
            lines = answer.iter_lines()  # httpx ends the answer with the last reference to this
            next(lines)
            wait_until(lambda: service.feed.pages == 1)
        wait_until(lambda: service.feed.pages == 0)


def test_stored_runs_are_listed_and_each_has_its_report(client: httpx.Client) -> None:
    listed = client.get("/_harness/runs").text
    assert "&lt;b&gt;orders&lt;/b&gt;" in listed
    (link,) = re.findall(r'href="(/_harness/runs/[^"]+)"', listed)
    report = client.get(link)
    assert report.status_code == 200
    assert "Invocations" in report.text


def test_a_run_that_is_not_there_is_said_so(client: httpx.Client) -> None:
    answer = client.get("/_harness/runs/%3Cscript%3E")
    assert answer.status_code == 404
    assert "no run" in answer.text
    assert "<script>" not in answer.text


def test_a_burst_goes_through_the_lambda_api_as_many_at_once_as_asked(
    client: httpx.Client, service: PlayedService
) -> None:
    wanted = {
        "path": "/2015-03-31/functions/orders/invocations?Qualifier=live",
        "headers": {"X-Amz-Invocation-Type": "RequestResponse", "Host": "evil.example"},
        "event": '{"work_ms": 200}',
        "count": 30,
        "concurrency": 12,
    }
    answers = [json.loads(line) for line in client.post("/_harness/burst", json=wanted).iter_lines()]
    assert sorted(one["number"] for one in answers) == list(range(30))
    assert {one["status"] for one in answers} == {200}
    assert all(one["headers"]["x-amzn-requestid"] for one in answers)
    assert service.most_at_once == 12
    assert set(service.invoked) == {("orders", "live", b'{"work_ms": 200}')}


@pytest.mark.parametrize(
    "wrong",
    [
        {"count": 0},
        {"count": 10**9},
        {"concurrency": 10_000},
        {"path": "/_harness/burst"},
        {"event": None, "count": "x"},
        {"headers": [1]},
        {"headers": {"x-amz-a": "b\r\nc: d"}},
        {"headers": {"x-amz-\u4e2d": "b"}},
    ],
)
def test_a_burst_of_anything_else_is_refused(
    client: httpx.Client, service: PlayedService, wrong: dict[str, Any]
) -> None:
    wanted = {"path": "/2015-03-31/functions/orders/invocations", "event": "{}", "count": 1, "concurrency": 1}
    assert client.post("/_harness/burst", json=wanted | wrong).status_code == 400
    for body in (b"[", b'{"a":' * 100_000, json.dumps(wanted | {"count": float("inf")}).encode()):
        assert client.post("/_harness/burst", content=body).status_code == 400
    assert service.invoked == []
