"""The history of runs: one SQLite file in the user's data directory. It keeps records and findings, and judges neither.

Must not know engines, plans or prices: a run is a kind, four JSON objects (function, host, plan, findings) and its
invocations in the order they were measured. Beside the runs it keeps documents, JSON objects under a name in a
collection, for those who have something to remember across restarts; what is in them is their business.

What it promises:

- An invocation is committed before `Run.add` returns, so whatever happens later loses nothing that was measured.
- A document is committed before `put_document` or `delete_document` returns.
- Several processes may use one file at once (WAL: readers never wait; writers wait up to `BUSY_TIMEOUT_MS`).
- A file that is no store, is damaged, or was written by a newer harness is reported by name and left as it was.
- A run whose process died is shown as interrupted. That is worked out on reading and never written, so that a reader
  cannot spoil a run that is alive.
"""

from __future__ import annotations

import json
import os
import secrets
import sqlite3
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from harness.errors import Interrupted, InvalidInput
from harness.invocation import SCHEMA, Invocation

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import timedelta
    from types import TracebackType

STORE_VARIABLE = "LAMBDA_HARNESS_STORE"
LATEST = "latest"
"""Accepted wherever a run id is: the newest run."""

BUSY_TIMEOUT_MS = 15_000
_SQLITE_MAGIC = b"SQLite format 3\x00"
_APPLICATION_ID = 0x6C686172  # "lhar": tells a store from any other SQLite file
_CROCKFORD = "0123456789abcdefghjkmnpqrstvwxyz"  # base 32 without i, l, o and u: nothing to misread when typing

# One entry is one step of the schema; a step that has been released is never edited, only followed by another.
_MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE runs (
            run_id TEXT PRIMARY KEY,
            kind TEXT NOT NULL,
            function_name TEXT NOT NULL,
            function TEXT NOT NULL,
            host TEXT NOT NULL,
            plan TEXT NOT NULL,
            findings TEXT NOT NULL,
            state TEXT NOT NULL,
            created_at TEXT NOT NULL,
            finished_at TEXT,
            owner_pid INTEGER NOT NULL,
            owner_boot TEXT NOT NULL,
            owner_started TEXT NOT NULL
        )""",
        """CREATE TABLE invocations (
            run_id TEXT NOT NULL REFERENCES runs (run_id) ON DELETE CASCADE,
            position INTEGER NOT NULL,
            memory_mb INTEGER NOT NULL,
            outcome TEXT NOT NULL,
            record TEXT NOT NULL,
            PRIMARY KEY (run_id, position)
        )""",
        "CREATE INDEX runs_by_time ON runs (created_at)",
    ),
    (
        """CREATE TABLE documents (
            collection TEXT NOT NULL,
            key TEXT NOT NULL,
            document TEXT NOT NULL,
            PRIMARY KEY (collection, key)
        ) WITHOUT ROWID""",
    ),
)
SCHEMA_VERSION = len(_MIGRATIONS)


class RunState(StrEnum):
    """Where a run stands: a closed set."""

    RUNNING = "running"
    COMPLETE = "complete"
    INTERRUPTED = "interrupted"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class Owner:
    """The identity of a process: a pid alone is used again, also after a reboot."""

    pid: int
    boot: str
    started: str

    def alive(self) -> bool:
        return self.boot == _boot_id() and self.started == _process_started(self.pid)


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """One line of `runs list`."""

    run_id: str
    kind: str
    function: str
    state: RunState
    created_at: str
    finished_at: str | None
    invocations: int
    memory_mb: tuple[int, ...]
    recommended_memory_mb: int | None

    def as_dict(self) -> dict[str, Any]:
        return {
            "run_id": self.run_id,
            "kind": self.kind,
            "function": self.function,
            "state": str(self.state),
            "created_at": self.created_at,
            "finished_at": self.finished_at,
            "invocations": self.invocations,
            "memory_mb": list(self.memory_mb),
            "recommended_memory_mb": self.recommended_memory_mb,
        }


@dataclass(frozen=True, kw_only=True)
class StoredRun:
    """One run without its invocations, which may be many: `Store.invocations` reads those."""

    run_id: str
    kind: str
    function: dict[str, Any]
    host: dict[str, Any]
    plan: dict[str, Any]
    findings: dict[str, Any]
    state: RunState
    created_at: str
    finished_at: str | None


class Run:
    """A run that is being written. As a context manager it is finished whatever happens: a block that is left by
    Ctrl-C leaves it interrupted, by another error failed, and otherwise complete.
    """  # noqa: D205

    def __init__(self, store: Store, run_id: str) -> None:
        self.run_id = run_id
        self._store = store
        self._position = 0
        self._finished = False

    def add(self, invocation: Invocation) -> None:
        """Store one record; it is on its way to the disk, and safe from the death of this process, on return."""
        self._position = self._store._append(self.run_id, self._position, invocation)  # noqa: SLF001 (one class in two halves)

    def finish(self, state: RunState | str = RunState.COMPLETE, findings: dict[str, Any] | None = None) -> None:
        """Set the final state; may be called again, for example with findings that were worked out later."""
        self._store._finish(self.run_id, RunState(state), findings)  # noqa: SLF001
        self._finished = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._finished:
            return
        if error is None:
            self.finish(RunState.COMPLETE)
            return
        state = RunState.INTERRUPTED if isinstance(error, KeyboardInterrupt | Interrupted) else RunState.FAILED
        try:
            self.finish(state)
        except InvalidInput as late:  # a full disk, most likely: the error that ended the run is the one to hear about
            error.add_note(f"the state of run {self.run_id} could not be stored either: {late}")


def default_path() -> Path:
    """LAMBDA_HARNESS_STORE, or runs.sqlite3 in the user's data directory [XDG Base Directory Specification]."""
    if named := os.environ.get(STORE_VARIABLE):
        return Path(named).expanduser()
    data = os.environ.get("XDG_DATA_HOME", "")
    # The specification says that a relative path in the variable is invalid and to be ignored.
    root = Path(data) if data and Path(data).is_absolute() else Path.home() / ".local" / "share"
    return root / "lambda-harness" / "runs.sqlite3"


