"""A sweep over a cluster that is none: who measures what, in which order, once; what is lost, and what is kept of it."""

from __future__ import annotations

import hashlib
import json
import pickle
import pydoc
import queue
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import fakes
import pytest
from test_cli_sweep import Harness
from test_cli_sweep import cli as cli  # noqa: PLC0414  # a fixture
from test_sweep_plan import plan, record

from harness._version import __version__
from harness.errors import EngineError, Interrupted, InvalidInput, UsageError
from harness.experiments import cluster, fanout, outpost
from harness.experiments.cluster import DaskCluster, Done, Worker, WorkerGone
from harness.experiments.fanout import Fleet, arrange
from harness.experiments.outpost import Block, Job, Measured, Prepared, Refused
from harness.experiments.sweep import SweepPlan, Variant, WeightedEvent
from harness.function import DirectoryCode, ZipCode
from harness.invocation import WORKER_LOST, Invocation, Outcome

GIB = 1024**3


class FakeCluster:
    """Workers that answer at once, each as a process on a host of its own; `measured` can be told to do otherwise."""

    def __init__(self, *addresses: str, threads: int = 1) -> None:
        self.address = "tcp://scheduler:1"
        self.there = {each: Worker(address=each, slots=1, threads=threads) for each in addresses}
        self.version: dict[str, str | None] = dict.fromkeys(addresses, __version__)
        self.host = {each: f"host-{each}" for each in addresses}
        self.process = {each: f"process-{each}" for each in addresses}
        self.warnings: dict[str, tuple[str, ...]] = {}
        self.refuses: dict[str, Refused] = {}
        self.room_bytes = 64.0 * GIB
        self.held: dict[str, dict[str, bytearray]] = defaultdict(dict)
        self.functions: dict[str, Any] = {}
        self.begun: list[tuple[str, Block]] = []
        self.busy: dict[str, str] = {}
        self.stopped: list[str] = []
        self.forgotten: list[str] = []
        self.cancelled: list[str] = []
        self.closed = False
        self.measured: Callable[[str, Block], Measured | None] = lambda worker, block: measured(block)
        self._done: queue.SimpleQueue[Done] = queue.SimpleQueue()

    def workers(self) -> dict[str, Worker]:
        return dict(self.there)

    def ask(self, worker: str, function: Callable[..., Any], *arguments: Any, seconds: float = 1) -> Any:
        if worker not in self.there:
            raise WorkerGone(f"worker {worker} went away")
        if function is pydoc.locate:
            assert arguments == ("harness._version.__version__",)
            return self.version[worker]
        if function is outpost.missing:
            return [key for key in arguments[0] if key not in self.held[worker]]
        if function is outpost.receive:
            key, at, part = arguments
            parcel = self.held[worker].setdefault(key, bytearray())
            assert len(parcel) == at
            parcel += part
            return None
        if function is outpost.process:
            return self.process[worker]
        assert function in {outpost.stop, outpost.forget}
        (self.stopped if function is outpost.stop else self.forgotten).append(worker)
        if function is outpost.stop and worker in self.busy:
            self.ends(self.busy[worker], Measured(records=(record().as_dict(),), stopped=True))
        return None

    def submit(self, worker: Worker, task_id: str, function: Callable[..., Any], *arguments: Any) -> None:
        address = worker.address
        given = pickle.loads(arguments[0])  # noqa: S301
        if function is outpost.prepare:
            assert isinstance(given, Job)
            self.functions[address] = given
            self.ends(task_id, self.refuses.get(address) or self._prepared(address))
            return
        assert isinstance(given, Block)
        assert given.block_id == task_id
        assert address not in self.busy, "one block at a time"
        self.begun.append((address, given))
        self.busy[address] = task_id
        answer = self.measured(address, given)
        if answer is not None:
            self.ends(task_id, answer)

    def _prepared(self, address: str) -> Prepared:
        return Prepared(
            process=self.process[address],
            host_id=self.host[address],
            host={"cpus": 8, "hz": 250, "harness_version": "0", "vantage": "host"},
            room_bytes=self.room_bytes,
            warnings=self.warnings.get(address, ()),
        )

    def ends(self, task_id: str, result: Any = None, failure: str = "") -> None:
        self.busy = {worker: task for worker, task in self.busy.items() if task != task_id}
        self._done.put(Done(task_id=task_id, result=result, failure=failure))

    def next_done(self, timeout_s: float) -> Done | None:
        try:
            return self._done.get_nowait()
        except queue.Empty:
            return None

    def cancel(self, task_id: str) -> None:
        self.cancelled.append(task_id)

    def close(self) -> None:
        self.closed = True


