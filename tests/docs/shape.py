"""The shape of an output: its rows and words, without what differs from run to run. Pure.

Figures, durations, sizes, ids, dates, ports and the lengths of bars and columns become signs. What a documented line
`...` stands for may be anything, nothing included.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import product

ELLIPSIS = "..."
# A line of text that is longer, and no whole sentence, goes on in the next one; where it breaks depends on its figures.
_WRAPS_FROM = 175

_PROGRESS = re.compile(r"^\w.*[\w)] \.\.\.$")  # shown while something takes longer than a second

_SIGNS: tuple[tuple[str, str], ...] = (
    (r"\x1b\[[\d;]*m", ""),
    (r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", "<id>"),
    (r"\b\d-[0-9a-f]{8}-[0-9a-f]{24}\b", "<id>"),  # a trace
    (r"\b\d{8}T\d{6}[\w-]*", "<id>"),
    (r"\b\d{4}[-/]\d\d[-/]\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:[.,]\d+)?)?(?:Z|[+-]\d\d:?\d\d)?)?", "<date>"),
    (r"\b\d\d:\d\d:\d\d(?:\.\d+)?\b", "<time>"),
    (r"\b[A-Za-z0-9+/]{43}=", "<hash>"),
    (r"(?<![\w.])(?=[0-9a-f]*\d)(?=[0-9a-f]*[a-f])[0-9a-f]{7,64}\b", "<id>"),
    (r"(?:/[\w.-]+)*/(?:runs\.sqlite3|lambda-harness)\b(?!/)", "<path>"),
    (r"data: \S+;", "data: <path>;"),
    (r"(?<=127\.0\.0\.1:)\d+", "<port>"),
    (r" \(sampled\)", ""),
    (r"[▁-█▉▊▋▌▍▎▏]+", "█"),
    (r"[─━═]{2,}", "─"),
    (r"(?<![\w.])[-+−]?\d+(?:,\d{3})*(?:\.\d+)?(?:e[-+]?\d+)?", "#"),  # noqa: RUF001
    (r"< #", "#"),
    (r"# ?(?:ms|µs|s|min|h)\b", "<duration>"),
    (r"# ?(?:bytes|B|KB|MB|GB)\b", "<size>"),
    (r"^[▸>*] ?", ""),  # who wins is a figure, too
    (r"(?<=\s)[-–](?=\s|$)", "#"),  # noqa: RUF001
)
# Sentences that turn on figures which are close to each other.
_TURNS = (
    (re.compile(r"^Against .*it (?:saves|costs) .*|^.* is what is configured today\.$"), "<against today's size>"),
    (re.compile(r"(?<=per million invocations)[.;].*"), ""),
    (re.compile(r'(?<="gcKinds": )\{[^}]*\}'), "<kinds of collections>"),
    (re.compile(r"^[^│]*│[ .●X*+o#-]*$"), "<a row of a chart>"),
    (re.compile(r"^\s*# [C▓▒░█X! ]+\s*$|^\s*#? ?[C▓▒░█X!]+[C▓▒░█X! ]*$"), "<a row of a chart>"),
)


def shape(lines: Sequence[str]) -> list[str]:
    """The lines that count, each in its shape.

    Notes, warnings and progress, which tell of this host's state and speed, are left out.
    """
    found: list[str] = []
    within = False  # a sentence that goes on in the next line
    skipping = False
    for line in lines:
        text = line.rstrip()
        if not text.strip():
            within = skipping = False
            continue
        if _PROGRESS.search(text):
            continue
        if text.startswith(("note: ", "warning: ")):
            within, skipping = False, len(text) > _WRAPS_FROM
            continue
        if skipping:
            skipping = len(text) > _WRAPS_FROM
            continue
        if within and not text.startswith(" "):
            found[-1] += " " + text
        else:
            found.append(text)
        within = len(text) > _WRAPS_FROM and not text.endswith(".") and not _is_one_line(text)
    return [_signs(each) for each in found]


def agree(documented: Sequence[str], *streams: Sequence[str]) -> bool:
    """Whether an output has the documented shape; of several streams each keeps its order, between them there is none."""
    return _glob(shape(documented), [shape(each) for each in streams])


def _is_one_line(text: str) -> bool:
    return text.startswith(("{", "[", "REPORT ", " ", "─"))


def _signs(text: str) -> str:
    text = re.sub(r"\s+", " ", text).strip()
    if text == ELLIPSIS:
        return text
    for pattern, sign in _SIGNS:
        text = re.sub(pattern, sign, text)
    text = re.sub(r"\s+", " ", text).strip()
    for turn, sign in _TURNS:
        text = turn.sub(sign, text)
    return text.strip()


def _glob(pattern: Sequence[str], streams: Sequence[Sequence[str]]) -> bool:
    """A line `...` of the pattern matches any number of lines, any other one the next line of some stream."""
    reached = {tuple(0 for _ in streams)}
    for each in pattern:
        if each == ELLIPSIS:
            ahead = [
                {
                    tuple(place)
                    for place in product(*(range(at, len(lines) + 1) for at, lines in zip(place, streams, strict=True)))
                }
                for place in reached
            ]
            reached = set().union(*ahead)
        else:
            reached = {
                (*place[:n], at + 1, *place[n + 1 :])
                for place in reached
                for n, at in enumerate(place)
                if at < len(streams[n]) and streams[n][at] == each
            }
    return tuple(len(lines) for lines in streams) in reached
