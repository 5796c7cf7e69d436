"""What the variance-shift paper says of its figures, to be put to the test."""

from __future__ import annotations

from functools import partial

from varshift_lab.recipes._variance_shift_plan import Subject, cells, plan, trials
from varshift_lab.studies import Claim, Scale, Series
from varshift_lab.training import DataChoice


def claims(scale: Scale) -> tuple[Claim, ...]:
    """What the paper says of these figures."""
    found: list[Claim] = []
    made = plan(scale)
    for label, data, subject in cells(scale, everything=True):
        name = f"{subject.name} on {label}"

        of = partial(_series, scale, subject, data)
        found += [
            Claim(
                f"{name}: Dropout-(b) 0.5 makes fewer errors than Dropout-(a) 0.5.",
                of("test_error", 0.5, "b"),
                of("test_error", 0.5, "a"),
                source="Table 3",
            ),
            Claim(
                f"{name}: adjusted statistics take back errors of Dropout-(a) 0.5.",
                of("adjusted_test_error", 0.5, "a"),
                of("test_error", 0.5, "a"),
                source="Table 3",
            ),
            Claim(
                f"{name}: the norms of Dropout-(b) 0.5 are shifted less than those of Dropout-(a) 0.5.",
                of("shift_mean", 0.5, "b"),
                of("shift_mean", 0.5, "a"),
                source="Figure 4",
            ),
            Claim(
                f"{name}: at Dropout-(a) 0.5 norms right behind a dropout are shifted more than the others.",
                of("shift_elsewhere", 0.5, "a"),
                of("shift_behind_noise", 0.5, "a"),
                source="Figure 4",
            ),
            Claim(
                f"{name}: with Dropout-(a) 0.5 the training images are known better in train mode than in "
                "eval mode.",
                of("train_error_train_mode", 0.5, "a"),
                of("train_error_eval", 0.5, "a"),
                source="Figure 5",
            ),
        ]
        if not subject.whole:
            continue
        for placement in ("a", "b"):
            for low, high in zip(made.rates, made.rates[1:], strict=False):
                found.append(
                    Claim(
                        f"{name}: Dropout-({placement}) {high:g} shifts the norms more than {low:g} does.",
                        of("shift_mean", low, placement),
                        of("shift_mean", high, placement),
                        source="Figure 4",
                    )
                )
        for rate in made.mild_rates[1:]:
            for what, placement, noise, source in (
                (f"dropout {rate:g} in front of the last layer", "last", "dropout", "Table 4"),
                (f"Uout {rate:g}", "b", "uniform", "Table 6"),
            ):
                found.append(
                    Claim(
                        f"{name}: {what} costs less than {made.tolerance:g} points of test error.",
                        of("test_error", rate, placement, noise),
                        of("test_error", 0.0),
                        margin=made.tolerance,
                        source=source,
                    )
                )
                if rate == 0.5:
                    found.append(
                        Claim(
                            f"{name}: {what} shifts the norms less than Dropout-(b) 0.5 does.",
                            of("shift_mean", rate, placement, noise),
                            of("shift_mean", rate, "b"),
                            source=source,
                        )
                    )
    return tuple(found)


def _series(
    scale: Scale,
    subject: Subject,
    data: DataChoice,
    quantity: str,
    rate: float,
    placement: str = "a",
    noise: str = "dropout",
) -> Series:
    return Series(trials(scale, subject, data, rate, placement, noise), quantity)
