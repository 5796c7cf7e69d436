"""Networks of many trades: what stands in them is found where it is, whichever way they are written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from exported_flows import captured_by
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from varshift.flow import Capture, capture

METHODS = ["exported", "recorded"]


def found(result: Capture, mode: str = "train") -> list[tuple[str, str, float | None, str, str | None]]:
    flow = result.train if mode == "train" else result.eval
    assert flow is not None
    return [(site.name, site.kind, site.rate, site.path, site.nearest) for site in flow.noises]


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], packed: bool = False) -> None:
        super().__init__()
        self.rnn = kind(6, 8, 2, dropout=0.3, batch_first=True)  # type: ignore[call-arg]
        self.norm = nn.BatchNorm1d(8)
        self.packed = packed

    def forward(self, x: Tensor) -> Tensor:
        if self.packed:
            lengths = torch.tensor([5, 3, 2, 1])[: len(x)]
            packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            y, _ = nn.utils.rnn.pad_packed_sequence(self.rnn(packed)[0], batch_first=True)
        else:
            y, _ = self.rnn(x)
        return self.norm(y[:, 0])


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_dropout_between_recurrent_layers(kind, packed) -> None:
    result = capture(Recurrent(kind, packed), torch.rand(4, 5, 6))
    assert found(result) == [("rnn", "recurrent_dropout", 0.3, "weight", "norm")]
    assert found(result, "eval") == []


class Encoder(nn.Module):
    def __init__(self, norm_first: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, 0.1, batch_first=True, norm_first=norm_first)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=not norm_first)
        self.norm = nn.BatchNorm1d(8)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.norm(self.encoder(x, src_key_padding_mask=mask).mean(1))


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_transformer_and_its_fast_path(norm_first, method) -> None:
    mask = torch.tensor([[False, False, False, True, True]]).repeat(4, 1)
    result = captured_by(method, Encoder(norm_first), (torch.rand(4, 5, 8), mask))
    layer = "encoder.layers.0."
    assert found(result) == [
        (layer + "self_attn", "attention_dropout", 0.1, "join", "norm"),
        (layer + "dropout1", "dropout", 0.1, "join", "norm"),
        (layer + "dropout", "dropout", 0.1, "join", "norm"),
        (layer + "dropout2", "dropout", 0.1, "join", "norm"),
    ]
    assert found(result, "eval") == []
    assert result.eval is not None
    assert [norm.name for norm in result.eval.norms] == ["norm"]
    weights = {node.module for node in result.eval.nodes if node.kind == "weight"}
    assert {"encoder.layers.0.linear1", "encoder.layers.0.linear2"} <= weights
    assert torch.backends.mha.get_fastpath_enabled()


def test_rows_of_different_lengths() -> None:
    class Ragged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.norm = nn.Linear(6, 8), nn.BatchNorm1d(8)

        def forward(self, x: Tensor) -> Tensor:
            rows = torch.nested.nested_tensor([x[0], x[1, :2]])
            return self.norm(F.dropout(self.layer(rows).to_padded_tensor(0.0).mean(1), 0.3, self.training))

    result = capture(Ragged(), torch.rand(2, 4, 6))
    assert found(result) == [("", "dropout", 0.3, "direct", "norm")]


class Text(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.drop = nn.Embedding(20, 8), nn.Dropout(0.3)
        self.conv, self.norm = nn.Conv1d(8, 6, 3), nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(self.drop(self.embedding(x)).transpose(1, 2))).amax(2)


class Skips(nn.Module):
    """Skip connections by concatenation: the deep noise meets one norm behind weights, one without."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.deep = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.drop, self.up = nn.Dropout2d(0.2), nn.ConvTranspose2d(4, 4, 2, 2)
        self.behind, self.bare = nn.BatchNorm2d(8), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        skip = self.down(x).relu()
        deep = self.drop(self.deep(F.max_pool2d(skip, 2)))
        wide = F.interpolate(deep, scale_factor=2.0, mode="bilinear")
        return self.behind(torch.cat([skip, self.up(deep)], 1)), self.bare(torch.cat([skip, wide], 1))


class Variational(nn.Module):
    """Samples in both modes."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode, self.norm = nn.Linear(6, 8), nn.Linear(4, 6), nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        mean, log_variance = self.encode(x).chunk(2, 1)
        z = torch.distributions.Normal(mean, (0.5 * log_variance).exp()).rsample()
        return self.norm(self.decode(z))


class Conditional(nn.Module):
    """A generator that is given its noise beside its input, and has dropout that never sleeps."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        z = torch.randn(x.shape[0], 3)
        return self.last(F.dropout(self.norm(self.first(torch.cat([x, z], 1))), 0.5))


