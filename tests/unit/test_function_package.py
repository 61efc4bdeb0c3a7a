"""How code and layers are laid out for a container, and that no archive gets out of its place."""

from __future__ import annotations

import dataclasses
import errno
import os
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.errors import EngineError, InvalidFunction
from harness.function import Code, DirectoryCode, Function, ImageCode, InlineCode, Package, ZipCode, archive


@pytest.fixture
def code(tmp_path: Path) -> Path:
    folder = tmp_path / "code"
    folder.mkdir()
    folder.chmod(0o755)
    (folder / "app.py").write_text("code")
    (folder / "app.py").chmod(0o644)
    return folder


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Path]:
    """The work directory; whatever was laid out must be gone when the test is over."""
    folder = tmp_path / "work"
    yield folder
    assert not folder.exists() or list(folder.iterdir()) == []


def a_function(code: Code, *layers: Path) -> Function:
    return Function(name="f", runtime="python3.13", handler="app.handler", code=code, layers=layers, source="f")


def a_zip(path: Path, entries: dict[str, str | bytes], modes: dict[str, int] | None = None) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for name, content in entries.items():
            info = zipfile.ZipInfo(name, (2026, 1, 2, 3, 4, 6))
            info.create_system = 3
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = (modes or {}).get(name, stat.S_IFREG | 0o644) << 16
            made.writestr(info, content)
    return path


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


LINK = stat.S_IFLNK | 0o777


def test_a_directory_that_everybody_may_enter_is_used_in_place(code: Path, work: Path) -> None:
    with Package(a_function(DirectoryCode(path=code)), work) as laid:
        assert laid.task_dir == code
        assert laid.layers_dir is None
        assert laid.warnings == ()
    assert (code / "app.py").read_text() == "code"


def test_a_private_top_directory_is_laid_out_for_the_sandbox_user_and_left_as_it_is(code: Path, work: Path) -> None:
    (code / "lib").mkdir()
    (code / "lib").chmod(0o555)
    (code / "lib" / "deep.py").write_text("deep")
    (code / "link").symlink_to("lib/deep.py")
    (code / "away").symlink_to("/var/task/app.py")
    code.chmod(0o700)
    with Package(a_function(DirectoryCode(path=code)), work) as laid:
        assert laid.task_dir is not None
        assert laid.task_dir != code
        assert mode(laid.task_dir) == 0o755
        assert mode(laid.task_dir / "lib") == 0o555
        assert (laid.task_dir / "app.py").read_text() == "code"
        assert (laid.task_dir / "link").readlink() == Path("lib/deep.py")
        assert (laid.task_dir / "away").readlink() == Path("/var/task/app.py")
        assert laid.warnings == ()
    assert mode(code) == 0o700
    assert (code / "lib" / "deep.py").read_text() == "deep"


