"""Weights and draws from histories, against the table of the paper's notes and plain lists."""

import copy
import io
import math
import pickle
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from varshift.data import (
    ActiveBias,
    ActiveBiasSampler,
    IndexedDataset,
    PredictionHistory,
    correct_probability,
    prediction_score,
)

# The four histories of a table of worked values.
HISTORIES = ((0.2, 0.4, 0.9), (0.95, 0.97, 0.99), (0.05, 0.04, 0.06), (0.3, 0.7, 0.3, 0.7))


def filled(bias):
    for step in range(4):
        ids = [i for i, history in enumerate(HISTORIES) if step < len(history)]
        bias.record(ids, probabilities=[HISTORIES[i][step] for i in ids])
    return bias


def close(values, want, digits):
    assert [round(float(value), digits) for value in values] == list(want)


# ---------------------------------------------------------------------- the table


def test_the_histories_of_the_table():
    history = filled(ActiveBias(4, burn_in=0)).history
    assert history.count().tolist() == [3, 3, 3, 4]
    close(history.mean(), (0.5, 0.97, 0.05, 0.5), 6)
    close(history.variance(), (0.086667, 0.000267, 0.000067, 0.04), 6)


@pytest.mark.parametrize(
    ("score", "ddof", "want", "digits"),
    [
        ("variance", 0, (0.300703, 0.016331, 0.008165, 0.201329), 6),
        ("variance", 1, (0.372089, 0.020002, 0.010000, 0.232984), 6),
        ("threshold", 0, (0.25, 0.0291, 0.0475, 0.25), 6),
        ("difficulty", 0, (0.5, 0.03, 0.95, 0.5), 6),
        ("easiness", 0, (0.5, 0.97, 0.05, 0.5), 6),
    ],
)
def test_the_scores_of_the_table(score, ddof, want, digits):
    close(filled(ActiveBias(4, score, burn_in=0, ddof=ddof)).scores(), want, digits)


@pytest.mark.parametrize("normalisation", ["batch", "dataset"])
@pytest.mark.parametrize(
    ("score", "smoothing", "epsilon", "want"),
    [
        ("variance", "mean", 0.131632, (1.64221, 0.56203, 0.53101, 1.26474)),
        ("variance", 0.2, 0.2, (1.50981, 0.65232, 0.62770, 1.21016)),
        ("threshold", "mean", 0.14415, (1.36715, 0.60094, 0.66476, 1.36715)),
        ("difficulty", "mean", 0.4950, (1.00505, 0.53030, 1.45960, 1.00505)),
    ],
)
def test_the_weights_of_the_table(score, smoothing, epsilon, want, normalisation):
    bias = filled(ActiveBias(4, score, burn_in=0, smoothing=smoothing, normalisation=normalisation))
    assert round(float(bias.epsilon()), 6) == epsilon
    close(bias.weights([0, 1, 2, 3]), want, 5)
    close(4 * bias.sampling_probabilities(), want, 5)


# ---------------------------------------------------------------------- histories


def lists(size, batches):
    histories = [[] for _ in range(size)]
    for ids, values in batches:
        for i, value in zip(ids, values, strict=True):
            histories[i].append(value)
    return histories


batches_of = st.lists(
    st.lists(st.tuples(st.integers(0, 5), st.floats(0, 1)), max_size=8).map(
        lambda pairs: ([pair[0] for pair in pairs], [pair[1] for pair in pairs])
    ),
    max_size=6,
)


@settings(deadline=None)
@given(batches=batches_of)
def test_three_numbers_hold_what_the_lists_hold(batches):
    history = PredictionHistory(6)
    for ids, values in batches:
        history.update(ids, values)
    for i, values in enumerate(lists(6, batches)):
        assert int(history.count([i])) == len(values)
        if values:
            assert float(history.mean([i])) == pytest.approx(statistics.fmean(values), abs=1e-14)
            assert float(history.variance([i])) == pytest.approx(statistics.pvariance(values), abs=1e-14)
        if len(values) > 1:
            assert float(history.variance([i], ddof=1)) == pytest.approx(
                statistics.variance(values), abs=1e-14
            )


