/* What came back: REPORT lines, traces as trees with bars, metrics, messages. */

import { byId, el, glyph, milliseconds, outcome, put, size, spark } from "./dom.js";
import { state } from "./state.js";

const SHOWN = 24;
const rows = new Map();
let traced = null, metered = null, told = null;

export function drawReports() {
  const list = byId("report-list"), wanted = state.reports.slice(-SHOWN).reverse();
  if (wanted.length && list.firstElementChild?.dataset.key === keyOf(wanted[0]) && list.children.length === wanted.length) return;
  wanted.forEach((report, at) => {
    const key = keyOf(report);
    if (!rows.has(key)) rows.set(key, makeRow(report, key));
    const row = rows.get(key);
    if (list.children[at] !== row) list.insertBefore(row, list.children[at] ?? null);
  });
  while (list.children.length > wanted.length) list.lastChild.remove();
  const kept = new Set(wanted.map(keyOf));
  for (const key of rows.keys()) if (!kept.has(key)) rows.delete(key);
  if (!wanted.length) list.replaceChildren(el("li", { className: "none" }, "Nothing was invoked yet."));
}

const keyOf = (report) => `${report.request_id} ${report.at_ms}`;

function makeRow(report, key) {
  const [shape, words] = outcome(report.outcome);
  const summary = el("summary", {},
    el("span", { className: "verdict" }, glyph(shape), el("strong", {}, words)),
    el("span", { className: "who" }, report.function, el("small", {}, ` ${report.cold ? "cold" : "warm"} · ${String(report.sandbox_id).slice(0, 4)} · request ${report.request_id.slice(0, 8)}`)),
    el("time", {}, el("small", {}, new Date(report.at_ms).toLocaleTimeString())),
    el("span", { className: "line" }, ...line(report)));
  const more = el("div", { className: "log" },
    report.error_message ? el("p", { className: "error" }, `${report.error_type ?? "Error"}: ${report.error_message}`) : null,
    el("pre", { tabIndex: 0 }, report.log_tail || "no log"),
    report.response === null ? null : el("p", {}, el("small", {}, `response, ${size(report.response_bytes)} `), el("code", {}, report.response || "too large to show")));
  const made = el("li", {}, el("details", {}, summary, more));
  made.dataset.key = key;
  made.dataset.shape = shape;
  return made;
}

/** The REPORT line field by field, figures first; as Lambda prints it, it is the last line of the log. */
function line(report) {
  if (!report.report) return [el("span", {}, report.error_message ?? "no REPORT line")];
  const [, ...fields] = report.report.trim().split("\t");
  return [el("span", {}, "REPORT"), ...fields.map((part) => {
    const at = part.indexOf(": ");
    return el("span", {}, part.slice(0, at + 2), el("b", {}, part.slice(at + 2)));
  })];
}

export function drawArrived() {
  put(byId("n-traces"), String(state.traces.size));
  put(byId("n-metrics"), String(state.counts.metrics));
  put(byId("n-messages"), String(state.messages.length));
  if (!byId("traces").hidden && traced !== state.counts.segments) drawTraces();
  if (!byId("metrics").hidden && metered !== state.counts.metrics) drawMetrics();
  if (!byId("messages").hidden && told !== state.messages) drawMessages();
}

export function arrivedAnew() { traced = metered = told = null; }

function drawTraces() {
  const panel = byId("traces"), shut = new Set([...panel.querySelectorAll("details")].filter((one) => !one.open).map((one) => one.dataset.id));
  traced = state.counts.segments;
  const shown = [...state.traces].reverse().slice(0, 12);
  panel.replaceChildren(...(shown.length ? shown.map(([id, documents]) => trace(id, documents, !shut.has(id)))
    : [none("No trace yet. What functions send with the X-Ray SDK is shown here, as a tree.")]));
}

const none = (text) => el("p", { className: "none" }, text);
const begun = (one) => Number(one.start_time ?? 0);

/** Segments of one trace come one by one, and in any order: each hangs below the one that its parent_id names. */
function roots(documents) {
  const nodes = new Map();
  const visit = (one, depth) => {
    const node = { ...one, below: [] };
    nodes.set(one.id, node);
    if (depth < 20) node.below = (one.subsegments ?? []).map((inner) => visit(inner, depth + 1));
    return node;
  };
  const tops = [...documents.values()].map((one) => visit(one, 0));
  return tops.filter((node) => {
    const parent = nodes.get(node.parent_id);
    if (!parent || parent === node || within(node, parent, 0)) return true;
    if (!parent.below.some((one) => one.id === node.id)) parent.below.push(node);
    return false;
  });
}

