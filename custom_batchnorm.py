"""Batch normalisation of Ioffe and Szegedy (2015), written out: differentiated by PyTorch, and by hand.

For x (n_batch, n_neurons), with mean and variance taken over the batch, neuron by neuron:

    x_hat = (x − mean) / √(var + eps)
    out   = gamma · x_hat + beta

REPORT.md derives the backward pass (its question 3.2 a), and the backward pass of that. The statistics, and all sums
over the batch, are in float32 where the input is float16 or bfloat16; the output has the input's type.

What is read and written sets the speed of large inputs. By hand, the forward pass goes through memory twice
(statistics; output) and the backward pass twice (sums; dx): a block of rows at a time, so that what is computed on the
way never leaves the cache. Output and dx are sums of multiples of what is read, neuron by neuron, without x − mean.
"""

import torch
from torch import nn
from torch.autograd.function import Function, FunctionCtx

from normalisation import apply_to_batches, ask_once, check_input, row_blocks, second_gradients, wide


class CustomBatchNorm(nn.Module):
    """What both modules share: parameters, running statistics and evaluation mode, all as in `nn.BatchNorm1d`.

    `normalisation.to_native` and `from_native` turn a `state_dict` into one of `nn.BatchNorm1d`, and back.

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
        """The normalised input, of its shape (n_batch, n_neurons) and type.

        In training mode with the batch's own statistics, which also move the running ones; in evaluation mode with
        the running ones.

        Raises:
            ValueError: the input has another shape or whole numbers, or is a single row in training mode.
        """
        check_input(input, self.n_neurons)
        if self.training and len(input) < 2:
            raise ValueError(f'a training batch must have at least two rows, or there is no variance, got {len(input)}')
        if self.training:
            return self.normalise(input)
        dtype = wide(input)
        scale = self.gamma.to(dtype) * (self.running_var.to(dtype) + self.eps).rsqrt()
        return ((input - self.running_mean.to(dtype)) * scale + self.beta.to(dtype)).to(input.dtype)

    def normalise(self, input: torch.Tensor) -> torch.Tensor:
        """The training mode's output; it updates the running statistics."""
        raise NotImplementedError

    @torch.no_grad()
    def update_running(self, mean: torch.Tensor, var: torch.Tensor, n_batch: int) -> None:
        """Moves the running statistics, in place, towards a batch's (1, n_neurons), whose variance is made unbiased."""
        var = var * (n_batch / (n_batch - 1))
        for running, batch in ((self.running_mean, mean), (self.running_var, var)):
            # A variance may be too large for float16 when its tenth part is not.
            running.copy_(running.to(batch.dtype).lerp(batch.reshape(running.shape), self.momentum))


class CustomBatchNormAutograd(CustomBatchNorm):
    """Batch normalisation out of elementary tensor operations, which PyTorch differentiates."""

    def normalise(self, input: torch.Tensor) -> torch.Tensor:
        """The training mode's output; it updates the running statistics."""
        x = input.to(wide(input))
        mean = x.mean(dim=0)
        var = ((x - mean) ** 2).mean(dim=0)
        self.update_running(mean, var, len(x))
        x_hat = (x - mean) / torch.sqrt(var + self.eps)
        return (self.gamma.to(x.dtype) * x_hat + self.beta.to(x.dtype)).to(input.dtype)


