"""Reads function.toml, the harness's own description of a function. Must not judge values: `model.judge` does.

    runtime = "python3.13"          handler = "app.handler"
    memory_mb = 256                 timeout_s = 10              tmp_mb = 512
    architecture = "x86_64"         code = "."                  layers = ["layer", "more.zip"]
    image = "name:tag"              events = ["events/default.json"]
    receivers = ["cloudwatch"]      name = "..."                description = "..."
    [environment]
    TABLE = "orders"

Paths are relative to the file. Every key may be left out; runtime and handler may come from the command line.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from pathlib import Path
from typing import Any

from harness.errors import InvalidFunction
from harness.function.model import DirectoryCode, Setting, Settings, name_from

FILE_NAME = "function.toml"

_VALUES = ("name", "runtime", "handler", "memory_mb", "timeout_s", "tmp_mb", "architecture", "image", "description")
_LISTS = ("events", "layers", "receivers")
_KEYS = (*_VALUES, *_LISTS, "code", "environment")


def read(path: Path) -> Settings:
    """The settings that a function.toml gives.

    Raises:
        InvalidFunction: it cannot be read, is no TOML, or has a key that means nothing; named with file and line.
    """
    shown = str(path)
    document = _parse(path)
    for key in document:
        if key not in _KEYS:
            near = _near(key)
            raise InvalidFunction(
                f"{shown}: unknown key {key!r}" + (f"; did you mean {near!r}?" if near else ""),
                remedy=f"the keys are {', '.join(sorted(_KEYS))}",
            )
    folder = path.parent
    found: Settings = {"name": Setting(value=name_from(folder.absolute().resolve().name), origin=shown)}
    found.update({key: Setting(value=document[key], origin=shown) for key in _VALUES if key in document})
    for key in _LISTS:
        if key in document:
            texts = _texts(document[key], key, shown)
            values: list[Any] = list(texts) if key == "receivers" else [folder / text for text in texts]
            found[key] = Setting(value=[Setting(value=value, origin=shown) for value in values], origin=shown)
    variables = document.get("environment", {})
    if not isinstance(variables, dict):
        raise InvalidFunction(
            f"{shown}: environment is no table", remedy='write [environment] and below it NAME = "value"'
        )
    found["environment"] = Setting(
        value={name: Setting(value=value, origin=shown) for name, value in variables.items()}, origin=shown
    )
    code = document.get("code", ".")
    if not isinstance(code, str) or not code:
        raise InvalidFunction(f"{shown}: code is {code!r}", remedy="name a directory or a zip, relative to the file")
    found["code"] = Setting(value=DirectoryCode(path=folder / code), origin=shown)
    return found


def _parse(path: Path) -> dict[str, Any]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
        return tomllib.loads(text)
    except OSError as error:
        raise InvalidFunction(
            f"{path} cannot be read: {error.strerror}", remedy="check the path and its modes"
        ) from error
    except UnicodeDecodeError as error:
        raise InvalidFunction(f"{path} is not UTF-8 text (byte {error.start})", remedy="save it as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        line, said = _place(str(error), text)
        raise InvalidFunction(f"{path}:{line}: {said}", remedy="correct the TOML there") from error


def _place(said: str, text: str) -> tuple[int, str]:
    """The line and the words of the parser's message; it writes the place into the text (attributes came with 3.14)."""
    place = re.search(r" \(at (?:line (\d+), column \d+|end of document)\)$", said)
    if place is None:
        return 1, said
    return int(place[1]) if place[1] else text.count("\n") + 1, said[: place.start()]


def _near(key: str) -> str | None:
    """The key that was probably meant: one that goes on like it (memory -> memory_mb), or one that is spelt like it."""
    going_on = [known for known in _KEYS if len(key) > 1 and known.startswith(key.lower())]
    alike = difflib.get_close_matches(key.lower(), _KEYS, n=1, cutoff=0.5)
    return next(iter([*going_on, *alike]), None)


def _texts(value: object, key: str, shown: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
        raise InvalidFunction(f"{shown}: {key} is {value!r}", remedy=f'write {key} as a list of texts: {key} = ["..."]')
    return [str(item) for item in value]
