"""Resource policies: statements are kept and shown in AWS's JSON. Nothing enforces them."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

from harness.api import faults
from harness.api.model import LATEST, FunctionRecord, new_id
from harness.api.operations.preconditions import refuse_stale
from harness.api.registry import Registry

Params = dict[str, Any]

_MAX_POLICY_BYTES = 20_480
_ACCOUNT = re.compile(r"\d{12}")
_CONDITIONS = (
    ("SourceAccount", "StringEquals", "AWS:SourceAccount"),
    ("EventSourceToken", "StringEquals", "lambda:EventSourceToken"),
    ("FunctionUrlAuthType", "StringEquals", "lambda:FunctionUrlAuthType"),
    ("PrincipalOrgID", "StringEquals", "aws:PrincipalOrgID"),
    ("InvokedViaFunctionUrl", "Bool", "lambda:InvokedViaFunctionUrl"),
    ("SourceArn", "ArnLike", "AWS:SourceArn"),
)


def add_permission(params: Params, registry: Registry) -> Params:
    record, qualifier = registry.find(params["FunctionName"], params.get("Qualifier"))
    if qualifier == LATEST:
        raise faults.invalid("We currently do not support adding policies for $LATEST.")
    statement = _statement(params, record.qualified_arn(qualifier))
    key = qualifier or ""

    def alter(before: FunctionRecord) -> FunctionRecord:
        refuse_stale(params, _revision(before, key))
        there = before.policies.get(key, ())
        sid = params["StatementId"]
        if any(one["Sid"] == sid for one in there):
            raise faults.conflict(
                f"The statement id ({sid}) provided already exists. Please provide a new statement id, or remove the"
                " existing statement."
            )
        after = (*there, statement)
        if len(_policy(after).encode()) > _MAX_POLICY_BYTES:
            raise faults.Fault(
                "PolicyLengthExceededException",
                400,
                f"The final policy size is bigger than the limit ({_MAX_POLICY_BYTES}).",
            )
        return _revised(replace(before, policies={**before.policies, key: after}), key)

    registry.change(record.name, alter)
    return {"Statement": json.dumps(statement, separators=(",", ":"))}


def _statement(params: Params, resource: str) -> Params:
    found: Params = {
        "Sid": params["StatementId"],
        "Effect": "Allow",
        "Principal": _principal(params["Principal"]),
        "Action": params["Action"],
        "Resource": resource,
    }
    conditions: dict[str, dict[str, str]] = {}
    for member, operator, key in _CONDITIONS:
        value = params.get(member)
        if value is not None:
            conditions.setdefault(operator, {})[key] = str(value).lower() if isinstance(value, bool) else value
    return found | ({"Condition": conditions} if conditions else {})


def _principal(given: str) -> str | dict[str, str]:
    if given == "*":
        return given
    if _ACCOUNT.fullmatch(given):
        return {"AWS": f"arn:aws:iam::{given}:root"}
    if given.startswith("arn:"):
        return {"AWS": given}
    if "." not in given:
        raise faults.invalid("The provided principal was invalid. Please check the principal and try again.")
    return {"Service": given}


def _policy(statements: tuple[Any, ...]) -> str:
    return json.dumps({"Version": "2012-10-17", "Id": "default", "Statement": list(statements)}, separators=(",", ":"))


def _revision(record: FunctionRecord, key: str) -> str:
    if key in record.aliases:
        return record.aliases[key].revision_id
    return record.versions[key].revision_id if key else record.latest.revision_id


def _revised(record: FunctionRecord, key: str) -> FunctionRecord:
    """A policy belongs to what it is attached to, whose revision it moves."""
    if key in record.aliases:
        alias = replace(record.aliases[key], revision_id=new_id())
        return replace(record, aliases={**record.aliases, key: alias})
    if key:
        version = replace(record.versions[key], revision_id=new_id())
        return replace(record, versions={**record.versions, key: version})
    return replace(record, latest=replace(record.latest, revision_id=new_id()))


def _found(params: Params, registry: Registry) -> tuple[FunctionRecord, str]:
    record, qualifier = registry.find(params["FunctionName"], params.get("Qualifier"))
    return record, "" if qualifier in {None, LATEST} else str(qualifier)


def get_policy(params: Params, registry: Registry) -> Params:
    record, key = _found(params, registry)
    statements = record.policies.get(key)
    if not statements:
        raise faults.not_found()
    return {"Policy": _policy(statements), "RevisionId": _revision(record, key)}


def remove_permission(params: Params, registry: Registry) -> Params:
    record, key = _found(params, registry)

    def alter(before: FunctionRecord) -> FunctionRecord:
        statements = before.policies.get(key)
        if not statements:
            raise faults.not_found("No policy is associated with the given resource.")
        refuse_stale(params, _revision(before, key))
        rest = tuple(one for one in statements if one["Sid"] != params["StatementId"])
        if len(rest) == len(statements):
            raise faults.not_found(f"Statement {params['StatementId']} is not found in resource policy.")
        return _revised(replace(before, policies={**before.policies, key: rest}), key)

    registry.change(record.name, alter)
    return {}
