"""Building the offline images from their recipes in ``images/``, and naming them by their content.

A tag holds a hash over everything that goes into the image and is pinned: the recipe's files, the parts, and the same
of the images it stands on. Debian's packages are not pinned: they are what the release has on the day of the build.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
import tomllib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import docker.errors

from harness.engine import parts
from harness.engine.client import ENGINE_FAILURES, LABEL, START_ENGINE
from harness.engine.parts import Progress, recipes_dir, silent
from harness.engine.resolved import MACHINES, ImageSource, ResolvedImage, resolved
from harness.errors import ImageError

REPOSITORY = "lambda-harness"
LABEL_IMAGE = f"{LABEL}.image"
LABEL_ARCHITECTURE = f"{LABEL}.architecture"
LABEL_PARTS = f"{LABEL}.parts"
LABEL_STAGE = f"{LABEL}.stage"

DEBIAN = "debian"
DEBIAN_RELEASE = "trixie"
DEBIAN_IMAGES = (f"debian:{DEBIAN_RELEASE}-slim", f"debian:{DEBIAN_RELEASE}")
_DEBIAN_ARCHITECTURES = {"x86_64": "amd64", "arm64": "arm64"}
_PROXIES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
_BOOTSTRAP_TIMEOUT_S = 900


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one image is built. ``needs`` maps build arguments to the recipes whose images they name."""

    name: str
    folder: str
    runtime: bool
    parts: tuple[str, ...]
    needs: dict[str, str]
    arguments: dict[str, str]


def recipe(name: str) -> Recipe:
    """The recipe in ``images/NAME/recipe.toml``."""
    read = tomllib.loads((recipes_dir() / name / "recipe.toml").read_text(encoding="utf-8"))
    return Recipe(
        name=name,
        folder=read.get("folder", name),
        runtime=read.get("runtime", False),
        parts=tuple(read.get("parts", ())),
        needs=dict(read.get("needs", {})),
        arguments=dict(read.get("arguments", {})),
    )


def runtimes() -> tuple[str, ...]:
    """The runtimes that have a recipe, sorted."""
    found = (path.parent.name for path in recipes_dir().glob("*/recipe.toml"))
    return tuple(sorted(name for name in found if recipe(name).runtime))


def content_tag(runtime: str, architecture: str) -> str:
    """The name of the offline image as its recipe stands now, e.g. ``lambda-harness/python3.13:0f3a9c1d2b4e``."""
    return f"{REPOSITORY}/{runtime}:{_content(runtime, architecture)[:12]}"


def parts_label(name: str, architecture: str) -> str:
    """The pinned versions inside, for the image's label and for people."""
    own = recipe(name)
    found = [parts_label(needed, architecture) for needed in own.needs.values() if needed != DEBIAN]
    return ", ".join([*filter(None, found), *(parts.part(one, architecture).label for one in own.parts)])


def find(client: docker.DockerClient, reference: str) -> dict[str, Any] | None:
    """What the engine knows of a local image; None where it has none of this name."""
    try:
        attributes: dict[str, Any] = client.images.get(reference).attrs
    except docker.errors.ImageNotFound:
        return None
    return attributes


def build(
    client: docker.DockerClient,
    runtime: str,
    architecture: str,
    *,
    progress: Progress = silent,
    force: bool = False,
) -> ResolvedImage:
    """The offline image of a runtime, built with what it stands on where it is not there already.

    With ``force`` everything is built anew, from Debian's packages of today. Raises `ImageError` with the end of the
    build's output where a step fails.
    """
    if runtime not in runtimes():
        raise ImageError(
            f"there is no recipe for runtime {runtime}",
            remedy=f"recipes exist for {', '.join(runtimes())}; other runtimes need AWS's image or one of your own",
        )
    tag = content_tag(runtime, architecture)
    try:
        attributes = find(client, tag)
        if force or attributes is None:
            with parts.locked("build"):
                _build(client, runtime, architecture, progress=progress, force=force, built=set())
                # Stages needed only on the way are large; the label keeps everybody else's images out of this.
                client.images.prune(filters={"dangling": True, "label": LABEL_STAGE})
            attributes = client.images.get(tag).attrs
    except docker.errors.APIError as error:
        raise ImageError(f"the engine refused to build {runtime}: {error.explanation or error}") from error
    except ENGINE_FAILURES as error:
        raise ImageError(f"the engine went away while it built {runtime}: {error}", remedy=START_ENGINE) from error
    return resolved(attributes, tag, runtime, ImageSource.OFFLINE, "built from its recipe")


