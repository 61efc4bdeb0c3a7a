"""The offline images, for real: built, small, and keeping the contract of AWS's images under the sandbox's restrictions."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import httpx
import pytest
from conftest import PATIENCE, WAIT_S
from docker.models.containers import Container

from harness.engine import build, images, parts
from harness.engine.client import EngineFacts
from harness.engine.resolved import MACHINES, ImageSource
from harness.kernel import is_this_machine

MAX_SIZE_BYTES = 260_000_000
INVOKE = "/2015-03-31/functions/function/invocations"
PYTHON = "python3.13"
NODE = ("nodejs22.x", "nodejs24.x")


@pytest.fixture(scope="module")
def client() -> Iterator[docker.DockerClient]:
    found = docker.from_env(version="auto")
    yield found
    found.close()


@dataclass(frozen=True)
class Function:
    """A running container of an image, as the harness restricts it."""

    container: Container
    url: str

    def invoke(self, event: Any = None) -> httpx.Response:
        return httpx.post(self.url, json=event if event is not None else {}, timeout=60 * PATIENCE)

    def output(self) -> str:
        return self.container.logs().decode()


Start = Callable[..., Any]


@pytest.fixture
def start(client: docker.DockerClient, facts: EngineFacts, tmp_path: Path) -> Start:
    """Starts an offline image with these files in /var/task, and removes it at the end of the block."""
    if not is_this_machine(facts.kernel, facts.memory_bytes):
        pytest.skip("the files are mounted, and the engine sees other ones: it runs on another machine")

    @contextmanager
    def started(
        runtime: str,
        handler: str,
        files: dict[str, str],
        *,
        environment: dict[str, str] | None = None,
        layer: dict[str, str] | None = None,
    ) -> Iterator[Function]:
        image = build.build(client, runtime, _machine(client))
        task, opt = _written(tmp_path / "task", files), _written(tmp_path / "opt", layer or {})
        container = client.containers.run(
            image.reference,
            [handler],
            detach=True,
            read_only=True,
            user="993:990",
            cap_drop=["ALL"],
            security_opt=["no-new-privileges"],
            tmpfs={"/tmp": "mode=1777"},
            volumes={str(task): {"bind": "/var/task", "mode": "ro"}, str(opt): {"bind": "/opt", "mode": "ro"}},
            ports={"8080/tcp": ("127.0.0.1", 0)},
            environment={"AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "512", **(environment or {})},
        )
        try:
            yield Function(container, _listening(container))
        finally:
            container.remove(force=True, v=True)

    return started


def _machine(client: docker.DockerClient) -> str:
    return MACHINES[client.version()["Arch"]]


def _written(folder: Path, files: dict[str, str]) -> Path:
    folder.mkdir()
    folder.chmod(0o755)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        path.chmod(0o755)
    return folder


def _listening(container: Container) -> str:
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        container.reload()
        if published := container.ports.get("8080/tcp"):
            url = f"http://127.0.0.1:{published[0]['HostPort']}"
            try:
                httpx.get(url, timeout=5 * PATIENCE)  # 404 from the emulator: it listens
                return url + INVOKE
            except httpx.TransportError:
                pass
        assert container.status in {"created", "running"}, container.logs().decode()
        time.sleep(0.02)
    raise AssertionError(container.logs().decode())


@pytest.mark.parametrize("runtime", build.runtimes())
def test_an_offline_image_is_small_and_says_what_it_holds(client: docker.DockerClient, runtime: str) -> None:
    machine = _machine(client)
    image = build.build(client, runtime, machine)
    assert image.size_bytes < MAX_SIZE_BYTES
    assert (image.runtime, image.architecture, image.source) == (runtime, machine, ImageSource.OFFLINE)
    labels = client.images.get(image.reference).labels
    assert labels["lambda-harness.image"] == runtime
    assert "aws-sam-cli" in labels["lambda-harness.parts"]


def test_what_has_not_changed_is_not_built_again(client: docker.DockerClient) -> None:
    first = build.build(client, "provided.al2023", _machine(client))
    said: list[str] = []
    assert build.build(client, "provided.al2023", _machine(client), progress=said.append) == first
    assert said == []


def test_a_runtime_resolves_to_an_image_that_is_in_the_engine(client: docker.DockerClient) -> None:
    found = images.resolve(client, PYTHON, _machine(client), pull=False)
    assert client.images.get(found.image_id).id == found.image_id


def test_the_pinned_emulator_is_a_program_that_starts(client: docker.DockerClient) -> None:
    binary = parts.rie_binary(_machine(client))
    assert binary.read_bytes()[:4] == b"\x7fELF"
    assert parts.rie_version()


PYTHON_HANDLER = """
import json, os, pwd, sqlite3, ssl, sys, zoneinfo
def handler(event, context):
    if event.get("fail"):
        raise ValueError("naïve")
    print("grüße ✓")
    return {
        "path": sys.path, "environment": dict(os.environ), "user": pwd.getpwuid(os.getuid()).pw_name, "cwd": os.getcwd(),
        "zone": str(zoneinfo.ZoneInfo("Europe/Berlin")), "version": list(sys.version_info[:2]),
        "memory": context.memory_limit_in_mb,
    }
