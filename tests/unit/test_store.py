"""The history keeps every record that was measured, whatever happens afterwards."""

from __future__ import annotations

import dataclasses
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from harness.errors import Interrupted, InvalidInput
from harness.invocation import Invocation, Outcome
from harness.store import (
    LATEST,
    SCHEMA_VERSION,
    Owner,
    RunState,
    Store,
    _process_started,
    default_path,
    this_process,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FUNCTION = {"name": "resize", "runtime": "python3.13"}


def record(memory_mb: int = 512, **fields: object) -> Invocation:
    one = Invocation(
        request_id="r-1",
        function="resize",
        runtime="python3.13",
        memory_mb=memory_mb,
        architecture="x86_64",
        image="an-image",
        rie_version=None,
        sandbox_id="s-1",
        sequence=1,
        cold=False,
        phase_init=None,
        started_at="2026-11-21T20:00:00Z",
        outcome=Outcome.SUCCESS,
        duration_ms=12.5,
        notes=("the peak was sampled",),
    )
    return dataclasses.replace(one, **fields)  # type: ignore[arg-type]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "runs.sqlite3"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with Store(path) as opened:
        yield opened


def in_another_process(source: str, *args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(source), *map(str, args)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_record_comes_back_as_it_was_stored(store: Store) -> None:
    stored = record(response={"text": "\ud800 </script> ü", "n": [1, None]}, log_tail="a\tb\n")
    run = store.begin("sweep", FUNCTION, {"cpus": 2}, {"memory_mb": [512]})
    run.add(stored)
    run.finish(RunState.COMPLETE, {"recommendation": {"memory_mb": 512}})
    assert store.invocations(run.run_id) == (stored,)
    kept = store.get(run.run_id)
    assert (kept.kind, kept.function, kept.host, kept.plan) == ("sweep", FUNCTION, {"cpus": 2}, {"memory_mb": [512]})
    assert kept.findings == {"recommendation": {"memory_mb": 512}}


def test_the_document_of_a_run_names_its_run_and_its_schema(store: Store) -> None:
    run = store.begin("invoke", FUNCTION)
    run.add(record())
    run.finish()
    document = store.document(run.run_id)
    assert document["run_id"] == run.run_id
    assert document["schema"] == "lambda-harness/1"
    assert document["kind"] == "invoke"
    assert document["state"] == "complete"
    assert document["invocations"] == [record().as_dict()]


def test_an_invocation_is_there_for_others_as_soon_as_it_was_added(store: Store, path: Path) -> None:
    run = store.begin("sweep", FUNCTION)
    with Store(path) as other:
        for count in (1, 2, 3):
            run.add(record())
            assert len(other.invocations(run.run_id)) == count


def test_a_process_that_is_killed_leaves_its_records_and_an_interrupted_run(path: Path) -> None:
    killed = in_another_process(
        """
        import os, sys
        from pathlib import Path
        sys.path.insert(0, "tests/unit")
        from test_store import FUNCTION, record
        from harness.store import Store
        run = Store(Path(sys.argv[1])).begin("sweep", FUNCTION)
        for _ in range(3):
            run.add(record())
        os.kill(os.getpid(), 9)
        """,
        path,
    )
    assert killed.returncode == -9, killed.stderr
    with Store(path) as store:
        (found,) = store.list()
        assert found.state is RunState.INTERRUPTED
        assert found.invocations == 3
        assert store.get(found.run_id).state is RunState.INTERRUPTED


def test_a_run_that_is_going_on_is_shown_as_running(store: Store, path: Path) -> None:
    store.begin("sweep", FUNCTION)
    with Store(path) as other:
        assert other.list()[0].state is RunState.RUNNING


@pytest.mark.parametrize("column", ["owner_boot", "owner_started"])
def test_a_pid_that_was_used_again_does_not_keep_a_run_running(store: Store, path: Path, column: str) -> None:
    store.begin("sweep", FUNCTION)
    with sqlite3.connect(path) as raw:
        raw.execute(f"UPDATE runs SET {column} = 'another'")  # noqa: S608
    raw.close()
    assert store.list()[0].state is RunState.INTERRUPTED


def test_a_process_that_ended_but_was_not_waited_for_is_not_alive() -> None:
    with subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) as child:
        owner = Owner(pid=child.pid, boot=this_process().boot, started=_process_started(child.pid) or "")
        assert owner.alive()
        assert child.stdin is not None
        child.stdin.close()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and remains a zombie
        assert not owner.alive()
    assert this_process().alive()


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (KeyboardInterrupt(), RunState.INTERRUPTED),
        (Interrupted(signal.SIGTERM), RunState.INTERRUPTED),
        (ValueError("broken"), RunState.FAILED),
        (None, RunState.COMPLETE),
    ],
)
def test_a_run_left_by_an_error_says_how_it_ended(store: Store, error: BaseException | None, state: RunState) -> None:
    def measure() -> None:
        with store.begin("sweep", FUNCTION) as run:
            run.add(record())
            if error:
                raise error

    if error:
        with pytest.raises(type(error)):
            measure()
    else:
        measure()
    (found,) = store.list()
    assert (found.state, found.invocations) == (state, 1)


