"""What commands say: data on stdout, everything else on stderr; a progress line for what takes longer than a second."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def emit(document: Mapping[str, Any]) -> None:
    """One JSON document on stdout."""
    sys.stdout.write(json.dumps(document, ensure_ascii=False, indent=1) + "\n")
    sys.stdout.flush()


def data(text: str) -> None:
    """A line of data on stdout."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def console() -> Console:
    """For tables on stdout; where that is no terminal, wide enough that no column is folded."""
    from rich.console import Console

    return Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else 200)


def note(text: str) -> None:
    """A line for people on stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def warn(warnings: Iterable[str]) -> None:
    """Each on a line of its own, on stderr."""
    for each in warnings:
        note(f"warning: {each}")


def colours() -> bool:
    """Whether stderr is a terminal that wants colours (see no-color.org)."""
    return sys.stderr.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def dim(text: str) -> str:
    return f"\x1b[2m{text}\x1b[0m" if colours() else text


def red(text: str) -> str:
    return f"\x1b[31m{text}\x1b[0m" if colours() else text


class FunctionOutput:
    """The function's output on stderr as it comes."""

    def __call__(self, output: bytes) -> None:
        Progress.clear()
        text = output.decode("utf-8", errors="replace")
        sys.stderr.write(dim(text) if colours() else text)
        sys.stderr.flush()


class Progress:
    """Says what is going on once it has taken longer than a second: a line that renews itself on a terminal.

    Where stderr is no terminal each step is one line, so that a log shows what was waited for.
    """

    AFTER_S = 1.0
    LOG_EVERY_S = 10.0
    _shown = False
    _lock = threading.Lock()

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._what = ""
        self._since = time.monotonic()
        self._said, self._said_at = "", -self.LOG_EVERY_S
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def __enter__(self) -> Progress:
        if not self._quiet:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=1)
        self.clear()

    def __call__(self, what: str, *, keep_clock: bool = False) -> None:
        """A new step begins; with ``keep_clock`` it is the old one, told in new words."""
        self._what = what
        if not keep_clock:
            self._since = time.monotonic()

    @classmethod
    def clear(cls) -> None:
        """Take the line away, for something that stays."""
        with cls._lock:
            if cls._shown:
                sys.stderr.write("\r\x1b[K")
                cls._shown = False

    def _run(self) -> None:
        while not self._stop.wait(0.25):
            passed = time.monotonic() - self._since
            if passed < self.AFTER_S or not self._what:
                continue
            with self._lock:
                if sys.stderr.isatty():
                    sys.stderr.write(f"\r\x1b[K{self._what} ({passed:.0f} s)")
                    Progress._shown = True
                elif self._said != self._what and time.monotonic() - self._said_at > self.LOG_EVERY_S:
                    sys.stderr.write(f"{self._what} ...\n")
                    self._said, self._said_at = self._what, time.monotonic()
                sys.stderr.flush()


def table(rows: Sequence[Sequence[str]], *, header: Sequence[str]) -> str:
    """A plain table with aligned columns."""
    widths = [max(len(str(row[column])) for row in (header, *rows)) for column in range(len(header))]
    lines = [
        "  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (header, *rows)
    ]
    return "\n".join(lines)
