// One step of the work is one subsegment, below that of the step which it is part of.
const { default: AWSXRay } = await import("aws-xray-sdk-core").catch((cause) => {
  throw new Error("the X-Ray SDK cannot be loaded; run 'make samples' in the project's root", { cause });
});

// On Lambda the SDK finds the segment by the trace header of the invocation, and the running step by the asynchronous
// context: also where steps run side by side. `work` gets the subsegment; what it throws is written down and thrown on.
export const step = (name, work) =>
  AWSXRay.captureAsyncFunc(name, async (subsegment) => {
    try {
      const result = await work(subsegment);
      subsegment.close(); // it is sent now, not at the end of the invocation
      return result;
    } catch (error) {
      subsegment.close(error); // the same with a fault, and the stack in it
      throw error;
    }
  });
