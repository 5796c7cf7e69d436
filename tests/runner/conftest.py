import signal

import pytest

from varshift.runner import Assignment
from varshift.store import Store, read_log


class Sweeps:
    """A store, and what workers are told to do in it."""

    def __init__(self, folder):
        self.store = Store(folder)

    def add(self, trials):
        self.keys = self.store.add("toy", "smoke", {"all": list(trials)})
        return self.assignment()

    def assignment(self, **options):
        return Assignment(self.store.folder, tuple(self.keys), **options)

    def runs(self):
        return self.store.runs(self.keys)

    def states(self):
        return [run.state for run in self.runs()]

    def events(self, key):
        return [event["event"] for event in read_log(self.store.run_folder(key) / "log.jsonl")]


@pytest.fixture(autouse=True)
def heeds_interrupts():
    """A process that a shell put in the background ignores SIGINT, and so would all that the tests start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def sweeps(tmp_path):
    made = Sweeps(tmp_path / "store")
    yield made
    made.store.close()
