"""What the variance-shift paper states (arXiv 1801.05134 v1): printed tables, and figures read off its plots.

The plots are vector graphics; what was read off them agrees with printed figures to within 0.02 points of
error and 0.005 of a shift. No spread is given anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

# By data set and network.
ByNetwork = Mapping[tuple[str, str], float]
ByRate = Mapping[float, ByNetwork]

FIVE_SEEDS = "arXiv v1; mean of 5 seeds, no spread stated"
LAYERS = "arXiv v1; which convolutions it counts was inferred from its Figure 3"
DIGITISED = "the paper's points are read off its plots (arXiv v1), no spread stated"

_NETWORKS = ("PreResNet", "ResNeXt", "WRN", "DenseNet")
_DATA = ("CIFAR-10", "CIFAR-100")
_ORDER = [(data, network) for data in _DATA for network in _NETWORKS]


def _by_network(values: Sequence[float]) -> ByNetwork:
    """Of eight values: the four networks on CIFAR-10, then on CIFAR-100."""
    return dict(zip(_ORDER, values, strict=True))


def _by_rate(rates: Sequence[float], rows: Sequence[Sequence[float]]) -> ByRate:
    """Of eight rows of a table, one value per rate in each."""
    return {rate: _by_network(column) for rate, column in zip(rates, zip(*rows, strict=True), strict=True)}


# cos^2, d cos^2
TABLE1: tuple[ByNetwork, ByNetwork] = (
    _by_network((0.03546, 0.02244, 0.02292, 0.01538, 0.03169, 0.02468, 0.02118, 0.01390)),
    _by_network((2.91827, 14.78266, 52.73550, 3.83390, 2.59925, 14.72835, 44.31261, 3.43325)),
)

TABLE3: Mapping[tuple[str, str], ByNetwork] = {
    ("a", "of training"): _by_network((8.42, 4.43, 4.59, 8.70, 32.45, 19.04, 21.08, 31.45)),
    ("a", "adjusted"): _by_network((6.42, 3.96, 4.20, 6.82, 26.57, 18.24, 20.70, 26.98)),
    ("b", "of training"): _by_network((5.85, 4.09, 3.81, 5.63, 25.50, 19.33, 19.48, 25.00)),
    ("b", "adjusted"): _by_network((5.77, 3.93, 3.71, 5.29, 25.20, 19.09, 19.15, 23.92)),
}

TABLE4: ByRate = _by_rate(
    (0.0, 0.1, 0.2, 0.3, 0.5),
    (
        (5.02, 4.96, 5.01, 4.94, 5.03),
        (3.77, 3.89, 3.69, 3.78, 3.78),
        (3.97, 3.90, 4.00, 3.93, 3.84),
        (4.72, 4.67, 4.73, 4.75, 4.87),
        (23.73, 23.43, 23.65, 23.45, 23.76),
        (17.78, 17.77, 17.99, 17.97, 18.26),
        (19.17, 19.17, 19.23, 19.19, 19.25),
        (22.58, 21.86, 22.41, 22.41, 23.49),
    ),
)

TABLE6: ByRate = _by_rate(
    (0.0, 0.1, 0.2, 0.3, 0.5),
    (
        (5.02, 5.02, 4.85, 4.98, 4.97),
        (3.77, 3.84, 3.83, 3.75, 3.79),
        (3.97, 3.96, 3.80, 3.90, 3.84),
        (4.72, 4.70, 4.64, 4.68, 4.61),
        (23.73, 23.73, 23.62, 23.53, 23.77),
        (17.78, 17.74, 17.77, 17.83, 17.86),
        (19.17, 19.07, 18.98, 18.95, 18.87),
        (22.58, 22.39, 22.57, 22.35, 22.30),
    ),
)

# Shift of the first norm behind a dropout, Dropout-(a); those of PreResNet at 0.7 lie beyond the plots.
FIRST_NORM: ByRate = {
    0.1: _by_network((1.15, 1.16, 1.19, 1.12, 1.15, 1.13, 1.12, 1.13)),
    0.3: _by_network((1.46, 1.47, 1.90, 1.46, 1.49, 1.49, 1.52, 1.44)),
    0.5: _by_network((1.99, 2.17, 2.29, 2.00, 2.05, 2.09, 2.27, 2.00)),
    0.7: {
        ("CIFAR-10", "ResNeXt"): 3.57,
        ("CIFAR-10", "WRN"): 3.94,
        ("CIFAR-10", "DenseNet"): 3.42,
        ("CIFAR-100", "ResNeXt"): 3.57,
        ("CIFAR-100", "WRN"): 3.54,
        ("CIFAR-100", "DenseNet"): 3.32,
    },
}

# Mean of d cos^2 over the convolutions with d weights per filter.
BY_FAN_IN: Mapping[tuple[str, str], Mapping[float, float]] = {
    ("CIFAR-10", "WRN"): {144: 7.8, 1440: 22.8, 2880: 47.1, 5760: 129.2},
    ("CIFAR-100", "WRN"): {144: 7.1, 1440: 22.7, 2880: 41.3, 5760: 95.8},
    ("CIFAR-10", "ResNeXt"): {
        256: 4.9,
        512: 8.3,
        576: 14.0,
        1024: 12.5,
        1152: 31.5,
        2048: 24.0,
        2304: 33.9,
    },
}

Curves = Mapping[tuple[str, str, str], Mapping[float, float]]


def _curves(rows: Mapping[tuple[str, str], Sequence[Sequence[float]]]) -> Curves:
    """Of four rows for each placement and data set, one value per rate in each."""
    rates = (0.0, 0.1, 0.3, 0.5, 0.7)
    return {
        (placement, data, network): dict(zip(rates, row, strict=False))
        for (placement, data), of_networks in rows.items()
        for network, row in zip(_NETWORKS, of_networks, strict=True)
    }


# Mean shift over all norms. PreResNet at 0.7 is cut off in the plots and left out.
FIGURE4_SHIFT = _curves(
    {
        ("a", "CIFAR-10"): (
            (1.004, 1.044, 1.162, 1.401),
            (1.007, 1.054, 1.176, 1.388, 1.782),
            (1.005, 1.076, 1.188, 1.369, 2.135),
            (1.010, 1.066, 1.222, 1.489, 2.026),
        ),
        ("a", "CIFAR-100"): (
            (1.007, 1.050, 1.180, 1.422),
            (1.010, 1.045, 1.166, 1.366, 1.731),
            (1.010, 1.072, 1.202, 1.458, 1.961),
            (1.011, 1.071, 1.262, 1.586, 2.258),
        ),
        ("b", "CIFAR-10"): (
            (1.004, 1.016, 1.033, 1.050),
            (1.007, 1.010, 1.025, 1.064, 1.104),
            (1.015, 1.013, 1.024, 1.033, 1.052),
            (1.010, 1.013, 1.018, 1.022, 1.050),
        ),
        ("b", "CIFAR-100"): (
            (1.005, 1.013, 1.046, 1.057),
            (1.007, 1.010, 1.038, 1.063, 1.111),
            (1.011, 1.011, 1.014, 1.022, 1.040),
            (1.008, 1.020, 1.019, 1.044, 1.051),
        ),
    }
)

FIGURE4_ERROR = _curves(
    {
        ("a", "CIFAR-10"): (
            (4.91, 5.16, 5.87, 8.43, 14.51),
            (3.77, 3.86, 4.10, 4.43, 4.57),
            (3.98, 3.91, 3.99, 4.59, 10.26),
            (4.83, 4.63, 5.55, 8.70, 18.10),
        ),
        ("a", "CIFAR-100"): (
            (23.98, 24.10, 26.36, 32.46, 48.80),
            (17.69, 17.75, 17.85, 19.04, 20.12),
            (19.15, 18.65, 19.52, 21.08, 28.09),
            (22.45, 22.41, 25.26, 31.45, 49.48),
        ),
        ("b", "CIFAR-10"): (
            (5.10, 5.06, 5.29, 5.86, 7.23),
            (3.78, 3.81, 3.77, 4.09, 4.91),
            (3.98, 3.85, 3.81, 3.81, 4.38),
            (4.66, 4.67, 4.92, 5.63, 7.19),
        ),
        ("b", "CIFAR-100"): (
            (23.58, 23.66, 24.34, 25.51, 27.71),
            (17.84, 17.76, 18.33, 19.34, 21.15),
            (19.18, 18.81, 18.71, 19.48, 20.97),
            (22.66, 22.54, 22.84, 25.00, 27.49),
        ),
    }
)
