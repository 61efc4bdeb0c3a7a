"""How a container of an image is started as a Lambda function: its own entrypoint, with the RIE in front where needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from harness.engine.client import Engine

LAMBDA_ENTRYPOINT = "/lambda-entrypoint.sh"
"""The entrypoint of AWS's base images (and of the offline ones): takes the handler, starts the RIE itself."""


_BOOTSTRAP = "/var/runtime/bootstrap"
"""What that entrypoint hands to the RIE [aws-lambda-base-images]."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """How a container begins. ``entrypoint`` None: the image's own."""

    entrypoint: tuple[str, ...] | None
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


def command_for(
    engine: Engine, image_id: str, handler: str | None, rie_path: str, *, replaces_images: bool = True
) -> Start:
    """What runs ``handler`` (None: what the image's CMD says) under the RIE at ``rie_path``.

    An image with another entrypoint calls its runtime interface client directly, as AWS documents for images built
    from other bases; the RIE is put in front of it, as AWS documents for local tests. Where ``rie_path`` is not the place
    of the image's own RIE (``replaces_images`` False) the entrypoint of AWS's images would start that one: what it
    does, no more than naming the handler, is done in its place.
    """
    with engine.asked(f"inspect image {image_id}"):
        config = engine.docker.images.get(image_id).attrs.get("Config") or {}
    entrypoint: list[str] = config.get("Entrypoint") or []
    command = [handler] if handler else list(config.get("Cmd") or [])
    if entrypoint and entrypoint[0] == LAMBDA_ENTRYPOINT:
        if replaces_images or len(command) != 1:
            return Start(entrypoint=None, command=tuple(command))
        return Start(entrypoint=(rie_path,), command=(_BOOTSTRAP,), environment={"_HANDLER": command[0]})
    return Start(entrypoint=(rie_path,), command=(*entrypoint, *command))
