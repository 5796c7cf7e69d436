"""Whole checks on batches of unusual structure, and what a user reads when batch and model do not fit."""

import collections
import re
import types

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence
from torch.utils.data import DataLoader, TensorDataset

import varshift as vs

pytestmark = pytest.mark.filterwarnings("ignore:enable_nested_tensor")


def generator(seed):
    return torch.Generator().manual_seed(seed)


def codes(report):
    return {finding.code for finding in report.findings}


def trained(network, batches):
    network.train()
    with torch.no_grad():
        for batch in batches:
            network(*batch)
    return network


class Steps(nn.Module):
    """Outputs for every step of a sequence, (time, samples, classes) as torch's own layers have it."""

    def __init__(self, kind="transformer", first=False, last=False):
        super().__init__()
        self.first, self.last, self.inputs = first, last, nn.Linear(6, 16)
        if kind == "transformer":
            layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0)
            self.body = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        else:
            self.body = nn.LSTM(16, 8, bidirectional=True)
        self.norm, self.head = nn.BatchNorm1d(16), nn.Linear(16, 4)

    def forward(self, x):
        hidden = self.body(self.inputs(x))
        hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        hidden = self.norm(hidden.flatten(0, 1)).unflatten(0, hidden.shape[:2])
        return self.head(hidden[-1] if self.last else hidden)


@pytest.mark.parametrize("kind", ["transformer", "lstm"])
@pytest.mark.parametrize("last", [False, True])
def test_time_first_batches_without_targets_are_recognised_by_trying(kind, last):
    torch.manual_seed(0)
    net = trained(Steps(kind, last=last), [(torch.randn(20, 32, 6),) for _ in range(60)])
    report = vs.check(net, [torch.randn(20, 32, 6, generator=generator(i)) for i in range(4)])
    assert report.data.samples == 4 * 32
    assert not codes(report) & {"VS301", "VS401"}
    assert any("(time, samples, ...)" in limit for limit in report.limits)


def test_time_first_batches_with_targets_are_recognised_by_them():
    torch.manual_seed(0)
    net = trained(Steps("lstm", last=True), [(torch.randn(20, 32, 6),) for _ in range(60)])
    report = vs.check(net, [(torch.randn(20, 32, 6), torch.arange(32) % 4) for _ in range(4)])
    assert report.data.samples == 4 * 32
    assert report.gap.metric == "loss"
    assert "VS401" not in codes(report)
    assert not any("(time, samples" in limit for limit in report.limits)


@pytest.mark.parametrize("targets", [True, False])
def test_samples_that_are_mixed_are_reported_where_the_loader_or_the_targets_say_what_they_are(targets):
    torch.manual_seed(0)
    net = trained(Steps(last=False), [(torch.randn(16, 20, 6),) for _ in range(60)])
    x = torch.randn(48, 20, 6)
    if targets:
        loader = [(part, part.mean((1, 2))) for part in x.split(16)]
        report = vs.check(net, loader, loss=lambda outputs, y: F.mse_loss(outputs.mean((1, 2)), y))
    else:
        loader = DataLoader(TensorDataset(x), 16)
        report = vs.check(net, loader)
    assert report.data.samples == 48
    assert "VS401" in codes(report)


class Tokens(Steps):
    def __init__(self):
        super().__init__("lstm")
        self.inputs = nn.Embedding(9, 16)


def test_time_first_tokens_with_a_target_for_every_step():
    def batch(seed):
        tokens = torch.randint(9, (20, 32), generator=generator(seed))
        return tokens, tokens % 4

    torch.manual_seed(0)
    net = trained(Tokens(), [(batch(i)[0],) for i in range(60)])
    report = vs.check(
        net,
        [batch(100 + i) for i in range(4)],
        loss=lambda outputs, y: F.cross_entropy(outputs.flatten(0, 1), y.flatten()),
    )
    assert report.data.samples == 4 * 32
    assert report.gap.metric == "loss"
    assert "VS401" not in codes(report)