def outdated(client: docker.DockerClient) -> list[str]:
    """The tags of images that recipes of another time built; nothing but their removal changes the engine."""
    current = {
        content_tag(path.parent.name, architecture)
        for path in recipes_dir().glob("*/recipe.toml")
        for architecture in parts.ARCHITECTURES
    }
    found: list[str] = []
    for image in client.images.list(filters={"label": LABEL_IMAGE}):
        if image.labels.get(LABEL_IMAGE) != DEBIAN:
            # Podman names loaded images localhost/..., and those built through this API docker.io/...
            tags = [tag.removeprefix("localhost/").removeprefix("docker.io/") for tag in image.tags]
            found += [tag for tag in tags if tag.startswith(f"{REPOSITORY}/") and tag not in current]
    return sorted(found)


def _content(name: str, architecture: str) -> str:
    if name == DEBIAN:
        return f"{DEBIAN}:{DEBIAN_RELEASE}"
    own = recipe(name)
    pinned = [parts.part(one, architecture) for one in own.parts]
    everything = {
        "name": name,
        "architecture": architecture,
        "files": [[path, hashlib.sha256(content).hexdigest()] for path, content in _files(own)],
        "parts": [[one.file, one.label, one.sha256] for one in pinned],
        "arguments": own.arguments,
        "needs": {key: _content(needed, architecture) for key, needed in own.needs.items()},
    }
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()


def _files(own: Recipe) -> Iterator[tuple[str, bytes]]:
    """The recipe's files by their path in the build context, in one order on every machine."""
    root = recipes_dir()
    for path in sorted((root / own.folder).rglob("*")):
        if path.is_file() and path.name != "recipe.toml" and "__pycache__" not in path.parts:
            yield path.relative_to(root).as_posix(), path.read_bytes()


def _build(
    client: docker.DockerClient, name: str, architecture: str, *, progress: Progress, force: bool, built: set[str]
) -> str:
    tag = content_tag(name, architecture)
    if name in built or (not force and find(client, tag)):
        return tag
    own = recipe(name)
    arguments = {key: os.environ[key] for key in _PROXIES if key in os.environ} | own.arguments
    for argument, needed in own.needs.items():
        if needed == DEBIAN:
            fresh = force and DEBIAN not in built
            arguments[argument] = _debian(client, architecture, progress=progress, force=fresh)
            built.add(DEBIAN)
        else:
            arguments[argument] = _build(client, needed, architecture, progress=progress, force=force, built=built)
    pinned = [parts.part(one, architecture) for one in own.parts]
    with tempfile.TemporaryFile() as context:
        with tarfile.open(fileobj=context, mode="w") as archive:
            for path, content in _files(own):
                _add(archive, path, io.BytesIO(content), len(content), executable=content.startswith(b"#!"))
            for one in pinned:
                with parts.fetch(one, architecture, progress=progress).open("rb") as file:
                    size = os.fstat(file.fileno()).st_size
                    _add(archive, f"parts/{one.file}", file, size, executable=one.executable)
        context.seek(0)
        labels = {
            LABEL_IMAGE: name,
            LABEL_ARCHITECTURE: architecture,
            LABEL_PARTS: parts_label(name, architecture),
        }
        _run_build(
            client,
            context,
            tag,
            architecture,
            progress,
            dockerfile=f"{own.folder}/Dockerfile",
            buildargs=arguments,
            labels=labels,
            nocache=force,
        )
    built.add(name)
    return tag


def _add(archive: tarfile.TarFile, path: str, content: Any, size: int, *, executable: bool) -> None:
    # Modes come from the content and times are fixed: a wheel or a checkout on another machine makes the same layers.
    entry = tarfile.TarInfo(path)
    entry.size = size
    entry.mode = 0o755 if executable else 0o644
    archive.addfile(entry, content)