def test_files_are_copied_where_they_cannot_be_linked(code: Path, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    (code / "app.py").chmod(0o640)
    code.chmod(0o700)
    with Package(a_function(DirectoryCode(path=code)), work) as laid:
        assert laid.task_dir is not None
        assert (laid.task_dir / "app.py").read_text() == "code"
        assert mode(laid.task_dir / "app.py") == 0o640
        assert not (laid.task_dir / "app.py").samefile(code / "app.py")


def test_files_that_the_sandbox_user_cannot_read_stay_so_and_three_of_them_are_named(code: Path, work: Path) -> None:
    for number in range(5):
        (code / f"private{number}").write_text("")
        (code / f"private{number}").chmod(0o600)
    with Package(a_function(DirectoryCode(path=code)), work) as laid:
        assert laid.task_dir is not None
        assert mode(laid.task_dir / "private0") == 0o600
        (warning,) = laid.warnings
        assert warning.count("private") == 3
        assert "and 2 more" in warning
        assert "chmod" in warning


def test_a_private_directory_within_is_named(code: Path, work: Path) -> None:
    (code / "lib").mkdir(mode=0o700)
    with Package(a_function(DirectoryCode(path=code)), work) as laid:
        assert "lib/" in laid.warnings[0]


def test_links_that_lead_nowhere_in_the_sandbox_are_named(code: Path, work: Path) -> None:
    (code / "out").symlink_to("../elsewhere")
    (code / "fine").symlink_to("app.py")
    os.mkfifo(code / "pipe")
    with Package(a_function(DirectoryCode(path=code)), work) as laid:
        links, special = laid.warnings
        assert "out" in links
        assert "fine" not in links
        assert "pipe" in special


def test_directories_above_lambdas_limit_run_with_a_warning(code: Path, work: Path) -> None:
    with (code / "big").open("wb") as big:
        big.truncate(archive.MAX_UNZIPPED_BYTES)
    (code / "big").chmod(0o644)
    with Package(a_function(DirectoryCode(path=code)), work) as laid:
        (warning,) = laid.warnings
        assert "250 MB" in warning


def test_a_zip_is_unpacked_with_its_modes_but_readable_by_all(tmp_path: Path, work: Path) -> None:
    regular = stat.S_IFREG
    entries: dict[str, str | bytes] = {
        "app.py": "code",
        "lib/": "",
        "lib/private.py": "p",
        "./made/up/tool": "t",
        "windows.txt": "w",
        "link": "lib/private.py",
        "opt": "/opt/lib",
    }
    modes = {
        "app.py": regular | 0o644,
        "lib/": stat.S_IFDIR | 0o700,
        "lib/private.py": regular | 0o600,
        "./made/up/tool": regular | 0o4755,
        "windows.txt": 0,
        "link": LINK,
        "opt": LINK,
    }
    before = os.umask(0o077)
    try:
        with Package(a_function(ZipCode(path=a_zip(tmp_path / "a.zip", entries, modes))), work) as laid:
            task = laid.task_dir
            assert task is not None
            for name, wanted in {
                "app.py": 0o644,
                "lib": 0o755,
                "lib/private.py": 0o644,
                "made": 0o755,
                "made/up/tool": 0o755,
                "windows.txt": 0o644,
            }.items():
                assert mode(task / name) == wanted, name
            assert (task / "link").read_text() == "p"
            assert (task / "opt").readlink() == Path("/opt/lib")
            assert (task / "app.py").stat().st_mtime == 1767323046  # 2026-01-02 03:04:06 UTC
            assert mode(task) == 0o755
    finally:
        os.umask(before)


@pytest.mark.parametrize(
    ("entries", "modes", "culprit"),
    [
        ({"../evil": "x"}, {}, "../evil"),
        ({"a/../../evil": "x"}, {}, "a/../../evil"),
        ({"/etc/evil": "x"}, {}, "/etc/evil"),
        ({"link": "../../etc/passwd"}, {"link": LINK}, "link"),
        ({"link": "/etc/passwd"}, {"link": LINK}, "link"),
        ({"link": "/opt/../etc"}, {"link": LINK}, "link"),
        ({"d": "sub", "d/evil": "x"}, {"d": LINK}, "d/evil"),
        ({"d": "sub", "d/e": "x"}, {"d": LINK, "d/e": LINK}, "d/e"),
        ({"d/evil": "x", "d": "sub"}, {"d": LINK}, "d/evil"),
        ({"file": "x", "file/below": "x"}, {}, "file/below"),
        ({"pipe": ""}, {"pipe": stat.S_IFIFO | 0o644}, "pipe"),
        ({"long": "x" * 5000}, {"long": LINK}, "long"),
    ],
)
def test_an_entry_that_leads_outside_is_named_and_nothing_is_written(
    tmp_path: Path, work: Path, entries: dict[str, str | bytes], modes: dict[str, int], culprit: str
) -> None:
    path = a_zip(tmp_path / "bad.zip", {"good": "x", **entries}, modes)
    before = {found for found in tmp_path.rglob("*") if found != work}
    with pytest.raises(InvalidFunction, match=r"bad\.zip") as caught, Package(a_function(ZipCode(path=path)), work):
        pytest.fail("it was laid out")
    assert repr(culprit) in str(caught.value)
    assert {found for found in tmp_path.rglob("*") if found != work} == before


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, work: Path) -> None:
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made, made.open("zeros", "w", force_zip64=True) as entry:
        for _ in range(251):
            entry.write(bytes(1 << 20))
    with pytest.raises(InvalidFunction, match=r"250 MB.*'zeros'"), Package(a_function(ZipCode(path=path)), work):
        pytest.fail("it was laid out")


