"""What fixed batches do to a net with batch norm: the optima by enumeration, and the toy that shows it."""

import itertools
import math

import pytest
import torch

from varshift.data import BatchFingerprint, RandomReshuffleSampler, SingleShuffleSampler

X = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 8], [3, -1, 4, 1, -5, 9, -2, 6]], dtype=torch.float64)
Y = X[:1] + 2 * X[1:]


def normalised(x):
    return (x - x.mean(1, keepdim=True)) / x.std(1, correction=0, keepdim=True)


def distorted(x, batches):
    """Every batch normalised by itself, side by side."""
    return torch.cat([normalised(x[:, batch]) for batch in batches], 1)


def products(x, y, batches):
    z = distorted(x, batches)
    return y[:, [i for batch in batches for i in batch]] @ z.T, z @ z.T


def partitions(items, size):
    if not items:
        yield []
        return
    first, *rest = items
    for mates in itertools.combinations(rest, size - 1):
        batch = [first, *mates]
        for others in partitions([i for i in rest if i not in mates], size):
            yield [batch, *others]


def optimum(pair):
    return torch.linalg.solve(pair[1], pair[0], left=False)[0]


def rounded(values, digits=4):
    return [round(float(value), digits) for value in values]


@pytest.mark.parametrize(
    ("size", "count", "singular", "reshuffled", "ranges", "stored"),
    [
        (2, 105, 13, (2.1115, 5.6885), ((-2.25, 5.125), (1.92, 9.25)), (4.375, 7.375)),
        (4, 35, 0, (2.4413, 7.6879), ((0.84, 4.77), (4.77, 8.76)), (2.2771, 7.4774)),
    ],
)
def test_the_optima_by_enumeration(size, count, singular, reshuffled, ranges, stored):
    everyone = list(range(8))
    pairs = [products(X, Y, batches) for batches in partitions(everyone, size)]
    assert len(pairs) == count
    whole = (sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs))
    assert rounded(optimum(whole)) == list(reshuffled)

    # Every subset is equally likely to be a batch, so that a sum over subsets gives the same optimum.
    subsets = [products(X, Y, [list(batch)]) for batch in itertools.combinations(everyone, size)]
    by_subsets = (sum(pair[0] for pair in subsets), sum(pair[1] for pair in subsets))
    torch.testing.assert_close(optimum(by_subsets), optimum(whole))

    unique = [pair for pair in pairs if int(torch.linalg.matrix_rank(pair[1], rtol=1e-9)) == 2]
    assert count - len(unique) == singular
    single = torch.stack([optimum(pair) for pair in unique])
    for column, ends in zip(single.T, ranges, strict=True):
        assert (float(column.min()), float(column.max())) == pytest.approx(ends, abs=0.005)
    in_order = [everyone[i : i + size] for i in range(0, 8, size)]
    assert rounded(optimum(products(X, Y, in_order))) == list(stored)
    if size == 4:
        assert rounded(single.mean(0)) == [2.3905, 7.8009]


def test_the_optimum_of_one_batch_of_all():
    assert rounded(optimum(products(X, Y, [list(range(8))]))) == [2.4969, 8.5110]


@pytest.mark.parametrize(
    ("size", "mean", "ends"), [(2, 1.625, (0.625, 2.125)), (4, 2.23662, (1.2985, 2.4861))]
)
def test_the_scalar_optima(size, mean, ends):
    row = X[:1]
    single = [float(optimum(products(row, row, b))[0]) for b in partitions(list(range(8)), size)]
    assert sum(single) / len(single) == pytest.approx(mean, abs=5e-6)
    assert (min(single), max(single)) == pytest.approx(ends, abs=5e-5)
    # With targets that are the inputs, the optimum is the mean of the batches' deviations.
    batches = [list(range(i, i + size)) for i in range(0, 8, size)]
    deviations = [float(row[:, batch].std(correction=0)) for batch in batches]
    assert float(optimum(products(row, row, batches))[0]) == pytest.approx(sum(deviations) / len(deviations))
    assert float(optimum(products(row, row, [list(range(8))]))[0]) == pytest.approx(2.49687, abs=5e-6)


