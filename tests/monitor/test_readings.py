"""What is read out of the buffers, against what a norm gets: compiled, recomputed, under autocast."""

import contextlib
import copy

import pytest
import torch
from long_runs import LONG
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

import varshift as vs


class Net(nn.Module):
    def __init__(self, reentrant=None):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.body = nn.Sequential(nn.BatchNorm2d(8, momentum=0.05), nn.ReLU(), nn.Dropout(0.2))
        self.head = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8, momentum=0.2), nn.ReLU())
        self.last = nn.Linear(8, 3)
        self.reentrant = reentrant

    def forward(self, x):
        x = self.stem(x)
        x = self.body(x) if self.reentrant is None else checkpoint(self.body, x, use_reentrant=self.reentrant)
        return self.last(self.head(x).mean((2, 3)))


WAYS = {
    "eager": (Net, {}),
    "checkpointed": (lambda: Net(reentrant=False), {}),
    "checkpointed, reentrant": (lambda: Net(reentrant=True), {}),
    "compiled": (Net, {"backend": "aot_eager"}),
    "inductor": (Net, {"backend": "inductor"}),
    "autocast": (Net, {"autocast": True}),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, when it compiles for the first time
@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("way", [way for way in WAYS if LONG or way != "inductor"])
def test_updates_and_moments_are_those_that_a_norm_is_seen_to_get(way, every):
    torch.manual_seed(0)
    build, settings = WAYS[way]
    model = build().train()
    run = torch.compile(model, backend=settings["backend"]) if "backend" in settings else model
    scaler = torch.amp.GradScaler("cpu", enabled="autocast" in settings, init_scale=1024.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    watch = vs.watch(run, every=every, optimizer=optimizer, on_finding=lambda finding: None, strict=True)
    times = 2 if "checkpointed" in way else 1

    def autocast():
        return torch.autocast("cpu", torch.bfloat16) if "autocast" in settings else contextlib.nullcontext()

    for step in range(8):
        x, y = torch.randn(8, 3, 8, 8) * 2 + 1, torch.randint(3, (8,))
        with torch.no_grad(), autocast():
            signal = copy.deepcopy(model.stem)(x).double()
        optimizer.zero_grad()
        with autocast():
            loss = cross_entropy(run(x).float(), y)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        watch.step()
        if (step + 1) % every:
            continue
        assert watch.updates() == {"body.0": times, "head.1": 1}
        moments = watch.batch_moments("body.0")
        if times == 2:
            assert moments is None
            continue
        mean, variance = moments
        torch.testing.assert_close(mean, signal.mean((0, 2, 3)), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(variance, signal.var((0, 2, 3)), rtol=1e-4, atol=1e-4)
        assert watch.batch_moments("head.1") is not None
