"""What doctor advises: which vantage, why not a better one, and what would make it better, in the right order."""

from __future__ import annotations

from typing import Any

import pytest

from harness.checkup import Check, Situation, standing

NOT_ROOT = "this process is not root, so it may not write the containers' cgroups"
ROOTLESS = "the engine is rootless: its network and its users are in namespaces of their own"
ELSEWHERE = "the engine runs on another kernel (6.12.0-cloud) than this process"
NO_IMAGE = "vantage agent is not possible: the engine has no image with Python 3.11 or newer to start the agent in"
ALL = {"memory": True, "swap": True, "CPU time": True, "CPUs": True}


def checks(**changes: Any) -> dict[str, Check]:
    settings: dict[str, Any] = {"vantage": "api", "why_not_host": NOT_ROOT, "here": True, "can_limit": ALL}
    return {each.what: each for each in standing(Situation(**(settings | changes)))}


def in_order(text: str, *needles: str) -> bool:
    places = [text.find(needle) for needle in needles]
    return -1 not in places and places == sorted(places)


def test_with_the_best_vantage_there_is_nothing_to_do() -> None:
    found = checks(vantage="host", why_not_host=None)
    assert list(found) == ["vantage"]
    assert found["vantage"].mark == "ok  "
    assert found["vantage"].remedy == ""


def test_the_agent_is_as_good_and_says_why_it_is_not_host() -> None:
    found = checks(vantage="agent")["vantage"]
    assert found.mark == "ok  "
    assert NOT_ROOT in found.found


def test_a_member_of_the_docker_group_is_told_of_the_agent_first_and_of_root_next() -> None:
    found = checks(why_not_agent=NO_IMAGE)["vantage"]
    assert found.mark == "less"
    assert in_order(found.found, NOT_ROOT, NO_IMAGE, "is read")
    assert in_order(found.remedy, "vantage agent", "images build python3.13", "sudo -E")


def test_an_engine_in_a_virtual_machine_wants_the_agent() -> None:
    found = checks(why_not_host=ELSEWHERE, why_not_agent=NO_IMAGE, here=False)["vantage"]
    assert ELSEWHERE in found.found
    assert "is read" not in found.found, "nothing of it can be read from here"
    assert in_order(found.remedy, "vantage agent", "images build python3.13", "inside of the virtual machine")
    assert "sudo" not in found.remedy, "root of this machine would not help"


def test_an_engine_far_away_wants_the_agent() -> None:
    found = checks(why_not_host=ELSEWHERE, here=False, remote=True)["vantage"]
    assert in_order(found.remedy, "vantage agent", "on the other machine")


def rootless(**changes: Any) -> dict[str, Check]:
    everything = frozenset({"cpu", "cpuset", "io", "memory", "pids"})
    settings = {"why_not_host": ROOTLESS, "rootless": True, "uid": 1000, "delegated": everything}
    return checks(**(settings | changes))


def test_a_rootless_engine_with_every_controller_is_ready() -> None:
    found = rootless()
    assert found["delegation"].mark == "ok  "
    assert in_order(found["vantage"].remedy, "vantage agent", "a rootful engine")


def test_a_rootless_engine_names_the_controllers_it_lacks_and_how_they_are_delegated() -> None:
    found = rootless(delegated=frozenset({"memory", "pids"}))
    assert found["delegation"].fatal
    assert "cpu, cpuset to user 1000" in found["delegation"].found
    assert in_order(
        found["delegation"].remedy,
        "/etc/systemd/system/user@.service.d/delegate.conf",
        "[Service]",
        "Delegate=cpu cpuset io memory pids",
        "systemctl daemon-reload",
        "cat /sys/fs/cgroup/user.slice/user-1000.slice/user@1000.service/cgroup.controllers",
    )
    assert found["vantage"].remedy.startswith("what is missing below comes first")


def test_a_rootless_engine_that_lacks_the_cpuset_alone_is_less_and_no_more() -> None:
    found = rootless(delegated=frozenset({"cpu", "memory", "pids"}), vantage="api", why_not_agent="no image")
    assert found["delegation"].mark == "less"
    assert "functions see all CPUs" in found["delegation"].found
    assert "Delegate=cpu cpuset io memory pids" in found["delegation"].remedy
    assert found["vantage"].remedy.startswith("vantage agent"), "it is possible none the less"


def test_what_systemd_delegates_may_be_unknown() -> None:
    found = rootless(delegated=None)["delegation"]
    assert found.mark == "less"
    assert "cannot be read" in found.found
    assert "Delegate=" in found.remedy


def test_a_rootless_engine_on_cgroup_version_1_cannot_run_anything() -> None:
    found = rootless(cgroup_version=1, delegated=None, can_limit=dict.fromkeys(ALL, False))
    assert found["delegation"].fatal
    assert "systemd.unified_cgroup_hierarchy=1" in found["delegation"].remedy
    assert "limits" not in found, "one reason is enough"


def test_a_rootless_engine_outside_of_systemd_cannot_either() -> None:
    found = rootless(cgroup_driver="none")["delegation"]
    assert found.fatal
    assert "systemctl --user" in found.remedy


def test_what_a_rootless_engine_elsewhere_was_given_is_not_looked_up_here() -> None:
    assert "delegation" not in rootless(here=False)


@pytest.mark.parametrize(
    ("missing", "remedy"),
    [("memory", "cgroup_enable=memory"), ("CPU time", "docker info"), ("CPUs", "docker info")],
)
def test_an_engine_that_cannot_limit_is_no_good(missing: str, remedy: str) -> None:
    found = checks(can_limit=ALL | {missing: False})["limits"]
    assert found.fatal == (missing != "CPUs"), "CPU time in all is limited none the less"
    assert missing in found.found
    assert remedy in found.remedy


def test_swap_that_is_not_accounted_for_wants_a_kernel_parameter() -> None:
    without = ALL | {"swap": False}
    found = checks(can_limit=without)["swap"]
    assert found.mark == "less"
    assert in_order(found.remedy, "swapaccount=1", "swapoff")
    assert "swap" in checks(can_limit=without, swap_bytes=1 << 30)
    assert "swap" not in checks(can_limit=without, swap_bytes=0), "there is none"
    assert "swap" not in checks(can_limit={}), "the engine does not say"
