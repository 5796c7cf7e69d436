"""The three parts on a GPU compute what they compute on a CPU."""

import copy

import pytest
import torch
from torch import nn

from varshift.optim import (
    AdaptiveGradientClipping,
    BatchNormPreconditioner,
    WeightRescaling,
    find_scale_invariant,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    ).double()


def attach(model, optimizer):
    x = torch.randn(6, 3, 9, 9, dtype=torch.float64, device=model[0].weight.device)
    BatchNormPreconditioner(model).attach(optimizer)
    AdaptiveGradientClipping(model, 0.05, exclude=None).attach(optimizer)
    WeightRescaling(find_scale_invariant(model, x)).attach(optimizer)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("moved", ["before", "after"])
@pytest.mark.parametrize("rest", [{"foreach": True}, {"fused": True}])
def test_training_on_a_gpu_equals_training_on_a_cpu(rest, moved, layout):
    here = network()
    there = copy.deepcopy(here)
    there = there.cuda() if moved == "before" else there
    models = (here, there.to(memory_format=layout))
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, **rest) for model in models]
    for model, optimizer in zip(models, optimizers, strict=True):
        attach(model, optimizer)
    there.cuda()
    generator = torch.Generator().manual_seed(1)
    for _ in range(4):
        x = 2 + torch.randn(6, 3, 9, 9, generator=generator, dtype=torch.float64)
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            model(x.to(model[0].weight.device)).square().mean().backward()
            optimizer.step()
    for (name, p), q in zip(here.state_dict().items(), there.state_dict().values(), strict=True):
        torch.testing.assert_close(q.cpu(), p, rtol=1e-8, atol=1e-9, msg=name)


def test_half_precision_with_a_scaler():
    model = network().float().cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    attach_to = BatchNormPreconditioner(model)
    attach_to.attach(optimizer)
    AdaptiveGradientClipping(model).attach(optimizer)
    scaler = torch.amp.GradScaler("cuda")
    for _ in range(3):
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype=torch.float16):
            loss = model(torch.randn(6, 3, 9, 9, device="cuda")).float().square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    assert torch.isfinite(attach_to.variance("0")).all()
