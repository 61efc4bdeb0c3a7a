// Runs inside a sandbox, in the function's Node.js, before the runtime's client: looks at what stays after each
// invocation. NODE_OPTIONS names it. It must not make the function fail: what goes wrong here is reported, or swallowed.
//
// It stands between the response and the runtime's next request for work, by way of the client's native `next`.
// LAMBDA_HARNESS_PROBE says what it does there: `settle` runs the garbage collector; `explain:FIRST:LAST` takes a heap
// snapshot after the invocation FIRST and one after LAST, and says what the second has more. It says so on standard
// error, in lines that begin with LAMBDA_HARNESS_PROBE_TOKEN.
"use strict";

const order = process.env.LAMBDA_HARNESS_PROBE;
const token = process.env.LAMBDA_HARNESS_PROBE_TOKEN;
const CHUNK = 3000; // a line this short reaches a pipe in one piece

if (order && require("node:worker_threads").isMainThread) {
  const [mode, first, last] = order.split(":");
  let done = -1; // the first call comes before the first invocation
  let before = null;

  const say = (found) => {
    const text = require("node:zlib").deflateSync(JSON.stringify(found)).toString("base64");
    const total = Math.ceil(text.length / CHUNK);
    for (let number = 1; number <= total; number++) {
      const piece = text.slice((number - 1) * CHUNK, number * CHUNK);
      require("node:fs").writeSync(2, `${token} ${number}/${total} ${piece}\n`);
    }
  };

  const collect = () => {
    if (!global.gc) {
      require("node:v8").setFlagsFromString("--expose-gc");
      global.gc = require("node:vm").runInNewContext("gc");
    }
    // What a first collection frees of the memory outside of the heap is given back by the second.
    global.gc();
    global.gc();
  };

  const afterInvocation = () => {
    done += 1;
    if (done < 1) return;
    if (mode === "settle") {
      collect();
    } else if (done === Number(first)) {
      before = require("node:v8").writeHeapSnapshot("/tmp/lambda-harness-before.heapsnapshot");
    } else if (done === Number(last) && before) {
      const { rmSync } = require("node:fs");
      const after = require("node:v8").writeHeapSnapshot("/tmp/lambda-harness-after.heapsnapshot");
      try {
        // In a process of its own: reading two snapshots takes many times their size, and would grow this heap.
        const text = require("node:child_process").execFileSync(
          process.execPath,
          ["--max-old-space-size=2048", `${__dirname}/compare.cjs`, before, after, String(Number(last) - Number(first))],
          { env: {}, encoding: "utf8", maxBuffer: 64 << 20, stdio: ["ignore", "pipe", "pipe"] },
        );
        say({ runtime: "node", entries: JSON.parse(text) });
      } finally {
        rmSync(before, { force: true });
        rmSync(after, { force: true });
        before = null;
      }
    }
  };

  const dlopen = process.dlopen;
  process.dlopen = function (module, filename, ...rest) {
    const result = dlopen.call(this, module, filename, ...rest);
    const client = module.exports;
    if (String(filename).endsWith("rapid-client.node") && typeof client.next === "function") {
      const next = client.next;
      const wrapped = Object.create(client, {
        next: {
          value: function (...given) {
            try {
              afterInvocation();
            } catch (error) {
              say({ runtime: "node", error: `${error.name}: ${String(error.message).slice(0, 500)}` });
            }
            return next.apply(client, given);
          },
        },
      });
      module.exports = wrapped;
    }
    return result;
  };
}