def measured(block: Block, **changes: Any) -> Measured:
    """A cold invocation and the warm ones, or the cold ones alone."""
    wanted = block.plan
    colds = [True] * wanted.count if wanted.cold_only else [True] + [False] * wanted.count
    return Measured(
        records=tuple(
            record(
                wanted.memory_mb[0], cold=cold, variant=wanted.variants[0].name, sandbox_id=block.block_id, **changes
            ).as_dict()
            for cold in colds
        )
    )


def fleet(over: FakeCluster, **changes: Any) -> Fleet:
    settings: dict[str, Any] = {
        "scheduler": over.address,
        "connect": lambda address: over,
        "function": fakes.function(code=DirectoryCode(path=Path(__file__).parent / "cgroup_trees")),
    }
    return Fleet(**(settings | changes))


def sizes(over: FakeCluster, worker: str) -> list[int]:
    return [block.plan.memory_mb[0] for address, block in over.begun if address == worker]


# -- the order --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [1, 3, 20, 100])
def test_every_worker_measures_every_size_equally_often_with_the_same_events(workers: int, count: int) -> None:
    events = (WeightedEvent(event=b"1", weight=3), WeightedEvent(event=b"2"))
    variants = (Variant(), Variant(name="big", environment={"A": "1"}))
    wanted = plan(128, 512, 1024, count=count, events=events, variants=variants)
    arranged = arrange(wanted, workers)
    seen = [
        Counter((cell.key, event.event) for cell in cells for event in cell.plan.events) for cells in arranged
    ]  # fmt: skip
    assert all(each == seen[0] for each in seen)
    each = -(-count // workers)
    assert Counter(cell.key for cell in arranged[0] for _ in range(cell.plan.count)) == dict.fromkeys(
        ((size, name) for size in (128, 512, 1024) for name in (None, "big")), each
    )
    if each % 4 == 0:
        assert seen[0][(128, None), b"1"] == 3 * seen[0][(128, None), b"2"]


def test_each_size_has_at_least_two_sandboxes_on_each_host_and_blocks_of_at_least_five_beyond_that() -> None:
    def blocks(count: int, workers: int) -> list[int]:
        cells = arrange(plan(512, count=count), workers)[0]
        return [cell.plan.count for cell in cells]

    assert blocks(1, 2) == [1]
    assert blocks(4, 2) == [1, 1]
    assert blocks(20, 2) == [5, 5]
    assert blocks(60, 2) == [7, 8, 7, 8]


def test_no_two_workers_are_at_the_same_size_at_the_same_place_of_a_round() -> None:
    arranged = arrange(plan(128, 256, 512, 1024, 1769, count=60), 3)
    for at in zip(*arranged, strict=True):
        assert len({cell.number for cell in at}) == 1, "rounds go side by side"
        assert len({cell.key for cell in at}) == 3


def test_every_round_has_an_order_of_its_own() -> None:
    """Or the same sizes would always be measured at the beginning of a round."""
    arranged = arrange(plan(128, 256, 512, 1024, count=80), 2)
    for cells in arranged:
        orders = [[cell.memory_mb for cell in cells if cell.number == number] for number in range(4)]
        assert all(sorted(order) == [128, 256, 512, 1024] for order in orders)
        assert len({tuple(order) for order in orders}) > 1


def test_the_order_depends_on_the_seed_alone() -> None:
    def order(seed: int) -> list[list[int]]:
        return [[cell.memory_mb for cell in cells] for cells in arrange(plan(*range(128, 1024, 64), seed=seed), 2)]

    assert order(1) == order(1) != order(2)


def test_a_block_may_fail_as_often_as_the_whole_size_may() -> None:
    cell = arrange(plan(512, count=20, allowed_error_share=0.1), 2)[0][0]
    assert cell.plan.allowed_error_share * cell.plan.each == pytest.approx(0.1 * 21)
    assert arrange(plan(512, count=20, allowed_error_share=1.0), 2)[0][0].plan.allowed_error_share == 1
    assert arrange(plan(512, count=20), 2)[0][0].plan.allowed_error_share == 0


# -- what is measured -------------------------------------------------------------------------------------------------


def test_every_record_names_the_host_that_measured_it_and_nothing_is_measured_twice() -> None:
    over = FakeCluster("a", "b")
    over.measured = lambda worker, block: measured(block, host_id=over.host[worker])
    with fleet(over) as workers:
        records = list(workers.run(plan(128, 512, count=20)))
    assert Counter((each.host_id, each.memory_mb, each.cold) for each in records) == {
        (host, size, cold): 2 if cold else 10
        for host in ("host-a", "host-b")
        for size in (128, 512)
        for cold in (True, False)
    }
    assert len({block.block_id for _, block in over.begun}) == len(over.begun) == 8
    assert over.forgotten == ["a", "b"]
    assert over.closed


def test_a_worker_gets_its_next_block_when_it_has_ended_one_whatever_the_others_do() -> None:
    over = FakeCluster("a", "slow")
    over.measured = lambda worker, block: measured(block) if worker == "a" else None
    with fleet(over) as workers:
        found = workers.run(plan(128, 512, count=20))
        for _ in range(4 * 6):
            next(found)
        assert (len(sizes(over, "a")), len(sizes(over, "slow"))) == (4, 1)


def test_a_size_that_fails_is_not_continued_on_any_worker() -> None:
    over = FakeCluster("a", "b")

    def fails(worker: str, block: Block) -> Measured:
        size = block.plan.memory_mb[0]
        found = measured(block, outcome=Outcome.OUT_OF_MEMORY if size == 128 else Outcome.SUCCESS)
        return Measured(records=found.records[:1]) if size == 128 else found

    over.measured = fails
    with fleet(over) as workers:
        records = list(workers.run(plan(128, 512, count=60)))
    assert Counter(each.memory_mb for each in records)[128] <= 2, "one on each worker at most"
    assert Counter(each.memory_mb for each in records)[512] == 60 + 8


def test_a_size_that_does_not_fit_into_a_hosts_memory_is_refused_before_anything_is_measured() -> None:
    over = FakeCluster("a", "b")
    over.room_bytes = 1.0 * GIB
    with fleet(over) as workers:
        with pytest.raises(InvalidInput, match="2048 MB do not fit into the memory of worker a's host"):
            next(workers.run(plan(512, 2048)))
        assert workers.room_bytes == GIB
    assert over.begun == []


# -- what is lost -----------------------------------------------------------------------------------------------------


def test_a_worker_that_dies_loses_its_block_and_what_it_had_not_begun_and_nothing_else() -> None:
    over = FakeCluster("a", "b")

    def dies(worker: str, block: Block) -> Measured | None:
        if worker == "b" and len(sizes(over, "b")) == 2:
            del over.there["b"]
            return None
        return measured(block, host_id=over.host[worker])

    over.measured = dies
    with fleet(over) as workers:
        records = list(workers.run(plan(128, 512, count=20)))
    kept = [each for each in records if each.error_type != WORKER_LOST]
    lost = [each for each in records if each.error_type == WORKER_LOST]
    assert Counter(each.host_id for each in kept) == {"host-a": 4 * 6, "host-b": 6}
    assert {each.outcome for each in lost} == {Outcome.ENGINE_ERROR}
    assert {each.host_id for each in lost} == {"host-b"}
    assert next(each.error_message or "" for each in lost).endswith(
        "6 of its invocations: its worker went away while it was measured"
    )
    assert sum(int((each.error_message or "").split("): ")[1].split()[0]) for each in lost) == 3 * 6, "all are told"
    assert len(over.cancelled) == 1
    assert len(sizes(over, "b")) == 2, "nothing was handed to anybody a second time"


@pytest.mark.parametrize("comes_back", [True, False])
def test_a_block_that_another_process_refused_ends_the_work_of_that_worker(comes_back: bool) -> None:
    over = FakeCluster("a", "b")

    def restarted(worker: str, block: Block) -> Measured | None:
        if worker == "b":
            over.process["b"] = "another"
            if not comes_back:
                del over.there["b"]
            return Measured(lost="its worker was started anew meanwhile")
        return measured(block)

    over.measured = restarted
    with fleet(over) as workers:
        records = list(workers.run(plan(128, count=20)))
    assert sizes(over, "b") == [128]
    assert [each.error_type for each in records if each.error_type] == [WORKER_LOST] * 2


def test_a_block_that_the_engine_lost_does_not_end_the_work_of_its_worker() -> None:
    over = FakeCluster("a")
    over.measured = lambda worker, block: (
        Measured(records=measured(block).records[:2], lost="the engine refused")
        if len(over.begun) == 1
        else measured(block)
    )
    with fleet(over) as workers:
        records = list(workers.run(plan(128, 512, count=10)))
    assert len(over.begun) == 4
    assert Counter(each.error_type for each in records) == {None: 2 + 3 * 6, WORKER_LOST: 1}
    assert "4 of its invocations: the engine refused" in str([each.error_message for each in records])


def test_blocks_that_are_lost_say_nothing_about_their_size_which_is_measured_on() -> None:
    over = FakeCluster("a")
    over.measured = lambda worker, block: Measured(lost="it refused") if len(over.begun) < 4 else measured(block)
    with fleet(over) as workers:
        records = list(workers.run(plan(128, count=40)))
    assert Counter(each.error_type for each in records) == {WORKER_LOST: 3, None: 11}


def test_what_the_cluster_gives_up_is_lost_too() -> None:
    over = FakeCluster("a")

    def given_up(worker: str, block: Block) -> None:
        over.ends(block.block_id, failure="KilledWorker: allowed failures are 0")

    over.measured = given_up
    with fleet(over) as workers:
        records = list(workers.run(plan(128, count=1)))
    assert [each.error_type for each in records] == [WORKER_LOST]
    assert "KilledWorker" in (records[0].error_message or "")


# -- interruption -----------------------------------------------------------------------------------------------------


def test_stopping_begins_nothing_more_and_keeps_what_was_running() -> None:
    over = FakeCluster("a", "b")
    over.measured = lambda worker, block: measured(block) if worker == "a" and len(sizes(over, "a")) == 1 else None
    with fleet(over) as workers:
        found = workers.run(plan(128, 512, count=20))
        first = [next(found), next(found)]
        found.close()
        rest = list(workers.stop())
        assert over.busy == {}
    assert len(first) + len(rest) == 6 + 2, "the rest of the block that had ended, and one of each that was running"
    assert sorted(over.stopped) == ["a", "b"]
    assert len(over.begun) == 3


def test_a_worker_that_does_not_answer_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fanout, "STOP_S", 0.05)
    over = FakeCluster("a")
    over.measured = lambda worker, block: None
    with fleet(over) as workers:
        found = workers.run(plan(128, count=2))

        def hangs(*_: Any, **__: Any) -> None:
            raise WorkerGone("worker a has not answered for 5 s")

        monkeypatch.setattr(over, "next_done", lambda timeout_s: (_ for _ in ()).throw(Interrupted(2)))
        with pytest.raises(Interrupted):
            next(found)
        monkeypatch.undo()
        monkeypatch.setattr(fanout, "STOP_S", 0.05)
        monkeypatch.setattr(over, "ask", hangs)
        left = list(workers.stop())
    assert [each.error_type for each in left] == [WORKER_LOST]
    assert "no longer waited for" in (left[0].error_message or "")
    assert len(over.cancelled) == 1


