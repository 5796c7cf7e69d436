"""`check` against the bare forward passes and the bare exports that it makes."""

from __future__ import annotations

import argparse
import copy

import torch

import varshift as vs
from _models import Case, cases
from _timing import in_turn, ratio, show, table, write
from recalibrate import forwards
from varshift.probe import draw_batches
from varshift.probe import measure as measure_states


def exports(case: Case) -> None:
    """The two exports inside a capture, on a copy as the capture makes it, with nothing around them."""
    model = copy.deepcopy(case.model)
    x = case.batches[0][0][:2]
    for training in (True, False):
        torch.export.export(model.train(training), (x,), strict=False)


def bare_forwards(case: Case) -> None:
    """The forward passes of one check: train, clean and three times eval on every batch.

    The short passes that compare outputs in eval are part of what a check costs beyond them.
    """
    model = case.model.train()
    with torch.no_grad():
        for x, _ in case.batches:
            model(x)
    forwards(model, case, batch_statistics=True)
    for _ in range(3):
        forwards(model, case, batch_statistics=False)


def measure(case: Case, rounds: int) -> list[str]:
    """One row of the table."""
    shape = tuple(case.batches[0][0].shape[1:])
    with torch.no_grad():  # norms that have learned, whose shift a check predicts, too
        for x, _ in case.batches:
            case.model.train()(x)
    seconds = in_turn(
        {
            "measuring": lambda: measure_states(case.model, draw_batches(case.batches, None, None)),
            "check": lambda: vs.check(case.model, case.batches),
            "free": lambda: vs.check(case.model, shape=shape),
            "forwards": lambda: bare_forwards(case),
            "exports": lambda: exports(case),
        },
        rounds,
    )
    return [case.name] + [
        show(ratio(seconds, above, below))
        for above, below in (("measuring", "forwards"), ("check", "forwards"), ("free", "exports"))
    ]


def main() -> None:
    """Measures all cases and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="measure networks whose name contains this, write nothing")
    arguments = parser.parse_args()
    rounds, only = arguments.rounds, arguments.only
    rows = [measure(case, rounds) for case in cases(batches=4) if only in case.name]
    header = [
        "network",
        "measuring / its forwards",
        "check with data / its forwards",
        "check without data / its exports",
    ]
    text = (
        "Time of `varshift.check` divided by the time of the bare forward passes (4 batches) or the bare "
        f"exports that it makes: median and quartiles of {rounds} rounds in one run "
        "(`python benchmarks/check.py`). Measuring is the part of a check that uses the data. The whole "
        "check captures the network too, at a fixed cost that weighs less the more batches there are. The "
        "norms have learned their statistics, so that every check also predicts their shift."
    )
    if only:
        print(table(header, rows))
        return
    write("check", "Cost of `check`", text + "\n\n" + table(header, rows))


if __name__ == "__main__":
    main()
