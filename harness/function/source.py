"""From what the user named to a function: finds out which form it is and has it read. Must not judge values."""

from __future__ import annotations

from pathlib import Path

from harness.errors import InvalidFunction
from harness.function import manifest
from harness.function.model import Function, ImageCode, Overrides, Setting, Settings, code_at, judge, name_from

_TEMPLATE_SUFFIXES = (".yaml", ".yml", ".json", ".template")
_FORMS = (
    "name a directory with function.toml, a directory or zip with --runtime and --handler, template.yaml:LogicalId,"
    " or image:NAME"
)


def load(source: str, overrides: Overrides | None = None) -> Function:
    """The function that ``source`` names, under what the command line sets.

    Raises:
        InvalidFunction: it cannot be found or read, or Lambda would refuse it.
    """
    overrides = overrides or Overrides()
    return judge(_read(source, overrides), overrides, source=source)


def _read(source: str, overrides: Overrides) -> Settings:
    if not source.strip():
        raise InvalidFunction("no function is named", remedy=_FORMS)
    if source.startswith("image:"):
        reference = source.removeprefix("image:")
        last = reference.rpartition("/")[2].partition("@")[0].partition(":")[0]
        return {"code": Setting(value=ImageCode(reference=reference)), "name": Setting(value=name_from(last))}
    path, logical_id = _split(source)
    try:
        path.stat()
        directory = path.is_dir()
    except (OSError, ValueError) as error:
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        raise InvalidFunction(
            f"no function at {path}" if missing else f"the function at {path} cannot be read: {error}",
            remedy=_FORMS if missing else "check the path and its modes",
        ) from error
    if directory:
        return _read_directory(path, overrides)
    if path.name == manifest.FILE_NAME:
        return manifest.read(path)
    if path.suffix.lower() in _TEMPLATE_SUFFIXES:
        from harness.function import sam  # PyYAML is not needed for the other forms

        return sam.read(path, logical_id, overrides)
    if path.suffix.lower() == ".zip":
        return {"code": Setting(value=code_at(path)), "name": Setting(value=name_from(path.stem))}
    try:
        code = code_at(path)
    except InvalidFunction as error:
        raise InvalidFunction(f"{path} is a file, and neither a zip archive nor a template", remedy=_FORMS) from error
    return {"code": Setting(value=code), "name": Setting(value=name_from(path.stem))}


def _split(source: str) -> tuple[Path, str | None]:
    """Path and LogicalId; a colon divides them only behind a template's suffix, for paths may hold colons too."""
    before, colon, after = source.rpartition(":")
    if colon and before.lower().endswith(_TEMPLATE_SUFFIXES) and "/" not in after:
        return Path(before), after or None
    return Path(source), None


def _read_directory(path: Path, overrides: Overrides) -> Settings:
    if (path / manifest.FILE_NAME).is_file():
        return manifest.read(path / manifest.FILE_NAME)
    templates = [name for name in ("template.yaml", "template.yml", "template.json") if (path / name).is_file()]
    if templates and not (overrides.sets("runtime") or overrides.sets("handler")):
        raise InvalidFunction(
            f"{path} has no {manifest.FILE_NAME}, but a {templates[0]}",
            remedy=f"name a function of the template: {path / templates[0]}:LogicalId",
        )
    return {
        "code": Setting(value=code_at(path)),
        "name": Setting(value=name_from(path.absolute().resolve().name)),
    }