def test_findings_may_be_added_to_an_interrupted_run(store: Store) -> None:
    run = store.begin("sweep", FUNCTION)
    run.finish("interrupted")
    run.finish("interrupted", {"tiers": []})
    assert store.get(run.run_id).findings == {"tiers": []}
    run.finish("interrupted")
    assert store.get(run.run_id).findings == {"tiers": []}, "a state alone must not wipe the findings"


def test_ids_are_unique_and_sort_by_time(store: Store) -> None:
    moment = datetime(2026, 11, 21, 23, 59, 59, 120_000, tzinfo=UTC)
    made = [
        store.begin("invoke", FUNCTION, now=moment + timedelta(milliseconds=step)).run_id
        for step in (0, 1, 2, 31, 32, 33, 879, 880, 881, 60_000, 86_400_000)
    ]
    assert made == sorted(made)
    assert [run.run_id for run in store.list()] == made[::-1]
    same = {store.begin("invoke", FUNCTION, now=moment).run_id for _ in range(8)}
    assert len(same) == 8
    assert all(len(run_id) == 17 for run_id in made)


def test_the_beginning_of_an_id_is_enough_if_it_fits_one_run(store: Store) -> None:
    first = store.begin("invoke", FUNCTION, now=datetime(2026, 1, 1, tzinfo=UTC)).run_id
    second = store.begin("invoke", FUNCTION, now=datetime(2026, 1, 2, tzinfo=UTC)).run_id
    assert store.get("260101").run_id == first
    assert store.get(second.upper()).run_id == second
    assert store.get(LATEST).run_id == second
    with pytest.raises(InvalidInput, match=f"2 runs begin with '2601': {second}, {first}"):
        store.get("2601")


@pytest.mark.parametrize("wanted", ["999999", "%", "26*", "", "'; DROP TABLE runs; --"])
def test_a_run_that_is_not_there_is_named(store: Store, path: Path, wanted: str) -> None:
    store.begin("invoke", FUNCTION)
    with pytest.raises(InvalidInput) as caught:
        store.get(wanted)
    assert str(path) in str(caught.value)
    assert "runs list" in caught.value.remedy
    assert len(store.list()) == 1


def test_the_list_is_newest_first_and_can_be_narrowed(store: Store) -> None:
    for day, (kind, name) in enumerate([("sweep", "a"), ("invoke", "a"), ("sweep", "b"), ("sweep", "a")], start=1):
        with store.begin(kind, {"name": name}, now=datetime(2026, 1, day, tzinfo=UTC)) as run:
            run.add(record(1024))
            run.add(record(512))
            run.add(record(512))
            run.finish("complete", {"recommendation": {"memory_mb": 1024}})
    assert [run.created_at[8:10] for run in store.list()] == ["04", "03", "02", "01"]
    assert [run.created_at[8:10] for run in store.list(1, kind="sweep", function="b")] == ["03"]
    assert len(store.list(2)) == 2
    found = store.list(1)[0].as_dict()
    assert (found["memory_mb"], found["invocations"], found["recommended_memory_mb"]) == ([512, 1024], 3, 1024)
    assert (found["function"], found["state"]) == ("a", "complete")


def test_a_deleted_run_takes_its_records_with_it(store: Store, path: Path) -> None:
    with store.begin("invoke", FUNCTION) as run:
        run.add(record())
    assert store.delete(run.run_id[:-1]) == run.run_id
    assert store.list() == ()
    raw = sqlite3.connect(path)
    assert raw.execute("SELECT count(*) FROM invocations").fetchone() == (0,)
    raw.close()


