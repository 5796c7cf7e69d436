"""Comparisons end to end, with trainings of a second."""

import random

import numpy as np
import pytest
import torch
from tiny_training import build, loader, train, val_loader, wider
from torch import nn
from torch.utils.data import DataLoader, Dataset

import varshift as vs
from varshift.store import Store


def compared(model=build, training=None, data=None, **options):
    settings = {"val_loader": val_loader(), "seeds": 2, "epochs": 1, "variants": ["recalibrated"], **options}
    return vs.compare(model, training, loader() if data is None else data, **settings)


def test_a_table_has_a_row_for_each_variant_and_a_verdict_for_each_pair():
    table = compared(variants={"recalibrated": "recalibrated", "wider": wider}, seeds=3)
    assert [row.name for row in table.variants] == ["as-is", "recalibrated", "wider"]
    assert {len(row.values) for row in table.variants} == {3}
    assert len(table.pairs) == 3
    for row in table.variants:
        assert row.mean == pytest.approx(np.mean(row.values))
        assert row.spread == pytest.approx(np.std(row.values, ddof=1))
        assert 0 < row.accuracy <= 1
    pair = table.between("as-is", "recalibrated")
    differences = np.subtract(table["as-is"].values, table["recalibrated"].values)
    assert pair.difference == pytest.approx(differences.mean())
    assert pair.error == pytest.approx(differences.std(ddof=1) / 3**0.5, rel=1e-3)
    text = str(table)
    assert "3 variants over 3 seeds, by loss in eval() on the validation data" in text
    assert all(pair.text in text for pair in table.pairs if "as-is" in pair.text)


def test_a_comparison_is_written_and_read_back(tmp_path):
    table = compared()
    table.save(tmp_path / "table.json")
    assert vs.Comparison.from_json(tmp_path / "table.json") == table
    assert vs.Comparison.from_json(table.to_json()) == table
    with pytest.raises(vs.VarshiftError, match="no comparison of this version"):
        vs.Comparison.from_json('{"schema": "other"}')
    with pytest.raises(vs.VarshiftError, match="as a comparison: it holds a list"):
        vs.Comparison.from_json("[]")
    with pytest.raises(vs.VarshiftError, match="as a comparison: no such file"):
        vs.Comparison.from_json(tmp_path / "no.json")


def test_the_same_call_gives_the_same_figures_and_leaves_the_process_alone():
    torch.manual_seed(5)
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    first = compared()
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == states[1:]
    torch.rand(3)
    second = compared()
    assert [row.values for row in first.variants] == [row.values for row in second.variants]


def test_a_network_is_left_as_it_is_and_every_seed_starts_from_it():
    torch.manual_seed(0)
    network = build()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    table = compared(network)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert len(set(table["as-is"].values)) == 2
    assert any("All seeds start from the weights" in note for note in table.notes)


class Noted(nn.Module):
    """Remembers the first weights and all inputs of its trainings."""

    log = []  # noqa: RUF012

    def __init__(self, noise):
        super().__init__()
        self.drop, self.linear = nn.Dropout(noise), nn.Linear(8, 3)

    def forward(self, x):
        if self.training and torch.is_grad_enabled():
            self.log.append((self.linear.weight.detach().clone(), x.clone()))
        return self.linear(self.drop(x))


class Augmented(Dataset):
    """Adds noise to its samples, of torch and of numpy."""

    def __len__(self):
        return 32

    def __getitem__(self, index):
        return torch.full((8,), float(index)) + torch.randn(8) + float(np.random.rand()), index % 3


@pytest.mark.parametrize("training", [None, train])
def test_variants_of_a_seed_start_alike_and_see_the_same_data(training, monkeypatch):
    monkeypatch.setattr(Noted, "log", [])

    def draws(*_):
        torch.rand(7)

    def louder(network):
        network.register_forward_pre_hook(draws)

    data = DataLoader(Augmented(), 8, shuffle=True)
    compared(lambda: Noted(0.0), training, data, val_loader=data, variants={"louder": louder}, epochs=2)
    steps = len(Noted.log) // 4
    runs = [Noted.log[i * steps : (i + 1) * steps] for i in range(4)]  # seed by seed, variant by variant
    assert steps == 8
    for one, other in (runs[:2], runs[2:]):
        assert torch.equal(one[0][0], other[0][0])
        assert all(torch.equal(a[1], b[1]) for a, b in zip(one, other, strict=True))
    assert not torch.equal(runs[0][0][0], runs[2][0][0])
    assert not torch.equal(runs[0][0][1], runs[2][0][1])
    assert not torch.equal(runs[0][0][1], runs[0][4][1])  # another order in the second epoch


def test_a_factory_as_a_variant_starts_from_the_same_weights_where_shapes_agree(monkeypatch):
    monkeypatch.setattr(Noted, "log", [])
    compared(lambda: Noted(0.0), variants={"noisy": lambda: Noted(0.5)}, seeds=1)
    steps = len(Noted.log) // 2
    assert torch.equal(Noted.log[0][0], Noted.log[steps][0])


