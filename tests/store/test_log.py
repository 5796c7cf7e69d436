"""A log is only appended to, and a crash costs one line."""

import json
import threading
from pathlib import Path

import pytest

from varshift.store import Log, read_log


def numbers(file):
    return [event["number"] for event in read_log(file)]


def test_events_come_back_in_their_order(tmp_path):
    file = tmp_path / "folder" / "log.jsonl"
    for number in range(3):
        with Log(file) as log:
            log.append("step", number=number, text="line\nbreak", sync=number == 1)
    assert numbers(file) == [0, 1, 2]
    assert all(set(event) == {"time", "event", "number", "text"} for event in read_log(file))
    assert file.read_bytes().count(b"\n") == 3


def test_there_may_be_no_log(tmp_path):
    assert list(read_log(tmp_path / "none")) == []


@pytest.mark.parametrize("kept", range(1, 40, 3))
def test_a_torn_line_costs_nothing_but_itself(tmp_path, kept):
    file = tmp_path / "log.jsonl"
    with Log(file) as log:
        log.append("step", number=0)
        whole = file.stat().st_size
        log.append("step", number=1)
    with file.open("r+b") as handle:
        handle.truncate(whole + kept)
    assert numbers(file) == [0]
    with Log(file) as log:
        log.append("step", number=2)
        log.append("step", number=3)
    assert numbers(file) == [0, 2, 3]


def test_lines_of_several_writers_do_not_mix(tmp_path):
    file = tmp_path / "log.jsonl"

    def write(number):
        with Log(file) as log:
            for _ in range(50):
                log.append("step", number=number, text="x" * 500)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = file.read_text().splitlines()
    assert len(lines) == 200
    assert sorted(json.loads(line)["number"] for line in lines) == sorted(list(range(4)) * 50)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_an_error():
    with Log(Path("/dev/full")) as log, pytest.raises(OSError, match="No space left"):
        log.append("step")
