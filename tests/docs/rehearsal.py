"""Runs documented commands where they can do no harm: in a copy of what they need, with a history and a service of its own.

Must not know which commands there are: what each may come to stands in `test_documented_commands`.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from documented import ROOT

LINKED = (
    "Makefile",
    "scripts",
    ".venv",
    "harness",
    "images",
    "bench",
    "docs",
    "pyproject.toml",
    "constraints.txt",
    "README.md",
)
COMMAND_TIMEOUT_S = 240
SERVICE_TIMEOUT_S = 60
DOCUMENTED_PORT = "4577"  # the default of `serve`; people have it in use
_SERVING = re.compile(r"serving Lambda on http://127\.0\.0\.1:(\d+)")
_DATABASE = "database"
_LAST_WORD = "Ctrl-C ends it"


@dataclass(frozen=True, kw_only=True)
class Run:
    code: int
    out: tuple[str, ...]  # standard output alone
    error: tuple[str, ...]
    seconds: float


@dataclass
class Service:
    """`lambda-harness serve` on a port that was free."""

    process: subprocess.Popen[str]
    reader: threading.Thread = field(init=False)
    port: str = ""
    said: list[str] = field(default_factory=list)
    introduced: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as said:
            self._take(said)
        self.introduced.set()

    def _take(self, said: IO[str]) -> None:
        for line in said:
            self.said.append(line.rstrip("\n"))
            if found := _SERVING.search(line):
                self.port = found[1]
            if _LAST_WORD in line:
                self.introduced.set()

    def end(self) -> None:
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(SERVICE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        finally:
            self.reader.join(SERVICE_TIMEOUT_S)


class Checkout:
    """A folder in which each documented command finds what it names, and may write."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = folder / ".history" / "runs.sqlite3"
        self._ran: dict[str, Run] = {}
        self._services: dict[str, Service] = {}
        self._generation = 0

    def environment(self, service: Service | None = None) -> dict[str, str]:
        found = {
            key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "LAMBDA_HARNESS_", "MAKE"))
        }
        found |= {
            "PATH": f"{self.folder / '.venv/bin'}:{os.environ['PATH']}",
            "LAMBDA_HARNESS_STORE": str(self.store),
            "NO_COLOR": "1",
            "AWS_ACCESS_KEY_ID": "any",
            "AWS_SECRET_ACCESS_KEY": "any",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_PAGER": "",
        }
        if service:
            found["AWS_ENDPOINT_URL_LAMBDA"] = f"http://127.0.0.1:{service.port}"
        return found

    def run(self, command: str, *, folder: str = ".", service: Service | None = None, anew: bool = False) -> Run:
        """Runs a command, once: another of the same text shares the result, unless ``anew`` or its database came or went."""
        if service:
            return self._run(command.replace(DOCUMENTED_PORT, service.port), folder, service)
        key = f"{self._generation if _DATABASE in command else 0}:{folder}:{command}"
        if anew or key not in self._ran:
            self._ran[key] = self._run(command, folder, None)
        return self._ran[key]

    def database_changed(self) -> None:
        """A database came or went: what was run with it says nothing about what the same commands do from now on."""
        self._generation += 1

    def _run(self, command: str, folder: str, service: Service | None) -> Run:
        for made in re.findall(r"(?:--report|--out|>) +([\w.-]+)", command):
            (self.folder / folder / made).unlink(missing_ok=True)
        begun = time.monotonic()
        process = subprocess.Popen(
            ["/bin/bash", "-c", command],
            cwd=self.folder / folder,
            env=self.environment(service),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        assert process.stdout is not None
        assert process.stderr is not None
        streams = (process.stdout, process.stderr)
        found: tuple[list[str], list[str]] = ([], [])
        readers = [
            threading.Thread(target=into.extend, args=((line.rstrip("\n") for line in stream),))
            for into, stream in zip(found, streams, strict=True)
        ]
        for reader in readers:
            reader.start()
        try:
            code = process.wait(COMMAND_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.terminate()
            raise
        finally:
            for reader in readers:
                reader.join()
            for stream in streams:
                stream.close()
        return Run(code=code, out=tuple(found[0]), error=tuple(found[1]), seconds=time.monotonic() - begun)

    def service(self, document: str, command: str) -> Service:
        """The service that a document starts with this command; it goes on until the next one, or the end."""
        if self._services.get(command) is None:
            for each in list(self._services):
                self._services.pop(each).end()
            arguments = [*shlex.split(command), "--port", "0", "--no-pull"]
            process = subprocess.Popen(
                arguments,
                cwd=self.folder,
                env=self.environment(),
                executable=str(self.folder / ".venv/bin" / arguments[0]),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            found = self._services[command] = Service(process=process)
            assert found.introduced.wait(SERVICE_TIMEOUT_S), f"{document}: {command} did not begin: {found.said}"
            assert found.port, f"{document}: {command} ended: {found.said}"
        return self._services[command]

    def end(self) -> None:
        for each in self._services.values():
            each.end()


@contextlib.contextmanager
def checkout() -> Iterator[Checkout]:
    """The sample functions copied, the rest linked: some documented commands write beside what they read."""
    with tempfile.TemporaryDirectory(prefix="lambda-harness-documented-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # the sandbox's user must get through
        for each in LINKED:
            if (ROOT / each).exists():
                (folder / each).symlink_to(ROOT / each)
        leave = shutil.ignore_patterns("__pycache__", "database.url")
        shutil.copytree(ROOT / "sample_functions", folder / "sample_functions", symlinks=True, ignore=leave)
        found = Checkout(folder)
        try:
            yield found
        finally:
            found.end()
