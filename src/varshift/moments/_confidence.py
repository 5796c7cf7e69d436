"""How sure a prediction is: its doubts, and the limits that measured errors have set for them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from torch import Tensor

from varshift.flow import NoiseSite, NormSite
from varshift.model import Norm

from ._anchor import Anchor
from ._prediction import Confidence
from ._signal import TINY
from ._train_pass import ONE_DRAW

_FEW_VALUES = 256  # values per channel below which an estimate is called uncertain
# What no average over draws settles: a noisy denominator, as in a norm per sample written by hand.
_WEAK = frozenset(["div", "reciprocal", "pow", "sqrt", "rsqrt", "log", "log2", "log10", "log1p"]) | {ONE_DRAW}
# Which tokens attend to which, made-up inputs do not tell.
_ATTENTION = frozenset(["matmul", "bmm", "baddbmm", "scaled_dot_product_attention"])
_SHARED = ("channel_dropout", "drop_path", "drop_block", "feature_alpha_dropout")
# From `benchmarks/confidence.py`: up to the first figure of each pair nine of ten norms were predicted to
# 3 %, up to the second to 10 %, on the half of its networks that sets them.
_DRIFT = (0.5, 1.6)  # of what norms upstream add to a shift: |log(ratio / local ratio)| sqrt(number of sites)
_OFFSET = (0.05, 0.25)  # of the mean, in standard deviations
# While weights move, statistics are out of date, and so is what is measured with them: after 50 updates
# those of the benchmark's networks were 3 to 40 % away from fresh ones, after 1000 up to 10 %.
_WINDOWS = 100.0


def confidence(
    site: NormSite,
    upstream: Sequence[NoiseSite],
    anchors: Sequence[Anchor],
    *,
    ratio: float,
    local_ratio: float,
    mean_offset: float,
    windows: float | None,
    real: bool,
) -> Confidence:
    """The class of one norm's figures.

    In nine norms of ten the ratio is off by up to 3 % (``"high"``) or 10 % (``"medium"``); see "How sure" in
    docs/prediction.md.

    Args:
        site: The norm.
        upstream: The noise that reaches it.
        anchors: Its calls in training.
        ratio: The predicted ratio.
        local_ratio: The predicted local ratio, which norms upstream have no part in.
        mean_offset: The predicted shift of the mean, in standard deviations.
        windows: Updates of its statistics over the length of their moving average; None where not known.
        real: Whether real data were followed.
    """
    if not upstream:
        return "high"
    weak = _WEAK if real else _WEAK | _ATTENTION
    # A frozen norm holds what was learned in another training.
    unknown = not site.batch_statistics or any(anchor.doubts & weak for anchor in anchors)
    if unknown or not (real or all(anchor.anchored for anchor in anchors)):
        return "low"
    drift = abs(math.log(max(ratio, TINY) / max(local_ratio, TINY))) * math.sqrt(len(upstream))
    if all(anchor.clean for anchor in anchors):
        drift = 0.0  # the ratio is known to be 1
    if not real and (drift > _DRIFT[1] or mean_offset > _OFFSET[1]):
        return "low"
    shape = site.shapes[0] if site.shapes else ()
    values = math.prod(shape) // max(shape[1], 1) if len(shape) > 1 else 0
    shared = any(noise.kind in _SHARED for noise in upstream)
    doubts = any(anchor.doubts for anchor in anchors)
    if shared or doubts or values < _FEW_VALUES:
        return "medium"
    unsure = drift > _DRIFT[0] or mean_offset > _OFFSET[0] or few_updates(windows)
    return "medium" if not real and unsure else "high"


def few_updates(windows: float | None) -> bool:
    """Whether statistics are known to have seen too few updates to be those of the weights."""
    return windows is not None and windows < _WINDOWS


def windows_of(norms: Iterable[Norm]) -> dict[str, float]:
    """Updates of each norm's statistics over the length of their average, ``count * momentum``.

    A norm that does not count, or has lost count, is left out; so is one that averages over all batches.
    """
    found: dict[str, float] = {}
    for norm in norms:
        count = getattr(norm.module, "num_batches_tracked", None)
        if isinstance(count, Tensor) and not count.is_meta and norm.momentum and int(count) > 0:
            found[norm.name] = int(count) * float(norm.momentum)
    return found
