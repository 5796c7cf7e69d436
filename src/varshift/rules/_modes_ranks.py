"""Ranks of a data-parallel training that see different data (VS404)."""

from __future__ import annotations

from collections.abc import Iterator

from varshift.evidence import Evidence, RankFacts, RankNorm
from varshift.theory import fold

from . import _thresholds as thresholds
from ._cost import Cost, cost_of, graded, price
from ._cures import cure
from ._finding import Cure, Finding
from ._places import norm_places
from ._reading import known, listed, norms_in_order, quoted, without_none
from ._registry import Rule, register
from ._watched import seen


@register
class DisagreeingRanks(Rule):
    """The ranks of a data-parallel training see different data, and their norms are not synchronised.

    ## What it does

    Compares what the same norm saw in the same step on the ranks of a training that `varshift.watch` watches
    on all of them. It fires where the batches of the ranks differ for good, not by chance.

    ## Why it matters

    Each rank normalises with the statistics of its own batch, so the ranks train different functions of their
    inputs. The running statistics come from one rank only: `DistributedDataParallel` broadcasts those of rank
    0 before each forward pass, and a checkpoint is written there. In evaluation all data are normalised as
    those of rank 0.

    ## How it is measured

    From the running statistics before and after a step follow mean and variance of the batches that a norm
    saw (`varshift.watch`), in up to eight channels each of up to 64 norms, on up to 16 ranks. A rank leaves
    them in the store of the process group; rank 0 reads what is there. No collective operation is run, and
    nobody waits. The steps lie further and further apart, some dozens in all.

    A norm counts from an offset of the means of 0.1 standard deviations or a ratio of the variances of 1.1
    on, where it is three standard errors over steps or more, and eight steps were compared. With the loss of
    a check (`history=`) the step "statistics" of the gap decides the severity.

    ## Known limits

    All ranks have to watch, from the same step on, and steps have to move the weights alike on all of them:
    ranks that hold different weights are not compared, sharded ones are. Norms that do not count their
    updates are left out. Where buffers are broadcast between the pieces of an accumulated batch, differences
    look smaller than they are.

    ## Example

    ```python
    part = dataset[rank * size : (rank + 1) * size]  # sorted by class: each rank gets other classes
    model = DistributedDataParallel(network)
    ```

    ## Cure

    Let each rank draw from all the data (`DistributedSampler(dataset, shuffle=True)` with `set_epoch`), or
    take the statistics over all ranks:

    ```python
    network = torch.nn.SyncBatchNorm.convert_sync_batchnorm(network)
    ```

    Of a network that is trained, `varshift.recalibrate` on all ranks pools the statistics over them.

    ## Cure safety

    Synchronised norms are safe: evaluation stays as it is. Other batches mean training again. Re-estimating
    leaves the weights as they are.

    ## References

    - PyTorch, `DistributedDataParallel`: buffers are broadcast from rank 0.
    - C. Peng et al., "MegDet: A Large Mini-Batch Object Detector", CVPR 2018: norms over all devices.
    - pytorch/pytorch#30718.
    """

    code = "VS404"
    name = "disagreeing-ranks"
    needs = ("history",)
    uses = ("modules", "capture", "measurement")

    def applies(self, evidence: Evidence) -> Iterator[Finding]:
        """Yields at most one finding, at the norms that see different data."""
        history = seen(evidence)
        ranks = None if history is None else history.ranks
        if ranks is None or ranks.synchronised or ranks.readings < thresholds.RANK_READINGS:
            return
        order = dict.fromkeys([*norms_in_order(evidence), *ranks.norms])
        norms = [ranks.norms[name] for name in order if name in ranks.norms and _differs(ranks.norms[name])]
        cost = cost_of(evidence, "statistics")
        severity = graded(cost, "warning") if norms else None
        if severity is None:
            return
        worst = max(norms, key=_size)
        yield Finding(
            code=self.code,
            severity=severity,
            confidence="measured",
            sites=norm_places(evidence, [norm.name for norm in norms]),
            message=_message(ranks, worst, [norm.name for norm in norms], cost),
            evidence=without_none(
                {
                    "ranks": ranks.ranks,
                    "steps": ranks.readings,
                    "broadcast": ranks.broadcast,
                    "variance_ratio": known(worst.variance_ratio),
                    "mean_offset": known(worst.mean_offset),
                    "mean_consistency": known(worst.mean_consistency),
                    "variance_consistency": known(worst.variance_consistency),
                    "norms": len(norms),
                }
            ),
            cures=_CURES,
            step="statistics",
            cost=price(cost),
        )


def _differs(norm: RankNorm) -> bool:
    return _size(norm) >= 1


def _size(norm: RankNorm) -> float:
    """How far the ranks are apart, in one number: 1 at the least that counts, 0 where it may be chance."""
    offset = norm.mean_offset / thresholds.OFFSET_WARNING
    shift = (fold(norm.variance_ratio) - 1) / (thresholds.SHIFT_WARNING - 1)
    return max(
        offset if norm.mean_consistency >= thresholds.STANDARD_ERRORS else 0.0,
        shift if norm.variance_consistency >= thresholds.STANDARD_ERRORS else 0.0,
    )


def _message(ranks: RankFacts, worst: RankNorm, names: list[str], cost: Cost | None) -> str:
    text = (
        f"The {ranks.ranks} ranks see different data at the norm {quoted(worst.name)}: in {ranks.readings} "
        f"steps their means were up to {worst.mean_offset:.2g} standard deviations off the common one, their "
        f"variances {worst.variance_ratio:.3g} times apart. The norms are not synchronised, and "
    )
    if ranks.broadcast:
        text += "evaluation uses the statistics of rank 0 on all ranks"
    else:
        text += "each rank evaluates with statistics of its own"
    if cost is not None and cost.metric == "loss" and cost.significant and cost.delta > 0:
        text += f"; re-estimating them lowers the loss by {cost.delta:.3g}"
    others = [name for name in names if name != worst.name]
    return text + (f". So with {listed(others)}." if others else ".")


_CURES: tuple[Cure, ...] = (
    cure("sync-norm", "norms that take their statistics over all ranks, and train again", "safe"),
    cure("reshuffle", "let every rank draw from all the data in every epoch, and train again", "unsafe"),
    cure("recalibrate", "re-estimate the statistics on all ranks, which pools them", "safe"),
)
