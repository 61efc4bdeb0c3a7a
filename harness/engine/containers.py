"""One container of the engine: create, start, attach, pause, remove. Knows nothing of Lambda, cgroups or the RIE.

The engine is Docker, or Podman behind Docker's API and, where that one differs, its own. What Podman (4.3) does otherwise is
evened out here, or comes out as not told: no answer of it may pass for a measurement that it is not.
"""

from __future__ import annotations

import contextlib
import io
import socket
import tarfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import docker.errors
import requests.exceptions
from docker.types import LogConfig, Mount, Ulimit

from harness.engine import podman, volumes
from harness.engine.client import ENGINE_FAILURES, SILENT_ENGINE, Engine
from harness.errors import EngineError, SandboxGone

RIE_PORT = 8080
_HOST_CONFIG = {
    "cpu_quota": "CpuQuota",
    "cpu_period": "CpuPeriod",
    "mem_limit": "Memory",
    "memswap_limit": "MemorySwap",
}
_DEFAULT_PERIOD_US = 100_000
_NOTICE_S = 2.0
"""How long the engine may take to notice that a container ended."""
_REMOVALS = 3
_SERVER_ERROR = 500
"""Docker's answer where what it has killed is not gone after 10 s: it keeps the container then. A thousand processes on a busy
machine take longer to die.
"""

_ARCHIVE_CHUNK = 256 * 1024


class _Readable(io.RawIOBase):
    """An iterator of chunks as a file, for `tarfile`."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._kept = b""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        while size < 0 or len(self._kept) < size:
            chunk = next(self._chunks, b"")
            if not chunk:
                break
            self._kept += chunk
        found, self._kept = (self._kept, b"") if size < 0 else (self._kept[:size], self._kept[size:])
        return found


@dataclass(frozen=True, kw_only=True)
class ContainerSpec:
    """What to create. ``binds`` maps host paths (or volume names) to (container path, "ro" or "rw")."""

    name: str
    image: str
    command: tuple[str, ...]
    entrypoint: tuple[str, ...] | None
    environment: Mapping[str, str]
    labels: Mapping[str, str]
    binds: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    volumes: tuple[str, ...] = ()
    """Container paths at which anonymous volumes are mounted: they go with the container."""
    cpuset: str
    memory_bytes: int
    publish: bool
    """Whether the RIE's port is published."""
    ports: tuple[int, ...] = ()
    """Further ports that are published, under the same number, on 127.0.0.1."""
    user: str = "993:990"
    processes: int = 1024
    open_files: int = 1024


@dataclass(frozen=True, kw_only=True)
class Listed:
    """One process as the engine lists it. ``threads`` is None where its ps cannot count them."""

    rss_bytes: int
    threads: int | None

    @classmethod
    def of(cls, columns: list[str]) -> Listed:
        """From the columns rss (KiB) and nlwp of ps."""
        return cls(rss_bytes=int(columns[0]) * 1024, threads=int(columns[1]) if len(columns) > 1 else None)


def close_stream(stream: Any) -> None:
    """Close what docker-py hands out of an attached stream, the response below it first.

    Left open, that one finds its file closed when it is collected, and Python 3.13 prints the exception.
    """
    response = getattr(stream, "_response", None)
    if response is not None:
        response.close()
    stream.close()


