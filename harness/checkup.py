"""The checks of ``doctor``: what this host can do for true figures, and what it cannot. Changes nothing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.engine import images
from harness.engine.client import Engine, EngineFacts
from harness.host import tick_hz
from harness.tiers import tier
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


def examine(engine: Engine, facts: EngineFacts, vantage: str) -> list[Check]:
    """All checks, in the order in which they matter."""
    return [
        Check(what="engine", found=f"{facts.name} {facts.version} on {facts.operating_system}"),
        _vantage(facts, vantage),
        Check(what="cgroup", found=f"version {facts.cgroup_version}, driver {facts.cgroup_driver or 'unknown'}"),
        _hz(vantage),
        _cpus(facts),
        Check(what="memory", found=f"{facts.memory_bytes / _GIB:.1f} GiB"),
        *_tmp(vantage),
        *_images(engine),
    ]


def _vantage(facts: EngineFacts, vantage: str) -> Check:
    if vantage == "host":
        return Check(what="vantage", found="host: freezes through the cgroup, exact peaks, the Runtime API is relayed")
    return Check(
        what="vantage",
        found=f"{vantage}: {HostVantage.why_not(facts)}",
        mark="less",
        remedy="as root on the kernel that runs the containers, freezing is quicker and peaks are exact",
    )


def _hz(vantage: str) -> Check:
    found = tick_hz() if vantage == "host" else None
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
        yield Check(what="/tmp", found="not limited in size on this vantage", mark="less")
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
