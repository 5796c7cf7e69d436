"""Operations have names of this package's own, one table of properties, and functions to run them by."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from varshift.flow import (
    UnknownOperator,
    arguments_of,
    capture,
    execute,
    has_property,
    lent_arguments,
    operations,
    overwrites,
)


class Several(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        x = F.relu_(self.norm(self.conv(x)))
        x = torch.concat([x, x.multiply(2.0)], 1).true_divide(3.0)
        return F.dropout(x, 0.3, self.training).mean((2, 3)).add(1.0)


@pytest.fixture(scope="module")
def flow():
    return capture(Several(), torch.randn(2, 3, 8, 8)).train


def test_nodes_go_by_own_names(flow):
    calls = [node.op for node in flow.nodes if node.overload]
    assert calls == ["conv2d", "add", "batch_norm", "relu", "mul", "cat", "div", "dropout", "mean", "add"]
    assert {node.op for node in flow.nodes if not node.overload} == {"input", "parameter", "buffer", "output"}


def test_nodes_have_the_properties_of_the_table(flow):
    by_name = {node.op: node for node in flow.nodes}
    for name, properties in {
        "conv2d": ("mixing", "weighted"),
        "batch_norm": ("batch_norm", "normalising"),
        "relu": ("elementwise", "homogeneous"),
        "mul": ("product", "scale"),
        "div": ("product", "quotient"),
        "cat": ("concatenation",),
        "dropout": ("dropout",),
        "mean": ("reduction", "pool"),
        "add": ("sum", "term"),
    }.items():
        assert all(by_name[name].has(one) for one in properties)
    assert not by_name["conv2d"].has("elementwise", "view", "sum")
    assert not has_property("of_nobody", "view", "mixing")
    assert operations("concatenation", "quotient") >= {"cat", "stack", "div"}
    assert lent_arguments("expand_as") == {"other"}
    assert lent_arguments("relu") == frozenset()


def test_nodes_can_be_run_again_without_writing(flow):
    node = next(node for node in flow.nodes if node.op == "relu")
    x = torch.tensor([-1.0, 2.0])
    assert overwrites(node)
    assert execute(node, (x,), {}).tolist() == [0.0, 2.0]
    assert x.tolist() == [-1.0, 2.0]
    conv = next(node for node in flow.nodes if node.op == "conv2d")
    assert arguments_of(conv)["stride"] == [1, 1]
    assert not overwrites(conv)


def test_an_operation_that_is_not_to_be_found_is_said_so(flow):
    node = next(node for node in flow.nodes if node.op == "input")
    with pytest.raises(UnknownOperator):
        execute(node, (), {})
