"""Which memory size, why, what it saves, and what to beware of. Pure; sees the tiers of a sweep's findings.

``cost`` is the cheapest, ``speed`` the fastest, ``balanced`` has the smallest ``w * cost / highest cost + (1 - w) *
duration / longest duration`` (formula and weight of aws-lambda-power-tuning: 1 means cost alone, 0 time alone), and
``rating`` the smallest cost divided by ``max(1, 10 - duration in ms / 100)``. All use means; what is no difference
beyond noise is said in the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.analysis.statistics import MIN_EFFECT
from harness.errors import InvalidInput

STRATEGIES = ("cost", "speed", "balanced", "rating")
DEFAULT_WEIGHT = 0.5
DEFAULT_INVOCATIONS_PER_MONTH = 1_000_000

THROTTLED_SHARE_WARNING = 0.5
MEMORY_USED_WARNING = 0.8
"""Above it one larger event ends in an out-of-memory kill, and collectors begin to work hard."""

Tier = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Aim:
    """What the user wants: a strategy, the weight of cost in ``balanced``, and what is configured today."""

    strategy: str = "cost"
    weight: float = DEFAULT_WEIGHT
    current_memory_mb: int | None = None
    invocations_per_month: int = DEFAULT_INVOCATIONS_PER_MONTH

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise InvalidInput(f"strategy {self.strategy!r}", remedy=f"choose one of {', '.join(STRATEGIES)}")
        if not 0 <= self.weight <= 1:
            raise InvalidInput(f"weight {self.weight}", remedy="give a number from 0 (time alone) to 1 (cost alone)")
        if self.invocations_per_month < 0:
            raise InvalidInput(
                f"{self.invocations_per_month} invocations a month", remedy="give a whole number, 0 or more"
            )


def duration_ms_of(found: Tier) -> float | None:
    """The duration that a tier is judged by: warm, or cold where only cold starts were measured."""
    stats = found["duration_ms"] or (found["cold"] or {}).get("duration_ms")
    return None if stats is None else float(stats["mean"])


def cost_usd_of_tier(found: Tier) -> float | None:
    """The cost by invocation that a tier is judged by: warm, or cold where only cold starts were measured."""
    cost = found["cost_usd_per_invocation"]
    if cost is None and found["cold"]:
        cost = found["cold"]["cost_usd_per_invocation"]
    return None if cost is None else float(cost)


@dataclass(frozen=True, kw_only=True)
class _Choice:
    tier: Tier
    cost_usd: float
    duration_ms: float

    @property
    def name(self) -> str:
        return tier_name(self.tier)


def tier_name(found: Tier) -> str:
    """``512 MB``, or ``512 MB (variant)``."""
    return f"{found['memory_mb']} MB" + (f" ({found['variant']})" if found.get("variant") else "")


def _choices(tiers: Sequence[Tier]) -> list[_Choice]:
    found = []
    for candidate in tiers:
        cost_usd, duration_ms = cost_usd_of_tier(candidate), duration_ms_of(candidate)
        if cost_usd is not None and duration_ms is not None:
            found.append(_Choice(tier=candidate, cost_usd=cost_usd, duration_ms=duration_ms))
    return found


def balanced_score(
    cost_usd: float, duration_ms: float, *, highest_cost_usd: float, longest_ms: float, weight: float
) -> float:
    """power-tuning's value of a configuration; the smallest wins."""
    cost_part = cost_usd / highest_cost_usd if highest_cost_usd else 0.0
    time_part = duration_ms / longest_ms if longest_ms else 0.0
    return weight * cost_part + (1 - weight) * time_part


def rating_score(cost_usd: float, duration_ms: float) -> float:
    """Cost divided by a rating of speed that falls from 10 by one each 100 ms, and never below 1; the smallest wins."""
    return cost_usd / max(1.0, 10 - duration_ms / 100)


