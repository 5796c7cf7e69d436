"""What an optimiser does to norms and to weights whose scale does not matter (VS501)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from varshift._sites import SiteId
from varshift.evidence import Evidence, OptimizerFacts

from ._cures import cure
from ._finding import Cure, Finding, FindingSite
from ._paths import readers_of
from ._reading import listed
from ._registry import Rule, register

_ANGULAR = ("SGD", "AdamW")  # the stationary step of which is known


@register
class UnplannedDecay(Rule):
    """Weight decay acts on norm parameters, or without a plan on weights whose scale does not matter.

    ## What it does

    Reads the parameter groups of the optimiser that is passed as `optimizer=`: weight decay on the scales and
    shifts of norms, and on weights that a norm downstream makes scale invariant; and biases in front of a
    batch norm.

    ## Why it matters

    A norm's scale starts at 1 and has no reason to become small: decay pulls it towards 0, and the signal
    with it. A weight in front of a norm can be scaled without changing what the network computes. Decay does
    not make such a network simpler: it shrinks the weight, and gradients grow as the weight shrinks. Both
    come to an equilibrium in which a step turns the weight by about sqrt(2 * rate * decay), whatever its
    gradients. With a schedule of the learning rate this step shrinks as training goes on. Without one it
    stays, and the running statistics of the norms are always older than weights that keep turning. A bias in
    front of a batch norm is subtracted with the mean: it does nothing, and decay or noise of the optimiser
    move it.

    ## How it is measured

    The groups are read. Weights whose scale does not matter are measured on a copy (Euler's rule, then random
    factors). Scale-invariant weights are reported where they have the same weight decay as the other weights
    and the learning rate has no schedule (no `initial_lr` in the groups), and the optimiser is not one that
    looks after their scale. All of it is advice.

    ## Known limits

    A schedule that is written by hand is not seen. Without `optimizer=` nothing is reported.

    ## Example

    ```python
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=1e-4)  # for the norms, too
    varshift.check(model, loader, optimizer=optimizer)
    ```

    ## Cure

    ```python
    norms = [p for m in model.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()]
    others = [p for p in model.parameters() if all(p is not one for one in norms)]
    groups = [{"params": norms, "weight_decay": 0.0}, {"params": others}]
    optimizer = torch.optim.SGD(groups, lr=0.1, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    ```

    ## Cure safety

    Unsafe in the sense that it changes the training to come. The network as it is stays the same.

    ## References

    - T. van Laarhoven, "L2 Regularization versus Batch and Weight Normalization", arXiv 1706.05350.
    - R. Wan, Z. Zhu, X. Zhang, J. Sun, "Spherical Motion Dynamics", NeurIPS 2021, arXiv 2006.08419: the
      stationary angle per step.
    - Weight rescaling, `varshift.optim.WeightRescaling`, arXiv 2102.03497.
    """

    code = "VS501"
    name = "unplanned-weight-decay"
    needs = ("optimizer",)
    uses = ("capture",)

    def applies(self, evidence: Evidence) -> Iterator[Finding]:
        """Yields at most three findings: norm parameters, weights without a scale, idle biases."""
        facts = evidence.optimizer
        if facts is None:
            return
        decayed = [name for name in facts.norm_parameters if facts.decay.get(name)]
        if decayed:
            yield self._finding(
                decayed,
                f"Weight decay of {facts.decay[decayed[0]]:g} acts on {_count(decayed, 'parameter')} of "
                f"norms ({listed(decayed)}): it pulls their scales towards 0.",
                {"weight_decay": facts.decay[decayed[0]], "parameters": len(decayed)},
                cure("exclude-from-decay", "put them into a group without weight decay", "unsafe"),
            )
        free = [name for name in facts.scale_invariant if facts.decay.get(name)]
        if free and _unplanned(facts, free):
            yield self._free_weights(facts, free)
        idle = [name for name in _idle_biases(evidence) if name in facts.learning_rates]
        if idle:
            yield self._finding(
                idle,
                f"{_count(idle, 'bias').capitalize()} in front of a batch norm ({listed(idle)}) "
                f"{'does' if len(idle) == 1 else 'do'} nothing: the norm subtracts what it adds.",
                {"parameters": len(idle)},
                cure("drop-bias", "leave it out: bias=False", "unsafe"),
            )

    def _free_weights(self, facts: OptimizerFacts, names: Sequence[str]) -> Finding:
        decay, rate = facts.decay[names[0]], facts.learning_rates[names[0]]
        angle = math.sqrt(2 * rate * decay) if rate and facts.cls in _ANGULAR else None
        text = f": a step turns them by about {angle:.2g}, and goes on doing so" if angle is not None else ""
        return self._finding(
            names,
            f"Weight decay of {decay:g} acts on {_count(names, 'weight')} whose scale does not matter "
            f"({listed(names)}), at a learning rate without a schedule{text}.",
            {"weight_decay": decay, "learning_rate": rate, "angle": angle, "parameters": len(names)},
            cure("anneal-rate", "let the learning rate fall to zero, or rescale the weights", "unsafe"),
            cure("exclude-from-decay", "put them into a group without weight decay", "unsafe"),
        )

    def _finding(
        self, names: Sequence[str], message: str, numbers: dict[str, object], *cures: Cure
    ) -> Finding:
        return Finding(
            code=self.code,
            severity="advice",
            confidence="certain",
            sites=tuple(_places(names)),
            message=message,
            evidence={"first": names[0], **numbers},
            cures=cures,
        )


def _unplanned(facts: OptimizerFacts, names: Sequence[str]) -> bool:
    """Whether nothing shows that somebody thought of these weights."""
    if facts.scheduled or facts.scale_aware:
        return False
    others = {facts.decay.get(name, 0.0) for name in facts.other_weights}
    return not others or any(facts.decay[name] in others for name in names)


def _idle_biases(evidence: Evidence) -> Iterator[str]:
    """Names of biases that nothing but batch norms reads, which subtract them."""
    flow = evidence.train
    if flow is None:
        return
    calls = {
        call
        for norm in flow.norms
        if norm.kind == "batch_norm" and norm.batch_statistics
        for call in norm.calls
    }
    readers = readers_of(flow)
    for node in flow.nodes:
        found = readers.get(node.index, [])
        if node.kind != "weight" or not found or not all(index in calls for index in found):
            continue
        parameters = [flow.nodes[index] for index in node.inputs if flow.nodes[index].kind == "parameter"]
        yield from (one.target for one in parameters if one.target and len(one.shape or ()) == 1)


def _places(names: Iterable[str]) -> Iterator[FindingSite]:
    for module in dict.fromkeys(name.rpartition(".")[0] for name in names):
        yield FindingSite(SiteId(module, "module"))


def _count(names: Sequence[str], word: str) -> str:
    plural = {"bias": "biases"}.get(word, word + "s")
    return f"1 {word}" if len(names) == 1 else f"{len(names)} {plural}"
