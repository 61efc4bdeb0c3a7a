import { notify, parse, read, store, total } from "./steps.mjs";
import { step } from "./tracing.mjs";

const megabytes = (bytes) => Math.round((bytes / 1024 / 1024) * 10) / 10;

export const handler = async (event) =>
  step("data-processing", async (processing) => {
    const before = process.memoryUsage();
    // Annotations are indexed: traces can be searched by them. So they are numbers, booleans and short texts, and few.
    processing.addAnnotation("records", event.records);
    processing.addAnnotation("initial_memory_mb", megabytes(before.heapUsed));

    const lines = await step("read", () => read(event));
    const { records, totals } = await step("data-transformation", async (transformation) => {
      transformation.addAnnotation("cpu_intensive", true);
      transformation.addMetadata("input_characters", lines.reduce((sum, line) => sum + line.length, 0));
      const parsed = await step("parse", () => parse(lines));
      const found = await step("total", () => total(parsed));
      transformation.addMetadata("output_characters", JSON.stringify(found).length);
      return { records: parsed, totals: found };
    });
    await Promise.all([step("store", () => store(totals)), step("notify", () => notify())]);

    // Metadata is not indexed: anything that helps whoever opens the trace, up to 64 KB for the whole document.
    const after = process.memoryUsage();
    processing.addAnnotation("final_memory_mb", megabytes(after.heapUsed));
    processing.addAnnotation("memory_delta_mb", megabytes(after.heapUsed - before.heapUsed));
    processing.addMetadata("memory", { before, after }, "process");
    return { records: records.length, totals, trace: process.env._X_AMZN_TRACE_ID };
  });
