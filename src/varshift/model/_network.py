"""The module that is looked at: unwrapped, and refused with a reason where nothing could be seen or run."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule
from torch.nn.parameter import is_lazy

from varshift._errors import ModelError
from varshift.model._failures import describe
from varshift.model._unwrap import unwrap


def network_of(model: Any, *, argument: str = "model") -> nn.Module:
    """The user's own module inside compiled and data-parallel wrappers.

    Args:
        model: The model.
        argument: What errors call it.

    Raises:
        ModelError: If it is no module, a scripted or an exported one, or has lazy parameters without a shape.
    """
    if not isinstance(model, nn.Module):
        exported = type(model).__name__ == "ExportedProgram"  # importing its class takes long
        remedy = " Pass the module that was exported." if exported else ""
        raise ModelError(f"{argument} is {describe(model)}: expected a torch.nn.Module.{remedy}")
    network = unwrap(model)
    if isinstance(network, torch.jit.ScriptModule):
        raise ModelError(
            f"{argument} is a {type(network).__name__}: the inside of a scripted module cannot be seen. "
            "Pass the module it was made from."
        )
    for name, module in network.named_modules():
        # A program that was exported refuses to change its mode, by a method of the instance.
        if isinstance(module, GraphModule) and "train" in vars(module):
            raise ModelError(
                f"{repr(name) if name else argument} is an exported program: it runs in the mode that it was "
                "exported in and does not support train() and eval(). Pass the module that was exported."
            )
        own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
        if any(is_lazy(tensor) for tensor in own):
            kind = "norm" if hasattr(module, "running_mean") else "module"
            raise ModelError(
                f"{kind} '{name}' ({type(module).__name__}) is lazy and has no shape yet: "
                "run the model once on a batch first."
            )
    return network


def require_values(network: nn.Module) -> None:
    """Makes sure that a network can be run.

    Raises:
        ModelError: If a parameter or buffer lies on the meta device.
    """
    for kind, tensors in (("parameter", network.named_parameters()), ("buffer", network.named_buffers())):
        name = next((name for name, tensor in tensors if tensor.is_meta), None)
        if name is not None:
            raise ModelError(
                f"{kind} '{name}' is on the meta device and has no values: load weights into the model "
                "(model.to_empty(device=...), then load_state_dict) before running it on data."
            )
