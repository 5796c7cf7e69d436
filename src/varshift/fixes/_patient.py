"""The network that is to be cured, with what is known of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from torch import nn

from varshift._sites import SiteId
from varshift.flow import Capture, Flow, NoiseSite, NormSite
from varshift.report import Report

if TYPE_CHECKING:
    from varshift.model import Forward
    from varshift.moments import Prediction


@dataclass(eq=False)
class Patient:
    """A network under treatment: planners look at it, edits change it.

    Attributes:
        network: The copy that is operated on; planners only read it.
        report: The check of it.
        capture: Both of its flows; None where there is no input to run it on.
        example: One batch without targets, as `varshift.flow.capture` takes it; None without inputs.
        loader: The training data, None without any.
        settings: Arguments of `varshift.check` that say how the network is run: ``forward``, ``loss``, ...
        recapture: Captures a network on the same example, to compare it with what it was.
        notes: What the user should know besides the changes: places that were left as they are, and why.
        presumes: Whether a plan may presume which attribute drives a noise instead of measuring it. The
            proof shows whether that was right; where it was not, nothing is presumed any more.
        presumed: Whether a plan did.
    """

    network: nn.Module
    report: Report | None
    capture: Capture | None = None
    example: Any = None
    loader: Iterable[Any] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    recapture: Callable[[nn.Module], Capture] | None = None
    notes: list[str] = field(default_factory=list)
    presumes: bool = False
    presumed: bool = False

    @property
    def forward(self) -> Forward | None:
        """How the network is called with a batch."""
        return self.settings.get("forward")

    @property
    def flows(self) -> tuple[Flow, ...]:
        """The flows that were captured, that of training first; empty without a capture."""
        return self.capture.flows if self.capture is not None else ()

    def flow_of(self, site: NoiseSite) -> Flow | None:
        """The flow that a noise site is in."""
        return next((flow for flow in self.flows if any(other is site for other in flow.noises)), None)

    @cached_property
    def noises(self) -> dict[SiteId, NoiseSite]:
        """The noise sites by name, as training has them where both modes do."""
        return {site.id: site for flow in reversed(self.flows) for site in flow.noises}

    @cached_property
    def layer_drops(self) -> dict[SiteId, NoiseSite]:
        """The layers that Python skips by chance, by name."""
        choices = (site for flow in reversed(self.flows) for site in flow.decisions)
        return {site.id: site for site in choices if site.kind == "layer_drop"}

    @cached_property
    def norms(self) -> dict[SiteId, NormSite]:
        """The norm sites by name, as training has them where both modes do."""
        return {site.id: site for flow in reversed(self.flows) for site in flow.norms}

    @cached_property
    def prediction(self) -> Prediction | None:
        """What every norm will see, without data; None where it cannot be predicted."""
        from varshift._errors import VarshiftError
        from varshift.moments import predict

        try:
            return predict(self.network, self.example, forward=self.forward) if self.capture else None
        except (VarshiftError, ValueError):
            return None
