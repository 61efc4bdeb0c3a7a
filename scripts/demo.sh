#!/bin/sh
# The main job, shown: what survives the freeze, and what a memory size does to a CPU-bound function. Needs lambda-harness
# in PATH; 'make demo' sets it up.
set -eu
title() { printf '\n\033[1m%s\033[0m\n' "$1"; }
[ -t 1 ] || title() { printf '\n== %s\n' "$1"; }

for language in node python; do
    title "What survives the freeze ($language): four arrays, three invocations of one sandbox"
    lambda-harness warm "sample_functions/freeze_arrays_$language" -n 3
done

title "One CPU-bound function at three memory sizes: the first invocation of each is cold, then two warm ones"
for memory in 128 512 1769; do
    printf '\n%s MB\n' "$memory"
    lambda-harness invoke sample_functions/cpu_bound_python -m "$memory" -n 3
done 2>&1

title "Next"
echo ".venv/bin/lambda-harness doctor                                        what this machine can measure exactly, and what not"
echo ".venv/bin/lambda-harness invoke sample_functions/out_of_memory_python   an out-of-memory kill, told as one"