def test_saturated_probabilities_keep_their_variance():
    history = PredictionHistory(1)
    values = [1 - 1e-9, 1 - 3e-9] * 500
    for value in values:
        history.update([0], [value])
    # Sums of squares lose this even in float64.
    assert float(history.variance()) == pytest.approx(1e-18, rel=1e-3)


def test_a_history_per_class():
    history = PredictionHistory(2, num_classes=3)
    steps = torch.rand(5, 2, 3, dtype=torch.float64)
    for values in steps:
        history.update([1, 0], values)
    torch.testing.assert_close(history.mean([1, 0]), steps.mean(0))
    torch.testing.assert_close(history.variance([1, 0], ddof=1), steps.var(0))
    assert history.count().tolist() == [5, 5]


@pytest.mark.parametrize("ids", [[7], [-1], torch.tensor([0, 4])])
def test_unknown_ids_are_refused(ids):
    history = PredictionHistory(4)
    with pytest.raises(ValueError, match=r"ids hold -?\d, which is unknown: this history has samples 0 to 3"):
        history.update(ids, [0.5] * len(ids))
    assert history.count().sum() == 0
    with pytest.raises(ValueError, match="which is unknown"):
        ActiveBias(4, burn_in=0).weights(ids)


@pytest.mark.parametrize("ids", [[0.5], [True], [[0]], torch.tensor(0)])
def test_ids_that_are_no_indices_are_refused(ids):
    with pytest.raises(ValueError, match="whole numbers in one dimension"):
        PredictionHistory(4).update(ids, [0.5])


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan, math.inf])
def test_values_that_are_no_probabilities_are_refused(value):
    history = PredictionHistory(4)
    with pytest.raises(ValueError, match=r"must be in \[0, 1\], without NaN"):
        history.update([0, 1], [0.5, value])
    assert history.count().sum() == 0


def test_bad_histories_are_named():
    with pytest.raises(ValueError, match="size=0 must be"):
        PredictionHistory(0)
    with pytest.raises(ValueError, match="num_classes=0 must be"):
        PredictionHistory(2, num_classes=0)
    with pytest.raises(ValueError, match=r"shape \(2,\): with 1 ids it must be \(1,\)"):
        PredictionHistory(2).update([0], [0.1, 0.2])
    with pytest.raises(ValueError, match="ddof=2 must be 0"):
        PredictionHistory(2).variance(ddof=2)
    with pytest.raises(ValueError, match=r"state_dict is of shape \(3,\) and this history of \(2,\)"):
        PredictionHistory(2).load_state_dict(PredictionHistory(3).state_dict())
    with pytest.raises(ValueError, match="state_dict lacks"):
        PredictionHistory(2).load_state_dict({"count": torch.zeros(2)})


# ---------------------------------------------------------------------- correct probabilities


def test_the_probability_of_the_correct_class():
    logits = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 4, 2, 2, 1, 3])
    want = torch.exp(-torch.nn.functional.cross_entropy(logits, targets, reduction="none")).detach()
    got = correct_probability(logits, targets)
    assert not got.requires_grad
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(correct_probability(logits.softmax(1), targets, logits=False), want)


@pytest.mark.parametrize("shape", [(7,), (4, 3)])
def test_the_probability_of_the_correct_labels(shape):
    logits, labels = torch.randn(shape, dtype=torch.float64), torch.randint(0, 2, shape)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels.double(), reduction="none")
    torch.testing.assert_close(correct_probability(logits, labels), torch.exp(-loss))


def test_half_precision_is_widened():
    logits = torch.randn(4, 10).bfloat16()
    got = correct_probability(logits, torch.arange(4))
    torch.testing.assert_close(got, correct_probability(logits.float(), torch.arange(4)))


@pytest.mark.parametrize(
    ("shape", "targets", "message"),
    [
        ((2, 3), torch.tensor([0, 3]), "targets hold 3, which is not one of 3 classes"),
        ((2, 3), torch.tensor([0, -100]), "targets hold -100"),
        ((2, 3), torch.tensor([0.0, 1.0]), "must be class numbers"),
        ((2, 3), torch.tensor([0, 1, 1]), "pass"),
        ((2, 3, 4), torch.zeros(2, 4, dtype=torch.int64), "give each an id of its own"),
        ((2,), torch.tensor([0, 2]), r"labels in \[0, 1\]"),
    ],
)
def test_targets_that_do_not_fit_are_refused(shape, targets, message):
    with pytest.raises(ValueError, match=message):
        correct_probability(torch.zeros(shape), targets)