"""


def test_python_answers_under_the_restrictions_of_a_sandbox(start: Start) -> None:
    with start(PYTHON, "app.handler", {"app.py": PYTHON_HANDLER}) as function:
        said = function.invoke().json()
        assert said["version"] == [3, 13]
        assert (said["user"], said["cwd"], said["memory"]) == ("sbx_user1051", "/var/task", "512")
        assert said["path"][:4] == [
            "/var/task",
            "/opt/python/lib/python3.13/site-packages",
            "/opt/python",
            "/var/runtime",
        ]
        assert said["environment"]["AWS_EXECUTION_ENV"] == "AWS_Lambda_python3.13"
        assert said["environment"]["LAMBDA_TASK_ROOT"] == "/var/task"
        assert "grüße ✓" in function.output()


def test_an_exception_in_python_is_lambda_error_json_and_the_next_request_is_served(start: Start) -> None:
    with start(PYTHON, "app.handler", {"app.py": PYTHON_HANDLER}) as function:
        failed = function.invoke({"fail": True}).json()
        assert (failed["errorType"], failed["errorMessage"]) == ("ValueError", "naïve")
        assert function.invoke().status_code == 200


def test_a_python_module_that_cannot_be_imported_is_an_init_error(start: Start) -> None:
    with start(PYTHON, "app.handler", {"app.py": "import nothing_of_this_name"}) as function:
        assert function.invoke().status_code == 502
        assert "Runtime.ImportModuleError" in function.output()


def test_python_code_comes_before_a_layer(start: Start) -> None:
    code = "import both, layered\ndef handler(event, context): return [both.place, layered.place]"
    layer = {
        "python/both.py": "place = 'layer'",
        "python/layered.py": "place = 'layer'",
        "python/lib/python3.13/site-packages/layered.py": "place = 'site-packages of the layer'",
    }
    with start(PYTHON, "app.handler", {"app.py": code, "both.py": "place = 'code'"}, layer=layer) as function:
        assert function.invoke().json() == ["code", "site-packages of the layer"]


def test_a_module_of_the_function_cannot_break_the_client_by_its_name(start: Start) -> None:
    files = {"app.py": "def handler(event, context): return 1", "simplejson.py": "broken", "logging.py": "broken"}
    with start(PYTHON, "app.handler", files) as function:
        assert function.invoke().json() == 1


WRAPPER = '#!/bin/sh\nexport WRAPPED=yes\nexec "$@"\n'


@pytest.mark.parametrize(
    ("runtime", "file", "code"),
    [
        (PYTHON, "app.py", "import os\ndef handler(event, context): return os.environ['WRAPPED']"),
        (NODE[0], "app.mjs", "export const handler = async () => process.env.WRAPPED;"),
    ],
)
def test_a_wrapper_script_starts_the_runtime(start: Start, runtime: str, file: str, code: str) -> None:
    environment = {"AWS_LAMBDA_EXEC_WRAPPER": "/opt/wrapper"}
    with start(runtime, "app.handler", {file: code}, environment=environment, layer={"wrapper": WRAPPER}) as function:
        assert function.invoke().json() == "yes"


def test_a_wrapper_script_that_is_missing_is_named(start: Start) -> None:
    environment = {"AWS_LAMBDA_EXEC_WRAPPER": "/opt/nowhere"}
    with start(PYTHON, "app.handler", {"app.py": PYTHON_HANDLER}, environment=environment) as function:
        assert function.invoke().status_code == 502
        assert "/opt/nowhere does not exist" in function.output()


NODE_HANDLER = """
export const handler = async (event) => {
  if (event.fail) throw new TypeError("naïve");
  console.log("grüße ✓");
  const { version, execArgv: options, env: environment } = process;
  return { version, options, environment, gc: typeof gc, uid: process.getuid() };
};
"""


@pytest.mark.parametrize("runtime", NODE)
def test_node_answers_under_the_restrictions_of_a_sandbox(start: Start, runtime: str) -> None:
    with start(runtime, "app.handler", {"app.mjs": NODE_HANDLER}) as function:
        said = function.invoke().json()
        assert said["version"].startswith(f"v{runtime[6:8]}.")
        assert (said["uid"], said["gc"]) == (993, "function")
        # 512 MB: a tenth for the young generation, half of it a semi-space, and the rest for the old generation.
        assert {"--max-semi-space-size=25", "--max-old-space-size=461", "--expose-gc"} <= set(said["options"])
        assert said["environment"]["AWS_EXECUTION_ENV"] == f"AWS_Lambda_{runtime}"
        assert said["environment"]["NODE_PATH"].startswith(
            f"/opt/nodejs/node{runtime[6:8]}/node_modules:/opt/nodejs/node_modules:"
        )
        assert "grüße ✓" in function.output()


@pytest.mark.parametrize("runtime", NODE)
def test_an_exception_in_node_is_lambda_error_json(start: Start, runtime: str) -> None:
    with start(runtime, "app.handler", {"app.mjs": NODE_HANDLER}) as function:
        failed = function.invoke({"fail": True}).json()
        assert (failed["errorType"], failed["errorMessage"]) == ("TypeError", "naïve")
        assert function.invoke().status_code == 200


@pytest.mark.parametrize("runtime", NODE)
@pytest.mark.parametrize("file", ["app.cjs", "app.js"])
def test_node_takes_commonjs_handlers_with_modules_out_of_layers(start: Start, runtime: str, file: str) -> None:
    code = "const { place } = require('layered'); exports.handler = async () => place;"
    layer = {"nodejs/node_modules/layered/index.js": "exports.place = 'layer';"}
    with start(runtime, "app.handler", {file: code}, layer=layer) as function:
        assert function.invoke().json() == "layer"


@pytest.mark.parametrize("runtime", NODE)
def test_a_node_module_that_cannot_be_imported_is_an_init_error(start: Start, runtime: str) -> None:
    code = "import 'nothing-of-this-name'; export const handler = async () => 1;"
    with start(runtime, "app.handler", {"app.mjs": code}) as function:
        answer = function.invoke()
        assert answer.status_code == 502
        assert "nothing-of-this-name" in answer.text


REQUIRES_ESM = (
    "exports.handler = async () => { try { return require('./other.mjs').word; } catch (e) { return e.code; } };"
)


@pytest.mark.parametrize(
    ("runtime", "options", "answer"),
    [
        ("nodejs22.x", "", "ERR_REQUIRE_ESM"),
        ("nodejs22.x", "--experimental-require-module", "esm"),
        ("nodejs24.x", "", "esm"),
    ],
)
def test_require_of_an_es_module_is_off_in_node_22_unless_the_function_asks(
    start: Start, runtime: str, options: str, answer: str
) -> None:
    files = {"app.cjs": REQUIRES_ESM, "other.mjs": "export const word = 'esm';"}
    with start(runtime, "app.handler", files, environment={"NODE_OPTIONS": options}) as function:
        assert function.invoke().json() == answer


# A runtime in Debian's own shell: it takes one event after the other from the Runtime API, with bash's /dev/tcp.
SHELL_RUNTIME = r"""#!/bin/bash
api=$AWS_LAMBDA_RUNTIME_API
while :; do
  exec 3<> "/dev/tcp/${api%:*}/${api#*:}"
  printf 'GET /2018-06-01/runtime/invocation/next HTTP/1.0\r\nHost: %s\r\n\r\n' "$api" >&3
  while IFS= read -r line <&3 && line=${line%$'\r'} && [ -n "$line" ]; do
    case ${line,,} in lambda-runtime-aws-request-id:*) id=${line##*: } ;; esac
  done
  exec 3>&-
  body="\"$PLACE $_HANDLER\""
  exec 3<> "/dev/tcp/${api%:*}/${api#*:}"
  printf 'POST /2018-06-01/runtime/invocation/%s/response HTTP/1.0\r\nHost: %s\r\nContent-Length: %d\r\n\r\n%s' \
    "$id" "$api" "${#body}" "$body" >&3
  cat <&3 > /dev/null
  exec 3>&-
done
"""


@pytest.mark.parametrize(
    ("code", "layer", "answer"),
    [
        ({"bootstrap": SHELL_RUNTIME.replace("$PLACE", "code")}, {}, "code my.handler"),
        ({}, {"bootstrap": SHELL_RUNTIME.replace("$PLACE", "layer")}, "layer my.handler"),
    ],
)
def test_provided_starts_the_bootstrap_of_the_code_or_of_a_layer(
    start: Start, code: dict[str, str], layer: dict[str, str], answer: str
) -> None:
    with start("provided.al2023", "my.handler", code, layer=layer) as function:
        assert function.invoke().json() == answer


def test_provided_without_a_bootstrap_says_where_it_looked(start: Start) -> None:
    with start("provided.al2023", "my.handler", {}) as function:
        assert function.invoke().status_code == 502
        assert "no bootstrap in /var/task or /opt" in function.output()


USES_RUNTIME_API = r"""
set -- app.handler
printf '#!/bin/sh\necho started $_HANDLER' > /var/runtime/bootstrap
chmod +x /var/runtime/bootstrap
. /lambda-entrypoint.sh
"""


@pytest.mark.parametrize("runtime", build.runtimes())
def test_the_entrypoint_uses_a_runtime_api_that_is_there_already(client: docker.DockerClient, runtime: str) -> None:
    image = build.build(client, runtime, _machine(client))
    configured = client.images.get(image.reference).attrs["Config"]
    assert configured["Entrypoint"] == ["/lambda-entrypoint.sh"]
    assert configured["User"] == ""
    assert configured["WorkingDir"] == "/var/task"
    output = client.containers.run(
        image.reference,
        ["-c", USES_RUNTIME_API],
        entrypoint="/bin/sh",
        environment={"AWS_LAMBDA_RUNTIME_API": "127.0.0.1:9"},
        remove=True,
    )
    assert output.decode().strip() == "started app.handler"


def test_the_survey_names_an_offline_image_that_was_built(client: docker.DockerClient) -> None:
    tag = build.build(client, PYTHON, _machine(client)).reference
    found = next(one for one in images.survey(client) if one.runtime == PYTHON)
    offline = next(one for one in found.candidates if one.source is ImageSource.OFFLINE)
    assert (offline.reference, offline.present) == (tag, True)