# -- before anything is measured --------------------------------------------------------------------------------------


@pytest.mark.parametrize("others", [True, False])
def test_without_a_worker_that_offers_to_measure_it_is_said_how_one_is_started(others: bool) -> None:
    over = FakeCluster(*(("a",) if others else ()))
    over.there = {each: Worker(address=each, slots=0, threads=4) for each in over.there}
    with pytest.raises(EngineError, match="offers the resource 'lambda-harness'") as refused, fleet(over):
        pass
    assert (
        "dask worker tcp://scheduler:1 --nworkers 1 --nthreads 1 --resources 'lambda-harness=1'" in refused.value.remedy
    )
    assert over.closed


def test_workers_that_do_not_offer_it_are_left_alone() -> None:
    over = FakeCluster("a", "b")
    over.there["b"] = Worker(address="b", slots=0, threads=8)
    with fleet(over) as workers:
        list(workers.run(plan(128)))
    assert {worker for worker, _ in over.begun} == {"a"}
    assert over.functions.keys() == over.held.keys() == {"a"}


@pytest.mark.parametrize(
    ("version", "said"), [("0.0.1", "worker b has lambda-harness 0.0.1"), (None, "worker b has no lambda-harness")]
)
def test_another_version_on_a_worker_is_refused_by_name_before_anything_travels(version: str | None, said: str) -> None:
    over = FakeCluster("a", "b")
    over.version["b"] = version
    with pytest.raises(EngineError, match=f"{said}; this is lambda-harness {__version__}"), fleet(over):
        pass
    assert over.held == {}
    assert over.functions == {}


