"""What anybody may read of a sandbox, on recorded file trees; and what two looks at it say of an invocation."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from test_cgroup import V1_RIE, V1_RUNTIME, V2_RIE, V2_RUNTIME, unpack

from harness.cgroup import CpuUsage
from harness.invocation import PeakMethod
from harness.kernel import is_this_machine
from harness.procfs import Process, ReapedChildren
from harness.vantage import reading
from harness.vantage.reading import Reading, Seen, open_reading

KERNEL = os.uname().release
V1_ID = "bb369cefdde503b007c9e1d364b6f1d89164aaeb74c545640c5808573bb2cbaf"
V2_ID = "5f2e8c1d9b7a64303e1f0c2b8d7a695847362514f0e1d2c3b4a5968778695a4b"
MIB = 1024 * 1024
NO_CHILDREN = ReapedChildren(minor_faults=0, major_faults=0, cpu_ticks=0)


@pytest.fixture
def v1(tmp_path: Path) -> Path:
    return unpack("v1_docker.txt", tmp_path)


@pytest.fixture
def v2(tmp_path: Path) -> Path:
    """Processes are recorded in the other tree: they are taken over under this tree's numbers."""
    other = unpack("v1_docker.txt", tmp_path / "other")
    root = unpack("v2_docker.txt", tmp_path / "root")
    for there, here in ((V1_RIE, V2_RIE), (V1_RUNTIME, V2_RUNTIME)):
        for name in ("stat", "status", "statm"):
            text = (other / f"proc/{there}/{name}").read_text()
            (root / f"proc/{here}/{name}").write_text(text)
    return root


def opened(root: Path, container_id: str, pid: int) -> Reading:
    found = open_reading(container_id, pid, kernel=KERNEL, root=str(root))
    assert found is not None
    return found


def threads(root: Path, pid: int, **cpu_ns: int) -> None:
    for name, value in cpu_ns.items():
        file = root / f"proc/{pid}/task/{name[1:]}/schedstat"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{value} 10 3\n")


def test_version_1_tells_counters_marks_and_processes_to_anybody(v1: Path) -> None:
    threads(v1, V1_RIE, t27181=5_000_000, t27190=2_000_000)
    files = opened(v1, V1_ID, V1_RIE)
    seen = files.look()
    assert files.version == 1
    group = v1 / f"sys/fs/cgroup/memory/docker/{V1_ID}"
    assert seen.usage is not None
    assert seen.peak_memory_bytes == int((group / "memory.max_usage_in_bytes").read_text())
    assert seen.rie_cpu_ns == {27181: 5_000_000, 27190: 2_000_000}
    assert seen.oom_kills is not None
    assert seen.charged_bytes is not None
    assert seen.page_cache_bytes is not None
    assert seen.charged_bytes + seen.page_cache_bytes == int((group / "memory.usage_in_bytes").read_text())
    assert seen.processes is not None
    assert list(seen.processes) == [V1_RUNTIME], "the RIE is not the function's"
    assert files.resident_bytes() == seen.processes[V1_RUNTIME].rss_bytes


def test_version_2_tells_them_too(v2: Path) -> None:
    files = opened(v2, V2_ID, V2_RIE)
    seen = files.look()
    assert files.version == 2
    assert seen.usage is not None
    assert seen.peak_memory_bytes is not None
    assert seen.oom_kills is not None
    assert seen.processes is not None
    assert list(seen.processes) == [V2_RUNTIME]


@pytest.mark.parametrize(
    ("container_id", "pid", "kernel"),
    [
        (V1_ID, V1_RIE, "5.10.0-of-another-machine"),
        (V1_ID, 0, KERNEL),
        (V1_ID, 99, KERNEL),
        ("", V1_RIE, KERNEL),
        ("f" * 64, V1_RIE, KERNEL),
    ],
    ids=["another kernel", "no process", "a process that is not here", "no id", "another container's process"],
)
def test_what_is_not_proven_to_be_the_container_is_not_read(v1: Path, container_id: str, pid: int, kernel: str) -> None:
    assert open_reading(container_id, pid, kernel=kernel, root=str(v1)) is None


def test_a_cgroup_that_containers_share_is_not_taken_for_one_s_own(v2: Path) -> None:
    shared = v2 / "sys/fs/cgroup/user.slice"
    shared.mkdir()
    (shared / "cgroup.procs").write_text(f"{V2_RIE}\n{V2_RUNTIME}\n")
    (v2 / f"proc/{V2_RIE}/cgroup").write_text("0::/user.slice\n")
    assert open_reading(V2_ID, V2_RIE, kernel=KERNEL, root=str(v2)) is None


