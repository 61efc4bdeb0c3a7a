"""Limits, freezer and counters of real containers: what the kernel does with what the harness writes.

PID 1 of the container (a sleeping process) stands for the RIE, a shell that is fed with commands for the runtime.
"""

from __future__ import annotations

import os
import re
import secrets
import select
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from conftest import PATIENCE, checked

from harness import procfs
from harness.cgroup import Cgroup, cpus_of, locate, open_cgroup
from harness.cgroup.directory import Directory
from harness.cgroup.freezing import wait_until
from harness.cgroup.v2 import CgroupV2
from harness.errors import EngineError, LimitError, SandboxGone

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.engine.client import EngineFacts

MIB = 1024 * 1024
WAIT_S = 20 * PATIENCE
BURN = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; echo done"
FOREVER = "while :; do :; done & echo $!"

pytestmark = pytest.mark.skipif(shutil.which("docker") is None, reason="needs the docker command line")


def docker(*arguments: str) -> str:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False, timeout=60 * PATIENCE)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def image(facts: EngineFacts) -> str:
    """Any local image of ours with a shell: the tests need nothing else, but that its containers run on this kernel."""
    checked("host", facts)
    found = docker("images", "--format", "{{.Repository}}:{{.Tag}}").splitlines()
    usable = [
        name for name in found if re.match(r"(localhost/)?(lambda-harness/(base|python|provided)|lh-test/base)", name)
    ]
    if not usable:
        pytest.skip("no image with a shell is in the engine: run `lambda-harness images build`")
    return usable[0]


