"""Function URLs: their configuration. Answering them is the app's."""

from __future__ import annotations

import secrets
import string
from dataclasses import replace
from typing import Any

from harness.api import faults
from harness.api.model import LATEST, FunctionRecord, UrlConfig
from harness.api.operations.paging import page
from harness.api.registry import Registry, fine_timestamp

Params = dict[str, Any]

_LETTERS = string.ascii_lowercase + string.digits
_ID_LETTERS = 32


def create_function_url_config(params: Params, registry: Registry) -> Params:
    record, qualifier = registry.find(params["FunctionName"], params.get("Qualifier"))
    key = qualifier or LATEST
    now = fine_timestamp()
    url = UrlConfig(
        url_id="".join(secrets.choice(_LETTERS) for _ in range(_ID_LETTERS)),
        function_name=record.name,
        qualifier=key,
        auth_type=params["AuthType"],
        invoke_mode=params.get("InvokeMode", "BUFFERED"),
        cors=params.get("Cors") or None,
        created_at=now,
        modified_at=now,
    )

    def alter(before: FunctionRecord) -> FunctionRecord:
        if key in before.urls:
            raise faults.conflict(
                f"Failed to create function url config for [functionArn = {before.qualified_arn(qualifier)}]. Error"
                " message:  FunctionUrlConfig exists for this Lambda function"
            )
        return replace(before, urls={**before.urls, key: url})

    shown = _shown(registry.change(record.name, alter), url, registry)
    del shown["LastModifiedTime"]
    return shown


def _found(params: Params, registry: Registry) -> tuple[FunctionRecord, UrlConfig]:
    try:
        record, qualifier = registry.find(params["FunctionName"], params.get("Qualifier"))
    except faults.Fault as fault:
        if fault.status == 404:
            raise faults.not_found() from None
        raise
    url = record.urls.get(qualifier or LATEST)
    if url is None:
        raise faults.not_found()
    return record, url


def get_function_url_config(params: Params, registry: Registry) -> Params:
    return _shown(*_found(params, registry), registry)


def update_function_url_config(params: Params, registry: Registry) -> Params:
    record, url = _found(params, registry)
    after = replace(
        url,
        auth_type=params.get("AuthType", url.auth_type),
        invoke_mode=params.get("InvokeMode", url.invoke_mode),
        cors=(params["Cors"] or None) if "Cors" in params else url.cors,
        modified_at=fine_timestamp(),
    )
    changed = registry.change(record.name, lambda before: replace(before, urls={**before.urls, url.qualifier: after}))
    return _shown(changed, after, registry)


def delete_function_url_config(params: Params, registry: Registry) -> Params:
    record, url = _found(params, registry)

    def alter(before: FunctionRecord) -> FunctionRecord:
        rest = {key: one for key, one in before.urls.items() if key != url.qualifier}
        return replace(before, urls=rest)

    registry.change(record.name, alter)
    return {}


def list_function_url_configs(params: Params, registry: Registry) -> Params:
    record = registry.function(registry.named(params["FunctionName"]).name)
    return page(
        record.urls.values(),
        params,
        key=lambda url: [url.qualifier],
        member="FunctionUrlConfigs",
        shown=lambda url: _shown(record, url, registry),
    )


def _shown(record: FunctionRecord, url: UrlConfig, registry: Registry) -> Params:
    return {
        "FunctionUrl": registry.url_address(url.url_id),
        "FunctionArn": record.qualified_arn(None if url.qualifier == LATEST else url.qualifier),
        "AuthType": url.auth_type,
        "Cors": url.cors,
        "CreationTime": url.created_at,
        "LastModifiedTime": url.modified_at,
        "InvokeMode": url.invoke_mode,
    }
