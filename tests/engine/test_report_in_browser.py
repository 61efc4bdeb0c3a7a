"""The HTML report in a real browser: no request leaves, no error is logged, and what the script adds is there.

Each test starts a headless Chromium with a profile of its own. Chromium's net log holds every request that a page makes,
also those that fail; its console goes to stderr. Two tests show that this watch would see a request and an error.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from test_reports_document import hostile_document, invoke_document, sweep_document
from test_reports_labs_document import (
    hostile_documents,
    killed_leak_document,
    leak_document,
    load_document,
    oom_document,
    warm_document,
)

from harness.reports import export

if TYPE_CHECKING:
    from collections.abc import Callable

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; Debian's package is called chromium")

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-sync",
    "--no-first-run",
    "--enable-logging=stderr",
    "--v=0",
    "--virtual-time-budget=5000",
)


@dataclass(frozen=True, kw_only=True)
class Visit:
    """What a visit to a page left: the DOM afterwards, the page's requests, and the lines of its console."""

    dom: str
    requests: list[str]
    console: list[str]


def visit(page: Path, folder: Path, *flags: str) -> Visit:
    net_log = folder / "net.json"
    done = subprocess.run(
        [
            str(CHROMIUM),
            *FLAGS,
            f"--user-data-dir={folder / 'profile'}",
            f"--log-net-log={net_log}",
            # Nothing shall really go out, whatever the page tries: names do not resolve, and the log still has the try.
            "--host-resolver-rules=MAP * ~NOTFOUND",
            *flags,
            "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return Visit(
        dom=done.stdout,
        requests=page_requests(json.loads(net_log.read_text())),
        console=[line for line in done.stderr.splitlines() if "CONSOLE" in line],
    )


def page_requests(log: dict[str, Any]) -> list[str]:
    """The addresses that the page asked for. Chromium's own requests have no initiator that is an origin."""
    found = []
    for event in log["events"]:
        params = event.get("params") or {}
        address = str(params.get("url", ""))
        if (
            "initiator" in params
            and params["initiator"] != "not an origin"
            and not address.startswith(("file:", "data:"))
        ):
            found.append(address)
    return found


def many_records() -> dict[str, Any]:
    document = sweep_document()
    document["invocations"] = [dict(one, log_tail="x" * 4000) for one in document["invocations"] * 4]
    return document


DOCUMENTS: dict[str, Callable[[], dict[str, Any]]] = {
    "sweep": sweep_document,
    "invoke": invoke_document,
    "hostile": hostile_document,
    "many": many_records,
    "leak": leak_document,
    "killed-leak": killed_leak_document,
    "oom": oom_document,
    "load": load_document,
    "large-load": lambda: load_document(sandboxes=50, each=100),
    "warm": warm_document,
    **{f"hostile-{at}": lambda at=at: hostile_documents()[at] for at in range(4)},  # type: ignore[misc]
}


@pytest.fixture(scope="module", params=list(DOCUMENTS))
def report(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    return export.write(DOCUMENTS[request.param](), folder / f"{request.param}.html")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_report_asks_for_nothing_and_logs_nothing(report: Path, tmp_path: Path, scheme: str) -> None:
    seen = visit(report, tmp_path, f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}")
    assert seen.requests == []
    assert seen.console == []


def test_the_script_ran_under_the_pages_own_policy(report: Path, tmp_path: Path) -> None:
    dom = visit(report, tmp_path).dom
    assert '<button type="button" id="theme">Theme: <span>auto</span></button>' in dom
    shown = dom.count('<figure class="timeline">')
    assert shown == (1 if 'href="#timeline"' in dom else 0), "the others wait to be chosen"


def test_a_picture_of_the_report_can_be_taken_in_both_themes(tmp_path: Path) -> None:
    page = export.write(sweep_document(), tmp_path / "a.html")
    pictures = []
    for scheme in (0, 1):
        picture = tmp_path / f"{scheme}.png"
        flags = (
            "--window-size=1200,1600",
            f"--screenshot={picture}",
            f"--blink-settings=preferredColorScheme={scheme}",
        )
        subprocess.run(
            [str(CHROMIUM), *FLAGS, f"--user-data-dir={tmp_path / f'profile{scheme}'}", *flags, page.as_uri()],
            capture_output=True,
            timeout=120,
            check=True,
        )
        pictures.append(picture.read_bytes())
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)
    assert pictures[0] != pictures[1]


def test_the_watch_sees_a_request_even_if_it_fails(tmp_path: Path) -> None:
    page = tmp_path / "a.html"
    page.write_text('<!doctype html><title>x</title><img src="http://nowhere.invalid/x.png" alt="">')
    assert "http://nowhere.invalid/x.png" in visit(page, tmp_path).requests


def test_the_watch_sees_an_error_in_the_console(tmp_path: Path) -> None:
    page = tmp_path / "a.html"
    page.write_text("<!doctype html><title>x</title><script>missing();</script>")
    assert any("missing is not defined" in line for line in visit(page, tmp_path).console)
