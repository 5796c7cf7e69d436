from __future__ import annotations

import copy
import dataclasses
import logging
import random
import sys
import warnings
from collections import namedtuple
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from varshift import DataError, ModelError
from varshift.flow import Capture, capture


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.Dropout(0.3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        )
        self.head = nn.Linear(4, 2)

    def features(self, x: Tensor) -> Tensor:
        return self.body(x).mean((2, 3))

    def forward(self, x: Tensor) -> Any:
        return self.head(self.features(x))


def summary(result: Capture) -> list[tuple[str, ...]]:
    """What every spelling of the small network must show."""
    assert result.train is not None
    assert result.eval is not None
    assert result.eval.noises == ()
    assert [norm.batch_statistics for norm in (*result.train.norms, *result.eval.norms)] == [True, False]
    return [(s.name, s.kind, str(s.rate), str(s.nearest), s.path) for s in result.train.noises]


EXPECTED = [("body.1", "dropout", "0.3", "body.2", "direct")]
IMAGES = (4, 3, 5, 5)


def test_both_modes() -> None:
    result = capture(Small(), torch.rand(IMAGES))
    assert summary(result) == EXPECTED
    assert result.method == "recorded"
    assert result.limits == ()
    assert result.failures == ()


def test_loader_batches_with_targets() -> None:
    for batch in ((torch.rand(IMAGES), torch.zeros(4).long()), [torch.rand(IMAGES)]):
        assert summary(capture(Small(), batch)) == EXPECTED


class Dictionary(Small):
    def forward(self, pixels: Tensor, scale: Tensor | None = None, flag: bool = True) -> dict[str, Any]:
        y = self.features(pixels if scale is None else pixels * scale)
        return {"out": self.head(y), "more": [y], "flag": flag, "nothing": None}


Pair = namedtuple("Pair", ["logits", "features"])


class Named(Small):
    def forward(self, x: Tensor) -> Pair:
        y = self.features(x)
        return Pair(self.head(y), y)


@dataclasses.dataclass
class Output:
    logits: Tensor
    extra: dict[str, Tensor]


class Data(Small):
    def forward(self, x: Tensor) -> Output:
        y = self.features(x)
        return Output(self.head(y), {"features": y})


class Holder:
    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


class Plain(Small):
    def forward(self, x: Tensor) -> Holder:
        return Holder(self.head(self.features(x)))


@pytest.mark.parametrize("model", [Dictionary(), Named(), Data(), Plain()], ids=lambda m: type(m).__name__)
def test_structured_inputs_and_outputs(model) -> None:
    images = torch.rand(IMAGES)
    batch: Any = images
    if isinstance(model, Dictionary):
        batch = {"pixels": images, "scale": torch.ones(4, 1, 1, 1), "flag": False, "labels": torch.zeros(4)}
    result = capture(model, batch)
    assert summary(result) == EXPECTED
    assert result.method == "recorded"


def test_custom_forward_and_batches_of_the_users_own() -> None:
    @dataclasses.dataclass
    class Batch:
        images: Tensor

    def forward(model: nn.Module, batch: Any) -> Any:
        return F.cross_entropy(model(batch.images), torch.zeros(len(batch.images)).long())

    result = capture(Small(), Batch(torch.rand(IMAGES)), forward=forward)
    assert summary(result) == EXPECTED


def test_single_example_is_enough() -> None:
    class Vector(Small):
        """Train mode refuses a single sample at this norm."""

        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.3), nn.BatchNorm1d(4))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x))

    assert summary(capture(Vector(), torch.rand(1, 3))) == EXPECTED


def test_unbatched_example() -> None:
    net = nn.Sequential(nn.Flatten(0), nn.Linear(12, 4), nn.Dropout(0.5))
    result = capture(net, torch.rand(1, 3, 4))
    assert result.train is not None
    assert [site.rate for site in result.train.noises] == [0.5]


class DataDependent(Small):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            x = x / x.sum()
        return super().forward(x)


def test_control_flow_that_depends_on_data() -> None:
    result = capture(DataDependent(), torch.rand(IMAGES))
    assert summary(result) == EXPECTED
    assert result.method == "recorded"
    assert result.limits == ()