# model, input, its noise in train mode, whether eval mode has the same
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any], list[Any], bool]] = {
    "text": (
        Text,
        lambda: torch.randint(0, 20, (4, 7)),
        [("drop", "dropout", 0.3, "weight", "norm")],
        False,
    ),
    "skips": (
        Skips,
        lambda: torch.rand(2, 3, 8, 8),
        [("drop", "channel_dropout", 0.2, "direct", "bare")],
        False,
    ),
    "variational": (
        Variational,
        lambda: torch.rand(4, 6),
        [("", "gaussian", None, "weight", "norm")],
        True,
    ),
    "conditional": (
        Conditional,
        lambda: torch.rand(4, 3),
        [("", "gaussian", 1.0, "weight", "norm"), ("", "dropout", 0.5, "none", None)],
        True,
    ),
    "volumes": (
        lambda: nn.Sequential(nn.Conv3d(3, 4, 3), nn.Dropout3d(0.3), nn.BatchNorm3d(4)),
        lambda: torch.rand(2, 3, 5, 5, 5),
        [("1", "channel_dropout", 0.3, "direct", "2")],
        False,
    ),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name, method) -> None:
    build, batch, expected, alive = NETWORKS[name]
    result = captured_by(method, build(), batch())
    assert found(result) == expected
    assert found(result, "eval") == (expected if alive else [])


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.drop, self.norm = nn.Conv2d(3, 4, 3), nn.Dropout(0.3), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 2)

    def features(self, x: Tensor) -> Tensor:
        return self.norm(self.drop(self.conv(x))).mean((2, 3))

    def forward(self, x: Tensor) -> Any:
        return self.head(self.features(x))


class KeywordOnly(Plain):
    def forward(self, *, x: Tensor, scale: float = 1.0) -> Any:
        return super().forward(x * scale)


class Counting(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.counter, self.seen = 0, []

    def forward(self, x: Tensor) -> Any:
        self.counter += 1
        self.seen.append(x.mean())
        return None, super().forward(x), [None]


class Halved(Plain):
    def forward(self, x: Tensor) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().forward(x)


class Registry(Plain):
    """One module under many names."""

    def __init__(self) -> None:
        super().__init__()
        self.alias = self.norm
        self.parts = nn.ModuleDict({"drop": self.drop, "same": nn.Identity()})
        self.stages = nn.ModuleList([self.conv, self.parts])

    def features(self, x: Tensor) -> Tensor:
        y = self.stages[1]["drop"](self.parts["same"](self.stages[0](x)))  # type: ignore[index]
        return self.alias(y).mean((2, 3))


class Folded(Plain):
    """Space to depth and back."""

    def features(self, x: Tensor) -> Tensor:
        y = self.drop(self.conv(x))
        n, c, h, w = y.shape
        y = y.reshape(n, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4).reshape(n, 4 * c, h // 2, w // 2)
        y = F.pixel_shuffle(y, 2)
        return self.norm(y).mean((2, 3))


def weight_norm() -> nn.Module:
    model = Plain()
    parametrizations.weight_norm(model.conv)
    parametrizations.spectral_norm(model.head)
    return model


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "build", [KeywordOnly, Counting, Halved, Registry, Folded, weight_norm], ids=lambda f: f.__name__
)
def test_ways_to_write_a_network(build, method) -> None:
    model = build()
    images = torch.rand(4, 3, 8, 8)
    result = captured_by(method, model, {"x": images} if build is KeywordOnly else images)
    assert found(result) == [("drop", "dropout", 0.3, "direct", "norm")]
    assert found(result, "eval") == []
    assert result.limits == ()
    assert getattr(model, "counter", 0) == 0
    assert getattr(model, "seen", []) == []


def test_noise_in_a_hook_belongs_to_the_module_of_the_hook() -> None:
    model = Plain()
    model.drop = nn.Identity()  # type: ignore[assignment]
    model.conv.register_forward_hook(lambda module, _, output: F.dropout(output, 0.3, module.training))
    assert found(capture(model, torch.rand(4, 3, 8, 8))) == [("conv", "dropout", 0.3, "direct", "norm")]
