"""`recalibrate` against bare forward passes, torch's update_bn and fvcore's update_bn_stats."""

from __future__ import annotations

import argparse

import torch
from fvcore.nn import update_bn_stats
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

import varshift as vs
from _models import Case, cases
from _timing import in_turn, ratio, show, table, write


def forwards(model: nn.Module, case: Case, *, batch_statistics: bool) -> None:
    """The same forward passes without anything around them."""
    model.eval()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.train(batch_statistics)
    with torch.no_grad():
        for x, _ in case.batches:
            model(x)


def measure(case: Case, rounds: int) -> list[str]:
    """One row of the table."""
    model = case.model
    inputs = [x for x, _ in case.batches]

    def fvcore() -> None:
        model.train()
        with torch.no_grad():
            update_bn_stats(model, inputs, len(inputs))

    def torch_peer() -> None:
        model.train()
        update_bn(case.batches, model)

    def ours() -> None:
        vs.recalibrate(model, case.batches)

    seconds = in_turn(
        {
            "ours": ours,
            "clean": lambda: forwards(model, case, batch_statistics=True),
            "eval": lambda: forwards(model, case, batch_statistics=False),
            "torch": torch_peer,
            "fvcore": fvcore,
        },
        rounds,
    )
    return [case.name] + [show(ratio(seconds, "ours", peer)) for peer in ("clean", "eval", "torch", "fvcore")]


def main() -> None:
    """Measures all cases and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    rows = [measure(case, rounds) for case in cases(batches=6)]
    header = [
        "network",
        "/ forward, norms on batch statistics",
        "/ forward in eval()",
        "/ torch update_bn",
        "/ fvcore update_bn_stats",
    ]
    text = (
        "Time of `varshift.recalibrate(model, batches)` divided by the time of a peer on the same model and "
        f"6 batches: median and quartiles of {rounds} rounds in one run "
        "(`python benchmarks/recalibrate.py`). "
        "The first peer is the bare forward pass in the same state, noise off and norms on batch statistics; "
        "`update_bn` and `update_bn_stats` leave dropout on."
    )
    write("recalibrate", "Cost of `recalibrate`", text + "\n\n" + table(header, rows))


if __name__ == "__main__":
    main()
