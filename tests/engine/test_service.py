"""The service as a process of its own, with AWS's clients, which know nothing of it."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import re
import signal
import subprocess
import sys
import textwrap
import threading
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import psutil
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from conftest import PATIENCE, WAIT_S, until

from harness.store import Store

if TYPE_CHECKING:
    from conftest import Lab

ROLE = "arn:aws:iam::000000000000:role/any"
READY = re.compile(r"serving Lambda on (http://\S+?) ")

HANDLER = """
    import json, os, time
    BORN = time.time_ns()
    def handler(event, context):
        op = event.get("op")
        if op == "raise":
            raise ValueError("boom")
        if op == "sleep":
            time.sleep(event["s"])
            return BORN
        if op == "born":
            return BORN
        if op == "context":
            client = context.client_context.custom if context.client_context else None
            return {"id": context.aws_request_id, "arn": context.invoked_function_arn, "client": client,
                    "trace": os.environ.get("_X_AMZN_TRACE_ID")}
        if op == "metric":
            print(json.dumps({"_aws": {"Timestamp": int(time.time() * 1000), "CloudWatchMetrics": [
                {"Namespace": "Shop", "Dimensions": [[]], "Metrics": [{"Name": "Sold", "Unit": "Count"}]}]}, "Sold": 3}))
        print("hello from the handler")
        return event
"""


@dataclass
class Service:
    """A service that runs."""

    process: subprocess.Popen[str]
    store: Path
    url: str = ""
    said: list[str] = field(default_factory=list)

    def read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line.rstrip("\n"))

    def has_said(self, text: str) -> bool:
        return any(text in line for line in self.said)

    def aws(self, **settings: Any) -> Any:
        """A client of boto3 that retries nothing and judges no parameters: that is the service's work."""
        config = Config(
            retries={"max_attempts": 0},
            read_timeout=60 * PATIENCE,
            max_pool_connections=60,
            parameter_validation=False,
            **settings,
        )
        return boto3.client(
            "lambda",
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id="any",
            aws_secret_access_key="any",  # noqa: S106  # there are no identities here
            config=config,
        )

    def state(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.url}/_harness/state", timeout=WAIT_S) as answer:  # noqa: S310
            found: dict[str, Any] = json.load(answer)
        return found


@contextlib.contextmanager
def serving(lab: Lab, store: Path, *more: object) -> Iterator[Service]:
    process = lab.start("serve", "--port", 0, "--store", store, "--no-pull", *more)
    service = Service(process=process, store=store)
    reading = threading.Thread(target=service.read, daemon=True)
    reading.start()
    try:
        until(lambda: service.has_said("serving Lambda on") or process.poll() is not None, "the service is up")
        found = next((match for line in service.said if (match := READY.search(line))), None)
        assert found is not None, service.said
        service.url = found[1]
        yield service
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(WAIT_S)
        reading.join(WAIT_S)
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()
        assert lab.containers(process.pid) == set() or process.returncode == -signal.SIGKILL


