"""Trains with checkpoints in a folder, and says where it is, so that it can be killed there."""

import sys
from pathlib import Path

import torch

from varshift.trials import Workbench
from varshift_lab.training import DataChoice, Network, TrainingSettings, TrainingTrial

torch.set_num_threads(1)
TRIAL = TrainingTrial(
    seed=3,
    network=Network.of("linear_bn", depth=3, width=32, dropout=0.5, placement="a"),
    data=DataChoice("digits", train=128, test=64),
    settings=TrainingSettings(epochs=6, batch_size=16, learning_rate=0.1, probe_every=2, probe_samples=64),
)

if __name__ == "__main__":
    import time

    from varshift_lab.training import _run

    halt, quiet = int(sys.argv[2]), _run.Run.batches

    def watched(run, epoch):
        for step, batch in enumerate(quiet(run, epoch), epoch * 8):
            if step == halt:
                sys.stdout.write("here\n")
                sys.stdout.flush()
                time.sleep(120)
            yield batch

    _run.Run.batches = watched
    found = TRIAL.run(Workbench(folder=Path(sys.argv[1])))
    torch.save({name: value for name, value in found.items() if name != "seconds"}, Path(sys.argv[1]) / "out")
