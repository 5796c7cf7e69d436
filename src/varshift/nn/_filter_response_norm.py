"""Filter response normalisation and the thresholded linear unit (Singh & Krishnan 2020), as layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from varshift._arguments import count, finite, non_negative
from varshift.functional import filter_response_norm, thresholded_linear_unit

from ._shapes import require_features


class _FilterResponseNorm(nn.Module):
    """What the layers share; a subclass says which inputs it takes."""

    _dimensions: tuple[int, ...]
    _shapes: str

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-6,
        affine: bool = True,
        learn_eps: bool = False,
        eps_per_channel: bool = False,
        learned_eps_init: float = 1e-4,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_features = count("num_features", num_features, 1)
        self.eps = non_negative("eps", eps)
        self.affine, self.learn_eps, self.eps_per_channel = affine, learn_eps, eps_per_channel
        self.learned_eps_init = finite("learned_eps_init", learned_eps_init)
        factory = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.empty(num_features, **factory)) if affine else None
        self.bias = nn.Parameter(torch.empty(num_features, **factory)) if affine else None
        sizes = num_features if eps_per_channel else 1
        self.learned_eps = nn.Parameter(torch.empty(sizes, **factory)) if learn_eps else None
        self.tau: nn.Parameter | None = None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Sets scale 1, shift 0, threshold 0 and the learned constant to its initial value."""
        for parameter, value in (
            (self.weight, 1.0),
            (self.bias, 0.0),
            (self.learned_eps, self.learned_eps_init),
            (self.tau, 0.0),
        ):
            if parameter is not None:
                nn.init.constant_(parameter, value)

    def forward(self, x: Tensor) -> Tensor:
        """Normalises; the same in training and in evaluation."""
        if x.dim() not in self._dimensions:
            raise ValueError(f"{type(self).__name__} takes {self._shapes}, but the input is {x.dim()}-D.")
        require_features(self, x, self.num_features)
        return filter_response_norm(x, self.weight, self.bias, self.tau, self.eps, self.learned_eps)

    def extra_repr(self) -> str:
        """The arguments that matter."""
        text = f"{self.num_features}, eps={self.eps:g}, affine={self.affine}"
        if self.learn_eps:
            text += f", learn_eps=True, eps_per_channel={self.eps_per_channel}"
        return text


class FilterResponseNorm1d(_FilterResponseNorm):
    r"""Filter response normalisation of features ``(B, C)`` or sequences ``(B, C, L)``.

    See `FilterResponseNorm2d` for the formula and the arguments. For ``(B, C)`` every value is its own group
    (:math:`N = 1`): :math:`\hat x = x / \sqrt{x^2 + \varepsilon}`, a soft sign whose gradient lives within
    :math:`|x| < \sqrt\varepsilon`. Use ``learn_eps=True`` there, as the paper does; it is not a mean over the
    features, which would be RMS norm.

    Example:
        >>> import torch
        >>> from varshift import nn
        >>> layer = nn.FilterResponseNorm1d(3, learn_eps=True)
        >>> layer(torch.tensor([[1.0, -1.0, 0.0]])).sign()
        tensor([[ 1., -1.,  0.]], grad_fn=<SignBackward0>)
    """

    _dimensions = (2, 3)
    _shapes = "(B, C) or (B, C, L)"


class FilterResponseNorm2d(_FilterResponseNorm):
    r"""Filter response normalisation of images: each map is divided by its own root mean square.

    For the :math:`N` positions of one channel of one sample

    .. math::

        \nu^2 = \frac{1}{N} \sum_i x_i^2, \qquad
        y_i = \gamma \frac{x_i}{\sqrt{\nu^2 + \varepsilon}} + \beta

    There is no batch, no mean and no running statistic: training and evaluation are the same, and a batch of
    one is exact, so there is nothing that noise could shift. The layer is meant to be followed by a
    `ThresholdedLinearUnit` in place of ReLU; `FilterResponseNormTLU2d` is the pair in one pass.

    Shape:
        ``(B, C, H, W)`` to the same. Statistics are computed in float32 for half-precision input.

    Args:
        num_features: C.
        eps: Constant under the root, at least 0.
        affine: Whether to learn gamma (from 1) and beta (from 0) per channel.
        learn_eps: Whether to add :math:`|\varepsilon_l|` to `eps`, with :math:`\varepsilon_l` learned. For
            layers that see maps of a single position; elsewhere the paper uses the constant alone.
        eps_per_channel: One learned constant per channel in place of one per layer. The granularity in the
            paper is not known for certain; its listing suggests one per layer.
        learned_eps_init: Initial :math:`\varepsilon_l`.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: If `eps` is negative, or the input does not fit.

    Singh & Krishnan, "Filter Response Normalization Layer", CVPR 2020, arXiv 1911.09737, eqs. 1 and 2. The
    values of both constants come from a translation and a code review of the paper, not from its own text.
    The paper ramps the learning rate up from 0 for layers of this kind; how long is not known.

    Example:
        >>> import torch
        >>> from varshift import nn
        >>> layer = nn.FilterResponseNorm2d(8)
        >>> layer(100 * torch.randn(1, 8, 16, 16)).square().mean((2, 3)).allclose(torch.ones(1, 8))
        True
    """

    _dimensions = (4,)
    _shapes = "(B, C, H, W)"


