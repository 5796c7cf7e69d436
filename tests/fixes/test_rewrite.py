"""Rewritten calls and inserted noise: what was seen to go wrong with such edits elsewhere must not happen."""

import copy
import functools
import json
import linecache
import pickle
import re
import traceback
import types

import pytest
import rewrite_helpers as helpers
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

from varshift import SiteId
from varshift.fixes import (
    CallPlace,
    InsertAtCall,
    InsertNoise,
    NoiseAction,
    Refused,
    RewriteCall,
    Surgery,
    call_chain,
    chain_of,
    edit_by_hand,
    prove,
    read_edit,
)
from varshift.flow import capture

X = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
REMOVE = NoiseAction("remove")
DROPPED = NoiseAction("dropout", 0.9)
UNIFORM = NoiseAction("uniform", 0.1)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x):
        x = F.dropout(self.layer(x), 0.5, self.training) + F.dropout(x, 0.25, self.training)
        return F.dropout(x, 0.125, self.training)


class Stack(nn.Module):
    def __init__(self, depth=4):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(depth))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


def rates(network, x=X):
    return [site.rate for site in capture(network, x).train.noises]


def rewritten(network, action, rate=None, x=X, surgery=None, always=False):
    """Rewrites the calls of a rate, or of all."""
    surgery = surgery or Surgery(network)
    done = set()
    for site in capture(network, x).train.noises:
        if rate is None or site.rate == rate:
            path, chain = call_chain(network, site)[0]
            if (path, chain) not in done:
                done.add((path, chain))
                RewriteCall(site.id, path, chain, action, always).apply(surgery)
    assert done
    return surgery


def in_training(network, x=X):
    torch.manual_seed(3)
    return network.train()(x)


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


