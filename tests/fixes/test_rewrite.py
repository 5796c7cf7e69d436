"""Rewritten calls: edits add up, follow the mode and the rate of the call, and are written down."""

import json
import pickle
import re
import types

import pytest
import rewrite_helpers as helpers
import torch
import torch.nn.functional as F
from rewritten import FILE, REMOVE, UNIFORM, Block, Stack, X, in_training, rates, rewritten
from torch import nn

from varshift import SiteId
from varshift.fixes import (
    CallPlace,
    NoiseAction,
    Refused,
    RewriteCall,
    Surgery,
    call_chain,
    read_edit,
)
from varshift.flow import capture


class TestSeveralEdits:
    @pytest.mark.parametrize("order", [(0.5, 0.25, 0.125), (0.125, 0.5, 0.25)])
    def test_of_one_function_add_up(self, order):
        network = Block()
        surgery = Surgery(network)
        left = [0.5, 0.25, 0.125]
        for rate in order:
            rewritten(network, REMOVE, rate, surgery=surgery)
            left.remove(rate)
            assert rates(network) == left
        assert torch.equal(in_training(network), network.eval()(X))
        surgery.undo()
        assert type(network) is Block
        assert rates(network) == [0.5, 0.25, 0.125]

    def test_are_taken_back_one_by_one(self):
        network = Block()
        surgery = rewritten(network, REMOVE, 0.5)
        mark = surgery.mark()
        rewritten(network, REMOVE, 0.25, surgery=surgery)
        surgery.undo_to(mark)
        assert rates(network) == [0.25, 0.125]

    def test_a_copy_can_be_edited_further(self):
        network = Block()
        rewritten(network, REMOVE, 0.5)
        other = pickle.loads(pickle.dumps(network))
        rewritten(other, REMOVE, 0.25)
        assert rates(other) == [0.125]
        assert rates(network) == [0.25, 0.125]
        assert type(other).__mro__[1] is Block

    def test_the_last_one_of_a_call_counts(self):
        network = Block()
        rewritten(network, UNIFORM, 0.5)
        (site,) = [site for site in capture(network, X).train.noises if site.kind == "uniform"]
        path, chain = call_chain(network, site)[0]
        RewriteCall(site.id, path, chain, REMOVE).apply(Surgery(network))
        assert rates(network) == [0.25, 0.125]
        with pytest.raises(Refused, match="two edits concern one call"):
            RewriteCall(site.id, path, chain, NoiseAction("rate", 0.1)).apply(Surgery(network))

    def test_equal_ones_share_a_class_and_its_code(self):
        network = Stack()
        surgery = Surgery(network)
        for site in capture(network, X).train.noises:
            if site.rate == 0.5 and site.name in ("blocks.0", "blocks.2"):
                RewriteCall(site.id, *call_chain(network, site)[0], REMOVE).apply(surgery)
        assert type(network.blocks[0]) is type(network.blocks[2]) is not Block
        assert type(network.blocks[1]) is type(network.blocks[3]) is Block
        assert rates(network) == [0.25, 0.125, 0.5, 0.25, 0.125] * 2

    def test_of_a_helper_and_of_the_call_that_runs_it(self):
        class Net(nn.Module):
            def forward(self, x):
                return helpers.outer(x, x, 0.5, self.training)

        network = Net()
        rewritten(network, REMOVE, 0.5)
        assert rates(network) == [0.25]
        rewritten(network, REMOVE, 0.25)
        assert rates(network) == []
        assert torch.equal(in_training(network), helpers.outer(X, X, 0.0, False))
        assert rates(nn.Sequential(Net())) == [0.5, 0.25]


