"""Networks whose noise is made by calls: functional dropout, helpers, masks written by hand, attention."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from _surveyed_network import CLASSES, RATE, Network, images
from _surveyed_others import single

_WORDS = 64
_LENGTH = 16
_WIDTH = 32


def call_networks() -> list[Network]:
    """All of them; their libraries need not be installed to list them."""
    return [*_by_hand(), *_torch(), *_transformers(), *_monai()]


def _tokens(count: int, _: int) -> tuple[Tensor, ...]:
    return (torch.randint(3, _WORDS, (count, _LENGTH)),)


def _sequences(count: int, _: int) -> tuple[Tensor, ...]:
    return (torch.randn(count, _LENGTH, _WIDTH),)


# -- written here: what users write ----------------------------------------------------------------------


def drop_samples(x: Tensor, rate: float, training: bool) -> Tensor:
    """Drop path as a helper."""
    if rate == 0.0 or not training:
        return x
    keep = 1 - rate
    mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep)
    return x * mask / keep


class HandBlock(nn.Module):
    """A residual block of linear layers; subclasses say what its noise is."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(_WIDTH)
        self.inner, self.outer = nn.Linear(_WIDTH, _WIDTH), nn.Linear(_WIDTH, _WIDTH)
        self.rate = RATE

    def forward(self, x: Tensor) -> Tensor:
        """Adds the branch, with its noise."""
        return x + self.noise(self.outer(torch.relu(self.inner(self.norm(x)))))

    def noise(self, x: Tensor) -> Tensor:
        """The noise at the end of the branch."""
        return F.dropout(x, self.rate, self.training)


class LiteralRate(HandBlock):
    """Functional dropout with its rate in the call."""

    def noise(self, x: Tensor) -> Tensor:
        """Two calls on one line."""
        return F.dropout(F.dropout(x, 0.1, self.training), p=0.2, training=self.training)


class HandMask(HandBlock):
    """A Bernoulli mask written by hand."""

    def noise(self, x: Tensor) -> Tensor:
        """Keeps entries with probability 1 - rate."""
        if not self.training:
            return x
        mask = (torch.rand_like(x) > self.rate).to(x.dtype)
        return x * mask / (1 - self.rate)


class Helper(HandBlock):
    """Noise from a function of the module's file."""

    def noise(self, x: Tensor) -> Tensor:
        """Drops whole samples."""
        return drop_samples(x, 0.1, self.training)


