"""Batch norm preconditioning: the conditioning of batch norm through the gradients, without norm layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from varshift._arguments import between, non_negative
from varshift.optim._hooks import before_step
from varshift.optim._input_statistics import Rows
from varshift.optim._observed_layers import ObservedLayer, Observer, local_grad, observed_layers, place
from varshift.optim._precondition import precondition_
from varshift.optim._selection import Excluded, Exclusion, unwrapped


class BatchNormPreconditioner:
    r"""Preconditions the gradients of linear and convolution layers as if their inputs were normalised.

    With :math:`\mu` and :math:`\sigma^2` the remembered mean and variance of a layer's input per channel:

    .. math:: g'_{W,ij} = \frac{g_{W,ij} - \mu_j\, g_{b,i}}{q^2 \tilde\sigma^2_j}, \qquad
        g'_{b,i} = \frac{g_{b,i}}{q^2} - \sum_j \mu_j\, g'_{W,ij}, \qquad
        \tilde\sigma^2_j = \sigma^2_j + \epsilon_1 \max_k \sigma^2_k + \epsilon_2

    Gradient descent with :math:`g'` is gradient descent on the same layer fed with
    :math:`(h - \mu) / \tilde\sigma`, with both taken as constants. There is no norm layer: forward pass,
    loss and inference are untouched, and train and eval mode compute the same. It works with batches of any
    size.

    Call `step` between the backward pass and the optimiser's step, or let `attach` hook it in. Momentum and
    the like then work on preconditioned gradients, weight decay is added after them, and clipping belongs
    after them too (attach it later). `close` removes everything from the model.

    **Statistics** are taken from every forward pass in training mode that a backward pass follows: passes
    in eval mode, without gradients or without a backward pass do not count, recomputed ones (activation
    checkpointing) count once. They are pooled over the calls of a layer that is used several times, over
    accumulated micro-batches, and, where processes train together, over these; then they move by one step
    of

    .. math:: \mu \leftarrow \rho \mu + (1 - \rho)\, \bar h, \qquad
        \sigma^2 \leftarrow \rho \sigma^2 + (1 - \rho)\, \overline{(h - \mu)^2}

    from (0, 1), without correction, which is a warm-up of some hundred steps. The variance is about the
    *remembered* mean: a variance within the batch is too small by (N - 1)/N and zero for one sample. How
    the paper avoids this was not recovered; ``variance="batch"`` is the rule of its box, as remembered.
    Statistics of a batch that are not finite are ignored.

    **Layers.** All linear layers and convolutions, the first and the last included, that are called as
    modules. Without a bias there is nothing to centre with, and only the scale is used: give the layers a
    bias. Convolutions have one mean and variance per input channel, which is exact with valid padding and
    an approximation with zeros at the rim. With groups the floor is that of each group. Transposed
    convolutions and layers with a reparametrised weight are left out. Frozen layers are passed over, and so
    are layers that did not run.

    **Several processes.** With a process group the statistics are summed in every `step`, once for all
    layers, so all must call it equally often. Weights that `fully_shard` shares out by rows work for layers
    without groups. Under `torch.compile` create this before the first call; compiled passes count when they
    run forward with gradients enabled, whether or not a backward pass follows.

    **Mixed precision.** The formula is linear, so the gradients' scale does not matter. The statistics of a
    step that the scaler skipped are pooled with those of the next, unless `discard` is called.

    Args:
        model: The network whose layers are preconditioned.
        decay: :math:`\rho`.
        relative_eps: :math:`\epsilon_1`; quiet inputs are amplified by at most its inverse.
        eps: :math:`\epsilon_2`.
        q_rows: Which rows :math:`q^2 = \max(m / \text{rows}, 1)` counts against the fan-in m:
            ``"positions"``, all output positions of all samples; ``"batch"``, samples alone; ``"none"``
            sets q to 1. For linear layers on (N, m) the first two agree. The paper's rule for convolutions
            was not recovered.
        variance: ``"running"`` or ``"batch"``, see above.
        exclude: Layers to leave out: a predicate of name and module, or one or several modules and names
            (with wildcards).
        process_group: The processes whose statistics are pooled: None for the default group where one
            exists, False for none.

    Raises:
        ValueError: If the model has no layer to precondition, two layers share a weight in a way that has
            no formula, or a number is out of range.

    References:
        S. Lange, K. Helfrich, Q. Ye, "Batch Normalization Preconditioning for Neural Network Training",
        JMLR 23, 2022 (arXiv 2108.01110), boxes 2 and 3. The text was not available: the formulas are
        derived anew and verified, the constants 0.99, 1e-2 and 1e-4 are from memory, the variance rule, q
        for convolutions, the floor per group and the order with momentum and weight decay are choices made
        here.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> preconditioner = BatchNormPreconditioner(model)
        >>> handle = preconditioner.attach(optimizer)
        >>> model(5 + torch.randn(16, 4)).square().mean().backward()
        >>> optimizer.step()
        >>> preconditioner.mean("0").shape
        torch.Size([4])
        >>> handle.remove()
        >>> preconditioner.close()
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        decay: float = 0.99,
        relative_eps: float = 1e-2,
        eps: float = 1e-4,
        q_rows: Rows = "positions",
        variance: str = "running",
        exclude: Excluded = None,
        process_group: Any = None,
    ) -> None:
        self.decay = between("decay", decay, 0, 1)
        self.relative_eps = non_negative("relative_eps", relative_eps)
        self.eps = non_negative("eps", eps)
        if q_rows not in ("positions", "batch", "none"):
            raise ValueError(f"q_rows={q_rows!r} must be 'positions', 'batch' or 'none'.")
        if variance not in ("running", "batch"):
            raise ValueError(f"variance={variance!r} must be 'running' or 'batch'.")
        self.q_rows: Rows = q_rows
        self.variance_rule = variance
        self.process_group = process_group
        self._layers = observed_layers(unwrapped(model), Exclusion(exclude))
        self._banks = place(self._layers.values())
        self._hook()

    def _hook(self) -> None:
        self._handles = [
            layer.module.register_forward_hook(Observer(layer, self.q_rows), with_kwargs=True)
            for layer in self._layers.values()
        ]

    def mean(self, name: str) -> Tensor:
        """The remembered mean of the input of a layer."""
        return self._layer(name).mean

    def variance(self, name: str) -> Tensor:
        """The remembered variance of the input of a layer, without its floor."""
        return self._layer(name).variance

    @property
    def names(self) -> list[str]:
        """The names of the preconditioned layers."""
        return list(self._layers)

    @torch.no_grad()
    def step(self, grad_scale: Tensor | None = None) -> None:
        """Takes in the statistics since the last step and preconditions the gradients.

        Call it between the last backward pass and the optimiser's step, on all processes alike.

        Args:
            grad_scale: Not needed: the formula is linear.
        """
        if any(layer.module.weight.device != layer.bank.device for layer in self._layers.values()):
            self._banks = place(self._layers.values())
        for bank in self._banks:
            pending = self._pooled(bank.pending())
            bank.absorb(pending, self.decay, self.variance_rule == "running")
            means, variances, q2 = bank.factors(
                pending, self.relative_eps, self.eps, count_rows=self.q_rows != "none"
            )
            bank.clear()
            for layer in self._layers.values():
                if layer.bank is bank:
                    channels = bank.place(layer.index)
                    self._precondition(layer, means[channels], variances[channels], q2[layer.index])

    def discard(self) -> None:
        """Forgets the statistics since the last step, as when the gradients are thrown away."""
        for bank in self._banks:
            bank.clear()

    def attach(self, optimizer: Optimizer) -> RemovableHandle:
        """Preconditions at the start of every step of the optimiser; ``handle.remove()`` ends it.

        Hooks run in the order in which they were attached. An optimiser loses its hooks when it is copied
        or pickled.
        """
        return before_step(optimizer, self.step)

    def close(self) -> None:
        """Removes the hooks from the model; the statistics stay."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def state_dict(self) -> dict[str, Any]:
        """Mean and variance of each layer's input; they are needed to go on, not for inference."""
        return {
            "layers": {
                name: {"mean": layer.mean.clone(), "variance": layer.variance.clone()}
                for name, layer in self._layers.items()
            }
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over the statistics.

        Raises:
            ValueError: If the layers or their channels differ.
        """
        given = state["layers"]
        if set(given) != set(self._layers):
            odd = sorted(set(given) ^ set(self._layers))
            raise ValueError(f"state and model differ in the layers {', '.join(map(repr, odd[:5]))}.")
        for name, layer in self._layers.items():
            if given[name]["mean"].shape != layer.mean.shape:
                raise ValueError(
                    f"state has {len(given[name]['mean'])} channels for layer {name!r}, which has "
                    f"{len(layer.mean)}."
                )
        for name, layer in self._layers.items():
            layer.mean.copy_(given[name]["mean"])
            layer.variance.copy_(given[name]["variance"])

    def _layer(self, name: str) -> ObservedLayer:
        if name not in self._layers:
            raise ValueError(f"name={name!r} is none of the layers {', '.join(self.names[:6])}.")
        return self._layers[name]

    def _pooled(self, pending: Tensor) -> Tensor:
        """What all processes saw."""
        if self.process_group is False or not (dist.is_available() and dist.is_initialized()):
            return pending
        if dist.get_world_size(self.process_group) > 1:
            dist.all_reduce(pending, group=self.process_group)
        return pending

    def _precondition(self, layer: ObservedLayer, mean: Tensor, variance: Tensor, q2: Tensor) -> None:
        weight, bias = (local_grad(layer, part) for part in (layer.module.weight, layer.module.bias))
        if weight is not None or bias is not None:
            precondition_(weight, bias, mean, variance, q2, layer.entry.groups)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handles": bool(self._handles)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if state["_handles"]:
            self._hook()
        else:
            self._handles = []

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(layers={len(self._layers)}, decay={self.decay:g}, "
            f"relative_eps={self.relative_eps:g}, eps={self.eps:g}, q_rows={self.q_rows!r}, "
            f"variance={self.variance_rule!r})"
        )
