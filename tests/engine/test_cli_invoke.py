"""The commands as a user has them, with real containers below."""

from __future__ import annotations

import json
import re
import zipfile
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import Lab

ECHO = """
    import os
    def handler(event, context):
        print("printed by the function")
        if isinstance(event, dict) and event.get("raise"):
            raise ValueError("boom")
        if isinstance(event, dict) and event.get("exit"):
            os._exit(1)
        return {"event": event, "variable": os.environ.get("TABLE")}
"""
REPORT = re.compile(
    r"^REPORT RequestId: [0-9a-f-]{36}\tDuration: \d+\.\d\d ms\tBilled Duration: \d+ ms\tMemory Size: \d+ MB\t"
    r"Max Memory Used: \d+ MB\t(Init Duration: \d+\.\d\d ms\t)?$",
    re.MULTILINE,
)


@pytest.fixture(scope="module")
def echo(lab: Lab) -> list[Any]:
    return [lab.function({"app.py": ECHO}), "--runtime", "python3.13", "--handler", "app.handler", "--no-pull"]


def test_data_on_stdout_and_everything_else_on_stderr(lab: Lab, echo: list[Any]) -> None:
    done = lab.cli("invoke", *echo, "-e", '{"a": "grüße"}', "--env", "TABLE=orders", "-m", 512)
    assert json.loads(done.stdout) == {"event": {"a": "grüße"}, "variable": "orders"}
    assert "printed by the function" in done.stderr
    assert len(REPORT.findall(done.stderr)) == 1
    assert "peak RSS" in done.stderr
    assert "\x1b" not in done.stderr


def test_json_is_one_document_and_nothing_else(lab: Lab, echo: list[Any]) -> None:
    done = lab.cli("invoke", *echo, "--json", "-n", 3, "-e", "1", "-e", "2", "-m", 512)
    found = json.loads(done.stdout)
    assert found["kind"] == "invoke"
    assert found["host"]["engine_version"]
    assert [each["response"]["event"] for each in found["invocations"]] == [1, 2, 1], "events are used in turn"
    assert [each["cold"] for each in found["invocations"]] == [True, False, False]
    assert len({each["sandbox_id"] for each in found["invocations"]}) == 1
    assert "printed by the function" not in done.stdout.partition('"log_tail"')[0]


@pytest.mark.parametrize("more", [(), ("--json",)])
def test_the_exit_code_is_that_of_the_first_failure(lab: Lab, echo: list[Any], more: tuple[str, ...]) -> None:
    done = lab.cli("invoke", *echo, "-n", 3, "-e", "1", "-e", '{"raise": 1}', "-e", '{"exit": 1}', *more, expect=5)
    if more:
        outcomes = [each["outcome"] for each in json.loads(done.stdout)["invocations"]]
        assert outcomes == ["success", "function_error", "runtime_exit"]
    else:
        assert "function_error: ValueError: boom" in done.stderr
        assert json.loads(done.stdout.splitlines()[1])["errorMessage"] == "boom"


def test_an_event_may_come_from_standard_input_or_a_file(lab: Lab, echo: list[Any]) -> None:
    assert json.loads(lab.cli("invoke", *echo, "-e", "-", stdin="[1]").stdout)["event"] == [1]
    folder = lab.function({"event.json": '{"from": "a file"}'})
    assert json.loads(lab.cli("invoke", *echo, "-e", folder / "event.json").stdout)["event"] == {"from": "a file"}


def test_no_event_is_an_empty_object(lab: Lab, echo: list[Any]) -> None:
    assert json.loads(lab.cli("invoke", *echo).stdout)["event"] == {}


def test_layers_lie_at_opt_the_later_over_the_earlier(lab: Lab) -> None:
    source = """
        import greeting
        def handler(event, context):
            return [greeting.WORD, open("/opt/data.txt").read()]
    """
    below = lab.function({"python/greeting.py": "WORD = 'below'\n", "data.txt": "of the first"})
    above = lab.function({"python/greeting.py": "WORD = 'above'\n"})
    function = [lab.function({"app.py": source}), "--runtime", "python3.13", "--handler", "app.handler"]
    done = lab.cli("invoke", *function, "--layer", below, "--layer", above, "--no-pull")
    assert json.loads(done.stdout) == ["above", "of the first"]