def test_where_the_processes_are_in_a_group_below_the_limits_are_read_above(v2: Path) -> None:
    scope = v2 / f"sys/fs/cgroup/system.slice/docker-{V2_ID}.scope"
    (scope / "container").mkdir()
    (scope / "container/cgroup.procs").write_text((scope / "cgroup.procs").read_text())
    (scope / "cgroup.procs").write_text("")
    (v2 / f"proc/{V2_RIE}/cgroup").write_text(f"0::/system.slice/docker-{V2_ID}.scope/container\n")
    files = opened(v2, V2_ID, V2_RIE)
    assert list(files.look().processes or ()) == [V2_RUNTIME]
    limit = int((scope / "memory.max").read_text())
    assert files.holds_memory_limit(limit) is True


def test_where_the_group_below_has_limits_they_are_the_exact_ones(v2: Path) -> None:
    """crun sets them on both; systemd rounds the quota of the scope, and takes memory and swap together for swap."""
    scope = v2 / f"sys/fs/cgroup/system.slice/docker-{V2_ID}.scope"
    inner = scope / "container"
    inner.mkdir()
    for file in ("cgroup.procs", "memory.max", "memory.swap.max", "cpu.max"):
        (inner / file).write_text((scope / file).read_text())
    (inner / "memory.swap.max").write_text("0\n")
    (inner / "cpu.max").write_text("5788 20000\n")
    (scope / "cpu.max").write_text("5800 20000\n")
    (scope / "memory.swap.max").write_text("209715200\n")
    (v2 / f"proc/{V2_RIE}/cgroup").write_text(f"0::/system.slice/docker-{V2_ID}.scope/container\n")
    files = opened(v2, V2_ID, V2_RIE)
    assert files.quota() == (5788, 20000)
    assert files.swap_limited() is True


def test_a_limit_that_cannot_be_read_is_neither_held_nor_broken(v1: Path) -> None:
    files = opened(v1, V1_ID, V1_RIE)
    file = v1 / f"sys/fs/cgroup/memory/docker/{V1_ID}/memory.limit_in_bytes"
    assert files.holds_memory_limit(int(file.read_text())) is True
    assert files.holds_memory_limit(1) is False
    file.unlink()
    assert files.holds_memory_limit(1) is None
    assert files.quota() is not None
    (v1 / f"sys/fs/cgroup/cpu/docker/{V1_ID}/cpu.cfs_quota_us").unlink()
    assert files.quota() is None


def test_figures_without_a_file_are_none_and_the_others_still_come(v1: Path) -> None:
    files = opened(v1, V1_ID, V1_RIE)
    for name in ("memory.stat", "memory.oom_control", "memory.max_usage_in_bytes"):
        (v1 / f"sys/fs/cgroup/memory/docker/{V1_ID}/{name}").unlink()
    seen = files.look()
    assert (seen.oom_kills, seen.peak_memory_bytes, seen.charged_bytes, seen.page_cache_bytes) == (
        None,
        None,
        None,
        None,
    )
    assert seen.rie_cpu_ns is None
    assert seen.usage is not None
    assert seen.processes


def test_processes_that_proc_hides_are_unknown_and_not_gone(v1: Path) -> None:
    files = opened(v1, V1_ID, V1_RIE)
    for pid in (V1_RIE, V1_RUNTIME):
        (v1 / f"proc/{pid}/status").unlink()
    assert files.look().processes is None


def test_a_child_between_vfork_and_exec_counts_once(v1: Path) -> None:
    files = opened(v1, V1_ID, V1_RIE)
    alone = files.resident_bytes()
    child = v1 / "proc/27300"
    child.mkdir()
    (child / "statm").write_text((v1 / f"proc/{V1_RUNTIME}/statm").read_text())
    with (v1 / f"sys/fs/cgroup/freezer/docker/{V1_ID}/cgroup.procs").open("a") as file:
        file.write("27300\n")
    assert files.resident_bytes() == alone
    (child / "statm").write_text("3000 100 90 1 0 40 0\n")
    assert files.resident_bytes() == (alone or 0) + 100 * os.sysconf("SC_PAGE_SIZE")


def test_without_a_debugger_s_rights_anonymous_memory_is_one_process_s_alone(v1: Path) -> None:
    files = opened(v1, V1_ID, V1_RIE)
    exact = files.look().anonymous_bytes
    (v1 / f"proc/{V1_RUNTIME}/smaps_rollup").unlink()
    assert exact is not None
    assert files.look().anonymous_bytes is not None
    child = v1 / "proc/27300"
    child.mkdir()
    for name in ("stat", "status", "statm"):
        (child / name).write_text((v1 / f"proc/{V1_RUNTIME}/{name}").read_text())
    with (v1 / f"sys/fs/cgroup/freezer/docker/{V1_ID}/cgroup.procs").open("a") as file:
        file.write("27300\n")
    assert files.look().anonymous_bytes is None, "what a fork shares would count twice"


