"""Processes of a sandbox, from /proc: resident memory and its peak, threads, open files, the use of /tmp.

Reads one process a call and keeps nothing. Must not know cgroups, containers or which process is whose. ``root`` stands
for /proc, so that a recorded tree can be read. What is gone, a zombie, forbidden or unknown to the kernel is None (or
False), never a guess.

How exact the kernel's figures of resident memory are: since 6.2 they are counters kept for each CPU. Some kernels show
in `statm` and `status` only what has been handed in to the total, which may be off by up to 32 pages (on many CPUs by
twice their number) for each CPU and kind of memory; others add up all parts when asked. `smaps_rollup` walks the page
tables and has always been exact, but takes time in proportion to the size: 0.1 ms for 16 MB and 1.3 ms for 256 MB of
4 KiB pages. On kernel 6.18 with 2 CPUs, 60 readings of a growing process with four threads agreed to the byte.

The high-water mark is less exact: the kernel notes it from the lagging totals just before memory is given back. On the
same kernel a peak that was over when it was read came out up to 316 KiB too low (the median of 40 and 60 trials: 270 and
110 KiB), once 176 KiB too high. A peak that still stands is exact.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_CHUNK_BYTES = 65536

# Positions after the ")" that ends the name in /proc/PID/stat, see proc_pid_stat(5): its field number minus 3.
_STATE, _PPID, _CMINFLT, _CMAJFLT, _CUTIME, _CSTIME, _NUM_THREADS, _STARTTIME = 0, 1, 8, 10, 13, 14, 17, 19
_DEAD = frozenset("ZXx")


@dataclass(frozen=True, kw_only=True)
class Process:
    """One process at one moment. ``start_ticks`` (since boot) together with the PID names it for good."""

    pid: int
    name: str
    rss_bytes: int
    peak_rss_bytes: int | None
    anon_bytes: int | None
    threads: int
    open_files: int | None
    start_ticks: int


@dataclass(frozen=True, kw_only=True)
class ReapedChildren:
    """What a process has inherited from children that ended and that it waited for.

    Compared with an earlier reading it tells that children lived and died in between, whose peaks nobody saw. Children
    whose parent ignores SIGCHLD leave no trace here.
    """

    minor_faults: int
    major_faults: int
    cpu_ticks: int


def read(pid: int, root: str = "/proc") -> Process | None:
    """What is known of a process; None when it is gone or a zombie. About 20 us."""
    stat = _read(f"{root}/{pid}/stat")
    status = _read(f"{root}/{pid}/status")
    if stat is None or status is None:
        return None
    fields = _after_name(stat)
    rss = _kilobytes(status, b"\nVmRSS:")
    if fields is None or rss is None:
        return None
    return Process(
        pid=pid,
        name=stat[stat.index(b"(") + 1 : stat.rindex(b")")].decode("utf-8", "replace"),
        rss_bytes=rss,
        peak_rss_bytes=_kilobytes(status, b"\nVmHWM:"),
        anon_bytes=_kilobytes(status, b"\nRssAnon:"),
        threads=int(fields[_NUM_THREADS]),
        open_files=_open_files(pid, root),
        start_ticks=int(fields[_STARTTIME]),
    )


def reset_peak_rss(pid: int, root: str = "/proc") -> bool:
    """Start VmHWM again from what is resident now; False where this is not possible."""
    # Opening it needs the rights of a debugger on that process.
    return _write(f"{root}/{pid}/clear_refs", b"5")


def set_oom_score_adj(pid: int, value: int, root: str = "/proc") -> bool:
    """Make a process a likelier (to 1000) or less likely (to -1000: never) victim of the out-of-memory killer.

    The killer takes the largest process, and while that one is on its way out it may take a second, which can be the RIE.
    At 1000 the runtime and what it forks from then on (children inherit the value) go first, whatever their sizes. Less
    than before needs CAP_SYS_RESOURCE, and a runtime that inherits -1000 from the RIE stalls instead of being killed.
    """
    return _write(f"{root}/{pid}/oom_score_adj", b"%d" % value)


def resident_together_bytes(pids: Iterable[int], root: str = "/proc") -> int | None:
    """The resident memory of processes together; None where there is none, or it cannot be read.

    A child between vfork and exec is its parent once more, to the page: of processes with the same figures one counts, so
    that the sum stays a lower bound.
    """
    figures = {statm for pid in pids if (statm := _read(f"{root}/{pid}/statm"))}
    return sum(int(statm.split(b" ", 2)[1]) for statm in figures) * _PAGE_BYTES or None


def start_ticks(pid: int, root: str = "/proc") -> int | None:
    """When a process started: another figure under the same PID is another process."""
    stat = _read(f"{root}/{pid}/stat")
    fields = None if stat is None else _after_name(stat)
    return None if fields is None else int(fields[_STARTTIME])


def parent(pid: int, root: str = "/proc") -> int | None:
    """Who started a process, or has inherited it."""
    stat = _read(f"{root}/{pid}/stat")
    fields = None if stat is None else _after_name(stat)
    return None if fields is None else int(fields[_PPID])


def reaped_children(pid: int, root: str = "/proc") -> ReapedChildren | None:
    """What ended children left with this process; compare with an earlier reading."""
    stat = _read(f"{root}/{pid}/stat")
    fields = None if stat is None else _after_name(stat)
    if fields is None:
        return None
    return ReapedChildren(
        minor_faults=int(fields[_CMINFLT]),
        major_faults=int(fields[_CMAJFLT]),
        cpu_ticks=int(fields[_CUTIME]) + int(fields[_CSTIME]),
    )


def anonymous_bytes(pid: int, root: str = "/proc") -> int | None:
    """Anonymous resident memory from `status`: cheap; see the module's text on how exact it is."""
    status = _read(f"{root}/{pid}/status")
    return None if status is None else _kilobytes(status, b"\nRssAnon:")


