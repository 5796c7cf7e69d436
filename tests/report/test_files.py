import os
import stat

import pytest

from varshift import VarshiftError
from varshift.report import check_writable, write_atomically, write_text


def test_a_file_is_replaced_as_a_whole_and_keeps_its_permissions(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    path.chmod(0o640)
    write_text(path, "new ü")
    assert path.read_text(encoding="utf-8") == "new ü"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_new_file_gets_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / "plain").write_text("")
    write_text(tmp_path / "mine", "")
    assert (tmp_path / "mine").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_failure_half_way_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")

    def fail(temporary):
        temporary.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, fail)
    assert [(item.name, item.read_text()) for item in tmp_path.iterdir()] == [("a.json", "old")]


def test_a_full_disk_is_reported_as_our_own_error(tmp_path):
    def fail(temporary):
        raise OSError(28, "No space left on device")

    with pytest.raises(VarshiftError, match=r"cannot write .*a\.json.*no space left"):
        write_atomically(tmp_path / "a.json", fail)
    assert list(tmp_path.iterdir()) == []


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


def test_a_device_is_written_to_and_not_replaced():
    write_text(os.devnull, "text")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


@pytest.mark.parametrize(
    ("name", "reason"), [("no/such/a.json", "there is no folder"), (".", "it is a folder")]
)
def test_what_cannot_be_written_is_found_beforehand(tmp_path, name, reason):
    for function in (check_writable, lambda path: write_text(path, "x")):
        with pytest.raises(VarshiftError, match=reason):
            function(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_permissions_are_found_beforehand(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    path.write_text("old")
    monkeypatch.setattr(os, "access", lambda *_: False)  # the superuser may write anything
    with pytest.raises(VarshiftError, match="permission denied"):
        check_writable(path)


def test_looking_beforehand_leaves_no_trace(tmp_path):
    check_writable(tmp_path / "a.json")
    assert list(tmp_path.iterdir()) == []
