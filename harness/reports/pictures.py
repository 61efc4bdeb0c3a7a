"""Which chart stands for a document: the one that is exported as a picture. Must not draw or measure."""

from __future__ import annotations

from typing import Any

from harness.errors import InvalidInput
from harness.reports import charts, leak, load, oom


def main_chart(document: dict[str, Any], theme: charts.Theme = charts.LIGHT) -> charts.Spec:
    """The chart of a document's kind, titled; the timeline of its sandbox where there is nothing of that kind to draw.

    Raises `InvalidInput` for a document in which nothing can be drawn.
    """
    name = str((document.get("function") or {}).get("name") or "function")
    match document.get("kind"):
        case "leak" if leak.points(document):
            return leak.memory(document, theme, title=f"{name}: memory after each warm invocation")
        case "oom" if oom.timeline(document):
            return oom.curve(document, theme, title=f"{name}: {_lower(oom.heading(oom.kill(document)))}")
        case "oom" if oom.tries(document):
            return oom.search(document, theme, title=f"{name}: the memory sizes that were tried")
        case "load" if load.lanes(document):
            return load.sandboxes(document, theme, title=f"{name}: its sandboxes under load")
    if charts.tiers_of(document):
        return charts.duration_and_cost(document, theme, title=f"{name}: duration and cost by memory size")
    timelines = charts.sandboxes(document)
    if timelines:
        first = timelines[0]
        return charts.timeline(first, theme, title=f"{name}: one sandbox at {first[0]['memory_mb']} MB")
    raise InvalidInput(
        f"run {document.get('run_id') or '(not stored)'} has no invocation that could be drawn",
        remedy="export it as .json or .csv, or look at its outcomes with `lambda-harness runs show`",
    )


def _lower(text: str) -> str:
    return f"{text[:1].lower()}{text[1:]}"
