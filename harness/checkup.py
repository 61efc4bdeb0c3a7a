"""The checks of ``doctor``: what this host can do for true figures, and what it cannot. Changes nothing."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from harness.engine import images
from harness.engine.client import Engine, EngineFacts
from harness.kernel import is_this_machine
from harness.tiers import tier
from harness.vantage import Vantage
from harness.vantage.host import HostVantage

_GIB = 1024**3


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of the doctor: ``mark`` is ok, less (something is less exact) or bad (nothing will run)."""

    what: str
    found: str
    mark: str = "ok  "
    remedy: str = ""

    @property
    def fatal(self) -> bool:
        return self.mark == "bad "

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"mark": self.mark.strip()}


@dataclass(frozen=True, kw_only=True)
class Situation:
    """What decides which vantage is possible, and what could be done for a better one."""

    vantage: str
    """The one that was chosen."""
    why_not_host: str | None = None
    why_not_agent: str = ""
    here: bool
    """Whether the engine is on this machine, not in a virtual one or far away."""
    remote: bool = False
    """Whether it is reached over a network."""
    rootless: bool = False
    cgroup_version: int = 2
    cgroup_driver: str = "systemd"
    uid: int = 0
    """Whose engine it is, where it is rootless."""
    delegated: frozenset[str] | None = None
    """The cgroup controllers that systemd hands to that user; None where that cannot be read."""
    can_limit: Mapping[str, bool] = field(default_factory=dict)
    """What the engine says that it can limit: memory, swap, CPU time, CPUs; what it does not speak of is missing."""
    swap_bytes: int | None = None
    """Swap space of the engine's machine; None where that is unknown."""


_NEEDED = ("cpu", "memory", "pids")
"""The controllers without which no sandbox starts."""
_WANTED = (*_NEEDED, "cpuset")
"""With the one without which a function sees more CPUs than Lambda shows."""
_DELEGATED = "/sys/fs/cgroup/user.slice/user-{uid}.slice/user@{uid}.service/cgroup.controllers"


def standing(situation: Situation) -> list[Check]:
    """The vantage, why it is not a better one, and what would make it better, the best remedy first. Pure."""
    return [_vantage(situation), *_delegation(situation), *_limits(situation), *_swap(situation)]


def _vantage(now: Situation) -> Check:
    if now.vantage == "host":
        return Check(what="vantage", found="host: freezes through the cgroup, exact peaks, the Runtime API is relayed")
    if now.vantage == "agent":
        return Check(
            what="vantage",
            found=f"agent: a container beside the sandboxes does what host would do; not host: {now.why_not_host}",
        )
    found = f"api: {now.why_not_host}"
    if now.why_not_agent:
        found += f"; and {now.why_not_agent}"
    if now.here:
        found += "; what anybody may read of cgroups and processes is read, the rest goes through the engine's API"
    return Check(what="vantage", found=found, mark="less", remedy=_better(now))


def _better(now: Situation) -> str:
    agent = (
        "vantage agent is as exact as host, and is chosen by itself where the engine has an image with Python: "
        "'lambda-harness images build python3.13' makes one; '--vantage agent' says what else is in its way"
    )
    if not now.here:
        where = "on the other machine" if now.remote else "inside of the virtual machine"
        return f"{agent}\nor run lambda-harness {where}, as root"
    if not now.rootless:
        return f"{agent}\nor run as root, for vantage host: 'sudo -E lambda-harness ...'"
    first = "a rootful engine gives every figure (DOCKER_HOST=unix:///var/run/docker.sock, and vantage agent or host)"
    if set(_NEEDED) & set(_undelegated(now)):
        return f"what is missing below comes first\n{first}"
    return f"{agent}\n{first}"


def _undelegated(now: Situation) -> tuple[str, ...]:
    if not now.rootless or not now.here or now.delegated is None or now.cgroup_version != 2:
        return ()
    return tuple(name for name in _WANTED if name not in now.delegated)


