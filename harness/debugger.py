"""A debugger in the runtime: which variables, files and ports a sandbox needs so that one can attach. Must not know engines.

Node has its inspector built in. Python gets debugpy, from the harness's own environment, started by a wrapper script in the
way that AWS documents for wrapper scripts (AWS_LAMBDA_EXEC_WRAPPER).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.errors import UsageError

MOUNTED_AT = "/run/lambda-harness-debug"
LIMIT_S = 7 * 86400.0
"""In place of every time limit while a debugger may be attached."""
NOTE = "a debugger may be attached: time-outs and freezing are suspended, and the figures hold the debugger too"

_WRAPPER = """#!/bin/sh
python=$1
shift
export PYTHONPATH="{mounted_at}-python:${{PYTHONPATH:-}}"
# Frozen modules would hide the places of breakpoints in the standard library.
exec "$python" -X frozen_modules=off -m debugpy --listen 0.0.0.0:{port} {wait} "$@"
"""


@dataclass(frozen=True, kw_only=True)
class Debug:
    """Publish the runtime's debugger at this port of 127.0.0.1; ``wait``: the init stops until a debugger is there.

    One sandbox at a time, since there is one port.
    """

    port: int
    wait: bool = False

    def environment(self, runtime: str | None, own: Mapping[str, str]) -> dict[str, str]:
        """The variables to lay over the function's own. `UsageError` for a runtime that has no debugger here."""
        family = (runtime or "").rstrip("0123456789.x")
        if family == "nodejs":
            flag = "--inspect-brk" if self.wait else "--inspect"
            return {"NODE_OPTIONS": f"{own.get('NODE_OPTIONS', '')} {flag}=0.0.0.0:{self.port}".strip()}
        if family == "python":
            return {"AWS_LAMBDA_EXEC_WRAPPER": f"{MOUNTED_AT}/wrapper"}
        raise UsageError(
            f"the harness knows no debugger for {runtime or 'a function whose runtime is not named'}",
            remedy="leave --debug-port out; python and nodejs runtimes have one",
        )

    def binds(self, runtime: str | None, work_dir: Path) -> dict[str, str]:
        """Host path -> container path of what must be mounted; files are made below ``work_dir``."""
        if not (runtime or "").startswith("python"):
            return {}
        found = importlib.util.find_spec("debugpy")
        if found is None or found.origin is None:
            raise UsageError(
                "Python functions are debugged with debugpy, which is not installed",
                remedy="install lambda-harness[debug]",
            )
        folder = work_dir / "debugger"
        folder.mkdir(mode=0o755, exist_ok=True)
        wrapper = folder / "wrapper"
        wait = "--wait-for-client" if self.wait else ""
        wrapper.write_text(_WRAPPER.format(mounted_at=MOUNTED_AT, port=self.port, wait=wait))
        wrapper.chmod(0o755)
        package = Path(found.origin).parent
        return {str(folder): MOUNTED_AT, str(package): f"{MOUNTED_AT}-python/debugpy"}