class Store:
    """The file. Use as a context manager, or call `close`. Safe to share between threads of one process."""

    def __init__(self, path: Path | None = None) -> None:
        """Open the store and bring its schema up to date; `InvalidInput` if that is impossible, the file untouched."""
        self.path = path or default_path()
        self._lock = threading.RLock()
        _refuse_what_is_no_database(self.path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.touch(mode=0o600)  # responses and logs may hold secrets; an existing file keeps its mode
        except OSError as error:
            raise InvalidInput(
                f"the history {self.path} cannot be made: {error.strerror or error}",
                remedy=f"choose another file with --store or {STORE_VARIABLE}",
            ) from error
        with self._explained():
            # isolation_level=None: transactions are begun and ended here, in sight.
            self._db = sqlite3.connect(
                self.path, timeout=BUSY_TIMEOUT_MS / 1000, isolation_level=None, check_same_thread=False
            )
        try:
            with self._explained():
                self._db.row_factory = sqlite3.Row
                self._refuse_foreign_and_newer()
                self._db.execute("PRAGMA foreign_keys = ON")
                self._turn_on_wal()
                # WAL with NORMAL survives the death of this process; a power cut may cost the last few records. FULL
                # would sync the disk after each invocation and so disturb the next measurement.
                self._db.execute("PRAGMA synchronous = NORMAL")
                self._migrate()
        except BaseException:
            self._db.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        with self._lock:
            self._db.close()

    # Writing

    def begin(
        self,
        kind: str,
        function: dict[str, Any],
        host: dict[str, Any] | None = None,
        plan: dict[str, Any] | None = None,
        *,
        now: datetime | None = None,
    ) -> Run:
        """A new run in state running. ``function["name"]`` is what lists show; ``now`` is for those who import runs."""
        created = now or datetime.now(UTC)
        owner = this_process()
        with self._explained(), self._lock, self._transaction():
            run_id = self._free_id(created)
            self._db.execute(
                "INSERT INTO runs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, NULL, ?, ?, ?)",
                (
                    run_id,
                    kind,
                    _text(str(function.get("name") or "")),
                    _dump(function),
                    _dump(host or {}),
                    _dump(plan or {}),
                    _dump({}),
                    str(RunState.RUNNING),
                    _stamp(created),
                    owner.pid,
                    owner.boot,
                    owner.started,
                ),
            )
        return Run(self, run_id)

    def _append(self, run_id: str, position: int, invocation: Invocation) -> int:
        with self._explained(), self._lock, self._transaction():
            found = self._db.execute("SELECT MAX(position) FROM invocations WHERE run_id = ?", (run_id,)).fetchone()[0]
            position = max(position, found or 0) + 1
            try:
                self._db.execute(
                    "INSERT INTO invocations VALUES (?, ?, ?, ?, ?)",
                    (run_id, position, invocation.memory_mb, str(invocation.outcome), _dump(invocation.as_dict())),
                )
            except sqlite3.IntegrityError as error:
                raise InvalidInput(
                    f"run {run_id} is no longer in {self.path}: it was deleted while it was being measured",
                    remedy="do not delete or prune a run that is going on",
                ) from error
        return position

    def _finish(self, run_id: str, state: RunState, findings: dict[str, Any] | None) -> None:
        with self._explained(), self._lock, self._transaction():
            self._db.execute(
                "UPDATE runs SET state = ?, finished_at = ?, findings = coalesce(?, findings) WHERE run_id = ?",
                (str(state), _stamp(datetime.now(UTC)), None if findings is None else _dump(findings), run_id),
            )

    def delete(self, run_id: str) -> str:
        """Delete one run and its invocations; returns the full id. A run that is going on is refused."""
        with self._explained(), self._lock, self._transaction():
            row = self._find(run_id)
            if _state(row) is RunState.RUNNING:
                raise InvalidInput(
                    f"run {row['run_id']} is still going on (process {row['owner_pid']})",
                    remedy="wait for it to end, or interrupt it, and try again",
                )
            self._db.execute("DELETE FROM runs WHERE run_id = ?", (row["run_id"],))
        return str(row["run_id"])

    def prune(
        self, *, keep_last: int | None = None, older_than: timedelta | None = None, dry_run: bool = False
    ) -> tuple[str, ...]:
        """Delete old runs; returns their ids, newest first.

        With both conditions a run has to meet both: not among the ``keep_last`` newest, and older than ``older_than``.
        Runs that are going on are kept.
        """
        if keep_last is None and older_than is None:
            raise InvalidInput(
                "nothing says which runs to prune", remedy="give --keep-last N, --older-than DAYS, or both"
            )
        if keep_last is not None and keep_last < 0:
            raise InvalidInput(f"cannot keep {keep_last} runs", remedy="--keep-last takes 0 or more")
        before = _stamp(datetime.now(UTC) - older_than) if older_than is not None else None
        with self._explained(), self._lock:
            with self._transaction():
                rows = self._db.execute("SELECT * FROM runs ORDER BY created_at DESC, run_id DESC").fetchall()
                doomed = [
                    str(row["run_id"])
                    for row in rows[keep_last or 0 :]
                    if (before is None or row["created_at"] < before) and _state(row) is not RunState.RUNNING
                ]
                if not dry_run:
                    self._db.executemany("DELETE FROM runs WHERE run_id = ?", [(run_id,) for run_id in doomed])
            if doomed and not dry_run:
                # Each step of this pragma frees one page, and `execute` takes one step only; a script runs to its end.
                self._db.executescript("PRAGMA incremental_vacuum;")
        return tuple(doomed)

    # Reading

    def list(
        self, limit: int | None = None, *, kind: str | None = None, function: str | None = None
    ) -> tuple[RunSummary, ...]:
        """Runs, newest first."""
        with self._explained(), self._lock, self._snapshot():
            rows = self._db.execute(
                "SELECT * FROM runs WHERE (:kind IS NULL OR kind = :kind)"
                " AND (:function IS NULL OR function_name = :function)"
                " ORDER BY created_at DESC, run_id DESC LIMIT :limit",
                {"kind": kind, "function": function, "limit": -1 if limit is None else limit},
            ).fetchall()
            return tuple(self._summary(row) for row in rows)

    def get(self, run_id: str) -> StoredRun:
        """One run by its id, the beginning of its id, or ``latest``; `InvalidInput` if none or several fit."""
        with self._explained(), self._lock:
            row = self._find(run_id)
        return StoredRun(
            run_id=row["run_id"],
            kind=row["kind"],
            function=json.loads(row["function"]),
            host=json.loads(row["host"]),
            plan=json.loads(row["plan"]),
            findings=json.loads(row["findings"]),
            state=_state(row),
            created_at=row["created_at"],
            finished_at=row["finished_at"],
        )

    def invocations(self, run_id: str) -> tuple[Invocation, ...]:
        """The records of a run, in the order they were measured."""
        with self._explained(), self._lock, self._snapshot():
            full = self._find(run_id)["run_id"]
            rows = self._db.execute("SELECT record FROM invocations WHERE run_id = ? ORDER BY position", (full,))
            return tuple(Invocation.from_dict(json.loads(row["record"])) for row in rows)

    def document(self, run_id: str) -> dict[str, Any]:
        """The JSON document of a run: what `runs show --json` prints and the reports take."""
        with self._explained(), self._lock, self._snapshot():
            run = self.get(run_id)
            records = [one.as_dict() for one in self.invocations(run.run_id)]
        return {
            "schema": SCHEMA,
            "kind": run.kind,
            "created_at": run.created_at,
            "run_id": run.run_id,
            "state": str(run.state),
            "host": run.host,
            "function": run.function,
            "plan": run.plan,
            "invocations": records,
            "findings": run.findings,
        }

    # Documents

    def put_document(self, collection: str, key: str, document: dict[str, Any]) -> None:
        """Keep a JSON object under a key, in the place of what was there."""
        with self._explained(), self._lock, self._transaction():
            self._db.execute(
                "INSERT INTO documents VALUES (?, ?, ?)"
                " ON CONFLICT (collection, key) DO UPDATE SET document = excluded.document",
                (_text(collection), _text(key), _dump(document)),
            )

    def get_document(self, collection: str, key: str) -> dict[str, Any] | None:
        """The object under a key; None where there is none."""
        with self._explained(), self._lock:
            row = self._db.execute(
                "SELECT document FROM documents WHERE collection = ? AND key = ?", (_text(collection), _text(key))
            ).fetchone()
        return None if row is None else _object(row["document"])

    def documents(self, collection: str) -> dict[str, dict[str, Any]]:
        """Everything in a collection by its key, in the order of the keys."""
        with self._explained(), self._lock:
            rows = self._db.execute(
                "SELECT key, document FROM documents WHERE collection = ? ORDER BY key", (_text(collection),)
            ).fetchall()
        return {str(row["key"]): _object(row["document"]) for row in rows}

    def delete_document(self, collection: str, key: str) -> bool:
        """Forget the object under a key; was there one?"""
        with self._explained(), self._lock, self._transaction():
            done = self._db.execute(
                "DELETE FROM documents WHERE collection = ? AND key = ?", (_text(collection), _text(key))
            )
        return done.rowcount > 0

    # Inside

    def _summary(self, row: sqlite3.Row) -> RunSummary:
        count, memory = self._db.execute(
            "SELECT count(*), group_concat(DISTINCT memory_mb) FROM invocations WHERE run_id = ?", (row["run_id"],)
        ).fetchone()
        recommendation = json.loads(row["findings"]).get("recommendation") or {}
        return RunSummary(
            run_id=row["run_id"],
            kind=row["kind"],
            function=row["function_name"],
            state=_state(row),
            created_at=row["created_at"],
            finished_at=row["finished_at"],
            invocations=count,
            memory_mb=tuple(sorted(int(one) for one in memory.split(","))) if memory else (),
            recommended_memory_mb=recommendation.get("memory_mb"),
        )

    def _find(self, wanted: str) -> sqlite3.Row:
        if wanted == LATEST:
            order = "SELECT * FROM runs ORDER BY created_at DESC, run_id DESC LIMIT 1"
            rows = self._db.execute(order).fetchall()
        else:
            # substr and not LIKE or GLOB: what a user types is text, not a pattern.
            rows = self._db.execute(
                "SELECT * FROM runs WHERE substr(run_id, 1, length(?1)) = ?1 AND ?1 <> '' ORDER BY run_id DESC",
                (_text(wanted.strip().lower()),),
            ).fetchall()
        if not rows:
            raise InvalidInput(
                f"no run {wanted!r} in {self.path}", remedy="`lambda-harness runs list` shows what is there"
            )
        exact: Sequence[sqlite3.Row] = [row for row in rows if row["run_id"] == wanted]
        if len(rows) > 1 and not exact:
            ids = ", ".join(row["run_id"] for row in rows[:3]) + (", ..." if len(rows) > 3 else "")
            raise InvalidInput(f"{len(rows)} runs begin with {wanted!r}: {ids}", remedy="give more of the id")
        found: sqlite3.Row = (exact or rows)[0]
        return found

    def _free_id(self, created: datetime) -> str:
        """A free id that sorts by time and can be typed: date, time, two letters of milliseconds, one of chance."""
        while True:
            run_id = _run_id(created)
            if self._db.execute("SELECT 1 FROM runs WHERE run_id = ?", (run_id,)).fetchone() is None:
                return run_id

    def _refuse_foreign_and_newer(self) -> None:
        # In one snapshot: another process may be making the store at this moment.
        with self._snapshot():
            application = self._db.execute("PRAGMA application_id").fetchone()[0]
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            tables = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if application not in {0, _APPLICATION_ID} or (application == 0 and (tables or version)):
            raise InvalidInput(
                f"{self.path} is an SQLite file, but not a history of runs; it was left as it is",
                remedy=f"choose another file with --store or {STORE_VARIABLE}",
            )
        if version > SCHEMA_VERSION:
            raise InvalidInput(
                f"{self.path} was written by a newer lambda-harness (schema {version}; this one knows"
                f" {SCHEMA_VERSION}); it was left as it is",
                remedy=f"upgrade lambda-harness, or choose another file with --store or {STORE_VARIABLE}",
            )

    def _turn_on_wal(self) -> None:
        # Switching the journal needs the file alone, and SQLite does not always wait for that as it does for a write:
        # of two processes that open a new store at the same moment one would meet "database is locked" at once.
        give_up = time.monotonic() + BUSY_TIMEOUT_MS / 1000
        while True:
            try:
                # auto_vacuum can only be chosen while the file is still empty.
                if self._db.execute("PRAGMA user_version").fetchone()[0] == 0:
                    self._db.execute("PRAGMA auto_vacuum = INCREMENTAL")
                # Some network file systems cannot do WAL; SQLite then keeps its rollback journal, which is safe too.
                self._db.execute("PRAGMA journal_mode = WAL").fetchone()
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > give_up:
                    raise
                time.sleep(0.01)
            else:
                return

    def _migrate(self) -> None:
        if self._db.execute("PRAGMA user_version").fetchone()[0] == SCHEMA_VERSION:
            return
        with self._transaction():
            # Asked again: another process may have done it while this one waited for the lock.
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version > SCHEMA_VERSION:
                self._refuse_foreign_and_newer()
            for step in _MIGRATIONS[version:]:
                for statement in step:
                    self._db.execute(statement)
            self._db.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            # After a full disk SQLite may have rolled back by itself.
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    @contextmanager
    def _snapshot(self) -> Iterator[None]:
        """Several reads of one state of the file; may be nested."""
        outermost = not self._db.in_transaction
        if outermost:
            self._db.execute("BEGIN")
        try:
            yield
        finally:
            if outermost:
                self._db.execute("ROLLBACK")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """SQLite's errors in words that name the file and what to do."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise _explain(self.path, error) from error


def this_process() -> Owner:
    """The identity of the process that calls."""
    pid = os.getpid()
    return Owner(pid=pid, boot=_boot_id(), started=_process_started(pid) or "")


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        import psutil

        return str(int(psutil.boot_time()))


def _process_started(pid: int) -> str | None:
    """When a process began, in the kernel's own ticks where /proc tells: they do not move with the wall clock."""
    if not Path("/proc/self/stat").exists():  # macOS
        import psutil

        try:
            return str(int(psutil.Process(pid).create_time()))
        except psutil.Error:
            return None
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # Field 22; the second field is a name in brackets that may hold blanks and brackets [proc_pid_stat(5)].
    state, *rest = stat.rpartition(")")[2].split()
    return None if state == "Z" else rest[18]


def _state(row: sqlite3.Row) -> RunState:
    state = RunState(row["state"])
    if state is not RunState.RUNNING:
        return state
    owner = Owner(pid=row["owner_pid"], boot=row["owner_boot"], started=row["owner_started"])
    return state if owner.alive() else RunState.INTERRUPTED


def _run_id(created: datetime) -> str:
    created = created.astimezone(UTC)
    tick = created.microsecond // 1000  # below 1000, and two letters hold 1024
    letters = _CROCKFORD[tick // 32] + _CROCKFORD[tick % 32] + secrets.choice(_CROCKFORD)
    return f"{created:%y%m%d-%H%M%S}-{letters}"


def _stamp(moment: datetime) -> str:
    """UTC, ISO 8601, always with microseconds: equal lengths make text order the order of time."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _dump(found: dict[str, Any]) -> str:
    # ASCII: a lone surrogate, which a function may well return, is no valid UTF-8 and SQLite would refuse the text.
    return json.dumps(found, ensure_ascii=True, separators=(",", ":"), default=str)


def _object(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text)
    return found


def _text(found: str) -> str:
    return found.encode("utf-8", "replace").decode("utf-8")


def _refuse_what_is_no_database(path: Path) -> None:
    """Looked at before SQLite is let near the file, which could otherwise leave journals beside it."""
    try:
        with path.open("rb") as file:
            head = file.read(len(_SQLITE_MAGIC))
    except FileNotFoundError:
        return
    except OSError as error:
        raise InvalidInput(
            f"the history {path} cannot be read: {error.strerror or error}",
            remedy=f"choose another file with --store or {STORE_VARIABLE}",
        ) from error
    if head and head != _SQLITE_MAGIC:
        raise _damaged(path, "it does not begin as an SQLite file does")


def _damaged(path: Path, how: str) -> InvalidInput:
    return InvalidInput(
        f"the history {path} is damaged or no history at all ({how}); it was left as it is",
        remedy=f"move the file away to begin a new one, or choose another with --store or {STORE_VARIABLE};"
        " `sqlite3 FILE .recover` saves what can be saved",
    )


def _explain(path: Path, error: sqlite3.DatabaseError) -> InvalidInput:
    code = getattr(error, "sqlite_errorcode", None)
    primary = None if code is None else code & 0xFF  # extended codes keep the primary one in the low byte
    other = f"choose another file with --store or {STORE_VARIABLE}"
    if primary in {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}:
        return InvalidInput(
            f"no room on the disk (or the disk fails) for the history {path}: {error}; what was stored before is kept",
            remedy=f"free some space (`lambda-harness runs prune` helps), or {other}",
        )
    if primary in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
        return _damaged(path, str(error))
    if primary in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
        return InvalidInput(
            f"the history {path} was locked by another process for {BUSY_TIMEOUT_MS / 1000:.0f} s",
            remedy=f"wait for the other one, or {other}",
        )
    if primary in {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM}:
        return InvalidInput(
            f"the history {path} cannot be written: {error}", remedy=f"check its permissions, or {other}"
        )
    return InvalidInput(f"the history {path} cannot be used: {error}", remedy=other)
