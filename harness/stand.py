"""What an experiment stands on: an engine, a vantage, an image and a laid-out function, opened once for a command.

`Stand` is a context manager that owns all of it. It gives sandboxes, for the function itself or for a variant of it
(another memory size, other variables), and the facts for the document.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from harness import host
from harness.cell import PROVISIONED, SAMPLE_S, CpuBoard, Surroundings
from harness.debugger import Debug
from harness.engine import images, parts, relay_mount
from harness.engine.client import Engine, EngineFacts, owner, owner_is_gone, reap
from harness.engine.entrypoint import command_for
from harness.engine.images import ResolvedImage
from harness.errors import EngineError, UsageError
from harness.function import Function, ImageCode, Package
from harness.observer import Observer
from harness.sandbox import Sandbox
from harness.tiers import tier
from harness.vantage import Vantage
from harness.vantage.agent import AgentVantage
from harness.vantage.api import ApiVantage
from harness.vantage.host import HostVantage

if TYPE_CHECKING:
    from harness.receivers import Receivers

_WORK_PREFIX = "lambda-harness-"
_OWNER_FILE = "owner"
VANTAGES = ("auto", "host", "agent", "api")


def choose_vantage(engine: Engine, facts: EngineFacts, wanted: str = "auto") -> Vantage:
    """The best vantage here, or the wanted one; `EngineError` where that cannot be. Whoever asks closes it."""
    if wanted not in VANTAGES:
        raise UsageError(f"there is no vantage {wanted!r}", remedy=f"choose one of {', '.join(VANTAGES)}")
    why_not = HostVantage.why_not(facts)
    if wanted == "host" and why_not:
        raise EngineError(f"vantage host is not possible: {why_not}", remedy="use --vantage agent or --vantage api")
    if wanted in ("auto", "host") and not why_not:
        return HostVantage()
    if wanted == "api":
        return ApiVantage(engine, facts)
    agent = AgentVantage(engine)
    try:
        agent.start()
    except EngineError as error:
        agent.close()
        if wanted == "agent":
            raise
        return ApiVantage(engine, facts, why_not_agent=str(error))
    return agent


def work_base() -> Path:
    """Where work directories are made: on disk, so not in a /tmp that may be memory."""
    disk = Path("/var/tmp")
    return disk if disk.is_dir() else Path(tempfile.gettempdir())


def new_work_dir() -> Path:
    """A directory that names this process as its owner; whoever asked removes it, or the next command, if that is killed."""
    found = Path(tempfile.mkdtemp(prefix=_WORK_PREFIX, dir=work_base()))
    (found / _OWNER_FILE).write_text(owner())
    found.chmod(0o755)
    return found


def reap_work_dirs(*, everything: bool = False) -> list[str]:
    """Remove the work directories of commands that were killed, and unmount what they had mounted."""
    removed = []
    for folder in work_base().glob(f"{_WORK_PREFIX}*"):
        with contextlib.suppress(OSError):
            text = (folder / _OWNER_FILE).read_text()
            if not everything and not owner_is_gone(text):
                continue
            for mounted in psutil.disk_partitions(all=True):
                if Path(mounted.mountpoint).is_relative_to(folder):
                    HostVantage.unmount(Path(mounted.mountpoint))
            shutil.rmtree(folder)
            removed.append(f"directory {folder}")
    return removed


class Ground:
    """An engine, the vantage over it and the board of its CPUs: opened once for a process, under one stand or many.

    A context manager. Entering it raises the engine's errors, and reaps what commands left that were killed.
    """

    def __init__(self, *, vantage: str = "auto") -> None:
        self._wanted = vantage
        self._undo = contextlib.ExitStack()
        self.engine: Engine
        self.facts: EngineFacts
        self.vantage: Vantage
        self.cpus: CpuBoard
        self.host: dict[str, Any] = {}

    def __enter__(self) -> Ground:
        try:
            self.engine = self._undo.enter_context(contextlib.closing(Engine()))
            self.facts = self.engine.facts()
            self.vantage = choose_vantage(self.engine, self.facts, self._wanted)
            self._undo.callback(self.vantage.close)
            self.host = host.describe(self.facts, self.vantage)
            self.cpus = CpuBoard(self.vantage.cpus())
            reap(self.engine, release=self.vantage.let_go)
            reap_work_dirs()
        except BaseException:
            self._undo.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()


class Stand:
    """See the module. Raises the errors of the engine, of images and of functions while it is entered.

    ``ground`` None: one of its own, from ``vantage``. ``receivers`` and ``observer`` belong to whoever gave them.
    """

    def __init__(
        self,
        function: Function,
        *,
        vantage: str = "auto",
        ground: Ground | None = None,
        freeze: bool = True,
        pull: bool = True,
        on_output: Callable[[bytes], None] | None = None,
        observer: Observer | None = None,
        receivers: Receivers | None = None,
        debug: Debug | None = None,
        sample_s: float = SAMPLE_S,
        progress: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.function = function
        self._wanted = vantage
        self._ground = ground
        self._freeze = freeze
        self._pull = pull
        self._on_output = on_output
        self._observer = observer or Observer()
        self._receivers = receivers
        self._debug = debug
        self._sample_s = sample_s
        self._progress = progress
        self._undo = contextlib.ExitStack()
        self.engine: Engine
        self.facts: EngineFacts
        self.vantage: Vantage
        self.host: dict[str, Any] = {}
        self.warnings: tuple[str, ...] = ()
        self._around: Surroundings

    def __enter__(self) -> Stand:
        try:
            self._open()
        except BaseException:
            self._undo.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def _open(self) -> None:
        function = self.function
        tier(function.memory_mb)
        ground = self._ground or self._undo.enter_context(Ground(vantage=self._wanted))
        self.engine, self.facts, self.vantage, self.host = ground.engine, ground.facts, ground.vantage, ground.host
        named = function.code.reference if isinstance(function.code, ImageCode) else function.image
        image = images.resolve(
            self.engine.docker,
            function.runtime,
            function.architecture,
            image=named,
            pull=self._pull,
            progress=self._progress,
        )
        work_dir = new_work_dir()
        self._undo.callback(shutil.rmtree, work_dir, ignore_errors=True)
        laid = self._undo.enter_context(Package(function, work_dir))
        self.warnings = laid.warnings
        over = self.vantage.sees_files
        rie_path = relay_mount.RIE_PATH if over else relay_mount.starter(relayed=self.vantage.relays)
        self._around = Surroundings(
            engine=self.engine,
            vantage=self.vantage,
            image=image,
            laid=laid,
            work_dir=work_dir,
            start=command_for(self.engine, image.image_id, function.handler, rie_path, replaces_images=over),
            rie_version=parts.rie_version(),
            cpus=ground.cpus,
            on_output=self._on_output,
            observer=self._observer,
            receivers=self._receivers,
            debug=self._debug,
            sample_s=self._sample_s,
            freeze=self._freeze and self._debug is None,
        )

    @property
    def image(self) -> ResolvedImage:
        """The image that sandboxes run in."""
        return self._around.image

    @property
    def rie_version(self) -> str | None:
        return self._around.rie_version

    def variant(self, *, memory_mb: int | None = None, environment: Mapping[str, str] | None = None) -> Function:
        """The function at another memory size, or with variables laid over its own."""
        return replace(
            self.function,
            memory_mb=self.function.memory_mb if memory_mb is None else memory_mb,
            environment={**self.function.environment, **(environment or {})},
        )

    def sandbox(
        self,
        function: Function | None = None,
        *,
        extra_binds: Mapping[Path, str] | None = None,
        provisioned: bool = False,
    ) -> Sandbox:
        """A new sandbox, not started yet: enter it. ``extra_binds``: host path -> container path, mounted read-only.

        ``provisioned``: one for `Sandbox.initialise`, which the function can tell from the others.
        """
        around = replace(self._around, initialization_type=PROVISIONED) if provisioned else self._around
        return Sandbox(function or self.function, around, extra_binds=extra_binds)
