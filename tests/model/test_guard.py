"""Guards: what an interrupt leaves for later is ended with the guard."""

import contextlib
import gc
import sys

import pytest
import torch
import torch.nn.functional as F

from varshift.model import FunctionMode, Guard


class Watching(FunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def interrupted():
    """Raises KeyboardInterrupt when the manager that takes a mode off for a while begins to put it back."""
    struck = []

    def trace(frame, event, argument):
        manager = frame.f_locals.get("self")
        if struck or frame.f_code.co_name != "__exit__" or not hasattr(manager, "gen"):
            return
        if manager.gen.gi_code.co_name == "_pop_mode_temporarily":
            struck.append(frame)
            raise KeyboardInterrupt

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield struck
    finally:
        sys.settrace(before)


def test_a_mode_does_not_come_back_after_the_guard():
    with pytest.raises(KeyboardInterrupt), Guard() as guard, guard, Watching(), interrupted() as struck:
        F.dropout(torch.ones(3))
    assert struck
    struck.clear()
    gc.collect()
    assert torch._C._len_torch_function_stack() == 0


def test_seeds_leave_no_order_for_a_device_that_is_not_in_use(monkeypatch):
    if torch.cuda.is_initialized():
        pytest.skip("CUDA is in use")
    seeds = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    with Guard(seed=0):
        first = torch.rand(3)
    torch.manual_seed(0)
    assert torch.equal(first, torch.rand(3))
    assert seeds == [0]  # of torch's own function, which has CUDA seeded when it starts
