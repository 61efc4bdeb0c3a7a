"""Which steps a phase of an execution environment has, and that it has no others."""

from __future__ import annotations

import dataclasses
import typing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import lifecycle
from harness.lifecycle import (
    Broken,
    Created,
    Frozen,
    FrozenBroken,
    Idle,
    Initialising,
    Invoking,
    Phase,
    Reinitialising,
    ShutDown,
    Started,
)

STEPS = ("start", "invoke", "init_done", "init_failed", "ready", "responded", "lost", "freeze", "thaw", "shut_down")
PHASES: tuple[type, ...] = typing.get_args(Phase)
LEGAL: dict[type, dict[str, type]] = {
    Created: {"start": Started},
    Started: {"invoke": Initialising},
    Initialising: {"init_done": Invoking, "init_failed": Reinitialising, "ready": Idle, "lost": Broken},
    Reinitialising: {"init_done": Invoking, "init_failed": Reinitialising, "lost": Broken},
    Invoking: {"responded": Idle, "lost": Broken},
    Idle: {"freeze": Frozen, "invoke": Invoking, "lost": Broken},
    Frozen: {"thaw": Idle},
    Broken: {"freeze": FrozenBroken, "invoke": Reinitialising},
    FrozenBroken: {"thaw": Broken},
    ShutDown: {},
}


def made(phase: type) -> typing.Any:
    return phase(warm=2) if "warm" in {each.name for each in dataclasses.fields(phase)} else phase()


def test_every_phase_and_every_step_of_the_module_is_in_this_table() -> None:
    assert set(LEGAL) == set(PHASES)
    found = {name for phase in PHASES for name in dir(phase) if not name.startswith("_")} - {"warm"}
    assert found == set(STEPS)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("phase", PHASES, ids=lambda phase: phase.__name__)
def test_a_step_exists_where_it_is_legal_and_nowhere_else(phase: type, step: str) -> None:
    if step == "shut_down":
        assert made(phase).shut_down() == ShutDown()
    elif step in LEGAL[phase]:
        assert type(getattr(made(phase), step)()) is LEGAL[phase][step]
    else:
        with pytest.raises(AttributeError):
            getattr(made(phase), step)


@pytest.mark.parametrize("phase", PHASES, ids=lambda phase: phase.__name__)
def test_a_phase_is_a_value_that_nobody_changes(phase: type) -> None:
    with pytest.raises((dataclasses.FrozenInstanceError, TypeError, AttributeError)):
        made(phase).warm = 9
    assert made(phase) == made(phase)


@given(st.lists(st.sampled_from(STEPS), max_size=60))
def test_whatever_is_tried_a_request_only_begins_awake_and_a_lost_runtime_is_only_replaced_by_an_init(
    steps: list[str],
) -> None:
    phase: typing.Any = Created()
    for step in steps:
        before = phase
        if step not in LEGAL[type(before)] and step != "shut_down":
            assert not hasattr(before, step)
            continue
        phase = getattr(before, step)()
        if isinstance(phase, Invoking):
            assert not isinstance(before, Frozen | FrozenBroken | Broken | Created | Started)
        if isinstance(before, Broken) and step == "invoke":
            assert isinstance(phase, Reinitialising)
        if isinstance(before, ShutDown):
            assert isinstance(phase, ShutDown)


def test_the_runtime_counts_its_invocations_and_a_new_one_begins_at_nought() -> None:
    idle = Idle(warm=3)
    assert idle.freeze().thaw().invoke().responded() == Idle(warm=4)
    assert idle.invoke().lost().invoke().init_done() == Invoking(warm=0)
    assert lifecycle.Created().start().invoke().init_done().responded() == Idle(warm=1)
