/* The last minute, on a canvas: one lane for each sandbox, or one for each function where there are too many sandboxes. */

import { byId, megabytes, put } from "./dom.js";
import { WINDOW_MS, now, of, state } from "./state.js";

const LANE_MIN = 15, LANE_MAX = 74, GROUP_MIN = 26, AXIS = 1.5;
const canvas = byId("timeline");
const brush = canvas.getContext("2d");
const STACK = ["working", "init", "idle", "broken", "frozen"];
let colours = null;
let counted = [];
let described = 0;

export function forgetColours() { colours = null; }

function palette() {
  if (!colours) {
    const css = getComputedStyle(document.documentElement);
    colours = Object.fromEntries(["text", "muted", "line", "panel", "init", "working", "thaw", "idle", "frozen", "frozen-line", "bad", "memory", "starting"]
      .map((name) => [name, css.getPropertyValue(`--${name}`).trim()]));
    colours.oom = colours.broken = colours.bad;
    colours.gone = "transparent";
  }
  return colours;
}

/** Counts by function and state, four times a second: what lanes of functions are drawn from. */
export function count() {
  const moment = now();
  counted.push([moment, countedAt((box) => box.state)]);
  while (counted.length && counted[0][0] < moment - WINDOW_MS - 1000) counted.shift();
}

function countedAt(stateOf) {
  const groups = new Map();
  for (const box of state.sandboxes.values()) {
    const found = stateOf(box);
    if (!found || found === "gone") continue;
    if (!groups.has(box.name)) groups.set(box.name, { total: 0 });
    const group = groups.get(box.name), name = { starting: "init", thaw: "idle" }[found] ?? found;
    group[name] = (group[name] ?? 0) + 1;
    group.total += 1;
  }
  return groups;
}

/** The counts of before this page was there, from what the snapshot tells of each sandbox. */
export function recount() {
  counted = [];
  for (let at = now() - WINDOW_MS; at < now(); at += 1000) {
    counted.push([at, countedAt((box) => box.segments.findLast((one) => one.at <= at)?.state)]);
  }
}

export function drawTimeline() {
  const { clientWidth: width, clientHeight: height } = canvas.parentElement;
  const scale = window.devicePixelRatio || 1;
  if (!width || !height) return;
  if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
  }
  brush.setTransform(scale, 0, 0, scale, 0, 0);
  brush.clearRect(0, 0, width, height);
  const font = parseFloat(getComputedStyle(canvas.parentElement).fontSize) * 0.82;
  brush.font = `${font}px system-ui, "Liberation Sans", sans-serif`;
  brush.textBaseline = "middle";
  const plot = { left: Math.min(width * 0.24, font * 12), right: width - font * 5.6, top: 2, bottom: height - font * AXIS, font, end: now() };
  plot.x = (at) => plot.right - ((plot.end - at) / WINDOW_MS) * (plot.right - plot.left);
  drawAxis(plot);
  const boxes = [...state.sandboxes.values()].sort((a, b) => a.name.localeCompare(b.name) || a.segments[0]?.at - b.segments[0]?.at);
  const room = plot.bottom - plot.top;
  const single = boxes.length * LANE_MIN <= room;
  put(byId("time-hint"), single ? "memory of each sandbox against its memory size (top edge)" : "how many sandboxes of each function are working, of how many there are");
  if (single) {
    const lane = Math.min(LANE_MAX, room / Math.max(1, boxes.length));
    boxes.forEach((box, at) => drawLane(box, plot, plot.top + at * lane, lane));
  } else {
    drawGroups(plot);
  }
  describe(boxes);
}

function drawAxis({ left, right, bottom, top, x, end, font }) {
  const ink = palette();
  brush.strokeStyle = ink.line;
  brush.fillStyle = ink.muted;
  brush.lineWidth = 1;
  brush.textAlign = "center";
  for (let back = 0; back <= WINDOW_MS; back += 10_000) {
    const at = Math.round(x(end - back)) + 0.5;
    brush.beginPath();
    brush.moveTo(at, top);
    brush.lineTo(at, bottom);
    brush.stroke();
    brush.fillText(back ? `${-back / 1000} s` : "now", Math.max(left + font, at), bottom + font * 0.8);
  }
}

function clip(text, width) {
  if (brush.measureText(text).width <= width) return text;
  let kept = text;
  while (kept.length > 1 && brush.measureText(`${kept}…`).width > width) kept = kept.slice(0, -1);
  return `${kept}…`;
}

function label(plot, y, height, left, right, bad) {
  const ink = palette();
  brush.textAlign = "left";
  brush.fillStyle = bad ? ink.bad : ink.text;
  brush.fillText(clip(left, plot.left - 10), 0, y + height / 2);
  brush.fillStyle = bad ? ink.bad : ink.muted;
  brush.fillText(right, plot.right + 6, y + height / 2);
}

