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
