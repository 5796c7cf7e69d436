"""Both capture methods must see the same noise and the same norms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from exported_flows import captured_by
from long_runs import a_few
from torch import Tensor, nn

from varshift.flow import Flow, capture
from varshift.integrations import declare_torchvision_operators


def facts(flow: Flow) -> tuple[list[Any], list[Any]]:
    noises = [
        (
            s.name,
            s.cls,
            s.kind,
            s.rate,
            s.source,
            s.reaches,
            s.nearest,
            s.path,
            dict(s.near),
            s.pools,
            s.drops,
        )
        for s in flow.noises
    ]
    norms = [
        (n.name, n.cls, n.kind, n.channels, n.source, len(n.calls), n.shapes, n.batch_statistics, n.tracked)
        for n in flow.norms
    ]
    return noises, norms


class Residual(nn.Module):
    def __init__(self, width: int, convolution: type[nn.Module], norm: type[nn.Module]) -> None:
        super().__init__()
        self.first, self.second = convolution(width, width, 1), convolution(width, width, 1)
        self.norm1, self.norm2 = norm(width), norm(width)
        self.drop = nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(F.relu(self.norm1(x)))
        y = self.second(self.drop(F.relu_(self.norm2(y))))
        if self.training:
            y = y * (torch.rand((y.shape[0],) + (1,) * (y.ndim - 1)) > 0.1) / 0.9
        return x + y


def residual(rank: int) -> nn.Module:
    convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
    norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[rank - 1]
    pool = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[rank - 1]
    drop = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)[rank - 1]
    return nn.Sequential(
        convolution(3, 4, 1), nn.Dropout(0.1), nn.PReLU(), pool(2), Residual(4, convolution, norm), drop(0.2),
        Residual(4, convolution, norm), nn.Flatten(), nn.LazyLinear(4), nn.BatchNorm1d(4), nn.Dropout(0.5),
    )  # fmt: skip


class Text(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        self.recurrent = nn.LSTM(8, 8, 2, dropout=0.2, batch_first=True, bidirectional=True)
        self.norm = nn.BatchNorm1d(16)

    def forward(self, ids: Tensor) -> Tensor:
        y = F.dropout(self.embedding(ids), 0.05, self.training)
        y, _ = self.recurrent(self.layer(y))
        return self.norm(y.mean(1))


class Segmentation(nn.Module):
    """An encoder and decoder with skips, bilinear upsampling and two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(
            nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(True), nn.Dropout2d(0.2)
        )
        self.up = nn.Sequential(nn.ConvTranspose2d(4, 3, 2, 2), nn.BatchNorm2d(3), nn.Hardswish(True))
        self.mix = nn.Sequential(nn.Conv2d(6, 4, 1), nn.SyncBatchNorm(4), nn.AlphaDropout(0.1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        low = self.down(x)
        y = self.mix(torch.cat([x, self.up(low)], 1))
        return {"out": y, "aux": F.interpolate(low, scale_factor=2.0, mode="bilinear")}


NETS: dict[str, tuple[nn.Module, Tensor]] = {
    "1d": (residual(1), torch.rand(4, 3, 6)),
    "2d": (residual(2), torch.rand(4, 3, 6, 6)),
    "3d": (residual(3), torch.rand(4, 3, 4, 4, 4)),
    "text": (Text(), torch.randint(0, 20, (3, 7))),
    "segmentation": (Segmentation(), torch.rand(2, 3, 8, 8)),
}


@pytest.mark.parametrize("name", NETS)
def test_methods_agree(name) -> None:
    model, batch = NETS[name]
    with torch.no_grad():
        model(batch)  # lazy layers take their shape
    exported, recorded = (captured_by(method, model, batch) for method in ("exported", "recorded"))
    for mode in ("train", "eval"):
        first, second = getattr(exported, mode), getattr(recorded, mode)
        assert (first.method, second.method) == ("exported", "recorded")
        assert facts(first) == facts(second)
    assert exported.train is not None
    assert exported.train.noises
    assert exported.train.norms


ZOO = {
    "densenet121": {"proj_drop_rate": 0.1},
    "resnet18": {"drop_rate": 0.1, "drop_path_rate": 0.1},
    "resnet26d": {"drop_path_rate": 0.1},
    "efficientnet_b0": {"drop_rate": 0.1, "drop_path_rate": 0.1},
    "mobilenetv3_small_100": {"drop_rate": 0.1},
    "convnext_atto": {"drop_path_rate": 0.1},
    "vit_tiny_patch16_224": {"proj_drop_rate": 0.1, "attn_drop_rate": 0.1, "drop_path_rate": 0.1},
    "swin_tiny_patch4_window7_224": {"drop_path_rate": 0.1},
    "poolformer_s12": {"drop_path_rate": 0.1},
    "pvt_v2_b0": {"drop_path_rate": 0.1},
    "edgenext_xx_small": {"drop_path_rate": 0.1},
    "mobilevit_xxs": {"drop_rate": 0.1},
    "regnety_002": {"drop_path_rate": 0.1},
    "hrnet_w18_small": {"drop_rate": 0.1},
    "vgg11_bn": {"drop_rate": 0.1},
    "ghostnet_100": {"drop_rate": 0.1},
    "levit_128s": {"drop_path_rate": 0.1},
    "cait_xxs24_224": {"drop_path_rate": 0.1},
    "crossvit_tiny_240": {"drop_path_rate": 0.1},
    "volo_d1_224": {"drop_path_rate": 0.1},
    "nf_resnet26": {"drop_path_rate": 0.1},
    "resnetv2_50": {"drop_path_rate": 0.1},
    "repvgg_a0": {"drop_path_rate": 0.1},
    "fastvit_t8": {"drop_path_rate": 0.1},
    "xcit_nano_12_p16_224": {"drop_path_rate": 0.1},
    "convit_tiny": {"drop_path_rate": 0.1},
    "dla34": {"drop_rate": 0.1},
    "mixer_s32_224": {"drop_path_rate": 0.1},
    "twins_pcpvt_small": {"drop_path_rate": 0.1},
}


def _sites(flow: Flow) -> tuple[list[Any], list[Any]]:
    noises = [(s.id, s.rate, s.nearest, s.path, s.drops, len(s.reaches)) for s in flow.noises]
    return noises, [(n.name, n.kind, n.channels, len(n.calls), n.batch_statistics) for n in flow.norms]


@pytest.mark.zoo
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", a_few(ZOO, 8))
def test_networks_of_timm_have_the_same_sites_recorded_and_exported(name) -> None:
    declare_torchvision_operators()
    timm = pytest.importorskip("timm")
    model = timm.create_model(name, **ZOO[name])
    batch = torch.rand(2, *model.default_cfg["input_size"])
    with torch.no_grad():
        model(batch)  # some build their tables in the first pass
    recorded, exported = capture(model, batch), captured_by("exported", model, batch)
    for mode in ("train", "eval"):
        first, second = getattr(recorded, mode), getattr(exported, mode)
        assert first.method == "recorded"
        assert _sites(first) == _sites(second)