class Tagger(nn.Module):
    """Outputs as long as the longest sample of the batch."""

    def __init__(self):
        super().__init__()
        self.inputs, self.norm = nn.Linear(6, 16), nn.BatchNorm1d(16)
        self.body, self.head = nn.GRU(16, 16, batch_first=True), nn.Linear(16, 4)

    def forward(self, x, lengths):
        hidden = self.norm(self.inputs(x).transpose(1, 2)).transpose(1, 2)
        packed = pack_padded_sequence(hidden, lengths, batch_first=True, enforce_sorted=False)
        return self.head(pad_packed_sequence(self.body(packed)[0], batch_first=True)[0])


def padded(seed, longest):
    lengths = torch.randint(5, 12, (16,), generator=generator(seed))
    lengths[longest] = 12
    return torch.randn(16, 12, 6, generator=generator(seed)), lengths


@pytest.mark.parametrize("longest", [1, 7, 12])
def test_outputs_as_long_as_the_longest_sample(longest):
    torch.manual_seed(0)
    net = trained(Tagger(), [padded(i, longest) for i in range(60)])
    report = vs.check(net, [padded(100 + i, longest) for i in range(4)])
    assert report.data.samples == 64
    assert not codes(report) & {"VS301", "VS401"}
    assert report.gap.metric == "relative_l2"


