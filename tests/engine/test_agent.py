"""The vantage ``agent``: the harness's cgroup code in a container beside the sandboxes, and what becomes of it."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import sysconfig
import textwrap
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from conftest import AGENT, PATIENCE, ROOT, WAIT_S, end, invoke, scaled, until

from harness import lifecycle
from harness.context import RequestContext, Trace
from harness.engine import parts, relay_mount
from harness.engine.volumes import LABEL_CONTENT
from harness.errors import EngineError, InitFailed
from harness.invocation import Outcome, PeakMethod, PhaseInit
from harness.pool import Pool
from harness.vantage.agent import AgentVantage

if TYPE_CHECKING:
    from conftest import Lab

    from harness.engine.client import Engine
    from harness.invocation import Invocation
    from harness.stand import Stand

PYTHON = ("--runtime", "python3.13", "--handler", "app.handler", "--no-pull", "--vantage", "agent", "-m", "512")
ECHO = "def handler(event, context): return event"
SLEEPER = """
    import time
    def handler(event, context):
        print("asleep", flush=True)
        time.sleep(event.get("s", 0))
        return "awake"
"""
SOCKET = Path("/var/run/docker.sock")


@pytest.fixture(scope="module", autouse=True)
def image_for_the_agent(engine: Engine) -> None:
    try:
        with contextlib.closing(AgentVantage(engine)) as vantage:
            vantage.start()
    except EngineError as error:
        pytest.fail(f"{error}; {error.remedy}", pytrace=False)


@pytest.fixture(scope="module")
def same_kernel(engine: Engine) -> None:
    if engine.facts().kernel != os.uname().release:
        pytest.skip("the engine runs on another kernel: its processes cannot be looked at from here")


def agent_of(lab: Lab, pid: int | None = None) -> dict[str, Any]:
    """What the engine says of the container of a process's agent."""
    (name,) = (each for each in lab.containers(pid) if each.startswith(AGENT))
    found: dict[str, Any] = lab.engine.docker.api.inspect_container(name)
    return found


def sandbox_pid(lab: Lab, pid: int | None = None) -> int:
    (name,) = lab.sandboxes(pid)
    return int(lab.engine.docker.api.inspect_container(name)["State"]["Pid"])


def said_until(process: subprocess.Popen[str], text: str) -> str:
    """Everything that was said on stderr up to the line with this text."""
    said = ""
    assert process.stderr is not None
    for line in process.stderr:
        said += line
        if text in line:
            return said
    raise AssertionError(f"it ended with {process.wait()} and never said {text!r}: {said}")


def started(lab: Lab, *more: object, until_said: str = "asleep") -> subprocess.Popen[str]:
    folder = lab.function({"app.py": SLEEPER})
    process = lab.start("invoke", folder, *PYTHON, "--timeout", 200, *more)
    said_until(process, until_said)
    return process


# -- rights --------------------------------------------------------------------------------------------------------------


def test_the_agent_has_the_rights_that_it_needs_and_no_more(lab: Lab) -> None:
    with lab.stand(ECHO, vantage="agent") as stand, stand.sandbox():
        found = agent_of(lab)
        (name,) = lab.sandboxes()
        sandbox = lab.engine.docker.api.inspect_container(name)
    host = found["HostConfig"]
    assert {each.removeprefix("CAP_") for each in host["CapAdd"]} == {
        "SYS_ADMIN",
        "SYS_PTRACE",
        "DAC_OVERRIDE",
        "KILL",
    }
    assert host["CapDrop"] == ["ALL"]
    assert not host["Privileged"]
    assert host["NetworkMode"] == "none"
    assert host["PidMode"] == "host"
    assert host["CgroupnsMode"] == "host"
    assert host["IpcMode"] != "host"
    assert host["UTSMode"] == ""
    assert host["ReadonlyRootfs"]
    assert not host["Devices"]
    assert not host["PortBindings"]
    assert "no-new-privileges" in host["SecurityOpt"]
    assert not any(each.startswith("seccomp") for each in host["SecurityOpt"]), "the engine's own profile stays"
    mounts = {each["Destination"]: (each["Type"], each["RW"]) for each in found["Mounts"]}
    assert mounts == {"/sys/fs/cgroup": ("bind", True), "/opt/lambda-harness": ("volume", False)}
    assert found["Config"]["StdinOnce"], "it must not outlive whoever speaks to it"
    assert sandbox["HostConfig"]["CapAdd"] is None, "the sandboxes have none of it"
    assert sandbox["HostConfig"]["PidMode"] == ""


