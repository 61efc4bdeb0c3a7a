"""Processes of a sandbox: moving them between groups and ending them. Must not know which version a group has."""

from __future__ import annotations

import contextlib
import os
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from harness.cgroup.directory import Directory

KILL_FREEZE_TIMEOUT_S = 0.1
"""How long a kill waits for the sandbox to freeze first; what does not freeze is killed all the same."""

_ROUNDS = 100


def adopt(source: Directory, target: Directory, *, rie_pid: int, first: Iterable[int] = ()) -> bool:
    """Move every process of ``source`` but the RIE to ``target``, those of ``first`` first; whether none is left.

    A process that forks while it is moved may leave a child behind, so this looks until nobody is there. The rounds
    have an end because a process that is exiting stays in the list and cannot be moved any more.
    """
    for _ in range(_ROUNDS):
        left = set(source.pids()) - {rie_pid}
        if not left:
            return True
        # Only what the kernel lists is moved: a PID of ``first`` may have exited and belong to a stranger by now.
        for pid in [pid for pid in first if pid in left]:
            target.move_here(pid)
            left.discard(pid)
        for pid in left:
            target.move_here(pid)
    return False


def kill(living: Iterable[int], wanted: Iterable[int] | None) -> None:
    """SIGKILL to those of ``living`` that are wanted (None: all); one that exited in the meantime is no error."""
    chosen = set(living) if wanted is None else set(living) & set(wanted)
    for pid in sorted(chosen):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
