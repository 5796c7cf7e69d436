"""Networks of libraries of which a few are surveyed, each from a small configuration."""

from __future__ import annotations

import importlib
import os
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from _surveyed_network import CLASSES, RATE, Built, Network, images


def others() -> list[Network]:
    """All of them; their libraries need not be installed to list them."""
    return [*_transformers(), *_monai(), *_torch_geometric(), *_braindecode(), *_ultralytics()]


def single(
    name: str, make: Callable[[], nn.Module], inputs: Callable[[int, int], tuple[Tensor, ...]], **options: Any
) -> Network:
    """A network with one way to build it; images are 64 pixels wide."""

    def attempts() -> Iterator[tuple[int, Callable[[], Built]]]:
        yield 64, lambda: Built(make(), name.partition("/")[2], {})

    return Network(name, name.partition("/")[0], attempts, inputs, **options)


def _transformers() -> list[Network]:
    def make(title: str, configuration: str, **settings: Any) -> Callable[[], nn.Module]:
        def build() -> nn.Module:
            library = importlib.import_module("transformers")
            return getattr(library, title)(getattr(library, configuration)(**settings))

        return build

    small = {"embedding_size": 16, "hidden_sizes": [16, 32, 64, 128], "depths": [1, 2, 2, 1]}
    audio = {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "conv_dim": (16, 16, 16),
        "conv_stride": (5, 2, 2),
        "conv_kernel": (10, 3, 3),
        "num_feat_extract_layers": 3,
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 2,
        "conv_depthwise_kernel_size": 7,
        "classifier_proj_size": 16,
        "layerdrop": 0.0,  # which layers are skipped would differ between two versions' random numbers
        "apply_spec_augment": False,
        "num_labels": CLASSES,
    }
    series = {
        "num_input_channels": 3,
        "context_length": 64,
        "prediction_length": 8,
        "patch_length": 8,
        "patch_stride": 8,
        "d_model": 32,
        "ffn_dim": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "attention_dropout": RATE,
        "ff_dropout": RATE,
        "path_dropout": RATE,
        "head_dropout": RATE,
    }
    classes = {"num_labels": CLASSES}
    return [
        single(
            "transformers/ResNet",
            make("ResNetForImageClassification", "ResNetConfig", **small, **classes),
            images(3),
        ),
        single(
            "transformers/RegNet",
            make("RegNetForImageClassification", "RegNetConfig", groups_width=16, **small, **classes),
            images(3),
        ),
        single(
            "transformers/LeViT",
            _levit,
            images(3),
        ),
        single(
            "transformers/MobileViT",
            make("MobileViTForImageClassification", "MobileViTConfig", image_size=64, **classes),
            images(3),
        ),
        single(
            "transformers/Wav2Vec2-Conformer",
            make("Wav2Vec2ConformerForSequenceClassification", "Wav2Vec2ConformerConfig", **audio),
            lambda count, _: (torch.randn(count, 1600),),
        ),
        single(
            "transformers/PatchTST",
            make("PatchTSTForPrediction", "PatchTSTConfig", **series),
            lambda count, _: (torch.randn(count, 64, 3),),
            regression=True,
        ),
    ]


def _levit() -> nn.Module:
    library = importlib.import_module("transformers")
    model = library.LevitForImageClassification(library.LevitConfig(image_size=64, num_labels=CLASSES))
    for module in model.modules():
        if hasattr(module, "drop_rate"):
            module.drop_rate = RATE  # the configuration takes whole numbers only
    return model


def _monai() -> list[Network]:
    def make(title: str, **settings: Any) -> Callable[[], nn.Module]:
        return lambda: getattr(importlib.import_module("monai.networks.nets"), title)(
            spatial_dims=2, in_channels=1, out_channels=3, **settings
        )

    unet = {"channels": (8, 16, 32), "strides": (2, 2), "num_res_units": 2, "norm": "batch", "dropout": RATE}
    return [
        single("monai/UNet", make("UNet", **unet), images(1)),
        single("monai/DenseNet", make("DenseNet121", dropout_prob=RATE), images(1)),
        single(
            "monai/SegResNet", make("SegResNet", init_filters=8, norm="batch", dropout_prob=RATE), images(1)
        ),
    ]


def _torch_geometric() -> list[Network]:
    def make(title: str, **settings: Any) -> Callable[[], nn.Module]:
        return lambda: getattr(importlib.import_module("torch_geometric.nn"), title)(
            16, 32, 3, CLASSES, dropout=RATE, norm="batch", **settings
        )

    def graph(count: int, _: int) -> tuple[Tensor, Tensor]:
        nodes = 16 * count
        return torch.randn(nodes, 16), torch.randint(nodes, (2, 4 * nodes))

    return [single(f"torch_geometric/{title}", make(title), graph) for title in ("GCN", "GIN", "GAT")]


def _braindecode() -> list[Network]:
    def make(title: str, times: int) -> Callable[[], nn.Module]:
        return lambda: getattr(importlib.import_module("braindecode.models"), title)(
            n_chans=8, n_outputs=4, n_times=times, drop_prob=RATE
        )

    def signals(times: int) -> Callable[[int, int], tuple[Tensor, ...]]:
        return lambda count, _: (torch.randn(count, 8, times),)

    return [
        single("braindecode/EEGNet", make("EEGNet", 256), signals(256)),
        single("braindecode/Deep4Net", make("Deep4Net", 600), signals(600)),
    ]


def _ultralytics() -> list[Network]:
    def build() -> nn.Module:
        os.environ.setdefault("YOLO_CONFIG_DIR", tempfile.mkdtemp())  # it writes settings while imported
        tasks = importlib.import_module("ultralytics.nn.tasks")
        return tasks.DetectionModel("yolov8n.yaml", verbose=False)

    return [single("ultralytics/yolov8n", build, images(3), targets=False)]