def test_the_agent_s_code_is_one_volume_for_all_commands(lab: Lab) -> None:
    def code() -> str:
        with lab.stand(ECHO, vantage="agent"):
            mounts = agent_of(lab)["Mounts"]
        return next(str(each["Name"]) for each in mounts if each["Type"] == "volume")

    assert code() == code()


# -- ends ----------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("same_kernel")
def test_an_agent_whose_harness_was_killed_thaws_what_was_frozen_and_ends(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    process = started(lab, "-n", 2, "--gap", 100, until_said="REPORT RequestId")
    agent, sandbox = agent_of(lab, process.pid), sandbox_pid(lab, process.pid)
    frozen = psutil.Process(sandbox)
    end(process, signal.SIGKILL)
    assert list(tmp_path.iterdir()) == [], "the agent's code is in the engine"
    api = lab.engine.docker.api
    until(lambda: not api.inspect_container(agent["Id"])["State"]["Running"], "the agent to end by itself")
    state = api.inspect_container(agent["Id"])["State"]
    assert (state["ExitCode"], state["Error"]) == (0, "")
    children = [each for each in frozen.children(recursive=True) if each.status() != psutil.STATUS_ZOMBIE]
    assert children == [], "the runtime was ended"
    # A frozen process dies of nothing: that this one does shows that it was thawed.
    frozen.kill()
    until(lambda: not frozen.is_running() or frozen.status() == psutil.STATUS_ZOMBIE, "the RIE to die of its signal")
    lab.cli("invoke", lab.function({"app.py": ECHO}), *PYTHON)
    assert lab.containers(process.pid) == set(), "the next command takes away what is left"
    assert not psutil.pid_exists(agent["State"]["Pid"])


def test_the_agent_is_killed_in_the_middle_of_an_invocation(lab: Lab) -> None:
    event = ("-e", '{"s": 0}', "-e", '{"s": 300}')
    folder = lab.function({"app.py": SLEEPER})
    process = lab.start("invoke", folder, *PYTHON, "--timeout", 400, "-n", 2, *event)
    said_until(process, "REPORT RequestId")
    said_until(process, "asleep")
    lab.engine.docker.api.kill(agent_of(lab, process.pid)["Id"])
    out, err = process.communicate(timeout=WAIT_S)
    assert process.returncode == 4, err
    assert out.splitlines()[0] == '"awake"', "the record before it is kept"
    assert "the agent is gone" in err
    assert "Traceback" not in err
    assert lab.containers(process.pid) == set()


def test_the_agent_is_killed_while_the_sandbox_is_frozen(lab: Lab, tmp_path: Path) -> None:
    report = tmp_path / "run.json"
    process = started(lab, "-n", 2, "--gap", 5, "--report", report, until_said="REPORT RequestId")
    lab.engine.docker.api.kill(agent_of(lab, process.pid)["Id"])
    _, err = process.communicate(timeout=WAIT_S)
    assert process.returncode == 4, err
    assert "the agent is gone" in err
    assert "Traceback" not in err
    assert lab.containers(process.pid) == set(), "a frozen container can be removed without its agent, too"
    first, second = json.loads(report.read_text())["invocations"]
    assert first["outcome"] == "success"
    assert (second["outcome"], second["error_type"]) == ("engine_error", "EngineError")
    assert (second["duration_ms"], second["billed_ms"], second["cpu_ms"]) == (None, None, None)


def test_a_sweep_whose_agent_is_killed_says_so_keeps_its_records_and_goes_on(lab: Lab) -> None:
    options = [each for each in PYTHON if each not in ("-m", "512")]
    process = lab.start(
        "sweep", lab.function({"app.py": SLEEPER}), *options, "-m", "256,512", "-n", 150, "--json", "-e", '{"s": 0.02}'
    )
    until(lambda: len(lab.sandboxes(process.pid)) == 2, "its sandboxes")
    said_until(process, "sweep: ")
    lab.engine.docker.api.kill(agent_of(lab, process.pid)["Id"])
    out, err = process.communicate(timeout=120 * PATIENCE)
    assert process.returncode == 0, err
    assert "engine_error: EngineError: the agent is gone" in err
    assert "Traceback" not in err
    assert lab.containers(process.pid) == set()
    outcomes = [record["outcome"] for record in json.loads(out)["invocations"]]
    lost = outcomes.count("engine_error")
    assert 1 <= lost <= 2, "the invocations that were under way, or were next in a sandbox that it attended to"
    assert outcomes.count("success") == len(outcomes) - lost >= 300
    assert outcomes.index("engine_error") > 0, "what was measured before is kept"


def test_a_service_outlives_its_agent(lab: Lab) -> None:
    with lab.stand(ECHO, vantage="agent") as stand:
        with stand.sandbox() as first:
            assert invoke(first, x=1).response == {"x": 1}
            lab.engine.docker.api.kill(agent_of(lab)["Id"])
            lost = invoke(first)
            assert lost.outcome is Outcome.ENGINE_ERROR
            assert "the agent is gone" in (lost.error_message or "")
            assert isinstance(first.phase, lifecycle.ShutDown)
        with stand.sandbox() as second:
            assert invoke(second, x=2).response == {"x": 2}
        assert len([each for each in lab.containers() if each.startswith(AGENT)]) == 1
    assert lab.containers() == set()


@pytest.mark.parametrize("when", ["asleep", "REPORT RequestId"], ids=["working", "frozen"])
def test_an_interrupted_command_leaves_no_agent_and_no_sandbox(lab: Lab, when: str) -> None:
    event = json.dumps({"s": 300 if when == "asleep" else 0})
    process = started(lab, "-e", event, "-n", 2, "--gap", 100, until_said=when)
    assert len(lab.containers(process.pid)) == 2
    _, said = end(process, signal.SIGINT)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert lab.containers(process.pid) == set()


def test_a_command_interrupted_while_its_agent_starts_leaves_nothing(lab: Lab) -> None:
    process = lab.start("invoke", lab.function({"app.py": SLEEPER}), *PYTHON)
    until(lambda: lab.containers(process.pid), "the agent's container")
    _, said = end(process, signal.SIGINT)
    assert process.returncode == 130, said
    assert lab.containers(process.pid) == set()


# -- code ----------------------------------------------------------------------------------------------------------------


def content(lab: Lab) -> set[str]:
    """The volumes that hold content, without their marks."""
    listed = lab.engine.docker.volumes.list(filters={"label": LABEL_CONTENT})
    return {str(each.name) for each in listed if not str(each.name).endswith("-filled")}


def mounted(lab: Lab, at: str) -> str:
    (name,) = lab.sandboxes()
    mounts = lab.engine.docker.api.inspect_container(name)["Mounts"]
    (found,) = (each for each in mounts if each["Destination"] == at)
    assert found["Type"] == "volume"
    assert not found["RW"]
    return str(found["Name"])


LOOK = """
    import hashlib, os, subprocess
    def handler(event, context):
        found = {}
        for top in event["below"]:
            for folder, folders, files in os.walk(top):
                for name in folders + files:
                    path = os.path.join(folder, name)
                    about = os.lstat(path)
                    if os.path.islink(path):
                        told = "-> " + os.readlink(path)
                    elif os.path.isdir(path):
                        told = "directory"
                    else:
                        told = hashlib.sha256(open(path, "rb").read()).hexdigest()
                    found[path] = [told, about.st_mode, int(about.st_mtime) if os.path.isfile(path) else None]
        return found
"""


def test_files_of_all_kinds_arrive_as_a_mount_would_show_them(lab: Lab) -> None:
    folder = lab.function({"app.py": LOOK, "tool.sh": "#!/bin/sh\necho ran\n", "deep/er/x.txt": "x"})
    (folder / "binary").write_bytes(bytes(range(256)) * 4096)
    (folder / "grüße ☃").write_bytes(b"")
    (folder / "empty").mkdir()
    (folder / "plain.txt").write_text("plain")
    (folder / "plain.txt").chmod(0o644)
    (folder / "link").symlink_to("deep/er/x.txt")
    (folder / "folder-link").symlink_to("deep")
    (folder / "broken").symlink_to("/nowhere")
    (folder / "same").hardlink_to(folder / "plain.txt")
    layer = lab.function({"python/lib.py": "VALUE = 1"})
    seen = {}
    for vantage in ("host", "agent"):
        settings: dict[str, Any] = {"runtime": "python3.13", "handler": "app.handler", "layers": (layer,)}
        with contextlib.suppress(EngineError), lab.sandbox(folder, vantage=vantage, **settings) as sandbox:
            seen[vantage] = invoke(sandbox, below=["/var/task", "/opt"]).response
    assert len(seen["agent"]) >= 14
    assert "/opt/python/lib.py" in seen["agent"]
    assert seen.get("host", seen["agent"]) == seen["agent"]
    _, mode, mtime = seen["agent"]["/var/task/tool.sh"]
    about = (folder / "tool.sh").stat()
    assert (mode, mtime) == (about.st_mode, int(about.st_mtime))
    assert seen["agent"]["/var/task/link"][0] == "-> deep/er/x.txt"


def test_the_same_code_is_one_volume_and_changed_code_another(lab: Lab) -> None:
    folder = lab.function({"app.py": "def handler(event, context): return 1"})
    volumes, responses = [], []
    for source in ("return 1", "return 1", "return 2"):
        text = f"def handler(event, context): {source}"
        if (folder / "app.py").read_text() != text:
            (folder / "app.py").write_text(text)
        with lab.sandbox(folder, vantage="agent", runtime="python3.13", handler="app.handler") as sandbox:
            volumes.append(mounted(lab, "/var/task"))
            responses.append(invoke(sandbox).response)
    assert responses == [1, 1, 2]
    assert volumes[0] == volumes[1] != volumes[2]


def test_code_that_changes_under_an_open_stand_is_seen_by_its_next_sandbox(lab: Lab) -> None:
    folder = lab.function({"app.py": "def handler(event, context): return 'before'"})
    with lab.stand(folder, vantage="agent", runtime="python3.13", handler="app.handler") as stand:
        with stand.sandbox() as sandbox:
            assert invoke(sandbox).response == "before"
        (folder / "app.py").write_text("def handler(event, context): return 'after'")
        with stand.sandbox() as sandbox:
            assert invoke(sandbox).response == "after"


def test_an_edit_between_two_commands_is_seen_by_the_second(lab: Lab) -> None:
    folder = lab.function({"app.py": "def handler(event, context): return 'one'"})
    assert lab.cli("invoke", folder, *PYTHON).stdout.strip() == '"one"'
    (folder / "app.py").write_text("def handler(event, context): return 'two'")
    assert lab.cli("invoke", folder, *PYTHON).stdout.strip() == '"two"'


def test_a_function_of_an_empty_directory_fails_as_on_host(lab: Lab) -> None:
    folder = lab.folder / "nothing-in-it"
    folder.mkdir()
    folder.chmod(0o755)
    found = {}
    for vantage in ("host", "agent"):
        with (
            contextlib.suppress(EngineError),
            lab.sandbox(folder, vantage=vantage, runtime="python3.13", handler="app.handler") as sandbox,
        ):
            record = invoke(sandbox)
            found[vantage] = (record.outcome, record.error_type)
    assert found["agent"] == (Outcome.INIT_ERROR, "Runtime.ImportModuleError")
    assert found.get("host", found["agent"]) == found["agent"]


def test_code_and_a_layer_of_the_same_content_are_both_there(lab: Lab) -> None:
    files = {
        "app.py": "import os\ndef handler(event, context): return sorted(os.listdir('/opt') + os.listdir('/var/task'))"
    }
    code, layer = lab.function(files), lab.function(files)
    for folder in (code, layer):
        os.utime(folder / "app.py", (1_700_000_000, 1_700_000_000))
    with lab.sandbox(code, vantage="agent", runtime="python3.13", handler="app.handler", layers=(layer,)) as sandbox:
        assert invoke(sandbox).response == ["app.py", "app.py"]


def test_two_commands_at_once_fill_the_same_new_volume_once(lab: Lab) -> None:
    folder = lab.function({"app.py": "def handler(event, context): return 'here'"})
    (folder / "large.bin").write_bytes(os.urandom(40 << 20))
    before = content(lab)
    with ThreadPoolExecutor(2) as threads:
        done = list(threads.map(lambda _: lab.cli("invoke", folder, *PYTHON), range(2)))
    assert [each.stdout.strip() for each in done] == ['"here"', '"here"']
    made = content(lab) - before
    with lab.sandbox(folder, vantage="agent", runtime="python3.13", handler="app.handler"):
        assert mounted(lab, "/var/task") in made
    shutil.rmtree(folder)


def test_clean_removes_unused_content_and_what_is_used_stays(lab: Lab) -> None:
    source = "def handler(event, context): return 'still here'"
    unused = lab.function({"app.py": f"def handler(event, context): return 'unused {os.getpid()}'"})
    with lab.sandbox(unused, vantage="agent", runtime="python3.13", handler="app.handler"):
        gone = mounted(lab, "/var/task")
    with lab.sandbox(source, vantage="agent") as sandbox:
        held = mounted(lab, "/var/task")
        lab.cli("clean")
        assert {gone, held} <= content(lab), "it is young"
        from harness.engine.volumes import remove_unused

        # What 'clean --all' calls, which would end everybody's sandboxes on this engine beside.
        removed = remove_unused(lab.engine, everything=True)
        assert f"volume {gone}" in removed
        assert f"volume {held}" not in removed
        assert held in content(lab)
        assert invoke(sandbox).response == "still here"
    with lab.sandbox(unused, vantage="agent", runtime="python3.13", handler="app.handler") as sandbox:
        assert invoke(sandbox).response == f"unused {os.getpid()}"


# -- inits ahead, contexts ---------------------------------------------------------------------------------------------


TELLS = """
    import os
    print("init", flush=True)
    def handler(event, context):
        client = context.client_context
        return {
            "id": context.aws_request_id, "arn": context.invoked_function_arn, "client": client.custom if client else None,
            "trace": os.environ.get("_X_AMZN_TRACE_ID"), "left": context.get_remaining_time_in_millis(), "event": event,
            "type": os.environ["AWS_LAMBDA_INITIALIZATION_TYPE"],
        }
"""


def test_an_init_ahead_of_requests(lab: Lab) -> None:
    with lab.stand(TELLS, vantage="agent", timeout_s=scaled(5)) as stand:
        sandbox = stand.sandbox(provisioned=True)
        sandbox.start()
        try:
            sandbox.initialise()
            assert isinstance(sandbox.phase, lifecycle.Frozen)
            assert sandbox.init_ms is not None
            assert sandbox.init_ms > 1
            events: list[dict[str, Any]] = [{"large": "x" * 300_000}, {"small": 1}]
            for number, given in enumerate(events, 1):
                record = invoke(sandbox, **given)
                assert record.outcome is Outcome.SUCCESS, record.error_message
                assert record.response["event"] == given
                assert record.response["type"] == "provisioned-concurrency"
                assert 0 < record.response["left"] <= 1000 * scaled(5)
                assert (record.sequence, record.cold, record.phase_init, record.init_ms) == (number, False, None, None)
                assert record.frozen_ms is not None
                assert record.peak_method is PeakMethod.RESET
        finally:
            sandbox.shut_down()


def test_an_init_ahead_that_fails_says_why(lab: Lab) -> None:
    with lab.stand("raise ValueError('no such thing')", vantage="agent") as stand:
        sandbox = stand.sandbox(provisioned=True)
        sandbox.start()
        with pytest.raises(InitFailed, match="no such thing"):
            sandbox.initialise()
        assert isinstance(sandbox.phase, lifecycle.ShutDown)
        assert lab.sandboxes() == set()


def test_a_sandbox_initialised_ahead_and_never_used_is_given_back(lab: Lab) -> None:
    with lab.stand(TELLS, vantage="agent") as stand:
        sandbox = stand.sandbox(provisioned=True)
        sandbox.start()
        sandbox.initialise()
        sandbox.shut_down()
        assert lab.sandboxes() == set()
        with stand.sandbox() as another:
            assert invoke(another).outcome is Outcome.SUCCESS


def test_what_travels_with_an_event_is_what_travels_on_host(lab: Lab) -> None:
    trace = Trace.begin(sampled=True)
    seen = {}
    for vantage in ("host", "agent"):
        context = RequestContext(
            client_context='{"custom":\n {"k": "grüße ☃"}}',
            invoked_arn="arn:aws:lambda:x:1:function:f:live",
            trace=trace,
        )
        with (
            contextlib.suppress(EngineError),
            lab.sandbox(TELLS, vantage=vantage, timeout_s=scaled(5)) as sandbox,
        ):
            for _ in range(2):
                record = sandbox.invoke(b"{}", context=context)
                assert record.outcome is Outcome.SUCCESS, record.error_message
                assert record.request_id == context.request_id == record.response["id"]
                left_s = record.response["left"] / 1000
                assert 0.8 * scaled(5) < left_s <= scaled(5), "of the function's own timeout, init not counted"
                found = Trace.parse(record.response["trace"])
                assert found is not None
                assert (found.trace_id, found.sampled) == (trace.trace_id, True)
                seen[vantage] = (record.response["arn"], record.response["client"])
    assert seen["agent"] == ("arn:aws:lambda:x:1:function:f:live", {"k": "grüße ☃"})
    assert seen.get("host", seen["agent"]) == seen["agent"]


# -- sizes ---------------------------------------------------------------------------------------------------------------


def test_an_event_and_a_response_of_6_mb_pass_whole(lab: Lab) -> None:
    text = "xyz" * (2 * 1024 * 1024 - 100)
    with lab.sandbox("def handler(event, context): return event['text']", vantage="agent", memory_mb=1024) as sandbox:
        for _ in range(2):
            record = invoke(sandbox, text=text)
            assert record.outcome is Outcome.SUCCESS, record.error_message
            assert record.response == text


def test_a_response_that_is_far_too_large_harms_the_agent_no_more_than_the_rie(lab: Lab) -> None:
    source = """
        def handler(event, context):
            if event.get("raise"):
                raise ValueError("x" * (event["mb"] << 20))
            return "x" * (event["mb"] << 20)
    """
    with lab.sandbox(source, vantage="agent", memory_mb=2048, timeout_s=scaled(60)) as sandbox:
        assert invoke(sandbox, mb=80).outcome is Outcome.RESPONSE_TOO_LARGE
        assert invoke(sandbox, mb=0).response == ""
        assert invoke(sandbox, mb=40, **{"raise": True}).outcome is not Outcome.SUCCESS
        assert invoke(sandbox, mb=0).response == ""


def test_20_mb_of_output_arrive_in_order_and_their_end_is_the_log_s_tail(lab: Lab) -> None:
    source = """
        def handler(event, context):
            for number in range(250_000):
                print(f"{number:079}")
            print("last words")
            return "said"
    """
    digits: list[bytes] = []
    with lab.sandbox(
        source, vantage="agent", memory_mb=1769, timeout_s=scaled(100), on_output=digits.append
    ) as sandbox:
        record = invoke(sandbox)
    assert (record.outcome, record.response) == (Outcome.SUCCESS, "said")
    lines = b"".join(digits).split(b"\n")
    assert len(lines) == 250_002
    assert lines[:250_000] == [b"%079d" % number for number in range(250_000)]
    assert "last words" in record.log_tail
    assert len(record.log_tail.encode()) <= 4096


def test_who_reads_the_output_slowly_holds_it_up_and_not_the_memory(lab: Lab) -> None:
    source = """
        import sys
        def handler(event, context):
            for _ in range(1600):
                sys.stdout.write("x" * 65535 + "\\n")
            return "said"
    """
    me, go_on = psutil.Process(), threading.Event()
    seen, grown = 0, 0

    def slowly(data: bytes) -> None:
        nonlocal seen, grown
        if not seen:
            go_on.wait(2)
        seen += len(data)
        grown = max(grown, me.memory_info().rss - before)

    before = me.memory_info().rss
    with lab.sandbox(source, vantage="agent", memory_mb=1769, timeout_s=scaled(60), on_output=slowly) as sandbox:
        assert invoke(sandbox).response == "said"
    assert seen == 1600 << 16
    assert grown < 60 << 20


def test_whoever_cannot_take_the_output_is_told_as_an_engine_error(lab: Lab) -> None:
    def refuse(_: bytes) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    with lab.sandbox(SLEEPER, vantage="agent", on_output=refuse) as sandbox:
        found = invoke(sandbox)
    assert found.outcome is Outcome.ENGINE_ERROR
    assert "Broken pipe" in (found.error_message or "")


# -- many ----------------------------------------------------------------------------------------------------------------


def test_five_sandboxes_at_once_are_told_apart(lab: Lab) -> None:
    source = """
        import os, time
        def handler(event, context):
            print(f"said {event['n']}", flush=True)
            time.sleep(0.5)
            return [event["n"], context.aws_request_id, os.environ["AWS_LAMBDA_LOG_STREAM_NAME"]]
    """
    with lab.stand(source, vantage="agent", memory_mb=128) as stand, Pool(stand) as pool:
        for _ in range(2):
            with ThreadPoolExecutor(5) as threads:
                events = [json.dumps({"n": number}).encode() for number in range(5)]
                records = list(threads.map(pool.invoke, events))
            assert [record.outcome for record in records] == [Outcome.SUCCESS] * 5
            for number, record in enumerate(records):
                assert record.response[:2] == [number, record.request_id]
                assert f"said {number}\n" in record.log_tail
                assert record.cpu_ms is not None
            assert len({record.response[2] for record in records}) == 5
            assert len({record.sandbox_id for record in records}) == 5


# -- the same as on host -------------------------------------------------------------------------------------------------

WAYS = """
    import os, sys, time
    if os.environ.get("FAIL") == "init":
        raise RuntimeError("no init")
    if os.environ.get("FAIL") == "exit":
        os._exit(7)
    def handler(event, context):
        op = event["op"]
        if op == "raise":
            raise ValueError("boom")
        if op == "exit":
            os._exit(event["code"])
        if op == "kill":
            os.kill(os.getpid(), 9)
        if op == "sleep":
            time.sleep(3000)
        if op == "touch":
            bytearray(b"x") * (3000 << 20)
        if op == "big":
            return "x" * 7_000_000
        if op == "children":
            if os.fork() == 0:
                os._exit(0)
            os.wait()
        return op
"""
EVENTS: list[dict[str, Any]] = [
    {"op": "fine"},
    {"op": "raise"},
    {"op": "exit", "code": 3},
    {"op": "fine"},
    {"op": "exit", "code": 0},
    {"op": "sleep"},
    {"op": "fine"},
    {"op": "touch"},
    {"op": "fine"},
    {"op": "kill"},
    {"op": "big"},
    {"op": "children"},
    {"op": "fine"},
]


def told(record: Invocation) -> dict[str, Any]:
    """What must not depend on the vantage."""
    ours = record.request_id
    lived = bool(record.processes)
    response = json.loads(json.dumps(record.response).replace(ours, "ID"))
    if isinstance(response, dict):
        response.pop("requestId", None)
    return {
        "outcome": record.outcome,
        "error_type": record.error_type,
        "error_message": (record.error_message or "").replace(ours, "ID"),
        "response": response,
        "phase_init": record.phase_init,
        "cold": record.cold,
        "report": [part.partition(":")[0] for part in record.report.replace(ours, "ID").split("\t")],
        # Of a runtime that died its peak is what was sampled before, by chance.
        "peak_method": record.peak_method if lived else None,
        "processes": record.processes,
        "measured": sorted(
            name
            for name in ("init_ms", "duration_ms", "billed_ms", "cpu_ms", "throttled_ms", "peak_rss_bytes", "freeze_ms")
            if getattr(record, name) is not None and (lived or name != "peak_rss_bytes")
        ),
        "limits": (record.cpu_quota_us, record.cpu_period_us, record.cpuset, record.cgroup_version),
    }


def series(stand: Stand, events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    with stand.sandbox() as sandbox:
        return [told(invoke(sandbox, **event)) for event in events]


@pytest.mark.parametrize("fail", ["", "init", "exit"])
def test_every_outcome_is_the_same_as_on_host(lab: Lab, host: str, fail: str) -> None:
    found: dict[str, list[dict[str, Any]]] = {}
    for vantage in (host, "agent"):
        settings: dict[str, Any] = {"environment": {"FAIL": fail}, "memory_mb": 512, "timeout_s": scaled(8)}
        with lab.stand(WAYS, vantage=vantage, **settings) as stand:
            found[vantage] = series(stand, EVENTS[:2] if fail else EVENTS)
    for event, on_host, with_agent in zip(EVENTS, found[host], found["agent"], strict=False):
        assert with_agent == on_host, event
    if not fail:
        assert [each["outcome"] for each in found["agent"]] == [
            Outcome.SUCCESS,
            Outcome.FUNCTION_ERROR,
            Outcome.RUNTIME_EXIT,
            Outcome.SUCCESS,
            Outcome.RUNTIME_EXIT,
            Outcome.TIMEOUT,
            Outcome.SUCCESS,
            Outcome.OUT_OF_MEMORY,
            Outcome.SUCCESS,
            Outcome.RUNTIME_EXIT,
            Outcome.RESPONSE_TOO_LARGE,
            Outcome.SUCCESS,
            Outcome.SUCCESS,
        ]
        assert found["agent"][3]["phase_init"] is PhaseInit.SUPPRESSED


# -- without root ----------------------------------------------------------------------------------------------------------

USER = "lhagent"


@pytest.fixture
def member(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """A user who may use the engine and is not root, with a home and a copy of the harness; removed at the end."""
    if os.geteuid() != 0:
        pytest.skip("only root can make a user who is none")
    if not SOCKET.is_socket() or "DOCKER_HOST" in os.environ:
        pytest.skip("the engine does not listen at /var/run/docker.sock, whose group a user could join")
    home = Path("/var/tmp") / f"{USER}-{os.getpid()}"
    group = SOCKET.stat().st_gid
    if group == 0:
        pytest.skip("the engine's socket belongs to root's own group")
    subprocess.run(
        ["useradd", "--create-home", "--home-dir", home, "--no-user-group", "--gid", str(group), USER], check=True
    )
    try:
        user = pwd.getpwnam(USER)
        shutil.copytree(ROOT / "harness", home / "code/harness", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(ROOT / "images", home / "code/images")
        function = home / "function"
        function.mkdir()
        (function / "app.py").write_text("def handler(event, context): return len(bytearray(event['mb'] << 20))")
        # What root has fetched, so that nothing has to be fetched again.
        architecture = os.uname().machine.replace("aarch64", "arm64")
        cache = home / ".cache" / parts.cache_dir().name / "parts"
        files = relay_mount.directory(architecture)
        shutil.copytree(files, cache / files.name)
        shutil.copy2(parts.rie_binary(architecture), cache)
        for each in (home, *home.rglob("*")):
            os.chown(each, user.pw_uid, user.pw_gid, follow_symlinks=False)
        home.chmod(0o755)
        yield {"home": home, "user": user.pw_uid, "group": user.pw_gid, "function": function}
    finally:
        subprocess.run(["userdel", "--force", "--remove", USER], check=True, capture_output=True)
        shutil.rmtree(home, ignore_errors=True)


def as_member(member: dict[str, Any], *command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, command)),
        user=member["user"],
        group=member["group"],
        extra_groups=[],
        cwd=member["home"] / "code",
        env={
            "HOME": str(member["home"]),
            "PATH": os.defpath,
            "NO_COLOR": "1",
            "PYTHONPATH": os.pathsep.join([str(member["home"] / "code"), sysconfig.get_paths()["purelib"]]),
        },
        capture_output=True,
        text=True,
        timeout=120 * PATIENCE,
        check=False,
    )


def python_of(member: dict[str, Any]) -> str:
    """An interpreter of this version that the user may run; this one may be root's own."""
    here = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    for each in (sys.executable, f"/usr/bin/{here}", f"/usr/local/bin/{here}"):
        with contextlib.suppress(OSError):
            if as_member(member, each, "-c", "import docker, typer, psutil").returncode == 0:
                return each
    pytest.skip(f"no {here} with the harness's dependencies that another user may run")


def test_a_user_who_is_not_root_gets_the_agent_and_its_exact_figures(lab: Lab, member: dict[str, Any]) -> None:
    options = ("--runtime", "python3.13", "--handler", "app.handler", "--no-pull", "-m", "512", "--json", "-n", "2")
    python = python_of(member)
    more = ("-e", '{"mb": 100}', "--timeout", str(scaled(5)))
    done = as_member(member, python, "-B", "-m", "harness", "invoke", member["function"], *options, *more)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["host"]["vantage"] == "agent"
    for record in document["invocations"]:
        assert record["vantage"] == "agent"
        assert record["response"] == 100 << 20
        assert record["cpu_ms"] > 0
        assert record["peak_method"] == "reset"
        assert 100 << 20 < record["peak_rss_bytes"] < 200 << 20
        assert record["freeze_ms"] is not None
        assert (record["cpu_quota_us"], record["cpu_period_us"]) == (5788, 20000)
    assert lab.sandboxes() == set()


def test_a_user_who_is_not_root_receives_what_functions_send(lab: Lab, member: dict[str, Any]) -> None:
    source = """
        import http.client, json, os, socket
        METRIC = {"Namespace": "App", "MetricData": [{"MetricName": "calls", "Value": 1}]}
        def handler(event, context):
            root, parent = [each.partition("=")[2] for each in os.environ["_X_AMZN_TRACE_ID"].split(";")][:2]
            segment = {"id": "1" * 16, "name": "mine", "trace_id": root, "parent_id": parent, "type": "subsegment",
                       "start_time": 1.0, "end_time": 2.0}
            data = b'{"format": "json", "version": 1}\\n' + json.dumps(segment).encode()
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(data, ("127.0.0.1", 2000))
            connection = http.client.HTTPConnection("127.0.0.1", 9102)
            target = {"X-Amz-Target": "GraniteServiceVersion20100801.PutMetricData"}
            connection.request("POST", "/", json.dumps(METRIC), target)
            return connection.getresponse().status
    """
    (member["function"] / "app.py").write_text(textwrap.dedent(source))
    options = ("--runtime", "python3.13", "--handler", "app.handler", "--no-pull", "--json", "--timeout", "60")
    command = ("-B", "-m", "harness", "invoke", member["function"], *options, "--receivers", "cloudwatch,xray")
    done = as_member(member, python_of(member), *command)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert (document["host"]["vantage"], document["invocations"][0]["response"]) == ("agent", 200)
    assert [each["MetricName"] for each in document["findings"]["cloudwatch"]] == ["calls"]
    (own,) = document["findings"]["xray"][0]["subsegments"]
    assert "mine" in [each["name"] for each in own["subsegments"]]