const within = (node, wanted, depth) => depth < 25 && node.below.some((one) => one === wanted || within(one, wanted, depth + 1));
const latest = (one) => Math.max(Number(one.end_time ?? begun(one)), ...one.below.map(latest));

function trace(id, documents, open) {
  const tops = roots(documents), begin = Math.min(...tops.map(begun)), span = Math.max(0.000_001, ...tops.map((one) => latest(one) - begin));
  const made = el("details", { open, className: "trace" },
    el("summary", {}, el("strong", {}, String(tops[0]?.name ?? "trace")), el("small", {}, ` ${milliseconds(span * 1000)} · ${String(id).slice(-8)}`)),
    tree(tops, begin, span, 0));
  made.dataset.id = id;
  return made;
}

function tree(segments, begin, span, depth) {
  return el("ul", { className: "tree" }, ...segments.sort((a, b) => begun(a) - begun(b)).slice(0, 40).map((one) => {
    const from = (begun(one) - begin) / span, to = (Number(one.end_time ?? one.start_time) - begin) / span;
    const bar = el("span", { className: "bar-fill" });
    bar.style.setProperty("left", `${Math.min(100, Math.max(0, from * 100))}%`);
    bar.style.setProperty("width", `${Math.min(100, Math.max(0.6, (to - from) * 100))}%`);
    const wrong = one.fault ? "fault" : one.error ? "error" : one.throttle ? "throttled" : one.in_progress ? "in progress" : "";
    const row = el("div", { className: "span" },
      el("span", { className: "span-name", title: [one.name, one.origin, one.namespace].filter(Boolean).join(", ") },
        wrong && wrong !== "in progress" ? glyph("broken") : null, one.origin === "AWS::Lambda" ? "Lambda service" : String(one.name ?? "?"), wrong ? el("em", {}, ` ${wrong}`) : null),
      el("span", { className: "bar-track", "aria-hidden": "true" }, bar),
      el("span", { className: "span-time" }, one.end_time === undefined ? "…" : milliseconds((Number(one.end_time) - begun(one)) * 1000)));
    row.style.setProperty("--depth", String(depth));
    row.dataset.wrong = wrong;
    return el("li", {}, row, one.below.length && depth < 12 ? tree(one.below, begin, span, depth + 1) : null);
  }));
}

function drawMetrics() {
  metered = state.counts.metrics;
  const shown = [...state.metrics.values()].reverse().slice(0, 40);
  const value = (one) => `${one.value === null ? "?" : Number(one.value.toPrecision(6))}${one.unit && one.unit !== "None" ? ` ${one.unit}` : ""}`;
  byId("metrics").replaceChildren(...(shown.length ? [el("ul", { className: "metrics" }, ...shown.map((one) => el("li", {},
    el("span", { className: "metric-name" }, el("strong", {}, String(one.name)), el("small", {}, ` ${one.namespace} ${one.dimensions}`)),
    spark(one.values.length ? one.values : [0]),
    el("span", { className: "metric-value" }, value(one), el("small", {}, ` ${one.count}×${one.source ? ` ${one.source}` : ""}`)))))]
    : [none("No metric yet. PutMetricData and embedded metric format arrive here, and go nowhere else.")]));
}

function drawMessages() {
  told = state.messages;
  byId("messages").replaceChildren(...(told.length ? [el("ul", { className: "messages" }, ...[...told].reverse().map((one) =>
    el("li", { "data-level": one.level }, one.level === "info" ? null : glyph("broken"), el("time", {}, new Date(one.at_ms).toLocaleTimeString()), ` ${one.text}`)))]
    : [none("Nothing to say.")]));
}

/** Tabs as the ARIA practices have them: arrows move, the tab key leaves. */
export function wireTabs() {
  const tabs = [...document.querySelectorAll("[role=tab]")];
  const choose = (chosen) => {
    for (const tab of tabs) {
      tab.setAttribute("aria-selected", String(tab === chosen));
      tab.tabIndex = tab === chosen ? 0 : -1;
      byId(tab.getAttribute("aria-controls")).hidden = tab !== chosen;
    }
    arrivedAnew();
    drawArrived();
  };
  for (const [at, tab] of tabs.entries()) {
    tab.addEventListener("click", () => choose(tab));
    tab.addEventListener("keydown", (event) => {
      const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: tabs.length - 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      const next = tabs.at(to % tabs.length);
      next.focus();
      choose(next);
    });
  }
}
