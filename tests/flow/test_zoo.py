"""Networks of timm and torchvision, with the answers of an audit of their sources."""

from __future__ import annotations

import importlib
from collections import Counter
from typing import Any

import pytest
import torch
from exported_flows import captured_by
from long_runs import a_few

from varshift.flow import Flow
from varshift.integrations import declare_torchvision_operators

pytestmark = [pytest.mark.zoo, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


@pytest.fixture(scope="module")
def timm() -> Any:
    declare_torchvision_operators()
    return pytest.importorskip("timm")


@pytest.fixture(scope="module")
def torchvision() -> Any:
    declare_torchvision_operators()
    pytest.importorskip("torchvision")
    return importlib.import_module("torchvision")


def train_flow(model: torch.nn.Module, *shape: int, method: str = "recorded") -> Flow:
    result = captured_by(method, model, torch.rand(shape))
    assert result.train is not None
    assert result.eval is not None
    assert result.eval.noises == ()
    assert result.limits == ()
    return result.train


@pytest.mark.parametrize("method", ["exported", "recorded"])
def test_densenet_drops_in_front_of_every_later_norm(timm, method) -> None:
    model = timm.create_model("densenet121", proj_drop_rate=0.2, drop_rate=0.5)
    flow = train_flow(model, 2, 3, 32, 32, method=method)
    assert len(flow.norms) == 121
    layers = [site for site in flow.noises if site.rate == 0.2]
    assert len(layers) == 58
    assert {(site.kind, site.path, site.cls) for site in layers} == {("dropout", "direct", "DenseLayer")}
    assert all(str(site.source).rpartition(":")[0].endswith("timm/models/densenet.py") for site in layers)
    (head,) = [site for site in flow.noises if site.rate == 0.5]
    assert (head.name, head.path, head.reaches) == ("head_drop", "none", ())
    assert len(set().union(*(site.reaches for site in layers))) == 118


def test_stock_resnet_has_no_noise(timm) -> None:
    flow = train_flow(timm.create_model("resnet50"), 2, 3, 32, 32, method="exported")
    assert flow.noises == ()
    assert len(flow.norms) == 53


@pytest.mark.parametrize("method", ["exported", "recorded"])
def test_efficientnet_drop_path_reaches_most_norms_by_the_residual_sum(timm, method) -> None:
    model = timm.create_model("efficientnet_b0", drop_path_rate=0.2)
    flow = train_flow(model, 2, 3, 32, 32, method=method)
    assert len(flow.norms) == 49
    assert Counter((site.kind, site.path, site.drops) for site in flow.noises) == {
        ("drop_path", "join", "branch"): 9
    }
    assert len(set().union(*(site.reaches for site in flow.noises))) == 40
    # The rates rise linearly over the 16 blocks; 9 of them have an identity shortcut.
    rates = [0.2 * block / 16 for block in (2, 4, 6, 7, 9, 10, 12, 13, 14)]
    assert [site.rate for site in flow.noises] == pytest.approx(rates, abs=1e-6)


@pytest.mark.parametrize("method", ["exported", "recorded"])
def test_deeplab_head_has_dropout_in_front_of_a_norm(torchvision, method) -> None:
    model = torchvision.models.segmentation.deeplabv3_resnet50(weights=None, weights_backbone=None)
    flow = train_flow(model, 2, 3, 32, 32, method=method)
    (site,) = flow.noises
    assert (site.name, site.kind, site.rate) == ("classifier.0.project.3", "dropout", 0.5)
    assert (site.nearest, site.path) == ("classifier.2", "weight")
    file, _, line = str(site.source).rpartition(":")
    assert file.endswith("torchvision/models/segmentation/deeplabv3.py")
    with open(file) as lines:
        assert "self.project(" in lines.readlines()[int(line) - 1]


TIMM = {
    "resnet18": {"drop_path_rate": 0.2, "drop_block_rate": 0.1},
    "resnetv2_50": {"drop_path_rate": 0.2},
    "cspresnet50": {"drop_path_rate": 0.2},
    "tresnet_m": {"drop_path_rate": 0.2},
    "skresnet18": {"drop_path_rate": 0.2},
    "regnety_002": {"drop_path_rate": 0.2},
    "rexnet_100": {"drop_path_rate": 0.2},
    "repvgg_a0": {"drop_path_rate": 0.2},
    "mobilenetv3_small_100": {"drop_path_rate": 0.2},
    "mobilenetv4_conv_small": {"drop_path_rate": 0.2},
    "convnext_atto": {"drop_path_rate": 0.2},
    "poolformer_s12": {"drop_path_rate": 0.2, "proj_drop_rate": 0.1},
    "deit_tiny_patch16_224": {"drop_path_rate": 0.2, "img_size": 32},
}


@pytest.mark.parametrize("name", a_few(TIMM, 5))
def test_drop_path_of_stock_networks_drops_branches(timm, name) -> None:
    flow = train_flow(timm.create_model(name, **TIMM[name]), 2, 3, 32, 32)
    gates = [site for site in flow.noises if site.kind == "drop_path"]
    assert gates
    assert {site.drops for site in gates} == {"branch"}
    assert {site.path for site in gates if site.nearest} <= {"join", "weight"}
    blocks = [site for site in flow.noises if site.kind == "drop_block"]
    assert {site.path for site in blocks} == ({"weight"} if "drop_block_rate" in TIMM[name] else set())


def test_vovnet_drops_the_trunk_where_a_block_has_no_shortcut(timm) -> None:
    flow = train_flow(timm.create_model("ese_vovnet19b_dw", drop_path_rate=0.2), 2, 3, 32, 32)
    assert {site.drops for site in flow.noises} == {"everything"}


@pytest.mark.parametrize(
    ("name", "shape", "gates"),
    [
        ("efficientnet_b0", (2, 3, 32, 32), 9),
        ("convnext_tiny", (2, 3, 32, 32), 17),
        ("swin_t", (2, 3, 64, 64), 22),
        ("regnet_y_400mf", (2, 3, 32, 32), 0),
        ("video.s3d", (2, 3, 16, 224, 224), 0),
    ],
)
def test_torchvision_networks(torchvision, name, shape, gates) -> None:
    module, _, name = name.rpartition(".")
    home = getattr(torchvision.models, module) if module else torchvision.models
    flow = train_flow(getattr(home, name)(), *shape, method="exported" if module else "recorded")
    found = [site for site in flow.noises if site.kind == "drop_path"]
    assert len(found) == gates
    assert {site.drops for site in found} <= {"branch"}
    heads = [site for site in flow.noises if site.kind == "dropout"]
    assert all(site.path == "none" for site in heads)
    assert [site.rate for site in heads] == ([0.2] if name in ("efficientnet_b0", "s3d") else [])
