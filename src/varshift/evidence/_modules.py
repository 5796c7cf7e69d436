"""Facts about the modules: statistics and settings of norms, training flags as found and as switched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from varshift.evidence._provider import Provider
from varshift.evidence._subject import Subject
from varshift.evidence._types import Evidence, Kind, ModeFacts
from varshift.model import Norm, canonical_names, canonical_tensor, find_norms, norm_facts, origins


class ModulesProvider(Provider):
    """Reads buffers, settings and training flags."""

    kind = "modules"
    makes = "statistics and settings of every norm, training flags of norms and noise"
    inputs = "the model alone"
    cost = "no pass"

    def make(
        self, subject: Subject, evidence: Evidence, wanted: frozenset[Kind], limits: list[str]
    ) -> Mapping[str, Any]:
        """Reads the modules; noise and norms of other classes than torch's are known from the capture."""
        noises = evidence.train.noises if evidence.train else ()
        network = subject.shadow.network
        norms = find_norms(network, subject.recognised)
        held = {norm.name for norm in norms if network.training and not norm.module.training}
        modes = mode_facts(network, norms, [noise.name for noise in noises])
        network.train(True)
        marks = origins(norms)
        facts = {
            norm.name: norm_facts(
                norm,
                live=norm.module.training and norm.name not in held,
                reestimated=marks.get(norm.name),
            )
            for norm in norms
        }
        return {"modes": modes, "norms": facts}


def mode_facts(model: nn.Module, norms: Sequence[Norm], noise_names: Sequence[str] = ()) -> ModeFacts:
    """Reads the flags; the model is switched to train() and eval() and has to be restored by the caller.

    Args:
        model: The unwrapped model.
        norms: Its norms.
        noise_names: Module paths of noise sites found by capture; torch's dropout modules are known anyway.
    """
    modules = dict(model.named_modules())
    noisy = {name for name, module in modules.items() if isinstance(module, _DropoutNd)}
    # The owner of functional noise may be a whole block; only leaves are noise modules themselves.
    noisy |= {name for name in noise_names if name in modules and not any(modules[name].children())}
    watched = {norm.name.partition("#")[0]: norm.module for norm in norms}
    watched |= {name: modules[name] for name in noisy}
    watched.pop("", None)
    root = model.training
    as_passed = {n: type(m).__name__ for n, m in watched.items() if m.training != root}
    model.eval()
    stuck_training = {n: type(m).__name__ for n, m in watched.items() if m.training}
    model.train(True)
    stuck_eval = {n: type(m).__name__ for n, m in watched.items() if not m.training}
    names = canonical_names(model)
    flags = {canonical_tensor(names, name): p.requires_grad for name, p in model.named_parameters()}
    return ModeFacts(
        root,
        as_passed,
        stuck_training,
        stuck_eval,
        tuple(name for name in watched if name in noisy),
        trained=tuple(name for name, trains in flags.items() if trains),
        frozen=tuple(name for name, trains in flags.items() if not trains),
    )