def test_code_and_layers_share_the_limit(tmp_path: Path, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_UNZIPPED_BYTES", 100)
    code = a_zip(tmp_path / "code.zip", {"app.py": "x" * 60})
    layer = a_zip(tmp_path / "layer.zip", {"lib.py": "x" * 41})
    with Package(a_function(ZipCode(path=code)), work) as laid:
        assert laid.warnings == ()
    with (
        pytest.raises(InvalidFunction, match=r"101 bytes together.*code\.zip"),
        Package(a_function(ZipCode(path=code), layer), work),
    ):
        pytest.fail("it was laid out")


def test_damaged_encrypted_and_empty_archives_are_named(tmp_path: Path, work: Path) -> None:
    path = a_zip(tmp_path / "bad.zip", {"app.py": "x" * 1000})
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[38] ^= 0xFF  # within the compressed bytes
    encrypted = bytearray(whole)
    encrypted[6] |= 1
    encrypted[whole.index(b"PK\x01\x02") + 8] |= 1
    for content, word in ((damaged, "'app.py'"), (encrypted, "encrypted"), (whole[:40], "damaged"), (b"", "damaged")):
        path.write_bytes(content)
        with pytest.raises(InvalidFunction, match=r"bad\.zip.*" + word), Package(a_function(ZipCode(path=path)), work):
            pytest.fail("it was laid out")
    a_zip(path, {})
    with pytest.raises(InvalidFunction, match="empty"), Package(a_function(ZipCode(path=path)), work):
        pytest.fail("it was laid out")
    path.unlink()
    with pytest.raises(InvalidFunction, match=r"bad\.zip: No such file"), Package(a_function(ZipCode(path=path)), work):
        pytest.fail("it was laid out")


def test_a_full_disk_is_said_plainly(tmp_path: Path, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(archive, "_write", full)
    path = a_zip(tmp_path / "a.zip", {"app.py": "x"})
    with (
        pytest.raises(EngineError, match="No space left on device") as caught,
        Package(a_function(ZipCode(path=path)), work),
    ):
        pytest.fail("it was laid out")
    assert "free" in caught.value.remedy


def test_of_two_entries_with_one_name_the_later_one_counts(tmp_path: Path, work: Path) -> None:
    path = tmp_path / "twice.zip"
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("app.py", "first")
        with pytest.warns(UserWarning, match="Duplicate name"):
            made.writestr("app.py", "second")
    with Package(a_function(ZipCode(path=path)), work) as laid:
        assert laid.task_dir is not None
        assert (laid.task_dir / "app.py").read_text() == "second"


def test_one_layer_that_is_a_directory_is_used_in_place(code: Path, tmp_path: Path, work: Path) -> None:
    layer = tmp_path / "layer"
    layer.mkdir()
    layer.chmod(0o755)
    with Package(a_function(DirectoryCode(path=code), layer), work) as laid:
        assert laid.layers_dir == layer
    layer.chmod(0o750)
    (layer / "x").write_text("x")
    with Package(a_function(DirectoryCode(path=code), layer), work) as laid:
        assert laid.layers_dir is not None
        assert laid.layers_dir != layer
        assert (laid.layers_dir / "x").read_text() == "x"


def test_layers_are_laid_over_each_other_in_order(code: Path, tmp_path: Path, work: Path) -> None:
    first, last = tmp_path / "first", tmp_path / "last"
    for layer in (first, last):
        (layer / "lib").mkdir(parents=True)
        (layer / "both").write_text(layer.name)
    (first / "only").write_text("first")
    (first / "lib").chmod(0o555)
    (first / "swap").symlink_to("lib")
    (first / "kind").mkdir()
    (last / "swap").mkdir()
    (last / "swap" / "inside").write_text("last")
    (last / "kind").write_text("a file now")
    middle = a_zip(tmp_path / "middle.zip", {"both": "middle", "lib/zipped": "z", "third": "z"})
    with Package(a_function(DirectoryCode(path=code), first, middle, last), work) as laid:
        opt = laid.layers_dir
        assert opt is not None
        assert (opt / "both").read_text() == "last"
        assert (opt / "only").read_text() == "first"
        assert (opt / "lib" / "zipped").read_text() == "z"
        assert not (opt / "swap").is_symlink()
        assert (opt / "kind").read_text() == "a file now"
        assert not (opt / "lib" / "inside").exists()
    assert (first / "both").read_text() == "first"
    assert list((first / "lib").iterdir()) == []
    assert mode(first / "lib") == 0o555


def test_inline_code_becomes_a_readable_file(work: Path) -> None:
    with Package(a_function(InlineCode(text="grüße", file_name="index.py")), work) as laid:
        assert laid.task_dir is not None
        assert (laid.task_dir / "index.py").read_text(encoding="utf-8") == "grüße"
        assert mode(laid.task_dir / "index.py") == 0o644


def test_an_image_brings_its_own(work: Path) -> None:
    with Package(a_function(ImageCode(reference="mine")), work) as laid:
        assert dataclasses.asdict(laid) == {"task_dir": None, "layers_dir": None, "warnings": ()}


def test_code_that_went_away_is_named(tmp_path: Path, work: Path) -> None:
    gone = tmp_path / "gone"
    with pytest.raises(InvalidFunction, match="gone"), Package(a_function(DirectoryCode(path=gone)), work):
        pytest.fail("it was laid out")


def test_an_interruption_while_laying_out_leaves_nothing(
    tmp_path: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(archive, "_write", interrupted)
    path = a_zip(tmp_path / "a.zip", {"app.py": "x"})
    with pytest.raises(KeyboardInterrupt), Package(a_function(ZipCode(path=path)), work):
        pytest.fail("it was laid out")
    assert list(work.iterdir()) == []
