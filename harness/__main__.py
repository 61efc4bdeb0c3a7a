"""``lambda-harness`` and ``python -m harness``: runs the command line and turns errors into messages and exit codes."""

from __future__ import annotations

import signal
import sys
import types

from harness.errors import HarnessError, Interrupted


def _on_signal(number: int, _frame: types.FrameType | None) -> None:
    # What is being given back must not be left half-way by an impatient second signal.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Interrupted(number)


def main() -> None:
    """The entry point. Never shows a traceback for a user's mistake."""
    signal.signal(signal.SIGINT, _on_signal)
    signal.signal(signal.SIGTERM, _on_signal)
    sys.exit(run())


def run(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    from harness.cli.app import app

    try:
        # Without standalone mode Typer hands back the exit code, and leaves errors to us.
        code = app(arguments, standalone_mode=False)
    except HarnessError as error:
        _say(f"lambda-harness: {error}")
        if error.remedy:
            _say(f"  {error.remedy}")
        return error.exit_code
    except Interrupted as interrupted:
        _say(f"lambda-harness: {'terminated' if interrupted.number == signal.SIGTERM else 'interrupted'}")
        return interrupted.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 141
    except Exception as error:  # noqa: BLE001  # what is not a usage error is raised again
        return _usage_exit(error)
    return code if isinstance(code, int) else 0


def _usage_exit(error: Exception) -> int:
    """Typer knows how to show its own errors; anything else is a bug of ours, with its traceback."""
    import typer

    if isinstance(error, typer.Abort):
        return 130
    show = getattr(error, "show", None)
    if show is None:
        raise error
    show()
    return int(getattr(error, "exit_code", 2))


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


if __name__ == "__main__":
    main()