# ---------------------------------------------------------------------- weights


def test_weights_come_from_before_the_batch():
    bias = filled(ActiveBias(4, burn_in=0))
    before = bias.weights([0, 2])
    got = bias([0, 2], probabilities=torch.tensor([0.1, 0.9], dtype=torch.float64))
    assert torch.equal(got, before)
    assert not torch.equal(bias.weights([0, 2]), before)
    assert bias.history.count().tolist() == [4, 3, 4, 4]


@settings(deadline=None)
@given(
    batches=batches_of,
    ids=st.lists(st.integers(0, 5), min_size=1, max_size=8),
    score=st.sampled_from(["difficulty", "easiness", "variance", "threshold"]),
    smoothing=st.sampled_from(["mean", 0.0, 0.1]),
    normalisation=st.sampled_from(["batch", "dataset"]),
    ddof=st.sampled_from([0, 1]),
)
def test_weights_follow_the_equations(batches, ids, score, smoothing, normalisation, ddof):
    bias = ActiveBias(6, score, burn_in=0, smoothing=smoothing, normalisation=normalisation, ddof=ddof)
    for some, values in batches:
        bias.record(some, probabilities=values)
    raw = {}
    for i, values in enumerate(lists(6, batches)):
        if len(values) >= 2:
            mean = statistics.fmean(values)
            var = statistics.pvariance(values) if ddof == 0 else statistics.variance(values)
            raw[i] = {
                "difficulty": 1 - mean,
                "easiness": mean,
                "threshold": mean * (1 - mean),
                "variance": math.sqrt(var + var * var / (len(values) - 1)),
            }[score]
    epsilon = (statistics.fmean(raw.values()) if raw else 0.0) if smoothing == "mean" else smoothing
    among = [raw[i] for i in ids if i in raw] if normalisation == "batch" else list(raw.values())
    norm = statistics.fmean(among) + epsilon if among else 0.0
    if 0 < norm < 1e-6:
        return  # scores that are rounding errors of zero have no meaningful ratio
    want = [(raw[i] + epsilon) / norm if i in raw and norm > 0 else 1.0 for i in ids]
    got = bias.weights(ids)
    if norm > 0:
        torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64), rtol=1e-6, atol=1e-6)
    if normalisation == "batch":
        assert float(got.mean()) == pytest.approx(1)


def test_burn_in_lasts_as_many_epochs_as_said():
    bias = ActiveBias(4, burn_in=3)
    for epoch in range(5):
        assert (bias.epoch, bias.burning_in) == (epoch, epoch < 3)
        for ids in ([0, 1], [2, 3]):
            weights = bias(ids, probabilities=[0.1 * epoch, 0.2])
            assert torch.equal(weights, torch.ones(2)) == (epoch < 3)
            assert weights.dtype is torch.float32
    bias.set_epoch(2)
    assert bias.burning_in


def test_samples_with_a_short_history_weigh_one():
    bias = ActiveBias(3, "difficulty", burn_in=0, smoothing=0.1)
    for probabilities in ([0.2, 0.9], [0.2, 0.9]):
        bias.record([0, 1], probabilities=probabilities)
    bias.record([2], probabilities=[0.5])
    torch.testing.assert_close(
        bias.weights([0, 1, 2]), torch.tensor([0.9 / 0.55, 0.2 / 0.55, 1.0], dtype=torch.float64)
    )


def test_the_ratio_of_weights_is_bounded_as_derived():
    generator = torch.Generator().manual_seed(0)
    bias = ActiveBias(50, burn_in=0, smoothing=0.2)
    for _ in range(6):
        bias.record(torch.arange(50), probabilities=torch.rand(50, generator=generator).round())
    weights = bias.weights(torch.arange(50))
    # Scores of long histories are at most about .5, so that the ratio stays below (.5 + eps) / eps = 3.5.
    assert float(weights.max() / weights.min()) < 3.6


