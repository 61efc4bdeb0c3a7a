"""Which image serves a runtime: the user's, else AWS's, else one that the harness builds itself.

Runtimes have AWS's names. A registry is asked for at most two seconds, and one that does not answer is left alone for
some minutes, so that a machine without network does not pay for it with each command.
"""

from __future__ import annotations

import json
import re
import ssl
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

import docker
import docker.errors

from harness.engine import build as offline
from harness.engine import parts
from harness.engine.client import ENGINE_FAILURES, START_ENGINE
from harness.engine.parts import Progress, silent
from harness.engine.resolved import MACHINES, ImageSource, ResolvedImage, resolved
from harness.errors import ImageError, InvalidFunction

__all__ = [
    "RUNTIMES",
    "Candidate",
    "ImageSource",
    "ResolvedImage",
    "RuntimeFacts",
    "Survey",
    "check_architecture",
    "resolve",
    "runtime_facts",
    "survey",
]

AWS_REGISTRY = "public.ecr.aws"
DOCKER_REGISTRY = "index.docker.io"
AWS_IMAGES = f"{AWS_REGISTRY}/lambda"
PROBE_TIMEOUT_S = 2.0
NO_ANSWER_FOR_S = 600
"""How long a registry that did not answer, or an image that could not be pulled, is not asked for again."""

_EMULATORS = {"arm64": "qemu-aarch64", "x86_64": "qemu-x86_64"}
_BINFMT = Path("/proc/sys/fs/binfmt_misc")
_PLATFORMS = {"x86_64": "linux/amd64", "arm64": "linux/arm64"}

_PATTERNS = (
    # AWS's names of runtimes; the family and the rest of the name give the image.
    (re.compile(r"(python)(3\.\d{1,2})"), r"python:\2"),
    (re.compile(r"(nodejs)(\d{2})\.x"), r"nodejs:\2"),
    (re.compile(r"(java)(\d{1,2}(?:\.al2(?:023)?)?)"), r"java:\2"),
    (re.compile(r"(dotnet)(\d{1,2})"), r"dotnet:\2"),
    (re.compile(r"(ruby)(\d\.\d)"), r"ruby:\2"),
    (re.compile(r"(provided)\.(al2(?:023)?)"), r"provided:\2"),
)

_KNOWN = (
    *("python3.9", "python3.10", "python3.11", "python3.12", "python3.13", "python3.14"),
    *("nodejs18.x", "nodejs20.x", "nodejs22.x", "nodejs24.x"),
    *("java8.al2", "java11", "java17", "java21", "java25"),
    *("dotnet8", "dotnet10"),
    *("ruby3.2", "ruby3.3", "ruby3.4"),
    *("provided.al2", "provided.al2023"),
)


