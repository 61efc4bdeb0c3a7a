import { constants, PerformanceObserver } from "node:perf_hooks";
import { setImmediate as others } from "node:timers/promises";
import { getHeapStatistics } from "node:v8";

const MB = 1024 * 1024;

// One record of a report: read from text, given some fields, written as text again. Garbage, but for the text.
const converted = (number) => {
  const record = JSON.parse(`{"id":${number},"name":"customer ${number}","tags":["a","b","c"],"amount":${number % 997}}`);
  const enriched = { ...record, net: record.amount / 1.19, path: record.tags.map((tag) => `${tag}/${record.id}`) };
  return JSON.stringify(enriched);
};

const convertAll = async ({ items, chunk, collect_every = 0 }) => {
  const peak = { heap: 0, rss: 0 };
  let bytes = 0;
  let chunks = 0;
  for (let first = 0; first < items; first += chunk) {
    const numbers = Array.from({ length: Math.min(chunk, items - first) }, (_, index) => first + index);
    const lines = numbers.map(converted); // live as long as their chunk
    bytes += lines.reduce((sum, line) => sum + line.length, 0);
    chunks += 1;
    const { heapUsed, rss } = process.memoryUsage();
    peak.heap = Math.max(peak.heap, heapUsed);
    peak.rss = Math.max(peak.rss, rss);
    if (collect_every > 0 && chunks % collect_every === 0) {
      globalThis.gc(); // Lambda starts Node.js with --expose-gc
    }
    await others(); // observers and timers get their turn between chunks
  }
  return { bytes, chunks, peak };
};

export const handler = async (event) => {
  const pauses = [];
  const observer = new PerformanceObserver((list) => pauses.push(...list.getEntries()));
  observer.observe({ type: "gc" });
  const { bytes, chunks, peak } = await convertAll(event);
  await others(); // the entries of the last collection come with a task of their own
  pauses.push(...observer.takeRecords());
  observer.disconnect();

  const young = pauses.filter((pause) => pause.detail.kind === constants.NODE_PERFORMANCE_GC_MINOR);
  const total_ms = pauses.reduce((sum, pause) => sum + pause.duration, 0);
  return {
    bytes,
    chunks,
    collections: { young: young.length, others: pauses.length - young.length },
    pauses_ms: Math.round(total_ms),
    longest_pause_ms: Math.round(Math.max(0, ...pauses.map((pause) => pause.duration))),
    peak_heap_mb: Math.round(peak.heap / MB),
    peak_rss_mb: Math.round(peak.rss / MB),
    heap_limit_mb: Math.round(getHeapStatistics().heap_size_limit / MB),
    flags: { command_line: process.execArgv, node_options: process.env.NODE_OPTIONS ?? null },
  };
};
