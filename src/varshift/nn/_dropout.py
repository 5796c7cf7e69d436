"""Layers of multiplicative noise: dropout on the fast kernel, and its uniform and Gaussian kin."""

from __future__ import annotations

import math

from torch import Tensor, nn

from varshift._arguments import between, non_negative
from varshift.functional import dropout, gaussian_dropout, uniform_dropout


class Dropout(nn.Dropout):
    r"""Sets values to zero at random; torch's own dropout, on a faster and leaner kernel.

    .. math:: y = x \, a / (1 - p), \qquad a \sim \mathrm{Bernoulli}(1 - p) \text{ for every value}

    It is a ``torch.nn.Dropout``, so that whatever looks for one finds it; there is no ``inplace``. On a CPU
    it keeps one byte per value for the backward pass where torch keeps four.

    Shape:
        Any; the output has the same.

    In training the noise is on; in evaluation the input is returned as it is.

    Args:
        p: DROP probability in [0, 1]. On a CPU it is rounded to a multiple of ``2**-16``, or a finer one
            near 0 and 1, and the scale is that of the rounded figure.

    Raises:
        ValueError: If `p` is outside [0, 1].

    Reference:
        N. Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting", JMLR 15,
        2014.

    Example:
        >>> import torch
        >>> from varshift.nn import Dropout
        >>> layer = Dropout(p=0.5)
        >>> layer(torch.ones(1000)).unique()
        tensor([0., 2.])
        >>> layer.eval()(torch.ones(3))
        tensor([1., 1., 1.])
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__(between("p", p, 0, 1))

    def forward(self, input: Tensor) -> Tensor:
        """Applies the noise in training."""
        return dropout(input, self.p, self.training)

    def extra_repr(self) -> str:
        """The layer's arguments."""
        return f"p={self.p}"


class UniformDropout(nn.Module):
    r"""Multiplies values with uniform noise around 1: Uout, the "variance-stable" dropout.

    .. math:: y = x \, (1 + r), \qquad r \sim U(-\beta, \beta)

    Its factor has variance :math:`\beta^2 / 3`, so that a batch norm behind it, on inputs of mean zero, sees
    its variance shift by :math:`3 / (3 + \beta^2)` only: 0.997 at 0.1, where dropping a tenth gives 0.9.
    That is because the noise is weaker: it equals a DROP probability of :math:`\beta^2 / (3 + \beta^2)`,
    0.25 at most. Compare noises at equal variance.

    Shape:
        Any; with `per_channel`, ``(N, C, ...)``. The output has the same.

    In training the noise is on; in evaluation the input is returned as it is, and no rescaling is needed
    because the factor has mean 1.

    Args:
        beta: Half-width in [0, 1]; 0 is the identity. The paper tried 0.1, 0.2, 0.3 and 0.5 and singles none
            out.
        per_channel: Whether all values of a channel of a sample share one draw. The paper does not say how it
            draws for maps: one draw per value is inferred from its formula, and is the default.

    Raises:
        ValueError: If `beta` is outside [0, 1], or `per_channel` meets an input without channels.

    Reference:
        X. Li, S. Chen, X. Hu, J. Yang, "Understanding the disharmony between dropout and batch normalization
        by variance shift", arXiv 1801.05134, the second strategy. Read in arXiv version 1; whether the CVPR
        2019 version keeps this layer is not known.

    Example:
        >>> import torch
        >>> from varshift.nn import UniformDropout
        >>> layer = UniformDropout(beta=0.3)
        >>> y = layer(torch.ones(8, 16, 4, 4))
        >>> bool(((y >= 0.7) & (y <= 1.3)).all())
        True
        >>> layer.eval()(torch.ones(3))
        tensor([1., 1., 1.])
    """

    def __init__(self, beta: float, *, per_channel: bool = False) -> None:
        super().__init__()
        self.beta = between("beta", beta, 0, 1)
        self.per_channel = per_channel

    def forward(self, input: Tensor) -> Tensor:
        """Applies the noise in training."""
        return uniform_dropout(input, self.beta, self.training, per_channel=self.per_channel)

    def extra_repr(self) -> str:
        """The layer's arguments."""
        return f"beta={self.beta}" + (", per_channel=True" if self.per_channel else "")


class GaussianDropout(nn.Module):
    r"""Multiplies every value with Gaussian noise around 1.

    .. math:: y = x \, (1 + \sigma n), \qquad n \sim N(0, 1)

    The argument is the standard deviation of the factor, not a probability. Dropout with DROP probability
    ``p`` has a factor of variance :math:`p / (1 - p)`, so that :math:`\sigma = \sqrt{p / (1 - p)}` is as
    strong; ``matching(p)`` makes that layer. A batch norm behind it, on inputs of mean zero, sees a variance
    shift of :math:`1 / (1 + \sigma^2)`.

    Shape:
        Any; the output has the same.

    In training the noise is on; in evaluation the input is returned as it is.

    Args:
        sigma: Standard deviation, at least 0; 0 is the identity. Above about 0.3 some factors are negative.

    Raises:
        ValueError: If `sigma` is negative or not finite.

    Reference:
        N. Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting", JMLR 15,
        2014, as multiplicative Gaussian noise; arXiv 1801.05134 mentions it with ``sigma`` 1 as what Uout
        was inspired by and makes no experiment with it.

    Example:
        >>> import torch
        >>> from varshift.nn import GaussianDropout
        >>> GaussianDropout.matching(p=0.2)
        GaussianDropout(sigma=0.5)
        >>> y = GaussianDropout(sigma=0.5)(torch.ones(100_000))
        >>> abs(float(y.std()) - 0.5) < 0.01
        True
    """

    def __init__(self, sigma: float) -> None:
        super().__init__()
        self.sigma = non_negative("sigma", sigma)

    @classmethod
    def matching(cls, p: float) -> GaussianDropout:
        """The layer whose noise has the variance of dropout with this DROP probability.

        Args:
            p: DROP probability in [0, 1).

        Raises:
            ValueError: If `p` is outside [0, 1): no Gaussian noise is as strong as dropping everything.
        """
        p = between("p", p, 0, 1)
        if p == 1:
            raise ValueError(
                f"p={p!r} must be below 1: no Gaussian noise is as strong as dropping everything."
            )
        return cls(math.sqrt(p / (1 - p)))

    def forward(self, input: Tensor) -> Tensor:
        """Applies the noise in training."""
        return gaussian_dropout(input, self.sigma, self.training)

    def extra_repr(self) -> str:
        """The layer's arguments."""
        return f"sigma={self.sigma}"
