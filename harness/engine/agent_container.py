"""A container of the harness's own beside the sandboxes: its rights, its code, and the stream to its standard input and output.

Knows nothing of what is said over the stream. It is removed when its user closes it, and ends by itself when its user dies:
the engine closes a standard input whose only reader is gone.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
from collections import deque
from pathlib import Path
from typing import Any

import docker.errors
from docker.types import LogConfig

from harness.engine import podman
from harness.engine.client import ENGINE_FAILURES, Engine, owner_labels
from harness.engine.containers import close_stream
from harness.engine.volumes import Volumes
from harness.rie import STDOUT, Frames

_CODE_AT = "/opt/lambda-harness"
_CGROUPS = "/sys/fs/cgroup"
_CHUNK = 64 * 1024
_WORDS = 12
_CAPABILITIES = (
    "SYS_ADMIN",  # setns into a sandbox's network namespace
    "SYS_PTRACE",  # /proc/PID of other users' processes: smaps_rollup, fd, root, ns
    "DAC_OVERRIDE",  # /proc/PID/clear_refs and oom_score_adj belong to the process's user
    "KILL",
)
_PYTHON = (
    "export PATH=/var/lang/bin:/usr/local/bin:/usr/bin:/bin; "
    "for each in python3 python3.14 python3.13 python3.12 python3.11; do "
    'if command -v "$each" >/dev/null && "$each" -c "import sys; sys.exit(sys.version_info < (3, 11))"; '
    f'then cd {_CODE_AT} && exec "$each" -B -E -s "$@"; fi; done; '
    "echo 'no Python of 3.11 or newer in this image' >&2; exit 127"
)
_ENTRYPOINT = ("/bin/sh", "-c", _PYTHON, "agent")
_ENVIRONMENT = {"PYTHONDONTWRITEBYTECODE": "1"}
_USER = "0:0"


def _name() -> str:
    return f"lambda-harness-agent-{secrets.token_hex(6)}"


class AgentContainer:
    """A context manager. ``code``: a directory that is put into the container; ``module``: what Python runs of it."""

    def __init__(self, engine: Engine, volumes: Volumes, *, image_id: str, code: Path, module: str) -> None:
        self._engine, self._volumes = engine, volumes
        self._image_id, self._code, self._module = image_id, code, module
        self._id = ""
        self._stream: Any = None
        self._socket: socket.socket
        self._frames = Frames()
        self._words: deque[str] = deque(maxlen=_WORDS)

    def __enter__(self) -> AgentContainer:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> None:
        api = self._engine.docker.api
        volume = self._volumes.place(self._code, self._image_id)
        with self._engine.asked("start the agent's container"):
            self._id = self._create_podman(volume) if self._engine.podman else self._create(volume)
            params = {"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1}
            self._stream = api.attach_socket(self._id, params=params)
            self._socket = getattr(self._stream, "_sock", self._stream)
            with contextlib.suppress(AttributeError):
                self._socket.settimeout(None)
            api.start(self._id)

    def _create(self, volume: str) -> str:
        api = self._engine.docker.api
        host = api.create_host_config(
            binds=[f"{volume}:{_CODE_AT}:ro,nocopy", f"{_CGROUPS}:{_CGROUPS}:rw"],
            network_mode="none",
            pid_mode="host",
            cap_drop=["ALL"],
            cap_add=list(_CAPABILITIES),
            # AppArmor's and SELinux's profiles for containers forbid to look at processes of other profiles.
            security_opt=["apparmor=unconfined", "label=disable", "no-new-privileges"],
            read_only=True,
            log_config=LogConfig(type="none"),
        )
        # docker-py's helper does not know this field in every version.
        host["CgroupnsMode"] = "host"
        created = api.create_container(
            self._image_id,
            entrypoint=list(_ENTRYPOINT),
            command=["-m", self._module],
            name=_name(),
            environment=_ENVIRONMENT,
            user=_USER,
            working_dir="/",
            stdin_open=True,
            host_config=host,
            labels=owner_labels("agent"),
        )
        return str(created["Id"])

    def _create_podman(self, volume: str) -> str:
        """The same by Podman's own API: its Docker-compatible one knows no namespace for cgroups, and makes one (5.4).

        The body is a SpecGenerator [docs.podman.io/en/latest/_static/api.html, ContainerCreateLibpod].
        """
        return podman.create(
            self._engine.docker.api,
            {
                "image": self._image_id,
                "entrypoint": list(_ENTRYPOINT),
                "command": ["-m", self._module],
                "name": _name(),
                "env": _ENVIRONMENT,
                "user": _USER,
                "work_dir": "/",
                "stdin": True,
                "labels": owner_labels("agent"),
                "volumes": [{"Name": volume, "Dest": _CODE_AT, "Options": ["ro", "nocopy"]}],
                "mounts": [{"type": "bind", "source": _CGROUPS, "destination": _CGROUPS, "options": ["rbind", "rw"]}],
                "netns": {"nsmode": "none"},
                "pidns": {"nsmode": "host"},
                "cgroupns": {"nsmode": "host"},
                "cap_drop": ["ALL"],
                "cap_add": [f"CAP_{name}" for name in _CAPABILITIES],
                "apparmor_profile": "unconfined",
                "selinux_opts": ["disable"],
                "no_new_privileges": True,
                "read_only_filesystem": True,
                "log_configuration": {"driver": "none"},
            },
        )

    # -- the stream -------------------------------------------------------------------------------------------------------

    def read(self) -> bytes:
        while data := self._socket.recv(_CHUNK):
            found = b""
            for stream, payload in self._frames.feed(data):
                if stream == STDOUT:
                    found += payload
                else:
                    self._words.extend(payload.decode(errors="replace").splitlines())
            if found:
                return found
        return b""

    def write(self, data: bytes) -> None:
        self._socket.sendall(data)

    def last_words(self) -> str:
        return " | ".join(self._words)[-600:]

    def close(self) -> None:
        """End the stream, so that whoever reads it ends its work, and remove the container."""
        if self._stream is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_WR)
            self._wait()
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            close_stream(self._stream)
            self._socket.close()
            self._stream = None
        if self._id:
            with contextlib.suppress(docker.errors.APIError, *ENGINE_FAILURES):
                self._engine.docker.api.remove_container(self._id, force=True, v=True)
            self._id = ""

    def _wait(self) -> None:
        """Until it has ended by itself: it may be thawing sandboxes."""
        with contextlib.suppress(docker.errors.APIError, *ENGINE_FAILURES):
            self._engine.docker.api.wait(self._id, timeout=5)
