"""Who wants to know what happens in sandboxes while it happens. Pure: an interface and nothing else.

Calls come from the threads of sandboxes, in the order of events within one sandbox; they must return at once and raise
nothing. A record says what an invocation was; an observer sees it become that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.context import RequestContext
    from harness.invocation import Invocation
    from harness.lifecycle import Phase
    from harness.sandbox import Sandbox


class Observer:
    """Override what you want to know; the rest does nothing."""

    def phase(self, sandbox: Sandbox, phase: Phase) -> None:
        """The sandbox has entered a phase of `harness.lifecycle`."""

    def output(self, sandbox: Sandbox, request_id: str | None, data: bytes) -> None:
        """The function printed whole lines; ``request_id`` is None during init and between invocations."""

    def invoked(self, sandbox: Sandbox, record: Invocation, context: RequestContext) -> None:
        """An invocation is over, and its record made."""
