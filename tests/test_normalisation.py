"""The normalisations beside PyTorch's own, in every precision, mode and layout; see `unittests.py` for their equations.

The oracle is PyTorch's module in float64, on numbers that the narrow type has rounded already.
"""

import copy
import io
import itertools
import pickle
import unittest
from unittest import mock

import numpy as np
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import normalisation
import train_mlp_numpy
from checkpoints import load_network
from cifar10_utils import get_cifar10
from custom_batchnorm import CustomBatchNormAutograd, CustomBatchNormManualFunction, CustomBatchNormManualModule
from custom_layernorm import CustomLayerNormAutograd, CustomLayerNormManualFunction, CustomLayerNormManualModule
from mlp_numpy import MLP
from modules import BatchNormModule, CrossEntropyModule, LayerNormModule
from tests.helpers import only, refused, temporary_directory

PAIRS = [
    (CustomBatchNormAutograd, nn.BatchNorm1d),
    (CustomBatchNormManualModule, nn.BatchNorm1d),
    (CustomLayerNormAutograd, nn.LayerNorm),
    (CustomLayerNormManualModule, nn.LayerNorm),
]
# PyTorch's function, and the axis that is normalised over.
FUNCTIONS = [
    (CustomBatchNormManualFunction, lambda x, g, b: nn.functional.batch_norm(x, None, None, g, b, True, eps=1e-5), 0),
    (CustomLayerNormManualFunction, lambda x, g, b: nn.functional.layer_norm(x, g.shape, g, b), 1),
]
DTYPES = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 8e-2}
WIDTH = 6
# An array's values, laid out otherwise in memory; `expanded` has the first row's only.
LAYOUTS = {
    'contiguous': lambda a: a,
    'transposed': lambda a: a.T.contiguous().T,
    'strided': lambda a: torch.stack([a, a + 1], dim=2).flatten(1)[:, ::2],
    'expanded': lambda a: a[:1].expand(a.shape),
}