def test_a_worker_that_cannot_measure_is_named_with_its_reason() -> None:
    over = FakeCluster("a", "b")
    over.refuses["b"] = Refused(message="no Docker engine answers at tcp://1:1", remedy="start Docker")
    with pytest.raises(EngineError, match="worker b cannot measure: no Docker engine answers") as refused, fleet(over):
        pass
    assert refused.value.remedy == "start Docker"
    assert over.closed


def test_a_worker_that_goes_away_before_it_is_prepared_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    over = FakeCluster("a")

    def vanishes(*_: Any) -> None:
        over.there = {}

    monkeypatch.setattr(over, "submit", vanishes)
    with pytest.raises(EngineError, match="worker a went away before it could measure"), fleet(over):
        pass


def test_code_travels_once_to_each_worker_keyed_by_its_content(tmp_path: Path) -> None:
    (tmp_path / "fn").mkdir()
    (tmp_path / "fn/app.py").write_text("one")
    (tmp_path / "layer").mkdir()
    (tmp_path / "layer/big").write_bytes(bytes(20_000_000))
    function = fakes.function(code=DirectoryCode(path=tmp_path / "fn"), layers=(tmp_path / "layer",))
    over = FakeCluster("a", "b")
    for _ in range(2):
        with fleet(over, function=function):
            pass
    assert {worker: len(held) for worker, held in over.held.items()} == {"a": 2, "b": 2}
    for key, packed in over.held["a"].items():
        assert key == f"tar-{hashlib.sha256(packed).hexdigest()}"
    assert set(over.functions["a"].code) == {str(tmp_path / "fn"), str(tmp_path / "layer")}
    (tmp_path / "fn/app.py").write_text("two")
    with fleet(over, function=function):
        pass
    assert len(over.held["a"]) == 3, "what was changed travels anew, and nothing else"


