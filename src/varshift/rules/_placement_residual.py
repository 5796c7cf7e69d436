"""Dropout in residual networks: outside its slot in the branch (VS103), after global pooling (VS104)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from varshift.evidence import Evidence

from . import _thresholds as thresholds
from ._branches import Branch, Branches
from ._cost import cost_of, graded
from ._cures import cure
from ._finding import Cure, Finding
from ._places import noise_place
from ._reading import capitalised, known, learns, noise_words, without_none
from ._recalibration import deployed_cost
from ._registry import Rule, register

if TYPE_CHECKING:
    from varshift.flow import Flow, NoiseSite

_UNITS = ("dropout", "channel_dropout", "alpha_dropout", "feature_alpha_dropout", "drop_block", "uniform")
_ELEMENTS = ("dropout", "alpha_dropout")
_WAYS = {
    "before-norm": "is in front of a norm of its residual branch, which learns the variance that it adds",
    "after-weight": "comes after the last weight of its residual branch: what it adds to the variance goes "
    "into the sum unaveraged, and on to all norms after it",
}


@register
class DropoutOutsideSlot(Rule):
    """Dropout in a residual branch is outside the slot "after the last norm, before the last weight".

    ## What it does

    Finds dropout of units or channels in the branch of a residual sum that has batch norms, and says where
    in the branch it is: in front of a norm of the branch, in the slot after the branch's last norm and
    before its last weight, or after both. Blocks whose branch ends in a norm have no such slot, which is
    said as well.

    ## Why it matters

    In front of a norm the dropout adds to the variance that the norm learns, and evaluation has less. After
    the last weight it goes into the sum as it was drawn. In the slot no norm of the branch sees it, the last
    weight averages over units, and the shortcut dilutes it before the next norm. In a small sweep over
    places in pre-activation networks (drop rate 0.5, three seeds) the slot had the smallest variance ratio
    in every run: 1.5, against 1.7 after the last weight and 1.8 to 2.4 in front of a norm.

    ## How it is measured

    Certain, from the captured network in training mode: the first sum downstream of the dropout of which
    another summand comes from further upstream with fewer weights. Advice; where VS101 or VS102 find at the
    same place that it costs something, they say so instead. Selected alone and with data, the step
    "variance-shift" of the gap grades it.

    ## Known limits

    Drop path belongs on the branch as a whole and is not looked at. Branches that are concatenated
    (DenseNet) and networks without norms that keep statistics are let pass, and so is dropout that no such
    norm is downstream of. The paper's tables are not public; the figures above are of this project's.

    ## Example

    ```python
    def forward(self, x):  # pre-activation: norm, ReLU, weight, norm, ReLU, weight
        h = self.conv1(F.relu(self.norm1(x)))
        return x + self.conv2(F.relu(self.norm2(F.dropout(h, 0.3, self.training))))  # in front of norm2
    ```

    ## Cure

    ```python
    def forward(self, x):
        h = self.conv1(F.relu(self.norm1(x)))
        return x + self.conv2(F.dropout(F.relu(self.norm2(h)), 0.3, self.training))
    ```

    A branch that ends in a norm has no slot: put the dropout after the last norm of the network, in front of
    the classifier.

    ## Cure safety

    Unsafe: train again, and choose the rate again. Recalibration is safe for a network that is trained
    already, see VS101 and VS102.

    ## References

    - B. J. Kim, H. Choi, H. Jang, D. Lee, S. W. Kim, "How to Use Dropout Correctly on Residual Networks with
      Batch Normalization", UAI 2023, PMLR 216, arXiv 2302.06112: the first guideline.
    """

    code = "VS103"
    name = "dropout-outside-slot"
    needs = ("capture.train",)
    improves_with = ("measurement",)

    def applies(self, evidence: Evidence) -> Iterator[Finding]:
        """Yields one finding for each way of being outside, with and without a slot."""
        flow = evidence.train
        sites = [site for site in flow.noises if _is_dropout(evidence, site)] if flow else []
        if flow is None or not sites:
            return
        branches = Branches(flow)
        groups: dict[tuple[str, bool], list[tuple[NoiseSite, Branch]]] = {}
        for site in sites:
            branch = branches.branch(site.node)
            if branch is not None and branch.place != "slot":
                groups.setdefault((branch.place, branch.has_slot), []).append((site, branch))
        severity = graded(deployed_cost(evidence, "variance-shift"), "advice", confidence="certain")
        for (place, has_slot), found in groups.items():
            if severity is None:
                return
            first = found[0][0]
            more = f" Likewise {len(found) - 1} more." if len(found) > 1 else ""
            slot = "the slot is after the branch's last norm and before its last weight"
            if not has_slot:
                slot = (
                    "the branch ends in a norm, or no weight after its last norm is passed by all of it, "
                    "so that it has no place for dropout"
                )
            yield Finding(
                code=self.code,
                severity=severity,
                confidence="certain",
                sites=tuple(noise_place(site) for site, _ in found),
                message=f"{capitalised(noise_words(first))} {_WAYS[place]}; {slot}.{more}",
                evidence={
                    "norm": first.nearest,
                    "kind": first.kind,
                    "rate": first.rate,
                    "place": place,
                    "has_slot": has_slot,
                },
                cures=(_move(first, has_slot),),
                step="variance-shift",
            )


def _is_dropout(evidence: Evidence, site: NoiseSite) -> bool:
    reached = any(learns(evidence, name) for name in site.reaches)
    return site.kind in _UNITS and site.rate != 0 and not site.additive and reached


def _move(site: NoiseSite, has_slot: bool) -> Cure:
    if has_slot:
        name = "move it between the branch's last norm and its last weight, and train again"
        return cure("move-noise", name, "unsafe", site.id, to="branch-slot")
    name = "move it after the last norm of the network, in front of the classifier, and train again"
    return cure("move-noise", name, "unsafe", site.id, to="head")


@register
class DropoutAfterGlobalPooling(Rule):
    """Elementwise dropout comes after global average pooling: in front of it the outputs are steadier.

    ## What it does

    Finds elementwise dropout between global average pooling and the classifier.

    ## Why it matters

    After the pooling each dropped unit is a whole feature. In front of it the same rate drops positions,
    over which the pooling averages: for features that are not negative, the variance of the outputs is never
    larger, and for a 7 x 7 map 5 to 60 times smaller, with the same mean. Noise that outweighs the signal
    in training slows learning and hides what the network has learnt in the training loss. Neither place
    shifts the variance at a norm.

    ## How it is measured

    Certain, from the captured network in training mode. With data and a loss it is said only where the noise
    of the network makes up half of the loss in training or more.

    ## Known limits

    The proof needs features that are not negative, as after a ReLU; maps after GELU or SiLU are not covered.
    In front of the pooling the same rate regularises much less: for equal noise q' / (1 - q') is larger by
    the number of positions over 1 + (spatial deviation / mean)^2. Dropout of whole channels is the same in
    both places.

    ## Example

    ```python
    nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(512, 10))
    ```

    ## Cure

    ```python
    nn.Sequential(features, nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))
    ```

    ## Cure safety

    Unsafe: the noise is much weaker at the same rate, so choose the rate again, and train the network
    again.

    ## References

    - B. J. Kim, H. Choi, H. Jang, D. Lee, S. W. Kim, "How to Use Dropout Correctly on Residual Networks with
      Batch Normalization", UAI 2023, PMLR 216, arXiv 2302.06112: the second guideline.
    """

    code = "VS104"
    name = "dropout-after-global-pooling"
    needs = ("capture.train",)
    improves_with = ("measurement",)

    def applies(self, evidence: Evidence) -> Iterator[Finding]:
        """Yields at most one finding, with all such sites."""
        flow = evidence.train
        if flow is None:
            return
        sites = [site for site in flow.noises if site.kind in _ELEMENTS and site.rate and not site.reaches]
        pooled = [(site, size) for site in sites if (size := _pooled_positions(flow, site)) > 1]
        share = _share_of_noise(evidence)
        if not pooled or (share is not None and share < thresholds.NOISE_SHARE):
            return
        first, positions = pooled[0]
        text = "" if share is None else f" Noise makes up {share:.0%} of the loss in training."
        yield Finding(
            code=self.code,
            severity="advice",
            confidence="certain",
            sites=tuple(noise_place(site) for site, _ in pooled),
            message=(
                f"{capitalised(noise_words(first))} comes after global average pooling over {positions} "
                f"positions: in front of it, the outputs vary less in training.{text}"
            ),
            evidence={
                "kind": first.kind,
                "rate": first.rate,
                "positions": positions,
                **without_none({"noise_share": share}),
            },
            cures=(_before_pooling([site for site, _ in pooled]),),
        )


def _before_pooling(sites: Sequence[NoiseSite]) -> Cure:
    name = "put it in front of the pooling, with a larger rate, and train again"
    return cure("move-noise", name, "unsafe", sites[0].id, to="before-pooling")


def _share_of_noise(evidence: Evidence) -> float | None:
    """Share of the loss in training that is gone once the noise is off; None where no loss was measured."""
    cost = cost_of(evidence, "noise")
    gap = evidence.measurement.gap if evidence.measurement else None
    train = known(gap.states.get("train")) if gap else None
    if cost is None or not cost.decides or not train:
        return None
    return max(-cost.delta / abs(train), 0.0) if cost.significant else 0.0


def _pooled_positions(flow: Flow, site: NoiseSite) -> int:
    """Number of positions that the signal was averaged over right before some noise, 0 for another signal."""
    index = next(iter(flow.nodes[site.node].inputs), None) if 0 <= site.node < len(flow.nodes) else None
    while index is not None:
        node = flow.nodes[index]
        source = next(iter(node.inputs), None)
        if node.has("average_pool") or node.op == "mean":
            before = flow.nodes[source].shape if source is not None else None
            return _positions(before, node.shape)
        if node.kind != "view" or source is None:
            return 0
        index = source
    return 0


def _positions(before: tuple[int, ...] | None, after: tuple[int, ...] | None) -> int:
    """Positions of a map that a pooling averages over, 0 where it leaves a map or averages over channels."""
    if not before or not after or len(before) < 3 or before[:2] != after[:2]:
        return 0
    return math.prod(before[2:]) if math.prod(after[2:]) == 1 else 0