class Packed(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.norm, self.head = nn.GRU(6, 16), nn.BatchNorm1d(16), nn.Linear(16, 4)

    def forward(self, packed):
        return self.head(self.norm(self.body(packed)[1][0]))


def test_packed_sequences_are_counted_and_cut_by_sequence():
    def batch(seed):
        lengths = torch.randint(2, 9, (12,), generator=generator(seed)).tolist()
        return pack_sequence([torch.randn(n, 6) for n in lengths], enforce_sorted=False), torch.arange(12) % 4

    torch.manual_seed(0)
    net = trained(Packed(), [(batch(i)[0],) for i in range(60)])
    report = vs.check(net, [batch(i) for i in range(3)])
    assert report.data.samples == 36
    assert report.gap.metric == "loss"
    assert not codes(report) & {"VS301", "VS401"}


class Graphs:
    """Twelve graphs of five nodes."""

    def __init__(self, seed):
        self.x, self.batch, self.num_graphs = torch.randn(60, 7, generator=generator(seed)), None, 12
        self.batch = torch.arange(60) // 5
        self.y = (torch.zeros(12).index_add_(0, self.batch, self.x[:, 0]) > 0).long()

    def to(self, device):
        self.x, self.batch, self.y = (value.to(device) for value in (self.x, self.batch, self.y))
        return self


class Readout(nn.Module):
    def __init__(self, writes):
        super().__init__()
        self.writes, self.inputs, self.norm, self.head = (
            writes,
            nn.Linear(7, 7),
            nn.BatchNorm1d(7),
            nn.Linear(7, 2),
        )

    def forward(self, data):
        hidden = self.norm(self.inputs(data.x)).relu()
        if self.writes:  # the usual style
            data.x = hidden
        return self.head(hidden.new_zeros(data.num_graphs, 7).index_add_(0, data.batch, hidden))


class ReadoutOfTensors(Readout):
    def forward(self, x, batch):
        return super().forward(types.SimpleNamespace(x=x, batch=batch, num_graphs=12))


def graph_loss(outputs, data):
    return F.cross_entropy(outputs, data.y)


@pytest.mark.parametrize("writes", [False, True])
@pytest.mark.parametrize(
    "options",
    [{}, {"loss": graph_loss}, {"loss": graph_loss, "forward": lambda model, data: model(data)}],
)
def test_graphs_are_measured_as_their_tensors_are(writes, options):
    def net(cls):
        torch.manual_seed(0)
        return trained(cls(writes), [])

    network = trained(net(Readout), [(Graphs(100 + i),) for i in range(50)])
    reference = net(ReadoutOfTensors)
    reference.load_state_dict(network.state_dict())
    batches = [Graphs(i) for i in range(4)]
    report = vs.check(network, batches, **options)
    expected = vs.check(
        reference,
        [(b.x, b.batch, b.y) for b in map(Graphs, range(4))],
        loss=lambda outputs, y: F.cross_entropy(outputs, y),
    )
    assert report.data.samples == 48
    assert dict(report.gap.states) == pytest.approx(dict(expected.gap.states))
    assert [layer.ratio for layer in report.layers] == pytest.approx([x.ratio for x in expected.layers])
    assert codes(report) == codes(expected)
    assert "VS301" not in codes(report)
    assert all(torch.equal(batch.x, Graphs(i).x) for i, batch in enumerate(batches)), "the user's graphs"


def test_attributes_of_an_object_are_inputs_by_name():
    class ByName(Readout):
        def forward(self, x, batch):
            return super().forward(types.SimpleNamespace(x=x, batch=batch, num_graphs=int(batch[-1]) + 1))

    torch.manual_seed(0)
    network = ByName(False)
    report = vs.check(network, [Graphs(i) for i in range(3)])
    assert report.data.samples == 36
    assert report.gap.metric == "loss"
    assert report.layers[0].reached


def test_a_norm_written_by_hand_is_live_whatever_a_trial_wrote():
    class Frozen(nn.Module):
        """Uses its running statistics in both modes."""

        def __init__(self):
            super().__init__()
            self.register_buffer("running_mean", torch.zeros(6))
            self.register_buffer("running_var", torch.ones(6))

        def forward(self, x):
            return (x - self.running_mean) / (self.running_var + 1e-5).sqrt()

    class Optional(nn.Sequential):
        def forward(self, x, mask=None):
            return super().forward(x if mask is None else x * mask)

    net = Optional(Frozen(), nn.BatchNorm1d(6), nn.Linear(6, 3))
    handle = vs.recalibrate(net, PAIRS)
    assert [layer.updated for layer in handle.layers] == [False, True]


def test_recalibration_leaves_the_batches_alone():
    batches = [Graphs(i) for i in range(3)]
    vs.recalibrate(Readout(True), batches)
    assert all(torch.equal(batch.x, Graphs(i).x) for i, batch in enumerate(batches))

    class Scales(nn.Sequential):
        def forward(self, x):
            return super().forward(x.mul_(0.5))

    data = [torch.ones(8, 4) + torch.arange(8.0)[:, None] for _ in range(2)]
    net = Scales(nn.BatchNorm1d(4))
    vs.recalibrate(net, data)
    assert torch.equal(data[0], torch.ones(8, 4) + torch.arange(8.0)[:, None])
    assert net[0].running_var[0].item() == pytest.approx(torch.cat(data).mul(0.5).var(0)[0].item())


class Neighbours(nn.Module):
    def __init__(self):
        super().__init__()
        self.inputs, self.norm, self.head = nn.Linear(7, 16), nn.BatchNorm1d(16), nn.Linear(16, 3)

    def forward(self, x, index):
        hidden = self.inputs(x)
        hidden = torch.zeros_like(hidden).index_add_(0, index[1], hidden[index[0]])
        return self.head(self.norm(F.dropout(hidden, 0.3, self.training)).relu())


def test_positions_are_not_cut_off_from_what_they_point_to():
    def batch(seed):
        return torch.randn(64, 7, generator=generator(seed)), torch.randint(
            64, (2, 200), generator=generator(seed)
        )

    torch.manual_seed(0)
    net = trained(Neighbours(), [batch(100 + i) for i in range(80)])
    layer = vs.check(net, [batch(i) for i in range(6)]).layers[0]
    assert layer.ratio < 0.85
    assert layer.predicted_ratio == pytest.approx(layer.ratio, abs=0.1)


class Table(nn.Module):
    """Two kinds of columns, the second optional."""

    def __init__(self):
        super().__init__()
        self.embedding, self.norm, self.head = nn.Embedding(5, 4), nn.BatchNorm1d(6), nn.Linear(10, 3)

    def forward(self, x_cat, x_cont=None):
        embedded = self.embedding(x_cat).mean(1)
        return self.head(torch.cat([embedded, self.norm(x_cont)], 1))


def test_an_optional_second_input_is_no_target():
    data = [(torch.randint(5, (16, 2)), torch.randn(16, 6), torch.arange(16) % 3) for _ in range(3)]
    report = vs.check(Table(), data)
    assert report.gap.metric == "loss"
    assert report.layers[0].reached
    assert any("'x_cont' among them, and item 3 as the targets" in limit for limit in report.limits)
    assert vs.recalibrate(Table(), data).layers[0].updated
    assert vs.predict(Table(), data).layer("norm") is not None
    report = vs.check(Table(), example_inputs=data[0][:2])
    assert report.model.norms == 1


class Speech(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.head = nn.BatchNorm1d(6), nn.Linear(6, 8)

    def forward(self, x, lengths=None):
        hidden = self.norm(x.transpose(1, 2))
        lengths = x.new_ones(len(x)) if lengths is None else lengths
        mask = torch.arange(x.shape[1]) < lengths[:, None] * x.shape[1]
        return self.head((hidden * mask[:, None]).mean(2))


def test_lengths_are_inputs_and_targets_are_targets():
    lengths = torch.linspace(0.3, 1, 12)
    report = vs.check(Speech(), [(torch.randn(12, 9, 6), lengths) for _ in range(3)])
    assert report.gap.metric == "relative_l2"
    assert any("'lengths' among them, and none as targets" in limit for limit in report.limits)
    report = vs.check(Speech(), [(torch.randn(12, 9, 6), torch.arange(12) % 8) for _ in range(3)])
    assert report.gap.metric == "loss"
    assert not any("were read" in limit for limit in report.limits)
    report = vs.check(Speech(), [(torch.randn(12, 9, 6), lengths, torch.arange(12) % 8) for _ in range(3)])
    assert report.gap.metric == "loss"
    assert any("'lengths' among them, and item 3 as the targets" in limit for limit in report.limits)


class Flexible(nn.Module):
    """Takes images, or a whole batch in training, as some detectors do."""

    def __init__(self):
        super().__init__()
        self.norm, self.head = nn.BatchNorm1d(6), nn.Linear(6, 3)

    def forward(self, x, *args, **kwargs):
        if isinstance(x, dict):
            return self.loss(x)
        return self.head(self.norm(x))

    def loss(self, batch):
        return F.cross_entropy(self.forward(batch["img"]), batch["cls"])


def test_a_required_argument_is_filled_whatever_keywords_a_forward_takes():
    batch = {"img": torch.randn(16, 6), "cls": torch.arange(16) % 3, "im_file": ["a"] * 16}
    report = vs.check(Flexible(), [batch] * 3)
    assert report.data.samples == 48
    assert report.gap.metric == "loss"


class Detector(nn.Module):
    """Wants targets in training, where it returns losses; returns boxes in evaluation."""

    def __init__(self):
        super().__init__()
        self.body, self.norm, self.head = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Linear(6, 4)

    def forward(self, images, targets=None):
        features = [self.norm(self.body(image[None])).mean((2, 3)) for image in images]
        boxes = self.head(torch.cat(features))
        if not self.training:
            return [{"boxes": box[None]} for box in boxes]
        assert targets is not None, "targets should not be none when in training mode"
        wanted = torch.stack([target["boxes"][0] for target in targets])
        return {"loss_box": F.mse_loss(boxes, wanted)}


def test_detectors_get_their_targets():
    def batch():
        return [torch.randn(3, 8 + i, 9) for i in range(4)], [{"boxes": torch.rand(1, 4)} for _ in range(4)]

    report = vs.check(Detector(), [batch() for _ in range(3)])
    assert report.data.samples == 12
    assert report.layers[0].reached
    assert any("handed to the model as 'targets'" in limit for limit in report.limits)


def test_without_their_targets_detectors_get_a_hint():
    batches = [[torch.randn(3, 8, 8), torch.randn(3, 9, 8)]]
    message = r"(?s)should not be none when in training mode.*pass forward="
    with pytest.raises(vs.ModelError, match=message) as caught:
        vs.recalibrate(Detector(), batches, noise=True, forward=lambda m, b: m(b))
    assert isinstance(caught.value.__cause__, AssertionError)


class Auxiliary(nn.Module):
    """Returns more in training than in evaluation."""

    Outputs = collections.namedtuple("Outputs", "logits aux_logits")

    def __init__(self):
        super().__init__()
        self.norm, self.head, self.other = nn.BatchNorm1d(6), nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, x):
        x = self.norm(x)
        return self.Outputs(self.head(x), self.other(x)) if self.training else self.head(x)


PAIRS = [(torch.randn(16, 6), torch.arange(16) % 3)] * 3


@pytest.mark.parametrize(
    "loss",
    [
        lambda outputs, y: F.cross_entropy(outputs, y),
        lambda outputs, y: F.cross_entropy(outputs.logits, y) + F.cross_entropy(outputs.aux_logits, y),
    ],
)
def test_a_loss_that_takes_the_outputs_of_one_mode_only(loss):
    message = (
        r"loss= failed.*returns an Outputs in train mode and a tensor of shape .* in eval mode: let loss="
    )
    net = Auxiliary()
    report = vs.check(net, PAIRS, loss=loss)
    (limit,) = [limit for limit in report.limits if "loss=" in limit]
    assert re.search(message, limit)
    assert "default loss of the main output" in limit
    assert report.gap == vs.check(net, PAIRS).gap
    with pytest.raises(vs.ModelError, match=message):  # nothing else to compare with
        vs.check(Auxiliary(), [x for x, _ in PAIRS], loss=lambda outputs, x: loss(outputs, PAIRS[0][1]))


def test_outputs_of_two_types_need_no_loss():
    assert vs.check(Auxiliary(), PAIRS).gap.metric == "loss"


@pytest.mark.parametrize(
    ("convert", "message"),
    [
        (torch.Tensor.double, r"Inputs are float64 and the weights float32: convert.*\.to\(torch\.float32\)"),
        (lambda x: (x * 255).byte(), r"Inputs are uint8 and the weights float32: convert.*/ 255"),
        (torch.Tensor.long, r"Inputs are int64 and the weights float32: convert"),
    ],
)
@pytest.mark.parametrize("act", [vs.check, vs.recalibrate])
def test_inputs_of_another_type_say_so(act, convert, message):
    net = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6))
    with pytest.raises(vs.ModelError, match=message) as caught:
        act(net, [convert(torch.rand(16, 6))] * 2)
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_whole_numbers_for_a_regression_say_so():
    net = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 1))
    with pytest.raises(vs.DataError, match=r"int64 targets .* convert the targets to floats"):
        vs.check(net, [(torch.randn(16, 6), torch.arange(16))] * 2)


