"""Probes that look at a function from inside its sandbox, without a change to its code: what they are and what they say.

A probe perturbs what it looks at, so it runs in a series of its own. It comes in by the environment alone: a directory
that is mounted read-only, and PYTHONPATH or NODE_OPTIONS. It answers in the function's log, in lines that carry a token
of this series; `Listener` takes them out again, so nobody sees them and every vantage and engine can be used.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import secrets
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from harness.function import Function

MOUNTED_AT = "/var/lambda-harness-probe"
_HERE = Path(__file__).resolve().parent
_EXTRA_TIMEOUT_S = 120
"""The probe works before the runtime asks for more work, so inside the function's time."""
_LONGEST_TIMEOUT_S = 900


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What has to be laid over a function, and mounted, for a probe to run."""

    token: str
    environment: Mapping[str, str]
    binds: Mapping[Path, str]

    def over(self, function: Function, *, memory_mb: int | None = None) -> Function:
        """The function with the probe's variables, and with time for it."""
        return replace(
            function,
            memory_mb=memory_mb or function.memory_mb,
            timeout_s=min(function.timeout_s + _EXTRA_TIMEOUT_S, _LONGEST_TIMEOUT_S),
            environment={**function.environment, **self.environment},
        )


def probe(function: Function, order: str) -> Probe | None:
    """The probe for a function's runtime; None where there is none. ``order``: ``settle`` or ``explain:FIRST:LAST``."""
    runtime = function.runtime or ""
    token = f"lambda-harness-probe-{secrets.token_hex(8)}"
    variables = {"LAMBDA_HARNESS_PROBE": order, "LAMBDA_HARNESS_PROBE_TOKEN": token}
    if runtime.startswith("python"):
        before = (
            function.environment.get("PYTHONPATH") or "/var/runtime"
        )  # what AWS's bootstrap sets where there is none
        return Probe(
            token=token,
            environment=variables | {"PYTHONPATH": f"{MOUNTED_AT}:{before}"},
            binds={_HERE / "python": MOUNTED_AT},
        )
    if runtime.startswith("nodejs"):
        given = function.environment.get("NODE_OPTIONS", "")
        return Probe(
            token=token,
            environment=variables | {"NODE_OPTIONS": f"{given} --require {MOUNTED_AT}/probe.cjs".strip()},
            binds={_HERE / "node": MOUNTED_AT},
        )
    return None


@dataclass
class Listener:
    """Stands in a stand's output: takes out what probes say, and hands everything else on."""

    pass_on: Callable[[bytes], None] | None = None
    probe: Probe | None = None
    _pieces: dict[int, str] = field(default_factory=dict)
    heard: dict[str, Any] | None = None
    """What the probe said: ``entries``, or ``error``."""

    def listen_to(self, probe: Probe | None) -> None:
        self.probe, self._pieces, self.heard = probe, {}, None

    def __call__(self, output: bytes) -> None:
        if self.probe is not None and self.probe.token.encode() in output:
            rest = b"".join(line for line in output.splitlines(keepends=True) if not self._hear(line))
            if not rest:
                return
            output = rest
        if self.pass_on is not None:
            self.pass_on(output)

    def _hear(self, line: bytes) -> bool:
        assert self.probe is not None  # noqa: S101  # the caller looked
        found = re.search(rb"%b (\d+)/(\d+) ([A-Za-z0-9+/=]*)" % re.escape(self.probe.token.encode()), line)
        if found is None:
            return False
        number, total = int(found[1]), int(found[2])
        if number == 1:
            self._pieces = {}
        self._pieces[number] = found[3].decode()
        if len(self._pieces) == total:
            try:
                text = "".join(self._pieces[each] for each in range(1, total + 1))
                self.heard = json.loads(zlib.decompress(base64.b64decode(text)))
            except (KeyError, ValueError, binascii.Error, zlib.error):
                self.heard = {"error": "what the probe said arrived in pieces"}
        return True


def without_probe(log: str, token: str) -> str:
    """A log without the probe's lines."""
    return "".join(line for line in log.splitlines(keepends=True) if token not in line)
