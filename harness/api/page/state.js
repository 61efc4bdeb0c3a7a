/* What the page knows: the service's snapshot, and every event since. Draws nothing. */

export const WINDOW_MS = 60_000;
const FINE_MS = 30;      // the timeline draws some 20 ms to the pixel: what is shorter melts into its neighbours
const GONE_MS = 2500;    // how long the box of an ended sandbox stays

/** Phase -> the state that is shown. Shapes, words and colours hang on these. */
const STATES = {
  created: "starting", started: "starting", initialising: "init", reinitialising: "init", invoking: "working",
  idle: "idle", frozen: "frozen", broken: "broken", frozen_broken: "broken", shut_down: "gone",
};
export const WORDS = {
  starting: "Starting", init: "Init", working: "Working", thaw: "Thaw", idle: "Idle", frozen: "Frozen",
  broken: "Broken", oom: "Out of memory", gone: "Ended",
};
export const ENDS = {
  timeout: "Timed out", runtime_exit: "Crashed", init_error: "Init failed", init_timeout: "Init too slow",
};
/** How long a state is shown at least, so that eyes can follow: a warm invocation may take a millisecond. */
const HOLD_MS = { working: 650, init: 500, thaw: 380, idle: 150, frozen: 250, starting: 150, broken: 300, oom: 900 };

export const state = {
  offset: 0, region: "", functions: new Map(), sandboxes: new Map(), reports: [], metrics: new Map(), traces: new Map(),
  messages: [], totals: { outcomes: {}, cold: 0 }, counts: { metrics: 0, segments: 0 }, loaded: false,
};

/** The service's clock, in milliseconds. */
export const now = () => Date.now() + state.offset;

export const of = (box) => (box.failure?.outcome === "out_of_memory" && box.state === "broken" ? "oom" : box.state);

export function load(snapshot) {
  const old = state.sandboxes;
  Object.assign(state, {
    offset: snapshot.now_ms - Date.now(), region: snapshot.region, functions: new Map(), sandboxes: new Map(),
    reports: [], metrics: new Map(), traces: new Map(), messages: [], totals: snapshot.totals, counts: { metrics: 0, segments: 0 }, loaded: true,
  });
  for (const one of snapshot.functions) apply(one);
  for (const one of snapshot.sandboxes) {
    const box = begin(one);
    Object.assign(box, { invocations: one.invocations, failure: one.failure, limit: one.limit_bytes });
    for (const [at, phase] of one.phases) enter(box, STATES[phase], at);
    box.resident = one.resident_bytes;
    box.samples = [...box.samples, ...one.memory].sort(([a], [b]) => a - b);
    box.pending = [];
    box.shown = of(box);
    box.shownAt = old.get(one.id)?.shown === box.shown ? old.get(one.id).shownAt : 0;
  }
  for (const one of [...snapshot.metrics, ...snapshot.segments, ...snapshot.messages]) apply(one);
  for (const one of snapshot.reports) {
    remember(one);
    mark(one);
  }
}

export function apply(event) {
  APPLY[event.type]?.(event);
}

