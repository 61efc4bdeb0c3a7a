import { MemoryAwareCache } from "./cache.mjs";

const memoryMb = Number(process.env.AWS_LAMBDA_FUNCTION_MEMORY_SIZE ?? 128);
const inMb = (bytes) => Math.round((bytes / 1024 / 1024) * 10) / 10;

// Out here: what one invocation put in, the next one finds.
const cache = new MemoryAwareCache({ share: Number(process.env.CACHE_SHARE ?? 0.25), memoryMb });

// The same requests in every run, other ones in every invocation.
let seed = 1;
const random = () => (seed = (seed * 48271) % 2147483647) / 2147483647;

// Some keys are asked for far more often than others, as in real life: half of the requests go to a sixteenth of the keys.
const pick = (keys) => `item-${Math.floor(keys * random() ** 4)}`;

// Stands for what is slow and far away.
const fetchValue = (key, kb) => ({ key, fetched_at: Date.now(), body: "x".repeat(kb * 1024) });

export const handler = async (event) => {
  const { requests = 400, keys = 40, value_kb: valueKb = 256 } = event;
  const before = cache.statistics;
  let largest = 0;
  for (let request = 0; request < requests; request += 1) {
    const key = pick(keys);
    if (cache.get(key) === undefined) cache.set(key, fetchValue(key, valueKb));
    largest = Math.max(largest, cache.statistics.bytes);
  }
  const now = cache.statistics;
  return {
    hits: now.hits - before.hits, // in this invocation, as the next three
    misses: now.misses - before.misses,
    evictions: now.evictions - before.evictions,
    most_bytes: largest,
    within_bound: largest <= now.bound_bytes,
    cache: now, // since the sandbox began
    all_items_mb: inMb(keys * valueKb * 1024),
    bound_mb: inMb(now.bound_bytes),
    resident_mb: inMb(process.memoryUsage.rss()),
    memory_mb: memoryMb,
  };
};
