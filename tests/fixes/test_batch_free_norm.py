"""One norm per block that looks at single samples only."""

import copy

import pytest
import torch
from torch import nn
from treatment import images, learnt, patient_of, treated

import varshift as vs
from varshift.fixes import Refused, norm_blocks, norm_places

x = next(iter(images(shuffle=False)))[0]


class Block(nn.Module):
    """A residual block with dropout in front of its last norm."""

    def __init__(self, size, out, rate=0.5):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(size, out, 3, padding=1), nn.BatchNorm2d(out)
        self.conv2, self.norm2 = nn.Conv2d(out, out, 3, padding=1), nn.BatchNorm2d(out)
        self.drop = nn.Dropout(rate)
        self.shortcut = nn.Sequential(nn.Conv2d(size, out, 1), nn.BatchNorm2d(out))

    def forward(self, x):
        y = self.norm2(self.drop(self.conv2(torch.relu(self.norm1(self.conv1(x))))))
        return torch.relu(y + self.shortcut(x))


class Net(nn.Module):
    """A stem and two blocks."""

    def __init__(self, rate=0.5):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.blocks = nn.Sequential(Block(8, 8, rate), Block(8, 16, rate))
        self.head = nn.Linear(16, 2)

    def forward(self, x):
        return self.head(self.blocks(torch.relu(self.norm(self.stem(x)))).mean((2, 3)))


@pytest.fixture(scope="module")
def trained():
    return learnt(Net)


def paths(network, example=x):
    patient = patient_of(network, example)
    return [[place.path for place in block] for block in norm_blocks(patient, norm_places(patient))]


def test_blocks_are_what_adds_up_signals(trained):
    blocks = [sorted(block) for block in paths(trained)]
    shares = [[f"blocks.{i}.{name}" for name in ("norm1", "norm2", "shortcut.1")] for i in (0, 1)]
    assert blocks == [["norm"], *shares]


def test_without_sums_a_block_is_a_module_with_several_norms():
    def part(size, out):
        return nn.Sequential(nn.Sequential(nn.Linear(size, out), nn.BatchNorm1d(out)), nn.ReLU())

    parts = [nn.Sequential(part(4, 8), part(8, 8)), nn.Sequential(part(8, 8), part(8, 4))]
    assert paths(nn.Sequential(*parts), torch.randn(8, 4)) == [
        ["0.0.0.1", "0.1.0.1"],
        ["1.0.0.1", "1.1.0.1"],
    ]


def test_a_forward_that_adds_up_several_times_is_cut_at_its_sums():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.weights = nn.ModuleList([nn.Linear(4, 4) for _ in range(4)])
            self.norms = nn.ModuleList([nn.BatchNorm1d(4) for _ in range(4)])

        def forward(self, x):
            for i in (0, 2):
                y = torch.relu(self.norms[i](self.weights[i](x)))
                x = x + self.norms[i + 1](self.weights[i + 1](y))
            return x

    assert paths(Flat(), torch.randn(8, 4)) == [["norms.0", "norms.1"], ["norms.2", "norms.3"]]


def test_the_norm_with_the_largest_predicted_shift_of_each_block_is_swapped(trained):
    prediction = vs.predict(trained, x)
    cured = vs.fix(trained, loader=images(), cures=["batch-free-norm"], recheck=False)
    assert not cured.failures
    swapped = [path for path, one in cured.model.named_modules() if isinstance(one, nn.GroupNorm)]
    assert swapped == ["norm", "blocks.0.norm2", "blocks.1.norm2"]
    for block in (0, 1):
        layers = [layer for layer in prediction.layers if layer.name.startswith(f"blocks.{block}.")]
        assert max(layers, key=lambda layer: layer.shift).name == f"blocks.{block}.norm2"
    assert isinstance(trained.blocks[0].norm2, nn.BatchNorm2d)
    assert isinstance(cured.model.blocks[0].norm1, nn.BatchNorm2d)


def test_where_all_are_alike_the_middle_norm_is_swapped():
    network = learnt(lambda: Net(rate=0.0), epochs=2)
    treated(network, x, "batch-free-norm", to="layer_norm")
    block = network.blocks[0]
    kinds = {name: type(one).__name__ for name, one in block.named_modules() if "Norm" in type(one).__name__}
    assert kinds == {"norm1": "BatchNorm2d", "norm2": "GroupNorm", "shortcut.1": "BatchNorm2d"}


def test_the_largest_shift_is_gone_and_no_other_grows(trained):
    network = copy.deepcopy(trained)
    before = {layer.name: layer.shift for layer in vs.predict(network, x).layers}
    treated(network, x, "batch-free-norm")
    after = {layer.name: layer.shift for layer in vs.predict(network, x).layers}
    assert max(before.values()) > 1.5
    assert max(after.values()) < 1.2
    assert all(shift < before[name] + 0.05 for name, shift in after.items())


def test_a_network_without_running_statistics_is_refused():
    with pytest.raises(Refused, match="no norm"):
        treated(nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)), torch.randn(4, 3), "batch-free-norm")
    with pytest.raises(vs.VarshiftError, match="to='frozen'"):
        treated(
            nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)),
            torch.randn(4, 3),
            "batch-free-norm",
            to="frozen",
        )
