"""Speed and memory of the papers' parts: ratios against a peer, forward and backward, eager and compiled.

``--only TEXT`` measures the contests whose name has TEXT in it and writes nothing; ``--eager`` leaves out the
compiler.
"""

from __future__ import annotations

import argparse

import torch

import _contests_analytic
import _contests_binary
import _contests_noise
import _contests_norms
import _contests_optim
import _timing
from _contest import Contest, StepContest, pass_of, saved_bytes

LAYERS: list[Contest] = [
    *_contests_noise.LAYERS,
    *_contests_norms.LAYERS,
    *_contests_binary.LAYERS,
    *_contests_analytic.LAYERS,
]
STEPS: list[StepContest] = [*_contests_optim.STEPS]


def layer_row(contest: Contest, device: str, rounds: int, compiler: bool) -> list[str]:
    """One line of the table of layers."""
    print(contest.name, "against", contest.peer_name, flush=True)
    eager = _timing.in_turn(
        {
            "ours": pass_of(contest.ours(), contest.shape, device),
            "peer": pass_of(contest.peer(), contest.shape, device),
        },
        rounds,
    )
    compiled = "-"
    if compiler:
        torch.compiler.reset()  # what was compiled before counts against a limit
        try:
            both = {
                name: pass_of(torch.compile(make()), contest.shape, device)
                for name, make in (("ours", contest.ours), ("peer", contest.peer))
            }
            compiled = _timing.show(_timing.ratio(_timing.in_turn(both, rounds), "ours", "peer"))
        except Exception as problem:  # no compiler for this machine: the eager figures still stand
            compiled = f"not measured ({type(problem).__name__})"
    kept = saved_bytes(contest.ours(), contest.shape, device)
    peers = saved_bytes(contest.peer(), contest.shape, device)
    target = contest.gpu if device == "cuda" else contest.cpu
    where = " compiled" if device == "cuda" and contest.gpu_compiled else ""
    return [
        contest.name,
        contest.peer_name,
        "x".join(map(str, contest.shape)),
        _timing.show(_timing.ratio(eager, "ours", "peer")),
        compiled,
        f"{kept / peers:.2f}" if peers else f"{kept} bytes against none",
        "-" if target is None else f"{target:g}{where}",
    ]


def step_row(contest: StepContest, device: str, rounds: int) -> list[str]:
    """One line of the table of optimiser parts."""
    print(contest.name, "against", contest.peer_name, flush=True)
    seconds = _timing.in_turn({"ours": contest.ours(device), "peer": contest.peer(device)}, rounds)
    return [
        contest.name,
        contest.peer_name,
        _timing.show(_timing.ratio(seconds, "ours", "peer")),
        f"{contest.target:g}",
    ]


def main() -> None:
    """Measures all contests on the CPU, and on the GPU where there is one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="part of the name of the contests to measure")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--eager", action="store_true", help="leave out the compiler")
    options = parser.parse_args()
    layers = [contest for contest in LAYERS if options.only.lower() in contest.name.lower()]
    steps = [contest for contest in STEPS if options.only.lower() in contest.name.lower()]
    for device in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
        rows = [layer_row(contest, device, options.rounds, not options.eager) for contest in layers]
        text = _timing.table(
            ["part", "against", "input", "time, eager", "time, compiled", "bytes saved", "target (time)"],
            rows,
        )
        rows = [step_row(contest, device, options.rounds) for contest in steps]
        text += "\n\n" + _timing.table(["part", "against", "time of a step", "target"], rows)
        if options.only:
            print(text)
        else:
            name = "layers" if device == "cpu" else "layers-gpu"
            _timing.write(name, "The papers' parts against their peers", NOTES + text)


NOTES = """\
Ratios ours / peer, median of the rounds with quartiles: below 1 is faster, or leaner, than the peer. Time is
that of forward and backward together, with gradients of input and parameters. Bytes saved are those that wait
for the backward pass, each storage counted once. `python benchmarks/layers.py` measures them.

"""

if __name__ == "__main__":
    main()
