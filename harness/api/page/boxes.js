/* Functions, and their sandboxes as boxes. Many sandboxes become small tiles, and then a number. */

import { ago, byId, el, glyph, megabytes, put, setGlyph } from "./dom.js";
import { ENDS, WORDS, now, of, state } from "./state.js";

const COMPACT_FROM = 13, TILES_FROM = 49, MOST_TILES = 240;
const ORDER = ["working", "init", "thaw", "idle", "frozen", "oom", "broken", "starting", "gone"];
const cards = new Map();
const boxes = new Map();

/** How a state is told in one word; what ended the runtime has a word of its own. */
const word = (box, shown) => (shown === "broken" ? ENDS[box.failure?.outcome] ?? WORDS.broken : WORDS[shown]);

function detail(box, shown) {
  if (shown === "oom") return `killed at ${box.failure?.max_memory_used_mb ?? box.memoryMb} MB`;
  if (shown === "broken") return box.failure?.error_type ?? "runtime lost";
  if (shown === "frozen" && box.state === "frozen") return `for ${ago(now() - box.since)}`;
  if (shown === "working" && box.state === "working" && now() - box.since > 1000) return `for ${ago(now() - box.since)}`;
  if (shown === "init") return "full CPU";
  if (shown === "thaw") return "goes on";
  return "";
}

function makeBox(box) {
  const parts = {
    glyph: glyph("starting"), word: el("strong", { className: "word" }), detail: el("span", { className: "detail" }),
    fill: el("span", { className: "fill" }), used: el("span", { className: "used" }), count: el("span", { className: "count" }),
  };
  const root = el("li", { className: "box", title: `${box.id}${box.logStream ? `\n${box.logStream}` : ""}` },
    el("span", { className: "top" }, parts.glyph, parts.word),
    el("span", { className: "middle" }, parts.detail, parts.count),
    el("span", { className: "meter", "aria-hidden": "true" }, parts.fill),
    el("span", { className: "foot" }, parts.used, el("span", {}, box.id.slice(0, 4))));
  root.dataset.sandbox = box.id;
  return { root, ...parts, state: "" };
}

function drawBox(box, view) {
  const shown = box.shown;
  if (view.state !== shown) {
    view.root.dataset.state = view.state = shown;
    setGlyph(view.glyph, shown);
  }
  view.root.dataset.phase = of(box);
  put(view.word, word(box, shown));
  put(view.detail, detail(box, shown));
  const share = shown === "oom" ? 1 : box.resident === null ? 0 : Math.min(1, box.resident / box.limit);
  const percent = `${Math.round(share * 100)}%`;
  if (view.percent !== percent) view.fill.style.setProperty("width", view.percent = percent);
  view.fill.dataset.near = share > 0.85;
  put(view.used, shown === "broken" ? `of ${box.memoryMb} MB` : `${shown === "oom" ? box.memoryMb : megabytes(box.resident)} / ${box.memoryMb} MB`);
  put(view.count, box.invocations ? `${box.invocations}×` : "");
  view.root.dataset.last = box.last && box.last.outcome !== "success" ? "bad" : "";
}

function makeCard() {
  const parts = {
    name: el("h3"), facts: el("span", { className: "facts" }), counts: el("span", { className: "counts" }),
    list: el("ul", { className: "boxes" }), more: el("p", { className: "more hint" }),
  };
  const root = el("article", { className: "function" },
    el("div", { className: "title" }, parts.name, parts.facts, parts.counts), parts.list, parts.more);
  return { root, ...parts };
}

function drawCard(card, known, found, density) {
  const title = known.version === "$LATEST" ? known.name : `${known.name}:${known.version}`;
  put(card.name, title);
  put(card.facts, [known.runtime, known.memory_mb && `${known.memory_mb} MB`, known.timeout_s && `${known.timeout_s} s`,
    known.state && known.state !== "Active" ? `${known.state}${known.state_reason ? `: ${known.state_reason}` : ""}` : null]
    .filter(Boolean).join(" · "));
  const live = found.filter((box) => box.state !== "gone");
  const counted = ORDER.map((name) => [name, live.filter((box) => of(box) === name).length]).filter(([, n]) => n);
  put(card.counts, density !== "full" && live.length
    ? `${live.length} ${live.length === 1 ? "sandbox" : "sandboxes"}: ${counted.map(([name, n]) => `${n} ${WORDS[name].toLowerCase()}`).join(", ")}`
    : live.length ? "" : "no sandbox");
  card.root.dataset.density = density;
  card.root.dataset.empty = !found.length;
  const shown = found.slice(0, density === "tiles" ? MOST_TILES : found.length);
  shown.forEach((box, at) => {
    if (!boxes.has(box.id)) boxes.set(box.id, makeBox(box));
    const view = boxes.get(box.id);
    drawBox(box, view);
    if (card.list.children[at] !== view.root) card.list.insertBefore(view.root, card.list.children[at] ?? null);
  });
  while (card.list.children.length > shown.length) card.list.lastChild.remove();
  put(card.more, found.length > shown.length ? `and ${found.length - shown.length} more` : "");
}

export function drawBoxes() {
  const root = byId("functions");
  const groups = new Map();
  for (const [key, known] of state.functions) groups.set(key, [known, []]);
  let visible = 0;
  for (const box of state.sandboxes.values()) {
    if (box.hidden) continue;
    const key = `${box.name}:${box.version}`;
    if (!groups.has(key)) groups.set(key, [{ name: box.name, version: box.version, memory_mb: box.memoryMb }, []]);
    groups.get(key)[1].push(box);
    visible += 1;
  }
  // A published version is shown while it has sandboxes; the function itself always.
  for (const [key, [known, found]] of groups) if (!found.length && known.version !== "$LATEST") groups.delete(key);
  const density = visible >= TILES_FROM ? "tiles" : visible >= COMPACT_FROM ? "compact" : "full";
  const sorted = [...groups].sort(([a, [, x]], [b, [, y]]) => Number(!x.length) - Number(!y.length) || a.localeCompare(b));
  sorted.forEach(([key, [known, found]], at) => {
    if (!cards.has(key)) cards.set(key, makeCard());
    const card = cards.get(key);
    drawCard(card, known, found, density);
    if (root.children[at] !== card.root) root.insertBefore(card.root, root.children[at] ?? null);
  });
  while (root.children.length > sorted.length) root.lastChild.remove();
  for (const key of cards.keys()) if (!groups.has(key)) cards.delete(key);
  for (const id of boxes.keys()) if (!state.sandboxes.has(id)) boxes.delete(id);
  if (!sorted.length && state.loaded) {
    root.append(el("p", { className: "none" }, "No function yet: create one through the Lambda API, or begin with lambda-harness serve FUNCTION."));
  }
}

/** What is drawn once: the meaning of the shapes. */
export function drawLegend() {
  const shown = ["init", "working", "frozen", "thaw", "oom"];
  byId("legend").append(...shown.map((name) => el("li", { "data-state": name }, glyph(name), WORDS[name])));
}