@pytest.mark.parametrize("training", [None, train])
@pytest.mark.parametrize(
    ("variant", "acts"), [("early-dropout", [1, 1, 0, 0]), ("late-dropout", [0, 0, 1, 1])]
)
def test_noise_acts_in_its_part_of_the_training_only(training, variant, acts):
    seen = []

    class Watched(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.linear = nn.BatchNorm1d(8), nn.Linear(8, 3)

        def forward(self, x):
            kept = nn.functional.dropout(x, 0.5, self.training)
            if torch.is_grad_enabled():
                seen.append((int((kept == 0).any()), self.norm.training))
            return self.linear(self.norm(kept))

    table = compared(Watched, training, variants=[variant], seeds=1, epochs=4)
    own = seen[len(seen) // 2 :]
    assert [flag for flag, _ in own[::6]] == acts
    assert all(learns for _, learns in own)
    assert table[variant].state == "measured"


def test_early_dropout_needs_to_know_how_long_a_training_is():
    table = compared(
        training=lambda network, batches: train(network, batches), variants=["early-dropout"], epochs=None
    )
    assert table["early-dropout"].state == "unavailable"
    assert "epochs=" in table["early-dropout"].note


def test_a_variant_that_cannot_be_made_is_listed_with_the_reason():
    table = compared(lambda: nn.Linear(8, 3), variants=["recalibrated", "group-norm"])
    assert table["recalibrated"].state == "unavailable"
    assert "no norm of this network keeps running statistics" in str(table)
    assert table["group-norm"].state == "unavailable"

    def broken(network):
        raise RuntimeError("no such thing")

    table = compared(variants={"broken": broken})
    assert "broken: cannot be made for this network" in str(table)
    assert "no such thing" in table["broken"].note


def test_a_training_that_fails_is_listed_with_the_reason_and_the_others_go_on():
    def diverging(network):
        with torch.no_grad():
            network[0].weight.fill_(float("nan"))

    table = compared(variants={"diverging": diverging})
    assert table["diverging"].state == "failed"
    assert "the loss is nan in epoch 1" in table["diverging"].note
    assert len(table["as-is"].values) == 2
    with pytest.raises(vs.VarshiftError, match="as it is could not be trained"):
        compared(lambda: diverging(net := build()) or net)


def test_a_training_may_return_a_figure_of_its_own():
    def training(network, batches, seed):
        train(network, batches, 1)
        return {"score": float(seed) + float(isinstance(batches, DataLoader)) + len(batches.dataset)}

    table = compared(training=training, measure="score", higher_is_better=True)
    assert table["as-is"].values == (97.0, 98.0)
    assert table.between("as-is", "recalibrated").outcome == "same"
    with pytest.raises(vs.VarshiftError, match="'speed' was not measured of 'as-is': there is loss, gap"):
        compared(measure="speed")


def test_regression_is_trained_too():
    x = torch.randn(64, 8)
    data = [(x[i : i + 16], x[i : i + 16].sum(1, keepdim=True)) for i in range(0, 64, 16)]
    table = compared(
        lambda: nn.Linear(8, 1), data=data, val_loader=None, variants=["early-dropout"], epochs=3
    )
    assert table.judged_on == "training data"
    assert table["as-is"].accuracy is None
    assert "cannot be told apart: they are the same in all 2 seeds" in str(table)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variants": ["no-such"]}, "there is none named 'no-such'"),
        ({"variants": {"x": ["no-such"]}}, "is no kind of cure"),
        ({"variants": ["recalibrated", "recalibrated"]}, "comes twice"),
        ({"variants": "recalibrated"}, "must be a list of names"),
        ({"seeds": 0}, "at least 1"),
        ({"seeds": [1, 1]}, "must come once"),
        ({"data": []}, "no batches"),
        ({"model": 3}, "pass a network"),
        ({"training": 3}, "pass a function of network and loader"),
        ({"workers": 1, "model": lambda: build()}, "model cannot be sent to a worker process"),
    ],
)
def test_wrong_arguments_are_refused(options, message):
    with pytest.raises((vs.VarshiftError, ValueError), match=message):
        compared(**options)


def test_a_store_keeps_results_and_more_seeds_or_variants_add_to_them(tmp_path):
    first = compared(store=tmp_path)
    more = compared(store=tmp_path, seeds=3, variants={"recalibrated": "recalibrated", "wider": wider})
    assert [run.attempts for run in runs_of(tmp_path)] == [1] * 9
    assert more["as-is"].values[:2] == first["as-is"].values
    compared(store=tmp_path, epochs=2)  # another training: nothing of it is known
    assert len(runs_of(tmp_path)) == 13


def test_progress_counts_the_trainings_of_this_comparison_only(tmp_path):
    compared(store=tmp_path, seeds=3)
    told = []
    compared(store=tmp_path, epochs=2, progress=lambda *step: told.append(step[1:]))
    assert told == [(0, 4), (1, 4), (2, 4), (3, 4)]


def test_batches_that_come_once_are_trained_and_judged_on():
    data = list(loader())
    table = compared(data=iter(data), val_loader=None)
    assert table["as-is"].values == compared(data=data, val_loader=None)["as-is"].values


def runs_of(folder):
    with Store(folder) as store:
        return store.runs(key for _, _, keys in store.wanted() for key in keys)
