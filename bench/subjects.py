"""What is compared: the bare RIE under `docker run`, and SAM CLI. Starts, times and removes; knows no statistics.

Each subject is a context manager: on leaving, whatever happened, nothing of it is left. Containers and images carry the
harness's owner labels, so what a killed benchmark leaves is removed by the next `lambda-harness` command or benchmark.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from harness import environment
from harness.engine import parts
from harness.engine.client import LABEL_OWNER, owner, owner_is_gone, owner_labels
from harness.engine.relay_mount import RIE_PATH
from harness.errors import EngineError, NotMeasurable
from harness.function import DirectoryCode, Function
from harness.function.model import DEFAULT_REGION
from harness.rie import INVOCATION_PATH
from harness.tiers import tier

EVENT = b'{"name": "bench"}'
SAM_VERSION = "1.170.0"
SAM_LOGICAL_ID = "Hello"
_SAM_RIE = "/var/rapid/aws-lambda-rie"
"""Where SAM CLI looks for the RIE in the images that it starts."""

_RIE_PORT = 8080
_POLL_S = 0.002
_START_S = 60.0
_STOP_S = 30.0
_MIB = 1024 * 1024


# -- commands -------------------------------------------------------------------------------------------------------------


def command(
    *words: str,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: str = "",
    timeout_s: float = 120.0,
    check: bool = True,
) -> str:
    """Run a command to its end and return its stdout; `EngineError` with its last line where it fails.

    On Ctrl-C it is asked to end and gets the time to tidy up; `subprocess.run` would kill it after a quarter of a second.
    """
    process = subprocess.Popen(
        words,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=None if env is None else dict(env),
        cwd=cwd,
        start_new_session=True,
    )
    try:
        out, errors = process.communicate(stdin, timeout=timeout_s)
    except BaseException:
        stop(process, signal.SIGTERM)
        raise
    if check and process.returncode != 0:
        lines = (errors or out).strip().splitlines() or [f"exit code {process.returncode}"]
        raise EngineError(f"{Path(words[0]).name} {' '.join(words[1:3])} failed: {lines[-1][:300]}")
    return out


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def stop(process: subprocess.Popen[str], first: signal.Signals) -> None:
    """End a process and what it started: politely, then not."""
    for number in (first, signal.SIGKILL):
        if process.poll() is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_S)


# -- the bare RIE ---------------------------------------------------------------------------------------------------------


class Raw:
    """`docker run` of an image with its own entrypoint and the bare RIE, and plain requests to it.

    The container has what a sandbox of the harness has for safety (user, read-only root, no capabilities, limits of
    processes, files and memory, cpuset) and the same RIE. It has no CPU quota, no /tmp of an exact size and no log.
    """

    def __init__(self, function: Function, image_id: str, cpus: tuple[int, ...]) -> None:
        assert isinstance(function.code, DirectoryCode)  # noqa: S101  # the benchmark's own function
        self.name = f"lambda-harness-bench-{uuid.uuid4().hex[:12]}"
        self.published = free_port()
        self._address = ""
        self._connections: dict[tuple[str, int], http.client.HTTPConnection] = {}
        variables = environment.variables(function, log_stream="bench")
        variables["AWS_LAMBDA_FUNCTION_TIMEOUT"] = str(function.timeout_s)
        memory = str(tier(function.memory_mb).memory_bytes + 64 * _MIB)
        rie = parts.rie_binary(function.architecture)
        self._run = [
            *("docker", "run", "--detach", "--name", self.name, "--publish", f"127.0.0.1:{self.published}:{_RIE_PORT}"),
            *("--user", "993:990", "--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
            *("--pids-limit", "1024", "--ulimit", "nofile=1024:1024", "--cpuset-cpus", ",".join(map(str, cpus))),
            *("--memory", memory, "--memory-swap", memory, "--log-driver", "none", "--volume", "/tmp"),
            *("--volume", f"{function.code.path}:/var/task:ro", "--volume", f"{rie}:{RIE_PATH}:ro"),
            *(word for each in owner_labels("bench").items() for word in ("--label", "=".join(each))),
            *(word for each in variables.items() for word in ("--env", "=".join(each))),
            *(image_id, str(function.handler)),
        ]

    def __enter__(self) -> Raw:
        try:
            command(*self._run)
            self._first_answer()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def remove(self) -> None:
        for connection in self._connections.values():
            connection.close()
        self._connections.clear()
        command("docker", "rm", "--force", "--volumes", self.name, check=False)

    def _first_answer(self) -> None:
        """The port is there before the RIE listens: what is refused or cut off was never taken, so asking again is safe."""
        deadline = time.monotonic() + _START_S
        while True:
            try:
                self.request()
                return
            except (OSError, http.client.HTTPException):
                if time.monotonic() > deadline:
                    raise EngineError(f"the RIE in {self.name} did not answer within {_START_S:.0f} s") from None
                time.sleep(_POLL_S)

    def request(self) -> float:
        """One request through the published port, over a connection that is kept; in ms."""
        return self._ask("127.0.0.1", self.published)

    def request_directly(self) -> float:
        """One request to the container's own address, over a connection that is kept; in ms."""
        if not self._address:
            self._address = command(
                "docker", "inspect", "--format", "{{.NetworkSettings.IPAddress}}", self.name
            ).strip()
        return self._ask(self._address, _RIE_PORT)

    def _ask(self, host: str, port: int) -> float:
        connection = self._connections.get((host, port))
        if connection is None:
            connection = self._connections[host, port] = http.client.HTTPConnection(host, port, timeout=60)
        try:
            begin = time.perf_counter()
            _post(connection, INVOCATION_PATH)
            return (time.perf_counter() - begin) * 1e3
        except BaseException:
            self._connections.pop((host, port)).close()
            raise

    def curl(self) -> float:
        """The whole of a `curl` command; in ms."""
        begin = time.perf_counter()
        url = f"http://127.0.0.1:{self.published}{INVOCATION_PATH}"
        command("curl", "--silent", "--fail", "--data-binary", EVENT.decode(), url)
        return (time.perf_counter() - begin) * 1e3