def set_affine(module: nn.Module) -> nn.Module:
    """Some gamma, beta and running statistics, the same for ours and PyTorch's."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in (*module.parameters(), *(b for b in module.buffers() if b.is_floating_point())):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return module


def derivatives(
    module: nn.Module, x: torch.Tensor, dout: torch.Tensor, by: list[torch.Tensor], autocast: bool = False
) -> dict[str, torch.Tensor]:
    """The output, its gradients, and the gradients of Σ gradient · by over these."""
    leaves = {'x': x.detach().requires_grad_(), 'dout': dout.detach().requires_grad_()}
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        out = module(leaves['x'])
    params = dict(zip(('gamma', 'beta'), module.parameters(), strict=True))
    wanted = {'x': leaves['x'], **params}
    firsts = torch.autograd.grad(out, list(wanted.values()), leaves['dout'], create_graph=True)
    second_loss = sum((first.double() * b.double()).sum() for first, b in zip(firsts, by, strict=True))
    wrt = {**leaves, 'gamma': params['gamma']}
    seconds = torch.autograd.grad(second_loss, list(wrt.values()), allow_unused=True, materialize_grads=True)
    found = {'out': out.detach()}
    found |= {f'd{name}': gradient.detach() for name, gradient in zip(wanted, firsts, strict=True)}
    return found | {f'dd{name}': gradient for name, gradient in zip(wrt, seconds, strict=True)}


class DerivativesTest(unittest.TestCase):
    """The table: precision, autocast, mode, size and layout, first and second derivatives each."""

    def setUp(self) -> None:
        torch.manual_seed(0)

    def check(
        self, ours: type, native: type, dtype: torch.dtype, training: bool, n_batch: int, layouts: tuple[str, str],
        autocast: bool = False,
    ) -> None:  # fmt: skip
        x, dout = torch.randn(n_batch, WIDTH) * 2 + 3, torch.randn(n_batch, WIDTH)
        x, dout = (LAYOUTS[name](array.to(dtype)) for name, array in zip(layouts, (x, dout), strict=True))
        by = [torch.randn(n_batch, WIDTH), torch.randn(WIDTH), torch.randn(WIDTH)]
        param_dtype = torch.float32 if autocast else dtype
        # An eps that makes a batch of two rows, or of equal ones, no matter of luck.
        module = set_affine(ours(WIDTH, eps=0.1).to(param_dtype)).train(training)
        reference = native(WIDTH, eps=0.1).double()
        reference.load_state_dict(normalisation.to_native(module.state_dict()))
        reference.train(training)
        actual = derivatives(module, x, dout, by, autocast)
        expected = derivatives(reference, x.double(), dout.double(), by)
        for name, value in expected.items():
            with self.subTest(f'{ours.__name__} {dtype} {training=} {n_batch=} {layouts} {autocast=}: {name}'):
                here = actual[name]
                self.assertEqual(here.dtype, param_dtype if name.endswith(('gamma', 'beta')) else dtype)
                scale = max(1.0, value.abs().max().item())
                self.assertLess((here.double() - value).abs().max().item() / scale, DTYPES[dtype])
        for name, value in module.named_buffers():
            torch.testing.assert_close(value.double(), getattr(reference, name), rtol=DTYPES[dtype], atol=1e-6)

    def test_precisions_and_modes(self) -> None:
        for pair, dtype, training, n_batch in itertools.product(PAIRS, DTYPES, (True, False), (2, 17)):
            self.check(*pair, dtype, training, n_batch, ('contiguous', 'contiguous'))

    def test_autocast(self) -> None:
        for pair, training in itertools.product(PAIRS, (True, False)):
            self.check(*pair, torch.bfloat16, training, 17, ('contiguous', 'contiguous'), autocast=True)

    def test_layouts(self) -> None:
        for pair, x_layout, dout_layout in itertools.product(PAIRS, LAYOUTS, LAYOUTS):
            self.check(*pair, torch.float64, True, 9, (x_layout, dout_layout))

    def test_blocks(self) -> None:
        """An input of several blocks, the last of them smaller, is normalised as one of a single block."""
        for pair, dtype, block in itertools.product(PAIRS, (torch.float64, torch.float16), (1, 4 * WIDTH)):
            with mock.patch.object(normalisation, 'BLOCK', block):
                self.check(*pair, dtype, True, 18, ('contiguous', 'contiguous'))

    def test_a_mean_that_dwarfs_the_deviations(self) -> None:
        x = torch.randn(64, WIDTH) + 1000
        for (ours, native), block in itertools.product(PAIRS, (normalisation.BLOCK, 7 * WIDTH)):
            with mock.patch.object(normalisation, 'BLOCK', block):
                torch.testing.assert_close(ours(WIDTH)(x).double(), native(WIDTH).double()(x.double()),
                                           rtol=1e-3, atol=1e-3)  # fmt: skip

    def test_rounding_is_of_the_order_of_pytorchs(self) -> None:
        """Of output and gradients in float32, where the mean is near and where it dwarfs the deviations."""
        for (ours, native), offset in itertools.product(PAIRS, (0, 1, 100, 1e4)):
            x, dout = torch.randn(4096, WIDTH) + offset, torch.randn(4096, WIDTH) + 3
            found = {}
            for name, module in (('ours', ours(WIDTH)), ('native', native(WIDTH)), ('exact', native(WIDTH).double())):
                leaf = x.to(next(module.parameters()).dtype).requires_grad_()
                out = module(leaf)
                found[name] = out, *torch.autograd.grad(out, [leaf, *module.parameters()], dout.to(out.dtype))
            for name, our, their, exact in zip(('out', 'dx', 'dgamma', 'dbeta'), *found.values(), strict=True):
                with self.subTest(f'{ours.__name__} {offset=} {name}'):
                    ours_off, theirs_off = ((value - exact).abs().max().item() for value in (our, their))
                    self.assertLess(ours_off, 5 * theirs_off + 1e-6 * exact.abs().max().item())


class TransformsTest(unittest.TestCase):
    """Derivatives by every other entry point: a number that is silently wrong is worse than a refusal."""

    def setUp(self) -> None:
        torch.manual_seed(0)
        self.x = torch.randn(4, 3, dtype=torch.float64)
        self.gamma, self.beta = torch.randn(2, 3, dtype=torch.float64)

    def loss(self, function: object, x: torch.Tensor) -> torch.Tensor:
        return function(x, self.gamma, self.beta).pow(3).sum()

    def test_hessians_and_their_products(self) -> None:
        for ours, native, _ in FUNCTIONS:
            functional, products = torch.autograd.functional, []
            for function in (ours.apply, native):
                loss = lambda x, function=function: self.loss(function, x)  # noqa: E731
                products.append([
                    functional.hessian(loss, self.x), functional.hessian(loss, self.x, vectorize=True),
                    functional.hvp(loss, self.x, self.x)[1], functional.vhp(loss, self.x, self.x)[1],
                    torch.func.jacrev(torch.func.grad(loss))(self.x),
                ])  # fmt: skip
            for actual, expected in zip(*products, strict=True):
                self.assertGreater(expected.abs().max(), 0.1)
                torch.testing.assert_close(actual, expected)

    def test_third_derivatives(self) -> None:
        """Beside elementary operations: PyTorch's own batch normalisation has no third derivatives."""
        for ours, _, dim in FUNCTIONS:

            def elementary(x: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor, dim: int = dim) -> torch.Tensor:
                centred = x - x.mean(dim, keepdim=True)
                return gamma * centred / (centred.square().mean(dim, keepdim=True) + 1e-5).sqrt() + beta

            thirds = []
            for function in (ours.apply, elementary):
                x = self.x.clone().requires_grad_()
                (first,) = torch.autograd.grad(self.loss(function, x), x, create_graph=True)
                (second,) = torch.autograd.grad((first**2).sum(), x, create_graph=True)
                thirds += torch.autograd.grad((second**3).sum(), x)
            torch.testing.assert_close(*thirds)

    def test_batched_gradients_in_blocks(self) -> None:
        for ours, native, _ in FUNCTIONS:
            with mock.patch.object(normalisation, 'BLOCK', 3):
                actual = torch.autograd.functional.jacobian(
                    lambda x, ours=ours: ours.apply(x, self.gamma, self.beta), self.x, vectorize=True
                )
            expected = torch.autograd.functional.jacobian(native, (self.x, self.gamma, self.beta))[0]
            torch.testing.assert_close(actual, expected)

    def test_vmap(self) -> None:
        """Batches of batches, with gammas of their own or one for all, and a penalty on their gradients."""
        x = torch.randn(5, 4, 3, dtype=torch.float64, requires_grad=True)
        gammas = torch.randn(3, 5, dtype=torch.float64)
        for (ours, native, _), (gamma, gamma_dim) in itertools.product(FUNCTIONS, ((gammas, 1), (self.gamma, None))):
            results = []
            for function in (ours.apply, native):
                loss = lambda x, gamma, f=function: f(x, gamma, self.beta).pow(3).sum()  # noqa: E731
                gradients = torch.func.vmap(torch.func.grad(loss, (0, 1)), (0, gamma_dim))(x, gamma)
                out = torch.func.vmap(function, (0, gamma_dim, None))(x, gamma, self.beta)
                results.append([out, *gradients, *torch.autograd.grad(gradients[0].pow(2).sum(), x)])
            for actual, expected in zip(*results, strict=True):
                torch.testing.assert_close(actual, expected)

    def test_meta_and_fake_tensors(self) -> None:
        for ours, _ in PAIRS:
            for context in (torch.device('meta'), FakeTensorMode()):
                with context:
                    x = torch.randn(5, WIDTH, requires_grad=True)
                    for training in (True, False):
                        ours(WIDTH).train(training)(x).sum().backward()
                self.assertEqual((x.grad.shape, x.grad.device), (x.shape, x.device))

    def test_compiled_without_a_graph_break(self) -> None:
        for ours, _ in PAIRS:
            torch._dynamo.reset()
            module, dout = set_affine(ours(WIDTH)), torch.randn(9, WIDTH)
            twin, results = copy.deepcopy(module), []
            for run in (module, torch.compile(twin, fullgraph=True, backend='aot_eager')):
                x = torch.linspace(0, 1, 9 * WIDTH).sin().reshape(9, WIDTH).requires_grad_()
                out = run(x)
                out.backward(dout)
                results.append([out, x.grad])
            torch.testing.assert_close(*results)
            torch.testing.assert_close(twin.state_dict(), module.state_dict())


