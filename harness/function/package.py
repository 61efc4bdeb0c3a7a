"""Lays a function's code and layers out so that a container can mount them, and takes everything away again.

Must not know engines: it gives directories. A directory that the user named is used in place where that is possible,
so that an edit is seen at once; nothing in it is ever changed.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from harness.errors import EngineError, InvalidFunction
from harness.function import archive
from harness.function.model import DirectoryCode, Function, InlineCode, ZipCode

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
_NAMED_AT_MOST = 3


@dataclass(frozen=True, kw_only=True)
class Laid:
    """Directories to mount read-only at /var/task and /opt; None where there is nothing to mount."""

    task_dir: Path | None
    layers_dir: Path | None
    warnings: tuple[str, ...] = ()


@dataclass(kw_only=True)
class _Survey:
    """What one walk through a directory found."""

    size_bytes: int = 0
    unreadable: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    special: list[str] = field(default_factory=list)


class Package:
    """The laid-out function, for as long as the context lasts. Everything is made below ``work_dir``."""

    def __init__(self, function: Function, work_dir: Path) -> None:
        self.function = function
        self.work_dir = work_dir
        self._place: Path | None = None
        self._warnings: list[str] = []
        self._zipped_bytes = 0
        self._plain_bytes = 0

    def __enter__(self) -> Laid:
        """Lays it out.

        Raises:
            InvalidFunction: an archive that Lambda would refuse, or code that went away or cannot be read.
            EngineError: there is no room for it.
        """
        self._warnings.clear()
        self._zipped_bytes = self._plain_bytes = 0
        try:
            return self._lay()
        except OSError as error:
            self._take_away()
            raise _explained(error, self.work_dir) from error
        except BaseException:
            self._take_away()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._take_away()

    def _lay(self) -> Laid:
        self._judge_zips()
        layers_dir = self._layers()
        task_dir = self._task()
        total = self._zipped_bytes + self._plain_bytes
        if total > archive.MAX_UNZIPPED_BYTES:
            self._warnings.append(
                f"code and layers take {total:,} bytes, and Lambda refuses more than"
                f" {archive.MAX_UNZIPPED_BYTES:,} (250 MB)"
            )
        return Laid(task_dir=task_dir, layers_dir=layers_dir, warnings=tuple(self._warnings))

    def _judge_zips(self) -> None:
        """Archives are held to Lambda's limit together, before the first one is unpacked."""
        code = self.function.code
        paths = [path for path in self.function.layers if not path.is_dir()]
        if isinstance(code, ZipCode):
            paths.append(code.path)
        sizes = {path: archive.unzipped_bytes(path) for path in paths}
        self._zipped_bytes = sum(sizes.values())
        if len(sizes) > 1 and self._zipped_bytes > archive.MAX_UNZIPPED_BYTES:
            raise InvalidFunction(
                f"code and layers unpack to {self._zipped_bytes:,} bytes together, and Lambda takes"
                f" {archive.MAX_UNZIPPED_BYTES:,} (250 MB); the largest is {max(sizes, key=lambda path: sizes[path])}",
                remedy="leave out what the function does not need, or make it an image",
            )

    def _room(self, name: str) -> Path:
        """A path below our own directory, which comes into being with the first need."""
        if self._place is None:
            self.work_dir.mkdir(parents=True, exist_ok=True)
            self._place = Path(tempfile.mkdtemp(prefix="package-", dir=self.work_dir))
            self._place.chmod(0o755)
        return self._place / name

    def _task(self) -> Path | None:
        match self.function.code:
            case DirectoryCode(path=path):
                return self._in_place_or_linked(path, "task", "the code")
            case ZipCode(path=path):
                archive.extract(path, self._room("task"))
                return self._room("task")
            case InlineCode(text=text, file_name=file_name):
                task = self._room("task")
                task.mkdir()
                task.chmod(0o755)
                (task / file_name).write_text(text, encoding="utf-8")
                (task / file_name).chmod(0o644)
                return task
            case _:
                return None

    def _layers(self) -> Path | None:
        layers = self.function.layers
        if not layers:
            return None
        if len(layers) == 1 and layers[0].is_dir():
            return self._in_place_or_linked(layers[0], "layers", "the layer")
        merged = self._room("layers")
        merged.mkdir()
        for number, layer in enumerate(layers, 1):
            source = layer
            if layer.is_dir():
                self._survey(layer, f"the layer {layer}")
            else:
                source = self._room(f"layer-{number}")
                archive.extract(layer, source)
            _link_tree(source, merged)
        merged.chmod(0o755)
        return merged

    def _in_place_or_linked(self, path: Path, name: str, words: str) -> Path:
        path = path.resolve()
        self._survey(path, words)
        # The mode of the top directory is no part of a package: `mktemp -d` makes 0700, and Lambda would not notice.
        if path.stat().st_mode & 0o005 == 0o005:
            return path
        room = self._room(name)
        room.mkdir()
        _link_tree(path, room)
        room.chmod(0o755)
        return room

    def _survey(self, path: Path, words: str) -> None:
        found = _Survey()
        _walk(path, "", found)
        self._plain_bytes += found.size_bytes
        if found.unreadable:
            self._warnings.append(
                f"{words} has what the sandbox's user cannot read, as on Lambda: {_few(found.unreadable)};"
                f" chmod o+r the files and o+rx the directories in {path}"
            )
        if found.outside:
            self._warnings.append(
                f"{words} has links that lead outside of it, to where the sandbox has nothing: {_few(found.outside)};"
                " copy the files instead"
            )
        if found.special:
            self._warnings.append(
                f"{words} has sockets, pipes or devices, which no package holds: {_few(found.special)}"
            )

    def _take_away(self) -> None:
        place, self._place = self._place, None
        if place is None:
            return
        for folder, _, _ in os.walk(place):  # copies keep read-only modes, which stop everybody but root from removing
            Path(folder).chmod(0o700)
        shutil.rmtree(place, ignore_errors=True)