class Shared(HandBlock):
    """One dropout module at two places."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(RATE)

    def noise(self, x: Tensor) -> Tensor:
        """Runs it twice."""
        return self.drop(torch.tanh(self.drop(x)))


def _by_hand() -> list[Network]:
    def make(cls: type[HandBlock]) -> Callable[[], nn.Module]:
        return lambda: nn.Sequential(cls(), cls(), nn.Linear(_WIDTH, CLASSES))

    def vectors(count: int, _: int) -> tuple[Tensor, ...]:
        return (torch.randn(count, _WIDTH),)

    return [
        single(f"torch/{cls.__name__}", make(cls), vectors)
        for cls in (HandBlock, LiteralRate, HandMask, Helper, Shared)
    ]


def _torch() -> list[Network]:
    def layer(cls: type[nn.Module]) -> nn.Module:
        return cls(_WIDTH, 2, 64, dropout=RATE, batch_first=True)

    return [
        single(
            "torch/TransformerEncoder",
            lambda: nn.TransformerEncoder(layer(nn.TransformerEncoderLayer), 2, enable_nested_tensor=False),
            _sequences,
            regression=True,
        ),
        single(
            "torch/TransformerDecoder",
            lambda: nn.TransformerDecoder(layer(nn.TransformerDecoderLayer), 2),
            lambda count, size: _sequences(count, size) * 2,
            regression=True,
        ),
    ]


# -- other libraries -------------------------------------------------------------------------------------


def _transformers() -> list[Network]:
    def network(
        name: str,
        title: str,
        inputs: Callable[[int, int], tuple[Tensor, ...]] = _tokens,
        attention: str = "sdpa",
        configuration: str | None = None,
        **settings: Any,
    ) -> Network:
        def build() -> nn.Module:
            library = importlib.import_module("transformers")
            make = getattr(library, configuration or title.removesuffix("Model") + "Config")
            return getattr(library, title)(make(attn_implementation=attention, **settings))

        return single(f"transformers/{name}", build, inputs, regression=True)

    encoder: dict[str, Any] = {
        "vocab_size": _WORDS,
        "hidden_size": _WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
    }
    rates = {"hidden_dropout_prob": RATE, "attention_probs_dropout_prob": RATE}
    both: dict[str, Any] = {
        "vocab_size": _WORDS,
        "d_model": _WIDTH,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "max_position_embeddings": 64,
        "dropout": RATE,
        "attention_dropout": RATE,
        "activation_dropout": RATE,
        "use_cache": False,
    }
    gpt: dict[str, Any] = {
        "vocab_size": _WORDS,
        "n_embd": _WIDTH,
        "n_layer": 2,
        "n_head": 2,
        "n_positions": 64,
        "use_cache": False,
    }
    pictures: dict[str, Any] = {
        "hidden_size": _WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "image_size": 64,
        "patch_size": 16,
    }
    return [
        network("BERT", "BertModel", **encoder, **rates),
        network("BERT, eager attention", "BertModel", attention="eager", **encoder, **rates),
        network(
            "DistilBERT",
            "DistilBertModel",
            vocab_size=_WORDS,
            dim=_WIDTH,
            n_layers=2,
            n_heads=2,
            hidden_dim=64,
        ),
        network("ALBERT", "AlbertModel", embedding_size=16, **encoder, **rates),
        network("BART", "BartModel", **both),
        network("BART, eager attention", "BartModel", attention="eager", **both),
        network(
            "OPT",
            "OPTModel",
            vocab_size=_WORDS,
            hidden_size=_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=2,
            ffn_dim=64,
            max_position_embeddings=64,
            word_embed_proj_dim=_WIDTH,
            dropout=RATE,
            attention_dropout=RATE,
            use_cache=False,
        ),
        network("GPT-2", "GPT2Model", **gpt),
        network("GPT-2, eager attention", "GPT2Model", attention="eager", **gpt),
        network(
            "Llama, eager attention",
            "LlamaModel",
            attention="eager",
            attention_dropout=RATE,
            use_cache=False,
            **encoder,
        ),
        network(
            "Bloom",
            "BloomModel",
            attention="eager",
            vocab_size=_WORDS,
            hidden_size=_WIDTH,
            n_layer=2,
            n_head=2,
            hidden_dropout=RATE,
            attention_dropout=RATE,
            use_cache=False,
        ),
        network(
            "T5",
            "T5EncoderModel",
            attention="eager",
            configuration="T5Config",
            vocab_size=_WORDS,
            d_model=_WIDTH,
            d_kv=16,
            d_ff=64,
            num_layers=2,
            num_heads=2,
            dropout_rate=RATE,
        ),
        network("ViT", "ViTModel", images(3), **pictures, **rates),
        network("BEiT", "BeitModel", images(3), attention="eager", drop_path_rate=RATE, **pictures, **rates),
        network(
            "ConvNeXt",
            "ConvNextModel",
            images(3),
            attention="eager",
            hidden_sizes=[16, 16, 32, 32],
            depths=[1, 1, 2, 1],
            drop_path_rate=RATE,
        ),
        network(
            "SegFormer",
            "SegformerModel",
            images(3),
            attention="eager",
            hidden_sizes=[16, 16, 32, 32],
            depths=[1, 1, 1, 1],
            num_attention_heads=[1, 1, 2, 2],
            drop_path_rate=RATE,
            **rates,
        ),
    ]


def _monai() -> list[Network]:
    def make(title: str, **settings: Any) -> Callable[[], nn.Module]:
        return lambda: getattr(importlib.import_module("monai.networks.nets"), title)(**settings)

    return [
        single(
            "monai/EfficientNet",
            make(
                "EfficientNet",
                blocks_args_str=["r1_k3_s11_e1_i32_o16_se0.25", "r2_k3_s22_e6_i16_o24_se0.25"],
                spatial_dims=2,
                in_channels=1,
                num_classes=CLASSES,
                width_coefficient=0.5,
                depth_coefficient=1.0,
                dropout_rate=RATE,
                drop_connect_rate=RATE,
            ),
            images(1),
        ),
        single(
            "monai/ViT",
            make(
                "ViT",
                in_channels=1,
                img_size=64,
                patch_size=16,
                hidden_size=_WIDTH,
                mlp_dim=64,
                num_layers=2,
                num_heads=2,
                classification=False,
                spatial_dims=2,
                dropout_rate=RATE,
            ),
            images(1),
            regression=True,
        ),
        single(
            "monai/BasicUNet",
            make(
                "BasicUNet",
                spatial_dims=2,
                in_channels=1,
                out_channels=2,
                features=(8, 8, 16, 16, 32, 8),
                norm=("batch", {"affine": True}),
                dropout=RATE,
            ),
            images(1),
        ),
    ]
