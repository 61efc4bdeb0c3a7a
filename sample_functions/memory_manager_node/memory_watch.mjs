// Compares what this process has of memory with what the function has been given, at an interval, and warns.
const MB = 1024 * 1024;

export class MemoryWatch {
  constructor({ memoryMb, warnAt = 0.8, intervalMs = 20, warn = console.warn }) {
    Object.assign(this, { memoryMb, warnAt, intervalMs, warn });
    this.peak = { heap: 0, rss: 0 }; // shares of the memory size
    this.checks = 0;
    this.warnings = 0;
    this.latest_ms = 0; // how long after it was due the latest check came
    this.above = false;
    this.timer = null;
  }

  start() {
    this.due = Date.now() + this.intervalMs;
    this.timer = setInterval(() => {
      this.latest_ms = Math.max(this.latest_ms, Date.now() - this.due);
      this.due = Date.now() + this.intervalMs;
      this.check();
    }, this.intervalMs);
    return this;
  }

  // A timer that is not stopped lives for as long as the sandbox.
  stop() {
    clearInterval(this.timer);
    this.timer = null;
  }

  // Also for the work itself to call: no timer fires while JavaScript runs without a pause.
  check() {
    const used = process.memoryUsage();
    const share = { heap: used.heapUsed / MB / this.memoryMb, rss: used.rss / MB / this.memoryMb };
    this.checks += 1;
    this.peak = { heap: Math.max(this.peak.heap, share.heap), rss: Math.max(this.peak.rss, share.rss) };

    const above = Math.max(share.heap, share.rss) > this.warnAt;
    if (above && !this.above) { // once for each time that the threshold is crossed, not at every tick
      this.warnings += 1;
      globalThis.gc?.(); // Lambda starts Node.js with --expose-gc; this gives back garbage, and nothing that is still held
      this.warn(
        `memory above ${this.warnAt * 100} % of ${this.memoryMb} MB: RSS ${mb(used.rss)} MB, heap ${mb(used.heapUsed)} MB, ` +
          `buffers ${mb(used.external)} MB; heap after a full collection ${mb(process.memoryUsage().heapUsed)} MB`,
      );
    }
    this.above = above;
  }
}

const mb = (bytes) => Math.round(bytes / MB);
