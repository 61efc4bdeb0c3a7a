"""What a function is, and what Lambda accepts as one. Must not read manifests, templates or archives.

Readers of the several forms hand over `Setting`s: a value and the place it was read from. `judge` is the one place
where they become a `Function`, so that every form is held to the same rules and every refusal names its place.
Rules: Lambda API reference, CreateFunction; Lambda developer guide, "Lambda quotas" and "Environment variables".
"""

from __future__ import annotations

import json
import platform
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.errors import InvalidFunction
from harness.tiers import MAX_MEMORY_MB, MIN_MEMORY_MB

ARCHITECTURES = ("x86_64", "arm64")
RECEIVERS = ("cloudwatch", "xray")
"""The local receivers that a function may ask for: what it sends there is kept, nothing reaches the cloud."""

LATEST = "$LATEST"
"""The version that is not published yet: the code and configuration as they are now."""
DEFAULT_REGION = "us-east-1"

DEFAULT_MEMORY_MB = 128
DEFAULT_TIMEOUT_S = 3
DEFAULT_TMP_MB = 512
MAX_TIMEOUT_S = 900
MAX_TMP_MB = 10240
MAX_ENVIRONMENT_BYTES = 4096
MAX_LAYERS = 5

RESERVED_ENVIRONMENT = frozenset(
    {
        "_HANDLER",
        "_X_AMZN_TRACE_ID",
        "AWS_ACCESS_KEY",
        "AWS_ACCESS_KEY_ID",
        "AWS_DEFAULT_REGION",
        "AWS_EXECUTION_ENV",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE",
        "AWS_LAMBDA_FUNCTION_NAME",
        "AWS_LAMBDA_FUNCTION_VERSION",
        "AWS_LAMBDA_INITIALIZATION_TYPE",
        "AWS_LAMBDA_LOG_GROUP_NAME",
        "AWS_LAMBDA_LOG_STREAM_NAME",
        "AWS_LAMBDA_RUNTIME_API",
        "AWS_REGION",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "LAMBDA_RUNTIME_DIR",
        "LAMBDA_TASK_ROOT",
    }
)
"""Names that Lambda sets itself and refuses in a configuration [developer guide, "Reserved environment variables"]."""

_FUNCTION_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_HANDLER = re.compile(r"[^\s]{1,128}")
_ENVIRONMENT_NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9_]+")


@dataclass(frozen=True, kw_only=True)
class DirectoryCode:
    """Code in a directory: what a deployment package would hold."""

    path: Path


@dataclass(frozen=True, kw_only=True)
class ZipCode:
    """Code in a zip archive: a deployment package."""

    path: Path


@dataclass(frozen=True, kw_only=True)
class ImageCode:
    """Code in a container image that keeps Lambda's contract."""

    reference: str


@dataclass(frozen=True, kw_only=True)
class InlineCode:
    """Code written into a template; Lambda makes one file of it, ``index`` with the runtime's suffix."""

    text: str
    file_name: str


Code = DirectoryCode | ZipCode | ImageCode | InlineCode


@dataclass(frozen=True, kw_only=True)
class Function:
    """A function as Lambda would accept it. ``source`` is what the user named; all paths are absolute.

    ``image`` names an image to run directory or zip code in; a function that *is* an image has `ImageCode` instead.
    """

    name: str
    runtime: str | None
    handler: str | None
    memory_mb: int = DEFAULT_MEMORY_MB
    timeout_s: int = DEFAULT_TIMEOUT_S
    tmp_mb: int = DEFAULT_TMP_MB
    architecture: str = "x86_64"
    environment: Mapping[str, str] = field(default_factory=dict)
    code: Code
    layers: tuple[Path, ...] = ()
    image: str | None = None
    events: tuple[Path, ...] = ()
    receivers: tuple[str, ...] = ()
    description: str = ""
    version: str = LATEST
    region: str = DEFAULT_REGION
    source: str


@dataclass(frozen=True, kw_only=True)
class Overrides:
    """What a command line may set. None leaves a setting alone; ``environment`` is laid over the function's own."""

    runtime: str | None = None
    handler: str | None = None
    memory_mb: int | None = None
    timeout_s: int | None = None
    tmp_mb: int | None = None
    architecture: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    layers: tuple[Path, ...] | None = None
    image: str | None = None
    name: str | None = None

    def sets(self, name: str) -> bool:
        """Does it replace this setting altogether (the environment is never replaced, only laid over)?"""
        return name != "environment" and getattr(self, name, None) is not None


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A value as it was read, not yet judged, and the place: ``function.toml``, ``template.yaml:12``, or nothing."""

    value: Any
    origin: str = ""

    @property
    def at(self) -> str:
        return f" ({self.origin})" if self.origin else ""


Settings = dict[str, Setting]
"""Keyed by the names of `Function`'s fields. ``environment`` and the lists hold settings of their own, one an entry."""


def host_architecture() -> str:
    """Lambda's word for this machine's instruction set."""
    return "arm64" if platform.machine().lower() in {"aarch64", "arm64"} else "x86_64"


