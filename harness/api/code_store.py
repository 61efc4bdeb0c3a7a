"""Deployment packages and layers on disk, by content: what is uploaded is judged, written once, and removed when nobody
refers to it any more.

Must not know functions: who refers to what is the registry's knowledge. One service owns a directory at a time.
"""  # noqa: D205

from __future__ import annotations

import base64
import contextlib
import errno
import fcntl
import hashlib
import os
import re
import shutil
import tempfile
import threading
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.api.faults import invalid, request_too_large
from harness.api.protocol import MAX_PACKAGE_REQUEST_BYTES
from harness.errors import InvalidFunction, InvalidInput
from harness.function import archive

MAX_ZIPPED_BYTES = 52_428_800
"""A deployment package that is uploaded directly [Lambda quotas: "50 MB (zipped, for direct upload)"]."""

_DAMAGED = "Could not unzip uploaded file. Please check your file, then try to upload again."
_DEEPEST = 200
"""Directories below one another: what removes a tree goes down it by recursion (Python before 3.13)."""
_INCOMING = "incoming-"
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class StoredCode:
    """A zip in the store. ``sha256`` is hexadecimal; Lambda shows it as base64."""

    sha256: str
    size_bytes: int
    unzipped_bytes: int
    path: Path


def shown_sha256(sha256: str) -> str:
    """A digest as Lambda's ``CodeSha256``."""
    return base64.b64encode(bytes.fromhex(sha256)).decode("ascii")


class CodeStore:
    """The directory ``code`` of a data directory. Thread-safe. Use as a context manager, or call `close`.

    Raises:
        InvalidInput: another service has it open, or it cannot be made.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._lock = threading.Lock()
        self._pins: Counter[str] = Counter()
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._owned = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise InvalidInput(
                f"the code directory {directory} cannot be made: {error.strerror}",
                remedy="choose another data directory with --store",
            ) from error
        try:
            fcntl.flock(
                self._owned, fcntl.LOCK_EX | fcntl.LOCK_NB
            )  # the kernel lets go of it however this process ends
        except OSError as error:
            os.close(self._owned)
            raise InvalidInput(
                f"another service keeps its functions in {directory}",
                remedy="stop it, or give this one a data directory of its own with --store",
            ) from error
        for left in directory.glob(f"{_INCOMING}*"):
            shutil.rmtree(left, ignore_errors=True)

    def __enter__(self) -> CodeStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the directory."""
        if self._owned >= 0:
            os.close(self._owned)
            self._owned = -1

    def path(self, sha256: str) -> Path:
        """Where the zip of a digest lies."""
        return self.directory / f"{sha256}.zip"

    def unzipped(self, sha256: str) -> Path:
        """Where the content of a zip lies that was kept unzipped (layers are: many functions share them)."""
        return self.directory / sha256

    @contextlib.contextmanager
    def admit(
        self, data: bytes, *, operation: str, uploaded: bool = True, keep_unzipped: bool = False
    ) -> Iterator[StoredCode]:
        """Judge and keep a zip. Within the block nobody removes it: the time to refer to it.

        ``uploaded``: it came in a request, which may carry less than Lambda takes from S3.

        Raises:
            Fault: Lambda would refuse it.
        """
        if uploaded and len(data) > MAX_ZIPPED_BYTES:
            raise request_too_large(MAX_PACKAGE_REQUEST_BYTES, operation)
        if not data:
            raise invalid("Uploaded file must be a non-empty zip")
        sha256 = hashlib.sha256(data).hexdigest()
        with self._pinned(sha256):
            yield self._keep(data, sha256, keep_unzipped=keep_unzipped)

    def remove(self, digests: set[str]) -> None:
        """Remove what has these digests, unless somebody is just about to refer to it."""
        with self._lock:
            for sha256 in digests:
                if not self._pins[sha256]:
                    self._remove(sha256)

    def remove_all_but(self, digests: set[str]) -> None:
        """Remove whatever has none of these digests."""
        there = {path.name.removesuffix(".zip") for path in self.directory.iterdir()}
        self.remove({name for name in there if _SHA256.fullmatch(name)} - digests)

    @contextlib.contextmanager
    def _pinned(self, sha256: str) -> Iterator[None]:
        with self._lock:
            self._pins[sha256] += 1
        try:
            yield
        finally:
            with self._lock:
                self._pins[sha256] -= 1
                if not self._pins[sha256]:
                    del self._pins[sha256]

    def _remove(self, sha256: str) -> None:
        self.path(sha256).unlink(missing_ok=True)
        folder = self.unzipped(sha256)
        if folder.is_dir():
            for inner, _, _ in os.walk(folder):  # read-only directories stop everybody but root from removing
                Path(inner).chmod(0o700)
            shutil.rmtree(folder, ignore_errors=True)

    def _keep(self, data: bytes, sha256: str, *, keep_unzipped: bool) -> StoredCode:
        work = Path(tempfile.mkdtemp(prefix=_INCOMING, dir=self.directory))
        try:
            zipped = work / "package.zip"
            with zipped.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())  # the function that refers to it is committed after this
            unpacked = work / "content"
            unzipped_bytes = _judged(zipped, unpacked)
            with self._lock:
                zipped.replace(self.path(sha256))
                if keep_unzipped and not self.unzipped(sha256).exists():
                    unpacked.rename(self.unzipped(sha256))
        finally:
            for inner, _, _ in os.walk(work):
                Path(inner).chmod(0o700)
            shutil.rmtree(work, ignore_errors=True)
        return StoredCode(sha256=sha256, size_bytes=len(data), unzipped_bytes=unzipped_bytes, path=self.path(sha256))


