// Runs a piece of work and says what it took. Knows nothing of the work, and nothing of Lambda.
import { constants, PerformanceObserver, performance } from "node:perf_hooks";

const KINDS = {
  [constants.NODE_PERFORMANCE_GC_MINOR]: "scavenge",
  [constants.NODE_PERFORMANCE_GC_MAJOR]: "mark-sweep-compact",
  [constants.NODE_PERFORMANCE_GC_INCREMENTAL]: "incremental",
  [constants.NODE_PERFORMANCE_GC_WEAKCB]: "weak-callbacks",
};
const CPU_BOUND_MS = 50; // below that, what the runtime does beside the work weighs too much to judge by
const CPU_BOUND_SHARE = 0.5; // of the CPU time that could be had: work that waits for something else uses far less

let cold = true; // what is out here outlives an invocation: the second one finds it false

export class Benchmark {
  // `vcpus`: how much of a CPU there is. At a fifth of one, work that never waits still gets a fifth of the wall clock.
  constructor({ vcpus = 1, log = console.log } = {}) {
    this.vcpus = Math.min(vcpus, 1); // JavaScript runs on one thread
    this.log = log;
    this.coldStart = cold;
    cold = false;
  }

  async measure(label, work) {
    const collections = [];
    const observer = new PerformanceObserver((list) => collections.push(...list.getEntries()));
    observer.observe({ type: "gc" });

    const heap = process.memoryUsage().heapUsed;
    const cpu = process.cpuUsage();
    const start = performance.now();
    let result;
    let end;
    let used;
    let heapAfter;
    try {
      result = await work();
    } finally {
      end = performance.now();
      used = process.cpuUsage(cpu);
      heapAfter = process.memoryUsage().heapUsed;
      // Entries are handed over by a task of their own, after the collection. Stop listening before they are, and the
      // count is 0 for all work that does not wait: let the event loop turn twice, then take what is still queued.
      await turn();
      await turn();
      collections.push(...observer.takeRecords());
      observer.disconnect();
    }

    const during = collections.filter((each) => each.startTime >= start && each.startTime < end);
    const executionTime = end - start;
    const cpuTime = (used.user + used.system) / 1000;
    const metrics = {
      memoryUsed: heapAfter - heap, // bytes; less than 0 where a collection took more than was made
      executionTime: rounded(executionTime),
      coldStart: this.coldStart,
      gcEvents: during.length,
      cpuIntensive: cpuTime >= CPU_BOUND_MS && cpuTime >= CPU_BOUND_SHARE * executionTime * this.vcpus,
      cpuTime: rounded(cpuTime),
      gcTime: rounded(during.reduce((sum, each) => sum + each.duration, 0)),
      gcKinds: counted(during.map((each) => KINDS[each.detail.kind] ?? `kind ${each.detail.kind}`)),
    };
    this.log(`${label}: ${JSON.stringify(metrics)}`);
    return { result, metrics };
  }
}

const turn = () => new Promise((resolve) => setImmediate(resolve));

const rounded = (milliseconds) => Math.round(milliseconds * 100) / 100;

const counted = (names) => {
  const counts = {};
  for (const name of names) {
    counts[name] = (counts[name] ?? 0) + 1;
  }
  return counts;
};
