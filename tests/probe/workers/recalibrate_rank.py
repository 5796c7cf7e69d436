"""One process of a data-parallel recalibration: rank, world size, scenario, folder."""

import datetime
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import varshift as vs

rank, world, scenario, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
torch.set_num_threads(1)
if world > 1:
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=world,
        timeout=datetime.timedelta(seconds=60),
    )

torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(3, 6, 3), nn.Dropout(0.5), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4)
)
generator = torch.Generator().manual_seed(1)
batches = [torch.randn(8, 3, 9, 9, generator=generator) * (1 + i) + 100 * i for i in range(7)]
mine = batches[rank::world]  # unequal shares: 4 and 3 batches

arguments = {"tolerance": {"tolerance": 1e-9}, "loose": {"tolerance": 10.0}, "ema": {"estimator": "ema"}}.get(
    scenario, {}
)
if scenario.startswith("effect"):
    # The second process holds nothing back: it has a single batch. In the last scenario its loss fails.
    mine = batches[: 6 if world > 1 else 7] if rank == 0 else batches[6:]

    def loss(outputs, targets):
        if scenario == "effect fails" and rank == 1:
            raise RuntimeError("no loss here")
        return outputs.square().mean()

    arguments = {"loss": loss}
    if scenario == "effect fails" and rank == 1:
        mine = batches[1:3]
wrapped = DistributedDataParallel(model) if scenario == "ddp" else model
if scenario == "fails" and rank == 1:
    mine = [mine[0], mine[1] * float("nan")]
before = {key: value.clone() for key, value in model.state_dict().items()}
result = {"error": "", "batches": 0}
try:
    handle = vs.recalibrate(wrapped, mine, **arguments)
    result["batches"] = handle.batches
    if handle.effect is not None:
        result["effect"] = [
            handle.effect.before,
            handle.effect.after,
            handle.effect.stderr,
            handle.effect.samples,
        ]
except Exception as error:  # the parent process looks at what was raised
    result["error"] = f"{type(error).__name__}: {error}"
    result["unchanged"] = all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
result["state"] = model.state_dict()
torch.save(result, f"{folder}/rank{rank}.pt")
if world > 1:
    dist.destroy_process_group()
