"""One battery of tests for every layer: subclass `LayerTester` and say how the layer is made."""

import copy
import io
import math
import pickle

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

SEED = 20


class LayerTester:
    """What every layer must do. A subclass gives `make` and `shape`, and sets the switches that apply.

    Attributes:
        shape: An input that the layer takes, batch first and channels second.
        noisy: Whether two training passes differ.
        remembers: Whether training passes write `running_mean` and `running_var`, which eval mode reads.
        batch_dependent: Whether a sample's training output depends on its batch mates.
        smooth: Whether the layer is differentiable where the test points lie, so that gradcheck applies.
        peer: Makes torch's own layer with the same manners, for empty inputs; None where there is none.
        low_precision: Largest error of a bfloat16 pass, relative to the largest output.
    """

    shape: tuple[int, ...] = (4, 6, 5, 3)
    noisy = False
    remembers = False
    batch_dependent = False
    smooth = True
    low_precision = 0.03

    # ------------------------------------------------------------------ what a subclass says

    def make(self, **factory) -> nn.Module:
        """The layer, with its noise on; `factory` is device and dtype."""
        raise NotImplementedError

    def quiet(self, **factory) -> nn.Module:
        """The layer with its noise at zero; the same as `make` for layers without noise."""
        return self.make(**factory)

    def peer(self) -> nn.Module | None:
        """Torch's own layer with the same manners."""
        return None

    def reference(self, layer: nn.Module, x: torch.Tensor) -> torch.Tensor | None:
        """The paper's equation for `quiet` in training, written plainly in float64; None to leave out."""
        return None

    def shapes(self) -> st.SearchStrategy[tuple[int, ...]]:
        """Shapes that `make`'s layer takes: the same channels, any batch and any extent."""
        extents = [st.integers(1, 5) for _ in self.shape[2:]]
        return st.tuples(st.integers(2, 5), st.just(self.shape[1]), *extents)

    # ------------------------------------------------------------------ helpers

    def draw(self, shape=None, dtype=torch.float64, seed=SEED):
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(shape or self.shape, generator=generator, dtype=torch.float64).to(dtype)

    def shaken(self, layer):
        """Moves all parameters off their initial values, which hide mistakes in scales and shifts."""
        generator = torch.Generator().manual_seed(SEED + 1)
        with torch.no_grad():
            for parameter in layer.parameters():
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_(0.2 * noise.to(parameter.dtype))
        return layer

    def seeded(self, layer, *inputs):
        """One pass under a fixed seed, as a plain tensor, from the same running statistics each time."""
        # It runs on copies of the buffers: those of its pass must stay as they are for the backward pass.
        slots = [
            (module._buffers, name, buffer)
            for module in layer.modules()
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]
        for buffers, name, buffer in slots:
            buffers[name] = buffer.clone()
        torch.manual_seed(SEED)
        try:
            out = layer(*inputs)
        finally:
            for buffers, name, buffer in slots:
                buffers[name] = buffer
        return first(out)

    # ------------------------------------------------------------------ values

    def test_agrees_with_its_equation(self):
        layer, x = self.shaken(self.quiet(dtype=torch.float64)), self.draw()
        expected = self.reference(layer, x)
        if expected is None:
            pytest.skip("its tests against a reference stand by themselves")
        torch.testing.assert_close(self.seeded(layer, x), expected, rtol=1e-9, atol=1e-10)

    @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
    @given(data=st.data())
    def test_takes_any_shape(self, data):
        shape = data.draw(self.shapes())
        layer, x = self.shaken(self.quiet(dtype=torch.float64)), self.draw(shape)
        if self.batch_dependent and math.prod(shape) // shape[1] < 2:
            return
        out = self.seeded(layer, x)
        assert torch.isfinite(out).all()
        expected = self.reference(layer, x)
        if expected is not None:
            torch.testing.assert_close(out, expected, rtol=1e-8, atol=1e-9)

    def test_training_equals_evaluation_without_noise(self):
        layer, x = self.shaken(self.quiet(dtype=torch.float64)), self.draw()
        if self.remembers:
            axes = [axis for axis in range(x.dim()) if axis != 1]
            layer.running_mean.copy_(x.mean(axes))
            layer.running_var.copy_(x.var(axes, unbiased=False))
        trained = self.seeded(layer.train(), x)
        torch.testing.assert_close(self.seeded(layer.eval(), x), trained, rtol=1e-9, atol=1e-10)

    def test_samples_are_independent_in_evaluation(self):
        layer, x = self.shaken(self.make(dtype=torch.float64)).eval(), self.draw()
        torch.testing.assert_close(first(layer(x))[:1], first(layer(x[:1])), rtol=1e-9, atol=1e-10)

    def test_leaves_its_input_alone(self):
        layer, x = self.make(dtype=torch.float64), self.draw()
        before = x.clone()
        self.seeded(layer, x)
        assert torch.equal(x, before)

    # ------------------------------------------------------------------ gradients

    @pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
    def test_gradients(self, training):
        if not self.smooth:
            pytest.skip("not differentiable in the usual sense; its surrogate is tested by itself")
        layer = self.shaken(self.make(dtype=torch.float64)).train(training)
        x = self.draw().requires_grad_()
        parameters = [parameter for parameter in layer.parameters() if parameter.requires_grad]
        torch.autograd.gradcheck(lambda x, *_: self.seeded(layer, x), (x, *parameters), atol=1e-6, rtol=1e-4)

    def test_gradient_of_frozen_parameters_and_of_inputs_without_one(self):
        layer = self.shaken(self.make(dtype=torch.float64)).requires_grad_(False)
        x = self.draw().requires_grad_()
        self.seeded(layer, x).sum().backward()
        assert x.grad is not None
        layer.requires_grad_(True)
        if any(True for _ in layer.parameters()):
            self.seeded(layer, self.draw()).sum().backward()

    # ------------------------------------------------------------------ precision and layout

    def test_autocast(self):
        layer, x = self.shaken(self.make()), self.draw(dtype=torch.float32).requires_grad_()
        full = self.seeded(layer, x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = self.seeded(layer, x)
        assert out.dtype in (torch.bfloat16, torch.float32)
        assert (out.float() - full).abs().max() <= self.low_precision * full.abs().max()
        out.float().sum().backward()
        assert torch.isfinite(x.grad).all()
        for parameter in layer.parameters():
            assert parameter.grad is None or parameter.grad.dtype == torch.float32

    def test_bfloat16_input_keeps_its_type(self):
        layer, x = self.make(dtype=torch.bfloat16), self.draw(dtype=torch.bfloat16)
        full = self.seeded(copy.deepcopy(layer).float(), x.float())
        out = self.seeded(layer, x)
        assert out.dtype == torch.bfloat16
        assert (out.float() - full).abs().max() <= self.low_precision * full.abs().max()

    def test_memory_format_is_kept_and_does_not_change_values(self):
        formats = {4: torch.channels_last, 5: torch.channels_last_3d}
        if len(self.shape) not in formats:
            pytest.skip("channels last is a layout of images and volumes")
        layout = formats[len(self.shape)]
        layer = self.shaken(self.quiet(dtype=torch.float64))
        plain, last = self.draw().requires_grad_(), self.draw().to(memory_format=layout).requires_grad_()
        one, other = self.seeded(layer, plain), self.seeded(layer, last)
        assert other.is_contiguous(memory_format=layout)
        torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-10)
        weights = self.draw(one.shape, seed=SEED + 5)
        (one * weights).sum().backward()
        (other * weights).sum().backward()
        torch.testing.assert_close(last.grad, plain.grad, rtol=1e-8, atol=1e-9)

    def test_strided_input(self):
        layer = self.shaken(self.quiet(dtype=torch.float64))
        wide = self.draw((self.shape[0] * 2, *self.shape[1:]))
        strided = wide[::2].requires_grad_()
        assert not strided.is_contiguous()
        packed = wide[::2].contiguous().requires_grad_()
        one, other = self.seeded(layer, packed), self.seeded(layer, strided)
        torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-10)
        weights = self.draw(one.shape, seed=SEED + 5)
        (one * weights).sum().backward()
        (other * weights).sum().backward()
        torch.testing.assert_close(strided.grad, packed.grad, rtol=1e-8, atol=1e-9)

    @pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
    def test_empty_batch_where_torch_takes_one(self, training):
        peer = self.peer()
        if peer is None:
            pytest.skip("torch has no such layer")
        empty = torch.empty(0, *self.shape[1:])
        try:
            expected = peer.train(training)(empty)
        except (RuntimeError, ValueError):
            pytest.skip("torch's own layer refuses an empty batch")
        layer, empty = self.make().train(training), empty.requires_grad_()
        out = self.seeded(layer, empty)
        assert out.shape == expected.shape
        out.sum().backward()
        assert empty.grad.shape == empty.shape

    # ------------------------------------------------------------------ compilers

    @pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
    def test_compiles_as_one_graph(self, training):
        torch.compiler.reset()
        layer = self.shaken(self.quiet()).train(training)
        compiled = torch.compile(copy.deepcopy(layer), fullgraph=True, backend="aot_eager")
        x, y = (
            self.draw(dtype=torch.float32).requires_grad_(),
            self.draw(dtype=torch.float32).requires_grad_(),
        )
        expected, out = self.seeded(layer, x), self.seeded(compiled, y)
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
        weights = self.draw(expected.shape, torch.float32, seed=SEED + 5)
        (expected * weights).sum().backward()
        (out * weights).sum().backward()
        torch.testing.assert_close(y.grad, x.grad, rtol=1e-3, atol=1e-4)

    def test_compiles_with_its_noise_on(self):
        if not self.noisy:
            pytest.skip("has no noise")
        torch.compiler.reset()
        compiled = torch.compile(self.make(), fullgraph=True, backend="aot_eager")
        x = self.draw(dtype=torch.float32).requires_grad_()
        out = first(compiled(x))
        out.sum().backward()
        assert torch.isfinite(out).all()
        assert torch.isfinite(x.grad).all()
        assert not torch.equal(first(compiled(x)), out)

    def test_compiles_once_for_all_batch_sizes(self):
        torch.compiler.reset()
        layer = self.shaken(self.quiet())
        compiled = torch.compile(copy.deepcopy(layer), fullgraph=True, dynamic=True, backend="aot_eager")
        for factor in (1, 2, 3):
            x = self.draw((self.shape[0] * factor, *self.shape[1:]), torch.float32)
            torch.testing.assert_close(self.seeded(compiled, x), self.seeded(layer, x), rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
    def test_exports(self, training):
        layer = self.shaken(self.quiet()).train(training)
        x = self.draw(dtype=torch.float32)
        expected = self.seeded(layer, x)
        exported = torch.export.export(copy.deepcopy(layer), (x,), strict=False)
        torch.testing.assert_close(first(exported.module()(x)), expected, rtol=1e-4, atol=1e-5)

    # ------------------------------------------------------------------ life as a module

    def test_copies_and_pickles(self):
        layer, x = self.shaken(self.make(dtype=torch.float64)), self.draw()
        for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert type(twin) is type(layer)
            assert repr(twin) == repr(layer)
            torch.testing.assert_close(self.seeded(twin, x), self.seeded(layer, x), rtol=0, atol=0)

    def test_state_dict_round_trip(self):
        layer, x = self.shaken(self.make(dtype=torch.float64)), self.draw()
        layer(x)  # moves what it remembers
        file = io.BytesIO()
        torch.save(layer.state_dict(), file)
        file.seek(0)
        other = self.make(dtype=torch.float64)
        other.load_state_dict(torch.load(file, weights_only=True))
        for mode in (True, False):
            expected = self.seeded(layer.train(mode), x)
            torch.testing.assert_close(self.seeded(other.train(mode), x), expected, rtol=0, atol=0)

    def test_meta_device(self):
        layer = self.make(device="meta")
        assert all(tensor.is_meta for tensor in layer.state_dict().values())
        torch.manual_seed(SEED)
        layer = layer.to_empty(device="cpu")
        for module in layer.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        assert all(torch.isfinite(tensor).all() for tensor in layer.state_dict().values())
        assert torch.isfinite(self.seeded(layer, self.draw(dtype=torch.float32))).all()

    def test_reset_parameters_restores_a_new_layer(self):
        torch.manual_seed(SEED)
        layer = self.make()
        new = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
        if not new:
            pytest.skip("has nothing to reset")
        self.shaken(layer)(self.draw(dtype=torch.float32))
        torch.manual_seed(SEED)
        layer.reset_parameters()
        assert {name: tensor.tolist() for name, tensor in layer.state_dict().items()} == {
            name: tensor.tolist() for name, tensor in new.items()
        }

    def test_dtype_reaches_everything(self):
        layer = self.make(dtype=torch.float64)
        assert all(t.dtype == torch.float64 for t in layer.state_dict().values() if t.is_floating_point())

    def test_a_seed_fixes_the_noise(self):
        layer, x = self.make(dtype=torch.float64), self.draw()
        torch.manual_seed(SEED)
        once = first(copy.deepcopy(layer)(x))
        torch.manual_seed(SEED)
        again = first(copy.deepcopy(layer)(x))
        assert torch.equal(once, again)
        assert torch.equal(first(copy.deepcopy(layer)(x)), once) != self.noisy

    def test_shows_its_arguments(self):
        assert self.make().extra_repr()


def first(out):
    """The output tensor, also of layers that return a state beside it."""
    return out[0] if isinstance(out, tuple) else out