def recommend(tiers: Sequence[Tier], rejected: Sequence[Mapping[str, Any]], aim: Aim) -> dict[str, Any]:
    """The recommendation of one strategy; ``memory_mb`` is None where no tier could run the function."""
    choices = _choices(tiers)
    if not choices:
        why = "; ".join(f"{found['memory_mb']} MB: {found['why']}" for found in rejected) or "nothing was measured"
        return {
            "strategy": aim.strategy,
            "memory_mb": None,
            "variant": None,
            "reason": f"No memory size can be recommended ({why}).",
            "score": None,
            "saving": None,
            "alternatives": [],
            "warnings": sweep_warnings(tiers, rejected),
        }
    score = _score(choices, aim)
    # Of equal scores the smaller memory size, so that the answer never depends on the order of measuring.
    chosen = min(choices, key=lambda choice: (score(choice), choice.tier["memory_mb"], choice.tier["variant"] or ""))
    alternatives = _alternatives(chosen, choices, aim.strategy)
    current = next(
        (c for c in choices if c.tier["memory_mb"] == aim.current_memory_mb and c.tier["variant"] is None),
        next((c for c in choices if c.tier["memory_mb"] == aim.current_memory_mb), None),
    )
    concerned = {found.tier["memory_mb"] for found in (chosen, current) if found}
    return {
        "strategy": aim.strategy,
        "memory_mb": chosen.tier["memory_mb"],
        "variant": chosen.tier["variant"],
        "reason": _reason(chosen, choices, alternatives, aim, score),
        "score": score(chosen),
        "saving": _saving(current, chosen, aim),
        "alternatives": alternatives,
        "warnings": [found for found in sweep_warnings(tiers, rejected) if found["memory_mb"] in concerned],
    }


def recommend_all(tiers: Sequence[Tier], rejected: Sequence[Mapping[str, Any]], aim: Aim) -> dict[str, dict[str, Any]]:
    """Every strategy's recommendation, for the same current size and weight."""
    return {
        strategy: recommend(
            tiers,
            rejected,
            Aim(
                strategy=strategy,
                weight=aim.weight,
                current_memory_mb=aim.current_memory_mb,
                invocations_per_month=aim.invocations_per_month,
            ),
        )
        for strategy in STRATEGIES
    }


def _score(choices: Sequence[_Choice], aim: Aim) -> Callable[[_Choice], float]:
    highest_cost_usd = max(choice.cost_usd for choice in choices)
    longest_ms = max(choice.duration_ms for choice in choices)

    def balanced(choice: _Choice) -> float:
        return balanced_score(
            choice.cost_usd,
            choice.duration_ms,
            highest_cost_usd=highest_cost_usd,
            longest_ms=longest_ms,
            weight=aim.weight,
        )

    return {
        "cost": lambda choice: choice.cost_usd,
        "speed": lambda choice: choice.duration_ms,
        "balanced": balanced,
        "rating": lambda choice: rating_score(choice.cost_usd, choice.duration_ms),
    }[aim.strategy]


def _overlap(first: Tier, second: Tier, low: Callable[[Tier], Any], high: Callable[[Tier], Any]) -> bool:
    """Whether two intervals meet; a missing interval meets nothing that can be said, so it does not count as a tie."""
    ends = (low(first), high(first), low(second), high(second))
    if any(end is None for end in ends):
        return False
    return bool(ends[0] <= ends[3] and ends[2] <= ends[1])


def same_duration(first: Tier, second: Tier) -> bool:
    """Whether two tiers' mean durations are no more apart than noise: intervals meet, or less than 2 % lies between."""
    one, two = duration_ms_of(first), duration_ms_of(second)
    if one is None or two is None:
        return False
    if abs(two - one) < MIN_EFFECT * max(one, two):
        return True
    if not (first["duration_ms"] and second["duration_ms"]):
        return False
    return _overlap(first, second, lambda t: t["duration_ms"]["ci_low"], lambda t: t["duration_ms"]["ci_high"])


def same_cost(first: Tier, second: Tier) -> bool:
    """Whether two tiers' mean costs are no more apart than noise."""
    one, two = cost_usd_of_tier(first), cost_usd_of_tier(second)
    if one is None or two is None:
        return False
    if abs(two - one) < MIN_EFFECT * max(one, two):
        return True
    return _overlap(first, second, lambda t: t["cost_ci_low"], lambda t: t["cost_ci_high"])