def _explained(error: OSError, work_dir: Path) -> EngineError | InvalidFunction:
    what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    if error.errno in _FULL:
        return EngineError(f"no room to lay out the function below {work_dir}: {what}", remedy="free some space there")
    return InvalidFunction(f"the function's code cannot be laid out: {what}", remedy="check that path and its modes")


def _few(names: list[str]) -> str:
    more = len(names) - _NAMED_AT_MOST
    return ", ".join(names[:_NAMED_AT_MOST]) + (f" and {more} more" if more > 0 else "")


def _walk(folder: Path, prefix: str, found: _Survey) -> None:
    with os.scandir(folder) as entries:
        for entry in entries:
            name = prefix + entry.name
            status = entry.stat(follow_symlinks=False)
            if entry.is_symlink():
                if archive.leads_outside(name, os.readlink(entry.path)):  # noqa: PTH115  a Path an entry is too slow here
                    found.outside.append(name)
            elif entry.is_dir(follow_symlinks=False):
                if status.st_mode & 0o005 != 0o005:
                    found.unreadable.append(name + "/")
                _walk(Path(entry.path), name + "/", found)
            elif entry.is_file(follow_symlinks=False):
                found.size_bytes += status.st_size
                if not status.st_mode & 0o004:
                    found.unreadable.append(name)
            else:
                found.special.append(name)


def _link_tree(source: Path, target: Path) -> None:
    """Lays ``source`` over ``target`` with hard links, or copies where there can be none. Symbolic links survive."""
    with os.scandir(source) as entries:
        for entry in entries:
            place = target / entry.name
            if entry.is_dir(follow_symlinks=False):
                if place.is_symlink() or (place.exists() and not place.is_dir()):
                    place.unlink()  # a link of an earlier layer must not take us elsewhere
                place.mkdir(exist_ok=True)
                place.chmod(0o700)
                _link_tree(Path(entry.path), place)
                place.chmod(stat.S_IMODE(entry.stat(follow_symlinks=False).st_mode))
                continue
            if place.is_symlink() or place.exists():
                shutil.rmtree(place) if place.is_dir() and not place.is_symlink() else place.unlink()
            if entry.is_symlink():
                place.symlink_to(os.readlink(entry.path))  # noqa: PTH115
            elif entry.is_file(follow_symlinks=False):
                _link(Path(entry.path), place)


def _link(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError as error:
        # EXDEV: another file system; EPERM: fs.protected_hardlinks or a file system without links; EMLINK: too many.
        if error.errno not in {errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOTSUP}:
            raise
        shutil.copy2(source, target, follow_symlinks=False)