const APPLY = {
  function(event) { state.functions.set(`${event.name}:${event.version}`, event); },
  function_deleted(event) {
    for (const [key, one] of state.functions) {
      if (one.name === event.name && (event.version === null || event.version === one.version)) state.functions.delete(key);
    }
  },
  sandbox(event) {
    const box = state.sandboxes.get(event.id) ?? begin(event);
    if (event.phase === "invoking" || event.phase === "reinitialising") box.failure = null;
    enter(box, STATES[event.phase] ?? "idle", event.at_ms, event.phase);
  },
  memory(event) {
    const box = state.sandboxes.get(event.id);
    if (!box) return;
    box.resident = event.resident_bytes;
    box.limit = event.limit_bytes;
    box.samples.push([event.at_ms, event.resident_bytes]);
  },
  report(event) {
    state.totals.outcomes[event.outcome] = (state.totals.outcomes[event.outcome] ?? 0) + 1;
    if (event.cold && event.outcome !== "throttled") state.totals.cold += 1;
    remember(event);
    const box = state.sandboxes.get(event.sandbox_id);
    if (!box) return;
    box.invocations = event.sequence;
    box.last = event;
    mark(event);
    if (event.outcome in ENDS || event.outcome === "out_of_memory") {
      box.failure = event;
      show(box, of(box));
    }
  },
  metric(event) {
    const datum = event.datum;
    const dimensions = (datum.Dimensions ?? []).map((d) => `${d.Name}=${d.Value}`).join(" ");
    const key = `${datum.Namespace} ${datum.MetricName} ${dimensions}`;
    const series = state.metrics.get(key) ?? { values: [], count: 0 };
    const value = datum.Value ?? datum.StatisticValues?.Maximum ?? datum.Values?.at(-1) ?? null;
    if (typeof value === "number") series.values = [...series.values, value].slice(-40);
    Object.assign(series, {
      namespace: datum.Namespace, name: datum.MetricName, dimensions, unit: datum.Unit, at: event.at_ms, value,
      source: datum.source, count: series.count + 1,
    });
    state.metrics.delete(key);
    state.metrics.set(key, series);
    state.counts.metrics += 1;
    if (state.metrics.size > 200) state.metrics.delete(state.metrics.keys().next().value);
  },
  segment(event) {
    const { trace_id: trace, id } = event.segment;
    const documents = state.traces.get(trace) ?? new Map();
    documents.set(id, event.segment);
    state.traces.delete(trace);
    state.traces.set(trace, documents);
    state.counts.segments += 1;
    if (state.traces.size > 40) state.traces.delete(state.traces.keys().next().value);
  },
  message(event) { state.messages = [...state.messages, event].slice(-30); },
};

function mark(report) {
  if (report.outcome !== "success") state.sandboxes.get(report.sandbox_id)?.marks.push([report.at_ms, report.outcome]);
}

function remember(report) {
  state.reports.push(report);
  if (state.reports.length > 50) state.reports.splice(0, state.reports.length - 50);
}

function begin(event) {
  const box = {
    id: event.id, name: event.function, version: event.version, memoryMb: event.memory_mb, logStream: event.log_stream,
    limit: event.memory_mb * 1024 * 1024, resident: null, invocations: 0, failure: null, last: null,
    state: "starting", since: event.at_ms, segments: [], samples: [], marks: [], pending: [], shown: "starting", shownAt: 0,
  };
  state.sandboxes.set(box.id, box);
  return box;
}

function enter(box, next, at) {
  const before = box.state;
  if (next === "broken" && before !== "broken") {
    box.resident = null;
    box.samples.push([at, null]);  // the line ends here
  }
  box.state = next;
  box.since = at;
  segment(box, next === "idle" && before === "frozen" ? "thaw" : next, at);
  show(box, next === "idle" && (before === "frozen" || before === "broken") ? "thaw" : of(box));
}

function segment(box, name, at) {
  const list = box.segments, last = list.at(-1);
  if (last && last.state === name) return;
  // A pause that is too short to be seen, between two of the same kind, is none.
  if (last && at - last.at < FINE_MS && list.at(-2)?.state === name) { list.pop(); return; }
  if (last && at - last.at < FINE_MS && (last.state === "idle" || last.state === "thaw")) { last.state = name; return; }
  list.push({ at, state: name });
}

/** Queue a state for the eyes; the box shows one after the other, each for its time, and never lags by more than three. */
function show(box, next) {
  const queue = box.pending;
  if (queue.at(-1) === "idle" && next !== "idle") queue.pop();
  if (queue.at(-1) === "broken" && next === "oom") queue.pop();
  if ((queue.at(-1) ?? box.shown) === next) return;
  queue.push(next);
  if (queue.length > 4) queue.splice(0, queue.length - 3);
}

/** Let boxes go on to their next state, and forget what has left the window. */
export function tick(time) {
  const moment = now(), first = moment - WINDOW_MS - 1000;
  for (const box of state.sandboxes.values()) {
    while (box.pending.length && time - box.shownAt >= (HOLD_MS[box.shown] ?? 0)) {
      box.shown = box.pending.shift();
      box.shownAt = time;
    }
    while (box.segments.length > 1 && box.segments[1].at < first) box.segments.shift();
    while (box.samples.length > 1 && box.samples[1][0] < first) box.samples.shift();
    while (box.marks.length && box.marks[0][0] < first) box.marks.shift();
    if (box.state === "gone") {
      box.hidden = moment - box.since > GONE_MS;
      if (moment - box.since > WINDOW_MS) state.sandboxes.delete(box.id);
    }
  }
}
