"""Checks in two threads, while a third one prints, logs and trains: they do not meet."""

from __future__ import annotations

import logging
import os
import sys
import threading
import warnings

import torch
from odd_networks import CLASSES, WIDTH
from state_digest import process_state
from torch import nn

import varshift as vs

# Of all threads and both tests together; `make battery` runs five hundred in each.
CHECKS = int(os.environ.get("VARSHIFT_CHECKS", "40"))


def network() -> nn.Module:
    return nn.Sequential(
        nn.Linear(WIDTH, 8), nn.Dropout(0.3), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, CLASSES)
    )


def subject() -> tuple[nn.Module, list[tuple[torch.Tensor, torch.Tensor]]]:
    torch.manual_seed(0)
    return network(), [(torch.randn(8, WIDTH), torch.randint(CLASSES, (8,))) for _ in range(2)]


def visible() -> tuple[object, ...]:
    """What another thread sees of the process at any moment."""
    return (
        *(id(sys.stdout), id(sys.stderr), logging.root.manager.disable, tuple(map(id, warnings.filters))),
        *(torch.backends.mha.get_fastpath_enabled(), torch.distributions.Distribution._validate_args),
        torch.is_grad_enabled(),
    )


class Neighbour(threading.Thread):
    """Prints, logs and trains until it is told to stop, and looks at the process all the time."""

    def __init__(self, log: logging.Logger) -> None:
        super().__init__()
        self.log, self.ended = log, threading.Event()
        self.lines, self.losses, self.seen = 0, [], set()

    def run(self) -> None:
        generator = torch.Generator().manual_seed(1)
        model = nn.Sequential(nn.Linear(WIDTH, 8), nn.Dropout(0.1), nn.Linear(8, CLASSES))
        optimiser = torch.optim.SGD(model.parameters(), 0.1)
        x = torch.randn(64, WIDTH, generator=generator)
        y = x[:, :CLASSES].argmax(1)
        while not self.ended.is_set():
            print(f"line {self.lines}")  # noqa: T201
            self.log.warning("record %d", self.lines)
            self.lines += 1
            optimiser.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimiser.step()
            self.losses.append(float(loss.detach()))
            self.seen.add(visible())
            self.ended.wait(0.002)


def test_checks_in_two_threads_say_what_one_says_alone():
    model, data = subject()
    expected = vs.check(model, data).to_json()
    process, reports = process_state(), []

    def check() -> None:
        reports.extend(vs.check(model, data).to_json() for _ in range(CHECKS // 4))

    threads = [threading.Thread(target=check) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert reports == [expected] * (CHECKS // 4 * 2)
    assert process_state() == process


def test_two_threads_of_checks_and_one_that_trains_do_not_meet(capsys, caplog):
    model, data = subject()
    vs.check(model, data)  # imports what torch imports late
    before, process = visible(), process_state()
    errors: list[BaseException] = []

    def check() -> None:
        try:
            for _ in range(CHECKS // 4):
                vs.check(model, data)
        except BaseException as error:
            errors.append(error)

    log = logging.getLogger("neighbour")
    neighbour, threads = Neighbour(log), [threading.Thread(target=check) for _ in range(2)]
    with caplog.at_level(logging.WARNING, "neighbour"):
        for thread in (neighbour, *threads):
            thread.start()
        for thread in threads:
            thread.join()
        neighbour.ended.set()
        neighbour.join()
    assert not errors
    assert neighbour.seen == {before}
    assert capsys.readouterr().out.splitlines() == [f"line {n}" for n in range(neighbour.lines)]
    records = [record.getMessage() for record in caplog.records if record.name == "neighbour"]
    assert records == [f"record {n}" for n in range(neighbour.lines)]
    assert sum(neighbour.losses[-5:]) < sum(neighbour.losses[:5])
    # Another thread draws from the same generators as the checks: what it drew, they did not.
    generators = {"torch generator", "numpy generator", "python generator"}
    now = process_state()
    assert {name for name in process if process[name] != now[name]} <= generators
