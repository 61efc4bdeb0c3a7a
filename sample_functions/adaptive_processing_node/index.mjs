import { choose, strategies } from "./strategies.mjs";

const memoryMb = Number(process.env.AWS_LAMBDA_FUNCTION_MEMORY_SIZE ?? 128);
const inMb = (bytes) => Math.round((bytes / 1024 / 1024) * 10) / 10;

export const handler = async (event) => {
  const chosen = event.strategy ? { strategy: event.strategy, because: "the event says so" } : choose(memoryMb);
  const work = strategies[chosen.strategy];
  if (!work) throw new RangeError(`no strategy ${chosen.strategy}: there are ${Object.keys(strategies).join(", ")}`);

  const residentBefore = process.memoryUsage.rss();
  const cpuBefore = process.cpuUsage();
  const started = performance.now();
  const { sum, threads } = await work(event.records ?? 30_000);
  const wallMs = performance.now() - started;
  const cpu = process.cpuUsage(cpuBefore); // of all threads

  return {
    memory_mb: memoryMb,
    ...chosen,
    threads,
    ...sum,
    wall_ms: Math.round(wallMs),
    cpu_ms: Math.round((cpu.user + cpu.system) / 1000),
    resident_before_mb: inMb(residentBefore),
    // The kernel's own high-water mark of this process (in KB): exact, but never lower than that of an earlier invocation.
    resident_peak_mb: inMb(process.resourceUsage().maxRSS * 1024),
  };
};
