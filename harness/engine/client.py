"""The connection to the container engine, its facts, and who owns what the harness creates.

This package is the only one that imports ``docker``. Everything the harness creates in the engine carries the labels of
`owner_labels`; `reap` removes what belongs to an owner that is gone.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import docker.errors
import psutil
import requests
import requests.exceptions

from harness import kernel
from harness.engine import podman
from harness.errors import EngineError

_CONFLICT = 409
"""HTTP's conflict: "removal of container ... is already in progress", "volume is in use"."""
_PATIENCE_S, _SILENT_S = 120, 10
"""How long the engine may take to answer, and one that did not answer before; a loaded one takes seconds for most."""
PODMAN = "Podman"
LABEL = "lambda-harness"
LABEL_OWNER = f"{LABEL}.owner"
LABEL_SANDBOX = f"{LABEL}.sandbox"

START_ENGINE = (
    "start Docker (on Debian and Ubuntu: 'apt-get install docker.io', or 'make engine' in a checkout), or point "
    "DOCKER_HOST at an engine; 'lambda-harness doctor' tells what was found"
)

SILENT_ENGINE = "the engine does not answer, as if its machine were paused or overloaded"

ENGINE_FAILURES: tuple[type[Exception], ...] = (
    docker.errors.DockerException,
    requests.exceptions.RequestException,
    ConnectionError,
)


@dataclass(frozen=True, kw_only=True)
class EngineFacts:
    """What the engine says of itself and of the kernel below it."""

    name: str
    version: str
    api_version: str
    cgroup_version: int
    cgroup_driver: str
    kernel: str
    architecture: str
    cpus: int
    memory_bytes: int
    operating_system: str
    rootless: bool

    @property
    def podman(self) -> bool:
        """Whether this is Podman behind Docker's API, which does some things otherwise: see `containers`."""
        return self.name.startswith(PODMAN)


@functools.cache
def boot_id() -> str:
    """This boot of this kernel; a process id means nothing across boots."""
    return kernel.boot_id() or str(int(psutil.boot_time()))


@functools.cache
def machine() -> str:
    """This machine, told apart from others that use the same engine. Hashed: the machine's own id is nobody else's business."""
    found = ""
    with contextlib.suppress(OSError):
        found = Path("/etc/machine-id").read_text().strip()
    return hashlib.sha256(f"{LABEL} {found or platform.node()}".encode()).hexdigest()[:12]


def owner() -> str:
    """This process, told apart from any other that had or will have its id: ``pid:create time:boot id:machine``."""
    process = psutil.Process()
    return f"{process.pid}:{process.create_time():.2f}:{boot_id()}:{machine()}"


def owner_is_gone(text: str) -> bool:
    """Whether the process that wrote this label has ended. Of one on another machine nobody here can tell: it lives on."""
    pid, created, boot, where = ([*text.split(":", 3), "", "", ""])[:4]
    if where and where != machine():
        return False
    if boot != boot_id() or not pid.isdigit():
        return True
    try:
        return f"{psutil.Process(int(pid)).create_time():.2f}" != created
    except psutil.NoSuchProcess:
        return not _is_there(int(pid))


