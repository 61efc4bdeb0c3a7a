"""A measuring post: what runs inside a worker of a cluster. It keeps code that was sent, and measures blocks of a sweep.

Must not know the cluster: it is called with plain values from whatever thread, and answers with plain values. What it
promises to those who call it:

- A block is measured in the process that was prepared for it, and begun there once. Whoever hands it out again, such as
  a scheduler that believes the worker dead, gets a refusal and no second measurement.
- A block ends with everything given back: its sandbox, its stand. A post that was told to stop ends a block after the
  invocation that is running.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import pickle
import shutil
import tarfile
import threading
import traceback
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from harness import packing
from harness.engine.client import owner
from harness.errors import EngineError, HarnessError
from harness.experiments import sweep
from harness.experiments.sweep import SweepPlan
from harness.function import DirectoryCode, Function, ZipCode
from harness.stand import Stand, new_work_dir

KEPT_CODE = 4
"""So much code that no sweep uses any more stays for the next sweep of the same function."""
_NOT_THE_HOSTS = frozenset({"harness_version", "python"})
"""Members of a host's description that say nothing about how fast it is."""


@dataclass(frozen=True, kw_only=True)
class Parcel:
    """Code or a layer as it travels: a tar archive of a directory, or a deployment package as it is."""

    key: str
    packed: bytes = field(repr=False)


def pack(path: Path) -> Parcel:
    """A directory or a zip as bytes, keyed by their content."""
    if path.is_file():
        packed = path.read_bytes()
        return Parcel(key=f"zip-{hashlib.sha256(packed).hexdigest()}", packed=packed)
    written = io.BytesIO()
    digest = packing.pack(path, written)
    return Parcel(key=f"tar-{digest}", packed=written.getvalue())


def parcels(function: Function) -> dict[str, Parcel]:
    """What has to travel with a function: path on this side -> parcel. Nothing for an image or inline code."""
    paths = list(function.layers)
    if isinstance(function.code, DirectoryCode | ZipCode):
        paths.append(function.code.path)
    return {str(path): pack(path) for path in paths}


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a post is prepared for. ``code`` maps the function's paths on the caller's side to keys of parcels."""

    sweep_id: str
    function: Function
    code: Mapping[str, str]
    vantage: str
    pull: bool


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A post that can measure: its process, its host, and how much memory its sandboxes may have."""

    process: str
    host_id: str
    host: Mapping[str, Any]
    room_bytes: float
    warnings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Block:
    """Some invocations at one memory size and variant, in a sandbox of their own. ``process``: the only one to do it."""

    block_id: str
    sweep_id: str
    process: str
    plan: SweepPlan


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What came of a block: its records as JSON types, and why there are no more of them, if there should be."""

    records: tuple[dict[str, Any], ...] = ()
    lost: str = ""
    stopped: bool = False


@dataclass(frozen=True, kw_only=True)
class Refused:
    """Something that could not be done here: an error's message and remedy, in a form that any caller understands."""

    message: str
    remedy: str = ""


@dataclass(kw_only=True)
class _Going:
    """A sweep that this post was prepared for."""

    job: Job
    function: Function
    host_id: str
    stopped: threading.Event = field(default_factory=threading.Event)
    begun: set[str] = field(default_factory=set)


