/* Elements and figures. What functions send is untrusted: text goes in as text, never as HTML. */

export const byId = (id) => document.getElementById(id);

/** An element with properties and children; strings become text nodes. */
export function el(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined) continue;
    if (name in made && !name.startsWith("aria")) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children.filter((one) => one !== null && one !== undefined));
  return made;
}

const SVG = "http://www.w3.org/2000/svg";

/** One of the shapes in index.html. */
export function glyph(name) {
  const made = document.createElementNS(SVG, "svg");
  const use = document.createElementNS(SVG, "use");
  made.setAttribute("class", "glyph");
  made.setAttribute("aria-hidden", "true");
  use.setAttribute("href", `#g-${name}`);
  made.append(use);
  return made;
}

export function setGlyph(svg, name) {
  svg.firstChild.setAttribute("href", `#g-${name}`);
}

/** A small line of values, for metrics. */
export function spark(values) {
  const made = document.createElementNS(SVG, "svg");
  const line = document.createElementNS(SVG, "polyline");
  const low = Math.min(...values), span = Math.max(...values) - low || 1;
  made.setAttribute("class", "spark");
  made.setAttribute("viewBox", "0 0 100 24");
  made.setAttribute("preserveAspectRatio", "none");
  made.setAttribute("aria-hidden", "true");
  line.setAttribute("points", values.map((v, at) =>
    `${(values.length > 1 ? at / (values.length - 1) : 1) * 98 + 1},${22 - ((v - low) / span) * 20}`).join(" "));
  made.append(line);
  return made;
}

/** Text only where it changes: the reader of a screen is not told the same thing again. */
export function put(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

const MB = 1024 * 1024;
export const NOT_MEASURED = "not measured";
const known = (value) => value !== null && value !== undefined;

export const megabytes = (bytes) => (known(bytes) ? `${Math.round(bytes / MB)}` : "?");

export function milliseconds(ms) {
  if (!known(ms)) return NOT_MEASURED;
  if (ms >= 99_950) return `${Math.round(ms / 1000)} s`;
  if (ms >= 1000) return `${(ms / 1000).toFixed(ms >= 9995 ? 1 : 2)} s`;
  return `${ms.toFixed(ms >= 99.95 ? 0 : ms >= 9.995 ? 1 : 2)} ms`;
}

export function size(bytes) {
  if (!known(bytes)) return NOT_MEASURED;
  if (bytes >= MB) return `${(bytes / MB).toFixed(1)} MB`;
  return bytes >= 1024 ? `${(bytes / 1024).toFixed(1)} KB` : `${bytes} B`;
}

export function ago(ms) {
  const s = Math.max(0, ms) / 1000;
  if (s < 60) return `${Math.floor(s)} s`;
  return s < 3600 ? `${Math.floor(s / 60)} min ${Math.floor(s % 60)} s` : `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
}

export const OUTCOMES = {
  success: ["good", "success"],
  function_error: ["broken", "function error"],
  timeout: ["broken", "timed out"],
  out_of_memory: ["oom", "out of memory"],
  runtime_exit: ["broken", "runtime exited"],
  init_error: ["broken", "init failed"],
  init_timeout: ["broken", "init timed out"],
  response_too_large: ["broken", "response too large"],
  throttled: ["throttled", "throttled"],
  engine_error: ["broken", "engine error"],
};
export const outcome = (name) => OUTCOMES[name] ?? ["broken", String(name)];