def test_a_run_that_is_going_on_is_neither_deleted_nor_pruned(store: Store) -> None:
    run = store.begin("sweep", FUNCTION)
    with pytest.raises(InvalidInput, match="still going on"):
        store.delete(run.run_id)
    assert store.prune(keep_last=0) == ()
    run.finish()
    assert store.prune(keep_last=0) == (run.run_id,)


def aged(store: Store, days: list[int]) -> list[str]:
    ids = []
    for day in days:
        with store.begin("invoke", FUNCTION, now=datetime.now(UTC) - timedelta(days=day)) as run:
            run.add(record(log_tail="x" * 4096))
        ids.append(run.run_id)
    return ids


def test_pruning_keeps_the_newest_and_the_young(store: Store) -> None:
    ids = aged(store, [1, 5, 10, 20])
    assert store.prune(keep_last=1, older_than=timedelta(days=7), dry_run=True) == (ids[2], ids[3])
    assert len(store.list()) == 4
    assert store.prune(keep_last=3) == (ids[3],)
    assert store.prune(older_than=timedelta(days=7)) == (ids[2],)
    assert [run.run_id for run in store.list()] == ids[:2]
    with pytest.raises(InvalidInput, match="which runs"):
        store.prune()


def test_pruning_gives_the_room_back_to_the_disk(path: Path) -> None:
    with Store(path) as store:
        aged(store, [1] * 60)
    full = path.stat().st_size
    with Store(path) as store:
        store.prune(keep_last=1)
    assert path.stat().st_size < full / 3


def test_several_processes_write_at_once_and_none_loses_a_record(path: Path) -> None:
    source = """
        import sys
        from pathlib import Path
        sys.path.insert(0, "tests/unit")
        from test_store import FUNCTION, record
        from harness.store import Store
        print("ready", flush=True)
        sys.stdin.readline()
        with Store(Path(sys.argv[1])) as store, store.begin("sweep", FUNCTION) as run:
            for _ in range(50):
                run.add(record())
        """
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(source), str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for writer in writers:  # all of them create the file and its schema at the same moment
        assert writer.stdout is not None
        writer.stdout.readline()
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        _, complaints = writer.communicate(timeout=60)
        assert writer.returncode == 0, complaints
    with Store(path) as store:
        assert [(run.invocations, run.state) for run in store.list()] == [(50, RunState.COMPLETE)] * 4


def test_threads_may_share_a_run(store: Store) -> None:
    run = store.begin("sweep", FUNCTION)

    def measure() -> None:
        for _ in range(25):
            run.add(record())

    threads = [threading.Thread(target=measure) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.invocations(run.run_id)) == 100


def test_a_store_that_another_process_keeps_locked_is_said(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.store.BUSY_TIMEOUT_MS", 20)
    with Store(path) as store:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(InvalidInput, match="locked by another process"):
            store.begin("invoke", FUNCTION)
        other.execute("ROLLBACK")
        other.close()
        store.begin("invoke", FUNCTION)


def test_who_opens_a_store_that_another_is_just_making_waits_for_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.parent.mkdir(parents=True)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    def release(_: float) -> None:
        other.execute("ROLLBACK")
        other.close()

    # SQLite's own waiting is over at once, so what waits is the store.
    connect = sqlite3.connect
    monkeypatch.setattr("harness.store.sqlite3.connect", lambda *names, **how: connect(*names, **{**how, "timeout": 0}))
    monkeypatch.setattr("harness.store.time.sleep", release)
    with Store(path) as store:
        store.begin("invoke", FUNCTION)
        assert len(store.list()) == 1


def test_a_full_disk_is_said_and_keeps_what_was_stored(store: Store, path: Path) -> None:
    run = store.begin("sweep", FUNCTION)
    run.add(record())
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count = {pages + 4}")  # SQLite then answers as it does on a full disk
    kept = 1

    def fill() -> None:
        nonlocal kept
        for _ in range(100):
            run.add(record(log_tail="x" * 4000))
            kept += 1

    with pytest.raises(InvalidInput, match="no room on the disk") as caught:
        fill()
    assert str(path) in str(caught.value)
    assert "prune" in caught.value.remedy
    with Store(path) as again:
        assert len(again.invocations(run.run_id)) == kept
    run.finish("failed")
    assert store.get(run.run_id).state is RunState.FAILED


def snapshot(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.parent.iterdir()}


def test_a_store_of_a_newer_harness_is_left_as_it_is(path: Path) -> None:
    Store(path).close()
    raw = sqlite3.connect(path)
    raw.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    raw.close()
    before = snapshot(path)
    with pytest.raises(InvalidInput, match="newer lambda-harness") as caught:
        Store(path)
    assert str(path) in str(caught.value)
    assert "upgrade" in caught.value.remedy
    assert snapshot(path) == before


def test_a_file_that_is_no_database_is_left_as_it_is(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(b"these are my notes" * 400)
    before = snapshot(path)
    with pytest.raises(InvalidInput, match=r"damaged or no history at all") as caught:
        Store(path)
    assert str(path) in str(caught.value)
    assert "move the file away" in caught.value.remedy
    assert snapshot(path) == before


def test_a_database_of_another_program_is_left_as_it_is(path: Path) -> None:
    path.parent.mkdir(parents=True)
    raw = sqlite3.connect(path)
    raw.execute("CREATE TABLE bookmarks (url TEXT)")
    raw.close()
    before = snapshot(path)
    with pytest.raises(InvalidInput, match="not a history of runs"):
        Store(path)
    assert snapshot(path) == before


def test_a_damaged_store_is_named_when_the_damage_is_met(path: Path) -> None:
    with Store(path) as store:
        aged(store, [1] * 40)
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + b"\xff" * (len(whole) - 4096))
    with pytest.raises(InvalidInput, match="damaged") as caught, Store(path) as store:
        store.list()
    assert str(path) in str(caught.value)


def test_a_folder_in_place_of_the_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="cannot be read"):
        Store(tmp_path)