def test_a_zip_is_a_function_too(lab: Lab) -> None:
    folder = lab.function({"app.py": "def handler(event, context): return __file__\n"})
    archive = folder / "code.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.write(folder / "app.py", "app.py")
    done = lab.cli("invoke", archive, "--runtime", "python3.13", "--handler", "app.handler", "--no-pull")
    assert json.loads(done.stdout) == "/var/task/app.py"


def test_a_function_of_a_sam_template_end_to_end(lab: Lab) -> None:
    template = """
        Transform: AWS::Serverless-2016-10-31
        Parameters:
          Stage: {Type: String, Default: dev}
        Globals:
          Function: {Runtime: python3.13, Timeout: 7, MemorySize: 256}
        Resources:
          Hello:
            Type: AWS::Serverless::Function
            Properties:
              CodeUri: src/
              Handler: app.handler
              Environment: {Variables: {TABLE: !Sub "orders-${Stage}"}}
    """
    folder = lab.function({"template.yaml": template, "src/app.py": ECHO})
    found = lab.document("invoke", f"{folder}/template.yaml:Hello", "--no-pull")
    (record,) = found["invocations"]
    assert record["response"]["variable"] == "orders-dev"
    assert record["memory_mb"] == 256
    assert found["function"]["timeout_s"] == 7


def test_an_image_is_a_function(lab: Lab) -> None:
    images = lab.document("images", "list")["findings"]["images"]
    base = next(each["chosen"]["reference"] for each in images if each["runtime"] == "python3.13")
    folder = lab.function({"app.py": "def handler(event, context): return 'from the image'\n"})
    (folder / "Dockerfile").write_text(f'FROM {base}\nCOPY app.py /var/task/\nCMD ["app.handler"]\n')
    name = "lambda-harness-test/image-function:latest"
    lab.engine.docker.images.build(path=str(folder), tag=name, rm=True)
    try:
        assert json.loads(lab.cli("invoke", f"image:{name}").stdout) == "from the image"
        found = lab.document("invoke", f"image:{name}", "--handler", "app.nothing", expect=5)
        assert found["invocations"][0]["error_type"] == "Runtime.HandlerNotFound"
    finally:
        lab.engine.docker.images.remove(name, force=True)


def test_an_image_that_is_not_there_is_named(lab: Lab) -> None:
    done = lab.cli("invoke", "image:lambda-harness-test/no-such-image:1", "--no-pull", expect=4)
    assert "no-such-image" in done.stderr


def test_an_image_that_is_no_lambda_image_is_refused_in_words(lab: Lab) -> None:
    images = lab.document("images", "list")["findings"]["images"]
    base = next(each["chosen"]["reference"] for each in images if each["runtime"] == "python3.13")
    folder = lab.function({"Dockerfile": f'FROM {base}\nENTRYPOINT ["/bin/true"]\nCMD []\n'})
    name = "lambda-harness-test/no-lambda:latest"
    lab.engine.docker.images.build(path=str(folder), tag=name, rm=True)
    try:
        found = lab.document("invoke", f"image:{name}", "--timeout", "2", expect=5)
        assert found["invocations"][0]["outcome"] in ("init_error", "runtime_exit")
    finally:
        lab.engine.docker.images.remove(name, force=True)


def test_doctor_tells_what_is_here(lab: Lab) -> None:
    found = lab.document("doctor")
    assert found["host"]["cgroup_version"] in (1, 2)
    whats = [each["what"] for each in found["findings"]["checks"]]
    assert whats[:3] == ["engine", "vantage", "cgroup"]
    assert "image python3.13" in whats
    assert "engine: " in lab.cli("doctor").stdout


def test_images_list_says_what_serves_each_runtime_and_why(lab: Lab) -> None:
    lines = lab.cli("images", "list").stdout.splitlines()
    assert lines[0].split() == ["runtime", "image", "size", "why"]
    assert any(line.startswith("python3.13 ") for line in lines)


def test_images_build_keeps_what_has_not_changed(lab: Lab) -> None:
    assert lab.cli("images", "build", "python3.13").stdout.startswith("python3.13  ")


def test_clean_says_when_there_is_nothing(lab: Lab) -> None:
    lab.cli("clean")
    assert "nothing to remove" in lab.cli("clean").stderr
