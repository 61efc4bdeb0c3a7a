"""Events: JSON text, a file, standard input; anything else is refused with the culprit named."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import event
from harness.errors import InvalidEvent

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@given(JSON)
def test_json_text_is_taken_as_it_is(value: object) -> None:
    text = json.dumps(value)
    assert event.parse(text) == text.encode()
    assert event.parse(f"  {text}\n") == text.encode()


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "event.json"
    path.write_text('{"grüße": 1}\n')
    assert event.parse(str(path)) == '{"grüße": 1}\n'.encode()


def test_a_dash_is_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(b"[1]"))
    monkeypatch.setattr(sys, "stdin", stdin)
    assert event.parse("-") == b"[1]"


@pytest.mark.parametrize(
    "given_text", ["{not json", "[1,", '"open', "", "   ", "[NaN]", '{"a": Infinity}', "[" * 100_000]
)
def test_text_that_is_meant_as_json_and_is_none_is_called_so(given_text: str) -> None:
    with pytest.raises(InvalidEvent, match="not valid JSON") as found:
        event.parse(given_text)
    assert "standard input" in found.value.remedy
    assert len(str(found.value)) < 400


@pytest.mark.parametrize("name", ["/nowhere/event.json", "no-such-file", "x" * 5000])
def test_a_file_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(InvalidEvent, match=name[:40]):
        event.parse(name)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe{\x00}\x00", b"NaN", b"[" * 100_000])
def test_a_file_without_json_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "event.json"
    path.write_bytes(content)
    with pytest.raises(InvalidEvent, match=r"event\.json does not hold valid JSON"):
        event.parse(str(path))


def test_a_directory_is_no_event(tmp_path: Path) -> None:
    with pytest.raises(InvalidEvent, match="cannot be read"):
        event.parse(str(tmp_path))


def test_an_event_above_6_mib_is_refused_before_the_rie_would_cut_it() -> None:
    largest = b'"' + b"x" * (event.REQUEST_LIMIT_BYTES - 2) + b'"'
    assert event.parse(largest.decode()) == largest
    with pytest.raises(InvalidEvent, match="6291457 bytes") as found:
        event.parse(largest.decode()[:-1] + 'x"')
    assert "storage" in found.value.remedy
