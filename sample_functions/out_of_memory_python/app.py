"""Takes memory step by step until it has what the event asks for, or until it is killed."""

MB = 1024 * 1024
PAGE_BYTES = 4096
STEP_MB = 8


def handler(event, context):
    wanted_mb = event.get("mb", 400)
    blocks = []
    held_mb = 0
    while held_mb < wanted_mb:
        step_mb = min(STEP_MB, wanted_mb - held_mb)
        block = bytearray(step_mb * MB)
        # The kernel gives memory page by page, when it is written to: memory that nobody touches costs nothing.
        for offset in range(0, len(block), PAGE_BYTES):
            block[offset] = 1
        blocks.append(block)
        held_mb += step_mb
        print(f"holding {held_mb} of {wanted_mb} MB; memory size {context.memory_limit_in_mb} MB", flush=True)
    return {"held_mb": held_mb}
