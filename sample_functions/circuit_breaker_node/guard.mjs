// Takes memory for real, step by step, and gives up while there is still enough left to say so.

const MB = 1024 * 1024;
const STEP_MB = 4;
const SHARE = 0.8; // of the memory size: the kernel kills at the whole of it, and tells nobody before

export class OutOfMemory extends Error {}

export const memorySizeMb = Number(process.env.AWS_LAMBDA_FUNCTION_MEMORY_SIZE ?? 128);

// What counts towards the memory size: resident memory, not V8's heap, in which buffers do not lie.
export const residentMb = () => process.memoryUsage.rss() / MB;

// Calls use(blocks) with `mb` MB in blocks. Throws OutOfMemory where the next block would pass the guard.
export function withMemory(mb, use) {
  const limitMb = SHARE * memorySizeMb;
  const blocks = [];
  try {
    for (let held = 0; held < mb; held += STEP_MB) {
      if (residentMb() + STEP_MB > limitMb) {
        throw new OutOfMemory(`wanted ${mb} MB, stopped with ${held}: the guard is at ${Math.floor(limitMb)} MB`);
      }
      blocks.push(new Uint8Array(STEP_MB * MB).fill(1)); // filled: memory that nobody writes to costs nothing
    }
    return use(blocks);
  } finally {
    // Given back at once. The collector would come some time later, and find no time for it in the freeze: the next
    // invocation would meet memory that is still taken.
    for (const block of blocks) block.buffer.transfer(0);
  }
}
