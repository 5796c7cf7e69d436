"""Checkpoints are written whole or not at all, and damaged ones are passed over."""

import errno
import os

import pytest
import torch

from varshift.trials import TrialError, Workbench
from varshift_lab.training import _checkpoints as module
from varshift_lab.training import fit
from varshift_lab.training._checkpoints import Checkpoints


@pytest.fixture
def told():
    return []


@pytest.fixture
def checkpoints(tmp_path, told):
    return Checkpoints(tmp_path / "run", "me", lambda *what: told.append(what))


def state(number):
    return {"weights": torch.arange(1000.0) + number, "history": [float(number)], "name": "x"}


def test_the_latest_two_are_kept(checkpoints, tmp_path, told):
    assert checkpoints.latest() is None
    for epoch in (1, 2, 3, 10):
        checkpoints.save(epoch, state(epoch))
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["epoch-00003.pt", "epoch-00010.pt"]
    found = checkpoints.latest()
    assert found["history"] == [10.0]
    assert torch.equal(found["weights"], state(10)["weights"])
    assert told == []


def test_without_a_folder_nothing_is_kept(told):
    nowhere = Checkpoints(None, "me", told.append)
    nowhere.save(1, state(1))
    assert nowhere.latest() is None


def cut(path):
    path.write_bytes(path.read_bytes()[:-700])


def flip_a_weight(path):
    content = bytearray(path.read_bytes())
    place = content.find(torch.arange(500.0, 520.0).add(2).numpy().tobytes())
    assert place > 0
    content[place] ^= 1
    path.write_bytes(content)


def empty(path):
    path.write_bytes(b"")


def folder(path):
    path.unlink()
    path.mkdir()


def other(path):
    torch.save([1, 2], path)


def foreign(path):
    path.write_bytes(b"a note to myself")


@pytest.mark.parametrize("damage", [cut, flip_a_weight, empty, folder, other, foreign])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(checkpoints, tmp_path, told, damage):
    checkpoints.save(1, state(1))
    checkpoints.save(2, state(2))
    damage(tmp_path / "run" / "epoch-00002.pt")
    assert checkpoints.latest()["history"] == [1.0]
    assert [name for name, _ in told] == ["epoch-00002.pt"]
    if damage is not flip_a_weight:
        damage(tmp_path / "run" / "epoch-00001.pt")
        assert checkpoints.latest() is None


def test_training_goes_on_from_the_one_before(build, images, settings, tmp_path, same):
    events, whole, resumed = [], build(), build()
    fit(whole, images, settings, workbench=Workbench(folder=tmp_path))
    cut(tmp_path / "epoch-00004.pt")
    fit(resumed, images, settings, workbench=Workbench(folder=tmp_path, record=events.append))
    assert same(whole, resumed)
    assert [event["event"] for event in events] == ["checkpoint passed over", "epoch"]
    assert events[0]["file"] == "epoch-00004.pt"
    assert events[0]["reason"]


def test_what_was_left_half_written_is_no_checkpoint(checkpoints, tmp_path, monkeypatch, told):
    checkpoints.save(1, state(1))

    def dies(draft, path):
        raise KeyboardInterrupt

    monkeypatch.setattr(module.os, "replace", dies)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(2, state(2))
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["epoch-00001.pt"]
    (tmp_path / "run" / ".epoch-00002.pt.77").write_bytes(b"of a process that was killed")
    assert checkpoints.latest()["history"] == [1.0]
    assert told == []
    checkpoints.save(2, state(2))
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["epoch-00001.pt", "epoch-00002.pt"]


@pytest.mark.parametrize("place", ["fsync", "replace"])
def test_a_full_disk_is_a_clear_line_and_what_was_saved_stays(checkpoints, tmp_path, monkeypatch, place):
    checkpoints.save(1, state(1))

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module.os, place, full)
    message = r"epoch-00002.pt cannot be written \(No space left on device\): make room .* epoch 1 is kept"
    with pytest.raises(TrialError, match=message):
        checkpoints.save(2, state(2))
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["epoch-00001.pt"]
    assert checkpoints.latest()["history"] == [1.0]


def test_the_system_refuses_to_write_on(checkpoints, tmp_path):
    resource = pytest.importorskip("resource")
    checkpoints.save(1, state(1))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1]))
    try:
        with pytest.raises(TrialError, match=r"epoch-00002.pt cannot be written \(File too large\)"):
            checkpoints.save(2, state(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["epoch-00001.pt"]
    assert checkpoints.latest()["history"] == [1.0]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TrialError, match="cannot be written"):
        Checkpoints(tmp_path / "file", "me", print).save(1, state(1))
