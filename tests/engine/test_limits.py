"""Limits, read back from the kernel's own files and felt from inside."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from conftest import invoke, scaled, until

from harness.cgroup import cpus_of, locate
from harness.errors import EngineError, UsageError
from harness.invocation import Invocation, Outcome, PhaseInit
from harness.sandbox import Sandbox
from harness.stand import choose_vantage
from harness.tiers import BOOST_VCPUS, CPU_PERIOD_US
from harness.vantage import agent, reading
from harness.vantage import host as host_vantage
from harness.vantage.api import ApiVantage
from harness.vantage.reach import CgroupReach

if TYPE_CHECKING:
    from conftest import Lab

    from harness.engine.client import Engine, EngineFacts

MIB = 1024 * 1024

PROBE = """
    import errno, os, resource, signal, time
    def handler(event, context):
        op = event.get("op")
        if op == "limits":
            return {"nofile": resource.getrlimit(resource.RLIMIT_NOFILE), "cpus": sorted(os.sched_getaffinity(0)),
                    "swap": [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmSwap")]}
        if op == "open":
            kept = []
            try:
                while True:
                    kept.append(open("/dev/null"))
            except OSError as error:
                return [len(kept), error.errno == errno.EMFILE]
        if op == "fork":
            born, refused = [], False
            while len(born) < 2000 and not refused:
                try:
                    pid = os.fork()
                except OSError as error:
                    refused = error.errno == errno.EAGAIN
                    continue
                if pid == 0:
                    time.sleep(600)
                    os._exit(0)
                born.append(pid)
            for pid in born[-24:]:  # the runtime needs a thread to answer
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            return [len(born), refused]
        if op == "fill":
            file = os.open("/tmp/big", os.O_CREAT | os.O_WRONLY)
            size = 0
            for step in (1 << 20, 4096):
                try:
                    while True:
                        os.posix_fallocate(file, size, step)
                        size += step
                except OSError as error:
                    full = error.errno == errno.ENOSPC
            return [size, full]
        if op == "write":
            with open("/tmp/written", "wb") as file:
                for _ in range(event["mb"]):
                    file.write(b"x" * (1 << 20))
            return os.path.getsize("/tmp/written")
        if op == "burn":
            start = time.process_time()
            while time.process_time() - start < event["cpu_s"]:
                pass
            return os.getpid()
"""


def reach(sandbox: Sandbox) -> CgroupReach:
    found = sandbox.cell.reach
    assert isinstance(found, CgroupReach)
    return found


def kernel(sandbox: Sandbox) -> dict[str, str]:
    """The kernel's own files of the sandbox's cgroup, read without the code under test."""
    pid = reach(sandbox).cgroup.rie_pid
    where = locate(pid)
    if where.version == 2:
        top = Path(where.directories[""])
        runtime = next(
            (each.parent for each in top.glob("*/cgroup.procs") if str(pid) not in each.read_text().split()), top
        )
        quota, period = (runtime / "cpu.max").read_text().split()
        return {
            "memory": (top / "memory.max").read_text().strip(),
            "swap": (top / "memory.swap.max").read_text().strip(),
            "pids": (top / "pids.max").read_text().strip(),
            "cpus": (top / "cpuset.cpus.effective").read_text().strip(),
            "quota": quota,
            "period": period,
        }
    cpu, memory = Path(where.directories["cpu"]), Path(where.directories["memory"])
    runtime = next((each.parent for each in cpu.glob("*/cgroup.procs")), cpu)
    limit = (memory / "memory.limit_in_bytes").read_text().strip()
    both = (memory / "memory.memsw.limit_in_bytes").read_text().strip()
    pids = next(
        line.split(":", 2)[2] for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines() if ":pids:" in line
    )
    return {
        "memory": limit,
        "swap": str(int(both) - int(limit)),
        "pids": Path(f"/sys/fs/cgroup/pids{pids}/pids.max").read_text().strip(),
        "cpus": (Path(where.directories["cpuset"]) / "cpuset.cpus").read_text().strip(),
        "quota": (runtime / "cpu.cfs_quota_us").read_text().strip(),
        "period": (runtime / "cpu.cfs_period_us").read_text().strip(),
    }


@pytest.fixture(scope="module")
def small(lab: Lab, facts: EngineFacts) -> Iterator[Sandbox]:
    from conftest import checked

    with lab.sandbox(PROBE, vantage=checked("host", facts), memory_mb=128, timeout_s=scaled(60)) as found:
        invoke(found)
        yield found


def test_the_kernel_holds_what_was_asked_for(small: Sandbox) -> None:
    found, record = kernel(small), invoke(small)
    assert (found["quota"], found["period"]) == ("1447", "20000")
    assert (record.cpu_quota_us, record.cpu_period_us) == (1447, 20_000)
    assert record.memory_limit_bytes is not None
    assert int(found["memory"]) >= record.memory_limit_bytes
    assert 128 * MIB < int(found["memory"]) < (128 + 24) * MIB, "the memory size and the RIE's share"
    assert found["swap"] == "0"
    assert found["pids"] == "1024"
    assert record.cpuset is not None
    assert cpus_of(found["cpus"]) == cpus_of(record.cpuset)


def test_the_function_sees_its_limits(small: Sandbox, facts: EngineFacts) -> None:
    seen = invoke(small, op="limits").response
    assert seen["nofile"] == [1024, 1024]
    assert len(seen["cpus"]) == min(2, facts.cpus)
    opened, refused = invoke(small, op="open").response
    assert 1000 < opened < 1024
    assert refused


def test_the_quota_is_the_runtime_s_alone(small: Sandbox) -> None:
    group = reach(small).cgroup
    if not group.runtime_group:
        assert any("RIE" in note for note in invoke(small).notes)
        return
    before = group.usage()
    record = invoke(small, op="burn", cpu_s=0.1)
    assert record.throttled_periods is not None
    assert record.throttled_periods >= 10
    assert record.throttled_ms is not None
    assert record.throttled_ms > 100
    assert group.usage().cpu_ns > before.cpu_ns
    assert record.cpu_ms is not None
    assert record.cpu_ms >= 100
    of_rie = Path(f"/proc/{group.rie_pid}/cgroup").read_text()
    (runtime,) = group.runtime_processes()
    assert of_rie != Path(f"/proc/{runtime}/cgroup").read_text()


def test_a_full_tmp_is_enospc_at_its_exact_size_and_is_not_charged_as_memory(small: Sandbox) -> None:
    size, full = invoke(small, op="fill").response
    assert full
    assert abs(size - 512 * MIB) <= MIB


def test_what_lies_in_tmp_is_not_the_function_s_memory(lab: Lab, vantage: str) -> None:
    with lab.sandbox(PROBE, vantage=vantage, memory_mb=128, timeout_s=scaled(60)) as sandbox:
        record = invoke(sandbox, op="write", mb=200)
    assert (record.outcome, record.response) == (Outcome.SUCCESS, 200 * MIB), (
        "200 MB of files fit into 128 MB of memory"
    )
    if record.peak_rss_bytes is None:
        assert vantage == "api", "the others can always tell"
    else:
        assert record.peak_rss_bytes < 60 * MIB
    assert record.tmp_bytes is not None
    assert record.tmp_bytes >= 200 * MIB


def test_a_function_that_forks_2000_processes_is_stopped_at_1024_and_cleaned_up(lab: Lab, vantage: str) -> None:
    with lab.sandbox(PROBE, vantage=vantage, memory_mb=1769, timeout_s=scaled(60)) as sandbox:
        record = invoke(sandbox, op="fork")
        assert record.outcome is Outcome.SUCCESS, record.error_message
        born, refused = record.response
        assert refused
        assert 900 < born < 1024
        assert record.processes is None or record.processes > 900, "counted, or not measured: never wrong"
        name = f"lambda-harness-{sandbox.id}"
        assert name in lab.containers()
    assert name not in lab.containers()


WAITING = """
    import os, time
    while not os.path.exists("/tmp/go"):
        time.sleep(0.005)
    os.unlink("/tmp/go")
    def handler(event, context):
        if event.get("op") == "exit":
            os._exit(1)
"""


class Init:
    """Invokes in a thread, and lets the waiting init go on when told to."""

    def __init__(self, sandbox: Sandbox, **event: object) -> None:
        import threading

        self.sandbox, self.records = sandbox, list[Invocation]()
        self.go = Path(f"/proc/{reach(sandbox).cgroup.rie_pid}/root/tmp/go")
        self.thread = threading.Thread(target=lambda: self.records.append(invoke(sandbox, **event)))
        self.thread.start()
        until(reach(sandbox).cgroup.runtime_processes, "the runtime")

    def end(self) -> Invocation:
        made = self.go.with_name("made")
        made.touch()
        os.chown(made, 993, 990)  # /tmp is sticky, and the function takes the file away
        made.rename(self.go)
        self.thread.join(30)
        return self.records[0]


def test_init_is_boosted_and_a_suppressed_init_is_not(lab: Lab, host: str) -> None:
    with lab.sandbox(WAITING, vantage=host, memory_mb=256, timeout_s=scaled(20)) as sandbox:
        group = reach(sandbox).cgroup
        first = Init(sandbox, op="exit")
        until(lambda: group.cpu()[0] == BOOST_VCPUS * CPU_PERIOD_US, "two vCPUs during init")
        record = first.end()
        assert record.outcome is Outcome.RUNTIME_EXIT
        assert record.phase_init is PhaseInit.INIT
        assert record.boost_lag_ms is not None
        assert group.cpu() == (2894, 20_000)
        second = Init(sandbox)
        until(lambda: group.cpu()[0] == 2894, "the quota in a suppressed init")
        record = second.end()
        assert record.phase_init is PhaseInit.SUPPRESSED
        assert record.boost_lag_ms is None
        assert record.outcome is Outcome.SUCCESS


def test_the_engine_holds_the_limits_on_vantage_api(lab: Lab) -> None:
    with lab.sandbox(PROBE, vantage="api", memory_mb=256) as sandbox:
        record = invoke(sandbox)
        held = lab.engine.docker.api.inspect_container(f"lambda-harness-{sandbox.id}")["HostConfig"]
    assert (held["CpuQuota"], held["CpuPeriod"]) == (2894, 20_000)
    assert held["Memory"] == held["MemorySwap"] == record.memory_limit_bytes
    assert 256 * MIB <= held["Memory"] < (256 + 24) * MIB
    assert held["PidsLimit"] == 1024
    assert held["ReadonlyRootfs"]
    assert held["CapDrop"] == ["ALL"]


def test_a_memory_size_with_more_vcpus_than_this_host_has_says_so(lab: Lab, host: str) -> None:
    with lab.sandbox(PROBE, vantage=host, memory_mb=10_240) as sandbox:
        record = invoke(sandbox)
    assert record.cpu_capped == (len(os.sched_getaffinity(0)) < 6)
    assert record.cpu_quota_us == 115_771


def test_a_vantage_that_cannot_be_is_refused_with_the_reason(engine: Engine, facts: EngineFacts) -> None:
    elsewhere = dataclasses.replace(facts, kernel="another")
    with pytest.raises(EngineError, match="another kernel") as found:
        choose_vantage(engine, elsewhere, "host")
    assert "--vantage agent" in found.value.remedy
    with pytest.raises(UsageError, match="no vantage 'moon'"):
        choose_vantage(engine, facts, "moon")


def test_where_the_engine_s_kernel_is_another_an_agent_is_chosen(engine: Engine, facts: EngineFacts) -> None:
    with contextlib.closing(choose_vantage(engine, dataclasses.replace(facts, kernel="another"))) as found:
        assert found.name == "agent"


def test_where_no_agent_can_be_started_the_engine_s_api_is_left(
    engine: Engine, facts: EngineFacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent, "_image", lambda _: None)
    found = choose_vantage(engine, dataclasses.replace(facts, kernel="another"))
    assert isinstance(found, ApiVantage)
    assert "no image with Python 3.11" in found.why_not_agent
    with pytest.raises(EngineError, match="no image with Python") as refused:
        choose_vantage(engine, facts, "agent")
    assert "images build" in refused.value.remedy


def test_an_engine_s_list_without_the_rie_is_no_list(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.engine.containers import Container

    monkeypatch.setattr(reading, "open_reading", lambda *_, **__: None)  # as for an engine elsewhere
    monkeypatch.setattr(Container, "processes", lambda self: {})
    with lab.sandbox(PROBE, vantage="api") as sandbox:
        record = invoke(sandbox)
    assert record.processes is None
    assert record.threads is None
    assert record.resident_after_bytes is None


FILLS_TMP = """
    def handler(event, context):
        with open("/tmp/filled", "wb") as file:
            for _ in range(event["mb"]):
                file.write(bytes(1 << 20))
"""


def test_where_nothing_limits_tmp_it_is_counted_and_flagged(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_disk(*_: object) -> None:
        raise OSError("no loop device")

    monkeypatch.setattr(host_vantage, "_make_disk", no_disk)
    for vantage in ("auto", "api"):
        with lab.sandbox(FILLS_TMP, vantage=vantage, timeout_s=scaled(60), memory_mb=1769) as sandbox:
            small, large = invoke(sandbox, mb=20), invoke(sandbox, mb=530)
        assert small.tmp_bytes is not None, vantage
        assert 20 * MIB <= small.tmp_bytes < 21 * MIB
        assert not any("ENOSPC" in note for note in small.notes)
        assert large.tmp_bytes is not None
        assert large.tmp_bytes > 512 * MIB
        assert any("ENOSPC" in note for note in large.notes)


def test_a_limit_that_another_program_changed_is_put_back_and_told(lab: Lab, host: str) -> None:
    with lab.sandbox(PROBE, vantage=host, memory_mb=256) as sandbox:
        first = invoke(sandbox)
        assert not any("instead of" in note for note in first.notes)
        larger = 512 * MIB
        lab.engine.docker.api.update_container(f"lambda-harness-{sandbox.id}", mem_limit=larger, memswap_limit=larger)
        assert reach(sandbox).cgroup.memory_limit() == larger
        second = invoke(sandbox)
        # The RIE may have grown since, and its share with it.
        assert (reach(sandbox).cgroup.memory_limit() or 0) < 300 * MIB
        third = invoke(sandbox)
    told = [note for note in second.notes if "instead of" in note]
    assert len(told) == 1
    assert told[0].startswith(f"before this invocation the memory limit was {larger} instead of ")
    assert third.notes == first.notes
