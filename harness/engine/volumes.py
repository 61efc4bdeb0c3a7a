"""Volumes of the engine that hold a directory of this host, keyed by its content: for engines that cannot mount our paths.

A volume is filled once, through a container that is never started, and used read-only ever after. Beside it an empty volume
says that it was filled to the end: volumes cannot be renamed, and a mark inside would be seen by the function.

Nobody tells when content is needed for the last time, so whoever brings something new removes what is old and unused: how
many volumes there are is bounded by how often the content changes in `KEEP_DAYS`.
"""

from __future__ import annotations

import contextlib
import datetime
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import docker.errors

from harness import packing
from harness.engine.client import LABEL, LABEL_OWNER, Engine, owner_is_gone, owner_labels
from harness.errors import EngineError

LABEL_CONTENT = f"{LABEL}.content"
_PREFIX = "lambda-harness-content-"
_FILLED = "-filled"
_INSIDE = "/lambda-harness-content"
"""A path that no image has: an empty volume mounted over a directory of the image would be given that directory's files."""
_PATIENCE_S = 300.0
_CONFLICT = 409
_TAKEN = "already in use"
"""What Podman says of a container's name that is taken, with HTTP status 500."""
_SPOOL_BYTES = 16 * 1024 * 1024
KEEP_DAYS = 7
"""Content that no container uses is removed this long after it was brought in."""