def test_one_mode_may_fail() -> None:
    class Broken(Small):
        def forward(self, x: Tensor) -> Tensor:
            if not self.training:
                raise RuntimeError("no evaluation today")
            return super().forward(x)

    result = capture(Broken(), torch.rand(IMAGES))
    assert result.train is not None
    assert result.eval is None
    (failure,) = result.failures
    assert "eval mode" in failure
    assert "no evaluation today" in failure
    assert failure in result.limits


def test_compiled_models_and_parts() -> None:
    assert summary(capture(torch.compile(Small(), backend="eager"), torch.rand(IMAGES))) == EXPECTED
    part = Small()
    part.head = torch.compile(part.head, backend="eager")  # type: ignore[assignment]
    in_place = Small()
    in_place.compile(backend="eager")
    strict = Small()
    strict.head = torch.compile(strict.head, backend="eager", fullgraph=True)  # type: ignore[assignment]
    for model in (part, in_place, strict):
        assert summary(capture(model, torch.rand(IMAGES))) == EXPECTED


def test_data_parallel_wrapper_is_looked_through() -> None:
    assert summary(capture(nn.DataParallel(Small()), torch.rand(IMAGES))) == EXPECTED


def test_checkpointed_block() -> None:
    from torch.utils.checkpoint import checkpoint

    class Checkpointed(Small):
        def features(self, x: Tensor) -> Tensor:
            return checkpoint(super().features, x, use_reentrant=False)

    assert summary(capture(Checkpointed(), torch.rand(IMAGES))) == EXPECTED


def test_regions_with_their_own_gradient_or_autocast_mode() -> None:
    class Regions(Small):
        def features(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                x = self.body[0](x)
            with torch.autocast("cpu", enabled=False):
                x = self.body[1](x)
            return self.body[3](self.body[2](x)).mean((2, 3))

    result = capture(Regions(), torch.rand(IMAGES))
    assert result.method == "recorded"
    assert summary(result) == EXPECTED


def test_inference_on_dropout_that_never_sleeps() -> None:
    class Always(Small):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.dropout(self.features(x), 0.5))

    result = capture(Always(), torch.rand(IMAGES))
    assert result.eval is not None
    assert [(site.name, site.kind, site.rate, site.path) for site in result.eval.noises] == [
        ("", "dropout", 0.5, "none")
    ]


# -- nothing of the user's changes --------------------------------------------------------------------------


