"""The claims of the shuffling recipe."""

from __future__ import annotations

from dataclasses import replace

from varshift_lab.recipes._shuffling_cases import (
    BOTH,
    TOY,
    blocks_trial,
    image_cases,
    image_seeds_at,
    residual_trial,
    seeds_at,
    series_of,
    toy_trial,
)
from varshift_lab.recipes._shuffling_trials import Order
from varshift_lab.studies import Claim, Scale, Series


def claims(scale: Scale) -> tuple[Claim, ...]:
    """The signs of single shuffle against reshuffling."""
    seeds, found = seeds_at(scale), []

    def of(order: Order, quantity: str, size: int = 4, cure: int = 0) -> Series:
        return series_of(seeds, toy_trial(scale, order, size, 300 - cure, cure), quantity)

    source = "arXiv 2302.12444, abstract; the network of its theory on other data"
    found += [
        Claim(
            "Under single shuffle the eval-mode loss on the training data is above that on its own batches",
            of("single", "own_loss"),
            of("single", "eval_loss"),
            source=source,
        ),
        Claim(
            "Under reshuffling it is below",
            of("reshuffle", "eval_loss"),
            of("reshuffle", "own_loss"),
            source=source,
        ),
    ]
    found += [
        Claim(
            f"Batches of {size}: reshuffling ends at a lower training risk than single shuffle",
            of("reshuffle", "full_batch_loss", size),
            of("single", "full_batch_loss", size),
            source=source,
        )
        for size in TOY
    ]
    found += [
        Claim(
            "Fixed batches in a new order each epoch are no better than single shuffle",
            of("single", "full_batch_loss"),
            of("batches", "full_batch_loss"),
            margin=0.02,
            source="derived: the risk depends on the partition alone",
        ),
        Claim(
            "Drawing with replacement does no harm against reshuffling",
            of("replacement", "full_batch_loss"),
            of("reshuffle", "full_batch_loss"),
            margin=0.05,
            source="derived",
        ),
        Claim(
            "A last third of training under reshuffling repairs what single shuffle did",
            of("single", "full_batch_loss", cure=100),
            of("single", "full_batch_loss"),
            source="derived",
        ),
        Claim(
            "The authors' six points: reshuffling ends at a lower training risk than single shuffle",
            series_of(seeds, blocks_trial(scale, "reshuffle"), "full_batch_loss"),
            series_of(seeds, blocks_trial(scale, "single"), "full_batch_loss"),
            source="the released code's CharlieDataset",
        ),
    ]
    # A few epochs on small images show that it works, and nothing about the paper.
    cases = {} if scale == "smoke" else image_cases(scale)
    for name, (trial, _) in cases.items():
        single, reshuffle = (replace(trial, order=order) for order in BOTH)
        found.append(
            Claim(
                f"{name}: reshuffling ends at a lower training risk",
                series_of(image_seeds_at(scale), reshuffle, "full_batch_loss"),
                series_of(image_seeds_at(scale), single, "full_batch_loss"),
                source="arXiv 2302.12444, Figure 1 and abstract",
            )
        )
        if name.startswith("linear, 3 layers"):
            found.append(
                Claim(
                    f"{name}: under single shuffle the training risk rises again",
                    series_of(image_seeds_at(scale), single, "full_batch_lowest"),
                    series_of(image_seeds_at(scale), single, "full_batch_loss"),
                    source="arXiv 2302.12444, Figure 1 as recalled",
                )
            )
    if scale != "smoke":
        single, reshuffle = (residual_trial(scale, order) for order in ("single", "reshuffle"))
        found += [
            Claim(
                "A residual network: reshuffling ends at a lower eval-mode loss on the training data",
                series_of(image_seeds_at(scale), reshuffle, "train_loss_eval"),
                series_of(image_seeds_at(scale), single, "train_loss_eval"),
                source="arXiv 2302.12444 as a review has it: single shuffle is worse, without blowing up",
            ),
            Claim(
                "A residual network under single shuffle: that loss is above the one that training prints",
                series_of(image_seeds_at(scale), single, "train_loss_last"),
                series_of(image_seeds_at(scale), single, "train_loss_eval"),
                source="derived",
            ),
        ]
    return tuple(found)
