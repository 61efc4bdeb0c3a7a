"""What functions send to the local receivers arrives the same from every vantage that has a way into their network."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING, Any

import pytest
from conftest import AGENT, PATIENCE, VANTAGES, WAIT_S, checked, end, invoke

from harness.invocation import Outcome
from harness.receivers import Receivers
from harness.vantage.agent import AgentVantage

if TYPE_CHECKING:
    from conftest import Lab

    from harness.engine.client import EngineFacts

TIMEOUT_S = int(60 * PATIENCE)
SENDER = """
    import http.client, json, os, socket, time

    HEADERS = {"X-Amz-Target": "GraniteServiceVersion20100801.PutMetricData", "Content-Type": "application/x-amz-json-1.0"}
    daemon = ("127.0.0.1", int(os.environ.get("_AWS_XRAY_DAEMON_PORT", 0)))
    kept = []

    def metric(name, pad=0):
        data = {"MetricName": name, "Value": 1, "Dimensions": [{"Name": "d", "Value": "v"}]}
        return json.dumps({"Namespace": "App", "MetricData": [data], "Pad": "x" * pad})

    def put(body):
        connection = http.client.HTTPConnection("127.0.0.1", 9102, timeout=30)
        connection.request("POST", "/", body, HEADERS)
        answer = connection.getresponse()
        answer.read()
        connection.close()
        return answer.status

    def segments(first, number, pad=0):
        root, parent, _ = [each.partition("=")[2] for each in os.environ["_X_AMZN_TRACE_ID"].split(";")][:3]
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        for at in range(first, first + number):
            document = {"id": f"{at:016x}", "name": f"s{at}", "trace_id": root, "parent_id": parent, "type": "subsegment",
                        "start_time": time.time(), "end_time": time.time(), "metadata": {"pad": "x" * pad}}
            sender.sendto(b'{"format": "json", "version": 1}\\n' + json.dumps(document).encode(), daemon)
        sender.close()

    def ask_and_leave(name):
        "Nobody waits for the answer: the sandbox is frozen meanwhile."
        connection = http.client.HTTPConnection("127.0.0.1", 9102)
        connection.request("POST", "/", metric(name), HEADERS)
        kept.append(connection)

    def hoard(requests):
        "Never reads an answer."
        connection = socket.create_connection(("127.0.0.1", 9102))
        body = metric("hoarded").encode()
        head = "".join(f"{name}: {value}\\r\\n" for name, value in HEADERS.items())
        request = f"POST / HTTP/1.1\\r\\nHost: h\\r\\n{head}Content-Length: {len(body)}\\r\\n\\r\\n".encode() + body
        connection.settimeout(1)
        try:
            for _ in range(requests):
                connection.sendall(request)
        except TimeoutError:
            pass
        kept.append(connection)

    def sleep(seconds):
        print("asleep", flush=True)
        time.sleep(seconds)

    def handler(event, context):
        return [globals()[do](*given) for do, *given in event["steps"]]
