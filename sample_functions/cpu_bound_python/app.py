"""The same work at every memory size: a chain of numbers, each made from the one before."""

import time

ROUNDS = 1_000_000  # some 70 to 100 ms of CPU on a current server core


def handler(event, context):
    rounds = event.get("rounds", ROUNDS)
    wall, cpu = time.perf_counter(), time.process_time()

    number = 1
    for _ in range(rounds):
        number = (
            number * 48271
        ) % 2147483647  # Lehmer's generator: no step can be skipped, the result is always the same

    wall_ms = (time.perf_counter() - wall) * 1000
    cpu_ms = (time.process_time() - cpu) * 1000
    return {
        "rounds": rounds,
        "result": number,
        "cpu_ms": round(cpu_ms, 1),
        "wall_ms": round(wall_ms, 1),
        "cpu_share": round(cpu_ms / wall_ms, 3) if wall_ms else None,
    }
