import { setTimeout as sleep } from "node:timers/promises";

import { PatientLogger } from "./vendor/patient-logger/index.js";

const BODY_BYTES = 64 * 1024;
const logger = new PatientLogger(); // one for all invocations, as such packages want it

async function place(order, stock) {
  const body = Buffer.alloc(BODY_BYTES, `order ${order} `); // what came with the request
  await stock;
  await logger.info("order placed", { order, body });
}

// Nothing in this file outlives an invocation.
export const handler = async (event) => {
  const { orders = 8, concurrency = 8 } = event;
  for (let first = 0; first < orders; first += concurrency) {
    const stock = sleep(1); // one look-up for all that are placed together: they go on at the same moment
    const count = Math.min(concurrency, orders - first);
    await Promise.all(Array.from({ length: count }, (_, index) => place(first + index, stock)));
  }
  return { orders, concurrency };
};
