"""What norms know of the size of data and noise, and how a difference is shared between them."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import varshift as vs
from varshift.flow import NoiseSite
from varshift.moments import _noise, predict
from varshift.moments._anchor import _shares, anchor
from varshift.moments._fields import made_up_input
from varshift.moments._signal import Signal, channel_variance
from varshift.moments._unsure import unsure_after


def test_shares_take_up_what_is_known_less():
    data = torch.tensor([1.0, 1.0, 0.1, 0.1, 0.0]).double()
    noise = torch.tensor([0.3, 0.0, 0.9, 3.0, 2.0]).double()
    wanted = torch.tensor([2.0, 3.0, 1.1, 1.0, 1.0]).double()
    gain, louder = _shares(data, noise, wanted, 0.01)
    reached = gain.square() * data + louder.square() * noise
    assert reached[:4].tolist() == pytest.approx(wanted[:4].tolist(), rel=1e-6)
    assert gain[0] ** 2 == pytest.approx(1.7, rel=0.01)  # little noise: it stays, the data take the rest
    assert gain[1] ** 2 == pytest.approx(3.0)
    assert louder[3] ** 2 * 3.0 < 1.0  # more noise than there is variance cannot be
    assert (gain[4], louder[4]) == (1.0, 1.0)


def test_noise_that_is_like_data_changes_with_them():
    data, noise = torch.tensor([1.0, 0.2]).double(), torch.tensor([0.5, 3.0]).double()
    wanted = torch.tensor([3.0, 1.6]).double()
    gain, louder = _shares(data, noise, wanted, 1.0)
    assert gain.tolist() == pytest.approx(louder.tolist())
    assert gain.square().tolist() == pytest.approx([2.0, 0.5])


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("transposed", [False, True])
def test_how_unsure_noise_is(groups, transposed):
    """Noise of independent units comes out as squared weights say; that of whole samples as data do."""
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    layer = kind(16, 64, 3, groups=groups, bias=False)
    x = made_up_input(torch.empty(256, 16, 12, 12)).cumsum(1) / 3
    drawn = {
        "own": x * torch.randn_like(x),
        "shared": x * torch.randn(len(x), 1, 1, 1),
    }
    found = {}
    for name, draw in drawn.items():
        given = Signal(x, draw.square(), draw)
        result = Signal(layer(x).detach(), None, layer(draw).detach())
        squares = layer.weight.detach().square()
        operator = "conv_transpose2d" if transposed else "conv2d"
        data, noise = unsure_after(operator, {"groups": groups}, squares, [given], result)
        found[name] = float(noise / data)
    assert found["own"] < 0.1
    assert 0.5 < found["shared"] < 2


def test_sums_are_as_unsure_as_their_terms():
    x, y = torch.randn(64, 4, 5, 5), 3 * torch.randn(64, 4, 5, 5)
    first = Signal(x, x.square(), 2 * torch.randn_like(x), unsure=(torch.tensor(1.0), torch.tensor(0.5)))
    second = Signal(y)
    data, noise = unsure_after("add", {}, None, [first, second], Signal(x + y))
    assert float(data) == pytest.approx(0.1, rel=0.1)
    assert float(noise) == pytest.approx(0.5)


def test_gates_leave_it_as_it_is():
    x = Signal(torch.randn(64, 4, 5, 5), unsure=(torch.tensor(1.0), torch.tensor(0.5)))
    gate = Signal(torch.rand(64, 4, 1, 1), unsure=(torch.tensor(2.0), torch.tensor(0.1)))
    other = Signal(torch.randn(64, 4, 5, 5), unsure=(torch.tensor(2.0), torch.tensor(0.1)))
    assert unsure_after("mul", {}, None, [x, gate], x) == x.unsure
    assert [float(part) for part in unsure_after("mul", {}, None, [x, other], x)] == pytest.approx([3.0, 0.6])


def test_a_mask_changes_with_the_noise():
    """What a mask says of the anchored signal is what the signal says itself."""
    site = NoiseSite("", "", "drop_path", 0.3, None, 0, (), None, "none")
    branch = torch.randn(512, 3, 6, 6) + torch.tensor([0.0, 1.0, -2.0])[:, None, None]
    trunk = torch.randn_like(branch)
    noisy = _noise.multiply(Signal(branch), site, 0.3, (512, 1, 1, 1), 1.0)
    x = Signal(
        branch + trunk,
        noisy.variance,
        noisy.draw,
        noisy.mask.added(trunk, None),
        exact=noisy.exact,
        unsure=(torch.tensor(1.0), torch.tensor(1.0)),
    )
    wanted = 2 * (channel_variance(x.mean) + x.noise())
    made, given, line = anchor("norm", x, torch.zeros(3), wanted, None)
    found = given.moved(line)
    assert made.louder.square().tolist() == pytest.approx([2.0] * 3, rel=1e-4)
    mask = found.mask
    middle = mask.factor_mean * mask.base.mean * mask.scale[:, None, None] + mask.shift
    assert torch.allclose(middle, found.mean, atol=1e-4)
    spread = mask.factor_noise * (mask.factor_mean * mask.base.mean * mask.scale[:, None, None]).square()
    assert torch.allclose(spread, found.variance, rtol=1e-4)


class Residual(nn.Module):
    """A block whose branch is left out for whole samples, written by hand."""

    def __init__(self, width):
        super().__init__()
        self.norm, self.middle = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.first, self.second = (nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))

    def forward(self, x):
        branch = self.second(F.relu(self.middle(self.first(F.relu(self.norm(x))))))
        if self.training:
            branch = branch * (torch.rand(len(x), 1, 1, 1) < 0.7) / 0.7
        return x + branch


@pytest.mark.parametrize("seed", range(3))
def test_data_unlike_those_made_up(seed):
    """Smoother than any photograph: data come out too small behind every weight, and so does their noise."""
    torch.manual_seed(seed)
    stem = nn.Conv2d(3, 16, 3, padding=1)
    model = nn.Sequential(stem, *[Residual(16) for _ in range(4)], nn.BatchNorm2d(16))
    batch = F.interpolate(torch.randn(256, 3, 2, 2), size=16, mode="bilinear", align_corners=True)
    vs.recalibrate(model, [batch] * 32, noise=True)
    measured = vs.check(model, [batch] * 2)
    predicted = predict(model, shape=(3, 16, 16))
    for layer in predicted.layers:
        if layer.noise:
            truth = measured.layer(layer.name).local_ratio
            assert layer.local_ratio == pytest.approx(truth, rel=0.06), layer.name


class Dense(nn.Module):
    """Every layer reads the parts of all before it, which norms have read already."""

    def __init__(self, growth, layers):
        super().__init__()
        self.stem = nn.Conv2d(3, growth, 3, padding=1)
        widths = [growth * (layer + 1) for layer in range(layers)]
        self.norms = nn.ModuleList(map(nn.BatchNorm2d, widths))
        self.convs = nn.ModuleList(nn.Conv2d(width, growth, 3, padding=1) for width in widths)

    def forward(self, x):
        x = F.dropout(F.relu(self.stem(x)), 0.5, self.training)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            part = F.dropout(F.relu(conv(F.relu(norm(x)))), 0.5, self.training)
            x = torch.cat([x, part], 1)
        return x


def test_parts_that_a_norm_has_read_already():
    """Their dropout met them last, and still does behind the norm that knows their size."""
    torch.manual_seed(0)
    model = Dense(12, 5)
    batch = torch.randn(128, 3, 12, 12).cumsum(-1) / 2
    vs.recalibrate(model, [batch] * 32, noise=True)
    measured = vs.check(model, [batch] * 4)
    for layer in predict(model, batch).layers:
        truth = measured.layer(layer.name)
        assert layer.local_ratio == pytest.approx(truth.local_ratio, rel=5e-3), layer.name
        assert layer.ratio == pytest.approx(truth.ratio, rel=5e-3), layer.name
