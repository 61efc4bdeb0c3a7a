"""Processes as /proc tells them: on a recorded tree, and on a process of this test's own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness import procfs
from harness.procfs import Process, ReapedChildren

if TYPE_CHECKING:
    from collections.abc import Iterator

TREE = Path(__file__).parent / "cgroup_trees/v1_docker.txt"
RIE, RUNTIME = 27181, 27211

ALL = (
    procfs.read,
    procfs.start_ticks,
    procfs.parent,
    procfs.reaped_children,
    procfs.anonymous_bytes,
    procfs.exact_anonymous_bytes,
    procfs.anonymous_share_bytes,
    procfs.tmp_bytes,
    procfs.tmp_is_own_filesystem,
)


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    for section in TREE.read_text().split("=== ")[1:]:
        path, _, text = section.partition("\n")
        if path.startswith("proc/"):
            file = tmp_path / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
    return tmp_path / "proc"


@pytest.fixture
def child() -> Iterator[subprocess.Popen[str]]:
    """A process that allocates as many pages as it is told, gives them back when told 0, and answers."""
    program = """if True:
        import mmap, sys
        for line in sys.stdin:
            pages = int(line)
            if pages:
                kept = mmap.mmap(-1, pages * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
                for page in range(pages):
                    kept[page * mmap.PAGESIZE] = 1
            else:
                kept.close()
            print("done", flush=True)
    """
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.kill()


def tell(child: subprocess.Popen[str], pages: int) -> None:
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(f"{pages}\n")
    child.stdin.flush()
    assert child.stdout.readline() == "done\n"


def test_a_process_is_read_whole(proc: Path) -> None:
    assert procfs.read(RUNTIME, str(proc)) == Process(
        pid=RUNTIME,
        name="python3",
        rss_bytes=16264 * 1024,
        peak_rss_bytes=16264 * 1024,
        anon_bytes=10580 * 1024,
        threads=1,
        open_files=3,
        start_ticks=228101,
    )


def test_the_peak_is_the_high_water_mark_and_not_what_is_resident_now(proc: Path) -> None:
    status = proc / f"{RUNTIME}/status"
    status.write_text(status.read_text().replace("VmHWM:	   16264 kB", "VmHWM:	   99999 kB"))
    process = procfs.read(RUNTIME, str(proc))
    assert process is not None
    assert (process.rss_bytes, process.peak_rss_bytes) == (16264 * 1024, 99999 * 1024)


def test_a_name_may_hold_spaces_and_parentheses(proc: Path) -> None:
    stat = proc / f"{RUNTIME}/stat"
    stat.write_text(stat.read_text().replace("(python3)", "(a) Z 1 (b)"))
    process = procfs.read(RUNTIME, str(proc))
    assert process is not None
    assert (process.name, process.start_ticks) == ("a) Z 1 (b", 228101)


def test_a_zombie_is_no_process(proc: Path) -> None:
    stat = proc / f"{RUNTIME}/stat"
    stat.write_text(stat.read_text().replace(") S ", ") Z "))
    assert procfs.read(RUNTIME, str(proc)) is None
    assert procfs.start_ticks(RUNTIME, str(proc)) is None
    assert procfs.reaped_children(RUNTIME, str(proc)) is None


def test_a_process_without_memory_of_its_own_is_not_zero_bytes_large(proc: Path) -> None:
    (proc / f"{RUNTIME}/statm").write_text("0 0 0 0 0 0 0\n")
    status = proc / f"{RUNTIME}/status"
    status.write_text("\n".join(line for line in status.read_text().splitlines() if not line.startswith(("Vm", "Rss"))))
    assert procfs.resident_together_bytes([RUNTIME], str(proc)) is None
    assert procfs.read(RUNTIME, str(proc)) is None
    assert procfs.anonymous_bytes(RUNTIME, str(proc)) is None


def test_figures_that_an_older_kernel_does_not_tell_are_none(proc: Path) -> None:
    status = proc / f"{RUNTIME}/status"
    kept = [line for line in status.read_text().splitlines() if not line.startswith(("VmHWM", "RssAnon"))]
    status.write_text("\n".join(kept))
    process = procfs.read(RUNTIME, str(proc))
    assert process is not None
    assert process.peak_rss_bytes is None
    assert process.anon_bytes is None


def test_open_files_that_may_not_be_counted_are_none(proc: Path) -> None:
    descriptors = proc / f"{RUNTIME}/fd"
    descriptors.rename(descriptors.with_name("hidden"))
    process = procfs.read(RUNTIME, str(proc))
    assert process is not None
    assert process.open_files is None


def test_resident_memory_is_counted_in_pages(proc: Path) -> None:
    assert procfs.resident_together_bytes([RUNTIME], str(proc)) == 4066 * os.sysconf("SC_PAGE_SIZE")


def test_anonymous_memory_from_each_source(proc: Path) -> None:
    rollup = proc / f"{RUNTIME}/smaps_rollup"
    rollup.write_text(rollup.read_text().replace("Pss_Anon:          10580 kB", "Pss_Anon:           5290 kB"))
    assert procfs.anonymous_bytes(RUNTIME, str(proc)) == 10580 * 1024
    assert procfs.exact_anonymous_bytes(RUNTIME, str(proc)) == 10580 * 1024
    assert procfs.anonymous_share_bytes(RUNTIME, str(proc)) == 5290 * 1024


def test_children_that_lived_and_died_leave_faults_and_ticks(proc: Path) -> None:
    assert procfs.reaped_children(RIE, str(proc)) == ReapedChildren(minor_faults=65, major_faults=1, cpu_ticks=0)


def test_a_file_system_at_tmp_is_told_from_a_directory_of_another(proc: Path) -> None:
    mountinfo = proc / f"{RUNTIME}/mountinfo"
    assert procfs.tmp_is_own_filesystem(RUNTIME, str(proc)) is True
    recorded = mountinfo.read_text()
    below = next(line for line in recorded.splitlines() if " /tmp " in line).split()[0]
    mountinfo.write_text(recorded + f"9999 {below} 254:0 /some/directory /tmp rw - ext4 /dev/vda rw\n")
    assert procfs.tmp_is_own_filesystem(RUNTIME, str(proc)) is False
    # As kernel 6.12 lists what rootless Podman 5.4 mounts: by ids, so that what is below may stand behind.
    mountinfo.write_text(
        "200 210 254:0 /volumes/a6f7/_data /tmp rw,nosuid - ext4 /dev/vda rw\n210 208 0:52 / /tmp rw - tmpfs tmpfs rw\n"
    )
    assert procfs.tmp_is_own_filesystem(RUNTIME, str(proc)) is False
    mountinfo.write_text("".join(line for line in recorded.splitlines(keepends=True) if " /tmp " not in line))
    assert procfs.tmp_is_own_filesystem(RUNTIME, str(proc)) is False


def test_tmp_inside_of_the_root_file_system_has_no_use_of_its_own(proc: Path) -> None:
    (proc / f"{RUNTIME}/root/tmp").mkdir(parents=True)
    assert procfs.tmp_bytes(RUNTIME, str(proc)) is None


def test_a_tmp_that_is_a_link_out_of_the_image_is_not_followed(proc: Path) -> None:
    (proc / f"{RUNTIME}/root").mkdir()
    (proc / f"{RUNTIME}/root/tmp").symlink_to("/proc")
    assert procfs.tmp_bytes(RUNTIME, str(proc)) is None


def test_tmp_of_another_file_system_is_measured(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (proc / f"{RUNTIME}/root/tmp").mkdir(parents=True)
    real_stat, real_fstatvfs = os.stat, os.fstatvfs

    def elsewhere(path: str) -> os.stat_result:
        return os.stat_result([0, 0, real_stat(path).st_dev + 1, *[0] * 7])

    monkeypatch.setattr(os, "stat", elsewhere)
    monkeypatch.setattr(
        os, "fstatvfs", lambda fd: os.statvfs_result([4096, 1024, 1000, 990, 980, *real_fstatvfs(fd)[5:]])
    )
    assert procfs.tmp_bytes(RUNTIME, str(proc)) == 10 * 1024


@pytest.mark.parametrize("call", ALL, ids=lambda call: call.__name__)
def test_a_process_that_is_gone_is_none(proc: Path, call: object) -> None:
    assert callable(call)
    assert call(999_999, str(proc)) is None


def test_the_mark_of_a_process_that_is_gone_cannot_be_reset(proc: Path) -> None:
    assert not procfs.reset_peak_rss(999_999, str(proc))


def test_a_process_that_ends_between_open_and_read_is_none(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(*_: object) -> bytes:
        raise ProcessLookupError

    monkeypatch.setattr(os, "read", ended)
    assert procfs.read(RUNTIME, str(proc)) is None


def test_a_mark_that_the_kernel_does_not_let_us_reset_says_so(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError

    (proc / f"{RUNTIME}/clear_refs").write_text("")
    assert procfs.reset_peak_rss(RUNTIME, str(proc))
    assert (proc / f"{RUNTIME}/clear_refs").read_text() == "5"
    monkeypatch.setattr(os, "write", refuse)
    assert not procfs.reset_peak_rss(RUNTIME, str(proc))


def test_a_long_file_is_read_to_its_end(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(procfs, "_CHUNK_BYTES", 10)
    process = procfs.read(RUNTIME, str(proc))
    assert process is not None
    assert process.rss_bytes == 16264 * 1024


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc of this kernel")
class TestThisKernel:
    def test_a_peak_that_is_over_is_seen_until_the_mark_is_reset(self, child: subprocess.Popen[str]) -> None:
        tell(child, 8192)
        high = procfs.resident_together_bytes([child.pid])
        tell(child, 0)
        over = procfs.read(child.pid)
        assert high is not None
        assert over is not None
        assert over.peak_rss_bytes is not None
        # On some kernels the mark is taken from counters that lag (see the module): 64 pages a CPU are a wide margin.
        margin = 64 * os.sysconf("SC_PAGE_SIZE") * (os.cpu_count() or 1)
        assert abs(over.peak_rss_bytes - high) <= margin
        assert over.rss_bytes < high - 8000 * os.sysconf("SC_PAGE_SIZE")
        assert procfs.reset_peak_rss(child.pid)
        reset = procfs.read(child.pid)
        assert reset is not None
        assert reset.peak_rss_bytes is not None
        assert reset.peak_rss_bytes <= reset.rss_bytes + margin

    def test_exact_anonymous_memory_grows_by_the_pages_that_were_touched(self, child: subprocess.Popen[str]) -> None:
        tell(child, 1)
        before = procfs.exact_anonymous_bytes(child.pid)
        tell(child, 1001)
        after = procfs.exact_anonymous_bytes(child.pid)
        assert before is not None
        assert after is not None
        grown_pages = (after - before) // os.sysconf("SC_PAGE_SIZE")
        assert 1000 <= grown_pages <= 1020  # the one page of before is given back; the interpreter may take a few

    def test_a_process_can_be_offered_to_the_out_of_memory_killer(self, child: subprocess.Popen[str]) -> None:
        assert procfs.set_oom_score_adj(child.pid, 500)
        assert Path(f"/proc/{child.pid}/oom_score_adj").read_text() == "500\n"
        assert not procfs.set_oom_score_adj(child.pid, 5000)

    def test_a_child_that_ended_is_noticed(self) -> None:
        before = procfs.reaped_children(os.getpid())
        subprocess.run(["true"], check=True)
        after = procfs.reaped_children(os.getpid())
        assert before is not None
        assert after is not None
        assert after.minor_faults > before.minor_faults

    def test_another_process_has_another_start(self, child: subprocess.Popen[str]) -> None:
        mine, other = procfs.start_ticks(os.getpid()), procfs.start_ticks(child.pid)
        process = procfs.read(child.pid)
        assert process is not None
        assert mine is not None
        assert other == process.start_ticks
        assert other >= mine

    def test_a_process_has_the_parent_that_started_it(self, child: subprocess.Popen[str]) -> None:
        assert procfs.parent(child.pid) == os.getpid()
        assert procfs.parent(os.getpid()) == os.getppid()

    def test_open_files_are_counted(self) -> None:
        before = procfs.read(os.getpid())
        with Path(os.devnull).open("rb"):
            after = procfs.read(os.getpid())
        assert before is not None
        assert after is not None
        assert before.open_files is not None
        assert after.open_files == before.open_files + 1


def test_files_in_tmp_are_counted_once_each_and_links_are_not_followed(proc: Path) -> None:
    tmp = proc / f"{RUNTIME}/root/tmp"
    (tmp / "below").mkdir(parents=True)
    (tmp / "below" / "file").write_bytes(b"x" * 100_000)
    (tmp / "again").hardlink_to(tmp / "below" / "file")
    (tmp / "link").symlink_to("/proc/self/exe")
    found = procfs.tmp_files_bytes(RUNTIME, str(proc))
    assert found is not None
    assert 100_000 <= found < 120_000
    assert procfs.tmp_files_bytes(999_999, str(proc)) is None


def test_a_child_that_still_shares_its_parent_s_memory_counts_once(tmp_path: Path) -> None:
    for pid, statm in ((1, "100 40 9 1 0 8 0"), (2, "100 40 9 1 0 8 0"), (3, "90 10 9 1 0 8 0"), (4, "0 0 0 0 0 0 0")):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "statm").write_text(statm + "\n")
    page = os.sysconf("SC_PAGE_SIZE")
    assert procfs.resident_together_bytes([1, 2, 3, 4, 5], str(tmp_path)) == 50 * page
    assert procfs.resident_together_bytes([4, 5], str(tmp_path)) is None


def test_files_are_counted_however_deep_they_lie(tmp_path: Path) -> None:
    tmp = tmp_path / "1/root/tmp"
    tmp.mkdir(parents=True)
    here = os.getcwd()  # noqa: PTH109  # deeper than a path may be long
    os.chdir(tmp)
    try:
        for depth in range(1500):
            Path("d").mkdir()
            os.chdir("d")
            if depth == 1200:
                Path("file").write_bytes(bytes(4096))
        assert procfs.tmp_files_bytes(1, str(tmp_path)) == 4096
        for _ in range(1500):
            Path("d").mkdir()
            os.chdir("d")
        # What lies beyond the longest path is not known, and not nothing.
        assert procfs.tmp_files_bytes(1, str(tmp_path)) is None
    finally:
        os.chdir(here)
        subprocess.run(["rm", "-rf", str(tmp)], check=True)