def test_weights_per_class():
    bias = ActiveBias(3, "threshold", burn_in=0, num_classes=2)
    labels = torch.tensor([[0, 1], [1, 1]])
    for _ in range(2):
        weights = bias([0, 2], torch.tensor([[0.0, 4.0], [-4.0, 0.0]]), labels)
    assert torch.equal(weights, torch.ones(2, 2))
    weights = bias.weights([0, 1, 2])
    assert weights.shape == (3, 2)
    assert torch.equal(weights[1], torch.ones(2, dtype=torch.float64))
    assert float(weights[[0, 2]].mean()) == pytest.approx(1)
    torch.testing.assert_close(weights[0], weights[2].flip(0))
    assert float(weights[0, 0]) > float(weights[0, 1])


def test_weights_have_no_gradient_and_the_type_of_the_loss():
    bias = filled(ActiveBias(4, burn_in=0))
    for dtype, want in ((torch.float16, torch.float32), (torch.float32,) * 2, (torch.float64,) * 2):
        logits = torch.randn(2, 3, dtype=dtype, requires_grad=True)
        weights = bias(torch.tensor([0, 1]), logits, torch.tensor([0, 2]))
        assert (weights.dtype, weights.requires_grad) == (want, False)


def test_an_empty_batch_is_no_trouble():
    bias = filled(ActiveBias(4, burn_in=0))
    weights = bias(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))
    assert weights.shape == (0,)
    assert bias.history.seen == 13


def test_sums_in_steps_are_the_sums_over_all():
    generator = torch.Generator().manual_seed(0)
    bias = ActiveBias(40, burn_in=0)
    for _ in range(300):
        ids = torch.randint(0, 40, (16,), generator=generator)
        bias.record(ids, probabilities=torch.rand(16, generator=generator))
    in_steps = bias.mean_score()
    torch.testing.assert_close(in_steps, bias.scores().mean(), rtol=1e-12, atol=0)
    bias.history.update([3], [0.5])  # behind its back
    torch.testing.assert_close(bias.mean_score(), bias.scores().mean(), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"score": "hardness"}, "score='hardness' must be one of 'difficulty'"),
        ({"burn_in": -1}, "burn_in=-1 must be"),
        ({"smoothing": -0.1}, r"smoothing=-0\.1 must be at least 0"),
        ({"smoothing": "median"}, "smoothing='median' must be 'mean'"),
        ({"normalisation": "epoch"}, "normalisation='epoch' must be 'batch' or 'dataset'"),
        ({"ddof": 3}, "ddof=3 must be"),
        ({"data": []}, "data is an empty list"),
        ({"data": 0}, "data is an empty range"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        ActiveBias(**{"data": 4, "burn_in": 0, **arguments})


def test_bad_calls_are_named():
    bias = ActiveBias(4, burn_in=0)
    with pytest.raises(ValueError, match="exactly one of them"):
        bias.record([0])
    with pytest.raises(ValueError, match="targets=None"):
        bias.record([0], torch.zeros(1, 3))
    with pytest.raises(ValueError, match="score='other' must be one of"):
        prediction_score("other", torch.tensor(2), torch.tensor(0.5), torch.tensor(0.1))


# ---------------------------------------------------------------------- checkpoints


def test_a_state_goes_on_to_the_bit():
    bias = filled(ActiveBias(4, burn_in=0))
    buffer = io.BytesIO()
    torch.save(bias.state_dict(), buffer)
    buffer.seek(0)
    loaded = ActiveBias(4, burn_in=0)
    loaded.load_state_dict(torch.load(buffer, weights_only=True))
    others = [loaded, copy.deepcopy(bias), pickle.loads(pickle.dumps(bias))]
    want = [bias([1, 3, 1], probabilities=torch.rand(3)) for _ in range(1)]
    for other in others:
        assert other.history.seen == 13
        assert not torch.equal(other.weights([1, 3, 1]), bias.weights([1, 3, 1]))
        assert torch.equal(other.weights([1, 3, 1]).float(), want[0])


def test_a_state_of_another_score_serves_too():
    bias = ActiveBias(4, "threshold", burn_in=0)
    bias.load_state_dict(filled(ActiveBias(4, burn_in=0)).state_dict())
    assert torch.equal(bias.weights([0, 1]), filled(ActiveBias(4, "threshold", burn_in=0)).weights([0, 1]))
    with pytest.raises(ValueError, match="state_dict lacks"):
        bias.load_state_dict({})


# ---------------------------------------------------------------------- the sampler


def test_draws_follow_the_table():
    bias = filled(ActiveBias(4, burn_in=0))
    sampler = ActiveBiasSampler(bias, num_samples=40000, seed=1)
    counts = torch.bincount(torch.tensor(list(sampler)), minlength=4).double()
    expected = 40000 * sampler.probabilities()
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square < 21.1  # 3 degrees of freedom, one in ten thousand


@settings(deadline=None)
@given(scores=st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=8).filter(any))
def test_nothing_of_probability_zero_is_drawn(scores):
    bias = ActiveBias(len(scores), "easiness", burn_in=0, smoothing=0.0)
    for _ in range(2):
        bias.record(range(len(scores)), probabilities=scores)
    drawn = set(ActiveBiasSampler(bias, num_samples=500))
    assert drawn == {i for i, score in enumerate(scores) if score > 0}


