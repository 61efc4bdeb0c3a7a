"""Four lists: which of them grow from one invocation to the next?"""

import copy

# Made once, in the init phase; frozen and thawed together with the process.
array_a = []
array_b = []


def handler(event, context):
    # Made anew by each invocation.
    array_c = []
    array_d = []

    everything = {"arrayA": array_a, "arrayB": array_b, "arrayC": array_c, "arrayD": array_d}
    for array in everything.values():
        array.append("item")
    seen = copy.deepcopy(everything)  # what the lists hold now, before two of them are emptied

    array_a.clear()
    array_c.clear()
    return seen
