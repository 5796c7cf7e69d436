"""Data-parallel training of edited networks in two processes that stay for all of them.

Each rank is this file as a program: rank, folder. The folder holds the tasks; what a rank finds it adds to a
file of its own.
"""

from __future__ import annotations

import datetime
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import varshift as vs
from _surgery_battery import Failed, train
from _survey_rows import settled
from _surveyed import networks
from _surveyed_network import Network

_WORLD = 2
_SECONDS = 60


def trained(
    tasks: Sequence[tuple[str, str | None]], samples: int, folder: Path, seconds: float
) -> Iterator[tuple[str | None, float]]:
    """Trains networks in two processes that see different batches, one network after another.

    Args:
        tasks: Names of networks with what is done to them first, a plan as JSON, None for nothing.
        samples: Samples per batch.
        folder: An empty folder.
        seconds: Time limit for one network.

    Yields:
        For every task, None where both ranks have the same finite, changed weights after two steps, else the
        reason; and how long it took.
    """
    (folder / "tasks.json").write_text(json.dumps([[*task, samples] for task in tasks]))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen([sys.executable, "-W", "ignore", __file__, str(rank), str(folder)], env=environment)
        for rank in range(_WORLD)
    ]
    try:
        for number in range(len(tasks)):
            started = time.monotonic()
            while len(reasons := _reasons(folder, number)) < _WORLD:
                dead = [rank.returncode for rank in ranks if rank.poll() is not None]
                if dead or time.monotonic() - started > seconds:
                    reason = f"exit {dead}" if dead else f"not done after {seconds:.0f} s"
                    yield next(filter(None, reasons), reason), time.monotonic() - started
                    return
                time.sleep(0.2)
            yield next(filter(None, reasons), None), time.monotonic() - started
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()


def _reasons(folder: Path, number: int) -> list[str]:
    files = [folder / f"{number}.{rank}" for rank in range(_WORLD)]
    return [file.read_text() for file in files if file.exists()]


def _train_all(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    known = {network.name: network for network in networks()}
    for number, (name, plan, samples) in enumerate(json.loads((folder / "tasks.json").read_text())):
        try:
            reason = _train(known[name], plan, samples, rank, folder / f"store{number}")
        except Exception as error:  # whatever a network refuses with
            reason = f"{type(error).__name__}: {error}"[:300]
        if dist.is_initialized():
            dist.destroy_process_group()
        partial = folder / f"partial{rank}"
        partial.write_text(reason)
        partial.rename(folder / f"{number}.{rank}")


def _train(network: Network, plan: str | None, samples: int, rank: int, store: Path) -> str:
    built, batches, _ = settled(network, samples)
    model = built.model if plan is None else vs.apply_plan(built.model, plan).model
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=_WORLD,
        timeout=datetime.timedelta(seconds=_SECONDS),
    )
    parallel = DistributedDataParallel(model.train(), find_unused_parameters=True)
    before = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    torch.manual_seed(rank)
    losses = train(parallel, batches[rank])
    after = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    every = [torch.empty_like(after) for _ in range(_WORLD)]
    dist.all_gather(every, after)
    if not all(map(math.isfinite, losses)):
        raise Failed(f"losses {losses}")
    if torch.equal(before, after):
        raise Failed("no weight has changed")
    if not torch.equal(*every):
        raise Failed("the ranks have other weights")
    return ""


if __name__ == "__main__":
    _train_all(int(sys.argv[1]), Path(sys.argv[2]))
