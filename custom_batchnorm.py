"""Batch normalisation of Ioffe and Szegedy (2015), written out: differentiated by PyTorch, and by hand.

For x (n_batch, n_neurons), with mean and variance taken over the batch, neuron by neuron:

    x_hat = (x − mean) / √(var + eps)
    out   = gamma · x_hat + beta

REPORT.md derives the backward pass (its question 3.2 a).
"""

import torch
from torch import nn
from torch.autograd.function import FunctionCtx, once_differentiable


class CustomBatchNorm(nn.Module):
    """What both modules share: parameters, running statistics and evaluation mode, all as in `nn.BatchNorm1d`.

    Args:
        n_neurons: the width of the input.
        eps: added to the variance.
        momentum: the weight of a new batch in the running statistics, a number from 0 to 1.
    """

    def __init__(self, n_neurons: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.n_neurons = n_neurons
        self.eps = eps
        self.momentum = momentum
        self.gamma = nn.Parameter(torch.ones(n_neurons))
        self.beta = nn.Parameter(torch.zeros(n_neurons))
        self.register_buffer('running_mean', torch.zeros(n_neurons))
        self.register_buffer('running_var', torch.ones(n_neurons))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """The normalised input, of its shape (n_batch, n_neurons).

        In training mode with the batch's own statistics, which also move the running ones; in evaluation mode with
        the running ones.

        Raises:
            ValueError: the input has another shape, or is a single row in training mode.
        """
        if input.dim() != 2 or input.shape[1] != self.n_neurons:
            raise ValueError(f'input must have shape (n_batch, {self.n_neurons}), got {tuple(input.shape)}')
        if self.training and len(input) < 2:
            raise ValueError(f'a training batch must have at least two rows, or there is no variance, got {len(input)}')
        if torch.is_autocast_enabled(input.device.type):
            input = input.to(self.gamma.dtype)  # it may be narrower than the statistics should be
        if self.training:
            return self.normalise(input)
        scale = self.gamma * (self.running_var + self.eps).rsqrt()
        return (input - self.running_mean) * scale + self.beta

    def normalise(self, input: torch.Tensor) -> torch.Tensor:
        """The training mode's output; it updates the running statistics."""
        raise NotImplementedError


class CustomBatchNormAutograd(CustomBatchNorm):
    """Batch normalisation out of elementary tensor operations, which PyTorch differentiates."""

    def normalise(self, input: torch.Tensor) -> torch.Tensor:
        """The training mode's output; it updates the running statistics."""
        mean = input.mean(dim=0)
        var = ((input - mean) ** 2).mean(dim=0)
        update_running(self.running_mean, self.running_var, self.momentum, mean.detach(), var.detach(), len(input))
        x_hat = (input - mean) / torch.sqrt(var + self.eps)
        return self.gamma * x_hat + self.beta


class CustomBatchNormManualFunction(torch.autograd.Function):
    """Batch normalisation in training mode with its backward pass by hand.

    `apply(input, gamma, beta, eps=1e-5, running_mean=None, running_var=None, momentum=0.1)` returns the output and,
    where running statistics are given, updates them in place.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        input: torch.Tensor,
        gamma: torch.Tensor,
        beta: torch.Tensor,
        eps: float = 1e-5,
        running_mean: torch.Tensor | None = None,
        running_var: torch.Tensor | None = None,
        momentum: float = 0.1,
    ) -> torch.Tensor:
        """The output (n_batch, n_neurons) for input of the same shape, gamma and beta (n_neurons,)."""
        mean = input.mean(dim=0)
        centred = input - mean
        var = batch_sum(centred, centred) / len(input)  # torch.var_mean over a batch takes several times as long
        rstd = (var + eps).rsqrt()
        if running_mean is not None:
            update_running(running_mean, running_var, momentum, mean, var, len(input))

        needs_dx, needs_dgamma = ctx.needs_input_grad[:2]
        if needs_dx or needs_dgamma:
            # The input is kept alive by whoever made it, so that x_hat would be one more array of its size.
            ctx.save_for_backward(input, mean, rstd, gamma if needs_dx else None)
        return torch.addcmul(beta, centred, gamma * rstd, out=centred)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, dout: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The gradients, with sums over the batch, of those inputs that ask for one.

        dbeta  = Σ dout                                                                      (Eq. 19)
        dgamma = Σ dout · x_hat                                                              (Eq. 20)
        dx     = gamma / √(var + eps) · (dout − dbeta / n_batch − x_hat · dgamma / n_batch)  (Eq. 25)
        """
        needs_dx, needs_dgamma, needs_dbeta = ctx.needs_input_grad[:3]
        dx = dgamma = dbeta = None
        if needs_dx or needs_dbeta:
            dbeta = dout.sum(dim=0)
        if needs_dx or needs_dgamma:
            input, mean, rstd, gamma = ctx.saved_tensors
            centred = input - mean  # x_hat / rstd
            dgamma = batch_sum(dout, centred) * rstd
        if needs_dx:
            # dx = scale · dout + slope · centred + shift, in two passes that need no array but that of `centred`.
            scale = gamma * rstd
            shift, slope = -scale * dbeta / len(dout), -scale * rstd * dgamma / len(dout)
            dx = torch.addcmul(shift, centred, slope, out=centred).addcmul_(dout, scale)
        return dx, dgamma if needs_dgamma else None, dbeta if needs_dbeta else None, None, None, None, None


class CustomBatchNormManualModule(CustomBatchNorm):
    """Batch normalisation with the backward pass by hand, as a module."""

    def normalise(self, input: torch.Tensor) -> torch.Tensor:
        """The training mode's output; it updates the running statistics."""
        return CustomBatchNormManualFunction.apply(
            input, self.gamma, self.beta, self.eps, self.running_mean, self.running_var, self.momentum
        )


def batch_sum(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Σ a · b over the batch, of shape (n_neurons,), for a and b (n_batch, n_neurons).

    Some rows at a time, so that their products, a megabyte in float32, are still in the cache when they are summed.
    """
    n_rows = max(1, 2**18 // a.shape[1])
    products = torch.empty_like(a[:n_rows])
    total = a.new_zeros(a.shape[1])
    for block_a, block_b in zip(a.split(n_rows), b.split(n_rows), strict=True):
        total += torch.mul(block_a, block_b, out=products[: len(block_a)]).sum(dim=0)
    return total


def update_running(
    running_mean: torch.Tensor,
    running_var: torch.Tensor,
    momentum: float,
    mean: torch.Tensor,
    var: torch.Tensor,
    n_batch: int,
) -> None:
    """Moves the running statistics, in place, towards a batch's, whose variance is made unbiased first."""
    running_mean.lerp_(mean.to(running_mean.dtype), momentum)
    running_var.lerp_(var.to(running_var.dtype) * (n_batch / (n_batch - 1)), momentum)
