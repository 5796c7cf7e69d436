"""What `fix` costs besides recalibration: its time over that of one deepcopy and one capture.

Run by itself: ``python benchmarks/fix_cost.py``. Libraries that are not installed are skipped and named.
"""

from __future__ import annotations

import argparse
import copy
import time
import warnings

import torch

import varshift as vs
from _survey_rows import settled
from _surveyed import installed, networks
from _timing import in_turn, ratio, show, table, write
from varshift.flow import capture

ROUNDS = 5
SAMPLES = 4
CHOSEN = (
    "torch/Shared",
    "transformers/BERT",
    "transformers/BART",
    "monai/UNet",
    "timm/resnet",
    "timm/vision_transformer",
    "timm/convit",
    "timm/levit",
    "torchvision/efficientnet_b0",
    "torchvision/densenet121",
    "torchvision/vgg11_bn",
)


def main() -> None:
    """Times the networks in turn, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="networks whose name contains this; writes no page")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="repetitions")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    known = {network.name: network for network in networks()}
    rows, skipped = [], []
    for name in CHOSEN:
        if arguments.only not in name:
            continue
        if not installed(known[name].package):
            skipped.append(name)
            continue
        built, batches, _ = settled(known[name], SAMPLES)
        model, example = built.model, batches[0][0]
        report = vs.check(model, example_inputs=example)

        def fix(model=model, report=report, example=example) -> vs.Cured:
            return vs.fix(model, report, example_inputs=example, cures=["remove-noise"], recheck=False)

        def copy_and_capture(model=model, example=example) -> None:
            copy.deepcopy(model)
            capture(model, example)

        functions = {"fix": fix, "copy and capture": copy_and_capture}
        changes = len(fix().changes)
        seconds = in_turn(functions, arguments.rounds, clock=time.process_time)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        least = [f"{min(seconds[key]):.3f}" for key in functions]
        rows.append([name, f"{parameters:,}", str(changes), *least, show(ratio(seconds, *functions))])
        print(*rows[-1], flush=True)
    header = ["network", "parameters", "places changed", "fix", "deepcopy + capture", "ratio"]
    text = (
        '`fix(model, report, example_inputs=..., cures=["remove-noise"], recheck=False)` over '
        "`copy.deepcopy(model)` and `varshift.flow.capture`, in turn in one process, one thread: least "
        f"process time in seconds, and the median of the ratios of {arguments.rounds} rounds with quartiles."
    )
    if skipped:
        text += f" Not installed: {', '.join(skipped)}."
    if not arguments.only:
        write("fix_cost", "The cost of fix", f"{text}\n\n{table(header, rows)}")


if __name__ == "__main__":
    main()