@dataclass(frozen=True, kw_only=True)
class RuntimeFacts:
    """What the harness knows of one of AWS's runtimes. ``recipe`` is None where no offline image can be built."""

    name: str
    family: str
    aws_reference: str
    recipe: str | None

    @property
    def references(self) -> tuple[str, ...]:
        """The names under which AWS's image may be in the engine already; the first is the one to pull."""
        image = self.aws_reference.rpartition("/")[2]
        return (self.aws_reference, f"amazon/aws-lambda-{image}")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One image that could serve a runtime."""

    reference: str
    source: ImageSource
    present: bool
    size_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class Survey:
    """Which image would serve a runtime now; ``chosen`` is None where that image is not in the engine yet."""

    runtime: str
    architecture: str
    chosen: ResolvedImage | None
    why: str
    candidates: tuple[Candidate, ...]


def runtime_facts(runtime: str) -> RuntimeFacts:
    """What a runtime's name says; `InvalidFunction` for a name that is none of AWS's."""
    for pattern, image in _PATTERNS:
        if match := pattern.fullmatch(runtime):
            return RuntimeFacts(
                name=runtime,
                family=match[1],
                aws_reference=f"{AWS_IMAGES}/{match.expand(image)}",
                recipe=runtime if runtime in _RECIPES else None,
            )
    raise InvalidFunction(
        f"unknown runtime {runtime!r}",
        remedy=f"Lambda's runtimes are {', '.join(_KNOWN)}; for anything else name an image of your own",
    )


_RECIPES = ("nodejs22.x", "nodejs24.x", "provided.al2023", "python3.13")
RUNTIMES: Mapping[str, RuntimeFacts] = MappingProxyType({name: runtime_facts(name) for name in _KNOWN})
"""The runtimes that are known by name; `runtime_facts` also takes those that AWS adds later in the same pattern."""


def resolve(
    client: docker.DockerClient,
    runtime: str | None,
    architecture: str,
    *,
    image: str | None = None,
    pull: bool = True,
    build: bool = True,
    progress: Progress = silent,
) -> ResolvedImage:
    """The image that serves a function, present in the engine when this returns.

    The order: the user's image; AWS's image in the engine; AWS's image pulled, if its registry answers; the offline
    image in the engine; the offline image built. Raises `InvalidFunction` for an unknown runtime and `ImageError`
    where nothing serves it.
    """
    facts = runtime_facts(runtime) if runtime is not None else None
    try:
        check_architecture(client, architecture)
        if image is not None:
            return _named(client, image, runtime, architecture, pull=pull, progress=progress)
        if facts is None:
            raise InvalidFunction(
                "the function has neither a runtime nor an image",
                remedy="name a runtime such as python3.13, or an image as image:NAME",
            )
        return _for_runtime(client, facts, architecture, pull=pull, build=build, progress=progress)
    except docker.errors.APIError as error:
        raise ImageError(f"the engine refused to look for an image: {error.explanation or error}") from error
    except ENGINE_FAILURES as error:
        raise ImageError(f"the engine went away while it looked for an image: {error}", remedy=START_ENGINE) from error


def survey(client: docker.DockerClient, architecture: str | None = None) -> list[Survey]:
    """Which image would serve each runtime, without pulling or building anything.

    Told of are the runtimes with a recipe and those whose AWS image is in the engine.
    """
    own = architecture or _engine_architecture(client)
    found = []
    for facts in RUNTIMES.values():
        present = {name: offline.find(client, name) for name in facts.references}
        local = next((name for name, attributes in present.items() if _fits(attributes, own)), None)
        if local is None and facts.recipe is None:
            continue
        found.append(_surveyed(client, facts, own, local, present))
    return found


def check_architecture(client: docker.DockerClient, architecture: str) -> None:
    """`ImageError` if the engine's machine cannot run this architecture, by itself or by emulation."""
    if architecture not in parts.ARCHITECTURES:
        raise InvalidFunction(
            f"unknown architecture {architecture!r}", remedy=f"Lambda has {' and '.join(parts.ARCHITECTURES)}"
        )
    machine = _engine_architecture(client)
    if machine == architecture or _emulates(client, architecture):
        return
    raise ImageError(
        f"an {architecture} function cannot run here: the engine's machine is {machine} and emulates no {architecture}",
        remedy=f"set the function's architecture to {machine}, or register QEMU's user emulation "
        "(Debian and Ubuntu: 'apt-get install qemu-user-static binfmt-support'); emulated CPU times mean nothing",
    )