def name_from(text: str) -> str:
    """A function name made of whatever the function is called outside of Lambda."""
    return re.sub(r"[^a-zA-Z0-9_-]+", "-", text).strip("-")[:64] or "function"


def judge(settings: Settings, overrides: Overrides, *, source: str) -> Function:
    """The function that the settings under the overrides describe.

    Raises:
        InvalidFunction: Lambda would refuse it, or it cannot be run; the message names the setting and its place.
    """
    found = dict(settings)
    for name in ("runtime", "handler", "memory_mb", "timeout_s", "tmp_mb", "architecture", "image", "name"):
        if overrides.sets(name):
            found[name] = Setting(value=getattr(overrides, name))
    if overrides.layers is not None:
        found["layers"] = Setting(value=[Setting(value=path) for path in overrides.layers])
    variables = dict(found["environment"].value) if "environment" in found else {}
    variables.update({name: Setting(value=value) for name, value in overrides.environment.items()})

    code = _code(found["code"])
    image = _text(found, "image", "the image")
    if isinstance(code, ImageCode) and image is not None:
        code, image = ImageCode(reference=image), None
    in_image = isinstance(code, ImageCode) or image is not None
    runtime = _text(found, "runtime", "the runtime")
    handler = _handler(found)
    _refuse_gaps(runtime, handler, in_image=in_image, source=source)
    layers = _layers(found, code)
    architecture = _text(found, "architecture", "the architecture") or host_architecture()
    if architecture not in ARCHITECTURES:
        raise InvalidFunction(
            f"architecture {architecture!r}{_at(found, 'architecture')} is not one of Lambda's",
            remedy=f"write {' or '.join(ARCHITECTURES)}",
        )
    return Function(
        name=_name(found),
        runtime=runtime,
        handler=handler,
        memory_mb=_whole(found, _MEMORY),
        timeout_s=_whole(found, _TIMEOUT),
        tmp_mb=_whole(found, _TMP),
        architecture=architecture,
        environment=_environment(variables),
        code=code,
        layers=layers,
        image=image,
        events=tuple(_event(event) for event in _list(found, "events")),
        receivers=tuple(_receiver(receiver) for receiver in _list(found, "receivers")),
        description=_text(found, "description", "the description", empty=True) or "",
        source=source,
    )


def _at(found: Settings, name: str) -> str:
    return found[name].at if name in found else ""


def _list(found: Settings, name: str) -> list[Setting]:
    return list(found[name].value) if name in found else []


def _text(found: Settings, name: str, words: str, *, empty: bool = False) -> str | None:
    setting = found.get(name)
    if setting is None:
        return None
    if not isinstance(setting.value, str) or not (empty or setting.value.strip()):
        raise InvalidFunction(
            f"{words} is {setting.value!r}{setting.at}", remedy=f"write {words} as text that is not empty"
        )
    return setting.value


def _name(found: Settings) -> str:
    name = _text(found, "name", "the function's name") or "function"
    if not _FUNCTION_NAME.fullmatch(name):
        raise InvalidFunction(
            f"function name {name!r}{_at(found, 'name')} is not one that Lambda accepts",
            remedy="use 1 to 64 letters, digits, hyphens and underscores",
        )
    return name


def _handler(found: Settings) -> str | None:
    handler = _text(found, "handler", "the handler")
    if handler is not None and not _HANDLER.fullmatch(handler):
        raise InvalidFunction(
            f"handler {handler!r}{_at(found, 'handler')} is not one that Lambda accepts",
            remedy="write at most 128 characters without spaces, such as app.handler (file, dot, name in the file)",
        )
    return handler


def _refuse_gaps(runtime: str | None, handler: str | None, *, in_image: bool, source: str) -> None:
    if in_image:
        return
    gaps = [] if runtime else ["runtime"]
    # A custom runtime is free to do without a handler; Lambda only wants the string to be there.
    if not handler and not (runtime or "").startswith("provided"):
        gaps.append("handler")
    if gaps:
        raise InvalidFunction(
            f"nothing says the {' and the '.join(gaps)} of {source}",
            remedy=f"give {' and '.join('--' + gap for gap in gaps)}, or write a function.toml beside the code",
        )


@dataclass(frozen=True, kw_only=True)
class _Size:
    """A whole number among the settings: its words and unit in messages, and what Lambda offers."""

    field: str
    words: str
    unit: str
    low: int
    high: int
    default: int


_MEMORY = _Size(
    field="memory_mb",
    words="memory size",
    unit="MB",
    low=MIN_MEMORY_MB,
    high=MAX_MEMORY_MB,
    default=DEFAULT_MEMORY_MB,
)
_TIMEOUT = _Size(field="timeout_s", words="timeout", unit="s", low=1, high=MAX_TIMEOUT_S, default=DEFAULT_TIMEOUT_S)
_TMP = _Size(
    field="tmp_mb", words="size of /tmp", unit="MB", low=DEFAULT_TMP_MB, high=MAX_TMP_MB, default=DEFAULT_TMP_MB
)


