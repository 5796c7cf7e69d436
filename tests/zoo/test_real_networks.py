"""Networks that somebody else wrote."""

from pathlib import Path

import pytest
import torch

import varshift as vs

pytestmark = pytest.mark.zoo

NOISE_CODES = {"VS101", "VS102", "VS105", "VS106", "VS107", "VS207"}


@pytest.fixture
def timm_net():
    import timm

    def build(name, **arguments):
        torch.manual_seed(0)
        return timm.create_model(name, num_classes=10, **arguments)

    return build


def excess(layer):
    ratio = layer.ratio / layer.control_ratio
    return max(ratio, 1 / ratio)


def test_densenet_with_dropout_in_its_layers(timm_net, images):
    net = timm_net("densenet121", proj_drop_rate=0.2)
    vs.recalibrate(net, images, noise=True)
    report = vs.check(net, images)
    assert len(report.layers) == 121
    assert sum(excess(layer) > 1.03 for layer in report.layers) > 0.95 * 121
    assert len(report.noises) == 58
    found = [finding for finding in report.findings if finding.code == "VS101"]
    assert {Path(finding.source.file).name for finding in found} == {"densenet.py"}


def test_densenet_with_dropout_in_its_head_only(timm_net, images):
    net = timm_net("densenet121", drop_rate=0.5)
    vs.recalibrate(net, images, noise=True)
    report = vs.check(net, images)
    assert not any(excess(layer) > 1.03 for layer in report.layers)
    assert all(layer.local_ratio == pytest.approx(1, abs=5e-4) for layer in report.layers)
    assert not NOISE_CODES & {finding.code for finding in report.findings}


def test_stock_resnet_has_no_noise_finding(timm_net, images):
    net = timm_net("resnet50")
    assert not NOISE_CODES & {finding.code for finding in vs.check(net, shape=(3, 64, 64)).findings}
    vs.recalibrate(net, images)
    assert not NOISE_CODES & {finding.code for finding in vs.check(net, images).findings}


def test_efficientnet_is_not_sick_by_reachability(timm_net):
    report = vs.check(timm_net("efficientnet_b0", drop_path_rate=0.2), shape=(3, 64, 64))
    reached = {row.name for noise in report.noises for row in report.reached_by(noise)}
    assert (len(reached), len(report.layers)) == (40, 49)
    assert not [finding for finding in report.findings if finding.severity == "error"]


def test_torchvision_efficientnet_with_its_default_drop_path():
    import torchvision

    report = vs.check(torchvision.models.efficientnet_b0(), shape=(3, 64, 64))
    assert any(noise.kind == "drop_path" for noise in report.noises)
    assert not [finding for finding in report.findings if finding.severity == "error"]


def test_deeplab_head_is_flagged_with_its_line():
    import torchvision

    net = torchvision.models.segmentation.deeplabv3_resnet50(
        weights=None, weights_backbone=None, num_classes=5
    )
    report = vs.check(net, shape=(3, 65, 65))
    (finding,) = [finding for finding in report.findings if finding.code == "VS102"]
    assert finding.where == "classifier.0.project.3"
    assert finding.evidence["norm"] == "classifier.2"
    source = Path(finding.source.file)
    assert source.name == "deeplabv3.py"
    assert "self.project" in source.read_text().splitlines()[finding.source.line - 1]


def test_deeplab_head_shift_is_measured():
    import torchvision

    torch.manual_seed(0)
    net = torchvision.models.segmentation.deeplabv3_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=5
    )
    data = [torch.randn(4, 3, 65, 65) for _ in range(2)]
    vs.recalibrate(net, data, noise=True)
    report = vs.check(net, data)
    # An untrained head on positive features: dropout at one half more than doubles the variance.
    assert report.layer("classifier.2").local_ratio < 1 / 1.8
    others = [layer for layer in report.layers if layer.name != "classifier.2"]
    assert all(layer.local_ratio == pytest.approx(1, abs=1e-3) for layer in others if layer.reached)
    assert [finding.where for finding in report.findings if finding.code == "VS102"] == [
        "classifier.0.project.3"
    ]