def _alternatives(chosen: _Choice, choices: Sequence[_Choice], strategy: str) -> list[dict[str, Any]]:
    """Tiers that do as well as the chosen one by its strategy, and better by the other measure."""
    found = []
    for other in choices:
        if other is chosen:
            continue
        if strategy == "cost":
            fits = same_cost(chosen.tier, other.tier) and other.duration_ms < chosen.duration_ms
            fits = fits and not same_duration(chosen.tier, other.tier)
            why = f"costs the same within noise and takes {other.duration_ms / chosen.duration_ms:.0%} of the time"
        elif strategy == "speed":
            fits = same_duration(chosen.tier, other.tier) and other.cost_usd < chosen.cost_usd
            fits = fits and not same_cost(chosen.tier, other.tier)
            why = f"is as fast within noise and costs {1 - other.cost_usd / chosen.cost_usd:.0%} less"
        else:
            continue
        if fits:
            found.append({"memory_mb": other.tier["memory_mb"], "variant": other.tier["variant"], "why": why})
    return found


def _usd(value: float) -> str:
    return f"${value * 1e6:,.2f} per million invocations"


def _reason(
    chosen: _Choice,
    choices: Sequence[_Choice],
    alternatives: Sequence[Mapping[str, Any]],
    aim: Aim,
    score: Callable[[_Choice], float],
) -> str:
    figures = f"{chosen.duration_ms:,.1f} ms, {_usd(chosen.cost_usd)}"
    among = f"of {len(choices)} that were measured" if len(choices) > 1 else "the only one that was measured"
    lead = {
        "cost": f"{chosen.name} is the cheapest, {among}: {figures}",
        "speed": f"{chosen.name} is the fastest, {among}: {figures}",
        "balanced": f"{chosen.name} balances best, {among}, with cost weighing {aim.weight:.0%} and time "
        f"{1 - aim.weight:.0%} (score {score(chosen):.3f}): {figures}",
        "rating": f"{chosen.name} has the lowest cost by rating of speed, {among} "
        f"({max(1.0, 10 - chosen.duration_ms / 100):.1f} of 10): {figures}",
    }[aim.strategy]
    if alternatives:
        best = alternatives[0 if aim.strategy == "speed" else -1]
        lead += f"; {tier_name(best)} {best['why']}"
    if all(choice.tier["n"] == 0 for choice in choices):
        lead += "; judged by cold starts, nothing else was measured"
    return lead + "."


def _saving(current: _Choice | None, chosen: _Choice, aim: Aim) -> dict[str, Any] | None:
    """What changing from the current size brings in a month; positive ``usd_per_month`` is a saving. List price."""
    if current is None:
        return None
    usd = (current.cost_usd - chosen.cost_usd) * aim.invocations_per_month
    ratio = chosen.duration_ms / current.duration_ms if current.duration_ms else None
    if current.tier is chosen.tier:
        sentence = f"{chosen.name} is what is configured today."
    else:
        word = "saves" if usd >= 0 else "costs"
        same = same_duration(current.tier, chosen.tier)
        speed = "in the same time within noise" if same or ratio is None else f"in {ratio:.0%} of the time"
        tail = "" if usd >= 0 else " more"
        sentence = (
            f"Against {current.name} it {word} ${abs(usd):,.2f} a month{tail} at {aim.invocations_per_month:,} "
            f"invocations, {speed}."
        )
    return {
        "against_memory_mb": current.tier["memory_mb"],
        "against_variant": current.tier["variant"],
        "invocations_per_month": aim.invocations_per_month,
        "usd_per_month": usd,
        "cost_ratio": chosen.cost_usd / current.cost_usd if current.cost_usd else None,
        "duration_ms_ratio": ratio,
        "duration_differs": not same_duration(current.tier, chosen.tier),
        "sentence": sentence,
    }


def _warning(kind: str, found: Mapping[str, Any], sentence: str, remedy: str) -> dict[str, Any]:
    return {
        "kind": kind,
        "memory_mb": found["memory_mb"],
        "variant": found["variant"],
        "sentence": sentence,
        "remedy": remedy,
    }