def _for_runtime(
    client: docker.DockerClient,
    facts: RuntimeFacts,
    architecture: str,
    *,
    pull: bool,
    build: bool,
    progress: Progress,
) -> ResolvedImage:
    for reference in facts.references:
        attributes = offline.find(client, reference)
        if attributes and _fits(attributes, architecture):
            return resolved(attributes, reference, facts.name, ImageSource.AWS_LOCAL, "AWS's image is in the engine")
    reasons = [f"AWS's image {facts.aws_reference} is not in the engine"]
    if pull:
        pulled, reason = _pulled(client, facts.aws_reference, architecture, progress)
        if pulled:
            return resolved(pulled, facts.aws_reference, facts.name, ImageSource.AWS_PULLED, "AWS's image was pulled")
        reasons.append(reason)
    if facts.recipe is None:
        raise ImageError(
            f"no image serves runtime {facts.name}: {'; '.join(reasons)}; and no recipe builds one",
            remedy=f"pull or load {facts.aws_reference}, name an image of your own, or use one of the runtimes that "
            f"can be built here: {', '.join(_RECIPES)}",
        )
    why = f"built from its recipe; {'; '.join(reasons)}"
    if build:
        return replace(offline.build(client, facts.recipe, architecture, progress=progress), why=why)
    tag = offline.content_tag(facts.recipe, architecture)
    attributes = offline.find(client, tag)
    if attributes is None:
        raise ImageError(
            f"no image serves runtime {facts.name}: {'; '.join(reasons)}; and the offline image is not built",
            remedy=f"run 'lambda-harness images build {facts.name}'",
        )
    return resolved(attributes, tag, facts.name, ImageSource.OFFLINE, why)


def _named(
    client: docker.DockerClient,
    image: str,
    runtime: str | None,
    architecture: str,
    *,
    pull: bool,
    progress: Progress,
) -> ResolvedImage:
    attributes = offline.find(client, image)
    why = "the function names this image"
    if attributes is None:
        reason = "nothing may be pulled"
        if pull:
            attributes, reason = _pulled(client, image, architecture, progress)
            why = "the function names this image; it was pulled"
        if attributes is None:
            raise ImageError(
                f"the image {image} is not in the engine: {reason}",
                remedy="check its name with 'docker images', build it, or load it",
            )
    if not _fits(attributes, architecture):
        raise ImageError(
            f"the image {image} is for {attributes['Architecture']}, the function for {architecture}",
            remedy="give the function the image's architecture, or name an image that has the function's",
        )
    return resolved(attributes, image, runtime, ImageSource.NAMED, why)


def _pulled(
    client: docker.DockerClient, reference: str, architecture: str, progress: Progress
) -> tuple[dict[str, Any] | None, str]:
    """The image's attributes after a pull, or None and the reason."""
    registry = _registry(client, reference)
    if not registry_answers(registry):
        return None, f"its registry {registry} does not answer"
    key = f"{reference} {architecture}"
    if _failed_lately(key):
        return None, f"it could not be pulled within the last {NO_ANSWER_FOR_S // 60} minutes"
    progress(f"pulling {reference}")
    try:
        client.images.pull(reference, platform=_PLATFORMS[architecture])
    except docker.errors.APIError as error:
        _remember_failure(key)
        return None, f"it could not be pulled: {error.explanation or error}"
    return offline.find(client, reference), ""


def _surveyed(
    client: docker.DockerClient,
    facts: RuntimeFacts,
    architecture: str,
    local: str | None,
    present: dict[str, dict[str, Any] | None],
) -> Survey:
    aws = present[local] if local else None
    candidates = [_candidate(local or facts.aws_reference, ImageSource.AWS_LOCAL, aws)]
    chosen = None
    why = ""
    if aws and local:
        chosen = resolved(aws, local, facts.name, ImageSource.AWS_LOCAL, "AWS's image is in the engine")
        why = chosen.why
    if facts.recipe:
        tag = offline.content_tag(facts.recipe, architecture)
        built = offline.find(client, tag)
        candidates.append(_candidate(tag, ImageSource.OFFLINE, built))
        if chosen is None and registry_answers(AWS_REGISTRY):
            why = f"AWS's image would be pulled: {AWS_REGISTRY} answers"
        elif chosen is None and built:
            why = f"built from its recipe; {AWS_REGISTRY} does not answer"
            chosen = resolved(built, tag, facts.name, ImageSource.OFFLINE, why)
        elif chosen is None:
            why = f"would be built from its recipe; {AWS_REGISTRY} does not answer"
    return Survey(runtime=facts.name, architecture=architecture, chosen=chosen, why=why, candidates=tuple(candidates))


