"""The life of one execution environment as types: each phase has the steps that are legal in it, and no others.

    Created -> Started -> Initialising -> Invoking -> Idle <-> Frozen
                              |   ^          |
                              v   |          v
                        Reinitialising  <- Broken <-> FrozenBroken        any of them -> ShutDown

A step that is not legal does not exist on the phase: a type checker refuses it, and at run time it is an AttributeError.
Reinitialising is Lambda's suppressed init: no boost, under the function's timeout. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ShutDown:
    """The container is gone."""

    def shut_down(self) -> ShutDown:
        return self


@dataclass(frozen=True)
class _Live:
    def shut_down(self) -> ShutDown:
        return ShutDown()


@dataclass(frozen=True)
class Created(_Live):
    """A container exists; nothing runs in it."""

    def start(self) -> Started:
        return Started()


@dataclass(frozen=True)
class Started(_Live):
    """The RIE waits; no runtime yet. The first request will begin the init."""

    def invoke(self) -> Initialising:
        return Initialising()


@dataclass(frozen=True)
class Initialising(_Live):
    """Init: at full CPU, limited to ten seconds."""

    def init_done(self) -> Invoking:
        return Invoking(warm=0)

    def init_failed(self) -> Reinitialising:
        return Reinitialising()

    def ready(self) -> Idle:
        """Init was ahead of any request (provisioned concurrency): there is no event to hand over yet."""
        return Idle(warm=0)

    def lost(self) -> Broken:
        return Broken()


@dataclass(frozen=True)
class Reinitialising(_Live):
    """A suppressed init, inside an invocation."""

    def init_done(self) -> Invoking:
        return Invoking(warm=0)

    def init_failed(self) -> Reinitialising:
        return self

    def lost(self) -> Broken:
        return Broken()


@dataclass(frozen=True)
class Invoking(_Live):
    """The handler runs. ``warm`` counts the invocations that this runtime has completed."""

    warm: int

    def responded(self) -> Idle:
        return Idle(warm=self.warm + 1)

    def lost(self) -> Broken:
        return Broken()


@dataclass(frozen=True)
class Idle(_Live):
    """Between invocations, running: what the handler left behind goes on."""

    warm: int

    def freeze(self) -> Frozen:
        return Frozen(warm=self.warm)

    def invoke(self) -> Invoking:
        return Invoking(warm=self.warm)

    def lost(self) -> Broken:
        return Broken()


@dataclass(frozen=True)
class Frozen(_Live):
    """Between invocations, and nothing in it runs."""

    warm: int

    def thaw(self) -> Idle:
        return Idle(warm=self.warm)


@dataclass(frozen=True)
class Broken(_Live):
    """The runtime is gone (crash, kill, timeout); /tmp is kept. The next request begins a suppressed init."""

    def freeze(self) -> FrozenBroken:
        return FrozenBroken()

    def invoke(self) -> Reinitialising:
        return Reinitialising()


@dataclass(frozen=True)
class FrozenBroken(_Live):
    """Broken, and frozen."""

    def thaw(self) -> Broken:
        return Broken()


Phase = Created | Started | Initialising | Reinitialising | Invoking | Idle | Frozen | Broken | FrozenBroken | ShutDown
