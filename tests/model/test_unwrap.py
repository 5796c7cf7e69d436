from __future__ import annotations

import torch
from torch import nn

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
