"""How a container of an image is started as a Lambda function: its own entrypoint, with the RIE in front where needed."""

from __future__ import annotations

from harness.engine.client import Engine

LAMBDA_ENTRYPOINT = "/lambda-entrypoint.sh"
"""The entrypoint of AWS's base images (and of the offline ones): takes the handler, starts the RIE itself."""


def command_for(
    engine: Engine, image_id: str, handler: str | None, rie_path: str
) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    """Entrypoint (None: the image's own) and command that run ``handler`` (None: what the image's CMD says).

    An image with another entrypoint calls its runtime interface client directly, as AWS documents for images built
    from other bases; the RIE is put in front of it, as AWS documents for local tests.
    """
    with engine.asked(f"inspect image {image_id}"):
        config = engine.docker.images.get(image_id).attrs.get("Config") or {}
    entrypoint: list[str] = config.get("Entrypoint") or []
    command = [handler] if handler else list(config.get("Cmd") or [])
    if entrypoint and entrypoint[0] == LAMBDA_ENTRYPOINT:
        return None, tuple(command)
    return (rie_path,), (*entrypoint, *command)
