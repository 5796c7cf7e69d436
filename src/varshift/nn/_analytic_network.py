"""Networks that hand per-channel moments along with their signal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from varshift._arguments import vector
from varshift.functional import KalmanState, add_kalman_states, channel_moments

from ._analytic_norm import AnalyticModule
from ._analytic_rules import find_rule


def propagate(module: nn.Module, x: torch.Tensor, state: KalmanState) -> tuple[torch.Tensor, KalmanState]:
    r"""Passes a signal and its per-channel moments through a module.

    The signal takes the module's own way. Its moments ``(m, v)``, over the data set and all positions, are

    .. math::

        \mu'_o = b_o + \sum_{ck} W_{ock} m_c, \qquad v'_o = \sum_{ck} W_{ock}^2 v_c

    behind linear layers and convolutions (with any groups, stride and dilation; where zeros surround the map,
    the average over its positions is exact), and the mean and variance of ``f(N(m, v))`` behind activations,
    in closed form or by quadrature. Elements count as Gaussian, uncorrelated, and alike at all positions.
    Average pools divide the variance, max-pools take the largest of independent Gaussians, batch norm leaves
    its affine parameters' moments. Dropout leaves the moments of the clean signal, in both modes.

    `torch.nn.Sequential` is walked through; modules derived from `varshift.nn.AnalyticModule` take and return
    the state themselves; `varshift.nn.moment_rule` adds rules for others.

    Args:
        module: The module.
        x: The signal, of shape (N, C, ...).
        state: Its moments, of shape (C,).

    Returns:
        The signal behind the module, and its moments.

    Raises:
        ValueError: If there is no rule for a module, or shapes do not fit.

    Reference:
        As for `varshift.nn.AnalyticNorm2d`; the average over positions with a border is our reading of the
        paper's "averaging over spatial positions".

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from varshift.functional import KalmanState
        >>> from varshift.nn import propagate
        >>> x, state = torch.randn(2, 1), KalmanState(torch.zeros(1), torch.ones(1))
        >>> y, (mean, var) = propagate(nn.ReLU(), x, state)
        >>> print(f"{mean.item():.4f} {var.item():.4f}")
        0.3989 0.3408
    """
    if isinstance(module, AnalyticModule):
        return module(x, state)
    if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
        for child in module:
            x, state = propagate(child, x, state)
        return x, state
    rule = find_rule(module)
    if rule is None:
        raise ValueError(
            f"module of class {type(module).__name__} must be one whose moments are known: register a rule "
            "with varshift.nn.moment_rule, or derive it from varshift.nn.AnalyticModule."
        )
    before = x.shape
    y = module(x)
    return y, rule(module, state, before, y.shape)


class AnalyticResidual(AnalyticModule):
    r"""A residual block whose moments are known: signals add, means add, variances add.

    .. math:: y = s(x) + f(x), \qquad (m, v) = (m_s + m_f,\ v_s + v_f)

    Adding variances takes the branch as uncorrelated with the shortcut. Training and evaluation are alike.

    Args:
        branch: The branch ``f``, anything that `varshift.nn.propagate` takes.
        shortcut: The shortcut ``s``; None for the identity.

    Raises:
        ValueError: In use, if the two do not give equal shapes.

    Reference:
        As for `varshift.nn.AnalyticNorm2d`; how the paper treats residual blocks is not known.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from varshift.functional import KalmanState
        >>> from varshift.nn import AnalyticNorm2d, AnalyticResidual
        >>> block = AnalyticResidual(nn.Sequential(nn.Conv2d(4, 4, 1), AnalyticNorm2d(4)))
        >>> y, state = block(torch.randn(2, 4, 3, 3), KalmanState(torch.zeros(4), torch.ones(4)))
        >>> [round(value, 2) for value in state.var.tolist()]
        [2.0, 2.0, 2.0, 2.0]
    """

    def __init__(self, branch: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut = nn.Identity() if shortcut is None else shortcut

    def forward(self, x: torch.Tensor, state: KalmanState) -> tuple[torch.Tensor, KalmanState]:
        """The sum of both, and its moments."""
        short, first = propagate(self.shortcut, x, state)
        y, second = propagate(self.branch, x, state)
        if short.shape != y.shape:
            raise ValueError(
                f"shortcut gives shape {tuple(short.shape)} and branch {tuple(y.shape)}: they must be equal."
            )
        return short + y, add_kalman_states(first, second)


class AnalyticNetwork(nn.Module):
    """A network with analytic norms as a function of its input alone: it holds the moments of the data set.

    In each pass the data set's moments are propagated once, beside the signal, through the current weights
    (`varshift.nn.propagate`); every `varshift.nn.AnalyticNorm2d` and its kin on the way normalises with what
    arrives. Their cost is about that of one sample with a map of one element. Training and evaluation are the
    same function apart from dropout, and no sample sees its batch mates.

    Shape:
        Input (N, C, ...), output as the body gives it.

    Args:
        body: The network: a `torch.nn.Sequential`, nested as deep as you like, of modules with known moments.
        mean: Mean of each channel of the input over the data set, as the network sees it, behind any
            normalisation of the data. `from_data` measures it.
        var: Variance of each channel.
        device: Device of the two buffers.
        dtype: Their type.

    Raises:
        ValueError: If the numbers of means and variances differ, or a variance is negative; in use, if there
            is no rule for a module or shapes do not fit.

    Reference:
        As for `varshift.nn.AnalyticNorm2d`.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from varshift.nn import AnalyticNetwork, AnalyticNorm2d, AnalyticResidual
        >>> block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), AnalyticNorm2d(8), nn.ReLU())
        >>> body = nn.Sequential(
        ...     nn.Conv2d(3, 8, 3), AnalyticNorm2d(8), nn.ReLU(), AnalyticResidual(block),
        ...     nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10),
        ... )
        >>> net = AnalyticNetwork(body, mean=[0.0, 0.0, 0.0], var=[1.0, 1.0, 1.0])
        >>> net(torch.randn(1, 3, 8, 8)).shape
        torch.Size([1, 10])
    """

    mean: torch.Tensor
    var: torch.Tensor

    def __init__(
        self,
        body: nn.Module,
        mean: Sequence[float] | torch.Tensor,
        var: Sequence[float] | torch.Tensor,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        means, variances = (
            vector(name, value.flatten().tolist() if isinstance(value, torch.Tensor) else value)
            for name, value in (("mean", mean), ("var", var))
        )
        if len(means) != len(variances):
            raise ValueError(
                f"mean has {len(means)} values and var has {len(variances)}: they must be as many."
            )
        if min(variances) < 0:
            raise ValueError(f"var={variances!r} must be at least 0 for every channel.")
        self.body = body
        self._given = tuple(means), tuple(variances)
        self.register_buffer("mean", torch.empty(len(means), device=device, dtype=dtype))
        self.register_buffer("var", torch.empty(len(means), device=device, dtype=dtype))
        self.reset_parameters()

    @classmethod
    def from_data(cls, body: nn.Module, batches: torch.Tensor | Iterable) -> AnalyticNetwork:
        """A network whose data moments are measured.

        Args:
            body: As for the class.
            batches: As for `varshift.functional.channel_moments`: a tensor, or a loader.
        """
        return cls(body, *channel_moments(batches))

    def reset_parameters(self) -> None:
        """Restores the moments that the network was made with; the body's parameters stay."""
        for buffer, values in zip((self.mean, self.var), self._given, strict=True):
            if not buffer.is_meta:
                buffer.copy_(torch.tensor(values))

    def state(self) -> KalmanState:
        """The moments of the data, in float32 at least."""
        precision = torch.promote_types(self.mean.dtype, torch.float32)
        return KalmanState(self.mean.to(precision), self.var.to(precision))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The network's output."""
        if x.dim() < 2 or x.shape[1] != len(self.mean):
            raise ValueError(
                f"x of shape {tuple(x.shape)} must have {len(self.mean)} channels on axis 1, as mean has."
            )
        return propagate(self.body, x, self.state())[0]

    def moments(self, x: torch.Tensor) -> KalmanState:
        """The predicted moments of the output; of ``x`` only the shape matters."""
        return propagate(self.body, x, self.state())[1]

    def extra_repr(self) -> str:
        """The number of channels."""
        return f"channels={len(self.mean)}"
