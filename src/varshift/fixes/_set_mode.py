"""The cure that puts modules in the mode of their model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from varshift._sites import SiteId
from varshift.fixes._edit import Change, Edit, edit
from varshift.fixes._patient import Patient
from varshift.fixes._remedy import Remedy, remedy
from varshift.fixes._surgery import Refused, Surgery
from varshift.rules import Finding


@edit("set-mode")
@dataclass(frozen=True, slots=True)
class SetMode(Edit):
    """Puts a module and all inside it in one mode.

    Attributes:
        site: The place.
        path: Path of the module.
        training: Whether it trains.
    """

    site: SiteId
    path: str
    training: bool

    def apply(self, surgery: Surgery) -> tuple[Change, ...]:
        """Sets the flags, as ``train()`` does."""
        module = surgery.module(self.path)
        before = [(part, part.training) for part in module.modules()]
        modes = "training mode", "evaluation mode"
        after, other = modes if self.training else modes[::-1]

        def restore() -> None:
            for part, training in before:
                part.training = training

        surgery.on_undo(restore)
        module.train(self.training)
        if all(part.training == training for part, training in before):
            raise Refused(
                f"module '{self.path or 'the model itself'}' stays in {other}, whatever train() says."
            )
        return (Change(self.site, other, after, "attribute"),)


@dataclass(frozen=True, slots=True)
class SetModeOptions:
    """Options of the cure.

    Attributes:
        training: The mode; None for that of the model itself.
    """

    training: bool | None = None


@remedy
class SetModeRemedy(Remedy):
    """Puts modules whose mode differs from the model's in that mode.

    What calls `train()` and `eval()` is the training loop: a mode that it sets in every step cannot be cured
    in the model.
    """

    code = "set-mode"
    answers = ("VS401",)
    safety = "safe"
    options = SetModeOptions

    def plan(
        self,
        patient: Patient,
        sites: Sequence[SiteId],
        options: SetModeOptions,
        finding: Finding | None,
    ) -> Sequence[Edit]:
        """One edit for each module in another mode."""
        network = patient.network
        if finding is not None and finding.code not in self.answers:
            raise Refused(
                "the training loop sets the mode: call model.train() at the start of every training step, "
                "and model.eval() in validation only."
            )
        training = network.training if options.training is None else options.training
        if sites:
            paths = list(dict.fromkeys(site.module for site in sites))
        else:
            paths = [path for path, module in network.named_modules() if module.training != training]
            paths = [
                path
                for path in paths
                if not any(path.startswith(f"{one}." if one else "") for one in paths if one != path)
            ]
        edits = []
        for path in paths:
            kinds = [site for site in sites if site.module == path]
            try:
                module = network.get_submodule(path)
            except AttributeError:
                raise Refused(f"the model has no module '{path}'.") from None
            if any(part.training != training for part in module.modules()):
                edits.append(SetMode(kinds[0] if kinds else SiteId(path, "module"), path, training))
        if not edits:
            mode = "training" if training else "evaluation"
            raise Refused(f"every module is in {mode} mode already: what sets the mode is the training loop.")
        return edits