def _is_there(pid: int) -> bool:
    """Whether a process lives that /proc may hide from other users (mounted with hidepid=2)."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return True


class Engine:
    """A connection to one engine. Threads get a client each, closed when the thread is gone: the SDK's session is not safe
    to share.
    """  # noqa: D205

    def __init__(self) -> None:
        self._silent = False
        self._local = threading.local()
        self._closings: list[weakref.finalize[Any, threading.Thread]] = []
        self._negotiated = "auto"

    @property
    def docker(self) -> docker.DockerClient:
        client = getattr(self._local, "client", None)
        if client is None:
            try:
                # The version is negotiated, once: engines from 20.10 on speak different ones, and Podman (4.3) takes up to a
                # second to tell its own, as it asks the package manager where its runtime comes from.
                client = docker.from_env(version=self._negotiated, timeout=_PATIENCE_S)
                self._mind(client.api)
                self._negotiated = str(client.api.api_version)
            except ENGINE_FAILURES as error:
                raise self._unreachable(error) from error
            self._local.client = client
            # The client holds itself in a cycle: left alone, its connections would stay open until the collector runs.
            closing = weakref.finalize(threading.current_thread(), client.close)
            self._closings = [each for each in self._closings if each.alive] + [closing]
        return client

    def presume_silent(self) -> None:
        """Something else on the engine's machine does not answer: until the engine does, no question waits for long.

        What is left to be asked then is to give things back, one after the other, and each would wait as long as the first.
        """
        self._silent = True

    def _mind(self, session: requests.Session) -> None:
        send = session.send

        def minded(request: Any, **settings: Any) -> Any:
            if self._silent:
                settings["timeout"] = _SILENT_S
            try:
                answer = send(request, **settings)
            except requests.exceptions.Timeout:
                self.presume_silent()
                raise
            self._silent = False
            return answer

        session.send = minded  # type: ignore[method-assign]

    @staticmethod
    def _unreachable(error: Exception) -> EngineError:
        where = os.environ.get("DOCKER_HOST", "its usual socket")
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return EngineError(f"no Docker engine answers at {where}: {reason[:200]}", remedy=START_ENGINE)

    @contextlib.contextmanager
    def asked(self, what: str) -> Iterator[None]:
        """Translate the SDK's failures while the engine is asked for something."""
        try:
            yield
        except docker.errors.APIError as error:
            raise EngineError(f"the engine refused to {what}: {error.explanation or error}") from error
        except requests.exceptions.Timeout as error:
            raise EngineError(f"{SILENT_ENGINE}: it was asked to {what}", remedy=START_ENGINE) from error
        except ENGINE_FAILURES as error:
            raise EngineError(
                f"the engine went away while asked to {what}: {str(error)[:200]}", remedy=START_ENGINE
            ) from error

    @functools.cached_property
    def podman(self) -> bool:
        """As in `EngineFacts`. Asked once: an engine stays what it is. What `facts` has told is not asked again."""
        with self.asked("describe itself"):
            return _name(self.docker.version()).startswith(PODMAN)

    @functools.cached_property
    def pins_cpus(self) -> bool:
        """Whether a container may be created for some CPUs alone. Docker leaves out what it cannot do, Podman refuses then."""
        if not self.podman:
            return True
        with self.asked("describe itself"):
            return "cpuset" in podman.controllers(self.docker.api)

    def facts(self) -> EngineFacts:
        """Ask the engine what it is; `EngineError` when none answers."""
        client = self.docker
        with self.asked("describe itself"):
            info: dict[str, Any] = client.info()
            version: dict[str, Any] = client.version()
        name = _name(version)
        self.podman = name.startswith(PODMAN)
        machine = str(info.get("Architecture", ""))
        return EngineFacts(
            name=name,
            version=str(info.get("ServerVersion", "")),
            api_version=str(client.api.api_version),
            cgroup_version=int(info.get("CgroupVersion") or 1),
            cgroup_driver=str(info.get("CgroupDriver", "")),
            kernel=str(info.get("KernelVersion", "")),
            architecture={"aarch64": "arm64", "arm64": "arm64"}.get(machine, "x86_64"),
            cpus=int(info.get("NCPU") or 1),
            memory_bytes=int(info.get("MemTotal") or 0),
            operating_system=str(info.get("OperatingSystem", "")),
            # Docker says it among the security options, Podman (4.3) in a field of its own.
            rootless=bool(info.get("Rootless"))
            or any("rootless" in option for option in info.get("SecurityOptions") or []),
        )

    def close(self) -> None:
        """Close the clients of all threads; whoever asks again gets a new one."""
        closings, self._closings, self._local = self._closings, [], threading.local()
        self._negotiated = "auto"
        for closing in closings:
            closing()


def _name(version: dict[str, Any]) -> str:
    """Docker Engine or Podman Engine: both list what they are made of, and name themselves there."""
    names = (str(part.get("Name", "")) for part in version.get("Components") or ())
    return next((name for name in names if "Engine" in name), "Docker Engine")


def owner_labels(sandbox_id: str) -> dict[str, str]:
    """The labels that everything created for a sandbox carries."""
    return {LABEL: "1", LABEL_OWNER: owner(), LABEL_SANDBOX: sandbox_id}


def reap(engine: Engine, *, release: Callable[[str, int], None], everything: bool = False) -> list[str]:
    """Remove the containers and volumes of owners that are gone; returns their names.

    ``release(container_id, pid)`` is called before each removal: a frozen container cannot be killed on cgroup v1, so
    the vantage thaws it first. What the engine has paused it unpauses itself, before that. With ``everything`` what
    living owners hold is removed too.
    """
    removed = []
    client = engine.docker
    with engine.asked("list what earlier runs left behind"):
        containers = client.containers.list(all=True, filters={"label": LABEL_OWNER}, ignore_removed=True)
    for container in containers:
        if not everything and not owner_is_gone(container.labels.get(LABEL_OWNER, "")):
            continue
        with contextlib.suppress(docker.errors.NotFound, KeyError):
            identifier = str(container.id)
            state = client.api.inspect_container(identifier)["State"]
            if state.get("Paused"):
                # By the engine itself and first: Podman cannot remove what it takes for paused and finds thawed.
                with contextlib.suppress(docker.errors.APIError):
                    container.unpause()
            release(identifier, int(state.get("Pid") or 0))
        with engine.asked(f"remove container {container.short_id}"):
            try:
                container.remove(force=True, v=True)
            except docker.errors.NotFound:
                continue
            except docker.errors.APIError as error:
                if error.status_code != _CONFLICT:
                    raise
                continue  # another command is reaping it
            removed.append(f"container {container.name}")
    with engine.asked("list volumes"):
        volumes = client.volumes.list(filters={"label": LABEL_OWNER})
    for volume in volumes:
        if everything or owner_is_gone((volume.attrs.get("Labels") or {}).get(LABEL_OWNER, "")):
            with engine.asked(f"remove volume {volume.name}"):
                try:
                    volume.remove(force=True)
                except docker.errors.NotFound:
                    continue
                except docker.errors.APIError as error:
                    if error.status_code != _CONFLICT:
                        raise
                    continue  # its container is just being removed by another command
                removed.append(f"volume {volume.name}")
    return removed