def exact_anonymous_bytes(pid: int, root: str = "/proc") -> int | None:
    """Anonymous resident memory from `smaps_rollup`: exact, by a walk over the page tables.

    A page shared with a forked process counts whole here, for each of them; see `anonymous_share_bytes`.
    """
    rollup = _read(f"{root}/{pid}/smaps_rollup")
    return None if rollup is None else _kilobytes(rollup, b"\nAnonymous:")


def anonymous_share_bytes(pid: int, root: str = "/proc") -> int | None:
    """As `exact_anonymous_bytes`, a page shared by n processes counted as 1/n in each: sums over processes are true."""
    rollup = _read(f"{root}/{pid}/smaps_rollup")
    return None if rollup is None else _kilobytes(rollup, b"\nPss_Anon:")


def tmp_bytes(pid: int, root: str = "/proc") -> int | None:
    """Bytes in use on the file system at the /tmp that this process sees, the file system's own few included.

    None where /tmp is a directory of the root file system. Where it is a directory of some other file system the figure
    is that file system's: ask `tmp_is_own_filesystem` once for each sandbox.
    """
    try:
        # O_NOFOLLOW: an absolute symbolic link in an image would lead out into our own file system.
        flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(f"{root}/{pid}/root/tmp", flags)
    except OSError:
        return None
    try:
        if os.fstat(descriptor).st_dev == os.stat(f"{root}/{pid}/root").st_dev:  # noqa: PTH116 - one call, no objects
            return None
        found = os.fstatvfs(descriptor)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def tmp_files_bytes(pid: int, root: str = "/proc") -> int | None:
    """Bytes that the files in the process's /tmp take up, by a walk over them: for a /tmp without a file system of its own.

    Links are not followed; a file with several names counts once. None where the directory cannot be read.
    """
    top = f"{root}/{pid}/root/tmp"
    if os.path.islink(top) or not os.path.isdir(top):  # noqa: PTH112, PTH114 - no objects on the hot path
        return None
    total, seen = 0, set()
    folders = [top]
    # Not `os.walk`, which calls itself for each level before Python 3.12: a function may nest as deep as it likes.
    while folders:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                        continue
                    with contextlib.suppress(FileNotFoundError):  # it went away meanwhile
                        found = entry.stat(follow_symlinks=False)
                        if (found.st_dev, found.st_ino) not in seen:
                            seen.add((found.st_dev, found.st_ino))
                            total += found.st_blocks * 512
        except FileNotFoundError:
            continue
        except OSError:  # a path too long for the kernel, say: what is below cannot be counted
            return None
    return total


def tmp_is_own_filesystem(pid: int, root: str = "/proc") -> bool | None:
    """Whether a whole file system is mounted at the process's /tmp, and not a directory of another; None: unknown."""
    mountinfo = _read(f"{root}/{pid}/mountinfo")
    if mountinfo is None:
        return None
    there = [fields for line in mountinfo.splitlines() if (fields := line.split(b" ", 5))[4] == b"/tmp"]
    # Of several at one place that one is seen which no other is mounted on. Their order says nothing: the kernel lists them by
    # their ids since 6.8, and Podman mounts a volume over a tmpfs of its own, with the lower id.
    below = {fields[1] for fields in there}
    return any(fields[3] == b"/" for fields in there if fields[0] not in below)


def _read(path: str) -> bytes | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        data = os.read(descriptor, _CHUNK_BYTES)
        # The kernel hands out long files in pieces of about a page: only an empty answer is the end.
        while more := os.read(descriptor, _CHUNK_BYTES):
            data += more
    except OSError:  # ESRCH: the process ended between open and read
        return None
    finally:
        os.close(descriptor)
    return data


def _write(path: str, value: bytes) -> bool:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        os.write(descriptor, value)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _after_name(stat: bytes) -> list[bytes] | None:
    """The fields after the name, which may itself hold spaces and parentheses; None for a dead process."""
    fields = stat[stat.rfind(b")") + 2 :].split()
    return None if not fields or fields[_STATE].decode() in _DEAD else fields


def _kilobytes(text: bytes, key: bytes) -> int | None:
    """The value of a ``Key:   123 kB`` line, in bytes (the kernel's kB are 1024)."""
    at = text.find(key)
    if at < 0:
        return None
    return int(text[at + len(key) : text.index(b"kB", at)]) * 1024


def _open_files(pid: int, root: str) -> int | None:
    try:
        return len(os.listdir(f"{root}/{pid}/fd"))  # noqa: PTH208 - half the time of Path.iterdir
    except OSError:
        return None
