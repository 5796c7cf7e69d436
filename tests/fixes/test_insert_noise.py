"""Noise that is put on the input or the output of a module, or of a call."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from rewritten import DROPPED, REMOVE, UNIFORM, Block, in_training, rates, rewritten
from torch import nn

from varshift.fixes import (
    CallPlace,
    InsertAtCall,
    InsertNoise,
    NoiseAction,
    Refused,
    Surgery,
    chain_of,
)
from varshift.flow import capture


class Convolutional(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Linear(6, 2)
        self.pair = nn.LSTM(6, 6, batch_first=True)

    def forward(self, x):
        x = self.norm(self.conv(input=x))
        x = F.adaptive_avg_pool2d(x, 4)
        x = x.mean((2, 3))
        x, _ = self.pair(torch.flatten(x, 1)[:, None])
        return self.head(x[:, 0])


IMAGES = torch.randn(4, 3, 8, 8)


class TestInsertion:
    def noise(self, network):
        return [(site.name, site.kind) for site in capture(network, IMAGES).train.noises]

    @pytest.mark.parametrize("where", ["before", "after"])
    @pytest.mark.parametrize("path", ["conv", "norm", "head", "pair", ""])
    def test_at_a_module(self, path, where):
        network = Convolutional()
        expected = network.eval()(IMAGES)
        keys, cls = list(network.state_dict()), type(network.get_submodule(path))
        surgery = Surgery(network)
        (change,) = InsertNoise(path, where, NoiseAction("uniform", 0.5)).apply(surgery)
        assert change.after.startswith("UniformDropout(beta=0.5) on the ")
        assert self.noise(network) == [(path, "uniform")]
        assert torch.equal(network.eval()(IMAGES), expected)
        assert list(network.state_dict()) == keys
        assert isinstance(network.get_submodule(path), cls)
        other = pickle.loads(pickle.dumps(copy.deepcopy(network)))
        assert self.noise(other) == [(path, "uniform")]
        surgery.undo()
        assert type(network.get_submodule(path)) is cls
        assert self.noise(network) == []

    def test_compiled_and_exported(self):
        layers = Convolutional()
        network = nn.Sequential(layers.conv, layers.norm, nn.AdaptiveAvgPool2d(1), nn.Flatten(), layers.head)
        surgery = Surgery(network)
        for path in ("0", "1", "4"):
            InsertNoise(path, "before", NoiseAction("dropout", 0.5)).apply(surgery)
        torch._dynamo.reset()
        compiled = torch.compile(network, fullgraph=True, backend="eager")
        torch.testing.assert_close(in_training(compiled, IMAGES), in_training(network, IMAGES))
        program = torch.export.export(network.train(), (IMAGES,), strict=False)
        calls = [str(node.target) for node in program.graph.nodes]
        assert sum("dropout" in call for call in calls) == 3

    @pytest.mark.parametrize("text", ["F.adaptive_avg_pool2d(x, 4)", "x.mean((2, 3))", "torch.flatten(x, 1)"])
    @pytest.mark.parametrize("where", ["before", "after"])
    def test_at_a_call(self, text, where):
        network = Convolutional()
        expected = network.eval()(IMAGES)
        chain = (CallPlace("Convolutional.forward", text),)
        (change,) = InsertAtCall("", chain, UNIFORM, where).apply(Surgery(network))
        assert change.after == f"UniformDropout(beta=0.1) {where} `{text}`"
        assert self.noise(network) == [("", "uniform")]
        assert torch.equal(network.eval()(IMAGES), expected)
        assert self.noise(pickle.loads(pickle.dumps(network))) == [("", "uniform")]

    def test_at_the_call_of_an_operation(self):
        network = Convolutional()
        (pool,) = [node for node in capture(network, IMAGES).train.nodes if "adaptive_avg_pool" in node.op]
        path, chain = chain_of(network, pool.calls)
        assert (path, chain[0].text) == ("", "F.adaptive_avg_pool2d(x, 4)")

    def test_next_to_a_rewritten_call(self):
        network = Block()
        surgery = rewritten(network, REMOVE)
        InsertNoise("", "after", DROPPED).apply(surgery)
        assert rates(network) == [0.9]
        assert rates(pickle.loads(pickle.dumps(network))) == [0.9]
        surgery.undo()
        assert rates(network) == [0.5, 0.25, 0.125]

    def test_is_noise(self):
        with pytest.raises(Refused, match="cannot be put where none is"):
            InsertNoise("", "before", REMOVE).apply(Surgery(Block()))
