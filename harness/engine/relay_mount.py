"""The files that are mounted over an image's RIE: the pinned RIE, and two scripts that put the relay behind it.

The image's own entrypoint still starts everything. Where it calls ``/usr/local/bin/aws-lambda-rie BOOTSTRAP``, the first
script starts the pinned RIE with its Runtime API on another port, and the second one points the runtime at the relay.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path

from harness.engine import parts
from harness.watch import RELAY_PORT, RIE_API_PORT

RIE_PATH = "/usr/local/bin/aws-lambda-rie"
MOUNTED_AT = "/run/lambda-harness"
TIMEOUT_VARIABLE = "LAMBDA_HARNESS_RIE_TIMEOUT"

_START_RIE = f"""#!/bin/sh
# One argument is the image's bootstrap; more are a command, whose last word the RIE takes for the handler.
export AWS_LAMBDA_FUNCTION_TIMEOUT="${TIMEOUT_VARIABLE}"
if [ $# -eq 1 ]; then
  export LAMBDA_HARNESS_COMMAND="$1"
  set --
fi
exec {MOUNTED_AT}/rie --log-level info --runtime-api-address 127.0.0.1:{RIE_API_PORT} {MOUNTED_AT}/bootstrap "$@"
"""

_BOOTSTRAP = f"""#!/bin/sh
# Lambda does not tell a function its timeout in a variable; the relay tells it the deadline.
export AWS_LAMBDA_RUNTIME_API=127.0.0.1:{RELAY_PORT}
command=$LAMBDA_HARNESS_COMMAND
unset AWS_LAMBDA_FUNCTION_TIMEOUT {TIMEOUT_VARIABLE} LAMBDA_HARNESS_COMMAND
[ -z "$command" ] && exec "$@"
exec "$command"
"""


def starter(*, relayed: bool) -> str:
    """What starts the RIE, with the relay behind it or alone, among the files that are mounted."""
    return f"{MOUNTED_AT}/{'aws-lambda-rie' if relayed else 'rie'}"


def directory(architecture: str) -> Path:
    """A directory in the user's cache that holds ``rie``, ``aws-lambda-rie`` and ``bootstrap``; made once."""
    rie = parts.rie_binary(architecture)
    key = hashlib.sha256((_START_RIE + _BOOTSTRAP + rie.name).encode()).hexdigest()[:16]
    found = rie.parent / f"relay-{architecture}-{key}"
    if found.is_dir():
        return found
    made = Path(tempfile.mkdtemp(dir=rie.parent, prefix="relay-new-"))
    made.chmod(0o755)
    try:
        shutil.copyfile(rie, made / "rie")
        (made / "aws-lambda-rie").write_text(_START_RIE)
        (made / "bootstrap").write_text(_BOOTSTRAP)
        for file in made.iterdir():
            file.chmod(0o755)
        made.replace(found)
    except OSError:
        shutil.rmtree(made, ignore_errors=True)
        if not found.is_dir():  # another process may have been first
            raise
    return found
