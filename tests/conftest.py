"""What all tests share."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

NO_ENGINE = "unix:///nowhere/docker.sock"


@pytest.fixture
def no_engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No engine answers. Tests that get so far as to ask one should ignore the SDK's unclosed socket."""
    monkeypatch.setenv("DOCKER_HOST", NO_ENGINE)
    yield
    gc.collect()
