"""What the normalisations cost besides their arithmetic; their gradients are checked in `unittests.py`."""

import unittest

import torch

from benchmark.normalisation import saved_bytes
from custom_batchnorm import CustomBatchNormAutograd, CustomBatchNormManualModule
from custom_layernorm import CustomLayerNormManualModule


class MemoryTest(unittest.TestCase):
    def test_what_is_saved_for_the_backward_pass(self) -> None:
        x = torch.randn(50, 8, requires_grad=True)
        manual, autograd, native = CustomBatchNormManualModule(8), CustomBatchNormAutograd(8), torch.nn.BatchNorm1d(8)
        self.assertEqual(saved_bytes(lambda x: x * x, x), x.nbytes)  # saved twice, kept once
        self.assertEqual(saved_bytes(manual, x), x.nbytes + 3 * 8 * 4)  # and mean, var, gamma
        self.assertLess(saved_bytes(manual, x), saved_bytes(autograd, x) / 2)
        self.assertLessEqual(saved_bytes(manual, x), saved_bytes(native, x))
        for param in manual.parameters():
            param.requires_grad_(False)
        self.assertEqual(saved_bytes(manual, x.detach()), 0)
        manual.beta.requires_grad_()
        self.assertEqual(saved_bytes(manual, x.detach()), 0)
        manual.gamma.requires_grad_()
        self.assertEqual(saved_bytes(manual, x.detach()), x.nbytes + 2 * 8 * 4)

    def test_layer_normalisation_saves_the_input_and_gamma(self) -> None:
        x = torch.randn(50, 8, requires_grad=True)
        module = CustomLayerNormManualModule(8)
        self.assertEqual(saved_bytes(module, x), x.nbytes + 8 * 4)
        self.assertLessEqual(saved_bytes(module, x), saved_bytes(torch.nn.LayerNorm(8), x))
        module.gamma.requires_grad_(False)
        self.assertEqual(saved_bytes(module, x.detach()), 0)
