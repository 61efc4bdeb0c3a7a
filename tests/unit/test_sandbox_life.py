"""The life of one execution environment over a fake cell: whatever its runtime does, the record and the phases are right."""

from __future__ import annotations

import json
import math

import pytest
from fakes import MIB, FakeCell, event, function, surroundings
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from harness.cell import CpuBoard
from harness.context import RequestContext, Trace
from harness.errors import EngineError, HarnessError, InitFailed
from harness.invocation import Invocation, Outcome, PhaseInit
from harness.lifecycle import Broken, Created, Frozen, FrozenBroken, Idle, ShutDown, Started
from harness.observer import Observer
from harness.rie import Answer
from harness.sandbox import Sandbox
from harness.watch import Exchange

OUTCOMES = {
    "succeed": Outcome.SUCCESS,
    "raise": Outcome.FUNCTION_ERROR,
    "crash": Outcome.RUNTIME_EXIT,
    "time_out": Outcome.TIMEOUT,
    "run_out_of_memory": Outcome.OUT_OF_MEMORY,
}


def started(cell: FakeCell | None = None, **changes: object) -> tuple[Sandbox, FakeCell]:
    cell = cell or FakeCell()
    sandbox = Sandbox(function(**changes), surroundings(), cell=cell)
    sandbox.start()
    return sandbox, cell


