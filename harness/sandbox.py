"""The life of one execution environment: start, invoke, freeze, thaw, reset, shutdown; and the record of each invocation.

One request at a time. Which steps are legal when stands in `harness.lifecycle`; what an invocation's evidence means in
`judge`. Must not import ``docker``, and must not know how a cgroup is written.
"""

from __future__ import annotations

import datetime
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from harness import environment, lifecycle, pricing, strict_json
from harness.cell import GRACE_S, INIT_LIMIT_S, Cell, ContainerCell, Surroundings
from harness.context import RequestContext, Trace, new_segment_id
from harness.debugger import LIMIT_S as DEBUG_LIMIT_S
from harness.errors import EngineError, HarnessError, InitFailed
from harness.function import Function
from harness.invocation import Invocation, Outcome, PhaseInit, report_line
from harness.judge import Verdict, judge
from harness.rie import Answer, RieGoneError
from harness.tiers import billed_ms, tier
from harness.vantage import Granted, Observation, Reach
from harness.watch import Exchange, Tell

_AHEAD_INIT_LIMIT_S = 130.0
"""Lambda's limit of an init with provisioned concurrency, where the function's timeout is not larger."""
_MIB = 1024 * 1024


@dataclass(kw_only=True)
class _Timing:
    asked_ns: int
    context: RequestContext = field(default_factory=RequestContext)
    thaw_ms: float | None = None
    frozen_ms: float | None = None
    client_ms: float | None = None
    freeze_ms: float | None = None
    started_at: str = field(default_factory=lambda: datetime.datetime.now(datetime.UTC).isoformat())


