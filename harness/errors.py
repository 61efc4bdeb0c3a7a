"""Every error of the harness, in one file.

A message says what happened and names the culprit; ``remedy`` says what to do about it. Each class owns its exit code
(the table stands in the README). Nothing below ``cli`` prints or exits: it raises one of these.
"""

from __future__ import annotations

EXIT_BUG = 1


class HarnessError(Exception):
    """The root of the tree. ``str(error)`` is the message; ``error.remedy`` may be empty."""

    exit_code = EXIT_BUG

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.remedy = remedy


class UsageError(HarnessError):
    """The command line makes no sense."""

    exit_code = 2


class InvalidInput(HarnessError):
    """A bad function, event or configuration."""

    exit_code = 3


class InvalidFunction(InvalidInput):
    """A function that cannot be read, or that Lambda would refuse."""


class InvalidEvent(InvalidInput):
    """An event that is no JSON, too large, or not there."""


class EngineError(HarnessError):
    """The container engine is missing, refuses, or went away."""

    exit_code = 4


class ImageError(EngineError):
    """No image serves a runtime, or one could not be built."""


class LimitError(EngineError):
    """A limit was asked for and the kernel holds another: the figures would be wrong."""


class SandboxGone(EngineError):
    """The container of a sandbox was removed, or died, while the harness was using it."""


class FunctionFailed(HarnessError):
    """An invocation ended with an error of the function."""

    exit_code = 5


class InitFailed(FunctionFailed):
    """A function's init failed, ahead of any invocation (provisioned concurrency)."""


class FunctionTimedOut(HarnessError):
    """An invocation ran into the function's timeout."""

    exit_code = 6


class OutOfMemory(HarnessError):
    """An invocation was killed because its memory was used up."""

    exit_code = 7


class ThresholdNotMet(HarnessError):
    """A threshold that the user set was not met."""

    exit_code = 8


class NotMeasurable(HarnessError):
    """A measurement that was required is not possible here."""

    exit_code = 9


class Interrupted(BaseException):
    """SIGINT or SIGTERM: leaves through every context manager, so that everything is given back.

    No error of anybody, so not a `HarnessError`; and not a KeyboardInterrupt, of which command line libraries make
    something else.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    @property
    def exit_code(self) -> int:
        """As a shell tells the end by a signal: 130 for SIGINT, 143 for SIGTERM."""
        return 128 + self.number
