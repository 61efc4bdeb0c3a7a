"""The command line without an engine: usage errors, exit codes, and what stands on which stream."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import typer
from fakes import NO_ENGINE
from fakes import no_engine as no_engine  # noqa: PLC0414  # a fixture
from test_invocation import record

from harness import __main__ as entry
from harness.cli import options, results, talk
from harness.cli.invoke import details
from harness.errors import Interrupted, UsageError
from harness.invocation import Outcome

# The engine's SDK leaves its socket to the garbage collector when nobody answers.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def code(tmp_path: Path, no_engine: None) -> list[str]:
    folder = tmp_path / "fn"
    folder.mkdir()
    (folder / "app.py").write_text("def handler(event, context): pass\n")
    return [str(folder), "--runtime", "python3.13", "--handler", "app.handler"]


@pytest.mark.parametrize(
    ("more", "exit_code", "needle"),
    [
        (["-m", "64"], 3, "128"),
        (["-m", "20000"], 3, "10240"),
        (["-m", "lots"], 2, "-m"),
        (["-e", "{not json"], 3, "JSON"),
        (["-e", "/nowhere/event.json"], 3, "event.json"),
        (["--timeout", "0"], 3, "timeout"),
        (["--timeout", "901"], 3, "900"),
        (["-n", "0"], 2, "-n"),
        (["--gap", "-1"], 2, "--gap"),
        (["--tmp", "100"], 3, "512"),
        (["--env", "AWS_REGION=x"], 3, "AWS_REGION"),
        (["--env", "nothing"], 2, "K=V"),
        (["--architecture", "mips"], 3, "mips"),
        (["--layer", "/nowhere/layer"], 3, "/nowhere/layer"),
        (["--no-such-option"], 2, "--no-such-option"),
        (["--vantage", "moon"], 4, "docker"),
        ([], 4, "docker"),
    ],
)
def test_a_mistake_is_answered_with_its_exit_code_and_nothing_on_stdout(
    code: list[str], more: list[str], exit_code: int, needle: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert entry.run(["invoke", *code, *more]) == exit_code
    out, err = capsys.readouterr()
    assert out == ""
    assert needle.lower() in err.lower()
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "exit_code", "needle"),
    [
        (["invoke"], 2, "FUNCTION"),
        (["no-such-command"], 2, "no-such-command"),
        (["invoke", "/nowhere/at/all", "--runtime", "python3.13", "--handler", "a.b"], 3, "/nowhere/at/all"),
        (["warm", "x", "-n", "1"], 2, "-n"),
        (["doctor"], 4, "docker"),
        (["clean"], 4, "docker"),
        (["images", "list"], 4, "docker"),
        (["images", "build"], 4, "docker"),
        (["images", "pull", "python3.13"], 4, "docker"),
        (["images", "pull"], 2, "RUNTIME"),
    ],
)
def test_every_command_says_what_it_lacks(
    arguments: list[str],
    exit_code: int,
    needle: str,
    no_engine: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert entry.run(arguments) == exit_code
    out, err = capsys.readouterr()
    assert out == ""
    assert needle.lower() in err.lower()


def test_an_unknown_runtime_is_named_with_those_that_exist(code: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.run(["invoke", code[0], "--runtime", "cobol85", "--handler", "a.b"]) in (3, 4)
    assert "Traceback" not in capsys.readouterr().err


def test_a_bug_of_ours_is_not_hidden(monkeypatch: pytest.MonkeyPatch, code: list[str]) -> None:
    def broken(*_: object, **__: object) -> object:
        raise ZeroDivisionError

    monkeypatch.setattr(options, "read_function", broken)
    with pytest.raises(ZeroDivisionError):
        entry.run(["invoke", *code])


@pytest.mark.parametrize(
    ("raised", "exit_code", "said"),
    [
        (Interrupted(signal.SIGINT), 130, "interrupted"),
        (Interrupted(signal.SIGTERM), 143, "terminated"),
        (KeyboardInterrupt(), 130, ""),
        (typer.Abort(), 130, ""),
    ],
)
def test_an_interruption_has_its_own_exit_code(
    monkeypatch: pytest.MonkeyPatch,
    code: list[str],
    raised: BaseException,
    exit_code: int,
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(*_: object, **__: object) -> object:
        raise raised

    monkeypatch.setattr(options, "read_function", interrupted)
    assert entry.run(["invoke", *code]) == exit_code
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err


def test_a_second_signal_does_not_disturb_the_tidying_up() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(Interrupted):
            entry._on_signal(signal.SIGTERM, None)
        assert signal.getsignal(signal.SIGINT) == signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
        with pytest.raises(Interrupted):
            entry._on_signal(signal.SIGINT, None)
    finally:
        signal.signal(signal.SIGINT, before[0])
        signal.signal(signal.SIGTERM, before[1])


def cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "harness", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "DOCKER_HOST": NO_ENGINE},
    )


def test_the_installed_command_and_the_module_are_the_same() -> None:
    said = cli("--version")
    assert said.returncode == 0
    assert said.stdout.startswith("lambda-harness ")
    assert cli("doctor").returncode == 4
    assert cli().returncode in (0, 2)


@pytest.mark.parametrize("arguments", [["--help"], ["invoke", "--help"], ["warm", "--help"], ["images", "--help"]])
def test_help_is_quick_because_it_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys, harness.__main__ as m\n"
        f"status = m.run({arguments!r})\n"
        "heavy = {'docker', 'httpx', 'scipy', 'numpy', 'requests', 'yaml', 'psutil', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'imported {sorted(heavy)}' if heavy else status)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


def test_a_reader_that_closes_the_pipe_ends_the_command_quietly() -> None:
    command = f"{sys.executable} -m harness --help | head -c 1"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "\n" or len(done.stdout) == 1
    assert "Traceback" not in done.stderr


# -- options -------------------------------------------------------------------------------------------------------------


def test_variables_may_hold_equals_signs_and_nothing() -> None:
    assert options.pairs(["A1=b=c", "B2="]) == {"A1": "b=c", "B2": ""}
    assert options.pairs(None) == {}
    with pytest.raises(UsageError, match="'=x'"):
        options.pairs(["=x"])


@pytest.mark.parametrize(
    ("outcomes", "exit_code"),
    [
        ([Outcome.SUCCESS], 0),
        ([Outcome.SUCCESS, Outcome.TIMEOUT, Outcome.OUT_OF_MEMORY], 6),
        ([Outcome.OUT_OF_MEMORY, Outcome.TIMEOUT], 7),
        ([Outcome.INIT_TIMEOUT], 6),
        ([Outcome.FUNCTION_ERROR], 5),
        ([Outcome.RUNTIME_EXIT], 5),
        ([Outcome.INIT_ERROR], 5),
        ([Outcome.RESPONSE_TOO_LARGE], 5),
        ([Outcome.ENGINE_ERROR], 4),
        ([], 0),
    ],
)
def test_the_exit_code_is_that_of_the_first_invocation_that_failed(outcomes: list[Outcome], exit_code: int) -> None:
    assert options.exit_code([record(outcome=outcome) for outcome in outcomes]) == exit_code


# -- what is said --------------------------------------------------------------------------------------------------------


def test_a_document_is_one_json_value_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    talk.emit({"a": "grüße"})
    out, err = capsys.readouterr()
    assert json.loads(out) == {"a": "grüße"}
    assert "grüße" in out
    assert err == ""


def test_colours_are_for_terminals_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert talk.red("x") == talk.dim("x") == "x"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert talk.red("x") == "\x1b[31mx\x1b[0m"
    assert talk.dim("x") == "\x1b[2mx\x1b[0m"
    monkeypatch.setenv("NO_COLOR", "1")
    assert talk.red("x") == "x"


def test_the_function_s_output_goes_to_stderr_even_if_it_is_no_text(capsys: pytest.CaptureFixture[str]) -> None:
    talk.FunctionOutput()(b"gr\xc3\xbc\xc3\x9fe \xff\n")
    out, err = capsys.readouterr()
    assert (out, err) == ("", "grüße \ufffd\n")


def test_what_takes_long_is_said_once_where_stderr_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(talk.Progress, "AFTER_S", 0.0)
    with talk.Progress() as progress:
        progress("pulling an image")
        said = ""
        deadline = time.monotonic() + 10
        while "pulling" not in said and time.monotonic() < deadline:
            said += capsys.readouterr().err
    assert said + capsys.readouterr().err == "pulling an image ...\n"


class Terminal(io.StringIO):
    """Keeps all that is written: pytest's capture loses what is written while it is being read."""

    def isatty(self) -> bool:
        return True