class TestTraps:
    @pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
    def test_torchscript_would_compile_the_original_source(self):
        network = Block()
        rewritten(network, REMOVE, 0.5)
        for module in (network, nn.Sequential(network)):
            with pytest.raises(ValueError, match="TorchScript compiles the text of its original"):
                torch.jit.script(module)
        traced = torch.jit.trace(network.eval(), (X,))
        assert torch.equal(traced(X), network(X))

    def test_forward_on_the_instance(self):
        network = Block()
        rewritten(network, REMOVE)
        inner = network.forward
        network.forward = lambda x: inner(x) + 1  # harmless afterwards
        assert torch.equal(in_training(network), network.eval()(X))
        patched = Block()
        patched.forward = patched.forward
        with pytest.raises(Refused, match="was replaced on the instance"):
            rewritten(patched, REMOVE)

    @pytest.mark.parametrize("first", ["edit", "parametrization"])
    def test_parametrization(self, first):
        class Double(nn.Module):
            def forward(self, weight):
                return 2 * weight

        class Noisy(nn.Linear):
            def forward(self, x):
                return F.dropout(super().forward(x), 0.5, self.training)

        network = Noisy(6, 6)
        plain = network.eval()(X)
        if first == "edit":
            rewritten(network, REMOVE)
        parametrize.register_parametrization(network, "weight", Double())
        if first != "edit":
            other = copy.deepcopy(network)
            surgery = rewritten(network, REMOVE)
            surgery.undo()
            assert rates(network) == [0.5]
            rewritten(network, REMOVE)
            assert rates(other) == [0.5]
        assert not torch.equal(network.eval()(X), plain)
        assert torch.equal(in_training(network), network.eval()(X))
        assert isinstance(network, Noisy)
        parametrize.remove_parametrizations(network, "weight", leave_parametrized=False)
        assert rates(network) == []
        assert torch.equal(in_training(network), plain)

    def test_methods_are_looked_for_by_what_they_call(self):
        class Net(nn.Module):
            def forward(self, x):
                drop = torch.relu
                return drop(x) + F.dropout(x, 0.5, self.training)

        network = Net()
        rewritten(network, REMOVE)
        assert torch.equal(in_training(network), torch.relu(X) + X)

    def test_classes_that_keep_a_list_of_classes(self):
        registered = []

        class Meta(type):
            def __init__(cls, *args):
                super().__init__(*args)
                registered.append(cls)

        class Registered(nn.Module, metaclass=Meta):
            def __init_subclass__(cls, name, **kwargs):
                raise AssertionError

            def forward(self, x):
                return F.dropout(x, 0.5, self.training)

        network = Registered()
        rewritten(network, REMOVE)
        assert rates(network) == []
        assert registered == [Registered]

    def test_a_class_with_slots(self):
        class Slots(nn.Module):
            __slots__ = ("extra",)

            def forward(self, x):
                return F.dropout(x, self.extra, self.training)

        network = Slots()
        network.extra = 0.5
        rewritten(network, REMOVE)
        assert rates(network) == []

    def test_tracebacks_and_captures_name_the_original_line(self):
        network = Block()
        surgery = rewritten(network, UNIFORM, 0.5)
        line = Block.forward.__code__.co_firstlineno + 1
        site = capture(network, X).train.noises[0]
        assert (site.kind, site.source.file, site.source.line) == ("uniform", __file__, line)
        assert site.calls[-1].function == "Block.forward"
        surgery.undo()
        rewritten(network, REMOVE, 0.125, surgery=surgery)
        with pytest.raises(RuntimeError) as raised:
            network(X[:, :2])
        frames = traceback.extract_tb(raised.value.__traceback__)
        assert (__file__, line) in [(frame.filename, frame.lineno) for frame in frames]

    @pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
    def test_inductor(self):
        network = Block()
        rewritten(network, UNIFORM)
        torch._dynamo.reset()
        compiled = torch.compile(network, fullgraph=True)
        assert not torch.equal(compiled(X), compiled(X))
        network.eval()
        torch.testing.assert_close(compiled(X), network(X))

    def test_aot_eager_under_gradients(self):
        network = Block()
        rewritten(network, UNIFORM)
        torch._dynamo.reset()
        compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
        compiled(X).square().sum().backward()
        assert network.layer.weight.grad.abs().sum() > 0

    def test_equal_functions_on_one_line(self):
        class Net(nn.Module):
            def forward(self, x):
                first, second = (lambda v: F.dropout(v, 0.5)), (lambda v: F.dropout(v, 0.5))
                return first(x) + second(2 * x)

        network = Net()
        flows = capture(network, X)
        site = flows.train.noises[1]
        ((path, (place,)),) = call_chain(network, site)
        assert place.ordinal == 2
        RewriteCall(site.id, path, (place,), REMOVE).apply(Surgery(network))
        assert prove(flows, capture(network, X), [site.id]).exact

    def test_symbolic_tracing(self):
        network = Block()
        rewritten(network, UNIFORM)
        InsertNoise("", "after", DROPPED).apply(Surgery(network))
        traced = torch.fx.symbolic_trace(network.eval())
        assert torch.equal(traced(X), network(X))

    def test_distributed_data_parallel(self, tmp_path):
        dist = torch.distributed
        dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
        try:
            network = Block()
            rewritten(network, UNIFORM)
            replica = nn.parallel.DistributedDataParallel(copy.deepcopy(network))
            for run in (network, replica):
                in_training(run).square().sum().backward()
            gradient = replica.module.layer.weight.grad
            torch.testing.assert_close(gradient, network.layer.weight.grad)
            assert gradient.abs().sum() > 0
            place = CallPlace("Block.forward", "F.dropout(x, 0.125, self.training)")
            with pytest.raises(Refused, match="fix the model first, and wrap it afterwards"):
                RewriteCall(SiteId("", "dropout"), "module", (place,), REMOVE).apply(Surgery(replica))
        finally:
            dist.destroy_process_group()

    @pytest.mark.parametrize("file", ["<ipython-input-3-0123456789ab>", "<doctest net[0]>"])
    def test_code_that_was_typed_in(self, file):
        text = "class Net(nn.Module):\n    def forward(self, x):\n"
        text += "        return F.dropout(x, 0.5, self.training)\n"
        scope = {"nn": nn, "F": F, "__name__": "__main__"}
        linecache.cache[file] = (len(text), None, text.splitlines(True), file)
        try:
            exec(compile(text, file, "exec"), scope)
            network = scope["Net"]()
            rewritten(network, UNIFORM)
            (site,) = capture(network, X).train.noises
            assert (site.kind, str(site.source)) == ("uniform", f"{file}:3")
        finally:
            del linecache.cache[file]

    def test_function_wrapped_without_a_trace_of_it(self):
        class Net(nn.Module):
            @helpers.unnamed
            def forward(self, x):
                return F.dropout(x, 0.5, self.training)

        network = Net()
        rewritten(network, REMOVE)
        assert rates(network) == []


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
        assert change.source.file == __file__

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