def _run_build(
    client: docker.DockerClient, context: Any, tag: str, architecture: str, progress: Progress, **options: Any
) -> None:
    name = tag.removeprefix(f"{REPOSITORY}/").partition(":")[0]
    if MACHINES.get(client.version()["Arch"]) != architecture:
        options["platform"] = f"linux/{_DEBIAN_ARCHITECTURES[architecture]}"
    # The engine's own builder, which every engine has; its BuildKit one is not reachable through this API.
    stream = client.api.build(
        fileobj=context, custom_context=True, tag=tag, rm=True, forcerm=True, decode=True, timeout=None, **options
    )
    last: deque[str] = deque(maxlen=25)
    for message in stream:
        if "error" in message:
            output = "".join(last).strip()
            raise ImageError(
                f"the image {name} could not be built: {message['error'].strip()}\n{output}",
                remedy="a step that installs packages needs containers that reach Debian's servers; "
                "behind a proxy set http_proxy and https_proxy",
            )
        text = message.get("stream", "")
        last.append(text)
        if text[:5].upper() == "STEP ":  # Podman shouts
            progress(f"building {name}: {' '.join(text.split())[:100]}")


def _debian(client: docker.DockerClient, architecture: str, *, progress: Progress, force: bool) -> str:
    """The name of an image with nothing but a Debian system: one that is there, else made here, else pulled."""
    for name in DEBIAN_IMAGES:
        image = find(client, name)
        if image and MACHINES.get(image["Architecture"]) == architecture:
            return name
    tag = f"{REPOSITORY}/{DEBIAN}:{DEBIAN_RELEASE}-{architecture}"
    if not force and find(client, tag):
        return tag
    reasons = []
    if shutil.which("mmdebstrap"):
        try:
            _bootstrap_debian(client, architecture, tag, progress)
            return tag
        except ImageError as error:
            reasons.append(str(error))
    else:
        reasons.append("mmdebstrap is not installed")
    progress(f"pulling {DEBIAN_IMAGES[0]}")
    try:
        client.images.pull(DEBIAN_IMAGES[0], platform=f"linux/{_DEBIAN_ARCHITECTURES[architecture]}")
        return DEBIAN_IMAGES[0]
    except docker.errors.APIError as error:
        reasons.append(f"{DEBIAN_IMAGES[0]} could not be pulled: {error.explanation or error}")
    raise ImageError(
        f"there is no Debian {DEBIAN_RELEASE} to build images from: {'; '.join(reasons)}",
        remedy="install mmdebstrap ('apt-get install mmdebstrap' on Debian and Ubuntu), "
        f"or load an image {DEBIAN_IMAGES[0]} into the engine",
    )


def _bootstrap_debian(client: docker.DockerClient, architecture: str, tag: str, progress: Progress) -> None:
    progress(f"making a Debian {DEBIAN_RELEASE} system with mmdebstrap")
    with tempfile.TemporaryDirectory(prefix="lambda-harness-") as folder:
        system = Path(folder) / "debian.tar"
        command = ["mmdebstrap", "--variant=minbase", f"--architectures={_DEBIAN_ARCHITECTURES[architecture]}"]
        try:
            done = subprocess.run(
                [*command, DEBIAN_RELEASE, str(system)],
                check=False,
                text=True,
                errors="replace",
                env={**os.environ, "LC_ALL": "C.UTF-8"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=_BOOTSTRAP_TIMEOUT_S,
            )
        except subprocess.TimeoutExpired as error:
            raise ImageError(f"mmdebstrap did not end within {_BOOTSTRAP_TIMEOUT_S} s") from error
        if done.returncode != 0:
            raise ImageError(f"mmdebstrap ended with {done.returncode}: {' / '.join(done.stdout.splitlines()[-4:])}")
        dockerfile = b"FROM scratch\nADD debian.tar /\n"
        with tempfile.TemporaryFile() as context:
            with tarfile.open(fileobj=context, mode="w") as archive:
                _add(archive, "Dockerfile", io.BytesIO(dockerfile), len(dockerfile), executable=False)
                with system.open("rb") as file:
                    _add(archive, "debian.tar", file, system.stat().st_size, executable=False)
            context.seek(0)
            labels = {LABEL_IMAGE: DEBIAN, LABEL_ARCHITECTURE: architecture}
            # `docker import` would do, but takes no architecture other than the engine's.
            _run_build(client, context, tag, architecture, progress, labels=labels, nocache=True)
