// A cache that is bounded in bytes, by a share of the memory size. What was used least recently goes first.

import { deserialize, serialize } from "node:v8";

const MB = 1024 * 1024;

// What an entry costs besides its bytes: the objects around the buffer, the key's string, the map's slot, the allocator's
// rounding. By resident memory before and after 100 000 entries, on Node.js 22, it is 440 to 570 bytes.
const ENTRY_BYTES = 600;

export class MemoryAwareCache {
  #entries = new Map(); // a Map keeps the order in which keys were set: the first is the one used least recently
  #bytes = 0;
  #counts = { hits: 0, misses: 0, evictions: 0, refused: 0 };

  constructor({ share, memoryMb = Number(process.env.AWS_LAMBDA_FUNCTION_MEMORY_SIZE ?? 128) }) {
    this.boundBytes = Math.floor(share * memoryMb * MB);
  }

  get(key) {
    const entry = this.#entries.get(key);
    if (entry === undefined) {
      this.#counts.misses += 1;
      return undefined;
    }
    this.#counts.hits += 1;
    this.#entries.delete(key);
    this.#entries.set(key, entry);
    return deserialize(new Uint8Array(entry));
  }

  // Values are kept serialised: that is the one form of which the bytes are known, not guessed. It costs CPU at each get.
  set(key, value) {
    const serialised = serialize(value);
    const bytes = cost(key, serialised.byteLength);
    this.#remove(key);
    if (bytes > this.boundBytes) {
      this.#counts.refused += 1; // would empty the whole cache, and still not fit
      return;
    }
    while (this.#bytes + bytes > this.boundBytes) {
      this.#remove(this.#entries.keys().next().value);
      this.#counts.evictions += 1;
    }
    const entry = new ArrayBuffer(serialised.byteLength); // of just this size: the serialiser's own buffer may be larger
    new Uint8Array(entry).set(serialised);
    this.#entries.set(key, entry);
    this.#bytes += bytes;
  }

  #remove(key) {
    const entry = this.#entries.get(key);
    if (entry === undefined) return;
    this.#bytes -= cost(key, entry.byteLength);
    this.#entries.delete(key);
    entry.transfer(0); // given back now; left to the collector, evicted entries would lie about beside the bound
  }

  get statistics() {
    const { hits, misses } = this.#counts;
    const asked = hits + misses;
    return {
      entries: this.#entries.size,
      bytes: this.#bytes,
      bound_bytes: this.boundBytes,
      ...this.#counts,
      hit_rate: asked === 0 ? null : Math.round((hits / asked) * 1000) / 1000,
    };
  }
}

const cost = (key, bytes) => bytes + 2 * key.length + ENTRY_BYTES;
