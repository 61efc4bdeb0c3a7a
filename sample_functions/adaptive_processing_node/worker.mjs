import { parentPort, workerData } from "node:worker_threads";

import { parse, total } from "./work.mjs";

// All records of this share at once: fast, and the most memory.
parentPort.postMessage(total(workerData.flatMap((piece) => parse(Buffer.from(piece)))));
