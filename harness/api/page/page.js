/* The page: keeps the connection, and draws what has changed. */

import { arrivedAnew, drawArrived, drawReports, wireTabs } from "./arrived.js";
import { drawBoxes, drawLegend } from "./boxes.js";
import { byId, el, put } from "./dom.js";
import { drawForm, wireForm } from "./invoke.js";
import { apply, load, state, tick } from "./state.js";
import { count, drawTimeline, forgetColours, recount } from "./timeline.js";

const calm = matchMedia("(prefers-reduced-motion: reduce)");
const FRAME_MS = 66, CALM_FRAME_MS = 500;
let changed = true;

// Connection. The stream begins with a snapshot, so a new connection needs nothing of the old one.

const RETRY_MS = [500, 1000, 2000, 5000];
let tries = 0, lost = null;

function connect() {
  const source = new EventSource("/_harness/events");
  source.addEventListener("snapshot", (event) => {
    tries = 0;
    load(JSON.parse(event.data));
    recount();
    arrivedAnew();
    connection("live", "live");
  });
  source.addEventListener("events", (event) => {
    for (const one of JSON.parse(event.data)) apply(one);
    changed = true;
  });
  const again = () => {
    source.close();
    connection("lost", "no connection, trying again");
    clearTimeout(lost);
    lost = setTimeout(connect, RETRY_MS[Math.min(tries++, RETRY_MS.length - 1)]);
  };
  source.addEventListener("reconnect", again);
  source.addEventListener("error", again);
  addEventListener("pagehide", () => source.close(), { once: true });
}

function connection(kind, text) {
  changed = true;
  byId("connection").dataset.state = kind;
  put(byId("connection-text"), text);
}

// Drawing

function drawTotals() {
  const outcomes = state.totals.outcomes, all = Object.values(outcomes).reduce((a, b) => a + b, 0);
  const live = [...state.sandboxes.values()].filter((box) => box.state !== "gone");
  const figures = [
    ["sandboxes", live.length], ["working", live.filter((box) => box.state === "working" || box.state === "init").length],
    ["invocations", all], ["cold", state.totals.cold], ["not good", all - (outcomes.success ?? 0)],
  ];
  const totals = byId("totals");
  if (totals.children.length !== figures.length) {
    totals.replaceChildren(...figures.map(([name]) => el("div", {}, el("dt", {}, name), el("dd"))));
  }
  figures.forEach(([, value], at) => put(totals.children[at].lastChild, String(value)));
  totals.lastChild.dataset.bad = all - (outcomes.success ?? 0) > 0;
}

let drawn = 0;

function frame(time) {
  requestAnimationFrame(frame);
  if (time - drawn < (calm.matches ? CALM_FRAME_MS : FRAME_MS)) return;
  drawn = time;
  tick(time);
  drawBoxes();
  drawTimeline();
  if (!changed) return;
  changed = false;
  drawTotals();
  drawReports();
  drawArrived();
  drawForm();
}

// Theme: as the system has it, or as somebody in the room wants it

const THEMES = ["auto", "light", "dark"];

function theme(name) {
  const chosen = THEMES.includes(name) ? name : "auto";
  if (chosen === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = chosen;
  put(byId("theme").firstElementChild, chosen);
  forgetColours();
  return chosen;
}

function wireTheme() {
  let chosen = theme(localStorage.getItem("theme"));
  byId("theme").addEventListener("click", () => {
    chosen = theme(THEMES[(THEMES.indexOf(chosen) + 1) % THEMES.length]);
    localStorage.setItem("theme", chosen);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", forgetColours);
}

drawLegend();
wireTheme();
wireTabs();
wireForm();
drawReports();
setInterval(count, 250);
connect();
requestAnimationFrame(frame);