def _delegation(now: Situation) -> Iterator[Check]:
    """What systemd lets a rootless engine limit: by default CPU time, memory and processes (257), or the last two (older)."""
    if not now.rootless:
        return
    what = "delegation"
    if now.cgroup_version != 2:
        yield Check(
            what=what,
            found="a rootless engine can limit nothing on cgroup version 1",
            mark="bad ",
            remedy="boot with the kernel parameter systemd.unified_cgroup_hierarchy=1, or use a rootful engine",
        )
        return
    if now.cgroup_driver != "systemd":
        yield Check(
            what=what,
            found=f"a rootless engine with the cgroup driver {now.cgroup_driver or 'unknown'} can limit nothing",
            mark="bad ",
            remedy="start it through systemd ('systemctl --user start docker' or 'podman.socket'); this needs a user session "
            "with D-Bus (on Debian: the package dbus-user-session)",
        )
        return
    if not now.here:
        return
    path = _DELEGATED.format(uid=now.uid)
    if now.delegated is None:
        yield Check(what=what, found=f"{path} cannot be read", mark="less", remedy=_delegate(path))
        return
    missing = _undelegated(now)
    if not missing:
        yield Check(what=what, found=f"user {now.uid} may limit {', '.join(sorted(now.delegated))}")
        return
    found = f"systemd does not hand {', '.join(missing)} to user {now.uid}: "
    if missing == ("cpuset",):
        found += "sandboxes are not pinned, functions see all CPUs"
        yield Check(what=what, found=found, mark="less", remedy=_delegate(path))
        return
    yield Check(what=what, found=f"{found}the engine cannot limit it", mark="bad ", remedy=_delegate(path))


def _delegate(path: str) -> str:
    return "\n".join(
        [
            "as root, write /etc/systemd/system/user@.service.d/delegate.conf:",
            "    [Service]",
            "    Delegate=cpu cpuset io memory pids",
            "then 'systemctl daemon-reload', log out of all sessions and in again; this shows what came of it:",
            f"    cat {path}",
        ]
    )


def _limits(now: Situation) -> Iterator[Check]:
    missing = [name for name, can in now.can_limit.items() if not can and name != "swap"]
    if not missing or _undelegated(now) or (now.rootless and now.cgroup_version != 2):
        return  # the reason stands above already
    remedy = "see the warnings of 'docker info'"
    if "memory" in missing:
        remedy = "boot with the kernel parameters cgroup_enable=memory swapaccount=1"
    mark = "less" if missing == ["CPUs"] else "bad "
    yield Check(what="limits", found=f"the engine cannot limit {', '.join(missing)}", mark=mark, remedy=remedy)


def _swap(now: Situation) -> Iterator[Check]:
    if now.can_limit.get("swap", True) or now.swap_bytes == 0:
        return
    yield Check(
        what="swap",
        found="not limited: the kernel keeps no account of it, so out-of-memory kills may come too late",
        mark="less",
        remedy="boot with the kernel parameter swapaccount=1 (on Debian in GRUB_CMDLINE_LINUX of /etc/default/grub, then "
        "'update-grub'), or do without swap: 'swapoff -a'",
    )


def situation(engine: Engine, facts: EngineFacts, vantage: Vantage) -> Situation:
    """What is known here and now. Asks the engine once."""
    with engine.asked("describe itself"):
        info = engine.docker.info()
    address = os.environ.get("DOCKER_HOST", "")
    here = is_this_machine(facts.kernel, facts.memory_bytes)
    uid = _owner_of(address)
    names = {"memory": "MemoryLimit", "swap": "SwapLimit", "CPU time": "CpuCfsQuota", "CPUs": "CPUSet"}
    return Situation(
        vantage=vantage.name,
        why_not_host=HostVantage.why_not(facts),
        why_not_agent=getattr(vantage, "why_not_agent", ""),
        here=here,
        remote=not here and address.startswith(("tcp://", "ssh://", "http://", "https://")),
        rootless=facts.rootless,
        cgroup_version=facts.cgroup_version,
        cgroup_driver=facts.cgroup_driver,
        uid=uid,
        delegated=_delegated(uid),
        # A rootless Podman (5.4) tells of the cgroup that its service is in, not of those that its containers get.
        can_limit={}
        if facts.podman and facts.rootless
        else {name: bool(info[key]) for name, key in names.items() if key in info},
        swap_bytes=psutil.swap_memory().total if here else None,
    )


