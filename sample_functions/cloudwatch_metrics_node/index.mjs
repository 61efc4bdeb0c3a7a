import { doWork, measured } from "./work.mjs";
import { byApi, byLogLine, byTimer, stillWaiting } from "./ways.mjs";

const WAYS = {
  api: { namespace: "Sample/ByApi", send: byApi },
  embedded: { namespace: "Sample/ByLogLine", send: byLogLine },
  timer: { namespace: "Sample/ByTimer", send: byTimer },
};
const PRICE_USD_PER_GB_S = 0.0000166667; // us-east-1, x86_64
const MEMORY_MB = Number(process.env.AWS_LAMBDA_FUNCTION_MEMORY_SIZE);
const DIMENSIONS = { FunctionName: process.env.AWS_LAMBDA_FUNCTION_NAME, MemorySize: String(MEMORY_MB) };

export const handler = async (event) => {
  const start = performance.now();
  const operations = await doWork({ rounds: event.rounds, wait_ms: event.wait_ms, memory_mb: MEMORY_MB });
  const execution_ms = performance.now() - start;

  // A share of the memory that the function has, in percent: a number of bytes says nothing about another memory size.
  const resident_mb = process.memoryUsage.rss() / 1024 / 1024;
  const metrics = [
    { name: "ExecutionTime", unit: "Milliseconds", value: rounded(execution_ms) },
    { name: "OperationTime", unit: "Milliseconds", value: operations.map((each) => rounded(each.wall_ms)) },
    { name: "MemoryUtilization", unit: "Percent", value: rounded((resident_mb / MEMORY_MB) * 100) },
    { name: "CPUIntensiveOperations", unit: "Count", value: operations.filter((each) => each.cpu_bound).length },
    { name: "EstimatedCost", unit: "None", value: (execution_ms / 1000) * (MEMORY_MB / 1024) * PRICE_USD_PER_GB_S },
  ];

  const sending = {};
  for (const way of event.ways) {
    const { namespace, send } = WAYS[way];
    sending[way] = await timed(() => send({ namespace, metrics, dimensions: DIMENSIONS }));
  }
  return {
    metrics: Object.fromEntries(metrics.map(({ name, value }) => [name, value])),
    sending,
    batches_still_waiting: stillWaiting(),
  };
};

// A metric that is lost is a pity, no reason for the work to fail: the answer says so.
const timed = async (send) => {
  let error = null;
  const { wall_ms, cpu_ms } = await measured(async () => {
    try {
      await send();
    } catch (cause) {
      error = `${cause.name}: ${cause.message}`;
    }
  });
  return { wall_ms: rounded(wall_ms), cpu_ms: rounded(cpu_ms), error };
};

const rounded = (number) => Math.round(number * 100) / 100;