@pytest.fixture(scope="module")
def service(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serving(lab, tmp_path_factory.mktemp("service") / "runs.sqlite3", "--retry-scale", "0.001") as found:
        yield found


@pytest.fixture(scope="module")
def aws(service: Service) -> Iterator[Any]:
    client = service.aws()
    yield client
    client.close()


def zipped(source: str) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        info = zipfile.ZipInfo("app.py")
        info.external_attr = 0o644 << 16
        archive.writestr(info, textwrap.dedent(source))
    return made.getvalue()


def make(aws: Any, name: str, source: str = HANDLER, **more: Any) -> str:
    settings = {"Runtime": "python3.13", "Handler": "app.handler", "Role": ROLE, "MemorySize": 512, "Timeout": 10}
    aws.create_function(FunctionName=name, Code={"ZipFile": zipped(source)}, **settings | more)
    aws.get_waiter("function_active_v2").wait(FunctionName=name, WaiterConfig={"Delay": 1})
    return name


def call(aws: Any, name: str, event: Any, **more: Any) -> Any:
    return json.loads(aws.invoke(FunctionName=name, Payload=json.dumps(event), **more)["Payload"].read())


def refusal(action: Callable[[], object]) -> tuple[str, int]:
    with pytest.raises(ClientError) as refused:
        action()
    answer = refused.value.response
    return answer["Error"]["Code"], answer["ResponseMetadata"]["HTTPStatusCode"]


@pytest.fixture(scope="module")
def name(aws: Any) -> str:
    return make(aws, "everyday")


def test_a_function_answers_as_on_lambda(aws: Any, name: str) -> None:
    payload = b'{ "a":1.0 }'
    answer = aws.invoke(FunctionName=name, Payload=payload, LogType="Tail")
    request_id = answer["ResponseMetadata"]["RequestId"]
    log = base64.b64decode(answer["LogResult"]).decode()
    assert json.loads(answer["Payload"].read()) == {"a": 1.0}
    assert (answer["StatusCode"], answer["ExecutedVersion"], answer.get("FunctionError")) == (200, "$LATEST", None)
    assert f"START RequestId: {request_id} Version: $LATEST\n" in log
    assert "hello from the handler\n" in log
    assert f"REPORT RequestId: {request_id}\t" in log


def test_the_function_sees_who_asked_and_how(aws: Any, name: str) -> None:
    custom = base64.b64encode(json.dumps({"custom": {"k": "v"}}).encode()).decode()
    answer = aws.invoke(FunctionName=name, Payload=b'{"op":"context"}', ClientContext=custom)
    found = json.loads(answer["Payload"].read())
    assert found["id"] == answer["ResponseMetadata"]["RequestId"]
    assert found["client"] == {"k": "v"}
    assert found["arn"] == f"arn:aws:lambda:us-east-1:000000000000:function:{name}"
    assert (
        found["trace"].partition(";")[0]
        == answer["ResponseMetadata"]["HTTPHeaders"]["x-amzn-trace-id"].partition(";")[0]
    )


def test_an_error_of_the_function_is_no_error_of_the_call(aws: Any, name: str) -> None:
    answer = aws.invoke(FunctionName=name, Payload=b'{"op":"raise"}')
    assert (answer["StatusCode"], answer["FunctionError"]) == (200, "Unhandled")
    assert json.loads(answer["Payload"].read())["errorType"] == "ValueError"


def test_a_response_may_be_asked_for_as_a_stream(aws: Any, name: str) -> None:
    answer = aws.invoke_with_response_stream(FunctionName=name, Payload=b'{"a":"b"}', LogType="Tail")
    chunk, complete = list(answer["EventStream"])
    assert json.loads(chunk["PayloadChunk"]["Payload"]) == {"a": "b"}
    assert "REPORT" in base64.b64decode(complete["InvokeComplete"]["LogResult"]).decode()
    failed = list(aws.invoke_with_response_stream(FunctionName=name, Payload=b'{"op":"raise"}')["EventStream"])
    assert failed[-1]["InvokeComplete"]["ErrorCode"] == "Unhandled"
    assert json.loads(failed[-1]["InvokeComplete"]["ErrorDetails"])["errorType"] == "ValueError"


def test_what_lambda_refuses_is_refused_by_the_same_name(aws: Any, name: str) -> None:
    assert refusal(lambda: aws.invoke(FunctionName="nope")) == ("ResourceNotFoundException", 404)
    assert refusal(lambda: aws.invoke(FunctionName=name, Payload=b"{not json")) == (
        "InvalidRequestContentException",
        400,
    )
    large = b'"' + bytes(6 * 1024 * 1024) + b'"'
    assert refusal(lambda: aws.invoke(FunctionName=name, Payload=large)) == ("RequestEntityTooLargeException", 413)
    assert refusal(lambda: aws.invoke(FunctionName=name, InvocationType="Soon"))[1] == 400
    assert refusal(lambda: aws.update_function_configuration(FunctionName=name, MemorySize=64))[1] == 400


def test_a_burst_scales_out_and_the_next_finds_the_same_sandboxes(aws: Any) -> None:
    burst = make(aws, "burst", MemorySize=128)
    with ThreadPoolExecutor(4) as clients:
        first, second = (
            {each.result() for each in [clients.submit(call, aws, burst, {"op": "sleep", "s": 1}) for _ in range(4)]}
            for _ in range(2)
        )
        assert len(first) == 4
        assert second == first
        aws.put_function_concurrency(FunctionName=burst, ReservedConcurrentExecutions=1)
        asked = [clients.submit(call, aws, burst, {"op": "sleep", "s": 1}) for _ in range(4)]
        refused = [each.exception() for each in asked if each.exception() is not None]
    assert len(refused) == 3
    answer = refused[0].response  # type: ignore[union-attr]
    assert answer["Error"]["Code"] == "TooManyRequestsException"
    assert answer["Reason"] == "ReservedFunctionConcurrentInvocationLimitExceeded"
    assert answer["ResponseMetadata"]["HTTPHeaders"]["retry-after"]


def test_an_alias_leads_to_its_version(aws: Any) -> None:
    versioned = make(aws, "versioned", "def handler(event, context): return [context.function_version, 1]")
    aws.create_alias(
        FunctionName=versioned, Name="live", FunctionVersion=aws.publish_version(FunctionName=versioned)["Version"]
    )
    aws.update_function_code(
        FunctionName=versioned, ZipFile=zipped("def handler(event, context): return [context.function_version, 2]")
    )
    aws.get_waiter("function_updated_v2").wait(FunctionName=versioned, WaiterConfig={"Delay": 1})
    assert call(aws, versioned, {}, Qualifier="live") == ["1", 1]
    assert call(aws, versioned, {}) == ["$LATEST", 2]


def test_an_event_is_run_and_retried(service: Service, aws: Any, name: str) -> None:
    answer = aws.invoke(FunctionName=name, Payload=b'{"op":"raise"}', InvocationType="Event")
    assert answer["StatusCode"] == 202
    report = f"REPORT RequestId: {answer['ResponseMetadata']['RequestId']}"
    until(lambda: sum(report in line for line in service.said) == 3, "one attempt and two retries, with one id")


def test_a_function_has_a_url(service: Service, aws: Any) -> None:
    source = """
        import base64
        def handler(event, context):
            body = base64.b64decode(event["body"]) if event["isBase64Encoded"] else event.get("body", "").encode()
            return {"statusCode": 201, "cookies": ["a=1", "b=2"], "headers": {"content-type": "application/x-thing"},
                    "isBase64Encoded": True, "body": base64.b64encode(body[::-1] + event["rawPath"].encode()).decode()}
    """
    site = make(aws, "site", source)
    address = aws.create_function_url_config(FunctionName=site, AuthType="NONE")["FunctionUrl"]
    found = re.fullmatch(r"http://([a-z0-9]{32})\.lambda-url\.us-east-1\.localhost:(\d+)/", address)
    assert found is not None
    assert service.url.endswith(found[2])
    requests = (
        urllib.request.Request(f"{service.url}/a/b", headers={"Host": address.split("/")[2]}),  # noqa: S310
        urllib.request.Request(f"{service.url}/_harness/url/{found[1]}/a/b"),  # noqa: S310
    )
    for request in requests:
        request.data = b"\x00\xff"
        request.add_header("Content-Type", "application/octet-stream")
        with urllib.request.urlopen(request, timeout=WAIT_S) as answer:  # noqa: S310
            assert (answer.status, answer.read()) == (201, b"\xff\x00/a/b")
            assert answer.headers.get_all("set-cookie") == ["a=1", "b=2"]


def test_the_aws_cli_needs_nothing_but_the_address(service: Service, name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("aws"), "lambda", "invoke", "--function-name", name, "--payload", '{"x": 1}',
         "--log-type", "Tail", "--query", "LogResult", "--output", "text", tmp_path / "answer.json"],
        env={"AWS_ENDPOINT_URL_LAMBDA": service.url, "AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "us-east-1",
             "AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any", "AWS_EC2_METADATA_DISABLED": "true",
             "HOME": str(tmp_path), "PATH": ""},
        capture_output=True, text=True, timeout=WAIT_S * 2, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Max Memory Used" in base64.b64decode(done.stdout).decode()
    assert json.loads((tmp_path / "answer.json").read_text()) == {"x": 1}


def test_what_functions_send_is_received_and_what_they_print_is_kept(
    lab: Lab, service: Service, aws: Any, name: str
) -> None:
    call(aws, name, {"op": "metric"})
    until(lambda: any("Sold" in json.dumps(each) for each in service.state()["metrics"]), "the metric is on the page")
    log = lab.cli("logs", "tail", name, "--filter", '"hello from the handler"', "--store", service.store).stdout
    assert "hello from the handler" in log


def test_strangers_get_nothing(service: Service, name: str) -> None:
    for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}):
        path = f"{service.url}/2015-03-31/functions/{name}/invocations"
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(urllib.request.Request(path, data=b"{}", headers=headers))  # noqa: S310
        with refused.value as answer:
            assert answer.code == 403
            assert "access-control-allow-origin" not in answer.headers