class TestRefusals:
    def refused(self, network, path, match):
        place = CallPlace("Block.forward", "F.dropout(x, 0.125, self.training)")
        cls = type(network)
        with pytest.raises(Refused, match=match):
            RewriteCall(SiteId(path, "dropout"), path, (place,), REMOVE).apply(Surgery(network))
        assert type(network) is cls

    def test_no_such_module(self):
        self.refused(Stack(), "blocks.9", "has no module 'blocks.9'")

    @pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
    def test_compiled(self):
        self.refused(torch.compile(Block()), "_orig_mod", "fix the model first, and wrap it afterwards")
        network = Block()
        network.compile()
        self.refused(network, "", "fix the model first, and compile it afterwards")

    def test_data_parallel(self):
        self.refused(nn.DataParallel(Block()), "module", "fix the model first, and wrap it afterwards")

    def test_graph_module(self):
        self.refused(torch.fx.symbolic_trace(Block()), "", "fix the model that it was made from")

    def test_no_source(self):
        scope = {"nn": nn, "F": F, "__name__": "nowhere"}
        text = "class Net(nn.Module):\n    def forward(self, x):\n"
        text += "        return F.dropout(x, 0.5, self.training)"
        exec(text, scope)
        network = scope["Net"]()
        (site,) = capture(network, X).train.noises
        assert call_chain(network, site) == []
        place = CallPlace("Net.forward", "F.dropout(x, 0.5, self.training)")
        with pytest.raises(Refused, match="has no source text"):
            RewriteCall(site.id, "", (place,), REMOVE).apply(Surgery(network))

    @pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
    def test_decorators(self):
        class Object:
            def __init__(self, function):
                self.__wrapped__ = function

            def __get__(self, instance, owner=None):
                return functools.partial(self.__wrapped__, instance) if instance is not None else self

            def __call__(self, *args):
                return self.__wrapped__(*args)

        for decorate, message in (
            (Object, "is not a plain wrapper around it: take the decorator off"),
            (functools.lru_cache, "is not a plain wrapper around it: take the decorator off"),
            (torch.compile, "is compiled: fix the model first"),
        ):

            class Net(nn.Module):
                @decorate
                def forward(self, x):
                    return F.dropout(x, 0.5, self.training)

            name = "TestRefusals.test_decorators.<locals>.Net.forward"
            place = CallPlace(name, "F.dropout(x, 0.5, self.training)")
            network = Net()
            with pytest.raises(Refused, match=message):
                RewriteCall(SiteId("", "dropout"), "", (place,), REMOVE).apply(Surgery(network))
            assert type(network) is Net

    def test_a_static_method(self):
        class Net(nn.Module):
            @staticmethod
            def drop(x):
                return F.dropout(x, 0.5)

            def forward(self, x):
                return self.drop(x)

        network = Net()
        place = CallPlace("TestRefusals.test_a_static_method.<locals>.Net.drop", "F.dropout(x, 0.5)")
        with pytest.raises(Refused, match="rewrite the call of it instead"):
            RewriteCall(SiteId("", "dropout"), "", (place,), REMOVE).apply(Surgery(network))

    def test_the_edit_by_hand(self):
        site = capture(Block(), X).train.noises[0]
        place = f"{__file__}:{Block.forward.__code__.co_firstlineno + 1}: replace "
        place += "`F.dropout(self.layer(x), 0.5, self.training)` by `self."
        assert edit_by_hand(site, REMOVE) == place.replace("by `self.", "by `self.layer(x)`.")
        assert edit_by_hand(site).startswith(
            place + "noise(self.layer(x))`, with `self.noise = nn.Dropout(0.5)`"
        )


