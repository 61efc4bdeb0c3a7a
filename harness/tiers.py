"""Memory size -> CPU: the arithmetic of Lambda's tiers. Pure; must not know engines or containers.

Sources: AWS documents that 1769 MB have the equivalent of one vCPU and that CPU grows in proportion to memory. The
20 ms CFS period and the steps of the visible vCPUs were observed inside Lambda and published ("Demystifying Serverless
Costs on Public Platforms", EuroSys '26; the AWS documentation names 6 vCPUs as the maximum).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from harness.errors import InvalidInput

MIN_MEMORY_MB = 128
MAX_MEMORY_MB = 10240
MEMORY_MB_PER_VCPU = 1769
"""Memory size at which a function has the equivalent of one vCPU [AWS Lambda developer guide, "Configure memory"]."""

CPU_PERIOD_US = 20_000
"""CFS bandwidth period on Lambda, in microseconds. Docker's ``--cpus`` takes 100 000: wrong for short handlers."""

BOOST_VCPUS = 2
"""Init runs at this many vCPUs whatever the memory size."""

_VCPU_STEPS = ((8846, 6), (7077, 5), (5308, 4), (3009, 3), (MIN_MEMORY_MB, 2))


@dataclass(frozen=True, kw_only=True)
class Tier:
    """What Lambda grants at one memory size."""

    memory_mb: int
    cpu_quota_us: int
    cpu_period_us: int
    visible_vcpus: int

    @property
    def memory_bytes(self) -> int:
        return self.memory_mb * 1024 * 1024

    @property
    def vcpus(self) -> float:
        """The share of CPU as AWS states it: memory size / 1769."""
        return self.memory_mb / MEMORY_MB_PER_VCPU


def tier(memory_mb: int) -> Tier:
    """The tier of a memory size in MB (1 MB = 1024 * 1024 bytes); `InvalidInput` outside 128 to 10240."""
    if not MIN_MEMORY_MB <= memory_mb <= MAX_MEMORY_MB:
        raise InvalidInput(
            f"memory size {memory_mb} MB is outside what Lambda offers",
            remedy=f"choose a whole number of MB from {MIN_MEMORY_MB} to {MAX_MEMORY_MB}",
        )
    return Tier(
        memory_mb=memory_mb,
        cpu_quota_us=CPU_PERIOD_US * memory_mb // MEMORY_MB_PER_VCPU,
        cpu_period_us=CPU_PERIOD_US,
        visible_vcpus=next(vcpus for start, vcpus in _VCPU_STEPS if memory_mb >= start),
    )


def billed_ms(init_ms: float | None, duration_ms: float) -> int:
    """Billed duration in ms: init (billed since 2025-08-01) plus duration, rounded up to the next millisecond."""
    # Lambda rounds the sum of what REPORT prints, which has two decimals: float dust must not add a millisecond.
    return max(1, math.ceil(round((init_ms or 0.0) + duration_ms, 6)))
