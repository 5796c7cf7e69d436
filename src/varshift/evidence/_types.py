"""Everything a rule may look at: plain data from the rooms below, no tensors and no live modules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal, get_args

from varshift._sites import as_source

if TYPE_CHECKING:  # rules are listed and explained without importing torch
    from varshift._sites import SiteId, Source
    from varshift.evidence._history import History
    from varshift.evidence._order_facts import BatchOrder
    from varshift.flow import Flow, FunctionDifference, NormSite
    from varshift.model import NormFacts
    from varshift.moments import Prediction
    from varshift.probe import (
        DeployTrial,
        Inputs,
        LayerMeasurement,
        Measurement,
        NoiseBias,
        NormCalls,
        References,
        SingleRun,
        StepFacts,
        Trials,
    )

Kind = Literal[
    "modules",
    "loader",
    "capture",
    "prediction",
    "trials",
    "measurement",
    "noise_bias",
    "norm_calls",
    "order",
    "reference",
    "inputs",
    "deployment",
    "step",
    "optimizer",
    "single",
    "history",
]
Need = Kind | Literal["capture.train", "capture.eval"]

KINDS: tuple[Kind, ...] = get_args(Kind)
NEEDS: tuple[Need, ...] = (*KINDS, "capture.train", "capture.eval")
NOT_NEEDED = "no rule that was asked for needs it"

# The fields of `Evidence` of which one at least has to be there, where they are not called as the need is.
_FIELDS: dict[Need, tuple[str, ...]] = {
    "modules": ("modes",),
    "capture": ("train", "eval"),
    "capture.train": ("train",),
    "capture.eval": ("eval",),
    "reference": ("references",),
}


def kind_of(need: Need) -> Kind:
    """The kind of evidence that a need is for: ``"capture.train"`` is a need for ``"capture"``."""
    return next(kind for kind in KINDS if kind == need.partition(".")[0])


@dataclass(frozen=True, slots=True)
class EvidenceRun:
    """Whether evidence of one kind was gathered.

    Attributes:
        name: The kind, ``"capture"``.
        ran: Whether it was gathered.
        reason: Why not, in a few words; empty when it was.
    """

    name: str
    ran: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ModeFacts:
    """Training flags of norm and noise modules, as found and as `train()`/`eval()` leave them.

    Attributes:
        root_training: ``model.training`` as the model was passed in.
        as_passed: Norm and noise modules whose flag differs from the root's, ``{name: class}``.
        stuck_training: Those still in training mode after ``model.eval()``, ``{name: class}``.
        stuck_eval: Those still in evaluation mode after ``model.train()``, ``{name: class}``.
        noise: Names of the noise modules among all of these.
        trained: Names of the parameters that need a gradient; left out of a report, which they would fill.
        frozen: Names of those that need none; left out likewise.
    """

    root_training: bool
    as_passed: Mapping[str, str] = field(default_factory=dict)
    stuck_training: Mapping[str, str] = field(default_factory=dict)
    stuck_eval: Mapping[str, str] = field(default_factory=dict)
    noise: tuple[str, ...] = ()
    trained: tuple[str, ...] = field(default=(), metadata={"sparse": True})
    frozen: tuple[str, ...] = field(default=(), metadata={"sparse": True})


@dataclass(frozen=True, slots=True)
class LoaderFacts:
    """What can be known about the batches to come.

    Attributes:
        samples: Length of the data set seen by this process, None when unknown.
        batch_size: Batch size, None when unknown.
        drop_last: None when unknown.
        last_batch: Size of the last batch of an epoch, None when unknown.
        sizes: Sizes of the batches that were actually drawn.
    """

    samples: int | None
    batch_size: int | None
    drop_last: bool | None
    last_batch: int | None
    sizes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class OptimizerFacts:
    """What an optimiser does to the parameters of a network, which go by their names.

    Attributes:
        cls: Class name of the optimiser.
        learning_rates: Learning rate of each parameter that it trains, None where it has none.
        decay: Weight decay of each parameter that has some.
        norm_parameters: Scales and shifts of norms.
        scale_invariant: Weights whose scale does not change what the network computes in training.
        other_weights: All other weights.
        scheduled: Whether its learning rates have a schedule.
        scale_aware: Whether it looks after the scale of weights, or something acts after its steps.
    """

    cls: str
    learning_rates: Mapping[str, float | None] = field(default_factory=dict)
    decay: Mapping[str, float] = field(default_factory=dict)
    norm_parameters: tuple[str, ...] = ()
    scale_invariant: tuple[str, ...] = ()
    other_weights: tuple[str, ...] = ()
    scheduled: bool = False
    scale_aware: bool = False


@dataclass(frozen=True)
class Evidence:
    """What is known about a network. A field is None where that evidence was not gathered.

    Attributes:
        train: Flow of the network in train mode, None also when it could not be captured.
        eval: Flow in eval mode, likewise.
        difference: Where the two flows begin to compute something else, noise and norms apart.
        norms: Facts about each norm module by name.
        modes: Training flags.
        loader: Facts about the data loader.
        measurement: Measurements on the data.
        prediction: What weights and statistics alone predict; None also where there is nothing to predict.
        noise_bias: The mean of the outputs over the noise against those without; None also without noise.
        trials: What a few samples show in eval mode when one thing is changed at a time.
        norm_calls: The norms that see several distributions; None also where that could not be measured.
        intended: Modules and sites whose noise is meant to act in eval mode too, by name.
        order: How samples come together in batches.
        references: How weights and statistics relate to those of the other networks.
        inputs: The inputs, next to those that the statistics fit.
        deployment: The batches of deployment, next to those of training.
        single: What a batch of one sample does in training mode.
        step: What a training step of the user's does to the norms.
        optimizer: What the optimiser does to norms and to weights whose scale does not matter.
        history: What was seen of a training while it ran.
    """

    train: Flow | None = None
    eval: Flow | None = None
    difference: FunctionDifference | None = None
    norms: Mapping[str, NormFacts] = field(default_factory=dict)
    modes: ModeFacts | None = None
    loader: LoaderFacts | None = None
    measurement: Measurement | None = None
    prediction: Prediction | None = None
    noise_bias: NoiseBias | None = None
    trials: Trials | None = None
    norm_calls: tuple[NormCalls, ...] | None = None
    intended: tuple[str, ...] = ()
    order: BatchOrder | None = None
    references: References | None = None
    inputs: Inputs | None = None
    deployment: DeployTrial | None = None
    single: SingleRun | None = None
    step: StepFacts | None = None
    optimizer: OptimizerFacts | None = None
    history: History | None = None

    @cached_property
    def train_norms(self) -> Mapping[str, NormSite]:
        """The norms of the flow in train mode by name."""
        return {site.name: site for site in reversed(self.train.norms)} if self.train else {}

    @cached_property
    def eval_norms(self) -> Mapping[str, NormSite]:
        """The norms of the flow in eval mode by name."""
        return {site.name: site for site in reversed(self.eval.norms)} if self.eval else {}

    @cached_property
    def sources(self) -> Mapping[str, Source]:
        """The line that calls a norm or noise module, by the module's name, where a flow shows it."""
        lines: dict[str, Source] = {}
        for flow in (self.train, self.eval):
            for site in (*flow.norms, *flow.noises) if flow else ():
                source = as_source(site.source)
                if source is not None:
                    lines.setdefault(site.name, source)
        return lines

    @cached_property
    def measured(self) -> Mapping[str, LayerMeasurement]:
        """What was measured at each norm, by its name."""
        return {layer.name: layer for layer in self.measurement.layers} if self.measurement else {}

    def is_intended(self, module: str, site: SiteId) -> bool:
        """Whether the noise of a site is meant: its name is given, or that of its module or one around it."""
        return any(
            name == str(site) or name == module or module.startswith(f"{name}.") for name in self.intended
        )

    def has(self, need: Need) -> bool:
        """Whether there is evidence of this kind."""
        return any(getattr(self, name) is not None for name in _FIELDS.get(need, (need,)))