"""


METRIC = json.dumps({"Namespace": "App", "MetricData": [{"MetricName": "calls", "Value": 1}]})


@pytest.fixture(params=[each for each in VANTAGES if each != "api"])
def way(request: pytest.FixtureRequest, facts: EngineFacts) -> str:
    return checked(str(request.param), facts)


def steps(*found: Any) -> dict[str, Any]:
    return {"steps": found}


def metrics(receivers: Receivers) -> list[tuple[str, str | None]]:
    return [(each["MetricName"], each["request_id"]) for each in receivers.cloudwatch]


def own(tree: dict[str, Any]) -> list[str]:
    """The names of what the function itself sent, in its order."""
    (function,) = tree["subsegments"]
    sent = [each["name"] for each in function["subsegments"] if each["name"] not in ("Initialization", "Invocation")]
    return sorted(sent, key=lambda name: int(name[1:]))


def test_what_was_sent_is_there_when_the_record_is_and_belongs_to_its_request(lab: Lab, way: str) -> None:
    with (
        Receivers() as receivers,
        lab.stand(SENDER, vantage=way, timeout_s=TIMEOUT_S, receivers=receivers) as stand,
        stand.sandbox() as sandbox,
    ):
        records = []
        for number in range(5):
            event = steps(["put", METRIC], ["segments", number * 100 + 1, 40], ["ask_and_leave", "left"])
            records.append(invoke(sandbox, **event))
            assert records[-1].response == [200, None, None]
            # By listeners alone: reading the findings would wait for what is still on its way.
            assert len(receivers._metrics) == 2 * len(records)
        found = metrics(receivers)
        traces = receivers.xray
        assert receivers.warnings == []
    wanted = [(name, record.request_id) for record in records for name in ("calls", "left")]
    assert found == wanted
    assert [own(each) for each in traces] == [[f"s{number * 100 + at}" for at in range(1, 41)] for number in range(5)]


def test_what_a_sandbox_sends_last_is_received_before_it_is_gone(lab: Lab, way: str) -> None:
    with Receivers() as receivers:
        with (
            lab.stand(SENDER, vantage=way, timeout_s=TIMEOUT_S, receivers=receivers) as stand,
            stand.sandbox() as sandbox,
        ):
            invoke(sandbox, **steps(["segments", 1, 100], ["ask_and_leave", "last"]))
        assert len(own(receivers.xray[0])) == 100
        assert [name for name, _ in metrics(receivers)] == ["last"]


def test_large_bodies_pass_and_those_that_are_too_large_are_refused(lab: Lab, way: str) -> None:
    with (
        Receivers() as receivers,
        lab.stand(SENDER, vantage=way, timeout_s=TIMEOUT_S, receivers=receivers) as stand,
        stand.sandbox() as sandbox,
    ):
        large = invoke(sandbox, **steps(["put", METRIC + " " * 900_000], ["put", METRIC + " " * 2_000_000]))
        assert large.response == [200, 413]
        assert len(receivers.cloudwatch) == 1


def test_every_segment_of_a_flood_is_taken_or_counted_and_the_next_request_is_as_ever(lab: Lab, way: str) -> None:
    sent = 3000
    with (
        Receivers(["xray"]) as receivers,
        lab.stand(SENDER, vantage=way, timeout_s=TIMEOUT_S, memory_mb=1769, receivers=receivers) as stand,
        stand.sandbox() as sandbox,
    ):
        assert invoke(sandbox, **steps(["segments", 1, sent, 20_000])).outcome is Outcome.SUCCESS
        taken = len(own(receivers.xray[0]))
        lost = sum(int(text.split()[0]) for text in receivers.warnings if "were lost" in text)
        assert taken + lost == sent
        assert invoke(sandbox, **steps(["segments", 1, 20])).outcome is Outcome.SUCCESS
        assert len(own(receivers.xray[1])) == 20


def test_a_function_that_reads_no_answers_holds_up_nobody(lab: Lab, way: str) -> None:
    with (
        Receivers(["cloudwatch"]) as receivers,
        lab.stand(SENDER, vantage=way, timeout_s=TIMEOUT_S, receivers=receivers) as stand,
        stand.sandbox() as slow,
        stand.sandbox() as other,
    ):
        assert invoke(slow, **steps(["hoard", 3000], ["put", METRIC])).response == [None, 200]
        assert invoke(other, **steps(["put", METRIC])).response == [200]
        assert invoke(slow, **steps(["put", METRIC])).response == [200]
        assert [name for name, _ in metrics(receivers)].count("calls") == 3


def test_two_sandboxes_use_the_same_ports_and_are_told_apart(lab: Lab, way: str) -> None:
    with (
        Receivers(["cloudwatch"]) as receivers,
        lab.stand(SENDER, vantage=way, timeout_s=TIMEOUT_S, receivers=receivers) as stand,
        stand.sandbox() as one,
        stand.sandbox() as two,
    ):
        for sandbox in (one, two, one):
            invoke(sandbox, **steps(["put", METRIC]))
        assert [each["sandbox_id"] for each in receivers.cloudwatch] == [one.id, two.id, one.id]


def test_where_there_is_no_way_in_who_asks_is_told(lab: Lab) -> None:
    folder = lab.function({"app.py": SENDER})
    options = ("--runtime", "python3.13", "--handler", "app.handler", "--no-pull", "--vantage", "api")
    done = lab.cli("invoke", folder, *options, "--receivers", "xray", "-e", json.dumps(steps()), expect=9)
    assert "on vantage api no receivers can be opened" in done.stderr


# -- the agent's end -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["asleep", "REPORT RequestId"], ids=["working", "frozen"])
def test_an_agent_that_is_killed_ends_the_command_which_keeps_what_had_come(lab: Lab, when: str) -> None:
    folder = lab.function({"app.py": SENDER})
    first, second = steps(["put", METRIC], ["segments", 1, 5], ["ask_and_leave", "left"]), steps(["sleep", 300])
    process = lab.start(
        *("invoke", folder, "--runtime", "python3.13", "--handler", "app.handler", "--no-pull", "--vantage", "agent"),
        *("-m", 512, "--timeout", 400, "--receivers", "cloudwatch,xray"),
        *("-n", 2, "--gap", 2, "-e", json.dumps(first), "-e", json.dumps(second)),
    )
    assert process.stderr is not None
    for line in process.stderr:
        if when in line:
            break
    (agent,) = (each for each in lab.containers(process.pid) if each.startswith(AGENT))
    lab.engine.docker.api.kill(agent)
    _, said = process.communicate(timeout=WAIT_S)
    assert process.returncode == 4, said
    assert "the agent is gone" in said
    assert "Traceback" not in said
    table = said.partition("received by the local CloudWatch:")[2]
    assert "calls" in table
    assert "left" in table
    assert lab.containers(process.pid) == set()


@pytest.mark.parametrize("when", ["asleep", "REPORT RequestId"], ids=["working", "frozen"])
def test_an_interrupted_command_gives_its_sockets_back_with_the_rest(lab: Lab, way: str, when: str) -> None:
    folder = lab.function({"app.py": SENDER})
    first, second = steps(["put", METRIC], ["ask_and_leave", "left"]), steps(["sleep", 300])
    process = lab.start(
        *("invoke", folder, "--runtime", "python3.13", "--handler", "app.handler", "--no-pull", "--vantage", way),
        *("-m", 512, "--timeout", 400, "--receivers", "cloudwatch,xray"),
        *("-n", 2, "--gap", 0 if when == "asleep" else 100, "-e", json.dumps(first), "-e", json.dumps(second)),
    )
    assert process.stderr is not None
    for line in process.stderr:
        if when in line:
            break
    _, said = end(process, signal.SIGINT)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert lab.containers(process.pid) == set()


def test_the_next_sandbox_of_a_service_receives_by_a_new_agent(lab: Lab) -> None:
    with (
        Receivers(["cloudwatch"]) as receivers,
        lab.stand(SENDER, vantage="agent", timeout_s=TIMEOUT_S, receivers=receivers) as stand,
    ):
        assert isinstance(stand.vantage, AgentVantage)
        with stand.sandbox() as first:
            assert invoke(first, **steps(["put", METRIC])).response == [200]
            (agent,) = (each for each in lab.containers() if each.startswith(AGENT))
            lab.engine.docker.api.kill(agent)
            assert invoke(first, **steps(["put", METRIC])).outcome is Outcome.ENGINE_ERROR
        with stand.sandbox() as second:
            assert invoke(second, **steps(["put", METRIC])).response == [200]
        assert [each["sandbox_id"] for each in receivers.cloudwatch] == [first.id, second.id]
