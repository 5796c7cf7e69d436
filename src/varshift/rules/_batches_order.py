"""The order of data: the same batches in every epoch (VS303), batch mates that carry information (VS304)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from varshift.evidence import Evidence

from . import _thresholds as thresholds
from ._cost import Cost, cost_of, graded
from ._cures import cure
from ._finding import Confidence, Finding, FindingSite, Severity
from ._places import NETWORK, norm_places
from ._reading import known, learns, norms_in_order, without_none
from ._registry import Rule, register

if TYPE_CHECKING:
    from varshift.evidence import BatchOrder, Purity, Redrawn

_RESHUFFLE = cure(
    "reshuffle", "draw the samples of every batch at random in every epoch, and train again", "unsafe"
)
_SWAP = cure(
    "swap-norm", "norms that do not look at the batch (GroupNorm), and train again", "unsafe", to="group_norm"
)


@register
class FixedComposition(Rule):
    """The same batches come in every epoch, and the network learned them together with their statistics.

    ## What it does

    Compares the batches of two epochs as sets of samples, whatever their order, and measures what the
    network loses when the same samples come in other batches.

    ## Why it matters

    Batch norm in training mode sees a partition of the samples into batches. While the partition stays the
    same, a sample has the same batch mates in every epoch, and the network learns an output for a sample in
    the company of just these: the batch is part of the input. Shuffling the order of the batches changes
    nothing about that. In evaluation, and on new data, the company is another one.

    ## How it is measured

    Two epochs of indices are drawn from a copy of the loader's batch sampler: no sample is loaded. A list of
    batches is the same in every epoch, but it may have been made for this check only. So the loss decides:
    the samples of up to 16 batches are distributed at random over batches of the same size, and the loss
    with batch statistics and without noise is compared, against the scatter over the redrawn batches (three
    standard errors). It is graded by that rise. A sampler that gives the same batches in another order is
    reported even where nothing is lost yet, as advice.

    ## Known limits

    Samplers that cannot be copied, and loaders of other classes, are not asked for a second epoch. Padded
    batches of different lengths cannot be redrawn. Where batches are of one kind each it is VS304.

    ## Example

    ```python
    batches = list(loader)  # once
    for epoch in range(60):
        for x, y in random.sample(batches, len(batches)):
            ...
    ```

    ## Cure

    ```python
    for epoch in range(60):
        for x, y in DataLoader(dataset, batch_size=16, shuffle=True):
            ...
    ```

    ## Cure safety

    Unsafe: it needs training. Re-estimated running statistics do not help, since they were right before.

    ## References

    - D. Wu, C. Yun, S. Sra, "On the training instability of shuffling SGD with batch normalization", ICML
      2023: with a single shuffle, SGD with batch norm converges to the optimum of a distorted risk.
    """

    code = "VS303"
    name = "fixed-batch-composition"
    needs = ("modules", "measurement", "order")
    uses = ("capture",)

    def applies(self, evidence: Evidence) -> Iterator[Finding]:
        """Yields at most one finding."""
        order = evidence.order
        if order is None or order.fixed is None or order.fixed < thresholds.FIXED_COMPOSITION:
            return
        if not _looks_at_batches(evidence) or _one_kind(order) is not None or _alike(order):
            return
        redrawn = order.redrawn
        cost = _redraw_cost(evidence, redrawn)
        rises = redrawn is not None and _beyond_error(redrawn) and redrawn.delta > 0
        # Of samples learnt by heart with their batches the loss is tiny, and only its ratio tells.
        by_ratio = "error" if cost is not None and cost.share >= thresholds.REDRAWN_BY_HEART else None
        severity: Severity | None = graded(cost, by_ratio) if rises else None
        reshuffled_batches = bool(order.reordered)
        if severity is None and not reshuffled_batches:
            return
        text = (
            f"{order.fixed:.0%} of the batches are the same in two epochs"
            if not order.listed
            else ("The batches come as a list, the same in every epoch")
        )
        if rises and redrawn is not None:
            text += (
                ", and the network has learned them together with their statistics: the loss on the same "
                f"samples rises from {redrawn.loss_drawn:.3g} to {redrawn.loss_redrawn:.3g} when they come "
                "in other batches"
            )
        yield Finding(
            code=self.code,
            severity=severity or "advice",
            confidence="measured" if rises else "certain",
            sites=_sites(evidence),
            message=f"{text}.",
            evidence=without_none({"same_batches": order.fixed, "listed": order.listed, **_figures(redrawn)}),
            cures=(_RESHUFFLE, _SWAP),
            step="small-batch" if rises else None,
            cost=redrawn.delta if rises and redrawn is not None else None,
        )


@register
class BatchMates(Rule):
    """Batch mates carry information: batches are of one kind each, or the loss rises when they are redrawn.

    ## What it does

    Looks at how alike the samples of a batch are (one class, one group, one recording), and measures what
    the network loses when the same samples come in batches drawn at random.

    ## Why it matters

    A norm that learns looks at the whole batch. Where all of a batch is of one kind, its statistics tell
    the kind: the network may read the answer from them, and in evaluation the answer is gone. Or they take
    away what the kinds differ in, and the running statistics are those of the kinds that came last.

    ## How it is measured

    Purity is the share of the commonest label (or of another field with one name or whole number per
    sample) in a batch, next to that of random batches of the same samples. A loader that does not shuffle
    may show samples of one class only: then samples at random places of its data set say what random
    batches would show. Batches are of one kind where purity is six tenths of the way from chance to 1.

    Where batches are of one kind, or where the loss with batch statistics is lower than with pooled ones,
    up to 16 batches are redrawn at random, and the loss with batch statistics, without noise, is compared
    against the scatter over the redrawn batches. Severity follows the rise. Batches of one class are a
    warning even without one, and an error where the loader reads a sorted data set in order: their network is
    no better on mixed batches, so it was trained on these. If it is clearly better on mixed batches it was
    not, and the finding is advice about this loader.

    ## Known limits

    Padded batches of different lengths and graphs cannot be redrawn. Two calls of a norm in one forward
    whose statistics give the answer away are VS403's: redrawing keeps the calls apart.

    ## Example

    ```python
    for real, fake in zip(real_loader, fake_loader):  # a critic with batch norm
        loss = critic_loss(critic(real), 1) + critic_loss(critic(fake), 0)
    DataLoader(ImageFolder("train"), batch_size=64)  # sorted by class, not shuffled
    ```

    ## Cure

    ```python
    critic(torch.cat([real, fake]))
    DataLoader(ImageFolder("train"), batch_size=64, shuffle=True)
    ```

    Where batches have to be of one kind: norms that do not look at the batch.

    ## Cure safety

    Unsafe: it needs training. To the network as it is `varshift.fix` gives the statistics of all batches, in
    the place of those of the kinds that came last, unless the loss rises by it.

    ## References

    - Y. Wu, J. Johnson, "Rethinking 'Batch' in BatchNorm", arXiv 2105.07576, section 6: information leakage
      within a batch.
    """

    code = "VS304"
    name = "informative-batch-mates"
    needs = ("modules", "measurement", "order")
    uses = ("capture",)

    def applies(self, evidence: Evidence) -> Iterator[Finding]:
        """Yields at most one finding."""
        order = evidence.order
        if order is None or not _looks_at_batches(evidence):
            return
        kind, redrawn = _one_kind(order), order.redrawn
        cost = _redraw_cost(evidence, redrawn)
        rises = redrawn is not None and _beyond_error(redrawn) and redrawn.delta > 0
        if kind is None and (not rises or (_is_fixed(order) and not _alike(order))):
            return  # batches that merely stay the same are VS303's
        severity: Severity | None = graded(cost, None) if rises else None
        trained_so = redrawn is None or not _better_elsewhere(redrawn)
        if kind is not None:
            severity = self._of_one_kind(kind, severity, trained_so, in_order=order.shuffles is False)
        if severity is None:
            return
        confidence: Confidence = "measured" if rises or kind is None else "certain"
        yield Finding(
            code=self.code,
            severity=severity,
            confidence=confidence,
            sites=_sites(evidence),
            message=self._message(order, kind, rises=rises, trained_so=trained_so),
            evidence=without_none(
                {
                    "purity": kind.share if kind else None,
                    "purity_by_chance": kind.chance if kind else None,
                    "purity_of": kind.name if kind else None,
                    "shuffles": order.shuffles,
                    **_figures(redrawn),
                }
            ),
            cures=(_RESHUFFLE, _SWAP) if trained_so else (),
            step="small-batch" if rises else None,
            cost=redrawn.delta if rises and redrawn is not None else None,
        )

    def _of_one_kind(
        self, kind: Purity, by_loss: Severity | None, trained_so: bool, *, in_order: bool
    ) -> Severity | None:
        """Severity of batches of one kind: labels are certain to matter, other fields only by the loss."""
        if kind.name != "label":
            return by_loss or "advice"
        if not trained_so:
            return "advice"
        return "error" if in_order or by_loss == "error" else "warning"

    def _message(self, order: BatchOrder, kind: Purity | None, *, rises: bool, trained_so: bool) -> str:
        redrawn = order.redrawn
        text = "Batch mates carry information"
        if kind is not None:
            what = "class" if kind.name == "label" else f"value of '{kind.name}'"
            text = (
                f"{kind.share:.0%} of a batch are of one {what} on average, where batches drawn at random "
                f"have {kind.chance:.0%}"
            )
            if order.shuffles is False:
                text += ", and the loader does not shuffle"
        if redrawn is None:
            return f"{text}. Their statistics tell the kind."
        change = f"from {redrawn.loss_drawn:.3g} to {redrawn.loss_redrawn:.3g}"
        if rises:
            return (
                f"{text}: the loss with batch statistics rises {change} when batches are drawn at random. "
                "The network reads a part of the answer from the statistics of the batch, which eval() lacks."
            )
        if not trained_so:
            return (
                f"{text}. The network is better on batches drawn at random (the loss goes {change}), so it "
                "was not trained on these: pass the loader of training to judge its statistics."
            )
        return f"{text}. On batches drawn at random the network is no better (the loss goes {change})."


def _looks_at_batches(evidence: Evidence) -> bool:
    """Whether some norm learns from the batch as a whole."""
    return bool(_norms(evidence))


def _norms(evidence: Evidence) -> list[str]:
    """Names of the norms that learn from the batch as a whole and that data reached."""
    names = []
    for name in norms_in_order(evidence):
        site, layer = evidence.train_norms.get(name), evidence.measured.get(name)
        per_sample = site is not None and site.kind == "instance_norm"
        if learns(evidence, name) and not per_sample and layer is not None and layer.reached:
            names.append(name)
    return names


def _sites(evidence: Evidence) -> tuple[FindingSite, ...]:
    return norm_places(evidence, _norms(evidence)) or (NETWORK,)


def _one_kind(order: BatchOrder) -> Purity | None:
    """The label, or else the purest other field, of which batches are of one kind each."""
    candidates = ([order.labels] if order.labels is not None else []) + list(order.groups)
    return next((purity for purity in candidates if purity.one_kind), None)


def _is_fixed(order: BatchOrder) -> bool:
    return order.fixed is not None and order.fixed >= thresholds.FIXED_COMPOSITION


def _alike(order: BatchOrder) -> bool:
    """Whether batch mates are more alike than random ones, by the means of the signals at the norms."""
    redrawn = order.redrawn
    return redrawn is not None and (known(redrawn.alike) or 1.0) >= thresholds.BATCH_MATES_ALIKE


def _beyond_error(redrawn: Redrawn) -> bool:
    return abs(redrawn.delta) > thresholds.STANDARD_ERRORS * redrawn.stderr


def _better_elsewhere(redrawn: Redrawn) -> bool:
    """Whether the network is clearly better on redrawn batches: it was not trained on the drawn ones."""
    return _beyond_error(redrawn) and -redrawn.delta > thresholds.REDRAWN_BETTER * abs(redrawn.loss_drawn)


def _redraw_cost(evidence: Evidence, redrawn: Redrawn | None) -> Cost | None:
    """What the drawn batches are worth: the rise of the loss when they are redrawn."""
    cost = cost_of(evidence, "small-batch")
    if cost is None or redrawn is None:
        return None
    return replace(
        cost,
        delta=redrawn.delta,
        stderr=redrawn.stderr,
        level=abs(min(redrawn.loss_drawn, redrawn.loss_redrawn)),
        batches=redrawn.batches,
    )


def _figures(redrawn: Redrawn | None) -> dict[str, float | int | str | None]:
    if redrawn is None:
        return {}
    return {
        "loss_drawn": redrawn.loss_drawn,
        "loss_redrawn": redrawn.loss_redrawn,
        "loss_step": redrawn.delta,
        "loss_step_stderr": known(redrawn.stderr),
        "redrawn_batches": redrawn.batches,
        "redrawn_from": redrawn.source,
        "batch_mates_alike": known(redrawn.alike),
    }