function drawLane(box, plot, top, height) {
  const ink = palette(), y = top + 2, h = height - 5;
  brush.save();
  brush.beginPath();
  brush.rect(plot.left, y - 1, plot.right - plot.left, h + 2);
  brush.clip();
  box.segments.forEach((segment, at) => {
    const from = Math.max(plot.left, plot.x(segment.at));
    const to = at + 1 < box.segments.length ? plot.x(box.segments[at + 1].at) : plot.right;
    if (to < plot.left || segment.state === "gone") return;
    const dead = segment.state === "broken" || segment.state === "oom";
    const wide = Math.max(to - from, 2.5);
    brush.globalAlpha = dead ? 0.32 : segment.state === "frozen" ? 1 : 0.85;
    brush.fillStyle = ink[segment.state] ?? ink.idle;
    brush.fillRect(from, y, wide, h);
    brush.globalAlpha = 1;
    if (segment.state === "frozen" || dead) hatch(from, y, wide, h, dead ? ink.bad : ink["frozen-line"], dead);
  });
  drawMemory(box, plot, y, h);
  for (const [at, outcome] of box.marks) drawMark(plot.x(at), y + h / 2, outcome === "out_of_memory", Math.min(9, h / 3));
  brush.restore();
  const gone = box.state === "gone";
  label(plot, y, h, `${box.id.slice(0, 4)} ${box.name}`, gone ? "ended" : of(box) === "oom" ? "killed" : of(box) === "broken" ? "broken" : `${megabytes(box.resident)}/${box.memoryMb}`, of(box) === "oom" && !gone);
}

/** Diagonal lines tell a frozen stretch also without its colour; the other diagonal a dead one. */
function hatch(left, top, width, height, colour, other) {
  if (width < 8) return;
  brush.save();
  brush.beginPath();
  brush.rect(left, top, width, height);
  brush.clip();
  brush.strokeStyle = colour;
  brush.lineWidth = 1;
  brush.beginPath();
  const step = 11, shift = left % step;
  for (let at = left - shift - height; at < left + width; at += step) {
    brush.moveTo(at, other ? top : top + height);
    brush.lineTo(at + height, other ? top + height : top);
  }
  brush.stroke();
  brush.restore();
}

function drawMemory(box, plot, top, height) {
  const ink = palette();
  if (box.samples.length) {
    const line = (at, bytes) => [plot.x(at), top + height - Math.min(1, bytes / box.limit) * (height - 1)];
    brush.beginPath();
    let pen = false, y = 0;
    for (const [at, bytes] of box.samples) {
      if (bytes === null) { pen = false; continue; }
      const [x, height] = line(at, bytes);
      if (pen) brush.lineTo(x, height);
      else brush.moveTo(x, height);
      pen = true;
      y = height;
    }
    if (pen && box.state !== "gone") brush.lineTo(plot.right, y);
    brush.strokeStyle = ink.panel;
    brush.lineWidth = 4;
    brush.stroke();
    brush.strokeStyle = ink.memory;
    brush.lineWidth = 2;
    brush.stroke();
  }
  brush.strokeStyle = ink.muted;
  brush.lineWidth = 1;
  brush.setLineDash([4, 3]);
  brush.beginPath();
  brush.moveTo(Math.max(plot.left, plot.x(box.segments[0]?.at ?? plot.end)), top + 0.5);
  brush.lineTo(plot.right, top + 0.5);
  brush.stroke();
  brush.setLineDash([]);
}

function drawMark(x, y, killed, r) {
  const ink = palette();
  const path = () => {
    brush.beginPath();
    if (killed) { brush.moveTo(x - r, y - r); brush.lineTo(x + r, y + r); brush.moveTo(x + r, y - r); brush.lineTo(x - r, y + r); }
    else { brush.moveTo(x, y - r); brush.lineTo(x + r, y + r * 0.8); brush.lineTo(x - r, y + r * 0.8); brush.closePath(); }
    brush.stroke();
  };
  brush.lineWidth = 7; brush.strokeStyle = ink.panel; path();
  brush.lineWidth = 3.5; brush.strokeStyle = ink.bad; path();
}

function drawGroups(plot) {
  const ink = palette();
  const names = [...new Set(counted.flatMap(([, groups]) => [...groups.keys()]))].sort();
  const fit = Math.max(1, Math.floor((plot.bottom - plot.top) / GROUP_MIN));
  const shown = names.slice(0, fit), lane = Math.min(150, (plot.bottom - plot.top) / Math.max(1, shown.length));
  shown.forEach((name, at) => {
    const top = plot.top + at * lane + 3, height = lane - 7;
    const most = Math.max(1, ...counted.map(([, groups]) => groups.get(name)?.total ?? 0));
    const floor = counted.map(() => 0);
    for (const kind of STACK) {
      brush.beginPath();
      const edge = counted.flatMap(([when, groups], i) => {
        const low = floor[i], until = counted[i + 1]?.[0] ?? plot.end;
        floor[i] += groups.get(name)?.[kind] ?? 0;
        return [when, until].map((at) => [Math.min(plot.right, Math.max(plot.left, plot.x(at))), low, floor[i]]);
      });
      for (const [x, , high] of edge) brush.lineTo(x, top + height - (high / most) * height);
      for (const [x, low] of edge.toReversed()) brush.lineTo(x, top + height - (low / most) * height);
      brush.fillStyle = ink[kind];
      brush.fill();
    }
    const last = counted.at(-1)?.[1].get(name);
    label(plot, top, height, name, `${last?.working ?? 0} of ${last?.total ?? 0}`, Boolean(last?.broken));
  });
}

/** The same in words, for those who do not see the picture; not more often than every five seconds. */
function describe(boxes) {
  if (now() - described < 5000) return;
  described = now();
  const told = boxes.slice(0, 8).map((box) => `${box.name} ${box.id.slice(0, 4)}: ${of(box)}, ${megabytes(box.resident)} of ${box.memoryMb} MB`);
  canvas.setAttribute("aria-label", `Timeline of ${boxes.length} sandboxes. ${told.join("; ")}`);
}
