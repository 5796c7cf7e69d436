import pytest
import torch
from torch import nn
from torch.nn import functional as F

import varshift as vs
from varshift.integrations import declare_torchvision_operators

declare_torchvision_operators()
transformers = pytest.importorskip("transformers", reason="needs transformers: pip install transformers")
pytest.importorskip("accelerate", reason="needs accelerate: pip install accelerate")

from varshift.integrations import VarshiftTrainerCallback  # noqa: E402

pytestmark = [pytest.mark.hosts, pytest.mark.filterwarnings("default")]


class Model(nn.Module):
    """A model as the Trainer wants it: the loss comes first."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x, labels=None):
        logits = self.net(x)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


class Rows(torch.utils.data.Dataset):
    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, number):
        x, y = self.data[number]
        return {"x": x, "labels": y}


@pytest.fixture
def trainer(tmp_path, data):
    def make(model, *callbacks, **options):
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path),
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            per_device_train_batch_size=8,
            dataloader_pin_memory=False,
            **{"num_train_epochs": 1, "learning_rate": 0.05, **options},
        )
        return transformers.Trainer(model, arguments, train_dataset=Rows(data), callbacks=list(callbacks))

    return make


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.values(), other.values(), strict=True))


def test_a_sound_training_is_left_alone_and_nothing_is_found(trainer, make_net):
    plain, watched = Model(make_net()), Model(make_net())
    trainer(plain, num_train_epochs=2).train()
    callback = VarshiftTrainerCallback(check_every=1, check_at_end=True, max_batches=2)
    trainer(watched, callback, num_train_epochs=2).train()
    assert same(plain.state_dict(), watched.state_dict())
    assert callback.watch.findings == ()
    assert callback.watch.report.history.steps == 24
    assert len(callback.reports) == 3
    assert callback.report.gap is not None


def test_checks_between_do_not_change_when_the_optimiser_steps(trainer, make_net):
    """12 batches in groups of 5: what is left at the end of an epoch is stepped on as well."""
    plain, checked = Model(make_net()), Model(make_net())
    options = {"num_train_epochs": 2, "gradient_accumulation_steps": 5}
    first = trainer(plain, **options)
    first.train()
    second = trainer(
        checked, VarshiftTrainerCallback(check_every=1, max_batches=2, ignore=["VS305"]), **options
    )
    second.train()
    assert first.state.global_step == second.state.global_step == 6
    assert same(plain.state_dict(), checked.state_dict())


def test_pieces_of_a_batch_are_told_from_steps(trainer, make_net):
    codes = []
    callback = VarshiftTrainerCallback(on_finding=lambda finding: codes.append(finding.code))
    trainer(Model(make_net()), callback, gradient_accumulation_steps=3, num_train_epochs=2).train()
    assert codes == ["VS305"]
    assert callback.watch.report.history.calls == 3


def test_a_freeze_that_the_trainer_undoes_is_found(trainer, make_net):
    model = Model(make_net())
    model.net[:2].requires_grad_(False)
    model.net[1].eval()
    with pytest.warns(vs.VarshiftWarning, match="VS402: The norm 'net.1' was put in evaluation mode"):
        trainer(model, VarshiftTrainerCallback()).train()


def test_a_trainer_can_be_attached_to(trainer, make_net, hosts):
    model = Model(make_net())
    host = trainer(model)
    with vs.watch(model) as watch:
        watch.attach(host)
        host.train()
    assert watch.report.history.steps == 12
    with pytest.raises(vs.VarshiftError, match="pass a Trainer"):
        watch.attach(transformers.PretrainedConfig())


def test_the_loader_of_a_trainer_is_a_loader(trainer, make_net):
    host = trainer(Model(make_net()))
    loader = host.get_train_dataloader()
    active = list(host.accelerator.gradient_state.dataloader_references)
    assert vs.recalibrate(Model(make_net()), loader, max_batches=3).batches == 3
    assert host.accelerator.gradient_state.dataloader_references == active
    with pytest.raises(vs.DataError, match=r"loader is a Trainer: pass its get_train_dataloader\(\)"):
        vs.check(Model(make_net()), host)
