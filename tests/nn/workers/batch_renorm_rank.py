"""One process of a data-parallel step of batch renorm: rank, folder."""

import datetime
import sys

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from varshift import nn

rank, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group(
    "gloo",
    init_method=f"file://{folder}/store",
    rank=rank,
    world_size=2,
    timeout=datetime.timedelta(seconds=60),
)
layer = nn.BatchRenorm2d(
    3, clipping=nn.RenormClipping(scale=2, shift=1, warmup=2, scale_end=10, shift_end=10)
)
model = DistributedDataParallel(layer)
if rank == 0:
    layer.running_mean.fill_(0.5)
    layer.running_var.fill_(2.0)
    layer.num_batches_tracked.fill_(5)
used = {}
layer.register_forward_pre_hook(
    lambda module, args: used.update({name: value.clone() for name, value in module.state_dict().items()})
)
x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(rank)) * (1 + rank)
out = model(x)
out.square().sum().backward()
gradients = {name: parameter.grad for name, parameter in layer.named_parameters()}
torch.save({"used": used, "x": x, "out": out.detach(), "gradients": gradients}, f"{folder}/rank{rank}.pt")
dist.destroy_process_group()