class Volumes:
    """Brings directories to the engine. Remembers what it brought, by the files' sizes and times."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._known: dict[tuple[object, ...], str] = {}

    def place(self, directory: Path, image_id: str, *, twin: int = 0) -> str:
        """The name of a volume that holds the directory's files; ``image_id``: any image that the engine has.

        ``twin`` makes another volume of the same content, for a container that has it at two places. Raises `EngineError`.
        """
        try:
            looks = (twin, *_looks(directory))
            found = self._known.get(looks)
            # Where a volume is missing the engine makes an empty one, without a word.
            if found is None or not self._filled(found):
                found = self._known[looks] = self._placed(directory, image_id, twin)
        except OSError as error:
            raise EngineError(
                f"{directory} cannot be carried to the engine: {error}",
                remedy="see that every file in it can be read, and that nothing changes it meanwhile",
            ) from error
        return found

    def carry(self, binds: Mapping[str, tuple[str, str]], image_id: str) -> dict[str, tuple[str, str]]:
        """Volumes in place of the directories, for an engine that does not see them. Raises `EngineError`."""
        found: dict[str, tuple[str, str]] = {}
        for source, (target, mode) in binds.items():
            path = Path(source)
            if not path.is_dir():
                raise EngineError(
                    f"{path.name} cannot be mounted at {target}: this engine does not see this host's files, and what can be "
                    "carried to it are directories",
                    remedy="run the harness where the engine runs",
                )
            name, twin = self.place(path, image_id), 0
            while name in found:
                twin += 1
                name = self.place(path, image_id, twin=twin)
            found[name] = (target, f"{mode},nocopy")
        return found

    def _placed(self, directory: Path, image_id: str, twin: int) -> str:
        with tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES) as archive:
            key = packing.pack(directory, archive)
            name = f"{_PREFIX}{key[:32]}" + (f"-{twin}" if twin else "")
            deadline = time.monotonic() + _PATIENCE_S
            while not self._filled(name):
                archive.seek(0)
                if self._fill(name, archive, image_id):
                    remove_unused(self._engine)
                    break
                if time.monotonic() >= deadline:
                    raise EngineError(
                        f"another command has been filling the volume {name} for {_PATIENCE_S:.0f} s",
                        remedy="see 'docker ps -a --filter label=lambda-harness', or run 'lambda-harness clean --all'",
                    )
                time.sleep(0.1)
        return name

    def _filled(self, name: str) -> bool:
        return self._is_ours(name) and self._inspect(name + _FILLED) is not None

    def _is_ours(self, name: str) -> bool:
        """Whether it is there, and no empty one that the engine made for a container in place of one that was removed."""
        found = self._inspect(name)
        return found is not None and (found.get("Labels") or {}).get(LABEL_CONTENT) == name

    def _inspect(self, name: str) -> dict[str, Any] | None:
        with self._engine.asked(f"look for volume {name}"):
            try:
                found: dict[str, Any] = self._engine.docker.api.inspect_volume(name)
            except docker.errors.NotFound:
                return None
        return found

    def _fill(self, name: str, archive: IO[bytes], image_id: str) -> bool:
        """Whether it was filled; False where another process is at it (the container's name is the lock)."""
        api = self._engine.docker.api
        labels = {LABEL: "1", LABEL_CONTENT: name}
        with self._engine.asked(f"fill volume {name}"):
            if not self._is_ours(name):
                for each in (name + _FILLED, name):  # what is left of one that was removed by halves
                    with contextlib.suppress(docker.errors.APIError):
                        api.remove_volume(each)
            api.create_volume(name, labels=labels)
            lock = f"{name}-filling"
            try:
                container = api.create_container(
                    image_id,
                    command=["true"],
                    entrypoint=[],
                    name=lock,
                    labels=owner_labels("filling"),
                    host_config=api.create_host_config(binds=[f"{name}:{_INSIDE}"], network_mode="none"),
                )["Id"]
            except docker.errors.APIError as error:
                if error.status_code != _CONFLICT and _TAKEN not in str(error.explanation):
                    raise
                self._break(lock)
                return False
            try:
                api.put_archive(container, _INSIDE, archive)
                api.create_volume(name + _FILLED, labels=labels)
            finally:
                with contextlib.suppress(docker.errors.APIError):
                    api.remove_container(container, force=True, v=True)
        return True

    def _break(self, lock: str) -> None:
        """Remove the lock of a process that was killed while it filled; nobody reaps it before the agent has started."""
        api = self._engine.docker.api
        with contextlib.suppress(docker.errors.APIError):  # it has just been given back
            container = api.inspect_container(lock)
            if owner_is_gone((container["Config"].get("Labels") or {}).get(LABEL_OWNER, "")):
                # By its id: the name may be the next one's by now.
                api.remove_container(container["Id"], force=True, v=True)


def missing(engine: Engine, binds: Iterable[str]) -> list[str]:
    """Those of a new container's sources that are volumes of this module, and empty.

    The engine made them with the container, since they were removed after they had been found. From then on they are in use,
    and nobody removes them.
    """
    found = []
    for name in binds:
        if name.startswith(_PREFIX):
            labels = engine.docker.api.inspect_volume(name).get("Labels") or {}
            if labels.get(LABEL_CONTENT) != name:
                found.append(name)
    return found


def remove_unused(engine: Engine, *, everything: bool = False) -> list[str]:
    """Remove content that no container uses, if it is older than `KEEP_DAYS` (or all of it); returns the names."""
    removed = []
    with engine.asked("list volumes"):
        listed = engine.docker.volumes.list(filters={"label": LABEL_CONTENT})
        # Of what containers use the mark must stay, too.
        unused = engine.docker.volumes.list(filters={"label": LABEL_CONTENT, "dangling": True})
    there = {str(volume.name) for volume in listed}
    names = {str(volume.name): str(volume.attrs.get("CreatedAt", "")) for volume in unused}
    for name, created_at in sorted(names.items()):
        content = name.removesuffix(_FILLED)
        if (name != content and content in there) or not (everything or _is_old(created_at)):
            continue
        # The mark goes first: what is half removed must not pass for filled.
        for each in (content + _FILLED, content):
            if each in there:
                with contextlib.suppress(docker.errors.APIError):  # another command has just taken it, or removed it
                    engine.docker.api.remove_volume(each)
                    removed.append(f"volume {each}")
    return removed


def _is_old(created_at: str) -> bool:
    try:
        created = datetime.datetime.fromisoformat(created_at)
    except ValueError:
        return False
    if created.tzinfo is None:
        created = created.replace(tzinfo=datetime.UTC)
    return datetime.datetime.now(datetime.UTC) - created > datetime.timedelta(days=KEEP_DAYS)


def _looks(directory: Path) -> Iterator[tuple[object, ...]]:
    for path in packing.files(directory):
        found = path.lstat()
        yield str(path), found.st_mode, found.st_size if stat.S_ISREG(found.st_mode) else 0, found.st_mtime_ns