class FilterResponseNorm3d(_FilterResponseNorm):
    """Filter response normalisation of volumes ``(B, C, D, H, W)``.

    See `FilterResponseNorm2d` for the formula and the arguments.

    Example:
        >>> import torch
        >>> from varshift import nn
        >>> nn.FilterResponseNorm3d(4)(torch.randn(2, 4, 3, 5, 5)).shape
        torch.Size([2, 4, 3, 5, 5])
    """

    _dimensions = (5,)
    _shapes = "(B, C, D, H, W)"


class _FilterResponseNormTLU(_FilterResponseNorm):
    """The norm with its threshold."""

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-6,
        affine: bool = True,
        learn_eps: bool = False,
        eps_per_channel: bool = False,
        learned_eps_init: float = 1e-4,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            num_features, eps, affine, learn_eps, eps_per_channel, learned_eps_init, device, dtype
        )
        self.tau = nn.Parameter(torch.zeros(num_features, device=device, dtype=dtype))


class FilterResponseNormTLU1d(_FilterResponseNormTLU, FilterResponseNorm1d):
    """Filter response normalisation and its threshold for ``(B, C)`` or ``(B, C, L)``, in one pass.

    See `FilterResponseNormTLU2d`, and `FilterResponseNorm1d` about ``(B, C)``.

    Example:
        >>> import torch
        >>> from varshift import nn
        >>> nn.FilterResponseNormTLU1d(3, learn_eps=True)(torch.randn(5, 3)).min() >= 0
        tensor(True)
    """


class FilterResponseNormTLU2d(_FilterResponseNormTLU, FilterResponseNorm2d):
    r"""Filter response normalisation and its threshold in one pass: the whole layer of the paper.

    .. math:: z_i = \max\Big(\gamma \frac{x_i}{\sqrt{\nu^2 + \varepsilon}} + \beta,\ \tau\Big)

    It stands for a batch norm *and* the ReLU behind it, and gives what `FilterResponseNorm2d` followed by a
    `ThresholdedLinearUnit` gives, faster and with less kept for the backward pass: the input and one number
    per map. Where a norm has no ReLU behind it (the last of a residual branch), use `FilterResponseNorm2d`.

    Shape:
        ``(B, C, H, W)`` to the same. Training and evaluation are the same.

    Args:
        num_features: C.
        eps: Constant under the root, at least 0.
        affine: Whether to learn gamma and beta per channel; the threshold tau is always learned, from 0.
        learn_eps: See `FilterResponseNorm2d`.
        eps_per_channel: See `FilterResponseNorm2d`.
        learned_eps_init: See `FilterResponseNorm2d`.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: If `eps` is negative, or the input does not fit.

    Singh & Krishnan, "Filter Response Normalization Layer", CVPR 2020, arXiv 1911.09737, eqs. 1 to 3. That
    tau starts from 0 was seen in all implementations, not in the paper. Leave weight decay off tau and the
    learned constant (a choice of ours; the paper's treatment is unknown). The parameters are named as in
    timm's `FilterResponseNormTlu2d`, whose eps is 1e-5.

    Example:
        >>> import torch
        >>> from varshift import nn
        >>> block = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), nn.FilterResponseNormTLU2d(8))
        >>> block(torch.randn(2, 3, 8, 8)).shape
        torch.Size([2, 8, 6, 6])
    """


class FilterResponseNormTLU3d(_FilterResponseNormTLU, FilterResponseNorm3d):
    """Filter response normalisation and its threshold for volumes ``(B, C, D, H, W)``, in one pass.

    See `FilterResponseNormTLU2d`.

    Example:
        >>> import torch
        >>> from varshift import nn
        >>> nn.FilterResponseNormTLU3d(4)(torch.randn(2, 4, 3, 5, 5)).shape
        torch.Size([2, 4, 3, 5, 5])
    """


class ThresholdedLinearUnit(nn.Module):
    r"""Activation with a learned threshold per channel: :math:`z = \max(y, \tau)`.

    It lets a norm without centring choose its own zero. At a tie the gradient goes to :math:`y`; what the
    threshold stops goes to :math:`\tau`, where ReLU would drop it.

    Shape:
        ``(B, C, *)`` to the same. Training and evaluation are the same.

    Args:
        num_features: C.
        init: Initial threshold; with 0 the layer starts as ReLU.
        device: Of the threshold.
        dtype: Of the threshold.

    Raises:
        ValueError: If the input's axis 1 does not have `num_features` channels.

    Singh & Krishnan, "Filter Response Normalization Layer", CVPR 2020, arXiv 1911.09737, eq. 3. That tau
    starts from 0 was seen in all implementations, not in the paper.

    Example:
        >>> import torch
        >>> from varshift import nn
        >>> nn.ThresholdedLinearUnit(2, init=0.5)(torch.tensor([[0.2, 0.7]]))
        tensor([[0.5000, 0.7000]], grad_fn=<ThresholdBackward>)
    """

    def __init__(
        self, num_features: int, init: float = 0.0, device: Any = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.num_features, self.init = count("num_features", num_features, 1), finite("init", init)
        self.tau = nn.Parameter(torch.empty(num_features, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Sets the threshold to its initial value."""
        nn.init.constant_(self.tau, self.init)

    def forward(self, x: Tensor) -> Tensor:
        """Cuts off below the threshold."""
        return thresholded_linear_unit(x, self.tau)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.num_features}, init={self.init:g}"
