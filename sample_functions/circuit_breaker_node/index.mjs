import { CircuitBreaker, Refused } from "./breaker.mjs";
import { OutOfMemory, residentMb, withMemory } from "./guard.mjs";

// Out here, so that it remembers from one invocation to the next. Each sandbox has a breaker of its own.
const breaker = new CircuitBreaker({
  failuresToOpen: Number(process.env.FAILURES_TO_OPEN ?? 3),
  retryAfterMs: Number(process.env.RETRY_AFTER_MS ?? 3000),
  isFailure: (error) => error instanceof OutOfMemory,
});

// For comparison: a timer for the same moment. Its callback cannot run in the freeze.
let timerLateMs = null;
function startTimer() {
  const due = Date.now() + breaker.waitMs;
  timerLateMs = null;
  setTimeout(() => {
    timerLateMs = Date.now() - due;
  }, breaker.waitMs);
}

export const handler = async (event) => {
  const { mb = 400 } = event;
  const before = breaker.state;
  const started = performance.now();
  let result;
  try {
    result = { ok: true, sum: await breaker.run(() => withMemory(mb, addUp)) };
  } catch (error) {
    if (!(error instanceof OutOfMemory || error instanceof Refused)) throw error;
    result = { ok: false, error: error.message };
  }
  const after = breaker.state;
  if (after === "open" && before !== "open") startTimer();
  return {
    state_before: before,
    state_after: after,
    ...result,
    failures: breaker.failures,
    worked_ms: Math.round((performance.now() - started) * 10) / 10,
    retry_after_ms: Math.round(breaker.waitMs),
    timer_late_ms: timerLateMs,
    resident_mb: Math.round(residentMb()),
  };
};

function addUp(blocks) {
  let sum = 0;
  for (const block of blocks) {
    for (let offset = 0; offset < block.length; offset += 4096) sum += block[offset];
  }
  return sum;
}