class Outpost:
    """The post of a process. Safe to use from threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._folder: Path | None = None
        self._code: dict[str, Path] = {}
        self._arriving: dict[str, Path] = {}
        self._going: dict[str, _Going] = {}

    def missing(self, keys: Sequence[str]) -> list[str]:
        """The keys of parcels that are not here."""
        with self._lock:
            return [key for key in keys if key not in self._code]

    def receive(self, key: str, at: int, part: bytes) -> None:
        """A part of a parcel, which begins ``at`` this byte."""
        with self._lock:
            path = self._arriving.setdefault(key, self._room() / f"{key}.part")
            with path.open("r+b" if at else "wb") as file:
                file.seek(at)
                file.write(part)
                file.truncate()

    def prepare(self, job: Job) -> Prepared | Refused:
        """Lay the code out, and see that engine, vantage and image are there."""
        try:
            function = self._here(job)
            with Stand(function, vantage=job.vantage, pull=job.pull) as stand:
                identity = host_id(stand)
                found = Prepared(
                    process=owner(),
                    host_id=identity,
                    host=dict(stand.host),
                    room_bytes=sweep.room_bytes(stand),
                    warnings=tuple(stand.warnings),
                )
        except HarnessError as error:
            return Refused(message=str(error), remedy=error.remedy)
        with self._lock:
            self._going[job.sweep_id] = _Going(job=job, function=function, host_id=identity)
        return found

    def measure(self, block: Block) -> Measured:
        """The records of a block; what they cannot be is a second measurement of it."""
        with self._lock:
            going = self._going.get(block.sweep_id)
            if block.process != owner() or going is None:
                return Measured(lost="its worker was started anew meanwhile")
            if block.block_id in going.begun:
                return Measured(lost="it was handed out a second time, and is not measured twice")
            going.begun.add(block.block_id)
        records: list[dict[str, Any]] = []
        if going.stopped.is_set():
            return Measured(stopped=True)
        try:
            with (
                Stand(going.function, vantage=going.job.vantage, pull=going.job.pull) as stand,
                contextlib.closing(sweep.run(stand, block.plan)) as measured,
            ):
                for record in measured:
                    records.append(replace(record, host_id=going.host_id).as_dict())
                    if going.stopped.is_set():
                        break
        except HarnessError as error:
            remedy = f" ({error.remedy})" if error.remedy else ""
            return Measured(records=tuple(records), lost=f"{error}{remedy}")
        except Exception as error:  # noqa: BLE001  # a bug here must not cost the records, nor the sweep its other blocks
            where = traceback.format_exception(error)[-2].strip().replace("\n", " ")
            return Measured(records=tuple(records), lost=f"{type(error).__name__}: {error} [{where}]")
        return Measured(records=tuple(records), stopped=going.stopped.is_set())

    def stop(self, sweep_id: str) -> None:
        """End the block that is being measured after its running invocation; begin no other of this sweep."""
        with self._lock:
            if going := self._going.get(sweep_id):
                going.stopped.set()

    def forget(self, sweep_id: str) -> None:
        """The sweep is over. Its code stays for the next one, up to `KEPT_CODE` pieces."""
        with self._lock:
            if going := self._going.pop(sweep_id, None):
                going.stopped.set()
            used = {key for each in self._going.values() for key in each.job.code.values()}
            unused = [key for key in self._code if key not in used]
            for key in unused[: max(0, len(unused) - KEPT_CODE)]:
                _remove(self._code.pop(key))

    def _here(self, job: Job) -> Function:
        """The function with its code on this side."""
        with self._lock:
            paths = {path: self._laid(key) for path, key in job.code.items()}
        code = job.function.code
        if isinstance(code, DirectoryCode | ZipCode):
            code = replace(code, path=paths[str(code.path)])
        return replace(job.function, code=code, layers=tuple(paths[str(layer)] for layer in job.function.layers))

    def _laid(self, key: str) -> Path:
        found = self._code.pop(key, None)
        if found is None:
            arrived = self._arriving.pop(key, None)
            if arrived is None:
                raise EngineError("the function's code did not arrive", remedy="run the sweep again")
            kind, _, digest = key.partition("-")
            if hashlib.sha256(arrived.read_bytes()).hexdigest() != digest:
                arrived.unlink()
                raise EngineError("the function's code arrived damaged", remedy="run the sweep again")
            if kind == "zip":
                found = arrived.rename(arrived.with_suffix(".zip"))
                found.chmod(0o644)
            else:
                found = arrived.with_suffix("")
                with tarfile.open(arrived) as archive:
                    # What comes from a client that may run anything here needs no distrust, only its own modes.
                    archive.extractall(found, filter="fully_trusted", numeric_owner=True)  # noqa: S202
                found.chmod(0o755)
                arrived.unlink()
        self._code[key] = found  # the last that was used is the last to go
        return found

    def _room(self) -> Path:
        """Our directory, which goes with the process; what a killed one leaves is reaped by the next command."""
        if self._folder is None:
            self._folder = folder = new_work_dir()
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return self._folder


def host_id(stand: Stand) -> str:
    """A short fingerprint of the host that a stand stands on: two engines are two hosts, whatever else they share.

    Made from the engine's own id, and from what the host's description says that may change a figure: a kernel that was
    replaced, or another vantage, is another host.
    """
    with stand.engine.asked("name itself"):
        engine_id = str(stand.engine.docker.info().get("ID") or "")
    # Podman has no id of its own: there it is told by this boot, and what the description says.
    return fingerprint(stand.host, engine_id or owner().split(":", 2)[2])


def fingerprint(described: Mapping[str, Any], engine_id: str) -> str:
    """Eight hexadecimal digits; see `host_id`."""
    told = {name: value for name, value in described.items() if name not in _NOT_THE_HOSTS}
    text = json.dumps([engine_id, told], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


_HERE = Outpost()

# What a cluster calls, by name. Arguments that are more than text and bytes come pickled: a cluster's client would look
# into them for references to its own results.


def process() -> str:
    """Which process this is, told from any that is started in its place."""
    return owner()


def missing(keys: Sequence[str]) -> list[str]:
    """See `Outpost.missing`."""
    return _HERE.missing(keys)


def receive(key: str, at: int, part: bytes) -> None:
    """See `Outpost.receive`."""
    _HERE.receive(key, at, part)


def prepare(job: bytes) -> Prepared | Refused:
    """See `Outpost.prepare`."""
    return _HERE.prepare(pickle.loads(job))  # noqa: S301  # from the client, which may run anything here anyway


def measure(block: bytes) -> Measured:
    """See `Outpost.measure`."""
    return _HERE.measure(pickle.loads(block))  # noqa: S301


def stop(sweep_id: str) -> None:
    """See `Outpost.stop`."""
    _HERE.stop(sweep_id)


def forget(sweep_id: str) -> None:
    """See `Outpost.forget`."""
    _HERE.forget(sweep_id)
