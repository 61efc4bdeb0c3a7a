"""Brings requests to sandboxes: a stand and a pool for each function version, within the concurrency that there is.

A version gets its stand (image found, code laid out) when it is prepared or first asked for. When its code changes, by an
update or in a watched directory, the next request gets a new one, and the old one goes when its last request is done.
Reserved concurrency and the account's are counted over all versions and aliases of a function. Every record is stored
before its answer goes out. Must not know HTTP or the wire.

An engine that goes away takes its sandboxes with it: the request that notices fails, whatever is dead is dropped, and the
next request opens the function's stand anew.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.api.destinations import Destinations
from harness.api.faults import Fault
from harness.api.model import ProvisionedStatus
from harness.api.queue import AsyncQueue, Rules
from harness.api.reload import Reloader
from harness.context import RequestContext
from harness.document import describe_function
from harness.engine.client import ENGINE_FAILURES, LABEL_OWNER, LABEL_SANDBOX, Engine, owner
from harness.errors import EngineError, HarnessError, InvalidInput, SandboxGone
from harness.function import DirectoryCode, Function
from harness.invocation import Invocation, Outcome
from harness.pool import ACCOUNT_LIMIT, FUNCTION_LIMIT, MemoryBudget, Pool, spare_memory_bytes, throttled
from harness.stand import Ground, Stand

if TYPE_CHECKING:
    from harness.api.model import FunctionVersion, Target
    from harness.api.registry import Registry
    from harness.debugger import Debug
    from harness.observer import Observer
    from harness.receivers import Receivers
    from harness.store import Run, Store

RUN_KIND = "serve"
OpenStand = Callable[[Function], AbstractContextManager[Stand]]
_Key = tuple[str, str, str]

_ENDED_WITH_US = frozenset({Outcome.RUNTIME_EXIT, Outcome.INIT_ERROR})
"""What the end of a sandbox looks like to the request in it."""
_SAMPLE_S = 0.1
"""Less often than in experiments, which have few sandboxes at work: looking takes time from those who answer."""
_TICK_S = 5.0
_BACKGROUND_THREADS = 4
_WATCH_PATIENCE_S = 2.0
_FAILURE_PATIENCE_S = 30.0
"""After how long provisioned sandboxes that could not be made are tried again, where the engine was at fault."""


@dataclass(frozen=True, kw_only=True)
class SandboxView:
    """One sandbox of the service, as it stands now."""

    id: str
    function: str
    version: str
    memory_mb: int
    phase: str
    """The name of its phase in `harness.lifecycle`."""
    busy: bool
    provisioned: bool
    idle_s: float | None


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """What the service did so far, and is at."""

    invocations: int
    throttled: int
    in_flight: int
    sandboxes: int
    queued: int
    """Asynchronous invocations that are not over."""
    memory_held_bytes: int
    memory_total_bytes: int


class Concurrency:
    """How many requests may run at once: of a function, of all that have nothing reserved. Thread-safe.

    [Developer guide, "Understanding Lambda function scaling": what is reserved for one function nobody else can use, and
    the function can use no more; provisioned sandboxes of a function without reservation are taken off the account's.]
    """

    def __init__(self, account: int) -> None:
        self._account = account
        self._lock = threading.Lock()
        self._reserved: dict[str, int] = {}
        self._provisioned: dict[str, int] = {}
        self._in_flight: Counter[str] = Counter()

    def reserve(self, name: str, count: int | None) -> None:
        """None: nothing is reserved."""
        self._set(self._reserved, name, count)

    def provision(self, name: str, count: int) -> None:
        self._set(self._provisioned, name, count or None)

    def _set(self, where: dict[str, int], name: str, count: int | None) -> None:
        with self._lock:
            if count is None:
                where.pop(name, None)
            else:
                where[name] = count

    def enter(self, name: str) -> tuple[str, str] | None:
        """Count a request in; where it may not be: AWS's reason and why. Each that got None must `leave`."""
        with self._lock:
            reserved = self._reserved.get(name)
            if reserved is not None:
                if self._in_flight[name] >= reserved:
                    return FUNCTION_LIMIT, f"{reserved} of {name} may run at once, and did"
            elif self._in_flight[name] >= self._provisioned.get(name, 0) and self._shared_in_flight() >= self._shared():
                return (
                    ACCOUNT_LIMIT,
                    f"{self._shared()} of all functions without a reservation may run at once, and did",
                )
            self._in_flight[name] += 1
            return None

    def leave(self, name: str) -> None:
        with self._lock:
            self._in_flight[name] -= 1
            if not self._in_flight[name]:
                del self._in_flight[name]

    @property
    def in_flight(self) -> int:
        with self._lock:
            return self._in_flight.total()

    def _shared(self) -> int:
        provisioned = sum(count for name, count in self._provisioned.items() if name not in self._reserved)
        return self._account - sum(self._reserved.values()) - provisioned

    def _shared_in_flight(self) -> int:
        return sum(
            max(0, count - self._provisioned.get(name, 0))
            for name, count in self._in_flight.items()
            if name not in self._reserved
        )


class _Deployment:
    """A function version as it runs here: its stand and its pool, opened with the first use."""

    def __init__(self, version: FunctionVersion, open_stand: OpenStand, make_pool: Callable[[Stand], Pool]) -> None:
        self.version = version
        self.key = _key(version)
        self.function = version.function()
        self.users = 0
        self.retired = False
        self.used_at = time.monotonic()
        self._open_stand = open_stand
        self._make_pool = make_pool
        self._opening = threading.Lock()
        self._undo = contextlib.ExitStack()
        self._pool: Pool | None = None
        self._closed = False

    @property
    def opened(self) -> Pool | None:
        return self._pool

    def pool(self) -> Pool:
        """Raises a `HarnessError` where the stand cannot be opened; the next call tries again."""
        if self._pool is not None:
            return self._pool
        with self._opening:
            if self._closed:
                raise HarnessError(f"{self.function.name} was closed before it was ready")
            if self._pool is None:
                stand = self._undo.enter_context(self._open_stand(self.function))
                self._pool = self._undo.enter_context(self._make_pool(stand))
            return self._pool

    def close(self) -> None:
        with self._opening:
            self._closed = True
            self._undo.close()


class Dispatcher:
    """See the module. A context manager: on leaving it every sandbox is ended. Thread-safe.

    ``open_stand`` replaces the stands (tests have no engine); ``memory_bytes`` None: what the host can spare;
    ``data_dir`` is where files of destinations go.
    """

    def __init__(
        self,
        ground: Ground,
        registry: Registry,
        store: Store,
        *,
        receivers: Receivers | None = None,
        observer: Observer | None = None,
        keep_alive_s: float = 300.0,
        account_concurrency: int = 1000,
        debug: Debug | None = None,
        pull: bool = True,
        retry_scale: float = 1.0,
        memory_bytes: int | None = None,
        data_dir: Path | None = None,
        open_stand: OpenStand | None = None,
        progress: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._ground = ground
        self._registry = registry
        self._store = store
        self._keep_alive_s = keep_alive_s
        self._debug = debug
        self._progress = progress
        self._open_stand = open_stand or (
            lambda function: Stand(
                function,
                ground=ground,
                receivers=receivers,
                observer=observer,
                debug=debug,
                pull=pull,
                sample_s=_SAMPLE_S,
                progress=progress,
            )
        )
        if debug is not None:
            # There is one port for a debugger: one sandbox of all functions, and the next not before the last has ended.
            self._budget = MemoryBudget(0, ends_first=True, on_trouble=progress)
        else:
            spare = spare_memory_bytes(ground) if memory_bytes is None else memory_bytes
            self._budget = MemoryBudget(spare, on_trouble=progress)
        self._concurrency = Concurrency(account_concurrency)
        self._lock = threading.Lock()
        self._deployments: dict[_Key, _Deployment] = {}
        self._retiring: set[_Deployment] = set()
        self._provision_failures: dict[_Key, HarnessError] = {}
        self._provision_lock = threading.Lock()
        self._runs: dict[str, Run] = {}
        self._runs_lock = threading.Lock()
        self._invocations = self._throttled = 0
        self._muster_lock = threading.Lock()
        self._mustered_at = 0.0
        self._engine_is_away = False
        self._closed = threading.Event()
        self._background = ThreadPoolExecutor(_BACKGROUND_THREADS, thread_name_prefix="dispatch")
        self._keeper = threading.Thread(target=self._keep_house, name="keep-alive", daemon=True)
        self.reloader = Reloader(say=progress)
        """Also for others who have a file to watch: function.toml, say."""
        folder = data_dir or store.path.parent
        self.queue = AsyncQueue(
            store,
            Rules(
                resolve=registry.resolve,
                event_invoke_config=registry.event_invoke_config,
                reserved_concurrency=registry.reserved_concurrency,
            ),
            self.invoke,
            Destinations(folder / "destinations", self._hand_on),
            retry_scale=retry_scale,
            say=progress,
        )

    def __enter__(self) -> Dispatcher:
        self._registry.subscribe(self)
        for record in self._registry.functions():
            self._concurrency.reserve(record.name, record.reserved)
        self._apply_provisioned()
        self._keeper.start()
        self.queue.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End everything; requests that are under way fail. Safe to call twice."""
        if self._closed.is_set():
            return
        self._closed.set()
        self.queue.stop()
        self.reloader.close()
        if self._keeper.is_alive():
            self._keeper.join()
        with self._lock:
            every = [*self._deployments.values(), *self._retiring]
            self._deployments.clear()
        for deployment in every:
            if deployment.opened is not None:
                deployment.opened.close()
        self.queue.close()
        self._background.shutdown(wait=True)
        for deployment in every:
            deployment.close()
        self._budget.close()
        with self._runs_lock:
            for run in self._runs.values():
                with contextlib.suppress(InvalidInput):
                    run.finish()

    # -- requests ---------------------------------------------------------------------------------------------------

    def prepare(self, version: FunctionVersion) -> None:
        """Open the stand of a version; raises a `HarnessError` where that cannot be."""
        with self._in_use(version) as deployment:
            try:
                deployment.pool()
            except BaseException:
                self._retire(deployment)
                raise

    def invoke(self, target: Target, event: bytes, context: RequestContext) -> Invocation:
        """One invocation, to its end; its record is stored on return; a request that was throttled is only counted.

        Where its sandbox was lost on the way the record's outcome is ``engine_error``. Raises `EngineError` where none
        could be started, and whatever keeps a stand from being opened.
        """
        version = target.version
        refused = self._concurrency.enter(version.function_name)
        if refused is not None:
            reason, why = refused
            vantage = self._ground.vantage.name
            record = throttled(version.function(), context, reason=reason, why=why, vantage=vantage)
        else:
            try:
                record = self._invoke(version, event, context)
            finally:
                self._concurrency.leave(version.function_name)
        self._keep(record)
        return record

    def _invoke(self, version: FunctionVersion, event: bytes, context: RequestContext) -> Invocation:
        begun = time.monotonic()
        self.reloader.look(_key(version))
        with self._in_use(version) as deployment:
            try:
                pool = deployment.pool()
                lease = pool.lease()
                if lease is None:
                    return pool.throttled(context, reason=ACCOUNT_LIMIT)
                record = self._unless_ended(lease.invoke(event, context=context))
            except EngineError:
                # What the stand is made of may be gone: its image, its directories.
                self._retire(deployment)
                self._muster(begun)
                self._apply_soon(version.function_name)
                raise
        if record.outcome is Outcome.ENGINE_ERROR:
            self._muster(begun)
        return record

    def _unless_ended(self, record: Invocation) -> Invocation:
        """A runtime that is killed because the service ends looks like one that exited: that is no error of the function."""
        if not self._closed.is_set() or record.outcome not in _ENDED_WITH_US:
            return record
        why = "the service ended while the function ran"
        return replace(
            record,
            outcome=Outcome.ENGINE_ERROR,
            error_type=SandboxGone.__name__,
            error_message=why,
            response=None,
            response_bytes=None,
            payload=None,
            report="",
            notes=(*record.notes, why),
        )

    def enqueue(self, target: Target, event: bytes, context: RequestContext) -> None:
        """Accept an asynchronous invocation; it is in the store on return."""
        self.queue.put(target, event, context)

    def _hand_on(self, arn: str, event: bytes, hops: int) -> None:
        """Invoke the function of an ARN for another one that is over."""
        from harness.api.queue import MAX_HOPS

        if hops > MAX_HOPS:
            raise InvalidInput(
                f"{arn} was not invoked: {MAX_HOPS} functions had handed on to one another, which looks like a loop",
                remedy="see where the destinations of these functions lead",
            )
        target = self._registry.resolve(arn)
        self.queue.put(target, event, RequestContext(invoked_arn=target.invoked_arn), hops=hops)

    # -- what there is ----------------------------------------------------------------------------------------------

    def sandboxes(self) -> tuple[SandboxView, ...]:
        """Every sandbox, also those that only wait for their last request's end."""
        with self._lock:
            every = [*self._deployments.values(), *self._retiring]
        return tuple(
            SandboxView(
                id=view.sandbox.id,
                function=deployment.function.name,
                version=deployment.function.version,
                memory_mb=deployment.function.memory_mb,
                phase=type(view.sandbox.phase).__name__,
                busy=view.busy,
                provisioned=view.provisioned,
                idle_s=view.idle_s,
            )
            for deployment in every
            if deployment.opened is not None
            for view in deployment.opened.views()
        )

    def statistics(self) -> Statistics:
        with self._runs_lock:
            invocations, refused = self._invocations, self._throttled
        return Statistics(
            invocations=invocations,
            throttled=refused,
            in_flight=self._concurrency.in_flight,
            sandboxes=len(self.sandboxes()),
            queued=len(self.queue),
            memory_held_bytes=self._budget.held_bytes,
            memory_total_bytes=self._budget.total_bytes,
        )

    def provisioned_status(self, name: str, qualifier: str) -> ProvisionedStatus:
        """How far the provisioned sandboxes of a version or an alias are."""
        try:
            record = self._registry.function(name)
        except Fault:
            return ProvisionedStatus()
        config, version = record.provisioned.get(qualifier), _aim(record, qualifier)
        if config is None or version is None:
            return ProvisionedStatus()
        with self._lock:
            deployment = self._deployments.get(_key(version))
            failure = self._provision_failures.get(_key(version))
        found = deployment.opened.provisioned if deployment is not None and deployment.opened is not None else None
        ready = min(found.ready, config.requested) if found is not None else 0
        failure = failure or (found.failure if found is not None else None)
        if ready >= config.requested:
            return ProvisionedStatus(status="READY", allocated=ready, available=ready)
        if failure is not None:
            return ProvisionedStatus(status="FAILED", reason=str(failure), allocated=ready, available=ready)
        return ProvisionedStatus(status="IN_PROGRESS", allocated=ready, available=ready)

    # -- what the registry tells ------------------------------------------------------------------------------------

    def version_changed(self, version: FunctionVersion) -> None:
        """From now on requests go to this deployment: the others of the version are drained."""
        self._retire_all(
            lambda key: key[:2] == (version.function_name, version.version) and key[2] != version.deployment_id
        )
        self._apply_soon(version.function_name)

    def version_deleted(self, name: str, version: str) -> None:
        self._retire_all(lambda key: key[:2] == (name, version))

    def function_deleted(self, name: str) -> None:
        self._concurrency.reserve(name, None)
        self._concurrency.provision(name, 0)
        self._retire_all(lambda key: key[0] == name)

    def concurrency_changed(self, name: str) -> None:
        self._concurrency.reserve(name, self._registry.reserved_concurrency(name))

    def provisioned_changed(self, name: str, qualifier: str) -> None:  # noqa: ARG002  # the registry's interface
        self._apply_soon(name)

    # -- deployments ------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _in_use(self, version: FunctionVersion) -> Iterator[_Deployment]:
        with self._lock:
            if self._closed.is_set():
                raise EngineError("the service is ending")
            deployment = self._deployments.get(_key(version))
            if deployment is None:
                deployment = _Deployment(version, self._opened(version), self._pool)
                self._deployments[deployment.key] = deployment
            deployment.users += 1
        try:
            yield deployment
        finally:
            with self._lock:
                deployment.users -= 1
                deployment.used_at = time.monotonic()
                self._close_if_over(deployment)

    def _opened(self, version: FunctionVersion) -> OpenStand:
        """Opens the stand of a version, whose directories are watched from then on."""

        @contextlib.contextmanager
        def open_stand(function: Function) -> Iterator[Stand]:
            key, code = _key(version), function.code
            if isinstance(code, DirectoryCode):
                # Before the code is laid out, so that no change is missed.
                layers = [layer for layer in function.layers if layer.is_dir()]
                self.reloader.watch(key, [code.path, *layers], lambda: self._reload(version))
                self.reloader.wait_until_watching(_WATCH_PATIENCE_S)
            with self._open_stand(function) as stand:
                yield stand

        return open_stand

    def _pool(self, stand: Stand) -> Pool:
        return Pool(stand, budget=self._budget)

    def _reload(self, version: FunctionVersion) -> None:
        """The code of a directory has changed: what runs it is retired, and the next request gets it anew."""
        with self._lock:
            deployment = self._deployments.get(_key(version))
        if deployment is not None:
            self._progress(f"{version.function_name}: its code has changed; the next invocation gets a new sandbox")
            self._retire(deployment, forget=False)
            self._apply_soon(version.function_name)

    def _retire_all(self, concerned: Callable[[_Key], bool]) -> None:
        with self._lock:
            found = [deployment for key, deployment in self._deployments.items() if concerned(key)]
            for key in [key for key in self._provision_failures if concerned(key)]:
                del self._provision_failures[key]
        for deployment in found:
            self._retire(deployment)

    def _retire(self, deployment: _Deployment, *, forget: bool = True) -> None:
        """No new request for this one; it goes with its last one."""
        if forget:
            self.reloader.forget(deployment.key)
        with self._lock:
            if deployment.retired:
                return
            deployment.retired = True
            if self._deployments.get(deployment.key) is deployment:
                del self._deployments[deployment.key]
            self._retiring.add(deployment)
            pool = deployment.opened
        if pool is not None:
            pool.provision(0)
            pool.retire()
        with self._lock:
            self._close_if_over(deployment)

    def _close_if_over(self, deployment: _Deployment) -> None:
        if deployment.retired and not deployment.users and deployment in self._retiring and not self._closed.is_set():
            self._retiring.discard(deployment)
            self._background.submit(self._finish, deployment)

    def _finish(self, deployment: _Deployment) -> None:
        try:
            deployment.close()
        except HarnessError as error:
            self._progress(f"{deployment.function.name}: {error}")

    # -- provisioned concurrency ------------------------------------------------------------------------------------

    def _apply_soon(self, name: str) -> None:
        if not self._closed.is_set():
            with contextlib.suppress(RuntimeError):  # it was closed this moment
                self._background.submit(self._apply_provisioned, name)

    def _apply_provisioned(self, only: str | None = None) -> None:
        """Have every version as many provisioned sandboxes as are asked for it; never while a request waits."""
        if self._debug is not None:
            return
        with self._provision_lock:
            wanted: dict[_Key, int] = {}
            versions: dict[_Key, FunctionVersion] = {}
            totals: Counter[str] = Counter()
            for name, qualifier, config in self._registry.provisioned():
                with contextlib.suppress(Fault):
                    version = _aim(self._registry.function(name), qualifier)
                    if version is not None:
                        versions[_key(version)] = version
                        wanted[_key(version)] = wanted.get(_key(version), 0) + config.requested
                        totals[name] += config.requested
            with self._lock:
                named = {key[0] for key in self._deployments} | set(totals)
            for name in named:
                self._concurrency.provision(name, totals[name])
            with self._lock:
                unwanted = [each for key, each in self._deployments.items() if key not in wanted]
            for deployment in unwanted:
                if deployment.opened is not None and deployment.opened.provisioned.requested:
                    deployment.opened.provision(0)
            for key, count in wanted.items():
                if only in (None, key[0]):
                    self._provide(versions[key], count)

    def _provide(self, version: FunctionVersion, count: int) -> None:
        key = _key(version)
        try:
            with self._in_use(version) as deployment:
                pool = deployment.pool()
                if pool.provisioned.requested != count or pool.provisioned.failure is not None:
                    pool.provision(count)
        except HarnessError as error:
            with self._lock:
                self._provision_failures[key] = error
        else:
            with self._lock:
                self._provision_failures.pop(key, None)

    # -- upkeep -----------------------------------------------------------------------------------------------------

    def _keep_house(self) -> None:
        failures_seen = time.monotonic()
        while not self._closed.wait(min(_TICK_S, max(0.05, self._keep_alive_s / 4))):
            try:
                with self._lock:
                    every = list(self._deployments.values())
                for deployment in every:
                    if deployment.opened is not None:
                        deployment.opened.end_idle(self._keep_alive_s)
                self._retire_leftovers(every)
                if self._engine_is_away and self._muster(time.monotonic()):
                    self._apply_provisioned()
                if time.monotonic() - failures_seen > _FAILURE_PATIENCE_S:
                    failures_seen = time.monotonic()
                    self._try_failed_again(every)
            except Exception as error:  # noqa: BLE001  # the next round may fare better; nobody else would tell
                self._progress(f"keep-alive: {type(error).__name__}: {error}")

    def _retire_leftovers(self, every: list[_Deployment]) -> None:
        """Deployments that nothing leads to any more: opened for a request that was late, say."""
        now = time.monotonic()
        for deployment in every:
            if deployment.users or now - deployment.used_at < self._keep_alive_s:
                continue
            try:
                record = self._registry.function(deployment.version.function_name)
            except Fault:
                self._retire(deployment)
                continue
            current = {_key(one) for one in (record.serving, *record.numbered()) if one is not None}
            if deployment.key not in current:
                self._retire(deployment)

    def _try_failed_again(self, every: list[_Deployment]) -> None:
        for deployment in every:
            pool = deployment.opened
            if pool is not None and isinstance(pool.provisioned.failure, EngineError):
                pool.replenish()
        with self._lock:
            failed = {key[0] for key in self._provision_failures}
        for name in failed:
            self._apply_soon(name)

    def _muster(self, since: float) -> bool:
        """Drop the sandboxes that the engine runs no longer, unless that was done since a moment; does it answer?"""
        with self._muster_lock:
            if self._mustered_at > since or self._closed.is_set():
                return not self._engine_is_away
            begun = time.monotonic()
            with self._lock:
                every = [*self._deployments.values(), *self._retiring]
            pools = [each.opened for each in every if each.opened is not None]
            listed = listed_sandboxes(self._ground.engine)
            self._engine_is_away = listed is None
            if listed is None:
                return False
            dropped = sum(pool.drop_dead(listed.running) for pool in pools)
            if dropped:
                self._progress(f"{dropped} idle sandboxes were gone")
            ours = {sandbox.id for pool in pools for sandbox in pool.sandboxes}
            listed.remove_ended(self._ground.engine, but=ours)
            self._mustered_at = begun
            return True

    # -- the store --------------------------------------------------------------------------------------------------

    def _keep(self, record: Invocation) -> None:
        with self._runs_lock:
            if record.outcome is Outcome.THROTTLED:
                # Nothing ran: clients that ask again and again would fill the history with it.
                self._throttled += 1
                return
            self._invocations += 1
        try:
            self._run(record.function).add(record)
        except InvalidInput as error:
            self._progress(f"{record.function}: its record could not be stored: {error}")

    def _run(self, name: str) -> Run:
        with self._runs_lock:
            run = self._runs.get(name)
            if run is None:
                with self._lock:
                    known = [each.function for each in self._deployments.values() if each.function.name == name]
                described: dict[str, Any] = describe_function(known[0]) if known else {"name": name}
                run = self._runs[name] = self._store.begin(RUN_KIND, described, self._ground.host)
            return run


@dataclass(frozen=True, kw_only=True)
class ListedSandboxes:
    """What an engine says of this process's sandboxes."""

    running: frozenset[str]
    """Ids of sandboxes."""
    ended: dict[str, str]
    """Id of a sandbox -> id of its container, which is still there."""

    def remove_ended(self, engine: Engine, *, but: set[str]) -> None:
        """Remove what an engine that went away could not be asked to remove."""
        for sandbox_id, container in self.ended.items():
            if sandbox_id not in but:
                with contextlib.suppress(*ENGINE_FAILURES):
                    engine.docker.api.remove_container(container, force=True, v=True)


def listed_sandboxes(engine: Engine) -> ListedSandboxes | None:
    """The sandboxes of this process as the engine has them; None where it does not answer."""
    try:
        with engine.asked("list this process's sandboxes"):
            found = engine.docker.api.containers(all=True, filters={"label": f"{LABEL_OWNER}={owner()}"})
    except EngineError:
        return None
    states = [(each["Labels"].get(LABEL_SANDBOX, ""), str(each["State"]), str(each["Id"])) for each in found]
    return ListedSandboxes(
        running=frozenset(name for name, state, _ in states if state in ("running", "paused")),
        ended={name: identifier for name, state, identifier in states if state in ("exited", "dead")},
    )


def _key(version: FunctionVersion) -> _Key:
    return (version.function_name, version.version, version.deployment_id)


def _aim(record: Any, qualifier: str) -> FunctionVersion | None:
    """The version whose sandboxes are provisioned for a qualifier; of an alias with weights, the main one."""
    alias = record.aliases.get(qualifier)
    found: FunctionVersion | None = record.version(alias.version if alias is not None else qualifier)
    return found