def test_hundreds_of_requests_leave_no_descriptors_and_no_threads(service: Service, aws: Any, name: str) -> None:
    process = psutil.Process(service.process.pid)

    def burst(number: int) -> tuple[int, int]:
        with ThreadPoolExecutor(4) as clients:
            list(clients.map(lambda _: call(aws, name, {"op": "born"}), range(number)))
        return process.num_fds(), process.num_threads()

    before = burst(40)
    after = burst(400)
    # Connections of this client's pool and idle worker threads come and go by themselves; what leaks grows with requests.
    assert after[0] <= before[0] + 20
    assert after[1] <= before[1] + 20


def test_a_directory_is_taken_up_anew_when_it_changes(lab: Lab, tmp_path: Path) -> None:
    folder = lab.function(
        {
            "app.py": "def handler(event, context): return 1",
            "function.toml": 'name = "hot"\nruntime = "python3.13"\nhandler = "app.handler"\n',
        }
    )
    with serving(lab, tmp_path / "runs.sqlite3", folder) as service, contextlib.closing(service.aws()) as aws:
        aws.get_waiter("function_active_v2").wait(FunctionName="hot", WaiterConfig={"Delay": 1})
        assert call(aws, "hot", {}) == 1
        (folder / "app.py").write_text("def handler(event, context): return 2")
        assert call(aws, "hot", {}) == 2


