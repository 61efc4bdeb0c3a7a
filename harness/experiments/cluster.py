"""An existing Dask cluster: its workers, functions called on one of them, and tasks that stay where they were put.

The only place that imports `distributed`, and only when a cluster is asked for. Must not know sweeps.

How `distributed` treats our tasks (read in release 2026.8, scheduler and work stealing):

- A task that is restricted to one worker is never stolen: a thief must be among the workers that the restriction
  allows. A resource alone would not do, for any worker that offers it may steal.
- When a worker dies, its tasks are handed out again up to ``allowed-failures`` times (3 unless the scheduler's
  configuration says otherwise; a client cannot change it), retries or not. Restricted to a worker that is gone, a task
  waits for one at the same address, for ever. So the client has to look after its workers (`Cluster.workers`), and what is
  called must itself refuse to be done twice.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from harness.errors import EngineError, UsageError

RESOURCE = "lambda-harness"
"""The resource by which a worker offers to measure."""
CONNECT_S = 10
ASK_S = 30.0


class WorkerGone(EngineError):
    """A worker was asked for something and did not answer."""


@dataclass(frozen=True, kw_only=True)
class Worker:
    """A worker as the scheduler sees it. ``slots`` is how much of `RESOURCE` it offers, 0 for none."""

    address: str
    slots: float
    threads: int


@dataclass(frozen=True, kw_only=True)
class Done:
    """A task that ended: what it returned, or why it did not."""

    task_id: str
    result: Any = None
    failure: str = ""


class Cluster(Protocol):
    """What a fan-out needs of a cluster."""

    address: str

    def workers(self) -> dict[str, Worker]:
        """The workers that are there now, by address. Raises `EngineError` when the scheduler is not."""

    def ask(self, worker: str, function: Callable[..., Any], *arguments: Any, seconds: float = ASK_S) -> Any:
        """Call a function in a worker's process at once, whatever it is busy with. Raises `WorkerGone`."""

    def submit(self, worker: Worker, task_id: str, function: Callable[..., Any], *arguments: Any) -> None:
        """Call a function in a measuring slot of this worker and nowhere else; `next_done` tells the end."""

    def next_done(self, timeout_s: float) -> Done | None:
        """A task that ended, or None when none did in this time."""

    def cancel(self, task_id: str) -> None:
        """Forget a task; where it has not begun it never will."""

    def close(self) -> None: ...


class DaskCluster:
    """The cluster of a running `dask scheduler`."""

    def __init__(self, address: str) -> None:
        """Connect.

        Raises:
            UsageError: `distributed` is not installed, or the address is none.
            EngineError: no scheduler answers there.
        """
        try:
            from distributed import Client
        except ImportError as error:
            raise UsageError(
                "a sweep is fanned out with Dask's distributed, which is not installed",
                remedy="install lambda-harness[cluster]",
            ) from error
        client: Any = Client  # only half of its methods carry types
        # A lost connection is told as an error, once; their loggers would tell it in stack traces.
        for name in ("distributed", "distributed.client"):
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
        self.address = address
        self._ended: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._tasks: dict[str, Any] = {}
        remedy = "start one with 'dask scheduler', and give the address that it prints, such as tcp://HOST:8786"
        with warnings.catch_warnings():
            # Other versions of Python or of libraries are told by name; which of them matter to us is looked at later.
            warnings.simplefilter("ignore")
            try:
                self._client: Any = client(
                    address, timeout=CONNECT_S, set_as_default=False, name="lambda-harness-sweep"
                )
            except (OSError, TimeoutError) as error:
                raise EngineError(f"no Dask scheduler answers at {address}: {_first(error)}", remedy=remedy) from error
            except (ValueError, TypeError) as error:
                raise UsageError(f"--scheduler {address!r} is no address: {_first(error)}", remedy=remedy) from error

    def workers(self) -> dict[str, Worker]:
        try:
            found = self._bounded(lambda: self._client.scheduler_info(n_workers=-1), "the scheduler")
        except OSError as error:
            raise self._gone() from error
        return {
            str(address): Worker(
                address=str(address),
                slots=float((each.get("resources") or {}).get(RESOURCE, 0)),
                threads=int(each["nthreads"]),
            )
            for address, each in found["workers"].items()
        }

    def ask(self, worker: str, function: Callable[..., Any], *arguments: Any, seconds: float = ASK_S) -> Any:
        try:
            found = self._bounded(
                lambda: self._client.run(function, *arguments, workers=[worker], on_error="return"),
                f"worker {worker}",
                seconds=seconds,
            )
        except OSError as error:
            raise WorkerGone(f"worker {worker} went away: {_first(error)}") from error
        if worker not in found:
            raise WorkerGone(f"worker {worker} went away")
        answer = found[worker]
        if isinstance(answer, Exception):
            raise EngineError(f"worker {worker}: {type(answer).__name__}: {_first(answer)}") from answer
        return answer

    def submit(self, worker: Worker, task_id: str, function: Callable[..., Any], *arguments: Any) -> None:
        future = self._client.submit(
            function,
            *arguments,
            key=task_id,
            workers=[worker.address],
            allow_other_workers=False,
            # All that the worker offers: one measurement at a time, also where it was started with two slots.
            resources={RESOURCE: worker.slots},
            retries=0,
            pure=False,
        )
        self._tasks[task_id] = future
        future.add_done_callback(lambda _: self._ended.put(task_id))

    def next_done(self, timeout_s: float) -> Done | None:
        try:
            task_id = self._ended.get(timeout=timeout_s)
        except queue.Empty:
            return None
        future = self._tasks.pop(task_id, None)
        if future is None:  # cancelled, and nobody waits for it
            return None
        try:
            return Done(task_id=task_id, result=future.result(timeout=ASK_S))
        except Exception as error:  # noqa: BLE001  # whatever a task may raise, and what the cluster makes of it
            return Done(task_id=task_id, failure=f"{type(error).__name__}: {_first(error)}")
        finally:
            future.release()

    def cancel(self, task_id: str) -> None:
        future = self._tasks.pop(task_id, None)
        if future is not None:
            with contextlib.suppress(Exception):  # a scheduler that is gone has forgotten it
                self._bounded(lambda: self._client.cancel([future], force=True), "the scheduler", seconds=5)

    def close(self) -> None:
        for task_id in list(self._tasks):
            self.cancel(task_id)
        with contextlib.suppress(Exception):
            self._client.close(timeout=2)

    def _gone(self) -> EngineError:
        return EngineError(
            f"the Dask scheduler at {self.address} went away", remedy="start it, and run the sweep again"
        )

    def _bounded(self, call: Callable[[], Any], whom: str, *, seconds: float = ASK_S) -> Any:
        """What a call gives; `WorkerGone` after some seconds: a machine that was paused does not answer, nor refuse."""
        if self._client.status != "running":
            raise self._gone()
        answer: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

        def asked() -> None:
            try:
                answer.put((call(), None))
            except BaseException as error:  # noqa: BLE001  # raised again by who asked
                answer.put((None, error))

        threading.Thread(target=asked, name="cluster", daemon=True).start()
        try:
            found, error = answer.get(timeout=seconds)
        except queue.Empty:
            raise WorkerGone(f"{whom} has not answered for {seconds:.0f} s") from None
        if error is not None:
            raise error
        return found


def _first(error: BaseException) -> str:
    """The first line of an error, or what it is where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