def _post(connection: http.client.HTTPConnection, path: str) -> None:
    connection.request("POST", path, EVENT, {"content-type": "application/json"})
    answer = connection.getresponse()
    body = answer.read()
    if answer.status != 200 or b"hello" not in body:
        raise EngineError(f"the function answered {answer.status}: {body[:200].decode(errors='replace')}")


def whole_docker_command(function: Function, image_id: str, cpus: tuple[int, ...]) -> float:
    """`docker run`, the first response, `docker rm`; in ms."""
    begin = time.perf_counter()
    with Raw(function, image_id, cpus):
        pass
    return (time.perf_counter() - begin) * 1e3


# -- SAM CLI --------------------------------------------------------------------------------------------------------------


def _sam_home() -> Path:
    return parts.cache_dir() / "bench" / f"sam-cli-{SAM_VERSION}"


def install_sam(progress: Callable[[str], None]) -> Path:
    """SAM CLI in an environment of its own in the user's cache, installed once; `NotMeasurable` where that fails."""
    home = _sam_home()
    sam, complete = home / "bin" / "sam", home / "complete"
    if complete.is_file():
        return sam
    progress(f"installing SAM CLI {SAM_VERSION} into {home}")
    shutil.rmtree(home, ignore_errors=True)
    home.parent.mkdir(parents=True, exist_ok=True)
    try:
        command(sys.executable, "-m", "venv", str(home))
        pip = (str(home / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
        command(*pip, f"aws-sam-cli=={SAM_VERSION}", timeout_s=900)
    except (EngineError, OSError, subprocess.TimeoutExpired) as error:
        shutil.rmtree(home, ignore_errors=True)
        raise NotMeasurable(f"SAM CLI could not be installed: {error}") from error
    complete.touch()
    return sam


@dataclass(frozen=True, kw_only=True)
class Sam:
    """SAM CLI, ready to invoke the function in the image that the other subjects use too."""

    executable: Path
    folder: Path
    image: str
    env: Mapping[str, str]

    def _options(self) -> tuple[str, ...]:
        # With an image of our own name nothing is tagged as AWS's, which would change what the harness chooses.
        return ("--template", str(self.folder / "template.yaml"), "--skip-pull-image", "--invoke-image", self.image)

    def invoke(self) -> float:
        """The whole of `sam local invoke`; in ms."""
        words = (str(self.executable), "local", "invoke", SAM_LOGICAL_ID, *self._options())
        begin = time.perf_counter()
        out = command(*words, "--event", str(self.folder / "event.json"), env=self.env, cwd=self.folder)
        taken = (time.perf_counter() - begin) * 1e3
        if "hello" not in out:
            raise EngineError(f"sam local invoke answered {out[:200]!r}")
        return taken

    @contextlib.contextmanager
    def service(self) -> Iterator[SamService]:
        """`sam local start-lambda` with warm containers, answering."""
        port = free_port()
        words = (str(self.executable), "local", "start-lambda", *self._options())
        with (self.folder / "service.log").open("w") as log:
            process = subprocess.Popen(
                [*words, "--warm-containers", "EAGER", "--port", str(port)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                text=True,
                env=dict(self.env),
                cwd=self.folder,
                start_new_session=True,
            )
        try:
            service = SamService(port=port)
            service.wait(process, self.folder / "service.log")
            yield service
        finally:
            stop(process, signal.SIGINT)


@dataclass(frozen=True, kw_only=True)
class SamService:
    """A running `sam local start-lambda`."""

    port: int

    def wait(self, process: subprocess.Popen[str], log: Path) -> None:
        deadline = time.monotonic() + _START_S
        while True:
            try:
                self.request()
                return
            except ConnectionError as error:
                if process.poll() is not None or time.monotonic() > deadline:
                    last = (log.read_text().strip().splitlines() or ["it said nothing"])[-1]
                    raise EngineError(f"sam local start-lambda does not answer: {last[:300]}") from error
                time.sleep(0.1)

    def request(self) -> float:
        """One request over a connection of its own: the service closes each after its answer; in ms."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            begin = time.perf_counter()
            _post(connection, f"/2015-03-31/functions/{SAM_LOGICAL_ID}/invocations")
            return (time.perf_counter() - begin) * 1e3
        finally:
            connection.close()


@contextlib.contextmanager
def sam(executable: Path, function: Function, image_reference: str, folder: Path) -> Iterator[Sam]:
    """SAM CLI with an image made for it; on leaving, the image and every container made of it are removed."""
    _remove_orphans()
    repository = f"lambda-harness-bench-{uuid.uuid4().hex[:12]}"
    image = f"{repository}:rapid-{function.architecture}"  # the name that SAM CLI makes of any image of this repository
    context, home = folder / "image", folder / "sam-home"
    context.mkdir()
    home.mkdir()
    shutil.copyfile(parts.rie_binary(function.architecture), context / "rie")
    (context / "rie").chmod(0o755)
    # Containers inherit the label, and with it the harness's clean-up.
    (context / "Dockerfile").write_text(
        f'FROM {image_reference}\nLABEL {LABEL_OWNER}="{owner()}"\nCOPY rie {_SAM_RIE}\n'
    )
    assert isinstance(function.code, DirectoryCode)  # noqa: S101  # the benchmark's own function
    properties = {
        "CodeUri": str(function.code.path),
        "Handler": function.handler,
        "Runtime": function.runtime,
        "MemorySize": function.memory_mb,
        "Timeout": function.timeout_s,
        "Architectures": [function.architecture],
    }
    resource = {"Type": "AWS::Serverless::Function", "Properties": properties}
    template = {"Transform": "AWS::Serverless-2016-10-31", "Resources": {SAM_LOGICAL_ID: resource}}
    (folder / "template.yaml").write_text(json.dumps(template))  # JSON is YAML
    (folder / "event.json").write_bytes(EVENT)
    # A version check that was made just now is not made again: nothing but the engine is talked to.
    (home / "metadata.json").write_text(json.dumps({"lastVersionCheck": time.time()}))
    # With keys, SAM CLI would ask AWS whose they are, and wait for the answer: it is given none.
    env = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")} | {
        "SAM_CLI_TELEMETRY": "0",
        "__SAM_CLI_APP_DIR": str(home),
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_DEFAULT_REGION": DEFAULT_REGION,
    }
    try:
        command("docker", "build", "--quiet", "--tag", image, str(context), env={**os.environ, "DOCKER_BUILDKIT": "0"})
        yield Sam(executable=executable, folder=folder, image=image, env=env)
    finally:
        _remove_image(image)


def _remove_image(image: str) -> None:
    """An image of ours and the containers made of it."""
    for container in command("docker", "ps", "--all", "--quiet", "--filter", f"ancestor={image}", check=False).split():
        command("docker", "rm", "--force", "--volumes", container, check=False)
    command("docker", "rmi", "--force", image, check=False)


def _remove_orphans() -> None:
    """Images of benchmarks that were killed."""
    form = "{{.Repository}}:{{.Tag}}"
    for image in command("docker", "images", "--filter", f"label={LABEL_OWNER}", "--format", form).split():
        if re.fullmatch(r"lambda-harness-bench-[0-9a-f]{12}:rapid-\w+", image) is None:
            continue
        label = f'{{{{index .Config.Labels "{LABEL_OWNER}"}}}}'
        if owner_is_gone(command("docker", "image", "inspect", "--format", label, image, check=False).strip()):
            _remove_image(image)