@pytest.mark.parametrize(("uniform", "want"), [(0.0, 1), (1.0, 2)])
def test_the_ends_of_the_table_have_a_probability(uniform, want, monkeypatch):
    bias = ActiveBias(4, "easiness", burn_in=0, smoothing=0.0)
    for _ in range(2):
        bias.record(range(4), probabilities=[0.0, 0.3, 0.7, 0.0])
    monkeypatch.setattr(torch, "rand", lambda n, **_: torch.full((n,), uniform, dtype=torch.float64))
    assert set(ActiveBiasSampler(bias)) == {want}


def test_importance_weights_undo_the_bias():
    bias = filled(ActiveBias(4, "difficulty", burn_in=0))
    sampler = ActiveBiasSampler(bias, num_samples=20000)
    values = torch.tensor([1.0, -2.0, 5.0, 3.0])
    assert float(values[list(sampler)].mean()) != pytest.approx(1.75, abs=0.1)
    drawn = torch.tensor(list(sampler))
    weights = sampler.importance_weights(drawn)
    exact = (sampler.probabilities() * sampler.importance_weights(range(4)) * values).sum()
    assert float(exact) == pytest.approx(1.75, abs=1e-6)
    assert float((weights * values[drawn]).mean()) == pytest.approx(1.75, abs=0.1)


def test_the_table_holds_for_an_epoch():
    bias = filled(ActiveBias(4, "difficulty", burn_in=0))
    sampler = ActiveBiasSampler(bias)
    list(sampler)
    table = sampler.probabilities()
    bias.record([2] * 20, probabilities=[1.0] * 20)
    assert torch.equal(sampler.probabilities(), table)
    list(sampler)
    assert float(sampler.probabilities()[2]) < float(table[2])
    torch.testing.assert_close(sampler.probabilities(), bias.sampling_probabilities())


@pytest.mark.parametrize("draws", [5, 10, 23])
def test_burn_in_scans_the_data(draws):
    sampler = ActiveBiasSampler(ActiveBias(10, burn_in=2), num_samples=draws)
    orders = [list(sampler) for _ in range(3)]
    assert len({tuple(order) for order in orders}) == 3
    for order in orders:
        counts = torch.bincount(torch.tensor(order), minlength=10)
        assert int(counts.max()) - int(counts.min()) <= 1
        assert len(order) == draws == len(sampler)
    if draws == 23:
        assert orders[0][:10] != orders[0][10:20]
    assert sampler.importance_weights([0, 9]).tolist() == [1.0, 1.0]


def test_samples_without_a_score_are_drawn_like_the_average():
    bias = ActiveBias(5, "difficulty", burn_in=0, smoothing=0.0)
    assert torch.equal(bias.sampling_probabilities(), torch.full((5,), 0.2, dtype=torch.float64))
    for _ in range(2):
        bias.record([0, 1], probabilities=[0.2, 0.6])
    want = torch.tensor([0.8, 0.4, 0.6, 0.6, 0.6], dtype=torch.float64) / 3
    torch.testing.assert_close(bias.sampling_probabilities(), want)


def test_draws_per_class_take_the_mean_score():
    bias = ActiveBias(2, "difficulty", burn_in=0, smoothing=0.0, num_classes=2)
    for _ in range(2):
        bias.record([0, 1], probabilities=[[0.0, 0.5], [1.0, 0.5]])
    torch.testing.assert_close(bias.sampling_probabilities(), torch.tensor([0.75, 0.25], dtype=torch.float64))


