"""Podman's own API, for what its Docker-compatible one does not do. Must not know sandboxes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import docker
import docker.errors
import requests
import requests.exceptions

_LIBPOD = "/v4.0.0/libpod"
"""The oldest version that Podman 4 and 5 speak."""
_OCI_RESOURCES = {
    "cpu_quota": ("cpu", "quota"),
    "cpu_period": ("cpu", "period"),
    "mem_limit": ("memory", "limit"),
    "memswap_limit": ("memory", "swap"),
}
"""Limits by the names of Docker's SDK -> where they stand in a LinuxResources of the OCI runtime specification."""
_NO_QUOTA_CPUS = 1024
"""A quota of so many CPUs limits nobody."""


def create(api: docker.APIClient, spec: Mapping[str, Any]) -> str:
    """The id of a container made of a SpecGenerator [docs.podman.io, ContainerCreateLibpod]; `docker.errors.APIError`."""
    return str(_post(api, "containers/create", spec).json()["Id"])


def controllers(api: docker.APIClient) -> frozenset[str]:
    """The cgroup controllers that its containers get: a rootless one's are what systemd hands to its user."""
    answer = api.get(f"{api.base_url}{_LIBPOD}/info", timeout=api.timeout)
    return frozenset(_successful(answer).json()["host"]["cgroupControllers"])


def update(api: docker.APIClient, container_id: str, limits: Mapping[str, int]) -> None:
    """Change limits of a container; `docker.errors.APIError`. The compatible API cannot (4.3); this one can since then.

    A ``cpu_quota`` of -1 lifts the quota, and needs its ``cpu_period`` beside it: it is sent as one that limits nobody. Of -1
    crun (1.21) makes the smallest quota that there is, 5 % of a CPU, where systemd manages the cgroups.
    """
    if limits.get("cpu_quota", 0) < 0:
        limits = {**limits, "cpu_quota": _NO_QUOTA_CPUS * limits["cpu_period"]}
    resources: dict[str, dict[str, int]] = {}
    for name, value in limits.items():
        group, key = _OCI_RESOURCES[name]
        resources.setdefault(group, {})[key] = value
    _post(api, f"containers/{container_id}/update", resources)


def _post(api: docker.APIClient, path: str, body: Mapping[str, Any]) -> requests.Response:
    return _successful(api.post(f"{api.base_url}{_LIBPOD}/{path}", json=body, timeout=api.timeout))


def _successful(answer: requests.Response) -> requests.Response:
    try:
        answer.raise_for_status()
    except requests.exceptions.HTTPError as error:
        docker.errors.create_api_error_from_http_exception(error)
    return answer
