"""Small runs that take a moment."""

import pytest
import torch
from torch import nn

from varshift_lab.data import digit_images, subset
from varshift_lab.training import TrainingSettings


@pytest.fixture(scope="session")
def images():
    return subset(digit_images(), 96)


@pytest.fixture
def build():
    """A network of every kind of part: convolution, noise, batch norm, all from one seed."""

    def make(rate=0.5, seed=0):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return nn.Sequential(
                nn.Conv2d(1, 6, 3, padding=1),
                nn.Dropout(rate),
                nn.BatchNorm2d(6),
                nn.ReLU(),
                nn.AdaptiveAvgPool2d(4),
                nn.Flatten(),
                nn.Linear(96, 10),
            )

    return make


@pytest.fixture
def settings():
    return TrainingSettings(epochs=4, batch_size=16, learning_rate=0.1, weight_decay=1e-3)


@pytest.fixture
def same():
    """Whether two networks agree to the last bit."""

    def compare(left, right):
        pairs = zip(left.state_dict().items(), right.state_dict().items(), strict=True)
        return all(name == other and torch.equal(one, two) for (name, one), (other, two) in pairs)

    return compare
