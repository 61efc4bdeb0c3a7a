"""Every command that README, docs and the samples tell people to type does what they say, and prints what they show.

Outputs are compared in shape: rows and words, not figures. Where a command cannot be run as it stands, the tables below
say what is run instead, and why; a command that is in none of them is run as it is.
"""

from __future__ import annotations

import difflib
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from documented import ROOT, Command, commands, documents, python_blocks
from rehearsal import Checkout, Run, checkout
from shape import agree, shape

from harness.engine.client import Engine
from harness.errors import EngineError

# Words that stand for the reader's own.
STANDS_FOR = {"FUNCTION": "sample_functions/freeze_arrays_node"}

# Not run as they stand: (a command, what is run instead, why). None: nothing.
INSTEAD: dict[str, tuple[str | None, str]] = {
    "make demo": ("scripts/demo.sh", "the set-up before it is what this test stands on"),
    "make test": ("make --dry-run test", "this test is part of it"),
    "make test-vm": ("make --dry-run test-vm", "boots virtual machines, for hours"),
    'make test-vm VM="--kernel uml"': ('make --dry-run test-vm VM="--kernel uml"', "boots virtual machines, for hours"),
    "make images": ("make --dry-run images", "builds for minutes, and is what this test stands on"),
    "pipx install .": (
        None,
        "installs for the user who runs it; the package's metadata are tested with `pip` in make venv",
    ),
    "make samples": ("make --dry-run samples", "asks package registries; this test stands on it"),
    "make database": ("make --old-file=images database", "with the images that are there"),
    "make database-stop": ("make --old-file=venv database-stop", "with the virtual environment that is there"),
    ".venv/bin/python bench/fidelity.py --out docs/fidelity": (
        ".venv/bin/python bench/fidelity.py --help",
        "ten minutes",
    ),
    ".venv/bin/python bench/fidelity.py --factors": (".venv/bin/python bench/fidelity.py --help", "ten minutes"),
    ".venv/bin/python bench/overhead.py": (".venv/bin/python bench/overhead.py --help", "minutes, and a quiet machine"),
    ".venv/bin/python bench/engines.py": (".venv/bin/python bench/engines.py --help", "a minute"),
    ".venv/bin/python bench/verdicts.py": (".venv/bin/python bench/verdicts.py --help", "four minutes"),
    ".venv/bin/python bench/experiments.py --measure": (
        ".venv/bin/python bench/experiments.py --help",
        "minutes, and a quiet machine",
    ),
}
# The same with fewer invocations, where the shape stays: (what, by what).
FEWER = (
    (r"(bench/hello_world.py --cold) 10", r"\1 1"),
    (r"(sweep sample_functions/cpu_bound_python -m 128,512,1769)(?= --report)", r"\1 -n 4"),
    (r"(sweep sample_functions/cpu_bound_python -m 128,512,1024,1769,3008) -n 10", r"\1 -n 3"),
    (r"(sweep sample_functions/image_resize_\w+ -m 128,512,1024,1769,3008) -n 4", r"\1 -n 3"),
    (r"(sweep sample_functions/image_resize_python -m 1024,3008) -n 10", r"\1 -n 3"),
    (r"(sweep sample_functions/image_resize_python -m 448,896) -n 10", r"\1 -n 4"),
    (r"(sweep sample_functions/gc_tuning_node .*)-n 5", r"\1-n 1"),
    (r"(sweep sample_functions/freeze_arrays_node.*) -n [23]0", r"\1 -n 5"),
    (r"(sweep sample_functions/freeze_arrays_node)$", r"\1 -n 5"),
    (r"(leak sample_functions/freeze_arrays_\w+)$", r"\1 -n 12"),
)
# Exit codes other than 0, as README lists them: the sample is made to end so.
ENDS_WITH = (
    (r"lambda-harness runs$", {2}),  # without a command it shows its help
    (r"invoke sample_functions/out_of_memory_python$", {7}),
    (r"broken_record", {5}),
    (r"load sample_functions/leaky_logger_node .*--requests 1000", {7}),
    (r"CACHE_SHARE=0.8", {7}),
    (r"leak sample_functions/leaky_logger_node(?!.*one_at_a_time)", {8}),
    (r"leak sample_functions/freeze_arrays_", {0, 8}),  # some words an invocation: below what is called a leak
    (r"--fail-if", {0, 8}),
)
NEEDS_SERVICE = re.compile(r"^(aws|curl) |:4577|^lambda-harness logs ")

UNDECIDED = "Inconclusive"

FOUND = [command for path in documents() for command in commands(path)]


def usage(command: str) -> bool:
    """Whether it is a synopsis, with alternatives in brackets."""
    return command.startswith("lambda-harness ") and bool(re.search(r"\[|\bN\b|\bR\b", command))


@pytest.fixture(scope="session")
def place() -> Iterator[Checkout]:
    engine = Engine()
    try:
        engine.facts()
    except EngineError as error:
        pytest.fail(f"tests/docs needs a container engine: {error}; {error.remedy}", pytrace=False)
    finally:
        engine.close()
    with checkout() as found:
        yield found
        found.database_changed()
        subprocess.run(
            ["scripts/database.sh", "stop", sys.executable], cwd=found.folder, check=True, capture_output=True
        )


def with_what_stands_for(text: str) -> str:
    for word, stands_for in STANDS_FOR.items():
        text = re.sub(rf"\b{word}\b", stands_for, text)
    return text


