"""What must hold before a function is changed."""

from __future__ import annotations

from typing import Any

from harness.api import faults
from harness.api.model import PENDING, FunctionRecord


def refuse_while_busy(record: FunctionRecord) -> None:
    """Lambda takes one change at a time."""
    if record.latest.state == PENDING:
        raise faults.conflict(
            "The operation cannot be performed at this time. The function is currently in the following state: Pending"
        )
    if not record.latest.status.settled:
        raise faults.conflict(
            f"The operation cannot be performed at this time. An update is in progress for resource: {record.arn}"
        )


def refuse_stale(params: dict[str, Any], revision_id: str) -> None:
    if params.get("RevisionId") not in {None, revision_id}:
        raise faults.stale_revision()
