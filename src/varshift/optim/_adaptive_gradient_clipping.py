"""Adaptive gradient clipping, beside any torch optimiser."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from varshift._arguments import non_negative, positive
from varshift.optim._hooks import before_step
from varshift.optim._selection import Excluded, Exclusion, unwrapped
from varshift.optim._unit_clipping import adaptive_clip_grad_

Parameters = (
    nn.Module | Optimizer | Iterable[Tensor] | Iterable[tuple[str, Tensor]] | Iterable[dict[str, Any]]
)


class AdaptiveGradientClipping:
    r"""Clips the gradient of each unit to a fraction of the norm of the unit's weights.

    .. math:: G_i \leftarrow \lambda \frac{\|W_i\|^*}{\max(\|G_i\|, 10^{-6})} G_i
        \quad\text{where}\quad \|G_i\| > \lambda \|W_i\|^*,
        \qquad \|W_i\|^* = \max(\|W_i\|_2, \epsilon)

    It goes between the backward pass and the optimiser's step. Call `step` there yourself, or let `attach`
    hook it into the optimiser, which also serves optimisers that take a closure::

        loss.backward()                       handle = clipping.attach(optimizer)
        clipping.step()                       ...
        optimizer.step()                      optimizer.step()

    **Units.** A slice along axis 0 of a tensor with two or more axes (a filter of a convolution, a row of a
    linear layer), the whole of any other tensor. A gain of shape (C, 1, 1, 1) is thus clipped channel by
    channel, a shift of shape (1, C, 1, 1), as in RSign and RPReLU, as one unit: that is what the published
    code does. ``per_channel=True`` clips such shifts channel by channel instead, a deviation; a convolution
    with a single filter of size one has the same shape and is then treated so too. Axis 0 of a transposed
    convolution is its input.

    **What is left alone.** NFNets never clip the final linear layer; the published code of the BN-free binary
    networks skips all names with "fc" in them. Given a module, the default therefore leaves out the last
    `torch.nn.Linear`, in the order of registration. Given parameters or an optimiser, layers are not known
    and nothing is left out unless `exclude` says so.

    **Precision.** The gradients must be unscaled: with a `GradScaler` call ``scaler.unscale_(optimizer)``
    before `step`. The hook needs no such call (the scaler has unscaled by then, and for a fused optimiser,
    which unscales itself, the caps are raised by the scale). Norms of float16 and bfloat16 are taken in
    float32. A unit whose gradient has an infinite element gets NaN there and one with NaN stays as it is, so
    that a check still finds them.

    **Several processes.** Under data parallelism the averaged gradients are alike everywhere and nothing is
    exchanged. Parameters sharded by rows (DTensor, `fully_shard`) are clipped where their rows are; only
    tensors that are one unit as a whole exchange their norm. Flattened shards (`FullyShardedDataParallel`)
    have lost their units and are refused where they can be recognised.

    **Cost.** Weights and gradients are read once, and only gradients with a clipped unit are written (on a
    CPU; an accelerator writes all, since asking would make it wait). One kernel per weight tensor takes the
    norms, foreach kernels do the rest.

    Args:
        params: A module; or an optimiser, whose groups are followed, later ones included; or parameters,
            pairs of name and parameter, or groups as an optimiser takes them. A group may have its own
            ``clip_factor`` and ``clip_eps``, in an optimiser's groups too, so that a schedule can change
            them.
        clip_factor: :math:`\lambda`: 0.01 in NFNets, for large batches; 0.02 in the BN-free binary networks.
        eps: :math:`\epsilon`, which lets units that start at zero move.
        exclude: What is left alone: a predicate of name and parameter, or one or several modules, parameters
            and names (with wildcards, ``"fc.*"``). The default ``"auto"`` is the last linear layer of a
            module; None is nothing.
        per_channel: Whether tensors of shape (1, C, 1, ...) are clipped channel by channel.

    Raises:
        ValueError: If there is nothing to clip, a number is out of range or an excluded name matches nothing.

    References:
        T. Chen et al., "BNN - BN = ?", 2021 (arXiv 2104.08215), after A. Brock et al., "High-Performance
        Large-Scale Image Recognition Without Normalization", 2021 (arXiv 2102.06171). Constants and
        exclusions are those of the published code; the first paper's text was not available.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> clipping = AdaptiveGradientClipping(model, clip_factor=0.02)
        >>> clipping
        AdaptiveGradientClipping(parameters=2, excluded=2, clip_factor=0.02, eps=0.001)
        >>> (1000 * model(torch.randn(16, 4)).square().mean()).backward()
        >>> bool(clipping.step() > 0)  # how many units were clipped
        True
        >>> optimizer.step()
        >>> handle = clipping.attach(optimizer)  # from now on by itself
    """

    def __init__(
        self,
        params: Parameters,
        clip_factor: float = 0.01,
        eps: float = 1e-3,
        *,
        exclude: Excluded | Literal["auto"] = "auto",
        per_channel: bool = False,
    ) -> None:
        self.clip_factor = positive("clip_factor", clip_factor)
        self.eps = non_negative("eps", eps)
        self.per_channel = bool(per_channel)
        self._optimizer = params if isinstance(params, Optimizer) else None
        if isinstance(exclude, str) and exclude == "auto":
            inside = params.modules() if isinstance(params, nn.Module) else ()
            exclude = [module for module in inside if isinstance(module, nn.Linear)][-1:]
        self._exclusion = Exclusion(exclude)
        self._groups = [] if isinstance(params, Optimizer) else _groups(params)
        for group in self.groups:
            self._check(group)
        entries = [entry for group in self.groups for entry in _named(group)]
        chosen = [entry for entry in entries if not self._exclusion(*entry)]
        self._exclusion.require_all_used([name for name, _ in entries])
        if not chosen:
            raise ValueError(f"params={type(params).__name__} has no parameter that is left to clip.")

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The groups: those of the optimiser where one was given, else one's own, as plain dicts."""
        return self._optimizer.param_groups if self._optimizer is not None else self._groups

    def add_param_group(self, group: dict[str, Any]) -> None:
        """Adds a group, with its own ``clip_factor`` and ``clip_eps`` if it has them.

        Raises:
            ValueError: If the groups are an optimiser's, which is the place to add to, or an argument is
                wrong.
        """
        if self._optimizer is not None:
            raise ValueError("the groups are the optimiser's: call its add_param_group, it is followed.")
        (new,) = _groups([group])
        self._check(new)
        held = {id(parameter) for group in self._groups for _, parameter in _named(group)}
        if any(id(parameter) in held for _, parameter in _named(new)):
            raise ValueError("group has a parameter that is in another group already: each belongs to one.")
        self._groups.append(new)

    @torch.no_grad()
    def step(self, grad_scale: Tensor | None = None) -> Tensor:
        """Clips the gradients; call it after the backward pass and before the optimiser's step.

        Args:
            grad_scale: A factor that the gradients still carry and the optimiser takes out; None for none.

        Returns:
            How many units were clipped, as a tensor.
        """
        counts = []
        for group in self.groups:
            chosen = [parameter for name, parameter in _named(group) if not self._exclusion(name, parameter)]
            factor, eps = group.get("clip_factor", self.clip_factor), group.get("clip_eps", self.eps)
            counts.append(
                adaptive_clip_grad_(chosen, factor, eps, per_channel=self.per_channel, grad_scale=grad_scale)
            )
        return torch.stack([count.to(counts[0].device) for count in counts]).sum()

    def attach(self, optimizer: Optimizer) -> RemovableHandle:
        """Clips at the start of every step of the optimiser; ``handle.remove()`` ends it.

        Hooks run in the order in which they were attached: attach what changes gradients, such as
        `BatchNormPreconditioner`, first. An optimiser loses its hooks when it is copied or pickled.
        """
        return before_step(optimizer, self.step)

    def state_dict(self) -> dict[str, Any]:
        """The settings of each group, which a schedule may have changed; nothing else is remembered."""
        return {
            "groups": [
                {
                    "clip_factor": group.get("clip_factor", self.clip_factor),
                    "clip_eps": group.get("clip_eps", self.eps),
                }
                for group in self.groups
            ]
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over the settings of each group.

        Raises:
            ValueError: If the number of groups differs.
        """
        if len(state["groups"]) != len(self.groups):
            raise ValueError(f"state has {len(state['groups'])} groups, this has {len(self.groups)}.")
        for group, settings in zip(self.groups, state["groups"], strict=True):
            self._check(settings)
            group.update(settings)

    def _check(self, group: dict[str, Any]) -> None:
        positive("clip_factor", group.get("clip_factor", self.clip_factor))
        non_negative("clip_eps", group.get("clip_eps", self.eps))
        for _, parameter in _named(group):
            if type(parameter).__name__ == "FlatParameter":
                raise ValueError(
                    "params has a FlatParameter, in which the units of many layers are mixed: use "
                    "fully_shard, or clip by norm."
                )

    def __repr__(self) -> str:
        entries = [entry for group in self.groups for entry in _named(group)]
        excluded = sum(self._exclusion(*entry) for entry in entries)
        return (
            f"{type(self).__name__}(parameters={len(entries) - excluded}, excluded={excluded}, "
            f"clip_factor={self.clip_factor:g}, eps={self.eps:g}{', per_channel=True' * self.per_channel})"
        )


def _named(group: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """The parameters of a group with their names, empty where there are none."""
    parameters = group.get("params", ())
    return zip(group.get("param_names") or [""] * len(parameters), parameters, strict=True)


def _groups(params: Any) -> list[dict[str, Any]]:
    """Groups in the form of an optimiser's, from all that may be given for parameters."""
    if isinstance(params, nn.Module):
        params = unwrapped(params).named_parameters()
    if isinstance(params, Tensor):
        raise ValueError("params is a tensor: give a module, an optimiser or a list of parameters.")
    items = list(params)
    if items and isinstance(items[0], dict):
        return [_group(item) for item in items]
    return [_group({"params": items})]


def _group(group: dict[str, Any]) -> dict[str, Any]:
    items = group["params"]
    items = [items] if isinstance(items, Tensor) else list(items)
    names = [item[0] if isinstance(item, tuple) else "" for item in items]
    tensors = [item[1] if isinstance(item, tuple) else item for item in items]
    for tensor in tensors:
        if not isinstance(tensor, Tensor):
            raise ValueError(
                f"params has a {type(tensor).__name__}: it must hold parameters, or names and parameters."
            )
    return {**group, "params": tensors, "param_names": names}
