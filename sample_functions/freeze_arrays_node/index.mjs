// Everything out here is made once, in the init phase, and is frozen and thawed together with the process.
const arrayA = [];
const arrayB = [];

export const handler = async () => {
  // Everything in here is made anew by each invocation.
  const arrayC = [];
  const arrayD = [];

  const all = { arrayA, arrayB, arrayC, arrayD };
  for (const array of Object.values(all)) {
    array.push("item");
  }
  const seen = structuredClone(all); // what the arrays hold now, before two of them are emptied

  arrayA.length = 0;
  arrayC.length = 0;
  return seen;
};
