import { setTimeout as sleep } from "node:timers/promises";

import { Benchmark } from "./benchmark.mjs";

const MB_PER_VCPU = 1769; // AWS documents one vCPU at this memory size

// Objects that are made, looked at and dropped: short-lived garbage, as in most code that turns one list into another.
const work = async ({ items = 2_000_000, wait_ms = 0 }) => {
  if (wait_ms > 0) {
    await sleep(wait_ms);
  }
  let window = [];
  let sum = 0;
  for (let number = 0; number < items; number += 1) {
    window.push({ number, name: `item ${number}` });
    if (window.length === 10_000) {
      sum += window.filter((each) => each.name.endsWith("7")).length;
      window = [];
    }
  }
  sum += window.filter((each) => each.name.endsWith("7")).length;
  return { items, ending_in_7: sum };
};

export const handler = async (event, context) => {
  const benchmark = new Benchmark({ vcpus: Number(context.memoryLimitInMB) / MB_PER_VCPU });
  const { result, metrics } = await benchmark.measure("list of items", () => work(event));
  return { ...result, metrics };
};
