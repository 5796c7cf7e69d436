from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

import varshift as vs
from varshift.model import canonical_names, unwrap


def test_unwrap_nested_wrappers() -> None:
    net = nn.Linear(2, 2)
    compiled = torch.compile(net, backend="eager")
    wrapped = torch.compile(nn.DataParallel(compiled), backend="eager")
    assert unwrap(net) is net
    assert unwrap(compiled) is net
    assert unwrap(nn.DataParallel(net)) is net
    assert unwrap(wrapped) is net


def test_unwrap_distributed_wrapper(tmp_path) -> None:
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        net = nn.Linear(2, 2)
        assert unwrap(nn.parallel.DistributedDataParallel(net)) is net
    finally:
        torch.distributed.destroy_process_group()


def test_wrappers_of_averaging_and_of_engines_are_looked_through() -> None:
    class DeepSpeedEngine(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

    net = nn.Linear(2, 2)
    averaged = torch.optim.swa_utils.AveragedModel(net)
    assert unwrap(averaged) is averaged.module
    assert unwrap(DeepSpeedEngine(torch.compile(nn.DataParallel(net), backend="eager"))) is net


@pytest.mark.parametrize(
    "wrap",
    [torch.optim.swa_utils.AveragedModel, nn.DataParallel, functools.partial(torch.compile, backend="eager")],
)
def test_all_front_doors_look_through_wrappers(wrap) -> None:
    torch.manual_seed(0)
    wrapper = wrap(nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.Linear(8, 3)))
    data = [(torch.randn(16, 6), torch.randint(3, (16,))) for _ in range(3)]
    assert [layer.name for layer in vs.recalibrate(wrapper, data).layers] == ["2"]
    assert [layer.name for layer in vs.predict(wrapper, data).layers] == ["2"]
    assert [layer.name for layer in vs.check(wrapper, data).layers] == ["2"]


def test_a_module_that_passes_attributes_on_is_no_wrapper() -> None:
    class Proxy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.compile(nn.Linear(2, 2), backend="eager")

        def __getattr__(self, name: str) -> object:
            try:
                return super().__getattr__(name)
            except AttributeError:
                return getattr(super().__getattr__("inner"), name)

    proxy = Proxy()
    assert unwrap(proxy) is proxy


def test_a_child_called_module_is_no_wrapper() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(2, 2)

    model = Model()
    assert unwrap(model) is model


def test_canonical_names() -> None:
    shared = nn.Sequential(nn.Linear(2, 2))
    net = nn.ModuleDict({"a": shared, "b": shared, "c": shared[0]})
    names = {"": "", "a": "a", "a.0": "a.0", "b": "a", "b.0": "a.0", "c": "a.0"}
    assert canonical_names(net) == names
    assert canonical_names(nn.DataParallel(net)) == names
