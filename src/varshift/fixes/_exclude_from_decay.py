"""The cure that takes parameters out of the weight decay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from varshift._sites import SiteId
from varshift.fixes._edit import Change, Edit, edit
from varshift.fixes._patient import Patient
from varshift.fixes._remedy import NoOptions, Remedy, remedy
from varshift.fixes._surgery import Refused, Surgery
from varshift.model import find_norms
from varshift.rules import Finding


@edit("exclude-from-decay")
@dataclass(frozen=True, slots=True)
class ExcludeFromDecay(Edit):
    """Moves parameters into groups of the optimiser that are as theirs were, without weight decay.

    Attributes:
        parameters: Their names in the model.
    """

    acts_on = "optimizer"

    parameters: tuple[str, ...]

    def apply(self, surgery: Surgery) -> tuple[Change, ...]:
        """Splits the groups; states of parameters stay as they are."""
        optimizer = surgery.optimizer
        if optimizer is None:
            raise Refused("the decay is a setting of the optimiser: pass optimizer=.")
        named = dict(surgery.network.named_parameters(remove_duplicate=False))
        wanted = {id(named[name]): name for name in self.parameters if name in named}
        lists = [(group, list(group["params"])) for group in optimizer.param_groups]
        count = len(lists)

        def undo() -> None:
            del optimizer.param_groups[count:]
            for group, parameters in lists:
                group["params"][:] = parameters

        surgery.on_undo(undo)
        changes = []
        for group, parameters in lists:
            decay = group.get("weight_decay") or 0.0
            leaving = [parameter for parameter in parameters if id(parameter) in wanted] if decay else []
            if not leaving:
                continue
            staying = [parameter for parameter in parameters if id(parameter) not in wanted]
            # A group that only holds such parameters stays where it is, so that schedules find it.
            if staying:
                group["params"][:] = staying
                fresh = {**{key: value for key, value in group.items() if key != "params"}, "params": leaving}
                fresh["weight_decay"] = 0.0
                optimizer.param_groups.append(fresh)
            else:
                surgery.set_item(group, "weight_decay", 0.0)
            changes += [
                Change(_site(wanted[id(parameter)]), f"weight_decay={decay:g}", "weight_decay=0", "optimizer")
                for parameter in leaving
            ]
        return tuple(changes)


def _site(name: str) -> SiteId:
    module, _, leaf = name.rpartition(".")
    return SiteId(module, leaf)


@remedy
class ExcludeFromDecayRemedy(Remedy):
    """Puts parameters into a group without weight decay."""

    code = "exclude-from-decay"
    answers = ("VS501",)
    safety = "unsafe"
    options = NoOptions

    def plan(
        self, patient: Patient, sites: Sequence[SiteId], options: Any, finding: Finding | None
    ) -> Sequence[Edit]:
        """One edit: of the parameters that the finding names, else of those of all norms and all biases."""
        known = dict(patient.network.named_parameters(remove_duplicate=False))
        names = [f"{site.module}.{site.kind}".strip(".") for site in sites]
        names = [name for name in names if name in known] or _in_modules(patient.network, sites)
        if not names:
            norms = {id(norm.module) for norm in find_norms(patient.network)}
            names = [
                f"{path}.{name}".strip(".")
                for path, module in patient.network.named_modules()
                for name, _ in module.named_parameters(recurse=False)
                if id(module) in norms or name == "bias"
            ]
        return (ExcludeFromDecay(tuple(names)),)


def _in_modules(network: nn.Module, sites: Sequence[SiteId]) -> list[str]:
    """The names of the parameters that the modules of some sites hold themselves."""
    modules = dict(network.named_modules(remove_duplicate=False))
    return [
        f"{site.module}.{name}".strip(".")
        for site in sites
        if site.module in modules
        for name, _ in modules[site.module].named_parameters(recurse=False)
    ]
