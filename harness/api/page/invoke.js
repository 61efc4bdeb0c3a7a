/* The form: events go to the Lambda API of this very service, as from any other client. */

import { byId, el, milliseconds, put } from "./dom.js";
import { state } from "./state.js";

const DIRECT = 4;  // a browser opens six connections to one origin, and one of them is the stream of events
const KEPT = 12, KEPT_BYTES = 20_000;
const form = byId("form"), fields = Object.fromEntries(
  ["function", "qualifier", "history", "event", "count", "concurrency", "kind"].map((name) => [name, byId(`f-${name}`)]));
let running = null;
let offered = "";
let edited = false;

// History: in this browser alone, by function

function history(name) {
  try {
    const found = JSON.parse(localStorage.getItem(`events:${name}`) ?? "[]");
    return Array.isArray(found) ? found.filter((one) => typeof one === "string") : [];
  } catch { return []; }
}

function keep(name, text) {
  if (text.length > KEPT_BYTES) return;
  try {
    localStorage.setItem(`events:${name}`, JSON.stringify([text, ...history(name).filter((one) => one !== text)].slice(0, KEPT)));
  } catch { /* storage is full or refused: the form works without */ }
}

const versions = (name) => [...state.functions.values()].filter((one) => one.name === name);
const samples = (name) => versions(name).flatMap((one) => one.events ?? []);

/** Keep the list of functions and of events current, without touching what is being chosen. */
export function drawForm() {
  const names = [...new Set([...state.functions.values()].map((one) => one.name))];
  const now = JSON.stringify(names);
  if (now === offered) return;
  offered = now;
  const chosen = fields.function.value;
  fields.function.replaceChildren(...names.map((name) => el("option", { value: name }, name)));
  if (names.includes(chosen)) fields.function.value = chosen;
  byId("send").disabled = running !== null || !names.length;
  if (fields.function.value !== chosen) changed();
}

function changed() {
  const name = fields.function.value, kept = history(name), offers = samples(name);
  byId("qualifiers").replaceChildren(...versions(name).map((one) => el("option", { value: one.version })));
  const short = (text) => { const one = text.replace(/\s+/g, " "); return one.length > 60 ? `${one.slice(0, 60)}…` : one; };
  fields.history.replaceChildren(
    el("option", { value: "" }, kept.length || offers.length ? "earlier and sample events" : "no earlier event"),
    ...(offers.length ? [el("optgroup", { label: "samples of the function" }, ...offers.map((one) => el("option", { value: one.text }, `${one.name}: ${short(one.text)}`)))] : []),
    ...(kept.length ? [el("optgroup", { label: "earlier" }, ...kept.map((text) => el("option", { value: text }, short(text))))] : []));
  if (!edited) {
    fields.event.value = kept[0] ?? offers[0]?.text ?? "{}";
    check();
  }
}

/** Whether the event is JSON; says where it is not. */
function check() {
  const text = fields.event.value, told = byId("event-check");
  let wrong = null;
  try { JSON.parse(text); } catch { wrong = where(text); }
  told.dataset.state = wrong === null ? "good" : "bad";
  put(told, wrong === null ? `✓ valid JSON, ${new Blob([text]).size} bytes` : `✕ not JSON: ${wrong}`);
  fields.event.setAttribute("aria-invalid", String(wrong !== null));
  return wrong === null;
}

/** Where a text stops being JSON: browsers tell of it in different words, and not always the place. */
function where(text) {
  const blank = /[ \t\n\r]*/y, scalar = /"(?:[^"\\\u0000-\u001f]|\\(?:["\\/bfnrt]|u[\da-fA-F]{4}))*"|-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null/y;
  let at = 0;
  const take = (pattern) => {
    pattern.lastIndex = at;
    const found = pattern.exec(text)?.[0];
    if (found !== undefined) at += found.length;
    return found;
  };
  const next = (wanted) => {
    take(blank);
    if (text[at] !== wanted) return false;
    at += 1;
    return true;
  };
  /** Returns what is missing, or nothing. */
  const value = (depth) => {
    if (depth > 500) return "less depth";
    if (next("{")) return list("}", depth, () => {
      take(blank);
      if (text[at] !== '"' || take(scalar) === undefined) return "a name in double quotes";
      return next(":") ? value(depth + 1) : "a colon";
    });
    if (next("[")) return list("]", depth, () => value(depth + 1));
    return take(scalar) === undefined ? "a value" : null;
  };
  const list = (end, depth, item) => {
    if (next(end)) return null;
    for (;;) {
      const missing = item();
      if (missing) return missing;
      if (next(end)) return null;
      if (!next(",")) return `a comma or ${end}`;
    }
  };
  let missing = value(0);
  take(blank);
  if (!missing && at < text.length) missing = "nothing more";
  const before = text.slice(0, at).split("\n");
  return `${missing ?? "another text"} expected at line ${before.length}, column ${before.at(-1).length + 1}`;
}

const whole = (field) => {
  const value = Number(field.value);
  return Number.isInteger(value) && value >= Number(field.min) && value <= Number(field.max) ? value : null;
};

function request() {
  const qualifier = fields.qualifier.value.trim();
  return {
    path: `/2015-03-31/functions/${encodeURIComponent(fields.function.value)}/invocations${qualifier ? `?Qualifier=${encodeURIComponent(qualifier)}` : ""}`,
    headers: { "X-Amz-Invocation-Type": fields.kind.value },
    event: fields.event.value,
  };
}

async function direct({ path, headers, event }, count, concurrency, signal, tell) {
  let next = 0;
  const work = async () => {
    while (next < count && !signal.aborted) {
      next += 1;
      const before = performance.now();
      const answer = await fetch(path, { method: "POST", headers, body: event, signal });
      const text = await answer.text();
      tell({ status: answer.status, ms: performance.now() - before, text,
        headers: Object.fromEntries([...answer.headers].map(([name, value]) => [name.toLowerCase(), value])) });
    }
  };
  await Promise.all(Array.from({ length: concurrency }, work));
}

async function burst(wanted, count, concurrency, signal, tell) {
  const answer = await fetch("/_harness/burst", {
    method: "POST", signal, headers: { "Content-Type": "application/json" }, body: JSON.stringify({ ...wanted, count, concurrency }),
  });
  if (!answer.ok) throw new Error(await answer.text());
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (let { done, value } = await reader.read(); !done; { done, value } = await reader.read()) {
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) tell(JSON.parse(line));
  }
}

