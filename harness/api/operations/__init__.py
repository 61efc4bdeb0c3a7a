"""What Lambda's control plane does: a handler an operation, from parameters to the answer as botocore names them.

Must not know HTTP or containers: parameters come judged by the model (`harness.api.protocol`), state is the registry's.
Invocations are no part of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from harness.api import faults
from harness.api.operations import (
    account,
    aliases,
    concurrency,
    event_invoke,
    function_urls,
    functions,
    layers,
    permissions,
    tags,
    versions,
)
from harness.api.registry import Registry

Handler = Callable[[dict[str, Any], Registry], dict[str, Any]]

OPERATIONS: Mapping[str, Handler] = MappingProxyType(
    {
        "AddPermission": permissions.add_permission,
        "CreateAlias": aliases.create_alias,
        "CreateFunction": functions.create_function,
        "CreateFunctionUrlConfig": function_urls.create_function_url_config,
        "DeleteAlias": aliases.delete_alias,
        "DeleteFunction": functions.delete_function,
        "DeleteFunctionConcurrency": concurrency.delete_function_concurrency,
        "DeleteFunctionEventInvokeConfig": event_invoke.delete_function_event_invoke_config,
        "DeleteFunctionUrlConfig": function_urls.delete_function_url_config,
        "DeleteLayerVersion": layers.delete_layer_version,
        "DeleteProvisionedConcurrencyConfig": concurrency.delete_provisioned_concurrency_config,
        "GetAccountSettings": account.get_account_settings,
        "GetAlias": aliases.get_alias,
        "GetFunction": functions.get_function,
        "GetFunctionCodeSigningConfig": functions.get_function_code_signing_config,
        "GetFunctionConcurrency": concurrency.get_function_concurrency,
        "GetFunctionConfiguration": functions.get_function_configuration,
        "GetFunctionEventInvokeConfig": event_invoke.get_function_event_invoke_config,
        "GetFunctionUrlConfig": function_urls.get_function_url_config,
        "GetLayerVersion": layers.get_layer_version,
        "GetLayerVersionByArn": layers.get_layer_version_by_arn,
        "GetPolicy": permissions.get_policy,
        "GetProvisionedConcurrencyConfig": concurrency.get_provisioned_concurrency_config,
        "ListAliases": aliases.list_aliases,
        "ListFunctionEventInvokeConfigs": event_invoke.list_function_event_invoke_configs,
        "ListFunctionUrlConfigs": function_urls.list_function_url_configs,
        "ListFunctions": functions.list_functions,
        "ListLayerVersions": layers.list_layer_versions,
        "ListLayers": layers.list_layers,
        "ListProvisionedConcurrencyConfigs": concurrency.list_provisioned_concurrency_configs,
        "ListTags": tags.list_tags,
        "ListVersionsByFunction": versions.list_versions_by_function,
        "PublishLayerVersion": layers.publish_layer_version,
        "PublishVersion": versions.publish_version,
        "PutFunctionConcurrency": concurrency.put_function_concurrency,
        "PutFunctionEventInvokeConfig": event_invoke.put_function_event_invoke_config,
        "PutProvisionedConcurrencyConfig": concurrency.put_provisioned_concurrency_config,
        "RemovePermission": permissions.remove_permission,
        "TagResource": tags.tag_resource,
        "UntagResource": tags.untag_resource,
        "UpdateAlias": aliases.update_alias,
        "UpdateFunctionCode": functions.update_function_code,
        "UpdateFunctionConfiguration": functions.update_function_configuration,
        "UpdateFunctionEventInvokeConfig": event_invoke.update_function_event_invoke_config,
        "UpdateFunctionUrlConfig": function_urls.update_function_url_config,
    }
)


def perform(operation: str, params: dict[str, Any], registry: Registry) -> dict[str, Any]:
    """The answer to an operation; parameters as `harness.api.protocol.parse` gives them.

    Raises:
        Fault: Lambda would refuse it, or it is an operation of Lambda's that this service does not have; that is
            answered as a path that Lambda does not have.
    """
    handler = OPERATIONS.get(operation)
    if handler is None:
        raise faults.unknown_operation()
    return handler(params, registry)