class Sandbox:
    """One execution environment. A context manager: on leaving it is shut down.

    Starting raises `EngineError` where the engine fails. What goes wrong in an invocation, a container that is gone
    included, is on its record.
    """

    def __init__(
        self,
        function: Function,
        around: Surroundings,
        *,
        cell: Cell | None = None,
        extra_binds: Mapping[Path, str] | None = None,
    ) -> None:
        self.id = uuid.uuid4().hex[:12]
        self.function = function
        self.log_stream = environment.log_stream_name(function, datetime.datetime.now(datetime.UTC))
        self.init_ms: float | None = None
        """Of an init that was ahead of any request; that of others stands on the first invocation's record."""
        self.telling_ms = 0.0
        """How long observers and receivers took over the last record: their time, not the sandbox's."""
        self._around = around
        self._tier = tier(function.memory_mb)
        tell = Tell(init_begun=self._init_begun, handed_over=self._handed_over, output=self._output)
        self._cell = cell or ContainerCell(
            function, around, self.id, log_stream=self.log_stream, tell=tell, extra_binds=extra_binds or {}
        )
        self._phase: lifecycle.Phase = lifecycle.Created()
        self._told: type[lifecycle.Phase] | None = None
        self._initialised_ahead = False
        self._lock = threading.Lock()
        self._sequence = 0
        self._largest_peak = 0
        self._out_of_memory = False
        self._frozen_ns = 0

    @property
    def phase(self) -> lifecycle.Phase:
        return self._phase

    @property
    def cell(self) -> Cell:
        return self._cell

    def __enter__(self) -> Sandbox:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shut_down()

    def resident_bytes(self) -> int | None:
        """The resident memory of the runtime's processes now; None where there is none, or it cannot be read."""
        if isinstance(self._phase, lifecycle.Created | lifecycle.ShutDown):
            return None
        reach: Reach | None = getattr(self._cell, "reach", None)
        try:
            return None if reach is None else reach.resident_bytes()
        except (HarnessError, OSError):
            return None  # it ends just now

    def start(self) -> None:
        assert isinstance(self._phase, lifecycle.Created)  # noqa: S101  # a programming error, not a user's
        self._around.observer.phase(self, self._phase)
        self._cell.start()
        self._enter(self._phase.start())

    def initialise(self) -> None:
        """Init without an event, then freeze: provisioned concurrency. `start` comes first.

        Raises:
            InitFailed: the function's init did; the sandbox is shut down.
            NotMeasurable: the vantage has no way to do so.
        """
        assert isinstance(self._phase, lifecycle.Started)  # noqa: S101  # a programming error, not a user's
        timing, phase = _Timing(asked_ns=time.monotonic_ns()), self._phase.invoke()
        self._enter(phase)
        try:
            self._cell.reach.mark()
            limit_s = max(_AHEAD_INIT_LIMIT_S, float(self.function.timeout_s))
            exchange, answer = self._cell.initialise(limit_s=limit_s)
            self._check_init(exchange, answer)
            self._enter(phase.ready())
            self._initialised_ahead = True
            if self._around.freeze:
                self._freeze(timing)
                self._cell.reach.mark()
        except BaseException:
            self.shut_down()
            raise
        # The RIE's own figure comes through its log, and may be late.
        self.init_ms, _ = _init_ms(exchange)

    def _check_init(self, exchange: Exchange, answer: Answer | None) -> None:
        if answer is None:
            return
        kills = self._cell.reach.observe().oom_kills
        verdict = judge(exchange, answer, oom_kills=kills, request_id=exchange.context.request_id)
        raise InitFailed(f"init failed: {verdict.error_type}: {verdict.error_message}")

    def shut_down(self) -> None:
        """End the container; safe to call twice and in any phase."""
        self._enter(self._phase.shut_down())
        self._cell.close()

    # -- telling ----------------------------------------------------------------------------------------------------

    def _enter(self, phase: lifecycle.Phase) -> None:
        self._phase = phase
        self._say(phase)

    def _say(self, phase: lifecycle.Phase) -> None:
        """Tell the observer, who hears of a phase once: while it begins, where the watch sees that."""
        if self._told is not type(phase):
            self._told = type(phase)
            self._around.observer.phase(self, phase)

    def _init_begun(self, suppressed: bool) -> None:  # noqa: FBT001
        self._say(lifecycle.Reinitialising() if suppressed else lifecycle.Initialising())

    def _handed_over(self) -> None:
        phase = self._phase
        self._say(lifecycle.Invoking(warm=phase.warm if isinstance(phase, lifecycle.Invoking) else 0))

    def _output(self, request_id: str | None, data: bytes) -> None:
        if self._around.on_output is not None:
            self._around.on_output(data)
        if self._around.receivers is not None:
            self._around.receivers.output(self.id, request_id, self.function.name, data)
        self._around.observer.output(self, request_id, data)

    # -- one invocation -------------------------------------------------------------------------------------------

    def invoke(
        self, event: bytes, *, context: RequestContext | None = None, freeze_after: bool | None = None
    ) -> Invocation:
        """Thaw, hand the event over, wait for the answer, freeze, and write down what happened."""
        if not self._lock.acquire(blocking=False):
            raise HarnessError(f"sandbox {self.id} is busy: an execution environment takes one request at a time")
        try:
            freeze_after = self._around.freeze if freeze_after is None else freeze_after
            asked, context = context, self._traced(context or RequestContext())
            if self._around.receivers is not None:
                self._around.receivers.begin(self.id, self.function.name, context.request_id)
            record = self._invoke(event, context, freeze_after=freeze_after)
            before = time.monotonic()
            if self._around.receivers is not None and context.trace is not None:
                caller = asked.trace.parent_id if asked is not None and asked.trace is not None else None
                self._around.receivers.invocation(record, context.trace, caller_id=caller)
            self._around.observer.invoked(self, record, context)
            self.telling_ms = (time.monotonic() - before) * 1000
            return record
        finally:
            self._lock.release()

    def _traced(self, context: RequestContext) -> RequestContext:
        """With a trace: Lambda always hands one out, sampled only where somebody takes the segments.

        A caller's trace goes on, but the parent of what the function sends is Lambda's own segment, not the caller's.
        """
        if context.trace is not None:
            return replace(context, trace=replace(context.trace, parent_id=new_segment_id()))
        taken = self._around.receivers is not None and "xray" in self._around.receivers.kinds
        return replace(context, trace=Trace.begin(sampled=taken))

    def _invoke(self, event: bytes, context: RequestContext, *, freeze_after: bool) -> Invocation:
        timing = _Timing(asked_ns=time.monotonic_ns(), context=context)
        self._sequence += 1
        try:
            exchange = self._begin(timing)
            answer = self._ask(event, exchange, timing)
            self._advance(exchange)
            observation = self._put_away(timing, freeze_after=freeze_after)
            self._cell.settle(exchange)
        except EngineError as error:
            return self._failed(timing, error)
        except BaseException:
            # Ctrl-C, say: the runtime is in the middle of something; only the end of the sandbox is safe now.
            self.shut_down()
            raise
        return self._record(exchange, answer, observation, timing)

    def _begin(self, timing: _Timing) -> Exchange:
        if not isinstance(self._phase, lifecycle.Frozen | lifecycle.FrozenBroken):
            self._cell.reach.mark()
        self._thaw(timing)
        phase = self._phase
        assert isinstance(phase, lifecycle.Started | lifecycle.Idle | lifecycle.Broken)  # noqa: S101
        self._enter(phase.invoke())
        limits = {"timeout_s": self._timeout_s, "init_limit_s": INIT_LIMIT_S}
        if self._around.debug is not None:
            limits["init_limit_s"] = DEBUG_LIMIT_S
        return self._cell.expect(**limits, context=timing.context)

    @property
    def _timeout_s(self) -> float:
        return DEBUG_LIMIT_S if self._around.debug is not None else float(self.function.timeout_s)

    def _ask(self, event: bytes, exchange: Exchange, timing: _Timing) -> Answer:
        patience_s = self._timeout_s + 2 * INIT_LIMIT_S + GRACE_S
        try:
            answer = self._cell.request(event, timeout_s=patience_s)
            if _is_to_be_asked_again(exchange, answer):
                if not exchange.inits:
                    self._enter(lifecycle.Broken().invoke())
                answer = self._cell.request(event, timeout_s=patience_s)
        except RieGoneError as error:
            raise self._cell.gone(error) from error
        finally:
            exchange.answered_ns = time.monotonic_ns()
            timing.client_ms = (exchange.answered_ns - timing.asked_ns) / 1e6
        return answer

    def _put_away(self, timing: _Timing, *, freeze_after: bool) -> Observation:
        if freeze_after:
            self._freeze(timing)
        observation = self._cell.reach.observe()
        if freeze_after:
            self._cell.reach.mark()  # nothing changes while it stands still: the next invocation need not wait for this
        return observation

    def _thaw(self, timing: _Timing) -> None:
        if isinstance(self._phase, lifecycle.Frozen | lifecycle.FrozenBroken):
            before = time.monotonic_ns()
            timing.frozen_ms = (before - self._frozen_ns) / 1e6
            self._cell.reach.thaw()
            timing.thaw_ms = (time.monotonic_ns() - before) / 1e6
            self._enter(self._phase.thaw())

    def _freeze(self, timing: _Timing) -> None:
        if isinstance(self._phase, lifecycle.Idle | lifecycle.Broken):
            before = time.monotonic_ns()
            self._cell.reach.freeze()
            self._frozen_ns = time.monotonic_ns()
            timing.freeze_ms = (self._frozen_ns - before) / 1e6
            self._enter(self._phase.freeze())

    def _advance(self, exchange: Exchange) -> None:
        """Take the phases that the exchange went through."""
        for _ in exchange.inits[1:]:
            if isinstance(self._phase, lifecycle.Initialising):
                self._enter(self._phase.init_failed())
        if isinstance(self._phase, lifecycle.Initialising | lifecycle.Reinitialising) and exchange.event_ns is not None:
            self._enter(self._phase.init_done())
        if isinstance(self._phase, lifecycle.Initialising | lifecycle.Reinitialising):
            self._enter(self._phase.lost())
        elif isinstance(self._phase, lifecycle.Invoking):
            over = exchange.done_ns is not None and not exchange.overrun
            self._enter(self._phase.responded() if over else self._phase.lost())

    # -- the record -----------------------------------------------------------------------------------------------

    def _failed(self, timing: _Timing, error: HarnessError) -> Invocation:
        """The engine, not the function, failed: what is known is kept, and the sandbox is over."""
        self.shut_down()
        return self._invocation(
            timing,
            request_id=timing.context.request_id,
            phase_init=None,
            outcome=Outcome.ENGINE_ERROR,
            error_type=type(error).__name__,
            error_message=str(error),
            notes=(*self._cell.notes, f"not measured, because the engine failed: {error}"),
        )

    def _invocation(self, timing: _Timing, *, limit: int | None = None, **found: Any) -> Invocation:
        granted: Granted | None = getattr(self._cell, "granted", None)
        around, function = self._around, self.function
        return Invocation(
            function=function.name,
            runtime=function.runtime,
            memory_mb=function.memory_mb,
            architecture=function.architecture,
            image=around.image.reference,
            rie_version=around.rie_version,
            sandbox_id=self.id,
            sequence=self._sequence,
            cold=self._sequence == 1 and not self._initialised_ahead,
            started_at=timing.started_at,
            frozen_ms=timing.frozen_ms,
            thaw_ms=timing.thaw_ms,
            freeze_ms=timing.freeze_ms,
            client_ms=timing.client_ms,
            vantage=around.vantage.name,
            cgroup_version=granted.cgroup_version if granted else None,
            cpu_quota_us=granted.cpu_quota_us if granted else None,
            cpu_period_us=granted.cpu_period_us if granted else None,
            cpuset=granted.cpuset if granted else None,
            memory_limit_bytes=limit or (granted.memory_limit_bytes if granted else None),
            cpu_capped=granted.cpu_capped if granted else False,
            **found,
        )

    def _record(self, exchange: Exchange, answer: Answer, seen: Observation, timing: _Timing) -> Invocation:
        request_id = exchange.request_id or timing.context.request_id
        verdict = judge(exchange, answer, oom_kills=seen.oom_kills, request_id=request_id)
        suppressed = bool(exchange.inits) and exchange.inits[-1] != "init"
        phase = (PhaseInit.SUPPRESSED if suppressed else PhaseInit.INIT) if exchange.inits else None
        init_ms, init_notes = _init_ms(exchange)
        duration = _duration_ms(exchange, suppressed=suppressed)
        billed = None if duration is None else billed_ms(_cents(init_ms), _cents(duration) or 0.0)
        used = self._max_memory_used(seen, verdict)
        cost = None
        if billed is not None and not self._initialised_ahead:
            cost = pricing.invocation_cost_usd(
                self.function.memory_mb, billed, architecture=self.function.architecture, tmp_mb=self.function.tmp_mb
            )
        report = report_line(
            request_id=request_id,
            duration_ms=duration,
            billed=billed,
            memory_mb=self.function.memory_mb,
            max_memory_used_mb=used,
            init_ms=init_ms if phase is PhaseInit.INIT else None,
            outcome=verdict.outcome,
            error_type=verdict.error_type,
        )
        response, encoding = _parsed(verdict.payload)
        return self._invocation(
            timing,
            limit=seen.memory_limit_bytes,
            request_id=request_id,
            phase_init=phase,
            outcome=verdict.outcome,
            error_type=verdict.error_type,
            error_message=verdict.error_message,
            init_ms=init_ms,
            duration_ms=duration,
            billed_ms=billed,
            boost_lag_ms=exchange.boost_lag_ms if phase is PhaseInit.INIT else None,
            invoked_at=_instant(timing, exchange.event_ns),
            cpu_ms=seen.cpu_ms,
            throttled_ms=seen.throttled_ms,
            throttled_periods=seen.throttled_periods,
            peak_rss_bytes=seen.peak_rss_bytes,
            peak_memory_bytes=seen.peak_memory_bytes,
            resident_after_bytes=seen.resident_after_bytes,
            anonymous_after_bytes=seen.anonymous_after_bytes,
            page_cache_bytes=seen.page_cache_bytes,
            processes=seen.processes,
            threads=seen.threads,
            open_files=seen.open_files,
            tmp_bytes=seen.tmp_bytes,
            max_memory_used_mb=used,
            peak_method=seen.peak_method,
            cost_usd=cost,
            response=response,
            response_encoding=encoding,
            response_bytes=len(verdict.payload),
            log_tail=_log_tail(request_id, self.function.version, exchange, verdict, report),
            report=report,
            notes=(
                *self._cell.notes,
                *seen.notes,
                *verdict.notes,
                *init_notes,
                *self._ahead_notes(),
                *_output_notes(exchange, verdict),
            ),
            payload=verdict.payload,
        )

    def _ahead_notes(self) -> tuple[str, ...]:
        if not self._initialised_ahead:
            return ()
        return ("no cost is given: it ran on provisioned concurrency, which has prices of its own",)

    def _max_memory_used(self, seen: Observation, verdict: Verdict) -> int | None:
        """What Lambda prints: the largest peak since the sandbox began; the memory size after an out-of-memory kill."""
        if verdict.outcome is Outcome.OUT_OF_MEMORY:
            self._out_of_memory = True
        if seen.peak_rss_bytes is not None:
            self._largest_peak = max(self._largest_peak, seen.peak_rss_bytes)
        if self._out_of_memory:
            return self.function.memory_mb
        if not self._largest_peak:
            return None
        # Resident memory counts pages of files that are charged to nobody or to another; Lambda's figure has a bound.
        return min(-(-self._largest_peak // _MIB), self.function.memory_mb)


def _instant(timing: _Timing, at_ns: int | None) -> str | None:
    """A monotonic instant by the wall clock: counted from when the sandbox was asked."""
    if at_ns is None:
        return None
    since = datetime.timedelta(microseconds=(at_ns - timing.asked_ns) / 1000)
    return (datetime.datetime.fromisoformat(timing.started_at) + since).isoformat()


def _is_to_be_asked_again(exchange: Exchange, answer: Answer) -> bool:
    """Whether Lambda would begin a suppressed init now, and the RIE does so only for another request.

    So it is when the runtime had exited between invocations, unfrozen, and after a first init that failed or took too
    long: the RIE (1.37) then says that it tries again, but starts no runtime. The event was handed to nobody.
    """
    return (
        answer.status >= 500
        and exchange.event_ns is None
        and not exchange.overrun
        and exchange.inits[:1] in ([], ["init"])
    )


def _init_ms(exchange: Exchange) -> tuple[float | None, tuple[str, ...]]:
    """Lambda's Init Duration, and a note where the RIE's own figure did not come: a bill without its init would be wrong."""
    if exchange.inits[:1] != ["init"] or exchange.init_ms is not None:
        return exchange.init_ms if exchange.inits[:1] == ["init"] else None, ()
    if exchange.inits != ["init"] or exchange.init_begun_ns is None or exchange.init_done_ns is None:
        return None, ()
    seen_ms = (exchange.init_done_ns - exchange.init_begun_ns) / 1e6
    return seen_ms, ("init was timed from outside: the RIE's own figure did not come in time",)


def _cents(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def _duration_ms(exchange: Exchange, *, suppressed: bool) -> float | None:
    """Lambda's Duration: from the hand-over of the event until the runtime is ready again, dies or is killed.

    A suppressed init is part of it: Lambda runs it inside the invocation.
    """
    begun = exchange.init_begun_ns if suppressed else exchange.event_ns
    end = exchange.killed_ns or exchange.done_ns or exchange.exit_ns or exchange.answered_ns
    if begun is None or end is None or end < begun:
        return exchange.rie_duration_ms
    return (end - begun) / 1e6


def _parsed(payload: bytes) -> tuple[Any, str]:
    import base64

    if not payload:
        return None, "json"
    try:
        return strict_json.loads(payload), "json"  # a document that held NaN could not be read
    except ValueError:
        return base64.b64encode(payload).decode(), "base64"


def _output_notes(exchange: Exchange, verdict: Verdict) -> tuple[str, ...]:
    """After every response the RIE writes an END line: without it, what stood before it may not have come either."""
    if verdict.outcome is not Outcome.SUCCESS or exchange.output.ended:
        return ()
    return ("the log had not come to its end when it was no longer waited for: the end of the output may be missing",)


def _log_tail(request_id: str, version: str, exchange: Exchange, verdict: Verdict, report: str) -> str:
    """The last 4 KiB of the log as X-Amz-Log-Result has them: START, the function's output, END, REPORT."""
    lines = [f"START RequestId: {request_id} Version: {version}\n", exchange.output.tail()]
    if lines[-1] and not lines[-1].endswith("\n"):
        lines.append("\n")
    if verdict.log_line:
        lines.append(verdict.log_line + "\n")
    lines += [f"END RequestId: {request_id}\n", report + "\n"]
    return "".join(lines).encode()[-4096:].decode("utf-8", errors="ignore")
