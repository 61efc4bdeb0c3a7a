// Three ways by which metrics get from a function to CloudWatch. `metrics`: [{ name, unit, value }], where a value may be
// an array of samples; `dimensions`: { name: value }.
const { CloudWatchClient, PutMetricDataCommand } = await import("@aws-sdk/client-cloudwatch").catch((cause) => {
  throw new Error("the AWS SDK cannot be loaded; run 'make samples' in the project's root", { cause });
});

// Made in the init phase, so that every invocation uses the same connection. The limits keep a metric that cannot be
// delivered from holding the answer back until the function's timeout. Shorter ones run out for another reason: with little
// memory the first call alone takes most of a second, in which the CPU share is used up and the process stands still.
const client = new CloudWatchClient({
  maxAttempts: 2,
  requestHandler: { connectionTimeout: 2500, requestTimeout: 2500, throwOnRequestTimeout: true },
});

// A request to CloudWatch, awaited: its time is part of the invocation's.
export const byApi = async ({ namespace, metrics, dimensions }) => {
  await client.send(
    new PutMetricDataCommand({
      Namespace: namespace,
      MetricData: metrics.map(({ name, unit, value }) => ({
        MetricName: name,
        Unit: unit,
        ...(Array.isArray(value) ? { Values: value } : { Value: value }),
        Dimensions: Object.entries(dimensions).map(([Name, Value]) => ({ Name, Value })),
        Timestamp: new Date(),
      })),
    }),
  );
};

// One line of JSON in the log, in the embedded metric format: CloudWatch takes the metrics from there. The line is
// written when this returns, for standard output is a pipe, and Node.js writes to pipes at once.
export const byLogLine = ({ namespace, metrics, dimensions }) => {
  const line = {
    _aws: {
      Timestamp: Date.now(),
      CloudWatchMetrics: [
        {
          Namespace: namespace,
          Dimensions: [Object.keys(dimensions)],
          Metrics: metrics.map(({ name, unit }) => ({ Name: name, Unit: unit })),
        },
      ],
    },
    ...dimensions,
    ...Object.fromEntries(metrics.map(({ name, value }) => [name, value])),
  };
  process.stdout.write(`${JSON.stringify(line)}\n`);
};

const INTERVAL_MS = 1000;
const waiting = [];
let timer;

// What is fine on a server: collect, and send once a second. Here the process stands still most of the time.
export const byTimer = (batch) => {
  waiting.push(batch);
  timer ??= setInterval(() => {
    for (const one of waiting.splice(0)) {
      byApi(one).catch((error) => console.error(`metrics were lost: ${error.message}`));
    }
  }, INTERVAL_MS);
};

export const stillWaiting = () => waiting.length;
