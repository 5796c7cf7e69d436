"""What ``--data`` names: an item of several loaders, too."""

import pytest

from varshift import DataError
from varshift.cli._data import resolve_loader

DATA = """
import torch
from torch.utils.data import DataLoader, TensorDataset

def one(size):
    return DataLoader(TensorDataset(torch.zeros(8, 2)), batch_size=size)

def get_loaders():
    return one(4), one(2)

def by_name():
    return {"train": one(4), "val": one(2)}

several = get_loaders()

class Data:
    def train_dataloader(self):
        return one(4)
"""


@pytest.fixture
def resolve(place, file, monkeypatch):
    import sys

    monkeypatch.setattr(sys, "path", list(sys.path))
    file("data.py", DATA)
    return lambda text, option="--data": resolve_loader(text, 4, option)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("data:get_loaders[0]", 4),
        ("data.py:get_loaders()[1]", 2),
        ("data:get_loaders[-1]", 2),
        ("data:by_name[val]", 2),
        ("data:by_name['train']", 4),
        ("data:several[1]", 2),
        ("data:Data", 4),
    ],
)
def test_one_of_several_loaders(resolve, text, size):
    assert resolve(text).batch_size == size


def test_several_loaders_say_how_to_name_one(resolve):
    with pytest.raises(DataError, match=r"pass the one of the training data, data:get_loaders\[0\] for exam"):
        resolve("data:get_loaders")
    with pytest.raises(DataError, match=r"the one of the evaluation data, data:by_name\['val'\] for example"):
        resolve("data:by_name", "--deploy")


@pytest.mark.parametrize("text", ["data:get_loaders[2]", "data:by_name[test]", "data:several[x]"])
def test_an_item_that_is_not_there_is_named(resolve, text):
    with pytest.raises(DataError, match="does not have"):
        resolve(text)