class CustomBatchNormManualFunction(Function):
    """Batch normalisation in training mode with its backward pass by hand.

    `apply(input, gamma, beta, eps=1e-5, mean=None, var=None)` returns the output. Who has the batch's `statistics`
    already hands them over; they are no inputs of their own, and get no gradient. Without them they are computed, and
    computed again in the backward pass. It can be differentiated as often as one likes, and batched by `torch.vmap`.
    """

    @staticmethod
    @ask_once
    def forward(
        input: torch.Tensor,
        gamma: torch.Tensor,
        beta: torch.Tensor,
        eps: float = 1e-5,
        mean: torch.Tensor | None = None,
        var: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The output (n_batch, n_neurons) for input of the same shape, gamma and beta (n_neurons,)."""
        if mean is None:
            mean, var = statistics(input)
        # out = scale · input + shift
        scale = gamma.to(mean.dtype) * (var + eps).rsqrt()
        shift = beta.to(mean.dtype) - scale * mean
        out = input.new_empty(input.shape)
        for x, block in row_blocks(input, out):
            torch.addcmul(shift, x, scale, out=block)
        return out

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple, output: torch.Tensor) -> None:
        """Saves the input, as `nn.BatchNorm1d` does, and three vectors, or what of that the backward pass needs."""
        input, gamma, beta, ctx.eps, mean, var = inputs
        ctx.gamma_dtype, ctx.gamma_shape = gamma.dtype, gamma.shape
        ctx.beta_dtype, ctx.beta_shape = beta.dtype, beta.shape
        needs_dx, needs_dgamma = ctx.needs_input_grad[:2]
        if needs_dx or needs_dgamma:
            ctx.save_for_backward(input, gamma if needs_dx else None, mean, var)

    @staticmethod
    def backward(ctx: FunctionCtx, dout: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The gradients of those inputs that ask for one."""
        needs = tuple(ctx.needs_input_grad[:3])
        saved = ctx.saved_tensors if needs[0] or needs[1] else (None,) * 4
        dx, dgamma, dbeta = CustomBatchNormManualBackward.apply(dout, *saved, ctx.eps, needs)
        if dgamma is not None:
            dgamma = dgamma.to(ctx.gamma_dtype).reshape(ctx.gamma_shape)
        if dbeta is not None:
            dbeta = dbeta.to(ctx.beta_dtype).reshape(ctx.beta_shape)
        return dx, dgamma, dbeta, None, None, None

    @staticmethod
    def vmap(info: object, in_dims: tuple, *args: object) -> tuple[object, object]:
        """The rule of `torch.vmap`."""
        return apply_to_batches(CustomBatchNormManualFunction, info, in_dims, args)


class CustomBatchNormManualBackward(Function):
    """The backward pass, as a Function of its own whose backward pass is by hand, too: second derivatives."""

    @staticmethod
    @ask_once
    def forward(
        dout: torch.Tensor,
        input: torch.Tensor | None,
        gamma: torch.Tensor | None,
        mean: torch.Tensor | None,
        var: torch.Tensor | None,
        eps: float,
        needs: tuple[bool, bool, bool],
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """The gradients that `needs` asks for, with sums over the batch; dgamma and dbeta are (1, n_neurons).

        dbeta  = Σ dout                                                                      (Eq. 19)
        dgamma = Σ dout · x_hat                                                              (Eq. 20)
        dx     = gamma / √(var + eps) · (dout − dbeta / n_batch − x_hat · dgamma / n_batch)  (Eq. 25)
        """
        needs_dx, needs_dgamma, needs_dbeta = needs
        if not (needs_dx or needs_dgamma):
            return None, None, dout.sum(dim=-2, keepdim=True, dtype=wide(dout))
        if mean is None:
            mean, var = statistics(input)
        rstd = (var + eps).rsqrt()
        dbeta = dgamma = 0
        for g, x in row_blocks(dout, input):  # with `is_grads_batched`, dout alone is a batch of them: no `out`
            dbeta = g.sum(dim=-2, keepdim=True, dtype=mean.dtype) + dbeta
            dgamma = (g * x.to(mean.dtype)).sum(dim=-2, keepdim=True) + dgamma
        dgamma = torch.addcmul(dgamma, mean, dbeta, value=-1) * rstd
        dx = None
        if needs_dx:
            # dx = scale · dout + slope · input + shift
            scale = gamma.to(mean.dtype) * rstd
            minus_mean = scale / -dout.shape[-2]
            slope = minus_mean * rstd * dgamma
            shift = torch.addcmul(minus_mean * dbeta, slope, mean, value=-1)
            dx = dout.new_empty(dout.shape, dtype=input.dtype)
            for g, x, block in row_blocks(dout, input, dx):
                block.copy_(torch.addcmul(shift, x, slope).addcmul_(g, scale))
        return dx, dgamma if needs_dgamma else None, dbeta if needs_dbeta else None

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple, output: tuple) -> None:
        """Saves what the backward pass was given, but for the statistics, which are the input's."""
        dout, input, gamma, _, _, ctx.eps, _ = inputs
        ctx.save_for_backward(dout, input, gamma)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(
        ctx: FunctionCtx, ddx: torch.Tensor | None, ddgamma: torch.Tensor | None, ddbeta: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, ...]:
        """The gradients with respect to dout, input and gamma (Eqs. 28, 29 and 32)."""
        dout, input, gamma = ctx.saved_tensors
        if input is None:  # only dbeta was asked for
            return None if ddbeta is None else ddbeta.expand(dout.shape).to(dout.dtype), *[None] * 6
        of_dout, of_input, of_gamma = second_gradients(ddx, ddgamma, ddbeta, dout, input, gamma, ctx.eps, dim=-2)
        return of_dout, of_input, of_gamma, None, None, None, None

    @staticmethod
    def vmap(info: object, in_dims: tuple, *args: object) -> tuple[object, object]:
        """The rule of `torch.vmap`."""
        return apply_to_batches(CustomBatchNormManualBackward, info, in_dims, args)


class CustomBatchNormManualModule(CustomBatchNorm):
    """Batch normalisation with the backward pass by hand, as a module."""

    def normalise(self, input: torch.Tensor) -> torch.Tensor:
        """The training mode's output; it updates the running statistics."""
        with torch.no_grad():
            mean, var = statistics(input)
        self.update_running(mean, var, len(input))
        return CustomBatchNormManualFunction.apply(input, self.gamma, self.beta, self.eps, mean, var)


def statistics(input: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance over the batch, (1, n_neurons) each, of float32 or wider, in one pass over memory.

    Each block's mean and squared deviations are merged as Chan, Golub and LeVeque (1979) do: with n, m and s those of
    a block, the deviations from the mean of all are Σ s + Σ n (m − mean)². Nothing large is subtracted from anything
    large, as it would be in the mean square less the squared mean.
    """
    counts, means, deviations = [], [], []
    for (block,) in row_blocks(input):
        block = block.to(wide(input))
        mean = block.mean(dim=-2, keepdim=True)
        counts.append(block.shape[-2])
        means.append(mean)
        deviations.append((block - mean).square_().sum(dim=-2, keepdim=True))
    if len(counts) == 1:
        return means[0], deviations[0] / counts[0]
    n = means[0].new_tensor(counts).unsqueeze(1)
    m, s = torch.cat(means, dim=-2), torch.cat(deviations, dim=-2)
    mean = (n * m).sum(dim=-2, keepdim=True) / input.shape[-2]
    return mean, (s + n * (m - mean) ** 2).sum(dim=-2, keepdim=True) / input.shape[-2]