@pytest.mark.parametrize("late", [False, True])
def test_targets_that_do_not_fit_are_found_before_anything_costly_runs(monkeypatch, late):
    net = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
    monkeypatch.setattr(
        "varshift.evidence._capture.capture_in_place", lambda *args, **kwargs: pytest.fail("captured")
    )
    fitting = (torch.randn(16, 6), torch.arange(16) % 3)
    wrong = (torch.randn(16, 6), torch.arange(16))
    with pytest.raises(vs.DataError, match="targets run from 0 to 15, but the model has 3 outputs"):
        vs.check(net, [fitting, wrong] if late else [wrong, fitting])


class Fails(nn.Module):
    def forward(self, x):
        raise RuntimeError("out of luck")


@pytest.mark.parametrize("act", [vs.check, vs.recalibrate])
def test_an_error_of_the_model_says_where_and_on_what(act):
    net = nn.Sequential(nn.BatchNorm1d(6), nn.Sequential(nn.ReLU(), Fails()))
    with pytest.raises(
        vs.ModelError, match=r"\(16, 6\).*in '1\.1' \(Fails\)\): RuntimeError: out of luck"
    ) as caught:
        act(net, [torch.randn(16, 6)] * 2)
    assert str(caught.value.__cause__) == "out of luck"


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("act", [vs.check, vs.recalibrate])
def test_an_interrupt_is_never_wrapped(act, error):
    def interrupted(model, batch):
        raise error

    with pytest.raises(error):
        act(nn.Sequential(nn.BatchNorm1d(6)), PAIRS, forward=interrupted)


