"""A series: the same function invoked again and again, in one pool, with gaps. A plan in, records out."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from harness.invocation import Invocation
from harness.pool import Pool
from harness.stand import Stand


@dataclass(frozen=True, kw_only=True)
class SeriesPlan:
    """``events`` are used in turn; ``gap_s`` is the pause between invocations, frozen unless the stand says otherwise."""

    events: tuple[bytes, ...]
    count: int
    gap_s: float = 0.0


def run(stand: Stand, plan: SeriesPlan) -> Iterator[Invocation]:
    """The records, one by one as they are measured. Raises `EngineError` when no sandbox can be started."""
    with Pool(stand) as pool:
        for number in range(plan.count):
            if number and plan.gap_s:
                time.sleep(plan.gap_s)
            yield pool.invoke(plan.events[number % len(plan.events)])
