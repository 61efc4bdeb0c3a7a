"""Which image serves a function: the answer, and where the image came from. Knows no engine."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

MACHINES = {"amd64": "x86_64", "x86_64": "x86_64", "arm64": "arm64", "aarch64": "arm64"}
"""The engine's and the kernel's names of architectures -> Lambda's."""


class ImageSource(StrEnum):
    """Where an image came from, in the order of preference."""

    NAMED = "named"
    AWS_LOCAL = "aws_local"
    AWS_PULLED = "aws_pulled"
    OFFLINE = "offline"


@dataclass(frozen=True, kw_only=True)
class ResolvedImage:
    """An image that is in the engine, and the reason why it was chosen."""

    reference: str
    image_id: str
    runtime: str | None
    architecture: str
    source: ImageSource
    why: str
    size_bytes: int


def resolved(
    attributes: dict[str, Any], reference: str, runtime: str | None, source: ImageSource, why: str
) -> ResolvedImage:
    """The answer, made of what the engine's inspection of an image says."""
    return ResolvedImage(
        reference=reference,
        image_id=attributes["Id"],
        runtime=runtime,
        architecture=MACHINES.get(attributes["Architecture"], attributes["Architecture"]),
        source=source,
        why=why,
        size_bytes=attributes["Size"],
    )
