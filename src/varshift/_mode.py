"""The front door to the four states of a network: for a while, or for good."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from varshift.model import Switch, network_of


class Mode:
    """A state that a model was put into; see `mode`. Ends with `undo`, or as a context manager.

    Attributes:
        noise: Whether noise acts.
        norms: Which statistics norms use.
    """

    def __init__(self, model: nn.Module, noise: bool, norms: Literal["batch", "running"]) -> None:
        self.noise, self.norms = noise, norms
        self._model = model
        self._switch = self._switched()

    def _switched(self) -> Switch:
        return Switch(self._model, network_of(self._model), noise=self.noise, batch=self.norms == "batch")

    @property
    def name(self) -> str:
        """The state: ``"train"``, ``"clean"``, ``"sampling"`` or ``"eval"``."""
        return _NAMES[self.noise, self.norms]

    @property
    def active(self) -> bool:
        """Whether it has not been undone."""
        return not self._switch.done

    def undo(self) -> None:
        """Puts every module back into the mode that it was in before; a second time does nothing."""
        self._switch.undo()

    close = undo

    def __enter__(self) -> Mode:
        if not self.active:  # it is entered again
            self._switch = self._switched()
        return self

    def __exit__(self, *error: object) -> None:
        self.undo()

    def __repr__(self) -> str:
        state = "" if self.active else ", undone"
        return f"<Mode {self.name}: noise {'on' if self.noise else 'off'}, {self.norms} statistics{state}>"


_NAMES = {
    (True, "batch"): "train",
    (False, "batch"): "clean",
    (True, "running"): "sampling",
    (False, "running"): "eval",
}


def mode(model: nn.Module, noise: bool, norms: Literal["batch", "running"]) -> Mode:
    """Puts a model into one of four states: noise on or off, norms on batch or on running statistics.

    ========= ===== ========== ==========================================================
    state     noise norms      what it is for
    ========= ===== ========== ==========================================================
    train     on    "batch"    ``model.train()``
    clean     off   "batch"    norms learn statistics that the noise has no part in
    sampling  on    "running"  Monte-Carlo dropout: predictions that differ by the noise alone
    eval      off   "running"  ``model.eval()``
    ========= ===== ========== ==========================================================

    The call itself switches, for good; the handle that it returns switches back, at the end of a ``with``
    block or by ``undo()``. States may be nested, and an error inside ends them, too.

    Noise is what a module makes in training mode: dropout as a module or as a function that is handed
    ``self.training``, drop path, noise written by hand, dropout inside attention and recurrent layers. With
    ``norms="running"`` no running statistics are written, however often the model runs. Norms that are frozen
    (by the model's own ``train()``, by their class, or in eval mode while the model trains) stay so.

    Noise that acts in every mode (``F.dropout(x)`` without a mode) cannot be switched off; `check` names it
    (VS106).

    Args:
        model: The model; compiled models and data-parallel wrappers are unwrapped.
        noise: Whether noise acts.
        norms: ``"batch"`` or ``"running"``: the statistics that norms normalise with.

    Returns:
        The handle.

    Raises:
        ValueError: If an argument is none of these.
        ModelError: If the model is no module, or one of its modules keeps statistics and makes noise by one
            flag and the state asks for one without the other.

    Example:
        >>> import torch, varshift as vs
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2)).eval()
        >>> x = torch.randn(1, 4)
        >>> with torch.no_grad(), vs.mode(model, noise=True, norms="running"):
        ...     draws = torch.stack([model(x) for _ in range(100)])
        >>> bool((draws.std(0) > 0).all()), model.training, int(model[1].num_batches_tracked)
        (True, False, 0)

    Reference:
        Y. Gal, Z. Ghahramani, "Dropout as a Bayesian Approximation", ICML 2016, for Monte-Carlo dropout.
    """
    if not isinstance(noise, bool):
        raise ValueError(f"noise is {_shown(noise)}: expected True or False.")
    if norms not in ("batch", "running"):
        raise ValueError(f"norms is {_shown(norms)}: expected 'batch' or 'running'.")
    return Mode(model, noise, norms)


def _shown(value: Any) -> str:
    return repr(value) if isinstance(value, (str, int, float, type(None))) else f"a {type(value).__name__}"