@pytest.mark.parametrize("size", [2, 4, 8, 16])
def test_small_batches_bias_both_orders_as_derived(size):
    x = torch.randn(1, 2**15, dtype=torch.float64, generator=torch.Generator().manual_seed(size))
    order = torch.tensor(list(SingleShuffleSampler(x.shape[1], seed=0)))
    got = float(x[0, order].reshape(-1, size).std(1, correction=0).mean())
    law = math.sqrt(2 / size) * math.exp(math.lgamma(size / 2) - math.lgamma((size - 1) / 2))
    assert got == pytest.approx(law, abs=4 / math.sqrt(2**15))
    assert round(100 * (law - 1), 1) == {2: -43.6, 4: -20.2, 8: -9.7, 16: -4.8}[size]


# ---------------------------------------------------------------------- the toy

SEEDS, SAMPLES, FEATURES, BATCH, EPOCHS = 10, 48, 32, 4, 300


def toy():
    """Data of all seeds at once: (seeds, samples, features), labels, and the initial weights."""
    draws = [torch.Generator().manual_seed(seed) for seed in range(SEEDS)]
    x = torch.stack([torch.randn(SAMPLES, FEATURES, generator=g) for g in draws])
    noise = torch.stack([torch.randn(SAMPLES, generator=g) for g in draws])
    w = torch.stack([torch.randn(FEATURES, generator=g) for g in draws]) / math.sqrt(FEATURES)
    return x, (x[..., 0] + 0.5 * noise).sign(), w


def batch_norm(x, mean, variance):
    return (x - mean) / torch.sqrt(variance + 1e-5)


def train(kind, reordered=False):
    """Plain SGD on w.(gamma * BN(x)) with logistic loss; returns both losses on the training set."""
    x, y, w = toy()
    gamma = torch.ones(SEEDS, FEATURES)
    mean, variance = torch.zeros(SEEDS, FEATURES), torch.ones(SEEDS, FEATURES)
    samplers = [kind(SAMPLES, seed=seed) for seed in range(SEEDS)]
    lines = torch.arange(SEEDS)[:, None]
    orders, prints, shuffled = None, [], torch.Generator().manual_seed(0)
    for _ in range(EPOCHS):
        orders = torch.tensor([list(sampler) for sampler in samplers]).reshape(SEEDS, -1, BATCH)
        if reordered:
            orders = orders[:, torch.randperm(SAMPLES // BATCH, generator=shuffled)]
        prints.append(BatchFingerprint.of(orders[0]))
        for step in range(SAMPLES // BATCH):
            batch = orders[:, step]
            xb, yb = x[lines, batch], y[lines, batch]
            mb, vb = xb.mean(1), xb.var(1, correction=0)
            z = batch_norm(xb, mb[:, None], vb[:, None])
            margin = yb * torch.einsum("sbf,sf->sb", z, w * gamma)
            # The gradient of the logistic loss, with batch statistics that depend on x alone.
            slope = torch.einsum("sb,sbf->sf", -yb * torch.sigmoid(-margin) / BATCH, z)
            w, gamma = w - 0.05 * slope * gamma, gamma - 0.05 * slope * w
            mean = 0.9 * mean + 0.1 * mb
            variance = 0.9 * variance + 0.1 * vb * BATCH / (BATCH - 1)

    def loss(z, y):
        return torch.nn.functional.softplus(-y * torch.einsum("s...f,sf->s...", z, w * gamma)).mean()

    rows = x[lines[..., None], orders]
    own = batch_norm(rows, rows.mean(2, keepdim=True), rows.var(2, correction=0, keepdim=True))
    as_trained = float(loss(own, y[lines[..., None], orders]))
    evaluated = float(loss(batch_norm(x, mean[:, None], variance[:, None]), y))
    return as_trained, evaluated, prints


def test_single_shuffle_learns_its_batches_and_reshuffling_does_not():
    as_trained, evaluated, prints = train(SingleShuffleSampler)
    assert prints[0].overlap(prints[-1]) == 1.0
    assert evaluated / as_trained > 2
    single = evaluated
    as_trained, evaluated, prints = train(RandomReshuffleSampler)
    assert prints[0].overlap(prints[-1]) == 0.0
    assert evaluated / as_trained < 1
    assert evaluated < single


def test_fixed_batches_in_a_new_order_are_fixed_batches():
    as_trained, evaluated, prints = train(SingleShuffleSampler)
    reordered = train(SingleShuffleSampler, reordered=True)
    assert reordered[2][0].overlap(reordered[2][-1]) == 1.0
    assert reordered[0] == pytest.approx(as_trained, abs=0.01)
    assert reordered[1] == pytest.approx(evaluated, rel=0.05)
    assert prints[0] == reordered[2][0]
