"""One process of a data-parallel run with samplers and Active Bias: rank, world size, folder."""

import datetime
import sys

import torch
import torch.distributed as dist

from varshift.data import ActiveBias, ActiveBiasSampler, DistributedRandomReshuffleSampler, PredictionHistory

rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
torch.set_num_threads(1)
dist.init_process_group(
    "gloo",
    init_method=f"file://{folder}/store",
    rank=rank,
    world_size=world,
    timeout=datetime.timedelta(seconds=60),
)
result = {}

shuffled = DistributedRandomReshuffleSampler(11, seed=3)
result["rank"] = (shuffled.num_replicas, shuffled.rank)
result["orders"] = [list(shuffled) for _ in range(3)]

bias = ActiveBias(10, burn_in=0)
generator = torch.Generator().manual_seed(rank)
for step in range(6):
    # Unequal batches, samples that both have seen, and a round in which one process has nothing.
    ids = torch.randint(0, 10, (3 + 4 * rank,), generator=generator)
    probabilities = torch.rand(len(ids), generator=generator, dtype=torch.float64)
    result[f"update{step}"] = (ids, probabilities)
    if step == 5 and rank == 1:
        continue
    bias.record(ids, probabilities=probabilities)
    if step == 0:
        result["seen"] = bias.history.seen
        result["own_count"] = bias.history.count()
        result["synchronised"] = [bias.history.synchronised]
        try:
            list(ActiveBiasSampler(bias))
        except ValueError as error:
            result["error"] = str(error)
    if step in (1, 4):
        bias.synchronise()
        result["synchronised"].append(bias.history.synchronised)
        result[f"state{step}"] = bias.state_dict()["history"]
bias.synchronise()
bias.synchronise()  # with nothing to tell
result["state"] = bias.state_dict()["history"]
result["weights"] = bias.weights(range(10))
result["epoch"] = bias.epoch
sampler = ActiveBiasSampler(bias, num_samples=25)
result["drawn"] = [list(sampler) for _ in range(2)]

classes = PredictionHistory(4, num_classes=2)
classes.update([rank, 2], [[0.1, 0.2], [0.3 + 0.2 * rank, 0.4]])
classes.synchronise()
result["classes"] = classes.state_dict()

alone = [dist.new_group([number]) for number in range(world)][rank]
own = PredictionHistory(2, process_group=alone)
own.update([rank], [0.5])
own.synchronise()
result["alone"] = own.count()

torch.save(result, f"{folder}/rank{rank}.pt")
dist.destroy_process_group()