class StateTest(unittest.TestCase):
    def test_copies_and_pickles(self) -> None:
        x = torch.randn(5, WIDTH)
        for ours, _ in PAIRS:
            module = set_affine(ours(WIDTH, eps=0.3))
            file = io.BytesIO()
            torch.save(module, file)
            file.seek(0)
            for twin in (
                copy.deepcopy(module), pickle.loads(pickle.dumps(module)), torch.load(file, weights_only=False)
            ):  # fmt: skip
                torch.testing.assert_close(twin(x), copy.deepcopy(module)(x))

    def test_states_to_and_from_pytorchs_modules(self) -> None:
        x = torch.randn(5, WIDTH)
        for ours, native in PAIRS:
            theirs = set_affine(native(WIDTH)).eval()
            module = ours(WIDTH).eval()
            module.load_state_dict(normalisation.from_native(theirs.state_dict()))
            torch.testing.assert_close(module(x), theirs(x))
            back = native(WIDTH).eval()
            back.load_state_dict(normalisation.to_native(module.state_dict()))
            torch.testing.assert_close(back(x), theirs(x))


class InputTest(unittest.TestCase):
    def test_whole_numbers_are_refused(self) -> None:
        for ours, _ in PAIRS:
            for training in (True, False):
                with self.assertRaisesRegex(ValueError, 'must be of a floating point type, got torch.int64'):
                    ours(WIDTH).train(training)(torch.ones(3, WIDTH, dtype=torch.int64))