class TestWhenNoiseActs:
    def test_the_training_argument_counts(self):
        class Always(nn.Module):
            def forward(self, x):
                return F.dropout(x, 0.5)

        network = Always()
        rewritten(network, UNIFORM)
        assert not torch.equal(network.eval()(X), X)

    def test_a_rate_of_zero_counts(self):
        class Rate(nn.Module):
            def forward(self, x):
                return F.dropout(x, 0.5 if self.training else 0.0)

        network = Rate()
        rewritten(network, UNIFORM)
        assert network.eval()(X) is X

    def test_a_positional_flag_counts(self):
        class Flag(nn.Module):
            acts = True

            def forward(self, x):
                return self.f(x, 0.5, self.acts)

        network = Flag()
        network.f = lambda x, p, flag: F.dropout(x, p, flag)
        rewritten(network, UNIFORM)
        assert not torch.equal(network.eval()(X), X)
        network.acts = False
        assert torch.equal(network.train()(X), X)

    def test_the_mode_of_a_layer_counts(self):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.drop = nn.Dropout(0.5)

            def forward(self, x):
                return self.drop(x) + x

        network = Net()
        rewritten(network, UNIFORM)
        network.eval()
        network.drop.train()  # Monte-Carlo dropout
        assert not torch.equal(network(X), 2 * X)
        network.train()
        network.drop.eval()
        assert torch.equal(network(X), 2 * X)

    @pytest.mark.parametrize("always", [False, True])
    def test_noise_meant_for_evaluation(self, always):
        class Mask(nn.Module):
            def drop(self, x, p):
                return x * (torch.rand_like(x) >= p) / (1 - p)

            def forward(self, x):
                return self.drop(x, 0.5)

        network = Mask()
        rewritten(network, UNIFORM, always=always)
        assert torch.equal(network.eval()(X), X) is not always

    def test_following_the_mode(self):
        class Always(nn.Module):
            def forward(self, x):
                return F.dropout(x, 0.5)

        network = Always()
        rewritten(network, NoiseAction("follow-mode"))
        assert network.eval()(X) is X
        assert rates(network) == [0.5]

    def test_rescaled(self):
        class Unscaled(nn.Module):
            def forward(self, x):
                return x + F.dropout(x, 0.5, self.training)

        network = Unscaled()
        rewritten(network, NoiseAction("rescale", 4.0))
        torch.manual_seed(3)
        expected = X + F.dropout(X, 0.5) / 4
        assert torch.equal(in_training(network), expected)
        assert torch.equal(network.eval()(X), 2 * X)


class Attention(nn.Module):
    def forward(self, x):
        rate = 0.5 if self.training else 0.0
        return F.scaled_dot_product_attention(x, x, x, dropout_p=rate) + x


class TestAttention:
    x = torch.randn(2, 2, 6, 8)

    def test_only_its_rate_changes(self):
        network = Attention()
        expected = network.eval()(self.x)
        surgery = rewritten(network, NoiseAction("rate", 0.125), x=self.x)
        assert rates(network, self.x) == [0.125]
        assert torch.equal(network.eval()(self.x), expected)
        surgery.undo()
        rewritten(network, REMOVE, x=self.x)
        assert torch.equal(in_training(network, self.x), expected)

    def test_other_noise_on_its_weights(self):
        network = Attention()
        expected = network.eval()(self.x)
        rewritten(network, UNIFORM, x=self.x)
        assert [site.kind for site in capture(network, self.x).train.noises] == ["uniform"]
        assert torch.equal(network.eval()(self.x), expected)

    def test_the_call_of_a_function_that_does_more(self):
        class Net(nn.Module):
            def forward(self, x):
                return helpers.dropout_add(x, 2 * x, 0.5, self.training)

        network = Net()
        (site,) = capture(network, X).train.noises
        whole = call_chain(network, site)[1]
        with pytest.raises(Refused, match="does more than make noise: its rate can be changed"):
            RewriteCall(site.id, *whole, UNIFORM).apply(Surgery(network))
        surgery = Surgery(network)
        RewriteCall(site.id, *whole, NoiseAction("rate", 0.125)).apply(surgery)
        assert rates(network) == [0.125]
        surgery.undo()
        RewriteCall(site.id, *whole, REMOVE).apply(surgery)
        assert torch.equal(in_training(network), 3 * X)

    def test_an_implementation_chosen_later_runs_as_it_is(self):
        class Chosen(nn.Module):
            interfaces = types.SimpleNamespace(now=helpers.dropout_add)

            def forward(self, x):
                interface = self.interfaces.now
                return interface(x, x, 0.5, self.training)

        network = Chosen()
        rewritten(network, REMOVE)
        assert rates(network) == []
        Chosen.interfaces.now = helpers.other_dropout_add
        assert rates(network) == [0.5]