class Shell:
    """A process inside of the container that does what it is told."""

    def __init__(self, container: str) -> None:
        self._process = subprocess.Popen(
            ["docker", "exec", "-i", container, "sh"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        self.ask("echo ready")

    def tell(self, command: str) -> None:
        self._stdin.write(f"{command}\n".encode())

    def answered(self, timeout_s: float = WAIT_S) -> bool:
        return bool(select.select([self._stdout], [], [], timeout_s)[0])

    def answer(self) -> str:
        assert self.answered(), "no answer from inside of the container"
        return os.read(self._stdout.fileno(), 4096).decode().strip()

    def ask(self, command: str) -> str:
        self.tell(command)
        return self.answer()

    def close(self) -> None:
        self._process.kill()
        self._process.wait(WAIT_S)
        self._stdin.close()
        self._stdout.close()


class Sandbox:
    def __init__(self, name: str) -> None:
        self.name = name
        self.pid = int(docker("inspect", "--format", "{{.State.Pid}}", name))
        self.cgroup: Cgroup = open_cgroup(self.pid)
        self.whole: Cgroup = open_cgroup(self.pid)
        """The same container's own group: it never opens a runtime group."""
        self.shell = Shell(name)

    def running(self) -> bool:
        return docker("inspect", "--format", "{{.State.Running}}", self.name) == "true"


@contextmanager
def started(image: str) -> Iterator[Sandbox]:
    name = f"lambda-harness-test-{secrets.token_hex(4)}"
    docker("run", "--detach", "--name", name, "--entrypoint", "sleep", "--user", "0", image, "infinity")
    sandbox = None
    try:
        sandbox = Sandbox(name)
        yield sandbox
    finally:
        if sandbox is not None:
            sandbox.cgroup.kill_all()
            sandbox.shell.close()
            sandbox.cgroup.close()
        subprocess.run(["docker", "rm", "--force", name], capture_output=True, check=False, timeout=60 * PATIENCE)


@pytest.fixture
def sandbox(image: str) -> Iterator[Sandbox]:
    with started(image) as found:
        yield found


@pytest.fixture
def limited(sandbox: Sandbox) -> Sandbox:
    """A sandbox whose runtime has a group of its own and a tenth of a CPU."""
    assert sandbox.cgroup.open_runtime_group()
    sandbox.cgroup.adopt()
    sandbox.cgroup.set_cpu(2000, 20_000)
    assert sandbox.cgroup.cpu() == (2000, 20_000)
    return sandbox


def test_the_version_is_the_engines(sandbox: Sandbox) -> None:
    assert str(sandbox.cgroup.version) == docker("info", "--format", "{{.CgroupVersion}}")


class TestQuota:
    def test_the_quota_of_the_runtime_throttles_the_runtime(self, limited: Sandbox) -> None:
        before = limited.cgroup.usage()
        limited.shell.ask(BURN)
        after = limited.cgroup.usage()
        assert after.throttled_periods > before.throttled_periods
        assert after.throttled_ns > before.throttled_ns
        assert after.periods > before.periods
        assert after.cpu_ns > before.cpu_ns

    def test_the_rie_is_neither_throttled_nor_counted(self, limited: Sandbox) -> None:
        outside = Shell(limited.name)  # born in the sandbox's own group, as the RIE was, and not adopted
        try:
            before, whole = limited.cgroup.usage(), limited.whole.usage()
            outside.ask(BURN)
            after = limited.cgroup.usage()
            assert limited.whole.usage().cpu_ns - whole.cpu_ns > 1_000_000
            assert after.cpu_ns == before.cpu_ns
            assert after.throttled_periods == before.throttled_periods
            assert limited.whole.cpu()[0] is None
            assert limited.whole.usage().throttled_periods == whole.throttled_periods
        finally:
            outside.close()

    def test_what_the_runtime_forks_is_born_in_its_group(self, limited: Sandbox) -> None:
        limited.shell.ask("sleep 1000 & sh -c 'sleep 1000 & echo forked; wait' &")
        assert wait_until(lambda: len(limited.cgroup.runtime_processes()) >= 4, WAIT_S)
        for pid in limited.cgroup.runtime_processes():
            assert re.search(r"(:cpu|^0:).*/runtime$", Path(f"/proc/{pid}/cgroup").read_text(), re.MULTILINE)

    def test_all_threads_and_processes_are_adopted_but_not_the_rie(self, sandbox: Sandbox) -> None:
        sandbox.shell.ask("sleep 1000 & sleep 1000 & echo forked")
        sandbox.cgroup.open_runtime_group()
        sandbox.cgroup.adopt(sandbox.cgroup.processes())
        assert not Path(f"/proc/{sandbox.pid}/cgroup").read_text().rstrip().endswith("/runtime")
        for pid in sandbox.cgroup.runtime_processes():
            assert "/runtime\n" in Path(f"/proc/{pid}/cgroup").read_text()

    def test_lifting_the_quota_ends_the_throttling(self, limited: Sandbox) -> None:
        limited.shell.ask(BURN)
        limited.cgroup.set_cpu(None, 20_000)
        before = limited.cgroup.usage()
        limited.shell.ask(BURN)
        assert limited.cgroup.usage().throttled_periods == before.throttled_periods
        assert limited.cgroup.cpu() == (None, 20_000)

    def test_the_period_can_change_under_a_quota(self, limited: Sandbox) -> None:
        for quota_us, period_us in ((115_771, 20_000), (50_000, 100_000), (1447, 20_000)):
            limited.cgroup.set_cpu(quota_us, period_us)
            assert limited.cgroup.cpu() == (quota_us, period_us)

    def test_a_quota_below_the_kernels_smallest_is_refused(self, limited: Sandbox) -> None:
        with pytest.raises(LimitError, match="Invalid argument"):
            limited.cgroup.set_cpu(1, 20_000)

    def test_a_cpuset_pins_every_process(self, limited: Sandbox) -> None:
        limited.cgroup.set_cpuset("0")
        assert cpus_of(limited.cgroup.cpuset() or "") == {0}
        for pid in limited.cgroup.processes():
            assert os.sched_getaffinity(pid) == {0}

    def test_closing_removes_the_group_once_the_runtime_is_gone(self, limited: Sandbox) -> None:
        limited.cgroup.kill_all(limited.cgroup.runtime_processes())
        assert wait_until(lambda: limited.cgroup.processes() == (limited.pid,), WAIT_S)
        if limited.cgroup.version == 1:
            group = Path(locate(limited.pid).directories["cpu"], "runtime")
            assert group.exists()
            limited.cgroup.close()
            assert not group.exists()


class TestFreezer:
    def test_a_frozen_sandbox_does_nothing_until_it_is_thawed(self, sandbox: Sandbox) -> None:
        sandbox.shell.ask(FOREVER)
        sandbox.cgroup.freeze()
        assert sandbox.cgroup.frozen()
        before = sandbox.cgroup.usage()
        sandbox.shell.tell("echo awake")
        assert not sandbox.shell.answered(timeout_s=0.1)
        assert sandbox.cgroup.usage() == before
        sandbox.cgroup.thaw()
        assert not sandbox.cgroup.frozen()
        assert sandbox.shell.answer() == "awake"

    def test_a_throttled_runtime_freezes_and_keeps_its_quota(self, limited: Sandbox) -> None:
        limited.shell.ask(FOREVER)
        for _ in range(10):
            throttled = limited.cgroup.usage().throttled_periods
            assert wait_until(lambda seen=throttled: limited.cgroup.usage().throttled_periods > seen, WAIT_S)  # type: ignore[misc]
            limited.cgroup.freeze()
            assert limited.cgroup.frozen()
            limited.cgroup.thaw()
        assert limited.cgroup.cpu() == (2000, 20_000)

    def test_a_runtime_that_forks_without_end_freezes(self, sandbox: Sandbox) -> None:
        sandbox.shell.ask("(while :; do (:); done) & echo started")
        for _ in range(10):
            sandbox.cgroup.freeze()
            assert sandbox.cgroup.frozen()
            sandbox.cgroup.thaw()

    def test_a_frozen_runtime_can_be_killed_and_the_rie_lives(self, limited: Sandbox) -> None:
        limited.shell.ask(FOREVER)
        limited.cgroup.freeze()
        limited.cgroup.kill_all(limited.cgroup.runtime_processes())
        assert wait_until(lambda: limited.cgroup.processes() == (limited.pid,), WAIT_S)
        assert limited.running()

    def test_a_frozen_sandbox_can_be_killed_as_a_whole(self, limited: Sandbox) -> None:
        limited.cgroup.freeze()
        limited.cgroup.kill_all()
        assert wait_until(lambda: not limited.running(), WAIT_S)


class TestMemory:
    @pytest.mark.parametrize("sizes_mb", [(128, 512, 64, 3008, 128)])
    def test_a_limit_is_raised_and_lowered_without_swap(self, sandbox: Sandbox, sizes_mb: tuple[int, ...]) -> None:
        assert sandbox.cgroup.memory_limit() is None
        for size_mb in sizes_mb:
            sandbox.cgroup.set_memory(size_mb * MIB)
            assert sandbox.cgroup.memory_limit() == size_mb * MIB
            assert sandbox.cgroup.swap_limited() in (True, None)

    def test_a_peak_that_is_over_is_still_seen_until_the_mark_is_reset(self, sandbox: Sandbox) -> None:
        if not sandbox.cgroup.reset_peak():
            pytest.skip("this kernel does not reset the mark")
        sandbox.shell.ask("head -c 40m /dev/zero | tail -c 40m | wc -c")
        assert wait_until(lambda: len(sandbox.cgroup.processes()) == 2, WAIT_S)
        peak = sandbox.cgroup.peak_memory_bytes()
        assert peak is not None
        assert 40 * MIB < peak < 60 * MIB
        assert sandbox.cgroup.reset_peak()
        reset = sandbox.cgroup.peak_memory_bytes()
        assert reset is not None
        assert reset < 20 * MIB

    def test_the_charge_is_made_of_its_parts(self, sandbox: Sandbox) -> None:
        now = sandbox.cgroup.memory_now()
        assert now.anon_bytes is not None
        assert now.file_bytes is not None
        assert now.kernel_bytes is not None
        cpus = os.cpu_count() or 1
        parts = now.anon_bytes + now.file_bytes + now.kernel_bytes
        assert abs(now.current_bytes - parts) < 4 * cpus * 64 * 4096  # each figure is batched on each CPU

    def test_an_out_of_memory_kill_is_counted_and_takes_first_who_is_offered(self, sandbox: Sandbox) -> None:
        sandbox.cgroup.set_memory(32 * MIB)
        assert sandbox.cgroup.oom_kills() == 0
        offered = "echo 1000 > /proc/self/oom_score_adj"  # what `procfs.set_oom_score_adj` does, without a race
        answer = sandbox.shell.ask(f"({offered}; head -c 200m /dev/zero | tail -c 150m >/dev/null); echo status $?")
        assert "status 137" in answer  # 128 + SIGKILL
        kills = sandbox.cgroup.oom_kills()
        assert kills is not None
        assert kills >= 1
        assert sandbox.running()

    def test_a_limit_below_what_is_in_use_is_refused_on_version_1(self, sandbox: Sandbox) -> None:
        if sandbox.cgroup.version != 1:
            pytest.skip("version 2 kills instead")
        sandbox.shell.ask("kept=$(head -c 20m /dev/zero | tr '\\0' a); echo kept")
        with pytest.raises(LimitError, match="more than that is in use"):
            sandbox.cgroup.set_memory(8 * MIB)


class TestProcesses:
    def test_the_runtimes_processes_are_all_but_the_rie(self, sandbox: Sandbox) -> None:
        found = [procfs.read(pid) for pid in sandbox.cgroup.runtime_processes()]
        assert [process.name for process in found if process is not None] == ["sh"]
        rie = procfs.read(sandbox.pid)
        assert rie is not None
        assert rie.name == "sleep"

    def test_a_frozen_process_can_still_be_measured(self, sandbox: Sandbox) -> None:
        (pid,) = sandbox.cgroup.runtime_processes()
        sandbox.cgroup.freeze()
        process = procfs.read(pid)
        assert process is not None
        assert process.rss_bytes > 0
        assert procfs.reset_peak_rss(pid)
        assert procfs.exact_anonymous_bytes(pid) is not None
        sandbox.cgroup.thaw()

    def test_tmp_is_measured_when_it_is_a_file_system_of_its_own(self, image: str, sandbox: Sandbox) -> None:
        assert procfs.tmp_is_own_filesystem(sandbox.pid) is False
        assert procfs.tmp_bytes(sandbox.pid) is None
        name = f"lambda-harness-test-{secrets.token_hex(4)}"
        docker("run", "--detach", "--name", name, "--entrypoint", "sleep", "--tmpfs", "/tmp:size=8m", image, "infinity")
        try:
            pid = int(docker("inspect", "--format", "{{.State.Pid}}", name))
            assert procfs.tmp_is_own_filesystem(pid) is True
            assert procfs.tmp_bytes(pid) == 0
            docker("exec", name, "sh", "-c", "head -c 1m /dev/zero > /tmp/file")
            assert procfs.tmp_bytes(pid) == MIB
        finally:
            docker("rm", "--force", name)


class TestRemoval:
    def test_a_container_that_someone_removes_is_a_sandbox_that_is_gone(self, limited: Sandbox) -> None:
        docker("rm", "--force", limited.name)
        for call in (limited.cgroup.usage, limited.cgroup.freeze, limited.cgroup.processes, limited.cgroup.adopt):
            with pytest.raises(SandboxGone):
                call()
        with pytest.raises(SandboxGone):
            open_cgroup(limited.pid)

    def test_the_engine_removes_a_container_whose_runtime_has_a_group(self, limited: Sandbox) -> None:
        directories = locate(limited.pid).directories.values()
        assert all(Path(path).exists() for path in directories)
        docker("rm", "--force", limited.name)
        assert not any(Path(path).exists() for path in directories)


@pytest.fixture
def unified() -> Iterator[tuple[CgroupV2, list[subprocess.Popen[bytes]]]]:
    """A group of version 2 with three processes. Where version 1 has the controllers, the core files are still real."""
    mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines() if " - cgroup2 " in line]
    if not mounts or not os.access(mounts[-1][4], os.W_OK) or os.geteuid() != 0:
        pytest.skip("no writable cgroup2 mount")
    group = Path(mounts[-1][4], f"lambda-harness-test-{secrets.token_hex(4)}")
    group.mkdir()
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(3)]
    try:
        for process in processes:
            Directory(group).move_here(process.pid)
        yield CgroupV2(group, rie_pid=processes[0].pid), processes
    finally:
        for process in processes:
            process.kill()
        (group / "cgroup.freeze").write_text("0")
        for process in processes:
            process.wait(WAIT_S)
        assert wait_until(Directory(group).remove, WAIT_S)