def _judged(zipped: Path, into: Path) -> int:
    """The bytes that a zip unpacks to, once it has been unpacked: only then every entry is known to be sound."""
    try:
        size = archive.unzipped_bytes(zipped)
        if size > archive.MAX_UNZIPPED_BYTES:
            raise invalid(f"Unzipped size must be smaller than {archive.MAX_UNZIPPED_BYTES} bytes")
        names = _names(zipped)
        if not names:
            raise invalid("Uploaded file must be a non-empty zip")
        if any(name.count("/") > _DEEPEST for name in names):
            raise invalid(f"{_DAMAGED} (the package: an entry lies beneath more than {_DEEPEST} directories)")
        return archive.extract(zipped, into)
    except InvalidFunction as error:
        why = str(error).replace(str(zipped), "the package")
        raise invalid(f"{_DAMAGED} ({why})") from error
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        raise invalid(f"{_DAMAGED} (the package: an entry's name is longer than a file's may be)") from error


def _names(zipped: Path) -> list[str]:
    with zipfile.ZipFile(zipped) as found:
        return found.namelist()


def zip_of(directory: Path) -> bytes:
    """A directory as a zip that is the same for the same content: what a version published from it is made of.

    Raises:
        InvalidFunction: it cannot be read, or holds more than Lambda takes.
    """
    try:
        paths = sorted(_below(directory))
        size = sum(path.lstat().st_size for path in paths)
        if size > archive.MAX_UNZIPPED_BYTES:
            raise InvalidFunction(
                f"the code in {directory} takes {size:,} bytes, and Lambda takes {archive.MAX_UNZIPPED_BYTES:,} (250 MB)",
                remedy="leave out what the function does not need, or make it an image",
            )
        with tempfile.SpooledTemporaryFile(max_size=1 << 24) as packed:
            with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as made:
                for path in paths:
                    _pack(made, path, path.relative_to(directory).as_posix())
            packed.seek(0)
            return packed.read()
    except OSError as error:
        raise InvalidFunction(f"the code in {directory} cannot be read: {error}", remedy="check its modes") from error


def _below(directory: Path) -> Iterator[Path]:
    """Everything in a directory; links are not followed."""

    def refuse(error: OSError) -> None:
        raise error

    for folder, folders, files in os.walk(directory, onerror=refuse):
        for name in (*folders, *files):
            yield Path(folder, name)


def _pack(made: zipfile.ZipFile, path: Path, name: str) -> None:
    info = zipfile.ZipInfo(name + "/" if path.is_dir() and not path.is_symlink() else name, (1980, 1, 1, 0, 0, 0))
    info.external_attr = path.lstat().st_mode << 16
    info.compress_type = zipfile.ZIP_DEFLATED
    if path.is_symlink():
        made.writestr(info, os.readlink(path))  # noqa: PTH115  the text of the link, not a path made of it
    elif path.is_dir():
        made.writestr(info, b"")
    elif path.is_file():
        made.writestr(info, path.read_bytes())
