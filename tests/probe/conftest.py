import copy
import random

import numpy as np
import pytest
import torch
from torch import nn


def small_net(p: float = 0.5, norm: type[nn.Module] = nn.BatchNorm2d) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.Dropout(p),
        norm(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3),
        norm(12),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 5),
    )


@pytest.fixture
def net():
    torch.manual_seed(0)
    return small_net()


@pytest.fixture
def make_net():
    return small_net


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(size, 3, 10, 10, generator=generator) * (1 + 0.3 * i) + i,
            torch.randint(5, (size,), generator=generator),
        )
        for i, size in enumerate([16, 16, 16, 16, 5])
    ]


@pytest.fixture
def fingerprint():
    """Everything about a model and the world that must survive a failure, for comparison bit by bit."""

    def take(model):
        norms = [m for m in model.modules() if hasattr(m, "momentum")]
        return {
            "state": {k: v.clone() for k, v in model.state_dict().items()},
            "identity": {k: id(v) for k, v in model.named_buffers()},
            "flags": [m.training for m in model.modules()],
            "momentum": [m.momentum for m in norms],
            "hooks": [
                (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
                for m in model.modules()
            ],
            "attributes": [sorted(vars(m)) for m in model.modules()],
            "torch": torch.get_rng_state().clone(),
            "numpy": copy.deepcopy(np.random.get_state()),
            "python": random.getstate(),
            "grad": torch.is_grad_enabled(),
        }

    return take


@pytest.fixture
def assert_same():
    def compare(before, after):
        assert before.keys() == after.keys()
        for key, value in before["state"].items():
            other = after["state"][key]
            same_bits = torch.equal(value, other) or bool(
                ((value == other) | (value.isnan() & other.isnan())).all()
            )
            assert same_bits, key
        assert torch.equal(before["torch"], after["torch"])
        np.testing.assert_equal(before["numpy"], after["numpy"])
        for key in ("identity", "flags", "momentum", "hooks", "attributes", "python", "grad"):
            assert before[key] == after[key], key

    return compare
