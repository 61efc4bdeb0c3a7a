"""From a process to its cgroup: reads /proc/PID/cgroup and the mount table. Must not change anything.

``root`` stands before every path, so that a recorded tree (or a host's file system under another name) can be read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.cgroup import v1, v2
from harness.cgroup.directory import Directory, read_text
from harness.errors import EngineError, SandboxGone

if TYPE_CHECKING:
    from collections.abc import Mapping

    from harness.cgroup.interface import Cgroup

_REMEDY = "use the vantage `api`, or run the harness as root on the kernel that runs the containers"


@dataclass(frozen=True, kw_only=True)
class Location:
    """Where a process's cgroup is. ``directories`` maps controllers to paths; on version 2 its only key is ''."""

    version: int
    directories: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class _Mount:
    version: int
    root: str
    point: str
    controllers: frozenset[str]


def open_cgroup(pid: int, *, root: str = "/") -> Cgroup:
    """The cgroup of the sandbox whose RIE is ``pid``. Raises `SandboxGone` or `EngineError`."""
    location = locate(pid, root=root)
    if location.version == 1:
        return v1.CgroupV1(location.directories, rie_pid=pid)
    return v2.CgroupV2(location.directories[""], rie_pid=pid)


def locate(pid: int, *, root: str = "/") -> Location:
    """Find the directories; each is proven by the process being in its list. Raises `SandboxGone` or `EngineError`."""
    base = root.rstrip("/")
    try:
        groups = _groups(read_text(f"{base}/proc/{pid}/cgroup"))
    except (FileNotFoundError, ProcessLookupError):
        raise SandboxGone(f"process {pid} is not there any more", remedy="run the command again") from None
    except OSError as error:
        raise EngineError(f"cannot read /proc/{pid}/cgroup: {error.strerror}", remedy=_REMEDY) from error
    try:
        mounts = _mounts(read_text(f"{base}/proc/self/mountinfo"))
    except OSError as error:
        raise EngineError(f"cannot read /proc/self/mountinfo: {error.strerror}", remedy=_REMEDY) from error
    # The memory controller decides: where systemd mounts both versions ("hybrid"), the controllers are on 1.
    if "memory" not in groups:
        if "" not in groups:
            raise EngineError(f"process {pid} is in no cgroup with a memory controller", remedy=_REMEDY)
        directory = _directory(pid, "", groups[""], [mount for mount in mounts if mount.version == 2], base)
        return Location(version=2, directories={"": _without_leaf(directory, v2.RIE_LEAF, v2.RUNTIME_LEAF)})
    directories = {}
    for controller in v1.CONTROLLERS:
        if controller not in groups:
            raise EngineError(f"the kernel offers no cgroup controller {controller!r}", remedy=_REMEDY)
        offering = [mount for mount in mounts if mount.version == 1 and controller in mount.controllers]
        directory = _directory(pid, controller, groups[controller], offering, base)
        directories[controller] = _without_leaf(directory, v1.RUNTIME_LEAF)
    return Location(version=1, directories=directories)


def _groups(text: str) -> dict[str, str]:
    """Controller -> path, from lines ``ID:controller,controller:path``; the unified hierarchy's controller is ''."""
    found = {}
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            found[controller] = path
    return found


def _mounts(text: str) -> list[_Mount]:
    """The cgroup mounts of a mountinfo, see proc_pid_mountinfo(5)."""
    found = []
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        if kind in {"cgroup", "cgroup2"}:
            fields = before.split(" ")
            found.append(
                _Mount(
                    version=2 if kind == "cgroup2" else 1,
                    root=_unescaped(fields[3]),
                    point=_unescaped(fields[4]),
                    controllers=frozenset(options.split(",")),
                )
            )
    return found


def _unescaped(path: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), path)


def _directory(pid: int, controller: str, path: str, mounts: list[_Mount], base: str) -> str:
    what = f"the {controller or 'unified'} cgroup {path} of process {pid}"
    # A later mount hides an earlier one at the same place. A path that starts with /.. lies outside of our cgroup
    # namespace and below no mount's root.
    for mount in reversed(mounts):
        inside = _below(path, mount.root)
        if inside is None:
            continue
        directory = Directory(Path(f"{base}{mount.point}", inside))
        if directory.exists() and pid in directory.pids():
            return directory.path
    raise EngineError(f"{what} cannot be reached through any mount of this system", remedy=_REMEDY)


def _below(path: str, root: str) -> str | None:
    if ".." in path.split("/"):
        return None
    if root == "/":
        return path.lstrip("/")
    if path == root or path.startswith(f"{root}/"):
        return path[len(root) :].lstrip("/")
    return None


def _without_leaf(directory: str, *leaves: str) -> str:
    """The sandbox's directory, also when an earlier owner has moved the process into a leaf below it."""
    path = Path(directory)
    return str(path.parent if path.name in leaves else path)