@pytest.mark.parametrize("how", ["state", "pickle"])
def test_an_epoch_resumes_although_the_histories_went_on(how):
    bias = filled(ActiveBias(4, burn_in=0))
    sampler = ActiveBiasSampler(bias, num_samples=200)
    list(sampler)
    running = iter(sampler)
    begun = [next(running) for _ in range(5)]
    bias.record([2] * 50, probabilities=[0.0, 1.0] * 25)
    if how == "state":
        resumed = ActiveBiasSampler(bias, num_samples=200)
        resumed.load_state_dict(sampler.state_dict())
    else:
        resumed = pickle.loads(pickle.dumps(sampler))
    assert torch.equal(resumed.probabilities(), sampler.probabilities())
    rest = list(resumed)
    assert rest == list(running)
    assert len(rest) == 195
    assert torch.equal(resumed.probabilities(), sampler.probabilities())
    assert list(resumed) == list(sampler)
    assert len(begun) == 5
    assert not torch.equal(
        resumed.probabilities(), ActiveBiasSampler(filled(ActiveBias(4, burn_in=0))).probabilities()
    )


def test_shares_make_up_the_whole_sequence():
    bias = filled(ActiveBias(4, burn_in=0))
    whole = list(ActiveBiasSampler(bias, num_samples=11))
    shares = [list(ActiveBiasSampler(bias, 11, num_replicas=3, rank=rank)) for rank in range(3)]
    assert [len(share) for share in shares] == [4, 4, 4]
    merged = [share[place] for place in range(4) for share in shares]
    assert merged == whole + whole[:1]


def test_bad_samplers_are_named():
    with pytest.raises(ValueError, match="num_samples=0 must be"):
        ActiveBiasSampler(ActiveBias(4, burn_in=0), num_samples=0)


# ---------------------------------------------------------------------- the data set with ids


@pytest.mark.parametrize("batched", [False, True])
def test_batches_carry_their_ids(batched):
    class Batched(TensorDataset):
        def __getitems__(self, indices):
            return [self[index] for index in indices]

    data = (Batched if batched else TensorDataset)(torch.arange(10.0) * 2, torch.arange(10))
    seen = []
    for (inputs, targets), ids in DataLoader(IndexedDataset(data), batch_size=4, shuffle=True):
        assert torch.equal(targets, ids)
        assert torch.equal(inputs, ids * 2.0)
        seen += ids.tolist()
    assert sorted(seen) == list(range(10))
    assert IndexedDataset(data)[-1][1] == 9


def test_hard_and_easy_samples_are_told_apart_in_training():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(60, 4, generator=generator)
    targets = (inputs[:, 0] > 0).long()
    noisy = torch.arange(60) < 6
    targets[noisy] = 1 - targets[noisy]
    data = IndexedDataset(TensorDataset(inputs, targets))
    bias = ActiveBias(data, "difficulty", burn_in=2)
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 2)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(10):
        for (x, y), ids in DataLoader(data, batch_size=10, shuffle=True):
            logits = model(x)
            losses = torch.nn.functional.cross_entropy(logits, y, reduction="none")
            loss = (bias(ids, logits, y) * losses).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    weights = bias.weights(torch.arange(60))
    assert float(weights[noisy].mean()) > 1.3 * float(weights[~noisy].mean())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_history_on_any_device_serves_outputs_on_another(device):
    biases = [ActiveBias(6, burn_in=1), ActiveBias(6, burn_in=1, device=device)]
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        ids = torch.randint(0, 6, (8,), generator=generator)
        logits, targets = torch.randn(8, 3, generator=generator), torch.arange(8) % 3
        want = biases[0](ids, logits, targets)
        got = biases[1](ids.cuda(), logits.cuda(), targets.cuda())
        assert got.device.type == "cuda"
        torch.testing.assert_close(got.cpu(), want)
    assert biases[1].history.device.type == device
    moved = biases[1].to("cpu")
    torch.testing.assert_close(moved.weights(range(6)), biases[0].weights(range(6)), rtol=1e-6, atol=1e-6)
    assert len(list(ActiveBiasSampler(moved))) == 6