def test_only_an_engine_with_this_kernel_and_this_memory_is_on_this_machine(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal:        4000 kB\nMemFree:         1000 kB\n")
    assert is_this_machine(KERNEL, 4000 * 1024, root=str(tmp_path))
    assert not is_this_machine(KERNEL, 8000 * 1024, root=str(tmp_path))
    assert not is_this_machine("6.1.0-elsewhere", 4000 * 1024, root=str(tmp_path))


# -- two looks ----------------------------------------------------------------------------------------------------------


def usage(cpu_ns: int) -> CpuUsage:
    return CpuUsage(cpu_ns=cpu_ns, throttled_ns=0, throttled_periods=0, periods=0)


def process(pid: int = 7, *, rss_mb: int = 20, mark_mb: int | None = 20, start: int = 100) -> Process:
    mark = None if mark_mb is None else mark_mb * MIB
    return Process(
        pid=pid,
        name="python3",
        rss_bytes=rss_mb * MIB,
        peak_rss_bytes=mark,
        anon_bytes=None,
        threads=1,
        open_files=None,
        start_ticks=start,
    )


def look(*processes: Process, reaped: ReapedChildren = NO_CHILDREN) -> Seen:
    return Seen(processes={each.pid: each for each in processes}, reaped={each.pid: reaped for each in processes})


def test_the_rie_s_time_is_taken_off_as_long_as_all_of_its_threads_are_there() -> None:
    before = Seen(usage=usage(1_000), rie_cpu_ns={1: 300, 2: 100})
    assert reading.cpu_ns(before, Seen(usage=usage(9_000), rie_cpu_ns={1: 500, 2: 100, 3: 50})) == (7_750, True)
    assert reading.cpu_ns(before, Seen(usage=usage(9_000), rie_cpu_ns={1: 500})) == (8_000, False)
    assert reading.cpu_ns(before, Seen(usage=usage(9_000))) == (8_000, False)
    assert reading.cpu_ns(before, Seen()) == (None, False)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [(100, 150, 150), (150, 150, None), (None, 150, None), (100, None, None)],
)
def test_a_peak_of_the_cgroup_counts_only_where_the_mark_rose(
    before: int | None, after: int | None, expected: int | None
) -> None:
    assert reading.peak_memory_bytes(Seen(peak_memory_bytes=before), Seen(peak_memory_bytes=after)) == expected


CHILD = ReapedChildren(minor_faults=90, major_faults=0, cpu_ticks=1)


@pytest.mark.parametrize(
    ("before", "after", "sampled_mb", "expected"),
    [
        (look(), look(process(mark_mb=30)), 0, (30, PeakMethod.HIGH_WATER)),
        (look(process()), look(process(mark_mb=50)), 0, (50, PeakMethod.HIGH_WATER)),
        (look(process(mark_mb=90)), look(process(mark_mb=90)), 40, (40, PeakMethod.SAMPLED)),
        (look(process(mark_mb=90)), look(process(mark_mb=90)), 0, (20, PeakMethod.SAMPLED)),
        (look(process()), look(process(mark_mb=50), reaped=CHILD), 0, (20, PeakMethod.SAMPLED)),
        (look(), look(process(mark_mb=30), reaped=CHILD), 0, (30, PeakMethod.SAMPLED)),
        (look(process()), look(process(mark_mb=50), process(8)), 0, (40, PeakMethod.SAMPLED)),
        (look(process(), process(8)), look(process(mark_mb=50)), 0, (20, PeakMethod.SAMPLED)),
        (look(process(mark_mb=90)), look(process(mark_mb=30, start=101)), 0, (30, PeakMethod.SAMPLED)),
        (look(process()), look(), 25, (25, PeakMethod.SAMPLED)),
        (look(process()), look(), 0, (None, None)),
        (look(process(mark_mb=None)), look(process(mark_mb=None)), 0, (20, PeakMethod.SAMPLED)),
        (Seen(), Seen(), 25, (25, PeakMethod.SAMPLED)),
        (Seen(), Seen(), 0, (None, None)),
    ],
    ids=[
        "a process that is new brings its own mark",
        "the mark rose",
        "an earlier peak hides this one: the largest sample",
        "no sample was larger than what is resident now",
        "a child that is gone took its mark along",
        "so it did in a first invocation",
        "another process is there now",
        "another process was there before",
        "the same number, but another process: its own mark is a lower bound",
        "the runtime is gone: the largest sample",
        "the runtime is gone and nobody looked",
        "a kernel without marks",
        "processes that cannot be listed",
        "nothing at all",
    ],
)
def test_a_peak_of_resident_memory_is_exact_where_one_process_did_it_all_and_its_mark_rose(
    before: Seen, after: Seen, sampled_mb: int, expected: tuple[Any, Any]
) -> None:
    found, method = reading.peak_rss(before, after, sampled_mb * MIB)
    assert (None if found is None else found // MIB, method) == expected
