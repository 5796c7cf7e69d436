"""The optimiser: which norm parameters and scale-invariant weights its weight decay acts on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from varshift._errors import VarshiftError, strict
from varshift.evidence._provider import NotMade, Provider
from varshift.evidence._subject import Subject
from varshift.evidence._types import Evidence, Kind, OptimizerFacts
from varshift.model import short_message_of
from varshift.optim import find_scale_invariant

_SAMPLES = 8  # a norm needs several values per channel, the scale of a weight no more than that
# They take the radial part out of a step, or scale it by the weight: decay of such weights is planned for.
_AWARE = frozenset({"AdamP", "SGDP", "LARS", "Lars", "LAMB", "Lamb", "NovoGrad", "Muon"})


class OptimizerProvider(Provider):
    """Reads the groups of an optimiser, and measures which weights have a scale that does not matter."""

    kind = "optimizer"
    reads = ("optimizer",)
    makes = "weight decay of norm parameters, and of weights whose scale does not matter"
    inputs = "the optimiser (`optimizer=`)"
    cost = "a few passes of eight samples and one backward pass, on a copy in float64"
    needs = ("capture",)

    def batches(self, subject: Subject) -> int:
        """The first batch is enough."""
        return 1

    def make(
        self, subject: Subject, evidence: Evidence, wanted: frozenset[Kind], limits: list[str]
    ) -> Mapping[str, Any]:
        """Reads it; weights whose scale cannot be measured are a limit of the check."""
        optimizer = subject.optimizer
        if optimizer is None:
            raise NotMade("no optimiser was given")
        facts = optimizer_facts(subject.network, optimizer, [norm.name for norm in subject.norms])
        if set(facts.decay) - set(facts.norm_parameters):
            weights = [name for name in _scale_invariant(subject, limits) if name in facts.learning_rates]
            others = tuple(name for name in facts.other_weights if name not in weights)
            facts = replace(facts, scale_invariant=tuple(weights), other_weights=others)
        return {"optimizer": facts}


def optimizer_facts(network: nn.Module, optimizer: Optimizer, norms: Iterable[str]) -> OptimizerFacts:
    """What the groups of an optimiser say; which weights have no scale that matters is not told by them.

    Args:
        network: The network.
        optimizer: The optimiser.
        norms: Names of its norms with running statistics.

    Raises:
        NotMade: If it trains no parameter of the network.
    """
    settings = _settings(network, optimizer)
    modules = {name.partition("#")[0] for name in norms} | _norm_modules(network)
    own = [name for name in settings if name.rpartition(".")[0] in modules]
    decay = {name: settings[name]["weight_decay"] for name in sorted(settings)}
    kept = [name for name in settings if name not in own and settings[name]["dimensions"] > 1]
    acted_on = bool(getattr(optimizer, "_optimizer_step_post_hooks", ()))
    return OptimizerFacts(
        cls=type(optimizer).__name__,
        learning_rates={name: group["lr"] for name, group in settings.items()},
        decay={name: value for name, value in decay.items() if value},
        norm_parameters=tuple(own),
        other_weights=tuple(kept),
        scheduled=any("initial_lr" in group for group in optimizer.param_groups),
        scale_aware=type(optimizer).__name__ in _AWARE or acted_on,
    )


def _settings(network: nn.Module, optimizer: Optimizer) -> dict[str, dict[str, Any]]:
    """Learning rate and weight decay of each parameter by its name, in the order of the network."""
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    found = {}
    for name, parameter in network.named_parameters():
        group = groups.get(id(parameter))
        if group is not None and parameter.requires_grad:
            decay, rate = group.get("weight_decay") or 0.0, group.get("lr")
            number = float(rate) if isinstance(rate, (int, float, Tensor)) else None
            found[name] = {"weight_decay": float(decay), "lr": number, "dimensions": parameter.dim()}
    if not found:
        raise NotMade("it holds no parameter of the model that is trained")
    return found


def _norm_modules(network: nn.Module) -> set[str]:
    """Modules that normalise and keep no statistics: layer, group and instance norms."""
    kinds = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._NormBase)
    return {name for name, module in network.named_modules() if isinstance(module, kinds)}


def _scale_invariant(subject: Subject, limits: list[str]) -> tuple[str, ...]:
    """Names of the weights whose scale does not matter."""
    call = subject.example().take(_SAMPLES)
    if call is None:
        limits.append("Weights without a scale were not looked for: a batch cannot be cut.")
        return ()

    def double(tensor: Tensor) -> Tensor:
        return tensor.double() if tensor.is_floating_point() else tensor

    few = call.map(double)
    try:
        found = find_scale_invariant(
            subject.shadow.fresh(), per="layer", forward=lambda model: few.copy().run(model, subject.forward)
        )
    except VarshiftError:
        raise
    except Exception as error:  # a model need not run in float64, or have outputs with a gradient
        if strict() and not isinstance(error, (RuntimeError, ValueError, TypeError)):
            raise
        limits.append(f"Weights without a scale were not looked for: {short_message_of(error)}")
        return ()
    return tuple(f"{weight.name}.weight" if weight.name else "weight" for weight in found)