def test_workers_on_the_same_host_and_with_several_threads_are_warned_of() -> None:
    over = FakeCluster("a", "b", threads=4)
    over.host = {"a": "same", "b": "same"}
    over.warnings = {"a": ("odd code",), "b": ("odd code", "only b")}
    with fleet(over) as workers:
        assert [each.split(":")[0] for each in workers.warnings] == [
            "worker a has 4 threads",
            "worker b has 4 threads",
            "workers a and b are on the same host (same)",
            "odd code",
            "b",
        ]
        assert workers.host["workers"] == ["a", "b"]
        assert "hosts" not in workers.host


def test_the_document_names_every_host_where_there_are_several() -> None:
    with fleet(FakeCluster("a", "b")) as workers:
        assert workers.host["host_id"] == "host-a"
        assert workers.host["cpus"] == 8
        assert [(each["host_id"], each["workers"]) for each in workers.host["hosts"]] == [
            ("host-a", ["a"]),
            ("host-b", ["b"]),
        ]


# -- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def over(monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    found = FakeCluster("a", "b")
    found.measured = lambda worker, block: measured(
        block,
        host_id=found.host[worker],
        duration_ms=(3.0 if worker == "b" else 1.0) * 51200 / block.plan.memory_mb[0],
        billed_ms=100,
        cost_usd=1e-6 * block.plan.memory_mb[0],
    )
    monkeypatch.setattr(
        Fleet.__init__, "__kwdefaults__", (Fleet.__init__.__kwdefaults__ or {}) | {"connect": lambda _: found}
    )
    return found


