"""Inputs that are prepared otherwise: than the statistics were learned on (VS306), in deployment (VS307)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from varshift.evidence import Evidence

from . import _thresholds as thresholds
from ._cost import Cost, cost_of, graded, price
from ._cures import cure
from ._finding import Finding, Severity
from ._places import NETWORK, norm_places
from ._reading import capitalised, known, quoted, without_none
from ._registry import Rule, register

if TYPE_CHECKING:
    from varshift.probe import DeployTrial, InputMoments, Inputs, InputTrial


@register
class OtherInputs(Rule):
    """These data are not what the statistics were learned on: off from the first norm on, right under a map.

    ## What it does

    Looks for a scale and a shift of the inputs under which the running statistics fit again at every norm.

    ## Why it matters

    A loader without the standardisation of training, pixels of 0 to 255 where 0 to 1 were learned, or the
    channels in reverse order: the network is sound, and in `train()` it even works, since batch statistics
    take scale and shift away. Re-estimated running statistics would hide that on these data, and ruin the
    network for data that are prepared rightly.

    ## How it is measured

    Only where the input of the first norm is off its running statistics and the step "statistics" of the
    gap costs: the data's own standardisation, reversed channels, and a scale and shift fitted to the running
    statistics of the first norm are tried. The map with the best fit then goes through the whole network on
    four batches. It counts where all norms agree as in a healthy network, and where it takes away three
    quarters of the step or more. Severity follows what the step costs.

    Stale statistics are told from it by the later norms, which no map of the inputs mends; by what the map
    leads to (standardised inputs or a usual range of pixels are no coincidence, and from standardised to raw
    ones the weights have to agree); and by the loss in training mode, which must not rise under the map.

    ## Known limits

    Domains that differ by more than scale and shift are VS202's. Inputs that are whole numbers by type
    (tokens, bytes) are not mapped. Where the first norm reads the inputs through no padding, statistics that
    other data at another scale have moved cannot be told from inputs of another scale.

    ## Example

    ```python
    train = transforms.Compose([ToTensor(), Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])])
    test = transforms.Compose([ToTensor()])
    ```

    ## Cure

    The preprocessing of training, in the loader that was passed:

    ```python
    test = transforms.Compose([ToTensor(), Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])])
    ```

    ## Cure safety

    Safe: weights and statistics stay as they are. Do not recalibrate on these data.

    ## References

    - A report of this fault: bearpaw/pytorch-pose issue 4, test images without the standardisation of
      training.
    """

    code = "VS306"
    name = "other-inputs"
    needs = ("modules", "measurement", "inputs")
    uses = ("capture",)

    def applies(self, evidence: Evidence) -> Iterator[Finding]:
        """Yields at most one finding."""
        inputs = evidence.inputs
        trial = inputs.trial if inputs else None
        if trial is None or not _explains(evidence, trial):
            return
        cost = cost_of(evidence, "statistics")
        by_ratio: Severity = "error" if trial.first_before >= thresholds.OFFSET_ERROR else "warning"
        severity = graded(cost, by_ratio)
        if severity is None:
            return
        yield Finding(
            code=self.code,
            severity=severity,
            confidence="measured",
            sites=norm_places(evidence, [trial.norm]),
            message=self._message(trial),
            evidence=without_none(
                {
                    "map": trial.kind,
                    "input_mean": list(trial.before.mean),
                    "input_deviation": list(trial.before.deviation),
                    "fitting_mean": list(trial.after.mean),
                    "fitting_deviation": list(trial.after.deviation),
                    "distance_first": trial.first_before,
                    "distance_first_mapped": trial.first_after,
                    "distance_all": trial.all_before,
                    "distance_all_mapped": trial.all_after,
                    "loss_eval": known(trial.loss_before),
                    "loss_mapped": known(trial.loss_after),
                }
            ),
            cures=(cure("match-inputs", self._remedy(trial), "safe"),),
            step="statistics",
            cost=price(cost),
        )

    def _message(self, trial: InputTrial) -> str:
        if trial.kind == "reversed":
            text = "The statistics fit inputs whose channels come in reverse order (RGB against BGR)"
        else:
            text = f"The statistics fit inputs of {_words(trial.after)}; these have {_words(trial.before)}"
        if trial.loss_before is not None and trial.loss_after is not None:
            text += (
                f". Prepared so, the loss in eval() is {trial.loss_after:.3g} instead of "
                f"{trial.loss_before:.3g}, and all norms agree"
            )
        else:
            text += ". Prepared so, all norms agree"
        missing = trial.after.standardised and not trial.before.standardised
        end = "the standardisation of training is missing" if missing else "they are prepared otherwise"
        return f"{text}: {end}, and the network is sound. Do not recalibrate on these data."

    def _remedy(self, trial: InputTrial) -> str:
        if trial.kind == "reversed":
            return "give the channels in the order of training"
        return f"prepare the inputs as in training (the statistics fit {_words(trial.after)})"


@register
class OtherTransform(Rule):
    """Training and deployment loader transform the data differently, and that carries the gap.

    ## What it does

    Compares the inputs of the loader with those of `deploy=`, channel by channel, and what both make of the
    inputs of the norms.

    ## Why it matters

    The gap that users feel lies between the training loader in `train()` and the deployment loader in
    `eval()`. Everything about the network may be right, and the scale, the channel order, the crop or the
    size of the pictures differ between the two.

    ## How it is measured

    Mean and deviation of every channel of both loaders, and their means and variances at every norm in
    evaluation. It fires where they differ by more than samples of one data set do, and is graded by the
    step "transform" of the gap: the loss as shipped on both. The deployment batches are tried with the scale
    and shift of training, and colour pictures with their channels in reverse order (which moves hardly any
    mean): the finding says what that gives.

    ## Known limits

    Needs `deploy=`. What differs without moving a mean or a variance (noise, compression) shows at the
    norms, if at all. A gap with moments that agree is no matter of transforms: new samples are harder than
    those a network was trained on.

    ## Example

    ```python
    vs.check(model, train_loader, deploy=val_loader)  # 2 * x - 1 in one, x in the other
    ```

    ## Cure

    One function that prepares the data for both loaders, augmentation aside.

    ## Cure safety

    Safe: weights and statistics stay as they are.

    ## References

    - H. Touvron, A. Vedaldi, M. Douze, H. Jegou, "Fixing the train-test resolution discrepancy", NeurIPS
      2019, arXiv 1906.06423: crops of another size change the activation statistics.
    """

    code = "VS307"
    name = "other-transform"
    needs = ("modules", "measurement", "inputs", "deployment")
    uses = ("capture",)

    def applies(self, evidence: Evidence) -> Iterator[Finding]:
        """Yields at most one finding."""
        inputs, deploy = evidence.inputs, evidence.deployment
        if inputs is None or deploy is None:
            return
        differences = _differences(inputs, deploy)
        cost = cost_of(evidence, "transform")
        turned = _turned(deploy, cost)
        at_norms = _differ_at_norms(deploy)
        if not differences and not at_norms and not turned:
            return
        severity = self._severity(cost, deploy)
        sites = norm_places(evidence, [deploy.norm]) if deploy.norm is not None else (NETWORK,)
        yield Finding(
            code=self.code,
            severity=severity,
            confidence="measured",
            sites=sites,
            message=self._message(deploy, differences, turned=turned),
            evidence=without_none(
                {
                    "input_mean": list(inputs.moments.mean),
                    "input_deviation": list(inputs.moments.deviation),
                    "deployed_mean": list(deploy.moments.mean),
                    "deployed_deviation": list(deploy.moments.deviation),
                    "norm_distance": known(deploy.norm_distance),
                    "loss_deployed": known(deploy.loss),
                    "loss_matched": known(deploy.loss_matched),
                    "loss_reversed": known(deploy.loss_reversed),
                }
            ),
            cures=(cure("match-inputs", "prepare the data of both loaders by the same function", "safe"),),
            step="transform",
            cost=price(cost),
        )

    def _severity(self, cost: Cost | None, deploy: DeployTrial) -> Severity:
        distance = deploy.norm_distance or 0.0
        by_ratio: Severity = "error" if distance >= thresholds.OFFSET_ERROR else "warning"
        severity: Severity | None = graded(cost, by_ratio)
        return "advice" if severity is None else severity

    def _message(self, deploy: DeployTrial, differences: Sequence[str], *, turned: bool) -> str:
        text = "The loaders of training and deployment prepare the data differently: "
        change, loss = "", None
        if turned:
            text += "the channels come in reverse order (RGB against BGR)"
            change, loss = "in the order of training", deploy.loss_reversed
        elif differences:
            text += ", ".join(differences)
            change, loss = "with the scale and shift of training", deploy.loss_matched
        else:
            text += (
                f"at the norm {quoted(deploy.norm or '')} their moments differ by {deploy.norm_distance:.2g} "
                "standard deviations"
            )
            if deploy.shape != deploy.deployed_shape:
                text += f", and samples have the shape {deploy.shape} against {deploy.deployed_shape}"
        if deploy.loss is None or loss is None or loss >= deploy.loss:
            return f"{text}."
        return (
            f"{text}. {capitalised(change)} the loss on the deployment data is {loss:.3g} instead of "
            f"{deploy.loss:.3g}."
        )


def _differ_at_norms(deploy: DeployTrial) -> bool:
    """Whether the loaders differ at the first norm, or at any where samples have another shape.

    Later norms differ by themselves in a network that has learned its training data by heart.
    """
    least = max(thresholds.LOADERS_NORM, thresholds.LOADERS_ERRORS / math.sqrt(max(deploy.samples, 1)))
    if (known(deploy.first_distance) or 0.0) >= least:
        return True
    return deploy.shape != deploy.deployed_shape and (known(deploy.norm_distance) or 0.0) >= least


def _turned(deploy: DeployTrial, cost: Cost | None) -> bool:
    """Whether reversed channels take away a good part of what deployment costs."""
    if deploy.loss is None or deploy.loss_reversed is None or cost is None or not cost.significant:
        return False
    return deploy.loss - deploy.loss_reversed > thresholds.REVERSED_SHARE * cost.delta > 0


def _explains(evidence: Evidence, trial: InputTrial) -> bool:
    """Whether a map of the inputs explains what is wrong with the statistics."""
    if trial.first_before < thresholds.INPUTS_OFF or trial.first_after > thresholds.INPUTS_FIT_FIRST:
        return False
    to_standard = trial.after.standardised and trial.after.off_standard < trial.before.off_standard / 2
    if not (to_standard or trial.after.in_usual_range or trial.kind == "reversed"):
        return False  # a first layer that is scaled looks the same as inputs that are
    enough = thresholds.INPUTS_FIT_STANDARD if to_standard else thresholds.INPUTS_FIT_ALL
    if trial.all_after > min(enough, trial.all_before / thresholds.INPUTS_FIT_FACTOR):
        return False
    rise, error = _training_rise(trial)
    better_trained = rise < -thresholds.LOSS_STANDARD_ERRORS * error
    if trial.before.standardised and not trial.after.standardised and not better_trained:
        return False  # inputs as they should be; the statistics have seen others
    if rise > max(
        thresholds.LOSS_STANDARD_ERRORS * error, thresholds.LOSS_SHARE * abs(trial.train_before or 0.0)
    ):
        return False  # the weights were trained on inputs like these
    return _mends(evidence, trial)


def _training_rise(trial: InputTrial) -> tuple[float, float]:
    """Rise of the loss with batch statistics under the map, and its standard error."""
    if trial.train_before is None or trial.train_after is None:
        return 0.0, 0.0
    return trial.train_after - trial.train_before, trial.train_stderr or 0.0


def _mends(evidence: Evidence, trial: InputTrial) -> bool:
    """Whether the map takes away most of what the statistics cost; true where no loss is known."""
    measurement = evidence.measurement
    states = measurement.gap.states if measurement and measurement.gap else {}
    good = known(states.get("recalibrated_noisy"))
    if trial.loss_before is None or trial.loss_after is None or good is None:
        return trial.loss_after is None or trial.loss_before is None
    gained = trial.loss_before - trial.loss_after
    return gained >= thresholds.INPUTS_LOSS_SHARE * (trial.loss_before - good)


def _differences(inputs: Inputs, deploy: DeployTrial) -> list[str]:
    """What differs between the inputs of the two loaders, in words."""
    one, other = inputs.moments, deploy.moments
    if len(one.mean) != len(other.mean):
        return [f"{len(one.mean)} channels and {len(other.mean)}"]
    far, error = [], thresholds.LOADERS_ERRORS / math.sqrt(max(deploy.samples, 1))
    for mean, deviation, own_mean, own in zip(
        one.mean, one.deviation, other.mean, other.deviation, strict=True
    ):
        scale = max(deviation, own, 1e-12)
        apart = abs(mean - own_mean) > max(thresholds.LOADERS_MEAN, error) * scale
        ratio = max(thresholds.LOADERS_DEVIATION, 1 + error)
        wider = max(deviation, own) > ratio * max(min(deviation, own), 1e-12)
        # A column that hardly varies has a ratio of deviations that says nothing.
        far.append(apart or (wider and scale > 1e-6))
    if sum(far) <= len(far) / 10:
        return []
    return [f"{_words(one)} in training, {_words(other)} in deployment"]


def _words(moments: InputMoments) -> str:
    """Mean and deviation in words: of each channel of a picture, of many columns together."""
    if len(moments.mean) <= 3:
        means, deviations = moments.mean, moments.deviation
    elif all(abs(mean) < 0.01 and abs(deviation - 1) < 0.01 for mean, deviation in _pairs(moments)):
        means, deviations = (0.0,), (1.0,)
    else:
        means, deviations = ((value,) for value in moments.together)
    return f"mean {', '.join(map(_number, means))} and deviation {', '.join(map(_number, deviations))}"


def _pairs(moments: InputMoments) -> Iterator[tuple[float, float]]:
    return zip(moments.mean, moments.deviation, strict=True)


def _number(value: float) -> str:
    return f"{value:.2g}" if abs(value) >= 0.005 else "0"
