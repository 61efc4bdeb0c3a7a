// The work: lines of JSON come in, and a total for each group goes out. Knows nothing of tracing.
import { setTimeout as sleep } from "node:timers/promises";

export const read = async ({ records, broken }) => {
  await sleep(20); // where a file or a queue would be waited for
  const lines = Array.from({ length: records }, (_, at) =>
    JSON.stringify({ id: at, group: `g${at % 7}`, value: at % 101 }),
  );
  if (broken) {
    lines[Math.floor(records / 2)] = '{"id": ';
  }
  return lines;
};

export const parse = (lines) => lines.map((line) => JSON.parse(line));

export const total = (records) => {
  const totals = {};
  for (const { group, value } of records) {
    totals[group] = (totals[group] ?? 0) + value;
  }
  return totals;
};

// Two that wait side by side: their subsegments lie next to each other, and overlap.
export const store = async (totals) => sleep(30, Object.keys(totals).length);
export const notify = async () => sleep(15, 1);
