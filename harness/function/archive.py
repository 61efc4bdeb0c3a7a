"""Unpacks deployment packages and layers as Lambda would take them, and lets no archive write beside its place.

The whole archive is judged before the first byte is written. Must not know what is in the code.
"""

from __future__ import annotations

import calendar
import contextlib
import lzma
import os
import posixpath
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.errors import InvalidFunction

MAX_UNZIPPED_BYTES = 262_144_000
"""Code and layers together, unzipped [Lambda quotas: "250 MB"; its refusal names this number]."""

_IN_SANDBOX = ("/var/task/", "/opt/")
"""Where absolute links of a package may lead: its code and layers are mounted there."""


@dataclass(frozen=True, kw_only=True)
class _Entry:
    name: str
    info: zipfile.ZipInfo
    kind: str  # "file", "directory" or "link"
    target: str = ""


def unzipped_bytes(path: Path) -> int:
    """What an archive unpacks to, by its directory; `InvalidFunction` if it cannot be read."""
    with _opened(path) as archive:
        return sum(info.file_size for info in archive.infolist())


def extract(path: Path, into: Path) -> int:
    """Unpacks ``path`` below the new directory ``into`` and gives the bytes that it took.

    Modes are kept, but everybody may read, and directories may be entered: the sandbox has a user of its own.

    Raises:
        InvalidFunction: an entry that leads outside, cannot be unpacked, or is more than Lambda takes; it is named.
    """
    into.mkdir()
    into.chmod(0o755)
    written = 0
    with _opened(path) as archive:
        plan = _plan(path, archive)
        for entry in plan:
            target = into / entry.name
            with _named(path, entry.name):
                if entry.kind == "directory":
                    _make_directories(into, entry.name)
                    target.chmod(_mode(entry.info, 0o755) | 0o755)
                elif entry.kind == "file":
                    _make_directories(into, posixpath.dirname(entry.name))
                    written += _write(archive, entry, target)
        # Links come last: nothing is ever written through one.
        for entry in plan:
            if entry.kind == "link":
                with _named(path, entry.name):
                    _make_directories(into, posixpath.dirname(entry.name))
                    (into / entry.name).symlink_to(entry.target)
    return written


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        archive = zipfile.ZipFile(path)
    # What zipfile raises depends on the byte that is wrong: also ValueError (names), RuntimeError (versions).
    except (zipfile.BadZipFile, ValueError, RuntimeError, struct.error) as error:
        raise InvalidFunction(f"{path} is damaged: {error}", remedy="zip it anew") from error
    with archive:
        yield archive


@contextlib.contextmanager
def _named(path: Path, name: str) -> Iterator[None]:
    """Errors about one entry, with its name."""
    try:
        yield
    except RuntimeError as error:  # encrypted; also NotImplementedError: a method that zipfile does not know
        raise InvalidFunction(f"{path}: entry {name!r} cannot be unpacked: {error}", remedy="zip it plainly") from error
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, ValueError, struct.error) as error:
        raise InvalidFunction(f"{path}: entry {name!r} is damaged: {error}", remedy="zip it anew") from error
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise InvalidFunction(f"{path}: entry {name!r} collides with another one", remedy="zip it anew") from error


def _plan(path: Path, archive: zipfile.ZipFile) -> list[_Entry]:
    infos = archive.infolist()
    if not infos:
        raise InvalidFunction(f"{path} is empty, and Lambda refuses an empty package", remedy="put the code into it")
    total = sum(info.file_size for info in infos)
    if total > MAX_UNZIPPED_BYTES:
        largest = max(infos, key=lambda info: info.file_size)
        raise InvalidFunction(
            f"{path} unpacks to {total:,} bytes, and Lambda takes {MAX_UNZIPPED_BYTES:,} (250 MB);"
            f" the largest entry is {largest.filename!r}",
            remedy="leave out what the function does not need, or make it an image",
        )
    entries: dict[str, _Entry] = {}  # of two entries with one name the later one counts, as with unzip
    for info in infos:
        name = _safe_name(path, info)
        if name:
            entries[name] = _entry(path, archive, info, name)
    for name in entries:
        for parent in _parents(name):
            above = entries.get(parent)
            if above is not None and above.kind != "directory":
                raise InvalidFunction(
                    f"{path}: entry {name!r} lies beneath {parent!r}, which is a {above.kind}", remedy="zip it anew"
                )
    return list(entries.values())


def _make_directories(into: Path, name: str) -> None:
    """Directories that the archive may not name itself; everybody may enter them, whatever our umask is."""
    missing = [parent for parent in (name, *_parents(name)) if parent and not (into / parent).exists()]
    for parent in reversed(missing):
        (into / parent).mkdir()
        (into / parent).chmod(0o755)


def _parents(name: str) -> Iterator[str]:
    while name := name.rpartition("/")[0]:
        yield name


def _safe_name(path: Path, info: zipfile.ZipInfo) -> str:
    parts = [part for part in info.filename.split("/") if part not in {"", "."}]
    if info.filename.startswith("/") or ".." in parts:
        raise InvalidFunction(f"{path}: entry {info.filename!r} leads outside of the package", remedy="zip it anew")
    return "/".join(parts)


def _entry(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> _Entry:
    kind = stat.S_IFMT(info.external_attr >> 16)
    if info.is_dir():
        return _Entry(name=name, info=info, kind="directory")
    if kind == stat.S_IFLNK:
        if info.file_size > 4096:  # PATH_MAX
            raise InvalidFunction(f"{path}: entry {name!r} is a link that is too long", remedy="zip it anew")
        with _named(path, name):
            target = os.fsdecode(archive.read(info))
        if leads_outside(name, target) or "\0" in target or not target:
            raise InvalidFunction(
                f"{path}: entry {name!r} is a link that leads outside of the package, to {target!r}",
                remedy="put the file itself into the archive",
            )
        return _Entry(name=name, info=info, kind="link", target=target)
    if kind not in {0, stat.S_IFREG}:
        raise InvalidFunction(f"{path}: entry {name!r} is a device or a pipe", remedy="leave it out")
    return _Entry(name=name, info=info, kind="file")


def leads_outside(name: str, target: str) -> bool:
    """Does a link at ``name`` (relative to the package) lead where the sandbox does not mount the package?"""
    if target.startswith("/"):
        return not f"{posixpath.normpath(target)}/".startswith(_IN_SANDBOX)
    return posixpath.normpath(posixpath.join(posixpath.dirname(name), target)).split("/")[0] == ".."


def _mode(info: zipfile.ZipInfo, default: int) -> int:
    return (info.external_attr >> 16) & 0o777 or default  # archives made on Windows carry none


def _write(archive: zipfile.ZipFile, entry: _Entry, target: Path) -> int:
    with archive.open(entry.info) as packed, target.open("xb") as unpacked:
        shutil.copyfileobj(packed, unpacked, 1 << 20)  # zipfile reads no more than the size that was judged
        size = unpacked.tell()
    target.chmod(_mode(entry.info, 0o644) | 0o444)
    # Python trusts a .pyc only if its source has the time that it was compiled from.
    with contextlib.suppress(ValueError, OverflowError, OSError):
        seconds = calendar.timegm((*entry.info.date_time, 0, 0, 0))
        os.utime(target, (seconds, seconds))
    return size