def test_a_sweep_over_a_cluster_is_stored_like_any_other_and_says_how_hosts_differ(
    cli: Harness, over: FakeCluster
) -> None:
    report = cli.folder / "report.html"
    found = cli.document("-m", "128,512", "-n", 20, "--scheduler", "tcp://s:1", "--report", report)
    assert (found["state"], found["kind"], len(found["invocations"])) == ("complete", "sweep", 48)
    assert {each["host_id"] for each in found["invocations"]} == {"host-a", "host-b"}
    assert [each["host_id"] for each in found["host"]["hosts"]] == ["host-a", "host-b"]
    hosts = found["findings"]["hosts"]
    assert hosts["mixed"]
    assert hosts["ratios"][0]["ratio"] == pytest.approx(3)
    assert found["findings"]["recommendation"]["reason"].endswith("Judged on host host-a alone.")
    again = json.loads(cli("runs", "show", "latest", "--json").out)
    assert again == found
    page = report.read_text()
    assert hosts["sentence"].replace("'", "&#39;") in page
    assert "<th>host</th>" in page.replace(' scope="col"', "")
    shown = cli("runs", "show", "latest").out
    assert "3.00 times" in shown
    assert hosts["sentence"].split(".")[0] in shown.replace("\n", " ")
    assert cli.stand.entered == 0, "nothing is measured here"


def test_auto_refines_over_a_cluster_too(cli: Harness, over: FakeCluster) -> None:
    found = cli.document("-m", "auto", "-n", 2, "--scheduler", "tcp://s:1")
    sizes_ = {each["memory_mb"] for each in found["invocations"]}
    assert sizes_ > set(found["plan"]["memory_mb"])
    assert {(each["memory_mb"], each["host_id"]) for each in found["invocations"]} == {
        (size, host) for size in sizes_ for host in ("host-a", "host-b")
    }


def test_what_was_lost_is_said_on_stderr_in_the_report_and_in_the_document(cli: Harness, over: FakeCluster) -> None:
    whole = over.measured

    def dies(worker: str, block: Block) -> Measured | None:
        if worker == "b":
            del over.there["b"]
            return None
        return whole(worker, block)

    over.measured = dies
    done = cli.sweep("-m", "128", "-n", 20, "--scheduler", "tcp://s:1")
    assert done.code == 0
    assert "lost at 128 MB on host host-b (worker b)" in done.err
    assert "Lost at 128 MB on host host-b (worker b)" in done.out.replace("\n", " ")
    found = json.loads(cli("runs", "show", "latest", "--json").out)["findings"]
    assert [each["kind"] for each in found["warnings"]].count("lost_with_a_worker") == 2
    assert found["tiers"][0]["n"] == 10
    assert found["tiers"][0]["outcomes"] == {"success": 12, "engine_error": 2}