class NumPyTest(unittest.TestCase):
    """The NumPy modules compute what the modules by hand do, and a trained network keeps its running statistics."""

    def test_as_the_modules_by_hand(self) -> None:
        rng = np.random.RandomState(0)
        for ours, by_hand in (
            (BatchNormModule, CustomBatchNormManualModule), (LayerNormModule, CustomLayerNormManualModule),
        ):  # fmt: skip
            module, torch_module = ours(WIDTH), by_hand(WIDTH).double()
            for training in (True, True, False, True):
                module.train(training)
                torch_module.train(training)
                torch_module.zero_grad()
                x, dout = rng.randn(2, 9, WIDTH) * 3 + 5
                leaf = torch.tensor(x, requires_grad=True)
                out = torch_module(leaf)
                out.backward(torch.as_tensor(dout))
                expected = {'out': out.detach(), 'dx': leaf.grad, **dict(torch_module.named_buffers())}
                expected |= {name: param.grad for name, param in torch_module.named_parameters()}
                actual = {'out': module.forward(x), 'dx': module.backward(dout), **module.grads, **module.buffers}
                self.assertEqual(actual.keys(), expected.keys())
                for name, value in expected.items():
                    np.testing.assert_allclose(actual[name], value.numpy(), rtol=1e-11, atol=1e-12)

    def test_evaluation_during_training(self) -> None:
        data = get_cifar10(dataset='synthetic')['test']
        mlp = MLP(3072, [4], 10, rng=np.random.RandomState(0), norm='batch')
        before = {name: array.copy() for name, array in mlp.state_dict().items()}
        _, loss = train_mlp_numpy.evaluate(mlp, data)
        for name, array in mlp.state_dict().items():
            np.testing.assert_array_equal(array, before[name])
        self.assertTrue(mlp.training)
        images = data.images.reshape(len(data.images), -1)
        probabilities = mlp.eval().forward(images)
        self.assertAlmostEqual(loss, CrossEntropyModule().forward(probabilities, data.labels))
        train_mlp_numpy.evaluate(mlp, data)
        self.assertFalse(mlp.training)

    def test_a_kept_network_has_its_running_statistics(self) -> None:
        for norm in ('batch', 'layer'):
            with temporary_directory() as directory:
                argv = ['--dataset', 'synthetic', '--max_steps', '3', '--dnn_hidden_units', '4', '--norm', norm,
                        '--dtype', 'float32', '--learning_rate', '0.1']  # fmt: skip
                flags = train_mlp_numpy.build_parser().parse_args(argv)
                record = train_mlp_numpy.train(flags, str(directory), quiet=True)
                network = load_network(only(directory / 'networks', '.npz'))
                data = get_cifar10(dataset='synthetic')['test']
                loss = CrossEntropyModule().forward(network.probabilities(data.images), data.labels)
                self.assertAlmostEqual(record.rows[-1]['test_loss'], loss, places=5)
                pixels = data.images[:5]
                np.testing.assert_allclose(network.probabilities(pixels)[:1], network.probabilities(pixels[:1]),
                                           rtol=1e-5)  # fmt: skip

    def test_flags_that_leave_it_nothing_to_do(self) -> None:
        message = refused(self, train_mlp_numpy, '--norm', 'batch', '--batch_size', '1')
        self.assertIn('at least 2 examples', message)
        message = refused(self, train_mlp_numpy, '--norm', 'layer', '--dnn_hidden_units', '')
        self.assertIn('needs a hidden layer', message)
