"""``--receivers``: what is opened, and what is said where nothing can be."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from fakes import function

from harness.cli import receiving
from harness.errors import NotMeasurable, UsageError


@pytest.mark.parametrize(
    ("asked", "listed", "found"),
    [
        (None, (), ()),
        (None, ("xray",), ("xray",)),
        ("none", ("xray",), ()),
        ("cloudwatch, xray,xray", (), ("cloudwatch", "xray")),
    ],
)
def test_the_option_goes_before_the_file(asked: str | None, listed: tuple[str, ...], found: tuple[str, ...]) -> None:
    assert receiving.kinds(asked, function(receivers=listed)) == found


@pytest.mark.parametrize("asked", ["cloudtrail", "xray,", ""])
def test_what_is_no_receiver_is_named(asked: str) -> None:
    with pytest.raises(UsageError, match="no receiver"):
        receiving.kinds(asked, function())


def stand(vantage: str) -> Any:
    return SimpleNamespace(vantage=SimpleNamespace(name=vantage, relays=vantage != "api"))


def test_where_there_is_no_way_into_the_containers_networks_it_is_an_error_only_for_who_asked(
    capsys: pytest.CaptureFixture[str],
) -> None:
    receivers = cast("Any", object())
    receiving.check(receivers, None, stand("host"))
    receiving.check(receivers, "xray", stand("agent"))
    receiving.check(None, "none", stand("api"))
    assert capsys.readouterr().err == ""
    receiving.check(receivers, None, stand("api"))
    assert "nothing is received" in capsys.readouterr().err
    with pytest.raises(NotMeasurable, match="vantage api"):
        receiving.check(receivers, "xray", stand("api"))


def test_findings_hold_what_was_asked_for_even_where_nothing_came() -> None:
    receivers = SimpleNamespace(kinds=("xray",), xray=[], cloudwatch=[])
    assert receiving.findings(None) == {}
    assert receiving.findings(cast("Any", receivers)) == {"xray": []}
