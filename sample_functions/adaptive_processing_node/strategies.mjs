import { once } from "node:events";
import { availableParallelism } from "node:os";
import { Worker } from "node:worker_threads";

import { pieces } from "./source.mjs";
import { add, empty, parse, total } from "./work.mjs";

const BATCH_RECORDS = 10_000;

// By memory size, and why. A second thread pays only where there is more than one vCPU: above 1769 MB.
export function choose(memoryMb) {
  if (memoryMb > 1769) return { strategy: "parallel", because: "more than one vCPU, and room for all records" };
  if (memoryMb >= 1024) return { strategy: "batch", because: "room for a batch, but no more than one vCPU" };
  return { strategy: "stream", because: "little memory: one piece of the input at a time" };
}

export const strategies = {
  // One piece of 64 KB at a time; of what was read before, only the sum is left.
  async stream(records) {
    let sum = empty();
    for await (const piece of pieces(records)) sum = add(sum, total(parse(piece)));
    return { sum, threads: 1 };
  },

  // So many records at a time: for work that is cheaper done together, such as writing them to a database.
  async batch(records) {
    let sum = empty();
    let batch = [];
    for await (const piece of pieces(records)) {
      for (const record of parse(piece)) batch.push(record);
      if (batch.length >= BATCH_RECORDS) {
        sum = add(sum, total(batch));
        batch = [];
      }
    }
    return { sum: add(sum, total(batch)), threads: 1 };
  },

  // Everything is read, then cut among threads. (Promise.all over the shares would change nothing: this work never waits,
  // and promises share one thread.) The input is moved to the threads, not copied.
  async parallel(records) {
    const threads = availableParallelism();
    const shares = Array.from({ length: threads }, () => []);
    let next = 0;
    for await (const piece of pieces(records)) {
      const own = new Uint8Array(piece); // small buffers share a pool, which cannot be moved
      shares[next++ % threads].push(own.buffer);
    }
    const sums = await Promise.all(
      shares.map(async (share) => {
        const worker = new Worker(new URL("worker.mjs", import.meta.url), { workerData: share, transferList: share });
        const [sum] = await once(worker, "message");
        await worker.terminate();
        return sum;
      }),
    );
    return { sum: sums.reduce(add, empty()), threads };
  },
};
