"""The commands that stand in the documentation, and what it says they print. Runs nothing.

A command is a line of a code block that begins with a program of `PROGRAMS`, or with ``$``; in a block with a ``$`` only
those lines are commands. What follows up to the next one is its output. In running text, a command is inline code that
begins with `INLINE`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
PROGRAMS = ("lambda-harness ", "make ", ".venv/bin/", "aws ", "curl ", "pipx ", "export ", "cd ", "scripts/")
INLINE = ("lambda-harness ", "make ", ".venv/bin/", "aws ", "curl ", "pipx ")
_ASSIGNMENT = re.compile(r"[A-Z_]+=\S* +(?=(?:lambda-harness|make|\.venv/bin/|aws|curl)\b)")


@dataclass(frozen=True, kw_only=True)
class Command:
    document: str
    line: int
    text: str
    output: tuple[str, ...]  # what the document shows of it; empty where it shows nothing

    def __str__(self) -> str:
        return f"{self.document}:{self.line} {self.text}"


def documents() -> list[Path]:
    """Everything that tells people what to type."""
    samples = (ROOT / "sample_functions").glob("*/README.md")
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted(samples)]


def commands(path: Path) -> Iterator[Command]:
    """The commands of a document, in its order."""
    document = str(path.relative_to(ROOT))
    for token in MarkdownIt("commonmark").enable("table").parse(path.read_text()):
        first = (token.map or (0, 0))[0] + 1
        if token.type in {"fence", "code_block"} and token.info in {"", "text", "sh", "console"}:
            yield from _of_block(document, first + (token.type == "fence"), token.content.splitlines())
        for child in token.children or ():
            if child.type == "code_inline" and child.content.startswith(INLINE):
                yield Command(document=document, line=first, text=_bare(child.content), output=())


def python_blocks(path: Path) -> Iterator[str]:
    """Blocks that are marked as Python, or that begin as a Python module does."""
    for token in MarkdownIt("commonmark").parse(path.read_text()):
        if token.type in {"fence", "code_block"} and (
            token.info == "python" or token.content.startswith(("from ", "import "))
        ):
            yield token.content


def _of_block(document: str, first: int, lines: list[str]) -> Iterator[Command]:
    prompted = any(line.startswith("$ ") for line in lines)
    begun: tuple[int, str] | None = None
    output: list[str] = []
    for number, line in enumerate(lines, first):
        if begun and begun[1].endswith("\\"):
            begun = (begun[0], begun[1][:-1].rstrip() + " " + line.strip())
            continue
        if line.startswith("$ ") if prompted else _begins_a_command(line):
            if begun:
                yield Command(document=document, line=begun[0], text=_bare(begun[1]), output=_trimmed(output))
            begun, output = (number, line.removeprefix("$ ")), []
        else:
            output.append(line)
    if begun:
        yield Command(document=document, line=begun[0], text=_bare(begun[1]), output=_trimmed(output))


def _begins_a_command(line: str) -> bool:
    return line.startswith(PROGRAMS) or bool(_ASSIGNMENT.match(line))


def _bare(command: str) -> str:
    """Without the remark behind it."""
    return re.sub(r"\s+#\s.*$", "", command).strip()


def _trimmed(output: list[str]) -> tuple[str, ...]:
    return tuple(line for line in output if line.strip())
