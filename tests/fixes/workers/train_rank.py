"""One process of data-parallel training after surgery: rank, world size, plan, folder."""

import datetime
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).parents[2] / "support"))
from mixed_noise import mixed, train

import varshift as vs

rank, world, plan, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
torch.set_num_threads(1)
dist.init_process_group(
    "gloo",
    init_method=f"file://{folder}/store",
    rank=rank,
    world_size=world,
    timeout=datetime.timedelta(seconds=60),
)
network, batch = mixed()
edited = vs.apply_plan(network, plan).model
parallel = DistributedDataParallel(edited.train())
torch.manual_seed(rank)
losses = train(parallel, batch.chunk(world)[rank])
torch.save({"state": edited.state_dict(), "losses": losses}, f"{folder}/rank{rank}.pt")
dist.destroy_process_group()