class Convolutional(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Linear(6, 2)
        self.pair = nn.LSTM(6, 6, batch_first=True)

    def forward(self, x):
        x = self.norm(self.conv(input=x))
        x = F.adaptive_avg_pool2d(x, 4)
        x = x.mean((2, 3))
        x, _ = self.pair(torch.flatten(x, 1)[:, None])
        return self.head(x[:, 0])


IMAGES = torch.randn(4, 3, 8, 8)


class TestInsertion:
    def noise(self, network):
        return [(site.name, site.kind) for site in capture(network, IMAGES).train.noises]

    @pytest.mark.parametrize("where", ["before", "after"])
    @pytest.mark.parametrize("path", ["conv", "norm", "head", "pair", ""])
    def test_at_a_module(self, path, where):
        network = Convolutional()
        expected = network.eval()(IMAGES)
        keys, cls = list(network.state_dict()), type(network.get_submodule(path))
        surgery = Surgery(network)
        (change,) = InsertNoise(path, where, NoiseAction("uniform", 0.5)).apply(surgery)
        assert change.after.startswith("UniformDropout(beta=0.5) on the ")
        assert self.noise(network) == [(path, "uniform")]
        assert torch.equal(network.eval()(IMAGES), expected)
        assert list(network.state_dict()) == keys
        assert isinstance(network.get_submodule(path), cls)
        other = pickle.loads(pickle.dumps(copy.deepcopy(network)))
        assert self.noise(other) == [(path, "uniform")]
        surgery.undo()
        assert type(network.get_submodule(path)) is cls
        assert self.noise(network) == []

    def test_compiled_and_exported(self):
        layers = Convolutional()
        network = nn.Sequential(layers.conv, layers.norm, nn.AdaptiveAvgPool2d(1), nn.Flatten(), layers.head)
        surgery = Surgery(network)
        for path in ("0", "1", "4"):
            InsertNoise(path, "before", NoiseAction("dropout", 0.5)).apply(surgery)
        torch._dynamo.reset()
        compiled = torch.compile(network, fullgraph=True, backend="eager")
        torch.testing.assert_close(in_training(compiled, IMAGES), in_training(network, IMAGES))
        program = torch.export.export(network.train(), (IMAGES,), strict=False)
        calls = [str(node.target) for node in program.graph.nodes]
        assert sum("dropout" in call for call in calls) == 3

    @pytest.mark.parametrize("text", ["F.adaptive_avg_pool2d(x, 4)", "x.mean((2, 3))", "torch.flatten(x, 1)"])
    @pytest.mark.parametrize("where", ["before", "after"])
    def test_at_a_call(self, text, where):
        network = Convolutional()
        expected = network.eval()(IMAGES)
        chain = (CallPlace("Convolutional.forward", text),)
        (change,) = InsertAtCall("", chain, UNIFORM, where).apply(Surgery(network))
        assert change.after == f"UniformDropout(beta=0.1) {where} `{text}`"
        assert self.noise(network) == [("", "uniform")]
        assert torch.equal(network.eval()(IMAGES), expected)
        assert self.noise(pickle.loads(pickle.dumps(network))) == [("", "uniform")]

    def test_at_the_call_of_an_operation(self):
        network = Convolutional()
        (pool,) = [node for node in capture(network, IMAGES).train.nodes if "adaptive_avg_pool" in node.op]
        path, chain = chain_of(network, pool.calls)
        assert (path, chain[0].text) == ("", "F.adaptive_avg_pool2d(x, 4)")

    def test_next_to_a_rewritten_call(self):
        network = Block()
        surgery = rewritten(network, REMOVE)
        InsertNoise("", "after", DROPPED).apply(surgery)
        assert rates(network) == [0.9]
        assert rates(pickle.loads(pickle.dumps(network))) == [0.9]
        surgery.undo()
        assert rates(network) == [0.5, 0.25, 0.125]

    def test_is_noise(self):
        with pytest.raises(Refused, match="cannot be put where none is"):
            InsertNoise("", "before", REMOVE).apply(Surgery(Block()))