def test_a_file_in_place_of_the_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInput, match="cannot be"):
        Store(tmp_path / "file" / "runs.sqlite3")


def test_the_history_is_for_its_owner_alone(store: Store, path: Path) -> None:
    assert path.stat().st_mode & 0o077 == 0


def test_where_the_history_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("LAMBDA_HARNESS_STORE", raising=False)
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_path() == tmp_path / ".local/share/lambda-harness/runs.sqlite3"
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "xdg"))
    assert default_path() == tmp_path / "xdg/lambda-harness/runs.sqlite3"
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    assert default_path() == tmp_path / ".local/share/lambda-harness/runs.sqlite3"
    monkeypatch.setenv("LAMBDA_HARNESS_STORE", str(tmp_path / "mine.db"))
    assert default_path() == tmp_path / "mine.db"


def test_documents_are_kept_by_collection_and_key(store: Store, path: Path) -> None:
    assert store.get_document("functions", "f") is None
    store.put_document("functions", "f", {"memory_mb": 128, "text": "\ud800 ü"})
    store.put_document("functions", "e", {})
    store.put_document("layers", "f", {"other": True})
    store.put_document("functions", "f", {"memory_mb": 256})
    with Store(path) as other:
        assert other.get_document("functions", "f") == {"memory_mb": 256}
        assert list(other.documents("functions").items()) == [("e", {}), ("f", {"memory_mb": 256})]
    assert store.delete_document("functions", "f")
    assert not store.delete_document("functions", "f")
    assert store.documents("functions") == {"e": {}}
    assert store.documents("layers") == {"f": {"other": True}}


def test_a_document_is_safe_from_the_death_of_its_process(path: Path) -> None:
    killed = in_another_process(
        """
        import os, signal, sys
        from pathlib import Path
        from harness.store import Store
        Store(Path(sys.argv[1])).put_document("queue", "1", {"event": "e30="})
        os.kill(os.getpid(), signal.SIGKILL)
        """,
        path,
    )
    assert killed.returncode == -signal.SIGKILL
    with Store(path) as store:
        assert store.documents("queue") == {"1": {"event": "e30="}}


def test_a_store_of_an_earlier_harness_gains_documents_and_keeps_its_runs(path: Path) -> None:
    with Store(path) as store:
        run = store.begin("invoke", FUNCTION)
        run.add(record())
        run.finish()
    with sqlite3.connect(path) as db:
        db.execute("DROP TABLE documents")
        db.execute("PRAGMA user_version = 1")
    db.close()
    with Store(path) as store:
        assert store.invocations(run.run_id) == (record(),)
        store.put_document("functions", "f", {"a": 1})
        assert store.get_document("functions", "f") == {"a": 1}
