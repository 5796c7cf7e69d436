"""What noise multiplies a signal with: the wrong tensor, or without rescaling (VS107)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from varshift.evidence import Evidence
from varshift.theory import fold

from . import _thresholds as thresholds
from ._cost import Cost, cost_of, graded, price
from ._cures import cure
from ._finding import Cure, Finding, Severity
from ._places import noise_place
from ._reading import capitalised, noise_words
from ._registry import Rule, register

if TYPE_CHECKING:
    from varshift.flow import Flow, NoiseSite

_DROPS = {
    "identity": "drops the identity path of the residual sum: a dropped sample keeps only its branch",
    "everything": "drops the whole signal: without another path around it a dropped sample loses everything",
    "nothing": "drops nothing: its result is not used",
}


@register
class DropPathOnWrongTensor(Rule):
    """Drop path drops the wrong tensor (the identity path, everything, nothing), or noise is not rescaled.

    ## What it does

    Looks at what the gate of each drop path multiplies. It should be the branch of a residual sum, so that
    a dropped sample keeps its identity path. And it looks at noise written by hand: what it multiplies the
    signal with should be 1 on average, or evaluation should multiply with that average.

    ## Why it matters

    A gate on the identity path, or after the sum, removes a sample's whole signal: with L such blocks of
    keep probability k the variance grows by k^-L in training and the gradient with it (67 times at k = 0.9
    and L = 40), and every norm downstream learns it. A gate whose result is not used regularises nothing,
    although the configuration says so.

    Dropout that is not divided by its keep probability k passes on k times the signal in training and all
    of it in evaluation. Norms downstream have learned the mean and the variance of the smaller signal;
    without norms every layer downstream gets inputs that are too large by 1 / k.

    ## How it is measured

    Certain, from the captured network in training mode: whether there is a sum after the gate, and whether
    the other side of that sum carries the weights.

    `mean_factor` is the mean over the noise of what a signal is multiplied with, whichever way it is
    written: a product with a mask, a division before or after it, `torch.where`, `masked_fill`, an
    assignment to masked elements. Where evaluation multiplies with a constant that training does not, that
    is taken into account. More than 2 % from 1 is reported. With data and a loss it is graded by what it
    costs: the step "variance-shift" where a norm is downstream, else the step "noise". Otherwise it is a
    warning from 10 % on, advice for noise on the input of the network (data that are masked on purpose).

    ## Known limits

    Where the capture cannot tell branch from identity (both sides carry weights) nothing is reported. A
    gate in a network that has no residual sums at all, used as dropout of whole samples, is reported as
    dropping everything. Layers that are skipped by a random number of Python's are not seen, rescaled or
    not.

    ## Example

    ```python
    def forward(self, x):
        return self.branch(x) + self.drop_path(x)  # drops the identity path


    def drop(self, x):
        return x * (torch.rand_like(x) < 0.8) if self.training else x  # passes on 0.8 x on average
    ```

    ## Cure

    ```python
    def forward(self, x):
        return x + self.drop_path(self.branch(x))


    def drop(self, x):
        return x * (torch.rand_like(x) < 0.8) / 0.8 if self.training else x
    ```

    ## Cure safety

    Unsafe: the network learns something else, train it again. Only a gate whose result is not used can be
    removed safely.

    ## References

    - G. Huang, Y. Sun, Z. Liu, D. Sedra, K. Weinberger, "Deep Networks with Stochastic Depth", ECCV 2016.
    - N. Srivastava et al., "Dropout: A Simple Way to Prevent Neural Networks from Overfitting", JMLR 15
      (2014), section 10: weights are scaled by the keep probability in evaluation, or by its inverse in
      training.
    """

    code = "VS107"
    name = "drop-path-on-wrong-tensor"
    needs = ("capture.train",)
    improves_with = ("measurement",)

    def applies(self, evidence: Evidence) -> Iterator[Finding]:
        """Yields one finding for each way to drop the wrong tensor, and one for noise without rescaling."""
        flow = evidence.train
        if flow is None:
            return
        for drops in _DROPS:
            sites = [one for one in flow.noises if one.kind == "drop_path" and one.drops == drops]
            sites = [one for one in sites if one.rate != 0]
            if sites:
                yield self._wrong_tensor(evidence, drops, sites)
        unscaled = [site for site in flow.noises if is_unscaled(site)]
        if unscaled:
            yield from self._unscaled(evidence, flow, unscaled)

    def _wrong_tensor(self, evidence: Evidence, drops: str, sites: Sequence[NoiseSite]) -> Finding:
        first = sites[0]
        unused = drops == "nothing"
        cost = None if unused else _cost(evidence, sites)
        return Finding(
            code=self.code,
            severity="warning" if unused else "error",
            confidence="certain",
            sites=tuple(map(noise_place, sites)),
            message=f"{capitalised(noise_words(first))} {_DROPS[drops]}.{_likewise(sites)}",
            evidence={"norm": first.nearest, "kind": first.kind, "rate": first.rate, "drops": drops},
            cures=_UNUSED if unused else (_to_branch(first),),
            step=cost.causes[0] if cost else None,
            cost=price(cost),
        )

    def _unscaled(self, evidence: Evidence, flow: Flow, sites: Sequence[NoiseSite]) -> Iterator[Finding]:
        worst = max(sites, key=_fold)
        cost = _cost(evidence, sites)
        gates = all(site.kind == "drop_path" for site in sites)
        masked = all(is_on_input(flow, site) for site in sites)
        by_ratio: Severity = (
            "advice" if masked or _fold(worst) < thresholds.MEAN_FACTOR_WARNING else "warning"
        )
        severity = graded(cost, by_ratio, confidence="certain")
        if severity is None:
            return
        yield Finding(
            code=self.code,
            severity=severity,
            confidence="certain",
            sites=tuple(noise_place(site) for site in sorted(sites, key=_fold, reverse=True)),
            message=(
                f"{capitalised(noise_words(worst))} is not rescaled: in training it passes on "
                f"{worst.mean_factor:.3g} times the signal on average, in evaluation all of it."
                f"{_likewise(sites)}"
            ),
            evidence={
                "norm": worst.nearest,
                "kind": worst.kind,
                "rate": worst.rate,
                "mean_factor": worst.mean_factor,
                "on_input": masked,
            },
            cures=(
                cure(
                    "rescale-noise",
                    f"divide by {worst.mean_factor:.3g}, and train again",
                    "unsafe",
                    worst.id,
                    factor=worst.mean_factor,
                ),
            ),
            step=cost.causes[0] if cost else None,
            # What it does to norms and outputs, VS101, VS102 and VS208 measure; drop path has no other name.
            cost=price(cost) if gates else None,
        )


_UNUSED = (
    cure("remove-noise", "remove it", "safe"),
    cure("use-result", "use its result, and train again", "unsafe"),
)


def _to_branch(site: NoiseSite) -> Cure:
    name = "apply it to the branch: x + drop_path(branch(x)), and train again"
    return cure("move-noise", name, "unsafe", site.id, to="branch")


def _fold(site: NoiseSite) -> float:
    return fold(site.mean_factor or 1.0)


def is_unscaled(site: NoiseSite) -> bool:
    """Whether noise multiplies with something else than 1 on average, and evaluation does not."""
    return site.mean_factor is not None and site.rate != 0 and _fold(site) > thresholds.MEAN_FACTOR


def _cost(evidence: Evidence, sites: Sequence[NoiseSite]) -> Cost | None:
    """What sites cost: through the norms downstream, or without any through the outputs."""
    return cost_of(evidence, "variance-shift" if any(site.reaches for site in sites) else "noise")


def _likewise(sites: Sequence[NoiseSite]) -> str:
    return f" Likewise {len(sites) - 1} more." if len(sites) > 1 else ""


def is_on_input(flow: Flow, site: NoiseSite) -> bool:
    """Whether noise meets the input of the network, before any weight: data that are masked or made noisy."""
    stack, seen = [site.node], {site.node}
    while stack:
        for source in flow.nodes[stack.pop()].inputs:
            if flow.nodes[source].kind in ("weight", "norm"):
                return False
            if source not in seen:
                seen.add(source)
                stack.append(source)
    return True