class TestVersion2Core:
    def test_freeze_and_thaw(self, unified: tuple[CgroupV2, list[subprocess.Popen[bytes]]]) -> None:
        cgroup, processes = unified
        assert cgroup.processes() == tuple(sorted(process.pid for process in processes))
        for _ in range(10):
            cgroup.freeze()
            assert cgroup.frozen()
            cgroup.thaw()
            assert not cgroup.frozen()

    def test_a_frozen_group_uses_no_cpu(self, unified: tuple[CgroupV2, list[subprocess.Popen[bytes]]]) -> None:
        cgroup, _ = unified
        assert wait_until(lambda: cgroup.usage().cpu_ns > 0, WAIT_S)
        cgroup.freeze()
        before = cgroup.usage()
        assert not select.select([], [], [], 0.05)[0]
        assert cgroup.usage() == before

    def test_frozen_processes_are_killed(self, unified: tuple[CgroupV2, list[subprocess.Popen[bytes]]]) -> None:
        cgroup, processes = unified
        cgroup.freeze()
        cgroup.kill_all([processes[1].pid])
        assert processes[1].wait(WAIT_S) == -9
        assert processes[0].poll() is None
        cgroup.freeze()
        cgroup.kill_all()
        assert [process.wait(WAIT_S) for process in processes] == [-9, -9, -9]

    def test_a_group_above_that_is_frozen_is_told(
        self, unified: tuple[CgroupV2, list[subprocess.Popen[bytes]]]
    ) -> None:
        cgroup, processes = unified
        inner = Path(cgroup._sandbox.path, "inner")
        inner.mkdir()
        below = CgroupV2(inner, rie_pid=processes[0].pid)
        try:
            for process in processes:
                Directory(inner).move_here(process.pid)
            cgroup.freeze()
            with pytest.raises(EngineError, match="a cgroup above it is frozen"):
                below.thaw()
        finally:
            cgroup.kill_all()
            for process in processes:
                process.wait(WAIT_S)
            assert wait_until(Directory(inner).remove, WAIT_S)
