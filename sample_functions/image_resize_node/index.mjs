import { stat } from "node:fs/promises";
import { fileURLToPath } from "node:url";

const PICTURE = fileURLToPath(new URL("picture/photograph.jpg", import.meta.url));
const REMEDY = "run 'make samples' in the project's root";

const { default: sharp } = await import("sharp").catch((cause) => {
  throw new Error(`sharp cannot be loaded; ${REMEDY}`, { cause });
});
const source = await stat(PICTURE).catch((cause) => {
  throw new Error(`the picture is not there yet; ${REMEDY}`, { cause });
});

sharp.cache(false); // nothing of one invocation is there for the next one to use

// Each width reads the file anew: sharp decodes a JPEG at a fraction of its size where the result is that small.
const scaled = async (width) => {
  const { info } = await sharp(PICTURE).resize({ width }).jpeg({ quality: 85 }).toBuffer({ resolveWithObject: true });
  return { width: info.width, height: info.height, bytes: info.size };
};

export const handler = async (event) => {
  const wall = performance.now();
  const cpu = process.cpuUsage();

  let made = [];
  if (event.parallel) {
    made = await Promise.all(event.widths.map(scaled)); // one thread of libuv's pool for each
  } else {
    for (const width of event.widths) {
      made.push(await scaled(width));
    }
  }

  const wall_ms = performance.now() - wall;
  const used = process.cpuUsage(cpu);
  const cpu_ms = (used.user + used.system) / 1000;
  return {
    source: { bytes: source.size },
    made,
    threads_of_each: sharp.concurrency(),
    cpu_ms: Math.round(cpu_ms * 10) / 10,
    wall_ms: Math.round(wall_ms * 10) / 10,
    cpu_share: Math.round((cpu_ms / wall_ms) * 1000) / 1000,
  };
};