def as_it_is_run(command: Command, place: Checkout) -> str | None:
    text = with_what_stands_for(command.text)
    if text in INSTEAD:
        return INSTEAD[text][0]
    if re.search(r"\bBASELINE\b|\bRUN\b", text):
        text = re.sub(r"\bBASELINE\b|\bRUN\b", baseline(place), text)
    for what, by in FEWER:
        text = re.sub(what, by, text)
    return text


def baseline(place: Checkout) -> str:
    """A run that stands for a reader's own."""
    done = place.run("lambda-harness sweep sample_functions/freeze_arrays_node -m 512 -n 5 --json > before.json")
    assert done.code == 0, done.error
    return "latest"


def folder_of(command: Command) -> str:
    """The folder that a block has gone to before this command."""
    earlier = [each for each in FOUND if each.document == command.document and each.line < command.line]
    gone = [each for each in earlier if each.text.startswith("cd ") and each.line == command.line - 1]
    return gone[-1].text.removeprefix("cd ") if gone else "."


def run(command: Command, place: Checkout, *, anew: bool = False) -> Run | None:
    text = as_it_is_run(command, place)
    if text is None:
        return None
    if text.startswith("lambda-harness serve"):
        found = place.service(command.document, text)
        return Run(code=0, out=(), error=tuple(found.said), seconds=0)
    if text.startswith("make ") and "database" in text:
        place.database_changed()
    if NEEDS_SERVICE.search(text):
        above = [each for each in FOUND if each.document == command.document and each.line < command.line]
        (*_, serving) = [each.text for each in above if each.text.startswith("lambda-harness serve")]
        return place.run(text, service=place.service(command.document, serving))
    return place.run(text, folder=folder_of(command), anew=anew)


def synopsis(command: Command, place: Checkout) -> None:
    words = command.text.split()
    name = " ".join(words[: 3 if words[1] in {"runs", "images", "logs"} else 2])
    told = place.run(f"{name} --help")
    assert told.code == 0
    known = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", "\n".join(told.out)))
    unknown = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", " ".join(words[2:]))) - known
    assert not unknown, f"{command}: 'lambda-harness {words[1]}' has no {', '.join(sorted(unknown))}"


@pytest.mark.parametrize("command", FOUND, ids=str)
def test_it_does_what_the_document_says(command: Command, place: Checkout) -> None:
    if command.text.startswith(("cd ", "export ")):
        return  # taken up by those that follow
    if usage(command.text):
        synopsis(command, place)
        return
    done = run(command, place)
    if done is None:
        return
    if done.out[:1] == (UNDECIDED,) and UNDECIDED not in command.output:
        # A busy host can scatter the points of a leak hunt too much; a verdict that comes out wrong is no such case.
        done = run(command, place, anew=True)
        assert done is not None
    texts = (command.text, with_what_stands_for(command.text))
    expected = next((codes for pattern, codes in ENDS_WITH if any(re.search(pattern, each) for each in texts)), {0})
    assert done.code in expected, f"{command}\nexit {done.code}:\n" + "\n".join((*done.out[-10:], *done.error[-20:]))
    assert not any("Traceback" in line for line in done.error)
    if command.output and not agree(command.output, done.out) and not agree(command.output, done.out, done.error):
        documented = shape(command.output)
        nearer = max(
            (done.out, done.error, done.out + done.error), key=lambda printed: likeness(documented, shape(printed))
        )
        differences = difflib.unified_diff(documented, shape(nearer), "documented", "printed", lineterm="", n=1)
        pytest.fail(f"{command} ({done.seconds:.0f} s)\n" + "\n".join(differences), pytrace=False)


def likeness(documented: list[str], printed: list[str]) -> float:
    return difflib.SequenceMatcher(None, documented, printed, autojunk=False).ratio()


def test_nothing_is_listed_that_no_document_says() -> None:
    """A table that keeps what is gone hides what is new."""
    texts = [with_what_stands_for(each.text) for each in FOUND]
    gone = [each for each in INSTEAD if each not in texts]
    gone += [what for what, _ in FEWER if not any(re.search(what, text) for text in texts)]
    gone += [pattern for pattern, _ in ENDS_WITH if not any(re.search(pattern, text) for text in texts)]
    assert not gone


def test_how_many_commands_are_found_and_how_many_are_not_run() -> None:
    """The parser cannot go blind without this failing: each document that tells people to type something has commands."""
    by_document = Counter(each.document for each in FOUND)
    without = {str(path.relative_to(ROOT)) for path in documents()} - set(by_document)
    assert without == WITHOUT_COMMANDS
    not_run = sorted({each.text for each in FOUND if each.text in INSTEAD and INSTEAD[each.text][0] is None})
    assert not_run == ["pipx install ."]


WITHOUT_COMMANDS = {"docs/architecture.md", "docs/pricing-and-choice.md", "docs/receivers.md"}


@pytest.mark.parametrize("path", [each for each in documents() if [*python_blocks(each)]], ids=lambda path: path.name)
def test_what_is_shown_in_python_runs(path: Path, place: Checkout) -> None:
    for block in python_blocks(path):
        (place.folder / "shown.py").write_text(block)
        done = place.run(".venv/bin/python shown.py")
        assert done.code == 0, "\n".join(done.error)
        assert done.out
