"""The recipe on positions of dropout in residual branches and in the head."""

import pytest
import torch

from varshift.trials import Workbench
from varshift_lab.data import digit_images, subset
from varshift_lab.networks import preresnet
from varshift_lab.recipes._residual_position import POSITIONS, claims, head_noise, positions, trials
from varshift_lab.training import TrainingSettings

DIGITS = subset(digit_images(), 60)
SETTINGS = TrainingSettings(epochs=1, batch_size=32, learning_rate=0.1)


def test_head_noise_is_what_dropout_does_to_the_scores():
    torch.manual_seed(0)
    network = preresnet(8, in_channels=1, width=8)
    found = head_noise(network, DIGITS, DIGITS, Workbench(), SETTINGS)
    assert found["head_noise_before_pooling"] < found["head_noise_behind_pooling"]
    assert network.training
    for placement, place in (("before_pooling", "before_pooling"), ("last", "behind_pooling")):
        noisy = preresnet(8, in_channels=1, width=8, dropout=0.5, placement=placement)
        noisy.load_state_dict(network.state_dict())
        noisy.eval()
        (noisy.before_pooling or noisy.before_linear).train()
        with torch.no_grad():
            draws = torch.stack([noisy(DIGITS.normalised()) for _ in range(400)])
        assert float(draws.var(0).mean()) == pytest.approx(found[f"head_noise_{place}"], rel=0.05)


def test_every_position_is_put_to_the_test_at_every_rate():
    for scale in ("smoke", "laptop", "paper"):
        rows = positions(scale).rows
        named = {row.labels[2].partition(":")[0] for row in rows}
        assert named == {"none", *POSITIONS}
        assert all(row.paper is None for row in rows) == (scale != "paper")


def test_errors_of_the_leaderboard_stand_beside_the_guideline_only():
    stated = {
        (row.labels[0], row.labels[2][0], row.paper.value) for row in positions("paper").rows if row.paper
    }
    assert {(data, letter) for data, letter, _ in stated} == {("CIFAR-10", "F"), ("CIFAR-100", "F")}
    assert sorted(round(value, 4) for _, _, value in stated) == [5.5633, 26.02]


def test_positions_that_are_one_for_relu_are_not_run_twice():
    arguments = {
        dict(trial.network.arguments).get("placement") for trial in trials("smoke", _data(), "F", 0.5)
    }
    assert arguments == {"F"}
    assert not {"B", "E"} & set(POSITIONS)


def test_drop_path_is_another_noise_and_not_compared():
    assert not any("drop path" in claim.text for claim in claims("laptop"))


def _data():
    from varshift_lab.recipes._residual_position import plan

    return plan("smoke").data[0][1]