def _whole(found: Settings, size: _Size) -> int:
    setting = found.get(size.field)
    if setting is None:
        return size.default
    remedy = f"choose a whole number from {size.low} to {size.high}"
    if type(setting.value) is not int:  # not isinstance: True is an int, and no size
        raise InvalidFunction(
            f"{size.words} {setting.value!r}{setting.at} is not a whole number of {size.unit}", remedy=remedy
        )
    if not size.low <= setting.value <= size.high:
        raise InvalidFunction(
            f"{size.words} {setting.value} {size.unit}{setting.at} is outside what Lambda offers:"
            f" {size.low} to {size.high} {size.unit}",
            remedy=remedy,
        )
    return setting.value


def _environment(variables: Mapping[str, Setting]) -> dict[str, str]:
    for name, setting in variables.items():
        if name in RESERVED_ENVIRONMENT:
            raise InvalidFunction(
                f"environment variable {name}{setting.at} is reserved: Lambda sets it and lets nobody else",
                remedy=f"choose another name than {name}",
            )
        if not _ENVIRONMENT_NAME.fullmatch(name):
            raise InvalidFunction(
                f"environment variable {name!r}{setting.at} has a name that Lambda refuses",
                remedy="begin with a letter, go on with letters, digits and underscores, two characters at least",
            )
        if not isinstance(setting.value, str):
            raise InvalidFunction(
                f"environment variable {name}{setting.at} is {setting.value!r}, not text",
                remedy=f"put it into quotes: {name} = {json.dumps(str(setting.value))}",
            )
        if "\0" in setting.value:
            raise InvalidFunction(
                f"environment variable {name}{setting.at} holds a NUL byte, which no process can be given",
                remedy="encode the value, for example in base64",
            )
    environment = {name: setting.value for name, setting in variables.items()}
    # Lambda's refusal quotes "String measured": the variables as one JSON object without spaces.
    measured = len(
        json.dumps(environment, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogateescape")
    )
    if environment and measured > MAX_ENVIRONMENT_BYTES:
        largest = max(environment, key=lambda name: len(environment[name]))
        raise InvalidFunction(
            f"the environment variables take {measured} bytes as JSON, and Lambda's limit is 4 KB"
            f" ({MAX_ENVIRONMENT_BYTES}); the largest is {largest}",
            remedy="shorten them, or ship large values as a file with the code",
        )
    return environment


def _code(setting: Setting) -> Code:
    code: Code = setting.value
    if isinstance(code, DirectoryCode | ZipCode):
        return code_at(code.path, setting.at)
    if isinstance(code, ImageCode) and (not code.reference.strip() or re.search(r"\s", code.reference)):
        raise InvalidFunction(
            f"image name {code.reference!r}{setting.at} is not one", remedy="name an image as NAME:TAG, without spaces"
        )
    return code


def code_at(path: Path, at: str = "") -> DirectoryCode | ZipCode:
    """The code at a path that a user named: a directory or a zip; ``at`` is the place where it was named."""
    kind = _kind(path, "the code", at)
    return DirectoryCode(path=path.absolute()) if kind == "directory" else ZipCode(path=path.absolute())


def _kind(path: Path, words: str, at: str) -> str:
    try:
        path.stat()
        if path.is_dir():
            return "directory"
        if path.is_file() and zipfile.is_zipfile(path):
            return "zip"
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InvalidFunction(f"{words} is not there: {path}{at}", remedy="check the path") from error
    except (OSError, ValueError) as error:
        raise InvalidFunction(
            f"{words} cannot be read: {path}{at}: {error}", remedy="check the path and its modes"
        ) from error
    raise InvalidFunction(
        f"{words} is neither a directory nor a zip archive: {path}{at}", remedy="name the directory, or zip it anew"
    )


def _layers(found: Settings, code: Code) -> tuple[Path, ...]:
    layers = _list(found, "layers")
    if layers and isinstance(code, ImageCode):
        raise InvalidFunction(
            f"layers{_at(found, 'layers')} cannot be laid into a function that is an image, on Lambda neither",
            remedy="copy their content to /opt in the image's Dockerfile",
        )
    if len(layers) > MAX_LAYERS:
        raise InvalidFunction(
            f"{len(layers)} layers{_at(found, 'layers')}, and Lambda takes {MAX_LAYERS} at most",
            remedy="merge some of them",
        )
    for layer in layers:
        _kind(layer.value, "the layer", layer.at)
    return tuple(Path(layer.value).absolute() for layer in layers)


def _event(setting: Setting) -> Path:
    path = Path(setting.value)
    if not path.is_file():
        raise InvalidFunction(
            f"the event is not there: {path}{setting.at}", remedy="check the path, it is relative to the file"
        )
    return path.absolute()


def _receiver(setting: Setting) -> str:
    if setting.value not in RECEIVERS:
        raise InvalidFunction(
            f"receiver {setting.value!r}{setting.at} is not one of the harness",
            remedy=f"choose from {', '.join(RECEIVERS)}",
        )
    return str(setting.value)