async function submit(event) {
  event.preventDefault();
  if (running) return;
  const count = whole(fields.count), concurrency = whole(fields.concurrency);
  if (!check()) { fields.event.focus(); return say("bad", "The event is not JSON: nothing was sent."); }
  if (count === null) { fields.count.focus(); return say("bad", `Count is a whole number from 1 to ${fields.count.max}.`); }
  if (concurrency === null) { fields.concurrency.focus(); return say("bad", `At once is a whole number from 1 to ${fields.concurrency.max}.`); }
  if (!fields.function.value) return say("bad", "There is no function to invoke.");
  keep(fields.function.value, fields.event.value);
  edited = false;
  changed();
  const tally = { done: 0, good: 0, failed: 0, throttled: 0, refused: 0, last: null, worst: null };
  const tell = (answer) => {
    const kind = answer.status === 429 ? "throttled" : answer.status >= 300 ? "refused" : answer.headers["x-amz-function-error"] ? "failed" : "good";
    tally.done += 1;
    tally[kind] += 1;
    tally.last = answer;
    if (kind !== "good") tally.worst ??= answer;
    byId("progress").value = tally.done;
  };
  begin(count);
  say("open", count === 1 ? "Waiting for the answer." : `Waiting for ${count} answers.`, "", false);
  try {
    const lanes = Math.min(count, concurrency);
    await (lanes <= DIRECT ? direct : burst)(request(), count, lanes, running.signal, tell);
    finish(tally, count);
  } catch (error) {
    if (error.name === "AbortError") say("bad", `Stopped after ${tally.done} of ${count} answers; what had begun goes on.`);
    else say("bad", `The service does not answer: ${error.message}`);
  }
  end();
}

function begin(count) {
  running = new AbortController();
  byId("send").disabled = true;
  byId("stop").hidden = false;
  Object.assign(byId("progress"), { max: count, value: 0, hidden: count === 1 });
}

function end() {
  const hadFocus = document.activeElement === byId("stop");
  running = null;
  byId("send").disabled = false;
  byId("stop").hidden = byId("progress").hidden = true;
  if (hadFocus) byId("send").focus();
}

function finish(tally, count) {
  const shown = tally.worst ?? tally.last, kind = tally.worst ? "bad" : "good";
  if (count === 1) {
    const told = fields.kind.value === "Event" && shown.status === 202 ? "Accepted: it will be invoked asynchronously"
      : shown.status === 429 ? "Throttled" : shown.status >= 300 ? `Refused: ${shown.headers["x-amzn-errortype"] ?? shown.status}`
      : shown.headers["x-amz-function-error"] ? `The function failed: ${typeOf(shown.text)}` : "Success";
    return say(kind, `${told}, HTTP ${shown.status} after ${milliseconds(shown.ms)}.`, shown.text);
  }
  const told = [["good", "good"], ["failed", "failed"], ["throttled", "throttled"], ["refused", "refused"]]
    .filter(([name]) => tally[name]).map(([name, word]) => `${tally[name]} ${word}`);
  say(kind, `${tally.done} answers: ${told.join(", ")}. ${tally.worst ? "The first that was not good:" : "The last:"}`, shown?.text ?? "");
}

function typeOf(text) {
  try { return JSON.parse(text).errorType ?? "unhandled error"; } catch { return "unhandled error"; }
}

function say(kind, text, body = "", announced = true) {
  byId("outcome").hidden = false;
  byId("outcome").dataset.kind = kind;
  put(byId("outcome-text"), text);
  put(byId("outcome-body"), pretty(body));
  byId("outcome-body").hidden = !body;
  if (announced) put(byId("announce"), text);
}

function pretty(text) {
  const cut = text.length > 4000 ? `${text.slice(0, 4000)} …` : text;
  try { return cut === text ? JSON.stringify(JSON.parse(text), null, 1) : cut; } catch { return cut; }
}

export function wireForm() {
  form.addEventListener("submit", submit);
  fields.function.addEventListener("change", () => { edited = false; changed(); });
  fields.event.addEventListener("input", () => { edited = true; check(); });
  fields.event.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
  fields.history.addEventListener("change", () => {
    if (!fields.history.value) return;
    fields.event.value = fields.history.value;
    fields.history.value = "";
    edited = true;
    check();
  });
  byId("stop").addEventListener("click", () => running?.abort());
  check();
}
