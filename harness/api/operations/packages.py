"""The code that a request names: a zip, an image, or a local directory.

A local directory comes as ``S3Bucket="hot-reload"`` and its absolute path as ``S3Key``: the form that users of other
emulators know, and one that every client lets through. There is no S3 behind the service.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.api.code_store import zip_of
from harness.api.faults import invalid
from harness.api.model import DIRECTORY, IMAGE, Package
from harness.api.registry import Registry, zip_package
from harness.errors import InvalidFunction

HOT_RELOAD_BUCKET = "hot-reload"


@contextlib.contextmanager
def named_package(code: dict[str, Any], registry: Registry, *, operation: str) -> Iterator[Package]:
    """The package that the members ZipFile, ImageUri and S3Bucket of a request name, safe for the time of the block.

    Raises:
        Fault: none is named, it is not here, or Lambda would refuse it.
    """
    given = [name for name in ("ZipFile", "ImageUri", "S3Bucket") if code.get(name)]
    if code.get("ZipFile") == b"":
        raise invalid("Uploaded file must be a non-empty zip")
    if not given:
        raise invalid("Please provide a source for function code.")
    if len(given) > 1:
        raise invalid("Please do not provide other FunctionCode parameters when providing a ZipFile.")
    if "ZipFile" in given:
        with registry.admitted(code["ZipFile"], operation=operation) as stored:
            yield zip_package(stored)
    elif "ImageUri" in given:
        yield Package(kind=IMAGE, reference=_reference(code["ImageUri"]))
    else:
        yield Package(kind=DIRECTORY, path=local_directory(code))


def _reference(uri: str) -> str:
    if not uri.strip() or any(letter.isspace() for letter in uri):
        raise invalid(f"Source image {uri} is not valid. Provide a valid source image.")
    return uri


def local_directory(code: dict[str, Any]) -> Path:
    """The directory that stands in for an object of S3."""
    bucket, key = code["S3Bucket"], code.get("S3Key")
    if bucket != HOT_RELOAD_BUCKET:
        raise invalid(
            "Error occurred while GetObject. S3 Error Code: NoSuchBucket. S3 Error Message: The specified bucket does "
            f"not exist (this service has no S3: upload {bucket}/{key} as ZipFile, or name a local directory with"
            f" S3Bucket={HOT_RELOAD_BUCKET} and its absolute path as S3Key)"
        )
    path = Path(key or "")
    if not key or not path.is_absolute() or not path.is_dir():
        raise invalid(
            "Error occurred while GetObject. S3 Error Code: NoSuchKey. S3 Error Message: The specified key does not"
            f" exist (with S3Bucket={HOT_RELOAD_BUCKET} the S3Key is the absolute path of a directory that is there,"
            f" and {key!r} is not)"
        )
    return path.resolve()


@contextlib.contextmanager
def fixed(package: Package, registry: Registry, *, wanted: bool = True) -> Iterator[Package]:
    """The package as a published version keeps it: a directory may change, so a zip is made of it.

    Not ``wanted``: the package as it is, for requests that publish nothing.

    Raises:
        Fault: the directory cannot be read, or is larger than Lambda takes.
    """
    if not wanted or package.kind != DIRECTORY or package.path is None:
        yield package
        return
    try:
        data = zip_of(package.path)
    except InvalidFunction as error:
        raise invalid(str(error)) from error
    with registry.admitted(data, operation="PublishVersion", uploaded=False) as stored:
        yield zip_package(stored)
