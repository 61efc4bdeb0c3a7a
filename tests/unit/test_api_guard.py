"""Who may talk to the service, and how much."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from starlette.requests import ClientDisconnect

from harness.api.guard import MAX_DISCARDED_BYTES, BodyTooLarge, Guard, host_name, read_body, url_id

ID = "a" * 32
EVERYWHERE = "0.0.0.0"  # noqa: S104  # a setting that is judged, nothing is bound
URL_HOST = f"{ID}.lambda-url.us-east-1.localhost:4577"


def scope(
    host: str | None = "127.0.0.1:4577", *, path: str = "/", method: str = "POST", **headers: str
) -> dict[str, Any]:
    found = [] if host is None else [(b"host", host.encode())]
    found += [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "scheme": "http", "method": method, "path": path, "headers": found}


def status_of(asked: dict[str, Any], *, host: str = "127.0.0.1") -> int:
    """The status that the guard, or an app behind it that says 200 to everything, answers with."""
    sent: list[dict[str, Any]] = []

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b""}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(Guard(app, host=host)(asked, receive, send))
    return int(sent[0]["status"])


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:4577", "localhost:1", "LocalHost", "[::1]:4577", "a.localhost:9"]
)
def test_a_request_to_our_own_address_passes(host: str) -> None:
    assert status_of(scope(host)) == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:4577", "127.0.0.1.evil.example", "localhost.evil.example", "evillocalhost", "192.168.1.2",
     "127.0.0.1@evil.example", "127.0.0.1:4577:1", "[::1", "", " ", "127.0.0.1:x", "[evil]:1"],
)  # fmt: skip
def test_a_name_that_dns_may_have_pointed_here_is_refused(host: str) -> None:
    assert status_of(scope(host)) == 403


def test_a_request_without_a_host_or_with_two_is_refused() -> None:
    assert status_of(scope(None)) == 403
    twice = scope()
    twice["headers"].append((b"host", b"127.0.0.1"))
    assert status_of(twice) == 403


def test_the_address_that_the_user_chose_may_be_named() -> None:
    assert status_of(scope("192.168.1.2:4577"), host="192.168.1.2") == 200
    assert status_of(scope("192.168.1.3:4577"), host="192.168.1.2") == 403
    assert status_of(scope("workshop.example:4577"), host="workshop.example") == 200


def test_on_all_addresses_any_address_may_be_named_but_no_foreign_name() -> None:
    assert status_of(scope("192.168.1.2:4577"), host=EVERYWHERE) == 200
    assert status_of(scope("[fe80::1]:4577"), host="::") == 200
    assert status_of(scope("evil.example"), host=EVERYWHERE) == 403


def test_a_page_of_another_origin_is_refused_and_our_own_is_not() -> None:
    assert status_of(scope(origin="http://127.0.0.1:4577")) == 200
    for origin in (
        "http://evil.example",
        "http://localhost:4577",
        "http://127.0.0.1:3000",
        "https://127.0.0.1:4577",
        "null",
    ):
        assert status_of(scope(origin=origin)) == 403, origin


def test_a_request_that_a_foreign_page_makes_without_saying_its_origin_is_refused() -> None:
    for site in ("cross-site", "same-site"):
        assert status_of(scope(method="GET", sec_fetch_site=site, sec_fetch_mode="no-cors")) == 403
        assert status_of(scope(method="POST", sec_fetch_site=site, sec_fetch_mode="navigate")) == 403
        assert status_of(scope(method="GET", sec_fetch_site=site, sec_fetch_mode="navigate")) == 200, "a link"
    assert status_of(scope(method="GET", sec_fetch_site="same-origin", sec_fetch_mode="cors")) == 200
    assert status_of(scope(method="GET", sec_fetch_site="none", sec_fetch_mode="navigate")) == 200


def test_function_urls_are_there_for_pages_of_other_origins() -> None:
    assert status_of(scope(URL_HOST, origin="http://shop.example")) == 200
    assert status_of(scope(path=f"/_harness/url/{ID}/x", origin="http://shop.example")) == 200
    assert status_of(scope("evil.example", path=f"/_harness/url/{ID}/x")) == 403


def test_a_refusal_says_why_and_is_told() -> None:
    told: list[str] = []
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(Guard(None, host="127.0.0.1", refused=told.append)(scope("evil.example"), None, send))  # type: ignore[arg-type]
    assert "another host" in json.loads(sent[1]["body"])["message"]
    assert told == ["the Host header names another host"]


def test_a_function_url_is_known_by_its_host_or_its_path() -> None:
    assert url_id(scope(URL_HOST)) == ID
    assert url_id(scope(path=f"/_harness/url/{ID}/a/b")) == ID
    assert url_id(scope(f"{'a' * 31}.lambda-url.us-east-1.localhost")) is None
    assert url_id(scope(f"{ID}.lambda-url.us-east-1.localhost.evil.example")) is None
    assert url_id(scope(path="/_harness/urls")) is None


def test_a_host_header_is_read_with_its_port() -> None:
    assert host_name("[::1]:80") == "::1"
    assert host_name("LOCALHOST.:80") == "localhost"
    assert host_name("a b") is None


class Sender:
    """A client that sends a body in pieces."""

    def __init__(self, *pieces: bytes, ends: bool = True) -> None:
        self._pieces = list(pieces)
        self._ends = ends
        self.asked = 0

    async def __call__(self) -> dict[str, Any]:
        self.asked += 1
        if not self._pieces and not self._ends:
            return {"type": "http.disconnect"}
        piece = self._pieces.pop(0) if self._pieces else b""
        return {"type": "http.request", "body": piece, "more_body": bool(self._pieces) or not self._ends}


def read(sender: Sender, *, limit: int, announced: int | None = None) -> bytes:
    asked = scope() if announced is None else scope(content_length=str(announced))
    return asyncio.run(read_body(asked, sender, limit_bytes=limit))


def test_a_body_up_to_the_limit_is_read_whole() -> None:
    assert read(Sender(b"ab", b"", b"cd"), limit=4) == b"abcd"
    assert read(Sender(), limit=0) == b""


def test_a_body_beyond_the_limit_is_refused_once_it_is_drained() -> None:
    for announced in (5, None):
        sender = Sender(b"abc", b"de")
        with pytest.raises(BodyTooLarge) as refused:
            read(sender, limit=4, announced=announced)
        assert refused.value.limit_bytes == 4
        assert refused.value.drained
        assert sender.asked == 2


def test_a_body_that_announces_more_than_anybody_needs_is_not_read_at_all() -> None:
    sender = Sender(b"x")
    with pytest.raises(BodyTooLarge) as refused:
        read(sender, limit=4, announced=MAX_DISCARDED_BYTES + 1)
    assert not refused.value.drained
    assert sender.asked == 0


def test_a_body_without_end_is_not_drained_for_ever() -> None:
    piece = bytes(1024 * 1024)
    sender = Sender(*[piece] * 200)
    with pytest.raises(BodyTooLarge) as refused:
        read(sender, limit=4)
    assert not refused.value.drained
    assert sender.asked == MAX_DISCARDED_BYTES // len(piece) + 1


def test_a_client_that_goes_away_in_the_middle_of_a_body_ends_its_request() -> None:
    with pytest.raises(ClientDisconnect):
        read(Sender(b"a", ends=False), limit=10)