@pytest.mark.parametrize("act", [vs.check, vs.recalibrate])
def test_a_loader_that_is_used_up_says_so(act):
    batches = iter(PAIRS)
    list(batches)
    with pytest.raises(vs.DataError, match=r"no batches.*gone through once only and may be used up"):
        act(nn.Sequential(nn.BatchNorm1d(6)), batches)


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        ({"train": PAIRS, "val": PAIRS}, "loader is a dict with the keys 'train', 'val'"),
        (Graphs(0), r"loader is a Graphs that holds tensors: this looks like one batch.*\[batch\]"),
    ],
)
def test_what_is_no_loader_says_so(loader, message):
    with pytest.raises(vs.DataError, match=message):
        vs.recalibrate(nn.Sequential(nn.BatchNorm1d(6)), loader)


class Insists(nn.Module):
    """Runs on batches of sixteen only."""

    def __init__(self):
        super().__init__()
        self.norm, self.head = nn.BatchNorm1d(6), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.norm(x.view(16, 6)))


def test_a_comparison_that_fails_is_a_limit_and_not_the_end():
    report = vs.check(Insists(), PAIRS)
    assert report.gap.metric == "loss"
    assert any(
        "batch mates could not be compared: the model fails on a few samples" in x for x in report.limits
    )


def test_items_that_are_whole_batches_are_not_batches_of_one():
    loader = DataLoader(PAIRS, batch_size=1, collate_fn=lambda items: items[0])
    report = vs.check(nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 3)), loader)
    assert "VS301" not in codes(report)
    assert report.data.samples == 48


