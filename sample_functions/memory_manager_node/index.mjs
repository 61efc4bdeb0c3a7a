import { setTimeout as sleep } from "node:timers/promises";

import { MemoryWatch } from "./memory_watch.mjs";

const memoryMb = Number(process.env.AWS_LAMBDA_FUNCTION_MEMORY_SIZE);
const MB = 1024 * 1024;
const NUMBERS_IN_A_MB = MB / 8;

const left = new Set(); // watches of earlier invocations whose timers nobody stopped

const rounded = (share) => Math.round(share * 100) / 100;

// Takes memory step by step and pauses after each, as work does that waits for its input now and then.
const take = async ({ heap_mb = 0, buffers_mb = 0 }) => {
  const held = [];
  while (held.length < heap_mb + buffers_mb) {
    // An array of numbers lives on V8's heap, a buffer beside it; both are written to, or they would take nothing.
    held.push(held.length < heap_mb ? new Array(NUMBERS_IN_A_MB).fill(0.5) : Buffer.alloc(MB, 1));
    await sleep(1);
  }
  return held;
};

export const handler = async (event) => {
  const watch = new MemoryWatch({ memoryMb }).start();
  let held;
  try {
    held = await take(event);
    watch.check();
  } finally {
    // Here and not after the work: a handler that throws would leave its timer behind.
    if (event.cleanup ?? true) {
      watch.stop();
    }
  }

  const answer = {
    memory_mb: memoryMb,
    held_mb: held.length,
    peak_share: { heap: rounded(watch.peak.heap), rss: rounded(watch.peak.rss) },
    warnings: watch.warnings,
    checks: watch.checks,
    checks_of_earlier_invocations: [...left].reduce((sum, each) => sum + each.checks, 0),
    latest_of_them_ms: Math.max(0, ...[...left].map((each) => each.latest_ms)),
    timers_left_running: process.getActiveResourcesInfo().filter((each) => each === "Timeout").length,
  };
  for (const each of left) {
    Object.assign(each, { checks: 0, latest_ms: 0 });
  }
  if (watch.timer !== null) {
    left.add(watch);
  }
  return answer;
};