def _candidate(reference: str, source: ImageSource, attributes: dict[str, Any] | None) -> Candidate:
    return Candidate(
        reference=reference,
        source=source,
        present=attributes is not None,
        size_bytes=attributes["Size"] if attributes else None,
    )


def _fits(attributes: dict[str, Any] | None, architecture: str) -> bool:
    return attributes is not None and MACHINES.get(attributes["Architecture"]) == architecture


def _engine_architecture(client: docker.DockerClient) -> str:
    machine = str(client.version()["Arch"])
    return MACHINES.get(machine, machine)


def _emulates(client: docker.DockerClient, architecture: str) -> bool:
    handler = _BINFMT / _EMULATORS[architecture]
    try:
        if handler.read_text().startswith("enabled"):
            return True
    except OSError:
        pass
    # Docker Desktop's virtual machine registers the emulators itself, and this kernel does not know of them.
    return str(client.info().get("OperatingSystem", "")).startswith("Docker Desktop")


def _registry(client: docker.DockerClient, reference: str) -> str:
    """The host of a reference's registry, by the engine's rule: a first part with a dot, a port, or ``localhost``."""
    first, slash, _ = reference.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        return first
    # Podman (4.3) names no registry here, and completes such names with Docker's as well.
    return urlsplit(str(client.info().get("IndexServerAddress") or "")).netloc or DOCKER_REGISTRY


_answers: dict[str, bool] = {}


def registry_answers(host: str) -> bool:
    """Whether a registry answers within `PROBE_TIMEOUT_S`; a no is remembered for `NO_ANSWER_FOR_S`, also on disk."""
    if host not in _answers:
        if _failed_lately(host):
            _answers[host] = False
        else:
            _answers[host] = _probe(host)
            if not _answers[host]:
                _remember_failure(host)
    return _answers[host]


def _probe(host: str) -> bool:
    import httpx

    answered: list[bool] = []

    def ask() -> None:
        try:
            # The system's certificates, which the engine trusts as well, rather than the list that httpx brings.
            answer = httpx.get(f"https://{host}/v2/", timeout=PROBE_TIMEOUT_S, verify=ssl.create_default_context())
            # 401 is what a registry says to a stranger; a proxy that blocks it says something else.
            answered.append(answer.status_code in {200, 401})
        except (httpx.HTTPError, OSError):
            answered.append(False)

    # A thread, because no time-out of httpx covers the name's look-up, which alone may take ten seconds.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PROBE_TIMEOUT_S)
    return bool(answered and answered[0])


def _memory() -> Path:
    return parts.cache_dir() / "no-answer.json"


def _failures() -> dict[str, float]:
    try:
        read = json.loads(_memory().read_text(encoding="utf-8"))
        return {str(key): float(value) for key, value in read.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def _failed_lately(key: str) -> bool:
    # Within both bounds: a clock that was set back must not keep a registry shut out.
    return 0 <= time.time() - _failures().get(key, 0) < NO_ANSWER_FOR_S


def _remember_failure(key: str) -> None:
    kept = {name: at for name, at in _failures().items() if 0 <= time.time() - at < NO_ANSWER_FOR_S}
    try:
        _memory().parent.mkdir(parents=True, exist_ok=True)
        temporary = _memory().with_suffix(f".{threading.get_ident()}")
        temporary.write_text(json.dumps({**kept, key: time.time()}), encoding="utf-8")
        temporary.replace(_memory())
    except OSError:
        # Only a shortcut: without it the next command asks again.
        return


def forget_failures() -> None:
    """Ask every registry again, as ``images pull`` must."""
    _answers.clear()
    _memory().unlink(missing_ok=True)
