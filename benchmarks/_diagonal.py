"""The papers' propagation, as a baseline: one mean and one variance per channel, all units independent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from varshift.flow import Flow, Node, Ref, arguments_of
from varshift.moments import _elementwise
from varshift.theory import noise_variance

Figures = dict[str, tuple[float, float]]  # ratio and local ratio of every norm


class Diagonal:
    """The papers' propagation: one mean and one variance per channel, all units independent.

    Three views are carried: in training with its noise, in `eval`, and in `clean`.
    """

    def __init__(self, net: nn.Module, flow: Flow, images: Tensor) -> None:
        self.flow = flow
        self.tensors = dict(net.named_parameters()) | dict(net.named_buffers())
        self.values: dict[int, Any] = {}
        self.figures: Figures = {}
        self.start = (images.mean((0, 2, 3)).double(), images.var((0, 2, 3)).double())
        self.norms = {index: site.name for site in flow.norms for index in site.calls}
        self.sites = {site.node: site for site in flow.noises}

    def run(self) -> Figures:
        """Ratio and local ratio of all norms."""
        with torch.no_grad():
            for node in self.flow.nodes:
                if node.kind == "input":
                    self.values[node.index] = (self.start,) * 3
                elif node.kind in ("parameter", "buffer"):
                    self.values[node.index] = self.tensors[node.target or ""].detach().double()
                elif node.kind != "output":
                    self.values[node.index] = self._call(node)
        return self.figures

    def _call(self, node: Node) -> Any:
        named = {key: self._fill(value) for key, value in arguments_of(node).items()}
        views = [value for value in named.values() if _is_views(value)]
        listed = [
            value for value in named.values() if isinstance(value, (list, tuple)) and not _is_views(value)
        ]
        name = node.op
        if node.index in self.sites:
            found = [self.values[i] for i in node.inputs if _is_views(self.values.get(i))]
            site = self.sites[node.index]
            mean, variance = found[0][0]
            noise = noise_variance(site.kind, site.rate or 0.0)
            return ((mean, variance + noise * (variance + mean * mean)), *found[0][1:])
        if node.index in self.norms:
            return self._norm(self.norms[node.index], views[0], named)
        if name in ("conv2d", "linear"):
            return tuple(self._weight(view, named) for view in views[0])
        if name == "add" and len(views) == 2:
            return tuple((a[0] + b[0], a[1] + b[1]) for a, b in zip(*views, strict=True))
        if name == "cat":
            parts = next(value for value in listed if value and _is_views(value[0]))
            return tuple(
                (torch.cat([part[i][0] for part in parts]), torch.cat([part[i][1] for part in parts]))
                for i in range(3)
            )
        if not views:
            return None
        if name in ("avg_pool2d", "adaptive_avg_pool2d", "mean"):
            before = self.flow.nodes[node.inputs[0]].shape or (1, 1, 1, 1)
            after = (*(node.shape or ()), 1, 1)[2:4]
            share = float(np.prod(after) / np.prod(before[2:]))
            return tuple((mean, variance * share) for mean, variance in views[0])
        if name in _elementwise.CLOSED_FORMS:
            rule = _elementwise.CLOSED_FORMS[name]
            return tuple(rule(mean, variance, named) for mean, variance in views[0])
        return views[0]  # views of the same values, and max-pooling, which the papers treat by a chain

    def _fill(self, value: Any) -> Any:
        if isinstance(value, Ref):
            return self.values.get(value.index)
        if isinstance(value, (list, tuple)):
            return [self._fill(item) for item in value]
        return value

    def _weight(self, view: tuple[Tensor, Tensor], named: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        weight, bias = named["weight"], named.get("bias")
        if weight.dim() == 2:
            mean, variance = F.linear(view[0], weight), F.linear(view[1], weight.square())
        else:
            groups, wide = int(named.get("groups", 1)), [part[None, :, None, None] for part in view]
            first = F.conv2d(wide[0], weight.sum((2, 3), keepdim=True), groups=groups)
            second = F.conv2d(wide[1], weight.square().sum((2, 3), keepdim=True), groups=groups)
            mean, variance = first.flatten(), second.flatten()
        return (mean if bias is None else mean + bias), variance

    def _norm(self, name: str, views: Any, named: Mapping[str, Any]) -> Any:
        (mean, learned), deployed, clean = views
        size = float(learned.mean())
        self.figures[name] = (float(deployed[1].mean()) / size, float(clean[1].mean()) / size)
        eps = float(named["eps"])
        found = []
        for view, (centre, spread) in ((views[0], views[0]), (deployed, (mean, learned)), (clean, clean)):
            scale = named["weight"] * (spread + eps).rsqrt()
            found.append(((view[0] - centre) * scale + named["bias"], view[1] * scale.square()))
        return tuple(found)


def _is_views(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 3 and isinstance(value[0], tuple)
