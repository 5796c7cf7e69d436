"""What is passed as a loader: what hosts call so, several at once, and what a check leaves in it."""

import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from varshift import DataError
from varshift.model import Guard, loader_of


@pytest.fixture
def loader():
    return DataLoader(TensorDataset(torch.zeros(8, 2)), batch_size=4)


class DataModule:
    """As Lightning's: methods that make loaders."""

    def __init__(self, loader):
        self.source = loader

    def train_dataloader(self):
        return self.source


def test_what_yields_batches_is_returned_as_it_is(loader):
    batch = torch.zeros(4, 2)
    for own in (loader, [batch], (batch, batch), {"x": batch}, iter([batch]), batch, None):
        assert loader_of(own) is own


def test_a_data_module_gives_its_loader(loader):
    assert loader_of(DataModule(loader)) is loader
    with pytest.raises(DataError, match=r"deploy is a DataModule.* its val_dataloader\(\)"):
        loader_of(DataModule(loader), argument="deploy", trains=False)
    with pytest.raises(DataError, match="has no loader of training data yet"):
        loader_of(DataModule(None))


def test_a_data_module_that_is_not_set_up_says_what_to_do():
    class Unset(DataModule):
        def train_dataloader(self):
            return self.missing

    with pytest.raises(DataError, match=r"train_dataloader\(\) fails \(AttributeError.*setup\('fit'\) first"):
        loader_of(Unset(None))


@pytest.mark.parametrize(
    ("several", "trained", "deployed"),
    [
        (lambda one: (one, one), "loader[0]", "deploy[1]"),
        (lambda one: [one], "loader[0]", "deploy[0]"),
        (lambda one: {"train": one, "val": one}, "loader['train']", "deploy['val']"),
        (lambda one: DataModule([one, one]), "loader[0]", None),
    ],
)
def test_several_loaders_are_no_loader(loader, several, trained, deployed):
    with pytest.raises(DataError) as info:
        loader_of(several(loader))
    assert f"pass the one of the training data, {trained} for example" in str(info.value)
    if deployed:
        with pytest.raises(DataError) as info:
            loader_of(several(loader), argument="deploy", trains=False)
        assert f"pass the one of the evaluation data, {deployed} for example" in str(info.value)


@pytest.mark.parametrize(
    "new",
    [
        lambda old: random.Random(old.randint(0, 99) if old else 0),
        lambda old: np.random.RandomState(old.randint(0, 99) if old else 0),
        lambda old: np.random.default_rng(old.integers(0, 99) if old else 0),
        lambda old: torch.Generator().manual_seed(old.initial_seed() + 1 if old else 0),
    ],
    ids=["random", "RandomState", "default_rng", "torch"],
)
def test_a_generator_that_a_loader_replaces_comes_back(new):
    class Loader:
        def __init__(self):
            self.generator = new(None)

        def __iter__(self):
            self.generator = new(self.generator)
            return iter(())

    loader = Loader()
    before = loader.generator
    with Guard() as guard:
        guard.keep(loader)
        list(loader)
        assert loader.generator is not before
    assert loader.generator is before