def sweep_warnings(tiers: Sequence[Tier], rejected: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What to beware of. ``kind`` is of a closed set.

    ``over_allocation``, ``under_allocation_cpu``, ``under_allocation_memory``, ``time_outs``, ``out_of_memory``,
    ``host_too_few_cpus``, ``too_few_measurements``.
    """
    found = [warning for candidate in tiers for warning in _tier_warnings(candidate)]
    found += _over_allocations(tiers)
    for candidate in rejected:
        if candidate["outcomes"].get("out_of_memory"):
            found.append(
                _warning(
                    "out_of_memory", candidate, f"{tier_name(candidate)}: {candidate['why']}.", "give it more memory"
                )
            )
        elif candidate["outcomes"].get("timeout"):
            found.append(
                _warning(
                    "time_outs",
                    candidate,
                    f"{tier_name(candidate)}: {candidate['why']}.",
                    "give it more memory, which is more CPU, or a longer timeout",
                )
            )
    return sorted(found, key=lambda warning: (warning["memory_mb"], warning["variant"] or "", warning["kind"]))


def _tier_warnings(found: Tier) -> list[dict[str, Any]]:
    warnings = []
    share = found["throttled_share"]
    if share is not None and share >= THROTTLED_SHARE_WARNING:
        warnings.append(
            _warning(
                "under_allocation_cpu",
                found,
                f"{tier_name(found)}: for {share:.0%} of the time the function was stopped, its CPU share used up.",
                "compare the cost of a larger memory size: where CPU is the limit, it is often no dearer",
            )
        )
    used = found["memory_used_share"]
    if used is not None and used > MEMORY_USED_WARNING:
        warnings.append(
            _warning(
                "under_allocation_memory",
                found,
                f"{tier_name(found)}: {used:.0%} of the memory was used at the peak.",
                "leave a fifth free for larger events, or find the limit with `oom`",
            )
        )
    if found["outcomes"].get("timeout"):
        warnings.append(
            _warning(
                "time_outs",
                found,
                f"{tier_name(found)}: {found['outcomes']['timeout']} invocations timed out.",
                "give it more memory, which is more CPU, or a longer timeout",
            )
        )
    if found["cpu_capped"]:
        warnings.append(
            _warning(
                "host_too_few_cpus",
                found,
                f"{tier_name(found)}: this host has fewer CPUs than Lambda grants; there parallel work "
                "is faster than what was measured here.",
                "measure sizes above 1769 MB on a host with more CPUs",
            )
        )
    if 0 < found["n"] < 5:
        warnings.append(
            _warning(
                "too_few_measurements",
                found,
                f"{tier_name(found)}: {found['n']} warm measurements say little about the spread.",
                "measure again with -n 20",
            )
        )
    return warnings


def _over_allocations(tiers: Sequence[Tier]) -> list[dict[str, Any]]:
    """Tiers that are dearer than a smaller one and not faster beyond noise."""
    found = []
    for name in {candidate["variant"] for candidate in tiers}:
        choices = sorted(
            _choices([candidate for candidate in tiers if candidate["variant"] == name]),
            key=lambda choice: choice.tier["memory_mb"],
        )
        for index, larger in enumerate(choices):
            enough = next(
                (
                    smaller
                    for smaller in choices[:index]
                    if (larger.duration_ms >= smaller.duration_ms or same_duration(smaller.tier, larger.tier))
                    and larger.cost_usd > smaller.cost_usd * (1 + MIN_EFFECT)
                ),
                None,
            )
            if enough is None:
                continue
            sentence = (
                f"{larger.name} is not faster than {enough.name} beyond noise ({larger.duration_ms:,.1f} ms against "
                f"{enough.duration_ms:,.1f} ms) and costs {larger.cost_usd / enough.cost_usd - 1:.0%} more."
            )
            if larger.tier["cpu_capped"]:
                sentence += " The host has fewer CPUs than that size grants, so Lambda may differ."
            found.append(_warning("over_allocation", larger.tier, sentence, f"choose {enough.name}"))
    return found
