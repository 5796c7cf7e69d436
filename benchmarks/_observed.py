"""What norms really see: the truth that predictions are compared with, measured once and stored."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from _diagonal import Figures
from _networks import file_name, stored

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
Statistics = dict[str, tuple[Tensor, Tensor]]  # mean and variance of every norm's input


def observe(net: nn.Module, images: Tensor, draws: int) -> dict[str, Any]:
    """Ratio and local ratio of all norms, the statistics of training, and how sure all that is.

    All images pass as one batch, in training with several draws of the noise; the pooled statistics become
    the running statistics; then one pass each follows in `eval` and in `clean`.

    Returns:
        ``figures``; ``state``, the network with the statistics of training; with several draws also
        ``halves``, the figures of each half of the draws by itself.
    """
    net = copy.deepcopy(net)
    norms = {name: module for name, module in net.named_modules() if isinstance(module, NORMS)}
    seen: Statistics = {}

    def note(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            axes = tuple(axis for axis in range(args[0].dim()) if axis != 1)
            variance, mean = torch.var_mean(args[0].double(), axes, correction=0)
            seen[name] = (mean, variance)

        return hook

    hooks = [module.register_forward_pre_hook(note(name)) for name, module in norms.items()]

    def run() -> Statistics:
        seen.clear()
        with torch.no_grad():
            net(images)
        return dict(seen)

    net.train()
    for norm in norms.values():
        norm.momentum = 0.0
    runs = [run() for _ in range(draws)]
    net.eval()
    for norm in norms.values():
        norm.train()
    clean = run()
    net.eval()

    def figures(chosen: Iterable[Statistics]) -> Figures:
        learned = _pooled(list(chosen))
        for name, (mean, variance) in learned.items():
            buffers = dict(norms[name].named_buffers())
            buffers["running_mean"].copy_(mean)
            buffers["running_var"].copy_(variance)
        deployed = run()
        size = {name: float(variance.mean()) for name, (_, variance) in learned.items()}
        return {
            name: (float(deployed[name][1].mean()) / size[name], float(clean[name][1].mean()) / size[name])
            for name in learned
        }

    found: dict[str, Any] = {}
    if draws > 1:
        found["halves"] = [figures(runs[: draws // 2]), figures(runs[draws // 2 :])]
    found["figures"] = figures(runs)
    for hook in hooks:
        hook.remove()
    return found | {"state": net.state_dict()}


def observed(key: str, net: nn.Module, images: Tensor, draws: int) -> dict[str, Any]:
    """The same, from the store if it is there; the network takes over the statistics of training."""

    def measure() -> dict[str, Any]:
        torch.manual_seed(0)
        return observe(net, images, draws)

    sizes = "x".join(map(str, (*images.shape[:1], *images.shape[2:], draws)))
    found = stored(file_name(f"seen {key} {sizes}"), measure)
    net.load_state_dict(found["state"])
    return found


def _pooled(runs: list[Statistics]) -> Statistics:
    learned = {}
    for name in runs[0]:
        means = torch.stack([found[name][0] for found in runs])
        variances = torch.stack([found[name][1] for found in runs])
        learned[name] = (means.mean(0), variances.mean(0) + means.var(0, correction=0))
    return learned
