"""A directory as a tar archive that depends on its content alone: for carrying it to an engine, or to another host."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO


def files(directory: Path) -> Iterator[Path]:
    """The directory and everything below, in an order that depends on the names alone."""
    yield directory
    for folder, folders, names in os.walk(directory):
        folders.sort()
        for name in sorted([*folders, *names]):
            yield Path(folder, name)


def pack(directory: Path, into: IO[bytes]) -> str:
    """Write the directory as a tar, owned by root, and return the SHA-256 of that tar. Sockets and the like stay here."""
    with tarfile.open(fileobj=into, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path in files(directory):
            found = path.lstat()
            if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode) or stat.S_ISLNK(found.st_mode)):
                continue
            about = archive.gettarinfo(path, arcname=f"./{path.relative_to(directory)}" if path != directory else ".")
            about.uid = about.gid = 0
            about.uname = about.gname = ""
            # Kept of files, in whole seconds: Python compares a source's time with the one in its compiled file. Those of
            # directories come and go with how they were laid out.
            about.mtime = 0 if about.isdir() else found.st_mtime_ns // 10**9
            if about.isreg():
                with path.open("rb") as file:
                    archive.addfile(about, file)
            else:
                archive.addfile(about)
    into.seek(0)
    digest = hashlib.sha256()
    while chunk := into.read(io.DEFAULT_BUFFER_SIZE * 16):
        digest.update(chunk)
    return digest.hexdigest()