def test_ctrl_c_keeps_the_records_of_blocks_that_were_running(
    cli: Harness, over: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    over.measured = lambda worker, block: None

    def interrupted(timeout_s: float) -> Done | None:
        monkeypatch.undo()
        raise Interrupted(2)

    store = str(cli.store)
    monkeypatch.setattr(
        over, "next_done", lambda timeout_s: FakeCluster.next_done(over, timeout_s) or interrupted(timeout_s)
    )
    done = cli.sweep("-m", "512", "-n", 20, "--scheduler", "tcp://s:1", "--store", store)
    assert done.code == 130
    found = json.loads(cli("runs", "show", "latest", "--store", store, "--json").out)
    assert (found["state"], len(found["invocations"])) == ("interrupted", 2)
    assert sorted(over.stopped) == ["a", "b"]


@pytest.mark.parametrize(
    ("words", "said"),
    [(["--parallel"], "--parallel and --scheduler"), (["--receivers", "xray"], "--receivers and --scheduler")],
)
def test_what_makes_no_sense_over_a_cluster_is_refused(
    cli: Harness, over: FakeCluster, words: list[str], said: str
) -> None:
    done = cli.sweep("-m", "512", "--scheduler", "tcp://s:1", *words)
    assert done.code == 2
    assert said in done.err
    assert over.functions == {}


def test_without_distributed_the_extra_is_named(cli: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    done = cli.sweep("-m", "512", "--scheduler", "tcp://127.0.0.1:1")
    assert done.code == 2
    assert "lambda-harness[cluster]" in done.err
    assert cli.runs() == []


def test_an_address_that_is_none_is_refused() -> None:
    with pytest.raises(UsageError, match="--scheduler 'nonsense://x' is no address"):
        DaskCluster("nonsense://x")


def test_where_no_scheduler_answers_it_is_said_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "CONNECT_S", 0.2)
    with pytest.raises(EngineError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:9"):
        DaskCluster("tcp://127.0.0.1:9")


# -- the post in a worker ---------------------------------------------------------------------------------------------


class Post:
    """An outpost over stands that are none."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        from test_cli_sweep import OpenedStand

        self.stand = OpenedStand()
        self.functions: list[Any] = []

        def stand(function: Any, **_: Any) -> OpenedStand:
            self.functions.append(function)
            return self.stand

        monkeypatch.setattr(outpost, "Stand", stand)
        monkeypatch.setattr("harness.stand.work_base", lambda: folder)
        monkeypatch.setattr(outpost, "host_id", lambda stand: "here")
        monkeypatch.setattr("harness.experiments.sweep._pause", lambda plan, rng: None)
        self.post = outpost.Outpost()

    def prepared(self, function: Any, sweep_id: str = "s") -> Prepared:
        parcels = outpost.parcels(function)
        for parcel in parcels.values():
            if self.post.missing([parcel.key]):
                half = len(parcel.packed) // 2
                self.post.receive(parcel.key, 0, parcel.packed[:half])
                self.post.receive(parcel.key, half, parcel.packed[half:])
        code = {path: parcel.key for path, parcel in parcels.items()}
        found = self.post.prepare(Job(sweep_id=sweep_id, function=function, code=code, vantage="auto", pull=False))
        assert isinstance(found, Prepared), found
        return found

    def block(self, by: Prepared, block_id: str = "1", wanted: SweepPlan | None = None) -> Block:
        return Block(block_id=block_id, sweep_id="s", process=by.process, plan=wanted or plan(512, count=3))


@pytest.fixture
def post(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Post:
    (tmp_path / "work").mkdir()
    return Post(monkeypatch, tmp_path / "work")


@pytest.fixture
def code(tmp_path: Path) -> Path:
    found = tmp_path / "fn"
    (found / "bin").mkdir(parents=True)
    (found / "app.py").write_text("def handler(event, context): ...")
    (found / "bin/run").write_text("#!/bin/sh")
    (found / "bin/run").chmod(0o755)
    (found / "link").symlink_to("bin/run")
    return found


def test_code_arrives_with_its_modes_links_and_times(post: Post, code: Path) -> None:
    post.prepared(fakes.function(code=DirectoryCode(path=code)))
    there = post.functions[0].code.path
    assert there != code
    assert (there / "app.py").read_text() == (code / "app.py").read_text()
    assert (there / "bin/run").stat().st_mode & 0o777 == 0o755
    assert (there / "link").readlink() == Path("bin/run")
    assert int((there / "app.py").stat().st_mtime) == int((code / "app.py").stat().st_mtime)
    assert there.stat().st_mode & 0o005 == 0o005


def test_a_zip_arrives_as_it_is(post: Post, tmp_path: Path) -> None:
    import zipfile

    package = tmp_path / "fn.zip"
    with zipfile.ZipFile(package, "w") as archive:
        archive.writestr("app.py", "...")
    post.prepared(fakes.function(code=ZipCode(path=package), layers=(package,)))
    function = post.functions[0]
    assert function.code.path.read_bytes() == package.read_bytes()
    assert zipfile.is_zipfile(function.code.path)
    assert function.layers == (function.code.path,)


def test_code_that_arrived_damaged_or_not_at_all_is_refused(post: Post, code: Path) -> None:
    function = fakes.function(code=DirectoryCode(path=code))
    parcel = outpost.pack(code)
    job = Job(sweep_id="s", function=function, code={str(code): parcel.key}, vantage="auto", pull=False)
    answer = post.post.prepare(job)
    assert isinstance(answer, Refused)
    assert "did not arrive" in answer.message
    post.post.receive(parcel.key, 0, parcel.packed[:-1])
    answer = post.post.prepare(job)
    assert isinstance(answer, Refused)
    assert "damaged" in answer.message
    assert post.post.missing([parcel.key]) == [parcel.key], "so it is sent again"


def test_a_block_is_measured_once_and_its_records_name_the_host(post: Post, code: Path) -> None:
    block = post.block(post.prepared(fakes.function(code=DirectoryCode(path=code))))
    first = post.post.measure(block)
    assert [Invocation.from_dict(each).cold for each in first.records] == [True, False, False, False]
    assert {each["host_id"] for each in first.records} == {"here"}
    assert not post.stand.held
    second = post.post.measure(block)
    assert (second.records, "not measured twice" in second.lost) == ((), True)
    assert len(post.stand.made) == 1


def test_a_block_of_another_process_is_not_measured(post: Post, code: Path) -> None:
    found = post.prepared(fakes.function(code=DirectoryCode(path=code)))
    block = post.block(found)
    strange = Block(block_id="2", sweep_id="s", process="4711:1.0:boot", plan=block.plan)
    assert "started anew" in post.post.measure(strange).lost
    assert "started anew" in outpost.Outpost().measure(block).lost, "one that was never prepared"
    assert post.stand.made == []


def test_a_post_that_is_stopped_ends_its_block_gives_the_sandbox_back_and_begins_no_other(
    post: Post, code: Path
) -> None:
    found = post.prepared(fakes.function(code=DirectoryCode(path=code)))

    def stops(function: Any, number: int, event: bytes) -> Outcome:
        if number == 2:
            post.post.stop("s")
        return Outcome.SUCCESS

    post.stand.behaviour = stops
    ended = post.post.measure(post.block(found, wanted=plan(512, count=50)))
    assert (len(ended.records), ended.stopped, ended.lost) == (2, True, "")
    assert not post.stand.held
    assert post.post.measure(post.block(found, "2")) == Measured(stopped=True)


def test_an_engine_or_a_bug_that_ends_a_block_costs_none_of_its_records(post: Post, code: Path) -> None:
    found = post.prepared(fakes.function(code=DirectoryCode(path=code)))
    for number, error in enumerate((InvalidInput("no room", remedy="make some"), ZeroDivisionError("odd"))):

        def fails(function: Any, at: int, event: bytes, error: Exception = error, number: int = number) -> Outcome:
            if at % 4 == 3:
                raise error
            return Outcome.SUCCESS

        post.stand.behaviour = fails
        post.stand.seen.clear()
        ended = post.post.measure(post.block(found, str(number)))
        assert len(ended.records) == 2
        assert str(error) in ended.lost
        assert not post.stand.held


def test_code_that_no_sweep_uses_goes_when_there_is_too_much_of_it(post: Post, code: Path) -> None:
    keys = []
    for number in range(outpost.KEPT_CODE + 2):
        (code / "app.py").write_text(str(number))
        keys.append(outpost.pack(code).key)
        post.prepared(fakes.function(code=DirectoryCode(path=code)), f"s{number}")
    assert post.post.missing(keys) == []
    for number in range(len(keys)):
        post.post.forget(f"s{number}")
    assert post.post.missing(keys) == keys[:2], "the last that were used stay for the next sweep"


def test_a_fingerprint_is_of_the_engine_and_of_what_may_change_a_figure() -> None:
    described = {"cpus": 2, "kernel": "6.1", "vantage": "host", "harness_version": "1", "python": "3.11"}
    same = outpost.fingerprint(described, "E")
    assert len(same) == 8
    assert outpost.fingerprint(described | {"harness_version": "2", "python": "3.13"}, "E") == same
    for changed in ({"cpus": 4}, {"kernel": "6.2"}, {"vantage": "agent"}):
        assert outpost.fingerprint(described | changed, "E") != same
    assert outpost.fingerprint(described, "F") != same, "two machines of one kind are two hosts"


def test_nothing_below_the_command_loads_distributed() -> None:
    assert "distributed" not in cast("Any", fanout).__dict__
    assert "distributed" not in cast("Any", outpost).__dict__
