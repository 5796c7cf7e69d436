"""What the variance-shift paper measures of a network beyond its errors: filters, and scores of images."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn

from varshift.model import find_norms, preserved
from varshift.nn import GaussianDropout, UniformDropout
from varshift.trials import Measurements, Workbench
from varshift_lab.data import Images
from varshift_lab.training import TrainingSettings, geometry, measure, shift_of

# Pictures of Figure 6.
PICTURES = 8
NOISES = (nn.Dropout, nn.Dropout2d, GaussianDropout, UniformDropout)


@measure("filters")
def filters(
    model: nn.Module, train: Images, test: Images, workbench: Workbench, settings: TrainingSettings
) -> Measurements:
    """The measure ``"geometry"``, without shortcuts, and by the number of weights of a filter.

    ``cos2_branches`` and ``d_cos2_branches`` are means over convolutions that stand on no shortcut;
    ``d_cos2_by_width`` the means over convolutions of equal d, in the order of ``widths``.

    Source: variance-shift paper, Table 1 and Figure 3; which convolutions it averages over was found by
    counting the points of its figures: those on shortcuts are left out for PreResNet and counted elsewhere.
    """
    found = dict(geometry(model, train, test, workbench, settings))
    squares, products, widths = (_row(found[f"{name}_layers"]) for name in ("cos2", "d_cos2", "width"))
    weights = {name: one.weight for name, one in model.named_modules() if isinstance(one, nn.Conv2d)}
    alive = [name for name, weight in weights.items() if bool(weight.detach().any())]
    branches = [place for place, name in enumerate(alive) if "shortcut" not in name]
    by_width: dict[float, list[float]] = {width: [] for width in sorted(set(widths))}
    for width, product in zip(widths, products, strict=True):
        by_width[width].append(product)
    return found | {
        "cos2_branches": _mean([squares[place] for place in branches]),
        "d_cos2_branches": _mean([products[place] for place in branches]),
        "widths": list(by_width),
        "d_cos2_by_width": [_mean(values) for values in by_width.values()],
    }


@measure("augmented_shift")
def augmented_shift(
    model: nn.Module, train: Images, test: Images, workbench: Workbench, settings: TrainingSettings
) -> Measurements:
    """The measure ``"shift"`` on images augmented as in training, and its means by place.

    A norm is right behind noise when no other norm runs between the two, be there weights or sums.
    ``shift_behind_noise`` and ``shift_elsewhere`` are means over those and over the others, left out where
    there are none.

    Source: variance-shift paper, section 4: augmentation stays on, since the running variances have seen
    augmented images too.
    """
    found = dict(shift_of(model, train, settings.batch_size, settings.augmentation))
    behind = norms_behind_noise(model, train)
    placed: dict[bool, list[float]] = {True: [], False: []}
    for norm, value in zip(find_norms(model), _row(found["shift"]), strict=True):
        placed[norm.name in behind].append(value)
    means = {"shift_behind_noise": placed[True], "shift_elsewhere": placed[False]}
    return found | {name: _mean(values) for name, values in means.items() if values}


def norms_behind_noise(model: nn.Module, images: Images) -> set[str]:
    """Names of the norms that run right after a noise layer, with no other norm between."""
    events: list[str] = []

    def note(event: str) -> None:
        modules[event].register_forward_hook(lambda *_: events.append(event))

    modules = dict(model.named_modules())
    norms = {norm.name for norm in find_norms(model)}
    noises = {name for name, module in modules.items() if isinstance(module, NOISES)}
    with preserved(model), torch.no_grad():  # which takes the hooks away, too
        for name in norms | noises:
            note(name)
        model.eval()
        model(images.take([0]).normalised())
    return {after for before, after in itertools.pairwise(events) if before in noises and after in norms}


@measure("switched_images")
def switched_images(
    model: nn.Module, train: Images, test: Images, workbench: Workbench, settings: TrainingSettings
) -> Measurements:
    """Training images that are right in train mode and wrong in eval mode, with their class scores.

    The network runs once in each mode over the training images, in their stored order and without
    augmentation. Of the two classes with the most such images four each are shown, as in the paper: those
    whose true class loses most against the best other one between the modes. Where there are fewer, images of
    other classes follow by the same loss.

    Source: variance-shift paper, Figure 6.
    """
    trained, deployed = _scores(model, train, settings.batch_size)
    labels = train.labels.cpu()
    margins = [_margin(scores, labels) for scores in (trained, deployed)]
    switched = (margins[0] > 0) & (margins[1] <= 0)
    loss = margins[0] - margins[1]
    shown = _choose(switched, loss, labels, PICTURES)
    found: dict[str, float | list] = {"switched": 100 * float(switched.double().mean())}
    for place, index in enumerate(shown):
        pixels = train.pixels[index].cpu().double() / 255
        picture = pixels[0] if len(pixels) == 1 else pixels.permute(1, 2, 0)
        found[f"picture{place}"] = picture.tolist()
        found[f"class{place}"] = float(labels[index])
        found[f"train_scores{place}"] = trained[index].tolist()
        found[f"eval_scores{place}"] = deployed[index].tolist()
    return found


def _choose(switched: Tensor, loss: Tensor, labels: Tensor, number: int) -> list[int]:
    """Places of the images that are shown, class by class."""
    order = loss.argsort(descending=True).tolist()
    # Those that did not switch come last, if there are too few of the others.
    order.sort(key=lambda index: not bool(switched[index]))
    classes = labels[switched].bincount(minlength=int(labels.max()) + 1).argsort(descending=True, stable=True)
    chosen: list[int] = []
    for label in classes[:2].tolist():
        chosen += [index for index in order if labels[index] == label and switched[index]][: number // 2]
    chosen += [index for index in order if index not in chosen][: number - len(chosen)]
    return chosen


def _margin(scores: Tensor, labels: Tensor) -> Tensor:
    """Score of the true class minus that of the best other one."""
    true = scores.gather(1, labels[:, None])[:, 0]
    others = scores.scatter(1, labels[:, None], -math.inf)
    return true - others.amax(1)


def _scores(model: nn.Module, images: Images, batch_size: int) -> tuple[Tensor, Tensor]:
    """Class scores in train mode and in eval mode; the network is left as it was."""
    inputs = images.normalised().split(batch_size)
    with preserved(model, seed=0), torch.no_grad():
        both = []
        for training in (True, False):
            model.train(training)
            # A last batch that is not full would have poorer statistics: others keep it company.
            both.append(torch.cat([model(part).float() for part in _full(inputs, batch_size)]).cpu())
    return both[0][: len(images)], both[1][: len(images)]


def _full(parts: tuple[Tensor, ...], size: int) -> list[Tensor]:
    if len(parts) < 2 or len(parts[-1]) == size:
        return list(parts)
    short = parts[-1]
    return [*parts[:-1], torch.cat((short, parts[0][: size - len(short)]))]


def _row(measured: float | list[float]) -> list[float]:
    if not isinstance(measured, list):
        raise TypeError(f"measured={measured!r} must be a list.")
    return measured


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