class Container:
    """A context manager: on leaving, the container is gone, whatever happened."""

    def __init__(self, engine: Engine, spec: ContainerSpec) -> None:
        self._engine = engine
        self._api = engine.docker.api
        self.spec = spec
        self._stream: Any = None
        self._updated: set[str] = set()
        self._limits = {
            "cpu_quota": -1,
            "cpu_period": _DEFAULT_PERIOD_US,
            "mem_limit": spec.memory_bytes,
            "memswap_limit": spec.memory_bytes,
        }
        self.id = ""
        self.pid = 0
        self.address = ""
        """host:port at which the RIE answers, once started."""

    def __enter__(self) -> Container:
        with self._engine.asked(f"create a container of image {self.spec.image}"):
            self.id = self._create_podman() if self._engine.podman else self._create()
            try:
                gone = volumes.missing(self._engine, self.spec.binds)
            except BaseException:
                self.remove()
                raise
        if gone:
            self.remove()
            raise EngineError(
                f"the volume {gone[0]} was removed by another command before the container held it",
                remedy="run the command again: the content is brought in anew",
            )
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def _create(self) -> str:
        spec, api = self.spec, self._api
        ports: dict[int | str, Any] = {port: ("127.0.0.1", port) for port in spec.ports}
        if spec.publish:
            ports[RIE_PORT] = ("127.0.0.1", None)
        host: dict[str, Any] = api.create_host_config(
            binds=[f"{source}:{target}:{mode}" for source, (target, mode) in spec.binds.items()],
            mounts=[
                Mount(target=target, source=None, type="volume", labels=dict(spec.labels)) for target in spec.volumes
            ],
            port_bindings=ports or None,
            mem_limit=spec.memory_bytes,
            # Without it Docker grants the same amount again as swap, and hides out-of-memory kills.
            memswap_limit=spec.memory_bytes,
            cpuset_cpus=spec.cpuset,
            read_only=True,
            cap_drop=["ALL"],
            security_opt=["no-new-privileges"],
            pids_limit=spec.processes,
            ulimits=[Ulimit(name="nofile", soft=spec.open_files, hard=spec.open_files)],
            # Nothing is kept by the engine: a function may print 100 MB. The attached stream still gets every byte.
            log_config=LogConfig(type="none"),
            init=False,
        )
        created = api.create_container(
            spec.image,
            command=list(spec.command),
            entrypoint=list(spec.entrypoint) if spec.entrypoint else None,
            environment=dict(spec.environment),
            labels=dict(spec.labels),
            name=spec.name,
            user=spec.user,
            ports=list(ports) or None,
            host_config=host,
        )
        return str(created["Id"])

    def _create_podman(self) -> str:
        """The same by Podman's own API: its Docker-compatible one mounts tmpfs over a read-only root's /tmp, /run and /var/tmp.

        Where a volume is mounted at /tmp as well, either may lie above (5.4), and what a function writes into a tmpfs is
        charged to its memory. The body is a SpecGenerator [docs.podman.io/en/latest/_static/api.html, ContainerCreateLibpod].
        """
        spec = self.spec
        volumes: list[dict[str, Any]] = [{"Dest": target} for target in spec.volumes]
        mounts: list[dict[str, Any]] = []
        for source, (target, mode) in spec.binds.items():
            options = mode.split(",")
            if source.startswith("/"):
                mounts.append({"type": "bind", "source": source, "destination": target, "options": ["rbind", *options]})
            else:
                volumes.append({"Name": source, "Dest": target, "Options": options})
        ports = [{"host_ip": "127.0.0.1", "host_port": port, "container_port": port} for port in spec.ports]
        if spec.publish:
            ports.append({"host_ip": "127.0.0.1", "container_port": RIE_PORT})  # Podman chooses the host's
        body: dict[str, Any] = {
            "image": spec.image,
            "command": list(spec.command),
            "name": spec.name,
            "env": dict(spec.environment),
            "user": spec.user,
            "labels": dict(spec.labels),
            "mounts": mounts,
            "volumes": volumes,
            "netns": {"nsmode": "bridge"},
            "portmappings": ports,
            "resource_limits": {
                "cpu": {"cpus": spec.cpuset} if self._engine.pins_cpus else {},
                # Memory and swap together, as the OCI runtime specification has it.
                "memory": {"limit": spec.memory_bytes, "swap": spec.memory_bytes},
                "pids": {"limit": spec.processes},
            },
            "r_limits": [{"type": "nofile", "soft": spec.open_files, "hard": spec.open_files}],
            "cap_drop": ["ALL"],
            "no_new_privileges": True,
            "read_only_filesystem": True,
            "read_write_tmpfs": False,
            "log_configuration": {"driver": "none"},
        }
        if spec.entrypoint:
            body["entrypoint"] = list(spec.entrypoint)
        return podman.create(self._api, body)

    def attach(self) -> socket.socket:
        """The container's multiplexed output stream (8-byte frame headers), from its first byte on.

        To be called before `start`. The caller owns the socket.
        """
        with self._engine.asked("attach to a container"):
            stream = self._api.attach_socket(self.id, params={"stdout": 1, "stderr": 1, "stream": 1, "logs": 0})
        # docker-py hands out a SocketIO for unix sockets and a response-like object for TLS: both wrap the real one.
        raw = getattr(stream, "_sock", stream)
        with contextlib.suppress(AttributeError):
            raw.settimeout(None)
        self._stream = stream  # the socket stays open until its wrapper is closed too
        return raw  # type: ignore[no-any-return]

    def start(self) -> None:
        with self._engine.asked(f"start a container of image {self.spec.image}"):
            self._api.start(self.id)
            self._inspect()

    def _inspect(self) -> None:
        found = self._api.inspect_container(self.id)
        if not found["State"]["Running"]:
            raise EngineError(
                f"the container of image {self.spec.image} ended at once (exit code {found['State']['ExitCode']}): "
                f"{found['State'].get('Error') or 'its entrypoint gave up'}",
                remedy="see that the image is a Lambda image: an entrypoint that takes the handler, and a bootstrap",
            )
        self.pid = int(found["State"]["Pid"])
        network = found["NetworkSettings"]
        if self.spec.publish:
            mapping = network["Ports"][f"{RIE_PORT}/tcp"][0]
            self.address = f"{mapping['HostIp']}:{mapping['HostPort']}"
        else:
            address = network.get("IPAddress") or next(
                (net["IPAddress"] for net in network.get("Networks", {}).values() if net.get("IPAddress")), ""
            )
            if not address:
                raise EngineError(
                    "the engine gave the container no address on its bridge network",
                    remedy="see that the engine's default bridge is enabled, or use --vantage api",
                )
            self.address = f"{address}:{RIE_PORT}"

    def why_gone(self) -> SandboxGone:
        """An error that says what became of the container."""
        try:
            state = self._last_state()
        except docker.errors.NotFound:
            return SandboxGone(f"container {self.spec.name} was removed by someone else")
        except requests.exceptions.Timeout:
            return SandboxGone(f"{SILENT_ENGINE}: {self.spec.name} was running")
        except ENGINE_FAILURES as error:
            return SandboxGone(f"the engine went away while {self.spec.name} was running: {str(error)[:160]}")
        if state["Running"]:
            return SandboxGone(f"the RIE in container {self.spec.name} does not answer")
        return SandboxGone(f"container {self.spec.name} ended with exit code {state['ExitCode']}")

    def _last_state(self) -> dict[str, Any]:
        """The state once the engine has noticed the end that this process saw from its broken connection."""
        deadline = time.monotonic() + _NOTICE_S
        while True:
            state: dict[str, Any] = self._api.inspect_container(self.id)["State"]
            if not state["Running"] or time.monotonic() >= deadline:
                return state
            time.sleep(0.05)

    def running(self) -> bool:
        try:
            return bool(self._api.inspect_container(self.id)["State"]["Running"])
        except ENGINE_FAILURES:  # NotFound is one of them
            return False

    def pause(self) -> None:
        with self._engine.asked("pause a container"):
            self._api.pause(self.id)

    def unpause(self) -> None:
        with self._engine.asked("unpause a container"):
            self._api.unpause(self.id)

    def update(self, **limits: int) -> None:
        """Change limits through the engine (names as in the SDK: cpu_quota, cpu_period, mem_limit, memswap_limit).

        All four are sent, with those that are not named as they were: where systemd manages cgroups of version 2 (Docker 26,
        runc 1.1), it writes for each that is missing what it believes in, a quota rounded up to a whole percent of a CPU, and
        no limit of swap.
        """
        self._limits |= limits
        with self._engine.asked("change the limits of a container"):
            if self._engine.podman:
                podman.update(self._api, self.id, self._limits)
            else:
                self._api.update_container(self.id, **self._limits)  # type: ignore[arg-type]  # the stubs list each by name
        self._updated |= set(limits)

    def limits(self) -> dict[str, Any]:
        """The engine's HostConfig of the container: what it believes the limits are.

        A limit that was changed is missing where the engine goes on telling what the container was created with.
        """
        with self._engine.asked("tell the limits of a container"):
            found: dict[str, Any] = self._api.inspect_container(self.id)["HostConfig"]
        if self._engine.podman:
            for name in self._updated:
                if found.get(_HOST_CONFIG[name]) == self._at_creation(name):
                    del found[_HOST_CONFIG[name]]
        return found

    def _at_creation(self, name: str) -> int:
        return self.spec.memory_bytes if name in ("mem_limit", "memswap_limit") else 0

    def stats(self) -> dict[str, Any]:
        """One sample of the engine's statistics, without the second that it would otherwise wait for a pair.

        What the engine does not measure is missing, though it be in the answer.
        """
        with self._engine.asked("read the statistics of a container"):
            found: dict[str, Any] = self._api.stats(self.id, stream=False, one_shot=True)
        if self._engine.podman:
            # Podman fills the form in with zeros, whatever was throttled.
            found.get("cpu_stats", {}).pop("throttling_data", None)
        return found

    def processes(self) -> dict[int, Listed] | None:
        """The container's processes by their id on the engine's kernel; None where the engine cannot list them.

        Works on a paused container too, where it is Docker: that runs its host's ``ps``. Podman reads /proc for its own names
        of columns, has none for threads, and refuses when paused; for any others it would run the image's ps inside.
        """
        for columns in ("hpid,rss",) if self._engine.podman else ("-o pid,rss,nlwp", "-o pid,rss"):
            try:
                found = self._api.top(self.id, columns)
                return {int(row[0]): Listed.of(row[1:]) for row in found["Processes"] or ()}
            except docker.errors.NotFound:
                raise self.why_gone() from None
            except docker.errors.APIError:
                continue  # a ps that does not know the column
            except (ValueError, IndexError):  # Podman's refusal is an empty answer: no JSON, which is a ValueError
                return None
            except ENGINE_FAILURES as error:
                raise self.why_gone() from error
        return None

    def tree_bytes(self, path: str, *, up_to: int) -> int | None:
        """Bytes of the files below a path, counted until they exceed ``up_to``; None where the engine cannot read it.

        The engine hands the files out as an archive, of a paused container too; nothing runs inside for it.
        """
        total = 0
        try:
            stream, _ = self._api.get_archive(self.id, path, chunk_size=_ARCHIVE_CHUNK)
            with contextlib.closing(stream), tarfile.open(fileobj=_Readable(stream), mode="r|") as archive:
                for member in archive:
                    total += member.size if member.isreg() else 0
                    if total > up_to:
                        break
        except ENGINE_FAILURES:
            return None
        except (tarfile.TarError, OSError):
            return None
        return total

    def oom_events(self, *, until_s: float) -> int:
        """How often the engine announced an out-of-memory kill in this container, up to this time of its own clock.

        `EngineError` where the engine announces none: that says nothing about what happened.
        """
        if self._engine.podman:
            raise EngineError("Podman announces no out-of-memory kills")
        with self._engine.asked("tell the events of a container"):
            filters = {"container": self.id, "event": "oom"}
            # The stubs take whole seconds alone; the engine takes fractions, written as text.
            found = self._api.events(since=0, until=f"{until_s:.6f}", filters=filters, decode=True)  # type: ignore[call-overload]
            return sum(1 for _ in found)

    def execute(self, command: list[str]) -> str:
        """Run a command inside and return what it printed; `EngineError` where the image has no such command."""
        with self._engine.asked("run a command in a container"):
            created = self._api.exec_create(self.id, command)
            printed = bytes(self._api.exec_start(created["Id"])).decode(errors="replace")
            status = self._api.exec_inspect(created["Id"])["ExitCode"]
        if status in (126, 127):
            raise EngineError(
                f"{command[0]} cannot be run in image {self.spec.image}: {printed.strip()[:200]}",
                remedy="use an image with a shell, or the vantage host",
            )
        return printed

    def remove(self) -> None:
        """Remove the container and its volumes; one that is already gone is fine, and so is an engine that went away.

        What an unreachable engine still holds is labelled with this process and is reaped by the next command.
        """
        if self._stream is not None:
            close_stream(self._stream)
            self._stream = None
        if not self.id:
            return
        for _ in range(_REMOVALS):
            try:
                self._api.remove_container(self.id, force=True, v=True)
            except docker.errors.APIError as error:
                if error.status_code == _SERVER_ERROR:
                    continue
            except ENGINE_FAILURES:
                pass
            break
        self.id = ""
