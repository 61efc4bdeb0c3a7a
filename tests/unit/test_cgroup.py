"""A sandbox's cgroup on recorded file trees, with as much of the kernel as decides about right and wrong."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from harness.cgroup import Cgroup, CpuUsage, MemoryNow, cpus_of, directory, freezing, locate, moving, open_cgroup
from harness.cgroup.v1 import CgroupV1
from harness.cgroup.v2 import CgroupV2
from harness.errors import EngineError, InvalidInput, LimitError, SandboxGone

TREES = Path(__file__).parent / "cgroup_trees"
V1_RIE, V1_RUNTIME = 27181, 27211
V2_RIE, V2_RUNTIME = 4242, 4260
MIB = 1024 * 1024


def unpack(name: str, target: Path) -> Path:
    """Write a recorded tree to disk: sections ``=== path``, each followed by the file's text."""
    recorded = (TREES / name).read_text()
    for section in recorded.split("=== ")[1:]:
        path, _, text = section.partition("\n")
        file = target / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return target


class Kernel:
    """Lets writes to a recorded tree have the effects that the kernel gives them; keeps what was written, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
        self.root = root
        self.written: list[tuple[str, str]] = []
        self.refused: dict[str, int] = {}
        self.freezes = True
        self.killed: list[int] = []
        self._mkdir, self._rmdir = os.mkdir, os.rmdir
        monkeypatch.setattr(directory, "write_text", self.write)
        monkeypatch.setattr(os, "mkdir", self.mkdir)
        monkeypatch.setattr(os, "rmdir", self.rmdir)
        monkeypatch.setattr(os, "kill", lambda pid, _signal: self.killed.append(pid))

    def group(self, controller: str = "") -> Path:
        found = next((self.root / "sys/fs/cgroup" / controller).glob("docker/*" if controller else "system.slice/*"))
        assert found.is_dir()
        return found

    def names(self) -> list[str]:
        return [name for name, _ in self.written]

    def write(self, path: str, value: str) -> None:
        file = Path(path)
        if not file.parent.exists():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        number = self.refused.get(file.name)
        if file.name == "memory.memsw.limit_in_bytes" and int(value) < _number(file.parent, "memory.limit_in_bytes"):
            number = errno.EINVAL
        if file.name == "memory.limit_in_bytes" and int(value) > _number(file.parent, "memory.memsw.limit_in_bytes"):
            number = errno.EINVAL
        if file.name == "cgroup.subtree_control" and (file.parent / "cgroup.procs").read_text():
            number = errno.EBUSY
        if not file.exists() and file.name != "cgroup.procs":
            number = errno.ENOENT
        if number is not None:
            raise OSError(number, os.strerror(number), path)
        self.written.append((file.name, value))
        self._take_effect(file, value)

    def _take_effect(self, file: Path, value: str) -> None:
        if file.name == "cgroup.procs":
            self._move(file, value)
        elif file.name == "cgroup.freeze" and self.freezes:
            (file.parent / "cgroup.events").write_text(f"populated 1\nfrozen {value}\n")
        elif file.name == "cgroup.subtree_control":
            for child in filter(Path.is_dir, file.parent.iterdir()):
                (child / "cpu.max").write_text("max 100000\n")
                (child / "cpu.stat").write_text("usage_usec 5\nnr_periods 0\nnr_throttled 0\nthrottled_usec 0\n")
        elif file.name.startswith("memory.") and file.name.endswith("limit_in_bytes"):
            file.write_text(f"{int(value) // 4096 * 4096}\n")
        else:
            file.write_text(f"{value}\n")

    def _move(self, target: Path, pid: str) -> None:
        top = target.parent.parent if target.parent.name in {"rie", "runtime"} else target.parent
        groups = [group for group in (top, *top.iterdir()) if (group / "cgroup.procs").exists()]
        source = next((group for group in groups if pid in (group / "cgroup.procs").read_text().split()), None)
        if source is None:
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
        left = [line for line in (source / "cgroup.procs").read_text().split() if line != pid]
        (source / "cgroup.procs").write_text("".join(f"{line}\n" for line in left))
        with target.open("a") as file:
            file.write(f"{pid}\n")

    def mkdir(self, path: str, mode: int = 0o777) -> None:
        number = self.refused.get("mkdir")
        if number is not None:
            raise OSError(number, os.strerror(number), str(path))
        self._mkdir(path, mode)
        made = Path(path)
        (made / "cgroup.procs").write_text("")
        if "/cpuacct/" in str(path):
            (made / "cpuacct.usage").write_text("0\n")
        elif "/cpu/" in str(path):
            (made / "cpu.cfs_quota_us").write_text("-1\n")
            (made / "cpu.cfs_period_us").write_text("100000\n")
            (made / "cpu.stat").write_text("nr_periods 0\nnr_throttled 0\nthrottled_time 0\n")

    def rmdir(self, path: str, *, dir_fd: int | None = None) -> None:
        procs = Path(path) / "cgroup.procs"
        if dir_fd is not None or not procs.exists():
            self._rmdir(path, dir_fd=dir_fd)
        elif procs.read_text():
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(path))
        else:
            shutil.rmtree(path)


def _number(group: Path, name: str) -> int:
    return int((group / name).read_text())


@pytest.fixture
def v1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Cgroup, Kernel]:
    root = unpack("v1_docker.txt", tmp_path)
    cgroup = open_cgroup(V1_RIE, root=str(root))
    return cgroup, Kernel(monkeypatch, root)


@pytest.fixture
def v2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Cgroup, Kernel]:
    root = unpack("v2_docker.txt", tmp_path)
    cgroup = open_cgroup(V2_RIE, root=str(root))
    return cgroup, Kernel(monkeypatch, root)


@pytest.fixture(params=["v1", "v2"])
def either(request: pytest.FixtureRequest) -> tuple[Cgroup, Kernel]:
    found: tuple[Cgroup, Kernel] = request.getfixturevalue(request.param)
    return found


class TestLocate:
    def test_version_1_has_a_directory_in_each_controllers_hierarchy(self, tmp_path: Path) -> None:
        found = locate(V1_RIE, root=str(unpack("v1_docker.txt", tmp_path)))
        assert found.version == 1
        assert {name: Path(path).relative_to(tmp_path).parts[3] for name, path in found.directories.items()} == {
            name: name for name in ("cpu", "cpuacct", "cpuset", "memory", "freezer")
        }

    def test_version_2_has_one_directory(self, tmp_path: Path) -> None:
        found = locate(V2_RIE, root=str(unpack("v2_docker.txt", tmp_path)))
        assert found.version == 2
        assert Path(found.directories[""]).name.startswith("docker-")

    def test_cpu_and_cpuacct_may_be_one_mount(self, tmp_path: Path) -> None:
        root = unpack("v1_docker.txt", tmp_path)
        mountinfo = root / "proc/self/mountinfo"
        lines = [line for line in mountinfo.read_text().splitlines() if "cpuacct" not in line]
        both = [
            line.replace("/cgroup/cpu ", "/cgroup/cpu,cpuacct ").replace("rw,cpu", "rw,cpu,cpuacct")
            if line.endswith("rw,cpu")
            else line
            for line in lines
        ]
        mountinfo.write_text("\n".join(both) + "\n")
        groups = root / f"proc/{V1_RIE}/cgroup"
        groups.write_text(groups.read_text().replace("2:cpuacct:", "2:cpu,cpuacct:").replace("1:cpu:", "1:net_cls:"))
        (root / "sys/fs/cgroup/cpu").rename(root / "sys/fs/cgroup/cpu,cpuacct")
        found = locate(V1_RIE, root=str(root))
        assert found.directories["cpu"] == found.directories["cpuacct"]
        assert "/cpu,cpuacct/docker/" in found.directories["cpu"]

    def test_a_mount_may_show_a_part_of_the_hierarchy_only(self, tmp_path: Path) -> None:
        root = unpack("v2_docker.txt", tmp_path)
        mountinfo = root / "proc/self/mountinfo"
        mountinfo.write_text(mountinfo.read_text().replace("0:29 / /sys", "0:29 /system.slice /sys"))
        for inner in (root / "sys/fs/cgroup/system.slice").iterdir():
            inner.rename(root / "sys/fs/cgroup" / inner.name)
        assert Path(locate(V2_RIE, root=str(root)).directories[""]).parent == root / "sys/fs/cgroup"

    @pytest.mark.parametrize(("tree", "rie"), [("v1_docker.txt", V1_RIE), ("v2_docker.txt", V2_RIE)])
    def test_a_process_that_is_not_in_the_groups_list_is_refused(self, tmp_path: Path, tree: str, rie: int) -> None:
        root = unpack(tree, tmp_path)
        for procs in root.rglob("cgroup.procs"):
            procs.write_text("1\n")
        with pytest.raises(EngineError, match="cannot be reached") as caught:
            locate(rie, root=str(root))
        assert "vantage" in caught.value.remedy

    def test_a_group_outside_of_our_cgroup_namespace_is_refused(self, tmp_path: Path) -> None:
        root = unpack("v2_docker.txt", tmp_path)
        groups = root / f"proc/{V2_RIE}/cgroup"
        groups.write_text(
            groups.read_text().replace("0::/", "0::/../cgroup/")
        )  # it would lead to the right place by chance
        with pytest.raises(EngineError, match=r"/\.\./cgroup/system"):
            locate(V2_RIE, root=str(root))

    def test_a_process_that_is_gone_is_a_sandbox_that_is_gone(self, tmp_path: Path) -> None:
        with pytest.raises(SandboxGone, match="999"):
            locate(999, root=str(unpack("v2_docker.txt", tmp_path)))

    def test_a_missing_controller_is_named(self, tmp_path: Path) -> None:
        root = unpack("v1_docker.txt", tmp_path)
        groups = root / f"proc/{V1_RIE}/cgroup"
        groups.write_text(groups.read_text().replace("6:freezer:", "6:net_cls:"))
        with pytest.raises(EngineError, match="'freezer'"):
            locate(V1_RIE, root=str(root))

    def test_a_system_without_a_memory_controller_is_refused(self, tmp_path: Path) -> None:
        root = unpack("v1_docker.txt", tmp_path)
        (root / f"proc/{V1_RIE}/cgroup").write_text("1:cpu:/\n")
        with pytest.raises(EngineError, match="memory controller"):
            locate(V1_RIE, root=str(root))

    def test_the_sandbox_is_found_again_below_which_an_earlier_owner_left_leaves(
        self, v2: tuple[Cgroup, Kernel]
    ) -> None:
        cgroup, kernel = v2
        cgroup.open_runtime_group()
        cgroup.adopt()
        file = kernel.root / f"proc/{V2_RIE}/cgroup"
        file.write_text(file.read_text().strip() + "/rie\n")
        again = open_cgroup(V2_RIE, root=str(kernel.root))
        assert again.processes() == (V2_RIE, V2_RUNTIME)
        assert not again.runtime_group

    def test_spaces_in_a_mount_point_are_escaped_in_the_mount_table(self, tmp_path: Path) -> None:
        root = unpack("v2_docker.txt", tmp_path)
        mountinfo = root / "proc/self/mountinfo"
        mountinfo.write_text(mountinfo.read_text().replace("/sys/fs/cgroup", "/sys/fs/my\\040cgroup"))
        (root / "sys/fs/cgroup").rename(root / "sys/fs/my cgroup")
        assert "/my cgroup/" in locate(V2_RIE, root=str(root)).directories[""]


class TestCpu:
    def test_no_limit_at_first(self, either: tuple[Cgroup, Kernel]) -> None:
        assert either[0].cpu() == (None, 100_000)

    def test_the_quota_of_a_tier_is_read_back(self, either: tuple[Cgroup, Kernel]) -> None:
        either[0].set_cpu(1447, 20_000)
        assert either[0].cpu() == (1447, 20_000)
        either[0].set_cpu(None, 20_000)
        assert either[0].cpu() == (None, 20_000)

    def test_version_1_lifts_the_quota_while_the_period_changes(self, v1: tuple[Cgroup, Kernel]) -> None:
        cgroup, kernel = v1
        cgroup.set_cpu(50_000, 100_000)
        kernel.written.clear()
        cgroup.set_cpu(1447, 20_000)
        assert kernel.written == [
            ("cpu.cfs_quota_us", "-1"),
            ("cpu.cfs_period_us", "20000"),
            ("cpu.cfs_quota_us", "1447"),
        ]

    def test_writing_the_same_quota_again_is_one_write(self, either: tuple[Cgroup, Kernel]) -> None:
        cgroup, kernel = either
        cgroup.set_cpu(1447, 20_000)
        kernel.written.clear()
        cgroup.set_cpu(1447, 20_000)
        assert len(kernel.written) == 1

    def test_a_refused_quota_names_the_file(self, either: tuple[Cgroup, Kernel]) -> None:
        cgroup, kernel = either
        kernel.refused = {"cpu.cfs_quota_us": errno.EINVAL, "cpu.max": errno.EINVAL}
        with pytest.raises(LimitError, match=r"cpu\.(cfs_quota_us|max): Invalid argument"):
            cgroup.set_cpu(1, 20_000)

    def test_usage_of_version_1_is_in_nanoseconds_already(self, v1: tuple[Cgroup, Kernel]) -> None:
        cgroup, kernel = v1
        (kernel.group("cpu") / "cpu.stat").write_text("nr_periods 9\nnr_throttled 4\nthrottled_time 123456789\n")
        assert cgroup.usage() == CpuUsage(cpu_ns=56_789_841, throttled_ns=123_456_789, throttled_periods=4, periods=9)

    def test_usage_of_version_2_is_converted_from_microseconds(self, v2: tuple[Cgroup, Kernel]) -> None:
        assert v2[0].usage() == CpuUsage(cpu_ns=183_456_000, throttled_ns=67_890_000, throttled_periods=5, periods=12)


class TestCpuset:
    def test_what_is_set_is_read(self, either: tuple[Cgroup, Kernel]) -> None:
        either[0].set_cpuset("0-1")
        assert either[0].cpuset() == "0-1"

    def test_an_empty_cpuset_of_version_2_means_that_of_the_group_above(self, v2: tuple[Cgroup, Kernel]) -> None:
        assert v2[0].cpuset() == "0-3"

    def test_without_the_controller_nothing_is_pinned(self, v2: tuple[Cgroup, Kernel]) -> None:
        for file in v2[1].group().glob("cpuset.*"):
            file.unlink()
        assert v2[0].cpuset() is None

    @pytest.mark.parametrize(
        ("text", "cpus"), [("0", {0}), ("0-1,4", {0, 1, 4}), ("0,1", {0, 1}), ("", set()), (" 2-3\n", {2, 3})]
    )
    def test_a_list_of_cpus_is_a_set(self, text: str, cpus: set[int]) -> None:
        assert cpus_of(text) == cpus

    @pytest.mark.parametrize("text", ["a", "1-", "-1", "1-b"])
    def test_what_is_no_list_of_cpus_is_refused(self, text: str) -> None:
        with pytest.raises(InvalidInput, match="no list of CPUs"):
            cpus_of(text)


class TestMemory:
    def test_a_limit_leaves_no_swap(self, either: tuple[Cgroup, Kernel]) -> None:
        cgroup, _ = either
        assert cgroup.memory_limit() == 128 * MIB
        assert cgroup.swap_limited() is False  # Docker's default grants the same again as swap, or all of it
        cgroup.set_memory(128 * MIB)
        assert (cgroup.memory_limit(), cgroup.swap_limited()) == (128 * MIB, True)

    @pytest.mark.parametrize("size_mb", [64, 200, 256, 512, 10_240])
    def test_a_limit_can_be_lowered_and_raised_from_any_other(
        self, either: tuple[Cgroup, Kernel], size_mb: int
    ) -> None:
        cgroup, _ = either
        for next_mb in (size_mb, 128, size_mb, 3008):
            cgroup.set_memory(next_mb * MIB)
            assert (cgroup.memory_limit(), cgroup.swap_limited()) == (next_mb * MIB, True)

    def test_the_rie_is_not_taken_along_by_a_kill(self, v2: tuple[Cgroup, Kernel], tmp_path: Path) -> None:
        cgroup, _ = v2
        (group,) = (path.parent for path in tmp_path.rglob("memory.max"))
        (group / "memory.oom.group").write_text("1\n")
        cgroup.set_memory(128 * MIB)
        assert _number(group, "memory.oom.group") == 0

    def test_a_kernel_without_swap_accounting_is_tolerated_and_told(self, either: tuple[Cgroup, Kernel]) -> None:
        cgroup, kernel = either
        for name in ("memory.memsw.limit_in_bytes", "memory.swap.max"):
            for file in kernel.root.rglob(name):
                file.unlink()
        monkey_limit = next(kernel.root.rglob("memory.limit_in_bytes"), None)
        if monkey_limit is not None:
            # The recorded kernel compares with the swap limit, which is not there any more.
            kernel._take_effect(monkey_limit, str(256 * MIB))
        else:
            cgroup.set_memory(256 * MIB)
        assert cgroup.memory_limit() == 256 * MIB
        assert cgroup.swap_limited() is None

    def test_no_limit_is_none(self, either: tuple[Cgroup, Kernel]) -> None:
        cgroup, kernel = either
        for file in kernel.root.rglob("memory.limit_in_bytes"):
            file.write_text("9223372036854771712\n")
        for file in kernel.root.rglob("memory.max"):
            file.write_text("max\n")
        assert cgroup.memory_limit() is None

    def test_a_limit_below_what_is_in_use_says_so(self, v1: tuple[Cgroup, Kernel]) -> None:
        cgroup, kernel = v1
        kernel.refused["memory.limit_in_bytes"] = errno.EBUSY
        with pytest.raises(LimitError, match="more than that is in use") as caught:
            cgroup.set_memory(4 * MIB)
        assert "larger memory size" in caught.value.remedy

    def test_the_parts_of_the_charge_on_version_1(self, v1: tuple[Cgroup, Kernel]) -> None:
        assert v1[0].memory_now() == MemoryNow(
            current_bytes=13_463_552, anon_bytes=10_948_608, file_bytes=1_556_480, kernel_bytes=491_520
        )

    def test_the_parts_of_the_charge_on_version_2(self, v2: tuple[Cgroup, Kernel]) -> None:
        assert v2[0].memory_now() == MemoryNow(
            current_bytes=31_457_280, anon_bytes=20_971_520, file_bytes=8_388_608, kernel_bytes=1_884_160
        )

    def test_a_part_that_an_older_kernel_does_not_tell_is_none(self, either: tuple[Cgroup, Kernel]) -> None:
        cgroup, kernel = either
        for file in kernel.root.rglob("memory.kmem.usage_in_bytes"):
            file.unlink()
        for file in kernel.root.rglob("memory.stat"):
            file.write_text("\n".join(line for line in file.read_text().splitlines() if line[:7] != "kernel "))
        assert cgroup.memory_now().kernel_bytes is None


class TestPeak:
    def test_the_mark_of_version_1_is_reset_by_a_zero(self, v1: tuple[Cgroup, Kernel]) -> None:
        cgroup, kernel = v1
        assert cgroup.peak_memory_bytes() == 13_484_032
        assert cgroup.reset_peak()
        assert kernel.written == [("memory.max_usage_in_bytes", "0")]

    def test_a_mark_that_must_not_be_reset_says_so(self, v1: tuple[Cgroup, Kernel]) -> None:
        cgroup, kernel = v1
        kernel.refused["memory.max_usage_in_bytes"] = errno.EACCES
        assert not cgroup.reset_peak()
        assert cgroup.peak_memory_bytes() == 13_484_032

    def test_the_mark_of_version_2_is_reset_for_one_descriptor_that_is_kept(
        self, v2: tuple[Cgroup, Kernel], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cgroup, _ = v2
        written: list[int] = []
        opened: list[int] = []
        real_open = os.open
        monkeypatch.setattr(os, "open", lambda *args: opened.append(real_open(*args)) or opened[-1])  # type: ignore[func-returns-value]
        monkeypatch.setattr(os, "pwrite", lambda descriptor, _data, _at: written.append(descriptor) or 1)  # type: ignore[func-returns-value]
        assert cgroup.reset_peak()
        assert cgroup.reset_peak()
        assert len(opened) == 1
        assert written == opened * 2
        read: list[int] = []
        monkeypatch.setattr(os, "pread", lambda descriptor, _size, _at: read.append(descriptor) or b"5000\n")  # type: ignore[func-returns-value]
        assert cgroup.peak_memory_bytes() == 5000
        assert read == opened
        cgroup.close()
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(opened[0])

    def test_a_kernel_before_6_12_keeps_one_mark_for_life(
        self, v2: tuple[Cgroup, Kernel], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: object) -> int:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

        monkeypatch.setattr(os, "pwrite", refuse)
        assert not v2[0].reset_peak()
        assert v2[0].peak_memory_bytes() == 41_943_040

    def test_a_kernel_before_5_19_keeps_none(self, v2: tuple[Cgroup, Kernel]) -> None:
        cgroup, kernel = v2
        (kernel.group() / "memory.peak").unlink()
        assert not cgroup.reset_peak()
        assert cgroup.peak_memory_bytes() is None


class TestOutOfMemory:
    def test_kills_are_counted(self, v1: tuple[Cgroup, Kernel]) -> None:
        cgroup, kernel = v1
        assert cgroup.oom_kills() == 0
        (kernel.group("memory") / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 7\n")
        assert cgroup.oom_kills() == 7

    def test_a_kernel_before_4_13_does_not_count_them(self, v1: tuple[Cgroup, Kernel]) -> None:
        cgroup, kernel = v1
        (kernel.group("memory") / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\n")
        assert cgroup.oom_kills() is None

    def test_version_2_counts_them_in_the_local_events(self, v2: tuple[Cgroup, Kernel]) -> None:
        cgroup, kernel = v2
        assert cgroup.oom_kills() == 2
        (kernel.group() / "memory.events.local").unlink()
        assert cgroup.oom_kills() == 3
        (kernel.group() / "memory.events").unlink()
        assert cgroup.oom_kills() is None


class TestFreezer:
    def test_freeze_and_thaw(self, either: tuple[Cgroup, Kernel]) -> None:
        cgroup, _ = either
        assert not cgroup.frozen()
        cgroup.freeze()
        assert cgroup.frozen()
        cgroup.thaw()
        assert not cgroup.frozen()

    def test_what_does_not_freeze_in_time_is_thawed_again_and_told(
        self, either: tuple[Cgroup, Kernel], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cgroup, kernel = either
        kernel.freezes = False
        monkeypatch.setattr("harness.cgroup.v1._state", lambda _: b"FREEZING")
        with pytest.raises(EngineError, match=r"not frozen within 0\.01 s"):
            cgroup.freeze(timeout_s=0.01)
        if cgroup.version == 1:
            assert (kernel.group("freezer") / "freezer.state").read_text().startswith("THAWED")
        else:
            assert kernel.written[-1] == ("cgroup.freeze", "0")

    def test_a_throttled_sandbox_is_let_run_into_the_freezer(
        self, either: tuple[Cgroup, Kernel], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cgroup, kernel = either
        cgroup.set_cpu(1447, 20_000)
        kernel.written.clear()
        kernel.freezes = False
        monkeypatch.setattr("harness.cgroup.v1._state", lambda _: b"FREEZING")
        with pytest.raises(EngineError):
            cgroup.freeze(timeout_s=0.02)
        quota = [value for name, value in kernel.written if name.startswith("cpu.")]
        assert quota == (["1447"] if cgroup.version == 1 else ["1447 20000"])
        assert cgroup.cpu() == (1447, 20_000)

    def test_a_sandbox_below_a_frozen_group_does_not_thaw(
        self, either: tuple[Cgroup, Kernel], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cgroup, kernel = either
        cgroup.freeze()
        kernel.freezes = False
        monkeypatch.setattr("harness.cgroup.v1._state", lambda _: b"FROZEN")
        with pytest.raises(EngineError, match="a cgroup above it is frozen"):
            cgroup.thaw()

    def test_without_the_right_to_freeze_the_engine_is_named_as_the_way(
        self, either: tuple[Cgroup, Kernel], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cgroup, kernel = either

        def refuse(path: str, *_: object) -> int:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

        kernel.refused["cgroup.freeze"] = errno.EACCES
        monkeypatch.setattr(os, "open", refuse)
        with pytest.raises(EngineError, match="Permission denied") as caught:
            cgroup.freeze()
        assert "pause" in caught.value.remedy

    def test_waiting_asks_at_once_and_gives_up_after_the_timeout(self) -> None:
        assert freezing.wait_until(lambda: True, 0)
        asked: list[int] = []
        assert not freezing.wait_until(lambda: False, 0.01, again=asked.append)
        assert asked == list(range(len(asked)))
        assert asked


class TestRuntimeGroup:
    def test_the_rie_keeps_the_sandboxs_group_to_itself(self, either: tuple[Cgroup, Kernel]) -> None:
        cgroup, _ = either
        rie, runtime = cgroup.processes()
        assert cgroup.rie_pid == rie
        assert cgroup.open_runtime_group()
        assert cgroup.runtime_group
        cgroup.adopt([runtime])
        assert cgroup.processes() == (rie, runtime)
        assert cgroup.runtime_processes() == (runtime,)

    def test_version_1_moves_the_runtime_in_the_cpu_hierarchies_alone(self, v1: tuple[Cgroup, Kernel]) -> None:
        cgroup, kernel = v1
        cgroup.open_runtime_group()
        cgroup.adopt()
        for controller in ("cpu", "cpuacct"):
            assert directory.Directory(kernel.group(controller)).pids() == [V1_RIE]
            assert directory.Directory(kernel.group(controller) / "runtime").pids() == [V1_RUNTIME]
        assert not (kernel.group("memory") / "runtime").exists()
        assert not (kernel.group("freezer") / "runtime").exists()

    def test_version_2_moves_everybody_into_a_leaf_before_it_hands_out_cpu(self, v2: tuple[Cgroup, Kernel]) -> None:
        cgroup, kernel = v2
        cgroup.open_runtime_group()
        assert kernel.names() == ["cgroup.procs", "cgroup.procs", "cgroup.subtree_control"]
        cgroup.adopt()
        assert directory.Directory(kernel.group()).pids() == []
        assert directory.Directory(kernel.group() / "rie").pids() == [V2_RIE]
        assert directory.Directory(kernel.group() / "runtime").pids() == [V2_RUNTIME]

    def test_limits_and_counters_are_the_runtimes_from_then_on(self, either: tuple[Cgroup, Kernel]) -> None:
        cgroup, _ = either
        before = cgroup.usage()
        cgroup.open_runtime_group()
        cgroup.adopt()
        assert cgroup.usage().cpu_ns < before.cpu_ns
        cgroup.set_cpu(1447, 20_000)
        assert cgroup.cpu() == (1447, 20_000)

    def test_the_sandboxs_own_group_stays_without_the_quota(self, either: tuple[Cgroup, Kernel]) -> None:
        cgroup, kernel = either
        cgroup.open_runtime_group()
        cgroup.set_cpu(1447, 20_000)
        if cgroup.version == 1:
            assert (kernel.group("cpu") / "cpu.cfs_quota_us").read_text() == "-1\n"
        else:
            assert (kernel.group() / "cpu.max").read_text() == "max 100000\n"

    def test_adopting_takes_whatever_is_not_the_rie_and_no_stranger(self, either: tuple[Cgroup, Kernel]) -> None:
        cgroup, kernel = either
        rie, runtime = cgroup.processes()
        cgroup.open_runtime_group()
        kernel.written.clear()
        cgroup.adopt([rie, 1, 999_999])
        cgroup.adopt()
        assert {value for _, value in kernel.written} == {str(runtime)}

    def test_a_process_that_exits_while_it_is_adopted_is_no_error(
        self, either: tuple[Cgroup, Kernel], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cgroup, kernel = either
        cgroup.open_runtime_group()
        real = kernel._move

        def exits(target: Path, pid: str) -> None:
            real(target, pid)
            target.write_text("")
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))

        monkeypatch.setattr(kernel, "_move", exits)
        cgroup.adopt()

    def test_a_process_that_is_exiting_cannot_be_moved_and_is_not_waited_for_without_end(
        self, either: tuple[Cgroup, Kernel], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cgroup, kernel = either
        cgroup.open_runtime_group()
        monkeypatch.setattr(kernel, "_move", lambda *_: None)
        cgroup.adopt()

    def test_a_child_that_is_forked_while_its_parent_moves_is_adopted_too(
        self, either: tuple[Cgroup, Kernel], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cgroup, kernel = either
        runtime = cgroup.runtime_processes()[0]
        cgroup.open_runtime_group()
        real = kernel._move
        born = runtime + 1

        def forks(target: Path, pid: str) -> None:
            source = target.parent.parent / ("rie/cgroup.procs" if cgroup.version == 2 else "cgroup.procs")
            real(target, pid)
            if pid == str(runtime):
                with source.open("a") as file:
                    file.write(f"{born}\n")

        monkeypatch.setattr(kernel, "_move", forks)
        cgroup.adopt()
        if cgroup.version == 1:
            assert born in directory.Directory(kernel.group("cpu") / "runtime").pids()
        else:
            assert born in directory.Directory(kernel.group() / "runtime").pids()

    def test_a_move_that_the_kernel_refuses_is_told(self, either: tuple[Cgroup, Kernel]) -> None:
        cgroup, kernel = either
        cgroup.open_runtime_group()
        kernel.refused["cgroup.procs"] = errno.EACCES
        with pytest.raises(LimitError, match="cannot move the runtime"):
            cgroup.adopt()

    def test_without_the_right_to_make_groups_the_sandboxs_own_is_limited(self, either: tuple[Cgroup, Kernel]) -> None:
        cgroup, kernel = either
        kernel.refused["mkdir"] = errno.EACCES
        assert not cgroup.open_runtime_group()
        assert not cgroup.runtime_group
        cgroup.adopt()
        cgroup.set_cpu(1447, 20_000)
        limits = [file.read_text() for name in ("cpu.max", "cpu.cfs_quota_us") for file in kernel.root.rglob(name)]
        assert limits in (["1447\n"], ["1447 20000\n"])

    def test_version_2_without_the_cpu_controller_has_no_runtime_group(self, v2: tuple[Cgroup, Kernel]) -> None:
        cgroup, kernel = v2
        (kernel.group() / "cgroup.controllers").write_text("memory pids\n")
        assert not cgroup.open_runtime_group()
        assert not (kernel.group() / "rie").exists()

    def test_version_2_takes_everything_back_when_the_kernel_refuses(self, v2: tuple[Cgroup, Kernel]) -> None:
        cgroup, kernel = v2
        kernel.refused["cgroup.subtree_control"] = errno.EBUSY
        assert not cgroup.open_runtime_group()
        assert directory.Directory(kernel.group()).pids() == [V2_RIE, V2_RUNTIME]
        assert not (kernel.group() / "rie").exists()
        assert not (kernel.group() / "runtime").exists()

    def test_opening_twice_is_opening_once(self, either: tuple[Cgroup, Kernel]) -> None:
        cgroup, kernel = either
        assert cgroup.open_runtime_group()
        kernel.written.clear()
        assert cgroup.open_runtime_group()
        assert kernel.written == []

    def test_closing_removes_what_is_empty_and_leaves_what_is_not(self, either: tuple[Cgroup, Kernel]) -> None:
        cgroup, kernel = either
        cgroup.open_runtime_group()
        cgroup.adopt()
        cgroup.close()
        leaves = list(kernel.root.rglob("runtime"))
        assert leaves
        for leaf in [*leaves, *kernel.root.rglob("rie")]:
            (leaf / "cgroup.procs").write_text("")
        cgroup.close()
        assert not list(kernel.root.rglob("runtime"))
        assert not list(kernel.root.rglob("rie"))
        cgroup.close()


class TestKill:
    def test_version_2_kills_all_with_one_write(self, v2: tuple[Cgroup, Kernel]) -> None:
        cgroup, kernel = v2
        cgroup.kill_all()
        assert kernel.written == [("cgroup.kill", "1")]

    def test_only_processes_of_the_sandbox_are_killed(self, either: tuple[Cgroup, Kernel]) -> None:
        cgroup, kernel = either
        runtime = cgroup.runtime_processes()[0]
        cgroup.kill_all([runtime, 1, 999_999])
        assert kernel.killed == [runtime]
        assert not cgroup.frozen()

    def test_without_cgroup_kill_each_process_is_killed_and_the_sandbox_thawed(
        self, either: tuple[Cgroup, Kernel]
    ) -> None:
        cgroup, kernel = either
        for file in kernel.root.rglob("cgroup.kill"):
            file.unlink()
        cgroup.freeze()
        cgroup.kill_all()
        assert tuple(kernel.killed) == cgroup.processes()
        assert not cgroup.frozen()

    def test_a_process_that_is_gone_is_no_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def gone(_pid: int, _signal: int) -> None:
            raise ProcessLookupError

        monkeypatch.setattr(os, "kill", gone)
        moving.kill([999_999], None)

    def test_a_sandbox_that_is_gone_is_killed_already(self, either: tuple[Cgroup, Kernel]) -> None:
        cgroup, kernel = either
        shutil.rmtree(kernel.root / "sys")
        cgroup.kill_all()
        cgroup.kill_all([1])


def test_a_removed_group_is_a_sandbox_that_is_gone(either: tuple[Cgroup, Kernel]) -> None:
    cgroup, kernel = either
    shutil.rmtree(kernel.root / "sys")
    for call in (
        cgroup.cpu,
        cgroup.cpuset,
        cgroup.memory_limit,
        cgroup.swap_limited,
        cgroup.freeze,
        cgroup.thaw,
        cgroup.frozen,
        cgroup.usage,
        cgroup.reset_peak,
        cgroup.peak_memory_bytes,
        cgroup.memory_now,
        cgroup.oom_kills,
        cgroup.processes,
        cgroup.runtime_processes,
        cgroup.open_runtime_group,
        lambda: cgroup.set_cpu(1, 20_000),
        lambda: cgroup.set_cpuset("0"),
        lambda: cgroup.set_memory(MIB),
    ):
        with pytest.raises(SandboxGone, match="removed while it was in use"):
            call()
    cgroup.close()


def test_a_file_of_a_dead_group_says_that_there_is_no_such_device(v1: tuple[Cgroup, Kernel]) -> None:
    cgroup, kernel = v1
    kernel.refused["cpu.cfs_quota_us"] = errno.ENODEV
    with pytest.raises(SandboxGone):
        cgroup.set_cpu(1447, 100_000)


def test_a_file_that_cannot_be_read_is_named(v2: tuple[Cgroup, Kernel]) -> None:
    cgroup, kernel = v2
    (kernel.group() / "memory.current").unlink()
    with pytest.raises(EngineError, match=r"cannot read .*memory\.current"):
        cgroup.memory_now()


def test_a_process_outside_of_our_pid_namespace_is_no_process(v2: tuple[Cgroup, Kernel]) -> None:
    cgroup, kernel = v2
    (kernel.group() / "cgroup.procs").write_text("0\n4242\n0\n")
    assert cgroup.processes() == (4242,)


def test_both_versions_keep_the_contract() -> None:
    names = {name for name in vars(Cgroup) if not name.startswith("_")}
    for version in (CgroupV1, CgroupV2):
        assert names - set(dir(version)) <= {"rie_pid"}
