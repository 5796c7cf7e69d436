"""Training flags of norm and noise modules, as found and as the model's own train() and eval() leave them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from varshift.model import Norm
from varshift.probe._types import ModeFacts


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
    watched = {norm.name: norm.module for norm in norms} | {name: modules[name] for name in noisy}
    watched.pop("", None)
    root = model.training
    as_passed = {n: type(m).__name__ for n, m in watched.items() if m.training != root}
    model.eval()
    stuck_training = {n: type(m).__name__ for n, m in watched.items() if m.training}
    model.train(True)
    stuck_eval = {n: type(m).__name__ for n, m in watched.items() if not m.training}
    return ModeFacts(root, as_passed, stuck_training, stuck_eval, tuple(n for n in watched if n in noisy))