@pytest.mark.parametrize("act", [vs.check, vs.recalibrate])
@pytest.mark.parametrize("inside", [False, True])
def test_an_exported_program_says_that_its_mode_is_fixed(act, inside):
    net = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6))
    program = torch.export.export(net, (torch.randn(16, 6),))
    with pytest.raises(vs.ModelError, match="Pass the module that was exported"):
        act(nn.Sequential(program.module()) if inside else program.module(), [torch.randn(16, 6)])
    with pytest.raises(vs.ModelError, match=r"an ExportedProgram: expected a torch\.nn\.Module"):
        act(program, [torch.randn(16, 6)])


@pytest.mark.parametrize("options", [{}, {"tolerance": 0.1}, {"estimator": "ema"}])
def test_the_default_device_does_not_matter(options):
    torch.manual_seed(0)
    data = [torch.randn(16, 6) for _ in range(5)]
    nets = [nn.Sequential(nn.BatchNorm1d(6)) for _ in range(2)]
    vs.recalibrate(nets[0], data, **options)
    with torch.device("meta"):
        vs.recalibrate(nets[1], data, **options)
    assert torch.equal(nets[0][0].running_var, nets[1][0].running_var)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((torch.randn(16, 6).numpy(), torch.zeros(16).numpy()), "batch 0 is a tuple .* torch.from_numpy"),
        (
            (torch.randn(16, 6), torch.arange(16.0) % 3),
            r"convert the targets to whole numbers",
        ),
    ],
)
def test_data_of_the_wrong_kind_say_what_to_convert(batch, message):
    with pytest.raises(vs.DataError, match=message):
        vs.check(nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 3)), [batch])


def test_a_forward_that_fails_is_named():
    net = nn.Sequential(nn.BatchNorm1d(6))
    with pytest.raises(vs.ModelError, match=r"forward= failed on the batch \(input shapes .*KeyError"):
        vs.check(net, PAIRS, forward=lambda model, batch: model({"x": batch[0]}["inputs"]))
    with pytest.raises(vs.ModelError, match=r"loss= failed on outputs .* IndexError"):
        vs.check(net, PAIRS, loss=lambda outputs, y: outputs[0, 0, 0])
