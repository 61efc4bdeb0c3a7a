"""Waiting for the freezer: the same for both versions; must not know which file says that a group is frozen."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_AGAIN_S = 0.001
_FIRST_SLEEP_S = 0.00002
_LONGEST_SLEEP_S = 0.001


def wait_until(done: Callable[[], bool], timeout_s: float, *, again: Callable[[int], None] | None = None) -> bool:
    """Ask ``done`` until it is true; False after ``timeout_s``.

    An idle sandbox is frozen within some 50 us. Asking without a pause takes longer than asking after short sleeps (0.3
    to 1.3 ms against 0.2 ms, two CPUs): the one who asks holds the CPU that the freezing threads need. ``again`` is
    called before each question after the first millisecond, with how many times it was called before.
    """
    begin = time.monotonic()
    sleep_s = _FIRST_SLEEP_S
    asked_again = 0
    while not done():
        elapsed_s = time.monotonic() - begin
        if elapsed_s >= timeout_s:
            return False
        if again is not None and elapsed_s >= _AGAIN_S:
            again(asked_again)
            asked_again += 1
        time.sleep(sleep_s)
        sleep_s = min(2 * sleep_s, _LONGEST_SLEEP_S)
    return True