class Stateful(Small):
    """Everything that a careless tracer would leave behind."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(2, 2))
        self.calls = 0
        self.body[2].eval()
        self.head.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.steps += 1
        random.random()
        np.random.rand()
        return self.spectral(super().forward(x))


class Uncopyable(Stateful):
    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("this model holds a connection")


class Merging(Stateful):
    """Folds something into its weights when it is switched, as adapter layers do."""

    def train(self, mode: bool = True) -> Merging:
        super().train(mode)
        self.body[2].eval()
        with torch.no_grad():
            self.head.weight.add_(1 if mode else -1)
        return self


@pytest.mark.parametrize("kind", [Stateful, Merging, Uncopyable])
def test_model_and_random_states_are_bit_equal_afterwards(kind) -> None:
    model = kind()
    model.body[0].eval()
    state = copy.deepcopy(dict(model.state_dict()))
    flags = {name: module.training for name, module in model.named_modules()}
    grads = {name: (p.requires_grad, p.grad) for name, p in model.named_parameters()}
    identities = {name: id(value) for name, value in (*model.named_parameters(), *model.named_buffers())}
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    generators = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    batch = torch.rand(IMAGES)
    before = batch.clone()
    torch.set_rng_state(generators[0])

    result = capture(model, batch)

    assert result.train is not None
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert random.getstate() == generators[1]
    assert np.array_equal(np.random.get_state()[1], generators[2])
    assert torch.equal(batch, before)
    assert {name: module.training for name, module in model.named_modules()} == flags
    assert {name: (p.requires_grad, p.grad) for name, p in model.named_parameters()} == grads
    found = {name: id(value) for name, value in (*model.named_parameters(), *model.named_buffers())}
    assert found == identities
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()] == hooks
    assert model.state_dict().keys() == state.keys()
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert any("random numbers of Python" in limit for limit in result.limits)
    if kind is Uncopyable:
        assert not any("cannot be copied" in limit for limit in result.limits)  # it is, whatever it says


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm`")
def test_weights_that_autograd_computed_can_be_copied() -> None:
    net = nn.Sequential(nn.utils.weight_norm(nn.Linear(3, 4)), nn.Dropout(0.3), nn.BatchNorm1d(4))
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(net)
    result = capture(net, torch.rand(4, 3))
    assert result.train is not None
    assert [site.path for site in result.train.noises] == ["direct"]


def test_what_the_model_prints_logs_and_warns_is_the_users_to_see(capfd, caplog) -> None:
    class Loud(DataDependent):
        def forward(self, x: Tensor) -> Tensor:
            print("here")  # noqa: T201
            print("there", file=sys.stderr)  # noqa: T201
            warnings.warn("careful", stacklevel=2)
            logging.getLogger("user").warning("hm")
            return super().forward(x)

    level = logging.root.manager.disable
    with caplog.at_level(logging.INFO), pytest.warns(UserWarning, match="careful"):
        result = capture(Loud(), torch.rand(IMAGES))
    assert summary(result) == EXPECTED
    assert capfd.readouterr() == ("here\n" * 2, "there\n" * 2)
    assert [record.message for record in caplog.records] == ["hm"] * 2
    assert logging.root.manager.disable == level


# -- what cannot be captured --------------------------------------------------------------------------------


def test_wrong_shape_is_the_users_to_mend() -> None:
    with pytest.raises(ModelError) as caught:
        capture(Small(), torch.rand(4, 5, 6, 6))
    assert "(4, 5, 6, 6)" in str(caught.value)
    assert "5 channels" in str(caught.value)
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_part_that_one_mode_uses_is_named_with_the_batch_it_failed_on() -> None:
    class Auxiliary(Small):
        """Like an auxiliary classifier: only in train mode, and only for inputs that are large enough."""

        def __init__(self) -> None:
            super().__init__()
            self.aux = nn.Sequential(nn.Conv2d(4, 4, 5), nn.Flatten(), nn.Linear(4, 2))

        def forward(self, x: Tensor) -> Any:
            return (super().forward(x), self.aux(self.body[0](x))) if self.training else super().forward(x)

    result = capture(Auxiliary(), torch.rand(1, 3, 5, 5))
    assert result.train is None
    assert result.eval is not None
    (failure,) = result.failures
    assert failure.startswith(
        "The model could not be captured in train mode (input shapes (2, 3, 5, 5), in 'aux.0' (Conv2d)): "
    )
    assert failure.endswith("In eval mode it runs, without this part, which may need larger or more inputs.")
    assert capture(Auxiliary(), torch.rand(1, 3, 7, 7)).failures == ()


def test_failing_module_is_named() -> None:
    with pytest.raises(ModelError, match=r"\(4, 5, 6, 6\), in 'body\.0' \(Conv2d\)\)"):
        capture(Small(), torch.rand(4, 5, 6, 6))


def test_lazy_modules_want_a_batch_first() -> None:
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.Dropout(0.3), nn.LazyBatchNorm2d())
    with pytest.raises(ModelError, match=r"'0\.weight' yet: run it once"):
        capture(model, torch.rand(IMAGES))
    model(torch.rand(IMAGES))
    flow = capture(model, torch.rand(IMAGES)).train
    assert flow is not None
    assert [(site.name, site.path) for site in flow.noises] == [("1", "direct")]


def test_bad_arguments() -> None:
    with pytest.raises(ModelError, match=r"torch\.nn\.Module"):
        capture(torch.relu, torch.rand(IMAGES))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="empty"):
        capture(Small(), ())


def test_interrupt_is_not_swallowed() -> None:
    class Interrupted(Small):
        def forward(self, x: Tensor) -> Tensor:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        capture(Interrupted(), torch.rand(IMAGES))
