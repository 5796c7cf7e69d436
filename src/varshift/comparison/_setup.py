"""What a comparison works with: the network, the data, the training, and the variants made ready."""

from __future__ import annotations

import inspect
import pickle
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import nn

from varshift._errors import ModelError, VarshiftError, VarshiftWarning
from varshift._fix import apply_plan, fix
from varshift.comparison._digest import code_digest, data_digest, digest_of, network_digest
from varshift.comparison._loop import LoopSettings
from varshift.comparison._variants import REFERENCE, Variant, takes_network
from varshift.model import Forward, Reader, find_norms, message_of, network_of, seed_all, twin_of
from varshift.probe import Loss
from varshift.rules import Cure

Train = Callable[..., Any]


@dataclass(eq=False)
class Setup:
    """Everything that trials of a comparison need besides their seed; it can be sent to another process.

    Attributes:
        model: The network, or the function that makes one.
        train: The user's training; None for the built-in loop.
        loader: The training data.
        judged: The data that variants are judged on.
        loop: How the built-in loop trains; its number of epochs is told to the user's training too.
        forward: Function of model and batch that runs the model.
        loss: Function of outputs and targets.
        variants: The variants by name that can be made.
        plans: For each variant with cures, the plan that carries them out, as JSON.
        identity: Digest of the content of all of this except the variants.
    """

    model: nn.Module | Callable[[], nn.Module]
    train: Train | None
    loader: Iterable[Any]
    judged: Iterable[Any]
    loop: LoopSettings
    forward: Forward | None = None
    loss: Loss | None = None
    variants: dict[str, Variant] = field(default_factory=dict)
    plans: dict[str, str] = field(default_factory=dict)
    identity: str = ""

    def reference(self, seed: int) -> nn.Module:
        """The network as it is, with the initial weights of a seed."""
        seed_all(seed)
        if isinstance(self.model, nn.Module):
            return twin_of(network_of(self.model))[0]
        made = self.model()
        if not isinstance(made, nn.Module):
            raise ModelError(
                f"model() returned a {type(made).__name__}: pass a network, or a function without arguments "
                "that makes one."
            )
        return made

    def network(self, name: str, seed: int) -> nn.Module:
        """The network of a variant, with the initial weights of a seed where shapes agree."""
        variant, reference = self.variants[name], self.reference(seed)
        network = reference
        if name in self.plans:
            network = apply_plan(reference, self.plans[name]).model
        if variant.build is not None:
            seed_all(seed)
            network = built(variant.build, network)
        return network.train()

    def definition(self, name: str) -> str:
        """Name of a variant by its content."""
        variant = self.variants[name]
        return digest_of(
            self.plans.get(name, ""), code_digest(variant.build), variant.noise, variant.recalibrate
        )

    def prepare(self, variants: Mapping[str, Variant], seed: int) -> dict[str, str]:
        """Makes every variant once, on the network of a seed.

        Returns:
            For each variant that cannot be made, the reason.

        Raises:
            VarshiftError: If that is the reference.
        """
        network = self.reference(seed)
        self.identity = digest_of(
            network_digest(network),
            code_digest(self.train),
            data_digest(self.loader),
            data_digest(self.judged),
            *(getattr(self.loop, item.name) for item in fields(self.loop)),
            code_digest(self.forward),
            code_digest(self.loss),
        )
        example = self._example(network) if any(variant.cures for variant in variants.values()) else None
        refused = {}
        for name, variant in variants.items():
            try:
                plan = self._plan(variant, network, example)
                self.variants[name] = variant
                if plan is not None:
                    self.plans[name] = plan
                if variant.build is not None:
                    self.network(name, seed)
            except Exception as error:  # whatever a function of the user's comes to, the others are compared
                if name == REFERENCE:
                    raise
                self.variants.pop(name, None)
                refused[name] = _reason(error)
        return refused

    def _plan(self, variant: Variant, network: nn.Module, example: Any) -> str | None:
        if variant.recalibrate and not find_norms(network):
            raise VarshiftError("no norm of this network keeps running statistics")
        if not variant.whole and self.train is not None and self.loop.epochs < 1:
            raise VarshiftError("it needs to know how long the training is: pass epochs=")
        if not variant.cures:
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", VarshiftWarning)
            cured = fix(
                network,
                cures=[cure if isinstance(cure, Cure) else str(cure) for cure in variant.cures],
                unsafe=True,
                example_inputs=example,
                forward=self.forward,
                recheck=False,
            )
        if cured.failures:
            raise VarshiftError("; ".join(reason for f in cured.failures for _, reason in f.tried))
        if not cured.plan.edits:
            raise VarshiftError("there is nothing in this network that it would change")
        return cured.plan.to_json()

    def _example(self, network: nn.Module) -> Any:
        """The inputs of the first batch, without targets."""
        batch = next(iter(self.loader))
        if self.forward is not None:
            return batch
        call = Reader(network).read_running(twin_of(network)[0], batch)
        return dict(call.kwargs) if call.kwargs and not call.args else tuple(call.args)


def built(build: Callable[..., Any], network: nn.Module) -> nn.Module:
    """What a variant's function makes of a network, see `Variant.build`."""
    if takes_network(build):
        made = build(network)
        made = network if made is None else made
    else:
        made = build()
        if isinstance(made, nn.Module):
            _take_over(made, network)
    if not isinstance(made, nn.Module):
        raise ModelError(
            f"the variant's function returned a {type(made).__name__}: it must return a network, or change "
            "the one that it is given and return nothing."
        )
    return made


def _take_over(network: nn.Module, reference: nn.Module) -> None:
    """Copies the values of parameters and buffers of equal name and shape."""
    values = dict(reference.state_dict(keep_vars=True))
    with torch.no_grad():
        for name, tensor in network.state_dict(keep_vars=True).items():
            other = values.get(name)
            if isinstance(other, torch.Tensor) and other.shape == tensor.shape:
                tensor.copy_(other)


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    known = isinstance(error, VarshiftError) and text
    return text if known else message_of(error) or type(error).__name__


def check_sendable(setup: Setup) -> None:
    """Makes sure that worker processes can be sent what they need.

    Raises:
        VarshiftError: If not, with the argument that cannot be sent.
    """
    arguments = {"model": setup.model, "train": setup.train, "forward": setup.forward, "loss": setup.loss}
    arguments |= {"loader": setup.loader, "val_loader": setup.judged}
    arguments |= {f"variants[{name!r}]": variant.build for name, variant in setup.variants.items()}
    remedy = (
        "worker processes import what they run: define it at the top level of a module that can be imported "
        "(no lambda, no function inside a function, no notebook), or leave workers= out."
    )
    main = sys.modules.get("__main__")
    for name, value in arguments.items():
        try:
            pickle.dumps(value)
        except Exception as error:  # each kind of object has its own way of saying so
            raise VarshiftError(
                f"{name} cannot be sent to a worker process ({message_of(error)}): {remedy}"
            ) from error
        module = inspect.getmodule(value if callable(value) and hasattr(value, "__module__") else type(value))
        if main is not None and module is main and not getattr(main, "__file__", None):
            raise VarshiftError(f"{name} is defined in an interactive session: {remedy}")
