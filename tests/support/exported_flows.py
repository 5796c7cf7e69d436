"""Captures by either way: recorded as `capture` does it, or read from the programs of torch.export."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import nn

from varshift.flow import Capture, Flow, capture, read_exported
from varshift.model import take_samples


def captured_by(method: str, model: nn.Module, batch: Any) -> Capture:
    """Both flows of a model, from a batch that is a tensor, a tuple of inputs or a dictionary of them."""
    if method == "recorded":
        return capture(model, batch)
    return Capture(exported_flow(model, batch, "train"), exported_flow(model, batch, "eval"))


def exported_flow(model: nn.Module, batch: Any, mode: Literal["train", "eval"]) -> Flow:
    """One flow, read from an exported program."""
    copied = copy.deepcopy(model).train(mode == "train")
    batch = take_samples(batch, 2)
    args = () if isinstance(batch, dict) else batch if isinstance(batch, tuple) else (batch,)
    kwargs = batch if isinstance(batch, dict) else None
    with _exportable():
        program = torch.export.export(copied, args, kwargs, strict=False)
    return read_exported(program, copied, mode=mode)


@contextlib.contextmanager
def _exportable() -> Iterator[None]:
    """Attention in single steps, distributions that read no values, and no words about attributes."""
    fast = torch.backends.mha.get_fastpath_enabled()
    checked = torch.distributions.Distribution._validate_args
    torch.backends.mha.set_fastpath_enabled(False)
    torch.distributions.Distribution.set_default_validate_args(False)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The tensor attribute")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        torch.distributions.Distribution.set_default_validate_args(checked)
