"""timm's training script has no events: what its page adds to it, on a copy of its loop."""

import pytest
from torch.nn import functional as F

import varshift as vs
from varshift.integrations import declare_torchvision_operators

pytestmark = pytest.mark.zoo

declare_torchvision_operators()
optim = pytest.importorskip("timm.optim", reason="needs timm: pip install timm")


def train(model, loader, optimizer, accum_steps=1, epochs=4):
    """The loop of timm's train.py without AMP, logging and checkpoints."""
    for _ in range(epochs):
        model.train()
        optimizer.zero_grad()
        for number, (x, y) in enumerate(loader):
            (F.cross_entropy(model(x), y) / accum_steps).backward()
            if (number + 1) % accum_steps == 0:
                optimizer.step()
                optimizer.zero_grad()


@pytest.mark.parametrize("name", ["sgd", "adamw", "lookahead_adam"])
@pytest.mark.parametrize(("pieces", "codes"), [(1, []), (3, ["VS305"])])
def test_a_hook_of_the_optimiser_steps_the_watch(make_net, loader, name, pieces, codes):
    model, found = make_net(), []
    optimizer = optim.create_optimizer_v2(model, opt=name, lr=0.01)
    watch = vs.watch(model, optimizer=optimizer, on_finding=found.append)
    handle = optimizer.register_step_post_hook(lambda *_: watch.step())
    train(model, loader, optimizer, pieces)
    handle.remove()
    watch.close()
    assert watch.report.history.steps == watch.report.history.moves == 24 // pieces
    assert [finding.code for finding in found] == codes
