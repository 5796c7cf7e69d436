import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import varshift as vs
from varshift.integrations import declare_torchvision_operators

declare_torchvision_operators()
lightning = pytest.importorskip("lightning.pytorch", reason="needs Lightning: pip install lightning")

from varshift.integrations import VarshiftCallback  # noqa: E402

pytestmark = [pytest.mark.hosts, pytest.mark.filterwarnings("default")]


class Module(lightning.LightningModule):
    """A module as they are written: a training step, no forward."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def training_step(self, batch, number):
        x, y = batch
        loss = F.cross_entropy(self.net(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, number):
        x, y = batch
        self.log("val_loss", F.cross_entropy(self.net(x), y))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)


@pytest.fixture
def fit(tmp_path):
    def fit(module, loader, *callbacks, host=lightning, validation=None, ckpt_path=None, **options):
        options = {"max_epochs": 1, "logger": False, "enable_checkpointing": False, **options}
        trainer = host.Trainer(
            accelerator="cpu",
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
            callbacks=list(callbacks),
            **options,
        )
        trainer.fit(module, loader, validation, ckpt_path=ckpt_path)
        return trainer

    return fit


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.values(), other.values(), strict=True))


def test_a_sound_fit_is_left_alone_and_nothing_is_found(fit, make_net, loader):
    plain, watched = Module(make_net()), Module(make_net())
    torch.manual_seed(1)
    fit(plain, loader, max_epochs=2)
    torch.manual_seed(1)
    callback = VarshiftCallback(check_every=1, max_batches=2)
    trainer = fit(watched, loader, callback, max_epochs=2)
    assert same(plain.state_dict(), watched.state_dict())
    assert callback.watch.findings == ()
    assert len(callback.reports) == 2
    assert set(trainer.callback_metrics) == {"train_loss"}
    assert vars(watched).keys() == vars(plain).keys()


def test_pieces_of_a_batch_are_told_from_steps(fit, make_net, loader):
    codes = []
    callback = VarshiftCallback(on_finding=lambda finding: codes.append(finding.code))
    fit(Module(make_net()), loader, callback, accumulate_grad_batches=3, max_epochs=3)
    assert codes == ["VS305"]
    assert callback.watch.report.history.calls == 3


def test_the_trainer_of_the_other_package_calls_it_too(fit, make_net, loader):
    other = pytest.importorskip("pytorch_lightning")

    class Other(other.LightningModule):
        training_step, configure_optimizers = Module.training_step, Module.configure_optimizers

        def __init__(self, net):
            super().__init__()
            self.net = net

    callback = VarshiftCallback(check_at_end=True, max_batches=2)
    fit(Other(make_net()), loader, callback, host=other)
    assert callback.watch.report.history.steps == 6
    assert len(callback.reports) == 1


def test_a_trainer_can_be_attached_to(fit, make_net, loader, hosts, tmp_path):
    module = Module(make_net())
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    with vs.watch(module) as watch:
        watch.attach(trainer)
        trainer.fit(module, loader)
        assert watch.report.history.steps == 6
        watch.step()  # it is still the user's
    assert watch.report.history.steps == 7


def test_what_is_no_trainer_is_refused(make_net, hosts):
    watch = vs.watch(make_net())
    with pytest.raises(vs.VarshiftError, match="host is a LightningDataModule: pass a Trainer"):
        watch.attach(lightning.LightningDataModule())


class Statistics(lightning.Callback):
    """Notes the running mean at the points where a validation begins and ends."""

    def __init__(self):
        self.seen, self.sanity = [], []

    def on_validation_batch_start(self, trainer, module, batch, number, loader=0):
        seen = self.sanity if trainer.sanity_checking else self.seen
        seen.append(module.net[1].running_mean.clone())

    def on_train_epoch_end(self, trainer, module):
        self.seen.append(module.net[1].running_mean.clone())


def test_validation_gets_new_statistics_and_training_keeps_its_own(fit, make_net, loader):
    plain, other, seen = Module(make_net()), Module(make_net()), Statistics()
    few = DataLoader(loader.dataset, sampler=range(16), batch_size=16)
    fit(plain, loader, validation=few)
    fit(other, loader, VarshiftCallback(recalibrate=6), seen, validation=few)
    assert same(plain.state_dict(), other.state_dict())
    during, after = seen.seen
    with torch.no_grad():
        hidden = torch.cat([other.net[0](x) for x, _ in loader])
    assert torch.allclose(during, hidden.mean(0), atol=1e-5)
    assert not torch.allclose(during, after, atol=1e-3)
    assert torch.equal(seen.sanity[0], torch.zeros(8))


@pytest.mark.parametrize("first", [True, False])
def test_weights_that_are_averaged_come_and_go_as_without_it(fit, make_net, loader, first):
    averaging = pytest.importorskip("lightning.pytorch.callbacks").EMAWeightAveraging
    plain, other = Module(make_net()), Module(make_net())
    fit(plain, loader, averaging(), validation=loader, max_epochs=2)
    callbacks = [VarshiftCallback(recalibrate=6, check_at_end=True, max_batches=2), averaging()]
    fit(other, loader, *callbacks[:: 1 if first else -1], validation=loader, max_epochs=2)
    assert same(plain.state_dict(), other.state_dict())


def test_a_validation_that_fails_leaves_the_own_statistics(fit, make_net, loader):
    class Broken(Module):
        def validation_step(self, batch, number):
            if self.trainer.sanity_checking:
                return
            raise RuntimeError("no")

    broken, plain = Broken(make_net()), Module(make_net())
    callback = VarshiftCallback(recalibrate=6)
    with pytest.raises(RuntimeError, match="no"):
        fit(broken, loader, callback, validation=loader)
    fit(plain, loader)
    assert same(plain.state_dict(), broken.state_dict())
    callback.watch.step()
    assert callback.watch.report.history.steps == 6  # it is over


def test_an_exception_ends_the_watch_without_a_word(fit, make_net, loader, recwarn):
    class Broken(Module):
        def training_step(self, batch, number):
            if self.trainer.global_step == 4:
                raise RuntimeError("no")
            return super().training_step(batch, number)

    with pytest.raises(RuntimeError, match="no"):
        fit(Broken(make_net()), loader, VarshiftCallback(), accumulate_grad_batches=2, max_epochs=3)
    assert sum(issubclass(w.category, vs.VarshiftWarning) for w in recwarn) <= 1  # VS305, from before


def test_figures_go_to_the_loggers_at_the_steps_of_the_optimiser(fit, make_net, loader, tmp_path):
    from lightning.pytorch.loggers import CSVLogger

    rows = []

    class Logger(CSVLogger):
        def log_metrics(self, metrics, step=None):
            rows.append((metrics, step))

    callback = VarshiftCallback(ignore=["VS305"])
    options = {"accumulate_grad_batches": 2, "max_epochs": 20, "logger": Logger(tmp_path)}
    trainer = fit(Module(make_net()), loader, callback, **options)
    ours = [(metrics, step) for metrics, step in rows if "varshift/findings" in metrics]
    assert ours
    assert max(step for _, step in ours) == trainer.global_step == 60
    assert "varshift/net.1/ratio" in ours[-1][0]


def test_a_check_that_fails_does_not_stop_the_training(fit, make_net, loader):
    def broken(model, batch):
        raise ValueError("not so")

    module = Module(make_net())
    with pytest.warns(vs.VarshiftWarning, match="could not check at the end of training"):
        fit(module, loader, VarshiftCallback(check_at_end=True, forward=broken))
    with pytest.raises(vs.VarshiftError):
        fit(module, loader, VarshiftCallback(check_at_end=True, forward=broken, strict=True))


def test_a_check_finds_what_a_watch_cannot_see(fit, make_net, loader):
    net = make_net()
    net.insert(1, nn.Dropout(0.5))
    codes = []
    callback = VarshiftCallback(
        check_at_end=True, on_finding=lambda finding: codes.append(finding.code), max_batches=4
    )
    fit(Module(net), loader, callback)
    assert "VS101" in codes
    assert callback.report.gap is not None  # the loss of the training step


def test_a_module_that_steps_by_hand_is_not_run_by_its_training_step(fit, make_net, loader):
    class ByHand(Module):
        def __init__(self, net):
            super().__init__(net)
            self.automatic_optimization = False

        def training_step(self, batch, number):
            loss = super().training_step(batch, number)
            self.optimizers().zero_grad()
            self.manual_backward(loss)
            self.optimizers().step()

    plain, checked = ByHand(make_net()), ByHand(make_net())
    fit(plain, loader)
    with pytest.warns(vs.VarshiftWarning, match="could not check"):
        fit(checked, loader, VarshiftCallback(check_at_end=True))
    assert same(plain.state_dict(), checked.state_dict())


class Data(lightning.LightningDataModule):
    def __init__(self, data):
        super().__init__()
        self.source = data

    def setup(self, stage):
        self.data = self.source

    def train_dataloader(self):
        return DataLoader(self.data, batch_size=16)

    val_dataloader = train_dataloader


def test_a_data_module_and_a_trainer_are_loaders(fit, make_net, data, loader):
    module = Data(data)
    with pytest.raises(vs.DataError, match=r"train_dataloader\(\) fails .*setup\('fit'\)"):
        vs.recalibrate(make_net(), module)
    module.setup("fit")
    assert vs.recalibrate(make_net(), module).batches == 6
    trainer = fit(Module(make_net()), module, max_epochs=1)
    assert vs.check(make_net(), trainer, max_batches=3).data.batches == 3
    with pytest.raises(vs.DataError, match="pass one, as its val_dataloader"):
        vs.check(make_net(), loader, deploy=module)
    with pytest.raises(vs.DataError, match="no loader of training data"):
        vs.recalibrate(make_net(), lightning.Trainer(accelerator="cpu", logger=False))


def test_a_fit_that_goes_on_from_a_checkpoint_says_nothing_twice(fit, make_net, loader, tmp_path):
    codes = []
    options = {"accumulate_grad_batches": 2, "max_epochs": 3}
    trainer = fit(Module(make_net()), loader, VarshiftCallback(on_finding=codes.append), **options)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    callback = VarshiftCallback(on_finding=codes.append)
    fit(
        Module(make_net()),
        loader,
        callback,
        accumulate_grad_batches=2,
        max_epochs=5,
        ckpt_path=tmp_path / "last.ckpt",
    )
    assert [finding.code for finding in codes] == ["VS305"]
    assert callback.watch.report.history.steps == 30
