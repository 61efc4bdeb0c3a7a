"""Vantage ``host``: this kernel runs the containers, and this process may write their cgroups.

Freezes in a fraction of a millisecond where the engine takes 15, resets the kernel's high-water marks so that a peak is
one invocation's own, and keeps the RIE out of the figures. Must not know Lambda's phases; the sandbox calls it in order.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from harness import cgroup
from harness.engine.client import EngineFacts
from harness.engine.containers import Container
from harness.kernel import cpu_model, is_this_kernel, is_this_machine, tick_hz
from harness.vantage import TmpVolume
from harness.vantage.attending import LocalAttendant
from harness.vantage.reach import CgroupReach

_MIB = 1024 * 1024
_BLOCK = 4096


class HostVantage:
    """See the module. `why_not` tells whether it can be used at all."""

    name = "host"
    relays = True
    in_process = True
    sees_files = True

    @staticmethod
    def why_not(facts: EngineFacts) -> str | None:
        """A sentence that says why this vantage cannot be used here, or None."""
        if not is_this_kernel(facts.kernel):
            return f"the engine runs on another kernel ({facts.kernel or 'unknown'}) than this process"
        if not is_this_machine(facts.kernel, facts.memory_bytes):
            return "the engine runs on another machine: its kernel is of the same release, but has other memory"
        if facts.rootless:
            return "the engine is rootless: its network and its users are in namespaces of their own"
        if os.geteuid() != 0:
            return "this process is not root, so it may not write the containers' cgroups"
        return None

    def cpus(self) -> tuple[int, ...]:
        online = sorted(os.sched_getaffinity(0))
        return tuple(online)

    @staticmethod
    def unmount(point: Path) -> None:
        """Unmount what a killed command had mounted; quiet where that is over."""
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            _run("umount", "--lazy", str(point))

    def describe(self) -> dict[str, Any]:
        return {"hz": tick_hz(), "cpu_model": cpu_model()}

    def spare_memory_bytes(self) -> int:
        return int(psutil.virtual_memory().available)

    def carry(self, binds: Mapping[str, tuple[str, str]], image_id: str) -> dict[str, tuple[str, str]]:  # noqa: ARG002  # the same call as elsewhere
        return dict(binds)

    def attend(self, container: Container, tmp_mb: int) -> LocalAttendant:
        return LocalAttendant(container.address, lambda: CgroupReach(container.pid, tmp_mb))

    def close(self) -> None:
        """Nothing is held."""

    def let_go(self, container_id: str, pid: int) -> None:  # noqa: ARG002  # the same call as on `api`
        if pid <= 0:
            return
        with contextlib.suppress(Exception):  # the container may be gone, or half gone: removal says the rest
            found = cgroup.open_cgroup(pid)
            if found.frozen():
                found.thaw()

    def tmp(self, size_mb: int, sandbox_id: str, work_dir: Path) -> TmpVolume:
        """An ext4 file system of exactly ``size_mb`` in a sparse file, so that a full /tmp is ENOSPC as on Lambda.

        It lies on disk: a tmpfs would be charged to the function's memory. Both the file's name and the mount on the host
        are given up as soon as the container holds the mount, so even a killed harness leaves nothing behind.
        """
        folder = work_dir / f"tmp-{sandbox_id}"
        folder.mkdir()
        image, mount = folder / "disk", folder / "tmp"
        mount.mkdir()

        def discard() -> None:
            if mount.is_mount():
                _run("umount", "--lazy", str(mount))
            shutil.rmtree(folder, ignore_errors=True)

        try:
            _make_disk(image, mount, size_mb)
        except (OSError, subprocess.CalledProcessError) as error:
            discard()
            return self._plain_tmp(size_mb, folder, _reason(error))
        except BaseException:
            discard()
            raise
        # The loop device keeps the file; without a name it vanishes with the last user.
        image.unlink()
        return TmpVolume(source=str(mount), exact=True, mounted=discard, discard=discard)

    @staticmethod
    def _plain_tmp(size_mb: int, folder: Path, reason: str) -> TmpVolume:
        folder.mkdir()
        folder.chmod(0o1777)
        return TmpVolume(
            source=str(folder),
            exact=False,
            mounted=lambda: None,
            discard=lambda: shutil.rmtree(folder, ignore_errors=True),
            note=f"/tmp is not limited to {size_mb} MB: {reason}",
        )


def _reason(error: BaseException) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        return (error.stderr or error.stdout or str(error)).strip().splitlines()[-1]
    return str(error)


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


_overhead_bytes: dict[int, int] = {}
"""By size in MB: what ext4 needs beside the free space, as found out by formatting one. It depends on the size alone."""


def _make_disk(image: Path, mount: Path, size_mb: int) -> None:
    """Format ``image`` so that its mounted file system has ``size_mb`` MB free (at most 256 KiB more), and mount it."""
    wanted = size_mb * _MIB
    overhead = _overhead_bytes.get(size_mb, wanted // 32 + 4 * _MIB)
    for _ in range(4):
        _format(image, wanted + overhead)
        _mount(image, mount)
        found = os.statvfs(mount)
        excess = found.f_bavail * found.f_frsize - wanted
        if 0 <= excess < _DISK_SLACK:
            _overhead_bytes[size_mb] = overhead
            mount.chmod(0o1777)
            return
        overhead -= excess
        _run("umount", str(mount))
    raise OSError(f"an ext4 file system of {size_mb} MB came out {excess} bytes off")


_DISK_SLACK = 256 * 1024


def _format(image: Path, size: int) -> None:
    with image.open("wb") as file:
        file.truncate(size)
    # One inode for 64 KiB; a reserve for root (-m 0) and a journal would take from the function.
    _run("mkfs.ext4", "-q", "-F", "-m", "0", "-b", str(_BLOCK), "-N", str(max(4096, size // 65536)),
         "-O", "^has_journal,^resize_inode", "-E", "lazy_itable_init=1,nodiscard,root_owner=0:0", str(image))  # fmt: skip


def _mount(image: Path, mount: Path) -> None:
    # Direct input and output, where the file system below can: else every page would be cached, and charged, twice.
    try:
        device = _run("losetup", "--find", "--show", "--direct-io=on", str(image))
    except subprocess.CalledProcessError:
        device = _run("losetup", "--find", "--show", str(image))
    try:
        _run("mount", "-t", "ext4", "-o", "nosuid,nodev", device, str(mount))
    finally:
        _run("losetup", "--detach", device)  # takes effect when the last mount of it goes
    # What ext4 keeps for delayed allocation (2 % or 16 MB) would be missing from the size.
    with contextlib.suppress(OSError):
        Path(f"/sys/fs/ext4/{Path(device).name}/reserved_clusters").write_text("0")
    with contextlib.suppress(OSError):
        (mount / "lost+found").rmdir()
