"""What may be named as a function, and what Lambda would refuse."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from harness.errors import InvalidFunction
from harness.function import DirectoryCode, ImageCode, Overrides, ZipCode, host_architecture, load

PYTHON: dict[str, Any] = {"runtime": "python3.13", "handler": "app.handler"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "my_function"
    made.mkdir()
    (made / "app.py").write_text("def handler(event, context): return event\n")
    return made


def manifest(folder: Path, text: str) -> str:
    (folder / "function.toml").write_text(text)
    return str(folder)


def refusal(source: str, **overrides: Any) -> str:
    """The message and the remedy of the error that loading ends with."""
    with pytest.raises(InvalidFunction) as caught:
        load(source, Overrides(**overrides))
    assert caught.value.exit_code == 3
    assert caught.value.remedy
    return f"{caught.value} | {caught.value.remedy}"


def test_a_plain_directory_needs_only_runtime_and_handler_and_gets_lambdas_defaults(folder: Path) -> None:
    function = load(str(folder), Overrides(**PYTHON))
    assert function.code == DirectoryCode(path=folder)
    assert (function.memory_mb, function.timeout_s, function.tmp_mb) == (128, 3, 512)
    assert (function.name, function.runtime, function.handler) == ("my_function", "python3.13", "app.handler")
    assert function.architecture == host_architecture()
    assert (function.environment, function.layers, function.events, function.image) == ({}, (), (), None)
    assert function.source == str(folder)


def test_function_toml_gives_every_setting_with_paths_relative_to_itself(folder: Path) -> None:
    (folder / "events").mkdir()
    (folder / "events" / "one.json").write_text("{}")
    (folder / "src").mkdir()
    (folder / "layer").mkdir()
    source = manifest(
        folder,
        """
        name = "orders"
        description = "what it shows"
        runtime = "nodejs22.x"
        handler = "index.handler"
        memory_mb = 1769
        timeout_s = 900
        tmp_mb = 10240
        architecture = "arm64"
        code = "src"
        layers = ["layer"]
        image = "mine:1"
        events = ["events/one.json"]
        receivers = ["cloudwatch", "xray"]
        [environment]
        TABLE = "orders=1"
        """,
    )
    function = load(source)
    assert (function.name, function.description) == ("orders", "what it shows")
    assert (function.runtime, function.handler) == ("nodejs22.x", "index.handler")
    assert (function.memory_mb, function.timeout_s, function.tmp_mb) == (1769, 900, 10240)
    assert (function.architecture, function.image) == ("arm64", "mine:1")
    assert function.code == DirectoryCode(path=folder / "src")
    assert function.layers == (folder / "layer",)
    assert function.events == (folder / "events" / "one.json",)
    assert function.receivers == ("cloudwatch", "xray")
    assert function.environment == {"TABLE": "orders=1"}
    assert load(str(folder / "function.toml")).code == function.code


def test_the_command_line_overrides_function_toml_and_adds_to_its_environment(folder: Path) -> None:
    source = manifest(
        folder,
        'runtime = "python3.13"\nhandler = "a.b"\nmemory_mb = 64\n[environment]\nKEEP = "1"\nCHANGE = "2"\n',
    )
    layer = folder / "layer"
    layer.mkdir()
    function = load(
        source,
        Overrides(
            runtime="python3.12",
            handler="c.d",
            memory_mb=256,
            timeout_s=9,
            tmp_mb=600,
            architecture="arm64",
            environment={"CHANGE": "3", "ADD": "4"},
            layers=(layer,),
            image="other",
            name="renamed",
        ),
    )
    assert (function.runtime, function.handler, function.memory_mb) == ("python3.12", "c.d", 256)
    assert (function.timeout_s, function.tmp_mb, function.architecture) == (9, 600, "arm64")
    assert function.environment == {"KEEP": "1", "CHANGE": "3", "ADD": "4"}
    assert (function.layers, function.image, function.name) == ((layer,), "other", "renamed")


def test_a_zip_is_a_function_with_runtime_and_handler(tmp_path: Path) -> None:
    for name in ("pack.zip", "pack.whl"):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("app.py", "")
        function = load(str(tmp_path / name), Overrides(**PYTHON))
        assert function.code == ZipCode(path=tmp_path / name)
        assert function.name == "pack"


def test_an_image_needs_neither_runtime_nor_handler() -> None:
    function = load("image:registry.example/team/Orders.api:1.2@sha256:abc", Overrides(handler="app.handler"))
    assert function.code == ImageCode(reference="registry.example/team/Orders.api:1.2@sha256:abc")
    assert (function.name, function.runtime, function.handler) == ("Orders-api", None, "app.handler")


def test_a_directory_in_a_named_image_needs_no_runtime_and_keeps_its_code(folder: Path) -> None:
    function = load(str(folder), Overrides(image="mine:1"))
    assert (function.image, function.code, function.handler) == ("mine:1", DirectoryCode(path=folder), None)


def test_a_custom_runtime_needs_no_handler(folder: Path) -> None:
    assert load(str(folder), Overrides(runtime="provided.al2023")).handler is None


@pytest.mark.parametrize(
    ("low", "high", "setting"), [(128, 10240, "memory_mb"), (1, 900, "timeout_s"), (512, 10240, "tmp_mb")]
)
def test_sizes_are_held_to_lambdas_bounds(folder: Path, low: int, high: int, setting: str) -> None:
    words = {"memory_mb": "memory size", "timeout_s": "timeout", "tmp_mb": "/tmp"}[setting]
    for good in (low, high):
        assert getattr(load(str(folder), Overrides(**{**PYTHON, setting: good})), setting) == good
    for bad in (low - 1, high + 1, 0, -5):
        message = refusal(str(folder), **PYTHON, **{setting: bad}).split(" | ", maxsplit=1)[0]
        assert words in message
        assert str(bad) in message
        assert str(low) in message
        assert str(high) in message


@pytest.mark.parametrize("value", ["true", "1.5", '"256"', "[1]"])
def test_a_memory_size_that_is_no_whole_number_is_refused_with_its_file(folder: Path, value: str) -> None:
    source = manifest(folder, f"memory_mb = {value}\n")
    assert "function.toml) is not a whole number of MB" in refusal(source, **PYTHON)


@pytest.mark.parametrize(
    ("given", "missing", "present"),
    [
        ({"runtime": "python3.13"}, "the handler of", "--handler"),
        ({"handler": "app.handler"}, "the runtime of", "--runtime"),
        ({}, "the runtime and the handler of", "--runtime and --handler"),
    ],
)
def test_what_is_missing_is_named(folder: Path, given: dict[str, str], missing: str, present: str) -> None:
    said = refusal(str(folder), **given)
    assert missing in said
    assert present in said
    assert str(folder) in said


def test_a_path_that_is_not_there_is_named() -> None:
    assert "/nowhere/at/all" in refusal("/nowhere/at/all", **PYTHON)
    assert "/nowhere/template.yaml" in refusal("/nowhere/template.yaml:Function")
    assert "template.yaml" in refusal("")
    assert "cannot be read" in refusal("x" * 5000, **PYTHON)


def test_a_file_that_is_neither_zip_nor_template_is_refused(folder: Path) -> None:
    assert "app.py" in refusal(str(folder / "app.py"), **PYTHON)
    (folder / "broken.zip").write_text("not a zip")
    assert "broken.zip" in refusal(str(folder / "broken.zip"), **PYTHON)


def test_a_directory_with_a_template_says_how_to_name_its_function(folder: Path) -> None:
    (folder / "template.yaml").write_text("Resources: {}")
    assert "template.yaml:LogicalId" in refusal(str(folder))
    assert load(str(folder), Overrides(**PYTHON)).runtime == "python3.13"


def test_an_unknown_key_is_named_with_its_file_and_a_suggestion(folder: Path) -> None:
    for wrong, right in {
        "memory": "memory_mb",
        "time_out": "timeout_s",
        "Handler": "handler",
        "env": "environment",
    }.items():
        said = refusal(manifest(folder, f"{wrong} = 1\n"))
        assert str(folder / "function.toml") in said
        assert f"unknown key {wrong!r}; did you mean {right!r}?" in said
    assert "did you mean" not in refusal(manifest(folder, "zzz = 1\n"))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('runtime = "a"\nhandler = \nmemory_mb = 1\n', 2),
        ('runtime = "a"\nhandler = "b"\n[environment\n', 3),
        ("a = [\n", 2),
    ],
)
def test_a_mistake_in_toml_is_placed(folder: Path, text: str, line: int) -> None:
    said = refusal(manifest(folder, text))
    assert f"function.toml:{line}: " in said
    assert "(at" not in said


def test_a_function_toml_that_is_no_text_is_refused(folder: Path) -> None:
    (folder / "function.toml").write_bytes(b'name = "\xff"')
    assert "not UTF-8 text (byte 8)" in refusal(str(folder))


def test_a_byte_order_mark_does_no_harm(folder: Path) -> None:
    (folder / "function.toml").write_bytes(b"\xef\xbb\xbf" + b'runtime = "python3.13"\nhandler = "a.b"\n')
    assert load(str(folder)).handler == "a.b"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("environment = 1", "environment is no table"),
        ("[environment]\nPORT = 80", 'PORT = "80"'),
        ("code = 1", "code is 1"),
        ('code = "nowhere"', "nowhere"),
        ('events = "one.json"', "list of texts"),
        ('events = ["nowhere.json"]', "nowhere.json"),
        ('layers = ["nowhere"]', "nowhere"),
        ('layers = ["app.py"]', "neither a directory nor a zip"),
        ("layers = [1]", "list of texts"),
        ('receivers = ["kafka"]', "cloudwatch, xray"),
        ('architecture = "sparc"', "x86_64 or arm64"),
        ("runtime = 3.13", "the runtime is 3.13"),
        ('image = ""', "the image is ''"),
        ('name = "a b"', "function name 'a b'"),
        ('name = "' + "a" * 65 + '"', "1 to 64"),
        ('handler = "a b"', "without spaces"),
        ('handler = "' + "a" * 129 + '"', "128 characters"),
    ],
)
def test_a_bad_setting_is_refused_with_its_file(folder: Path, text: str, word: str) -> None:
    overrides = {name: value for name, value in PYTHON.items() if name not in text}
    said = refusal(manifest(folder, text + "\n"), **overrides)
    assert word in said
    assert "function.toml" in said


@pytest.mark.parametrize(
    "name", ["AWS_REGION", "_HANDLER", "AWS_LAMBDA_RUNTIME_API", "LAMBDA_TASK_ROOT", "AWS_SESSION_TOKEN"]
)
def test_names_that_lambda_reserves_are_refused_by_name(folder: Path, name: str) -> None:
    assert f"{name} is reserved" in refusal(str(folder), **PYTHON, environment={name: "x"})


@pytest.mark.parametrize("name", ["TZ", "LANG", "PATH", "NODE_OPTIONS", "PYTHONPATH", "AWS_XRAY_CONTEXT_MISSING"])
def test_names_that_lambda_sets_but_does_not_reserve_are_taken(folder: Path, name: str) -> None:
    assert load(str(folder), Overrides(**PYTHON, environment={name: "x"})).environment[name] == "x"


@pytest.mark.parametrize("name", ["A", "1A", "A-B", "", "A B", "Ä_B", "A_\n"])
def test_names_that_lambda_does_not_accept_are_refused(folder: Path, name: str) -> None:
    assert repr(name) in refusal(str(folder), **PYTHON, environment={name: "x"})


def test_the_environment_may_take_4_kb_as_json_and_not_a_byte_more(folder: Path) -> None:
    room = 4096 - len(json.dumps({"BIG": "", "SMALL": "1"}, separators=(",", ":")))
    full = {"BIG": "x" * room, "SMALL": "1"}
    assert load(str(folder), Overrides(**PYTHON, environment=full)).environment == full
    said = refusal(str(folder), **PYTHON, environment={**full, "SMALL": "12"})
    assert "4097 bytes" in said
    assert "4 KB" in said
    assert "BIG" in said


def test_a_value_that_no_process_can_be_given_is_refused(folder: Path) -> None:
    assert "NUL" in refusal(str(folder), **PYTHON, environment={"AB": "a\0b"})


def test_lambda_takes_five_layers(folder: Path) -> None:
    layers = tuple(folder / f"layer{number}" for number in range(6))
    for layer in layers:
        layer.mkdir()
    assert load(str(folder), Overrides(**PYTHON, layers=layers[:5])).layers == layers[:5]
    assert "6 layers" in refusal(str(folder), **PYTHON, layers=layers)
    assert "image" in refusal("image:mine", layers=layers[:1])


def test_an_image_without_a_name_is_refused() -> None:
    assert "image name ''" in refusal("image:")


def test_a_directory_whose_name_is_no_function_name_still_has_one(tmp_path: Path) -> None:
    made = tmp_path / "mein schöner.code"
    made.mkdir()
    assert load(str(made), Overrides(**PYTHON)).name == "mein-sch-ner-code"


@pytest.mark.parametrize(
    "sample", sorted((Path(__file__).parents[2] / "sample_functions").glob("*/function.toml")), ids=str
)
def test_every_sample_function_loads_and_names_an_event(sample: Path) -> None:
    function = load(str(sample.parent))
    assert function.description
    assert all(json.loads(event.read_text()) is not None for event in function.events)
    assert function.events
    assert (sample.parent / "README.md").is_file()
