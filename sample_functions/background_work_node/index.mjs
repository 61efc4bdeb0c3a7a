import { setTimeout as sleep } from "node:timers/promises";

const INTERVAL_MS = 10;

// Background work, begun in the init phase: it counts for as long as the process is allowed to run.
let ticks = 0;
setInterval(() => {
  ticks += 1;
}, INTERVAL_MS);

let before = null; // ticks and wall clock when the last invocation answered

// An async handler of an ES module answers when its promise settles; the timer does not hold the answer back.
export const handler = async (event) => {
  const started = { ticks, at: Date.now() };
  await sleep(event.work_ms ?? 100);

  const between_ms = before === null ? null : started.at - before.at;
  const answer = {
    ticks_total: ticks,
    ticks_in_this_invocation: ticks - started.ticks,
    ticks_since_last_invocation: before === null ? null : started.ticks - before.ticks,
    wall_clock_since_last_invocation_ms: between_ms,
    ticks_if_it_had_run: between_ms === null ? null : Math.round(between_ms / INTERVAL_MS),
  };
  before = { ticks, at: Date.now() };
  return answer;
};