def test_on_a_terminal_the_line_renews_itself_and_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(talk.Progress, "AFTER_S", 0.0)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with talk.Progress() as progress:
        progress("invoking")
        deadline = time.monotonic() + 10
        while "invoking" not in terminal.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
    said = terminal.getvalue()
    assert "\r\x1b[Kinvoking (0 s)" in said
    assert said.endswith("\r\x1b[K")


def test_a_quiet_progress_starts_no_thread() -> None:
    before = threading.active_count()
    with talk.Progress(quiet=True) as progress:
        progress("anything")
        assert threading.active_count() == before


def test_a_table_has_aligned_columns() -> None:
    assert talk.table([["a", "long"], ["bcd", "x"]], header=["h", "i"]) == "h    i\na    long\nbcd  x"


def test_a_note_is_said_where_it_comes_up_and_once(capsys: pytest.CaptureFixture[str]) -> None:
    said: set[str] = set()
    for notes in (("/tmp is not limited",), ("/tmp is not limited", "the machine stood still"), ()):
        results.say_what_differs([record(notes=notes, cpu_capped=True, memory_mb=10240)], said)
    assert capsys.readouterr().err.splitlines() == [
        "note: /tmp is not limited",
        "note: this host has fewer CPUs than Lambda shows at 10240 MB",
        "note: the machine stood still",
    ]


def test_the_line_below_a_report_says_what_lambda_does_not() -> None:
    text = details(record(peak_rss_bytes=10 * 1024 * 1024, peak_method="sampled", cpu_ms=12.0, frozen_ms=3000.0))
    assert "(sampled)" in text
    assert "was frozen for" in text
    assert "not measured" in details(record())