class TestRate:
    def test_of_a_layer_that_runs_twice(self):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.drop = nn.Dropout(0.5)

            def forward(self, x):
                return self.drop(x) + self.drop(2 * x)

        network = Net()
        site = capture(network, X).train.noises[1]
        RewriteCall(site.id, *call_chain(network, site)[0], NoiseAction("rate", 0.125)).apply(
            Surgery(network)
        )
        assert rates(network) == [0.5, 0.125]
        assert network.drop.p == 0.5

    def test_of_another_layer(self):
        class Path(nn.Module):
            def forward(self, x):
                return helpers.drop_connect(x, 0.5, self.training)

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.path = Path()

            def forward(self, x):
                return x + self.path(x)

        network = Net()
        (site,) = capture(network, X).train.noises
        candidates = call_chain(network, site)
        assert [path for path, _ in candidates] == ["path", ""]
        with pytest.raises(Refused, match="runs a Path, whose rate cannot be changed for one"):
            RewriteCall(site.id, *candidates[1], NoiseAction("rate", 0.1)).apply(Surgery(network))
        RewriteCall(site.id, *candidates[0], NoiseAction("rate", 0.125)).apply(Surgery(network))
        assert rates(network) == [0.125]


class TestPlans:
    def test_edits_are_json(self):
        network = Block()
        site = capture(network, X).train.noises[0]
        edit = RewriteCall(site.id, *call_chain(network, site)[0], UNIFORM)
        content = json.loads(json.dumps(edit.to_json()))
        assert content["op"] == "rewrite-call"
        assert read_edit(content) == edit
        (change,) = read_edit(content).apply(Surgery(network))
        assert change.before == "F.dropout(self.layer(x), 0.5, self.training)"
        assert change.after == "UniformDropout(beta=0.1)"
        assert change.source.file == FILE

    def test_code_that_has_changed_is_refused(self):
        place = CallPlace("Block.forward", "F.dropout(self.layer(x), 0.5, self.training)")
        for other, message in (
            (CallPlace("Block.forward", "F.dropout(x, 0.75)"), "has no call `F.dropout(x, 0.75)`"),
            (CallPlace(place.function, place.text, 2), "self.training)` (number 2)"),
            (CallPlace("Block.old", place.text), "has no method Block.old"),
        ):
            network = Block()
            with pytest.raises(Refused, match=re.escape(message)):
                RewriteCall(SiteId("", "dropout"), "", (other,), REMOVE).apply(Surgery(network))
            assert type(network) is Block

    def test_a_call_with_further_keywords_is_the_same_call(self):
        class Net(nn.Module):
            def forward(self, x):
                x = F.dropout(x, p=0.5, training=self.training, inplace=False)
                return F.dropout(x + 1, p=0.25, training=self.training) + F.dropout(x + 1, p=0.25)

        network = Net()
        function = Net.forward.__qualname__
        place = CallPlace(function, "F.dropout(x, p=0.5, training=self.training)")
        RewriteCall(SiteId("", "dropout"), "", (place,), REMOVE).apply(Surgery(network))
        assert rates(network) == [0.25, 0.25]
        for text in (
            "F.dropout(x + 1, p=0.25, train=True)",
            "F.dropout(x + 1)",  # two of them
            "F.dropout(x, 0.5)",
            "F.alpha_dropout(x, p=0.5)",
        ):
            edit = RewriteCall(SiteId("", "dropout"), "", (CallPlace(function, text),), REMOVE)
            with pytest.raises(Refused, match=re.escape(f"has no call `{text}`")):
                edit.apply(Surgery(network))

    def test_a_file_that_has_changed_is_refused(self, tmp_path, monkeypatch):
        text = "from torch import nn\nfrom torch.nn import functional as F\nclass Net(nn.Module):\n"
        text += "    def forward(self, x):\n        return F.dropout(x, {}, self.training)\n"
        path = tmp_path / "edited_net.py"
        path.write_text(text.format(0.5))
        monkeypatch.syspath_prepend(str(tmp_path))
        import edited_net

        path.write_text(text.format("0.5 / 2 * x.shape[0]"))
        network = edited_net.Net()
        (site,) = capture(network, X).train.noises
        assert call_chain(network, site) == []
        place = CallPlace("Net.forward", "F.dropout(x, 0.5, self.training)")
        with pytest.raises(Refused, match="is not the code that runs"):
            RewriteCall(site.id, "", (place,), REMOVE).apply(Surgery(network))
