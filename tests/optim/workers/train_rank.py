"""One process that trains with the parts of an optimiser: rank, world size, folder, scenarios."""

import datetime
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from varshift.optim import AdaptiveGradientClipping, BatchNormPreconditioner, WeightRescaling


def whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def train(scenario, rank, world):
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(7) if "rescaling" in scenario else nn.LayerNorm(7)
    model = nn.Sequential(nn.Linear(6, 7), norm, nn.ReLU(), nn.Linear(7, 3)).double()
    generator = torch.Generator().manual_seed(1)
    batches = [2 + torch.randn(8, 6, generator=generator, dtype=torch.float64) for _ in range(6)]

    trained = model
    if "sharded" in scenario:
        mesh = init_device_mesh("cpu", (world,))
        for layer in (model[0], model[3], model):
            fully_shard(layer, mesh=mesh)
    elif world > 1:
        trained = DistributedDataParallel(model)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    preconditioner = None
    if "preconditioner" in scenario:
        preconditioner = BatchNormPreconditioner(trained, decay=0.9, q_rows="batch")
        preconditioner.attach(optimizer)
    if "clipping" in scenario:
        AdaptiveGradientClipping(trained, 0.01).attach(optimizer)
    if "rescaling" in scenario:
        WeightRescaling([(model[0], model[1])]).attach(optimizer)

    for batch in batches:
        optimizer.zero_grad()
        # A batch norm's statistics are those of one process: there, all get the whole batch.
        mine = batch if "rescaling" in scenario else batch.chunk(world)[rank]
        parts = mine.chunk(2) if "accumulate" in scenario else [mine]
        for part in parts:
            (trained(part).square().mean() / len(parts)).backward()
        optimizer.step()

    result = {"state": {name: whole(tensor.detach()) for name, tensor in model.state_dict().items()}}
    if preconditioner is not None:
        result["statistics"] = preconditioner.state_dict()["layers"]
    return result


def main(rank, world, folder, scenarios):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store{world}",
        rank=rank,
        world_size=world,
        timeout=datetime.timedelta(seconds=60),
    )
    results = {scenario: train(scenario, rank, world) for scenario in scenarios}
    torch.save(results, f"{folder}/rank{rank}of{world}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:])
