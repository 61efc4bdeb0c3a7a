"""Starting points by kind of workload: which memory sizes to sweep first. Pure data; a sweep decides, not a preset."""

from __future__ import annotations

from dataclasses import dataclass

from harness.errors import InvalidInput


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A kind of workload: the size that is usually tried first, and the sizes around it that are worth measuring."""

    name: str
    start_memory_mb: int
    memory_mb: tuple[int, ...]
    reason: str


PRESETS = (
    Preset(
        name="api",
        start_memory_mb=512,
        memory_mb=(128, 256, 512, 1024, 1769),
        reason="an API handler needs little CPU and is judged by its response time",
    ),
    Preset(
        name="database",
        start_memory_mb=1024,
        memory_mb=(256, 512, 1024, 1769, 2048),
        reason="queries mostly wait; connections, TLS and rows to parse need some CPU",
    ),
    Preset(
        name="file-processing",
        start_memory_mb=1769,
        memory_mb=(512, 1024, 1769, 2048, 3008),
        reason="images and files are bound by CPU, and 1769 MB grant one whole vCPU",
    ),
    Preset(
        name="ml",
        start_memory_mb=3008,
        memory_mb=(1769, 2048, 3008, 5308, 7077, 10240),
        reason="the model has to fit, and inference spreads over several vCPUs",
    ),
    Preset(
        name="etl",
        start_memory_mb=1769,
        memory_mb=(512, 1024, 1769, 2048, 3008),
        reason="transformations are bound by CPU, mostly on one thread: one whole vCPU",
    ),
)


def preset(name: str) -> Preset:
    """The preset of that name; `InvalidInput` names those that there are."""
    for found in PRESETS:
        if found.name == name:
            return found
    raise InvalidInput(
        f"preset {name!r} does not exist", remedy=f"choose one of {', '.join(found.name for found in PRESETS)}"
    )