def test_functions_survive_a_restart_and_a_signal_leaves_nothing(lab: Lab, tmp_path: Path) -> None:
    store = tmp_path / "runs.sqlite3"
    with serving(lab, store) as service, contextlib.closing(service.aws()) as aws:
        made = make(aws, "lasting")
        call(aws, made, {})
        service.process.send_signal(signal.SIGTERM)
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(WAIT_S) == 143
        assert lab.containers(service.process.pid) == set()
    with serving(lab, store) as service, contextlib.closing(service.aws()) as aws:
        assert [each["FunctionName"] for each in aws.list_functions()["Functions"]] == ["lasting"]
        assert call(aws, made, {"still": "here"}) == {"still": "here"}


def test_a_service_that_was_killed_loses_no_function_and_no_finished_record(lab: Lab, tmp_path: Path) -> None:
    store = tmp_path / "runs.sqlite3"
    answered: list[object] = []
    with serving(lab, store) as service, contextlib.closing(service.aws()) as aws:
        made = make(aws, "killed", MemorySize=128)

        def one(_: int) -> None:
            with contextlib.suppress(Exception):  # the end of the service reaches clients in many forms
                answered.append(call(aws, made, {"op": "sleep", "s": 0.2}))

        with ThreadPoolExecutor(4) as clients:
            running = [clients.submit(one, number) for number in range(100)]
            until(lambda: len(answered) >= 10, "some are done, and most are not")
            service.process.kill()
            for each in running:
                each.result()
        left = lab.containers(service.process.pid)
        assert left, "there was something to reap"
    finished = len(answered)
    with serving(lab, store) as after, contextlib.closing(after.aws()) as aws:
        assert lab.containers(service.process.pid) == set(), "the next service has reaped them"
        assert call(aws, made, {"still": "here"}) == {"still": "here"}
    with Store(store) as history:
        kept = [each for each in history.list(limit=10) if each.kind == "serve"]
        assert sum(each.invocations for each in kept) >= finished + 1
