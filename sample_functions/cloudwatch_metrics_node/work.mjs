// Two operations of about the same length: one computes, the other waits. Only the first is CPU-intensive, which the clock
// alone cannot tell.
import { pbkdf2Sync } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";

const MEMORY_MB_PER_VCPU = 1769;
const CPU_BOUND_SHARE = 0.5; // of the CPU time that this memory size grants
const CPU_BOUND_MS = 20; // below that, what the runtime does beside the work weighs too much to judge by

export const doWork = async ({ rounds, wait_ms, memory_mb }) => {
  const vcpus = Math.min(memory_mb / MEMORY_MB_PER_VCPU, 1); // JavaScript runs on one thread
  const operations = [
    await measured(() => pbkdf2Sync("password", "salt", rounds, 32, "sha256")), // makes no garbage: CPU time and no more
    await measured(() => sleep(wait_ms)),
  ];
  return operations.map((each) => ({
    ...each,
    cpu_bound: each.cpu_ms >= CPU_BOUND_MS && each.cpu_ms >= CPU_BOUND_SHARE * each.wall_ms * vcpus,
  }));
};

// Wall clock and CPU time of anything. CPU time is the whole process's: for work that nothing runs beside.
export const measured = async (operation) => {
  const cpu = process.cpuUsage();
  const start = performance.now();
  await operation();
  const wall_ms = performance.now() - start;
  const used = process.cpuUsage(cpu);
  return { wall_ms, cpu_ms: (used.user + used.system) / 1000 };
};