class Life(RuleBasedStateMachine):
    """Any order of requests, with any ending; the model is what Lambda would do."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = FakeCell()
        self.sandbox = Sandbox(function(), surroundings(), cell=self.cell)
        self.sandbox.start()
        self.cell.while_requesting = self.try_a_second_request
        self.sequence = 0
        self.ever_initialised = False
        self.runtime_lives = False
        self.in_globals = 0
        self.in_tmp = 0
        self.largest: int | None = None
        self.refused = 0
        self.closed_by = 0

    def try_a_second_request(self) -> None:
        with pytest.raises(HarnessError, match="busy"):
            self.sandbox.invoke(event())
        self.refused += 1

    def alive(self) -> bool:
        return not isinstance(self.sandbox.phase, ShutDown)

    @precondition(alive)
    @rule(
        do=st.sampled_from([*OUTCOMES, "succeed"]),
        fail_inits=st.sampled_from([0, 0, 0, 1, 2]),
        peak_mb=st.one_of(st.none(), st.integers(1, 300)),
        freeze=st.booleans(),
    )
    def invoke(self, do: str, fail_inits: int, peak_mb: int | None, freeze: bool) -> None:
        frozen_before = isinstance(self.sandbox.phase, Frozen | FrozenBroken)
        thaws, freezes, refused = self.cell.fake_reach.thaws, self.cell.fake_reach.freezes, self.refused
        record = self.sandbox.invoke(
            event(do, fail_inits=fail_inits, **({} if peak_mb is None else {"peak_mb": peak_mb})), freeze_after=freeze
        )
        self.sequence += 1
        assert self.refused > refused, "a second request was tried inside of this one, and refused"
        # The freezer
        assert self.cell.fake_reach.thaws == thaws + frozen_before
        assert self.cell.fake_reach.freezes == freezes + freeze
        assert isinstance(self.sandbox.phase, Frozen | FrozenBroken) == freeze
        assert (record.frozen_ms is not None) == (record.thaw_ms is not None) == frozen_before
        assert (record.freeze_ms is not None) == freeze
        # Which init
        initialised = self.runtime_lives or self.model_init(fail_inits, record)
        assert record.sequence == self.sequence
        assert record.cold == (self.sequence == 1)
        assert record.sandbox_id == self.sandbox.id
        if not initialised:
            assert record.outcome is Outcome.INIT_ERROR
            assert isinstance(self.sandbox.phase, Broken | FrozenBroken)
            return
        self.model_request(do, peak_mb, record)

    def model_init(self, failing: int, record: Invocation) -> bool:
        tries = 1 if self.ever_initialised else 2
        first = not self.ever_initialised
        self.ever_initialised = True
        succeeds = failing < tries
        boosted = first and failing == 0
        assert record.phase_init is (PhaseInit.INIT if boosted else PhaseInit.SUPPRESSED)
        assert (record.init_ms is not None) == boosted
        assert ("Init Duration" in record.report) == boosted
        self.runtime_lives, self.in_globals = succeeds, 0
        return succeeds

    def model_request(self, do: str, peak_mb: int | None, record: Invocation) -> None:
        self.in_globals += 1
        self.in_tmp += 1
        assert record.outcome is OUTCOMES[do]
        if do == "succeed":
            assert record.response == [self.in_globals, self.in_tmp], (
                "globals as old as the runtime, /tmp as the sandbox"
            )
        if do not in ("succeed", "raise"):
            self.runtime_lives = False
            assert isinstance(self.sandbox.phase, Broken | FrozenBroken)
        else:
            assert isinstance(self.sandbox.phase, Idle | Frozen)
        assert record.duration_ms is not None
        assert record.billed_ms == math.ceil(round(round(record.init_ms or 0, 2) + round(record.duration_ms, 2), 6))
        if peak_mb is not None:
            self.largest = max(self.largest or 0, min(peak_mb, 256))  # never above the memory size
        if do == "run_out_of_memory":
            assert record.max_memory_used_mb == 256
            self.out_of_memory = True
        elif not getattr(self, "out_of_memory", False):
            assert record.max_memory_used_mb == self.largest, "what Lambda prints never falls"
        else:
            assert record.max_memory_used_mb == 256

    @precondition(lambda self: self.runtime_lives and isinstance(self.sandbox.phase, Idle))
    @rule()
    def the_runtime_dies_between_invocations(self) -> None:
        self.cell.runtime_lives = self.runtime_lives = False
        self.cell.died_unnoticed = True

    @precondition(alive)
    @rule()
    def lose_the_container(self) -> None:
        record = self.sandbox.invoke(event("lose"))
        assert record.outcome is Outcome.ENGINE_ERROR
        assert record.duration_ms is None
        assert record.billed_ms is None
        assert record.cost_usd is None
        assert record.max_memory_used_mb is None
        assert not self.alive()

    @precondition(alive)
    @rule(step=st.sampled_from(["freeze", "observe"]))
    def lose_the_engine(self, step: str) -> None:
        self.cell.fake_reach.trouble[step] = EngineError("the engine went away")
        record = self.sandbox.invoke(event(), freeze_after=True)
        assert record.outcome is Outcome.ENGINE_ERROR
        assert record.error_message == "the engine went away"
        assert not self.alive()

    @rule()
    def shut_down(self) -> None:
        self.sandbox.shut_down()
        self.closed_by += 1
        assert not self.alive()

    @invariant()
    def a_living_sandbox_holds_its_cell_and_a_dead_one_gave_it_back(self) -> None:
        assert bool(self.cell.closed) == (not self.alive())

    @invariant()
    def every_freeze_has_its_thaw(self) -> None:
        if self.alive():
            open_freezes = self.cell.fake_reach.freezes - self.cell.fake_reach.thaws
            assert open_freezes == self.cell.fake_reach.frozen == isinstance(self.sandbox.phase, Frozen | FrozenBroken)


Life.TestCase.settings = settings(max_examples=120, stateful_step_count=25)
TestLife = Life.TestCase


def test_a_sandbox_is_created_then_started_then_awaits_its_first_request() -> None:
    cell = FakeCell()
    sandbox = Sandbox(function(), surroundings(), cell=cell)
    assert isinstance(sandbox.phase, Created)
    sandbox.start()
    assert isinstance(sandbox.phase, Started)
    assert cell.starts == 1
    with pytest.raises(AssertionError):
        sandbox.start()


def test_leaving_the_context_gives_everything_back_also_after_an_error() -> None:
    cell = FakeCell()
    with pytest.raises(RuntimeError, match="on the way"), Sandbox(function(), surroundings(), cell=cell):
        raise RuntimeError("on the way")
    assert cell.closed == 1


def test_a_sandbox_that_cannot_start_says_why() -> None:
    cell = FakeCell(start_trouble=EngineError("no space left on device"))
    with pytest.raises(EngineError, match="no space left"), Sandbox(function(), surroundings(), cell=cell):
        pytest.fail("it did not start")


def test_interrupting_a_request_shuts_the_sandbox_down() -> None:
    sandbox, cell = started()
    with pytest.raises(KeyboardInterrupt):
        sandbox.invoke(event("interrupt"))
    assert isinstance(sandbox.phase, ShutDown)
    assert cell.closed == 1


def test_after_an_interrupt_or_an_error_the_sandbox_is_not_left_busy() -> None:
    sandbox, _ = started()
    with pytest.raises(KeyboardInterrupt):
        sandbox.invoke(event("interrupt"))
    with pytest.raises((HarnessError, AssertionError)) as found:
        sandbox.invoke(event())
    assert "busy" not in str(found.value)


def test_a_log_that_breaks_off_is_an_engine_error_on_the_record() -> None:
    sandbox, cell = started()
    cell.settle_trouble = EngineError("the watch failed")
    record = sandbox.invoke(event())
    assert record.outcome is Outcome.ENGINE_ERROR
    assert record.error_type == "EngineError"
    assert record.notes[-1] == "not measured, because the engine failed: the watch failed"


def test_output_whose_end_did_not_come_is_told() -> None:
    sandbox, cell = started()
    cell.log_comes_to_its_end = False
    assert any("end of the output may be missing" in note for note in sandbox.invoke(event()).notes)
    cell.log_comes_to_its_end = True
    assert not any("end of the output" in note for note in sandbox.invoke(event()).notes)


def test_the_record_carries_the_limits_as_read_back_and_what_the_vantage_noted() -> None:
    sandbox, cell = started()
    record = sandbox.invoke(event())
    assert record.cpu_quota_us == cell.granted.cpu_quota_us
    assert record.memory_limit_bytes == 256 * MIB
    assert record.cgroup_version == 2
    assert record.notes[:1] == ("a fake",)
    assert "observed by a fake" in record.notes


def test_the_peak_that_nobody_could_measure_is_none_and_a_dash_in_the_report() -> None:
    sandbox, _ = started()
    record = sandbox.invoke(event())
    assert record.max_memory_used_mb is None
    assert "Max Memory Used: - MB" in record.report


def test_max_memory_used_rounds_up_to_whole_megabytes() -> None:
    sandbox, cell = started()
    sandbox.invoke(event(peak_mb=10))
    cell.while_requesting = lambda: None
    assert sandbox.invoke(event(peak_mb=9)).max_memory_used_mb == 10


def test_the_log_tail_is_as_lambda_hands_it_out() -> None:
    sandbox, _ = started()
    record = sandbox.invoke(event("crash"))
    lines = record.log_tail.splitlines()
    assert lines[0] == f"START RequestId: {record.request_id} Version: $LATEST"
    assert lines[1] == f"RequestId: {record.request_id} Error: Runtime exited with error: exit status 3"
    assert lines[2] == "Runtime.ExitError"
    assert lines[3] == f"END RequestId: {record.request_id}"
    assert lines[4] == record.report


def test_an_answer_that_is_no_json_is_kept_as_base64() -> None:
    from harness.sandbox import _parsed

    assert _parsed(b"\xff\x00") == ("/wA=", "base64")
    assert _parsed(b"") == (None, "json")
    assert _parsed(json.dumps({"a": 1}).encode()) == ({"a": 1}, "json")


def test_sandboxes_are_pinned_to_the_cpus_that_fewest_others_have() -> None:
    board = CpuBoard((0, 1, 2, 3))
    first, second, third = board.take(2), board.take(2), board.take(3)
    assert (first, second, third) == ((0, 1), (2, 3), (0, 1, 2))
    board.give_back(first)
    board.give_back(third)
    assert board.take(2) == (0, 1)
    assert CpuBoard((5,)).take(2) == (5,)


def test_an_init_ahead_of_requests_is_no_part_of_the_first_one() -> None:
    sandbox, cell = started()
    sandbox.initialise()
    assert isinstance(sandbox.phase, Frozen)
    assert sandbox.init_ms == 123.456
    assert cell.fake_reach.frozen
    record = sandbox.invoke(event())
    assert (record.sequence, record.cold, record.phase_init, record.init_ms) == (1, False, None, None)
    assert "Init Duration" not in record.report
    assert record.frozen_ms is not None


def test_an_init_ahead_that_fails_ends_the_sandbox() -> None:
    sandbox, cell = started(FakeCell(fail_inits_ahead=1))
    with pytest.raises(InitFailed, match="init failed"):
        sandbox.initialise()
    assert isinstance(sandbox.phase, ShutDown)
    assert cell.closed == 1


def test_an_invocation_carries_its_context_and_has_a_trace_in_any_case() -> None:
    heard: list[RequestContext] = []

    class Listening(Observer):
        def invoked(self, sandbox: Sandbox, record: Invocation, context: RequestContext) -> None:
            heard.append(context)

    sandbox = Sandbox(function(), surroundings(observer=Listening()), cell=FakeCell())
    sandbox.start()
    context = RequestContext(client_context="{}")
    assert sandbox.invoke(event(), context=context).request_id == context.request_id
    assert heard[0].client_context == "{}"
    assert heard[0].trace is not None
    assert not heard[0].trace.sampled, "nobody takes the segments"


@pytest.mark.parametrize(
    ("header", "trace"),
    [
        ("Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8;Sampled=1", True),
        ("Sampled=0; Root=1-5759e988-bd862e3fe1be46a994272793", False),
    ],
)
def test_a_caller_s_trace_header_is_read(header: str, trace: bool) -> None:
    found = Trace.parse(header)
    assert found is not None
    assert found.trace_id == "1-5759e988-bd862e3fe1be46a994272793"
    assert found.sampled is trace
    assert Trace.parse(found.header) == found
    assert Trace.parse("Sampled=1") is None


def test_what_ran_on_provisioned_concurrency_has_no_cost_of_on_demand() -> None:
    sandbox, _ = started()
    sandbox.initialise()
    record = sandbox.invoke(event())
    assert record.billed_ms is not None
    assert record.cost_usd is None
    assert any("prices of its own" in note for note in record.notes)


def test_an_init_that_the_rie_does_not_report_is_still_billed() -> None:
    class Silent(FakeCell):
        def settle(self, exchange: Exchange) -> None:
            if exchange.init_begun_ns is not None:
                exchange.init_ms, exchange.init_done_ns = None, exchange.init_begun_ns + 40_000_000

    sandbox, _ = started(Silent())
    record = sandbox.invoke(event())
    assert record.init_ms == 40.0
    assert record.billed_ms == math.ceil(40.0 + (record.duration_ms or 0.0))
    assert any("from outside" in note for note in record.notes)
    assert not any("from outside" in note for note in sandbox.invoke(event()).notes)


def test_an_answer_that_is_nested_too_deeply_is_kept_as_base64_too() -> None:
    class Deep(FakeCell):
        def request(self, event: bytes, *, timeout_s: float) -> Answer:
            super().request(event, timeout_s=timeout_s)
            return Answer(status=200, body=b"[" * 200_000 + b"]" * 200_000)

    sandbox, _ = started(Deep())
    record = sandbox.invoke(event())
    assert record.outcome is Outcome.SUCCESS
    assert record.response_encoding == "base64"
