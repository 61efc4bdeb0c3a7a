"""A connection that is made once, in the init phase, and used by every invocation of its sandbox."""

import time

import databases

# Out here the sandbox has two whole vCPUs, whatever its memory size; in the handler it has what the memory size grants.
database = databases.open_one()


def handler(event, context):
    opened_in_init = database.connections_opened == 1

    # A connection does not know that the other end is gone: nothing told this process while it was frozen. So it is asked
    # before the work, and not tried again after it: an INSERT that failed may have been done all the same.
    lost = database.why_lost()
    if lost is not None:
        database.connect()

    started = time.perf_counter()
    rows = database.add_visit(event.get("visitor", "nobody"), context.aws_request_id)
    return {
        "backend": database.backend,
        "connections_opened": database.connections_opened,
        "opened_in": "init" if opened_in_init and lost is None else "handler",
        "lost": lost,
        "rows": rows,
        "connect_ms": round(database.connect_ms, 1),
        "query_ms": round((time.perf_counter() - started) * 1000, 1),
    }