def _owner_of(address: str) -> int:
    """Whose engine it is: rootless ones listen in the run-time directory of their user."""
    named = re.match(r"unix:///run/user/(\d+)/", address)
    return int(named[1]) if named else os.getuid()


def _delegated(uid: int) -> frozenset[str] | None:
    try:
        return frozenset(Path(_DELEGATED.format(uid=uid)).read_text().split())
    except OSError:
        return None


def examine(engine: Engine, facts: EngineFacts, vantage: Vantage) -> list[Check]:
    """All checks, in the order in which they matter."""
    return [
        Check(what="engine", found=f"{facts.name} {facts.version} on {facts.operating_system}"),
        *standing(situation(engine, facts, vantage)),
        Check(what="cgroup", found=f"version {facts.cgroup_version}, driver {facts.cgroup_driver or 'unknown'}"),
        _hz(vantage.describe()["hz"]),
        _cpus(facts),
        Check(what="memory", found=f"{facts.memory_bytes / _GIB:.1f} GiB"),
        *_tmp(vantage.name),
        *_images(engine),
    ]


def _hz(found: int | None) -> Check:
    if found == 250:
        return Check(what="kernel tick", found="HZ 250, as on Lambda")
    return Check(
        what="kernel tick",
        found=f"HZ {found}" if found else "unknown",
        mark="less",
        remedy="Lambda has HZ 250: handlers shorter than 20 ms are throttled a little differently here",
    )


def _cpus(facts: EngineFacts) -> Check:
    fits = max(size for size in (128, 3008, 3009, 5308, 7077, 8846) if tier(size).visible_vcpus <= max(2, facts.cpus))
    if facts.cpus >= 6:
        return Check(what="CPUs", found=f"{facts.cpus}: enough for every memory size")
    largest = {3008: 3008, 3009: 5307, 5308: 7076, 7077: 8845}.get(fits, fits)
    if facts.cpus < 2:
        return Check(what="CPUs", found="1: init is not boosted to 2 vCPUs", mark="less", remedy="use a host with more")
    return Check(
        what="CPUs",
        found=f"{facts.cpus}: enough up to {largest} MB; beyond, records say cpu_capped",
        mark="less",
        remedy="use a host with 6 CPUs for the largest memory sizes",
    )


def _tmp(vantage: str) -> Iterator[Check]:
    if vantage != "host":
        yield Check(
            what="/tmp",
            found=f"not limited in size on vantage {vantage}: records say when a write had failed on Lambda",
            mark="less",
            remedy="vantage host makes a disk of exactly the configured size",
        )
        return
    missing = [name for name in ("mkfs.ext4", "losetup", "mount") if shutil.which(name) is None]
    if missing or not Path("/dev/loop-control").exists():
        yield Check(
            what="/tmp",
            found=f"not limited in size: {', '.join(missing) or '/dev/loop-control'} is missing",
            mark="less",
            remedy="install e2fsprogs and util-linux, load the module loop",
        )
    else:
        yield Check(what="/tmp", found="a disk of exactly the configured size")


def _images(engine: Engine) -> Iterator[Check]:
    for each in images.survey(engine.docker):
        if each.chosen is None:
            yield Check(
                what=f"image {each.runtime}",
                found=each.why,
                mark="less",
                remedy=f"'lambda-harness images build {each.runtime}' makes one from Debian's packages",
            )
        else:
            yield Check(what=f"image {each.runtime}", found=f"{each.chosen.reference}: {each.why}")
