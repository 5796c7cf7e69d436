"""One process of data-parallel trainings that are watched: rank, folder."""

import datetime
import json
import sys
from dataclasses import asdict

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import varshift as vs

STEPS = 24


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 8), nn.BatchNorm1d(8, momentum=None),
        nn.Linear(8, 2),
    )  # fmt: skip


def train(rank, *, offset=0.0, broadcast=True, watched=True, pieces=1, other=False):
    """Findings, and what is known of the ranks."""
    net = network()
    if other:  # every rank trains a network of its own
        nn.init.normal_(net[0].weight, std=1.0 + rank)
    model = net if other else DistributedDataParallel(net, broadcast_buffers=broadcast)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    generator = torch.Generator().manual_seed(1 + rank)
    findings = []
    watch = vs.watch(model, optimizer=optimizer, on_finding=findings.append) if watched else None
    for _ in range(STEPS):
        optimizer.zero_grad()
        for _ in range(pieces):
            x = torch.randn(32, 6, generator=generator) + offset * rank
            model(x).square().mean().backward()
        optimizer.step()
        if watch is not None:
            watch.step()
    dist.barrier()
    weights = [value.tolist() for value in net.state_dict().values()]
    if watch is None:
        return {"findings": [], "ranks": None, "weights": weights}
    watch.close()
    history = watch.report.history
    return {
        "findings": [[one.code, one.severity, one.message] for one in findings],
        "ranks": None if history is None or history.ranks is None else asdict(history.ranks),
        "limits": list(watch.report.limits),
        "weights": weights,
    }


def main(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(seconds=60),
    )
    results = {
        "uneven": train(rank, offset=1.0),
        "uneven, not watched": train(rank, offset=1.0, watched=False),
        "even": train(rank),
        "own buffers": train(rank, offset=1.0, broadcast=False),
        "even, own buffers": train(rank, broadcast=False),
        "pieces": train(rank, offset=1.0, pieces=2),
        "first rank only": train(rank, offset=1.0, watched=rank == 0),
        "second rank only": train(rank, offset=1.0, watched=rank == 1),
        "other weights": train(rank, offset=1.0, other=True),
    }
    with open(f"{folder}/rank{rank}.json", "w", encoding="utf-8") as file:
        json.dump(results, file)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
