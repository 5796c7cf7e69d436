"""Closed forms of what noise does to the statistics of a normalisation, in plain floats.

Two conventions run through all of it:

* ``keep`` is a KEEP probability, as in the formulas. Everywhere else in varshift, as in torch, ``p`` and
  ``rate`` are DROP probabilities: ``keep = 1 - p``.
* A ``delta`` is the variance of a norm's input in evaluation over that in training: the variance shift as
  reports print it (``ratio``, "deployed over learned"; 1 is healthy, below 1 the norm learned on a noisier
  signal). An ``inflation`` is its reciprocal, training over evaluation.

Sources: "variance shift" is X. Li, S. Chen, X. Hu, J. Yang, "Understanding the Disharmony between Dropout and
Batch Normalization by Variance Shift", arXiv 1801.05134. "residual positions" is B. J. Kim, H. Choi, H. Jang,
D. Lee, S. W. Kim, "How to Use Dropout Correctly on Residual Networks with Batch Normalization",
arXiv 2302.06112; of this one only the abstract was available, as of the "independent-component paper",
G. Chen, P. Chen, Y. Shi, C.-Y. Hsieh, B. Liao, S. Zhang, "Rethinking the Usage of Batch Normalization and
Dropout in the Training of Deep Neural Networks", arXiv 1905.05928. Where a docstring says "derived", the
formula is not printed in the paper; it was derived for this package and is checked in its tests.
"""

from __future__ import annotations

from ._fold import fold as fold
from ._independence import component_correlation as component_correlation
from ._independence import dropped_condition as dropped_condition
from ._independence import dropped_entropy as dropped_entropy
from ._independence import information_scale as information_scale
from ._max_pool import noisy_max_pool_mean_ratio as noisy_max_pool_mean_ratio
from ._moments import Moments as Moments
from ._moments import half_normal_moments as half_normal_moments
from ._moments import relu_moments as relu_moments
from ._noise import bernoulli_noise_variance as bernoulli_noise_variance
from ._noise import equal_noise_keep as equal_noise_keep
from ._noise import gaussian_noise_variance as gaussian_noise_variance
from ._noise import noise_variance as noise_variance
from ._noise import uniform_equal_keep as uniform_equal_keep
from ._noise import uniform_noise_variance as uniform_noise_variance
from ._pooling import head_equal_noise_keep as head_equal_noise_keep
from ._pooling import head_noise_after_pooling as head_noise_after_pooling
from ._pooling import head_noise_before_pooling as head_noise_before_pooling
from ._pooling import head_noise_ratio as head_noise_ratio
from ._pooling import head_noise_ratio_independent as head_noise_ratio_independent
from ._pooling import max_pool_mean_ratio as max_pool_mean_ratio
from ._residual import diluted_inflation as diluted_inflation
from ._residual import direct_inflation as direct_inflation
from ._residual import trunk_inflation as trunk_inflation
from ._residual import weighted_inflation as weighted_inflation
from ._shift import alignment as alignment
from ._shift import cosine_squared as cosine_squared
from ._shift import delta_a as delta_a
from ._shift import delta_b as delta_b
from ._shift import dropped_correlation as dropped_correlation
from ._shift import dropped_variance as dropped_variance
from ._shift import exact_delta as exact_delta
from ._shift import gaussian_delta as gaussian_delta
from ._shift import minimum_correlation as minimum_correlation
from ._shift import noise_delta as noise_delta
from ._shift import uniform_delta as uniform_delta
