"""Layer normalisation of Ba, Kiros and Hinton (2016), written out: differentiated by PyTorch, and by hand.

For x (n_batch, n_neurons), with mean and variance taken over the neurons, example by example:

    x_hat = (x − mean) / √(var + eps)
    out   = gamma · x_hat + beta

No example sees another, so that there are no running statistics, training and evaluation are the same, and a batch may
be a single row. REPORT.md derives the backward pass (its question 3.3).

Float16 and bfloat16 are computed in float32. By hand, each pass goes through memory once: statistics are those of rows,
and a block of rows stays in the cache until its output, or its dx, is done. They are computed again in the backward
pass, so that it needs nothing but the input and gamma.
"""

import torch
from torch import nn
from torch.autograd.function import Function, FunctionCtx

from normalisation import apply_to_batches, ask_once, check_input, row_blocks, second_gradients, wide


class CustomLayerNorm(nn.Module):
    """What both modules share: the parameters, as `nn.LayerNorm(n_neurons)` has them.

    `normalisation.to_native` and `from_native` turn a `state_dict` into one of `nn.LayerNorm`, and back.

    Args:
        n_neurons: the width of the input.
        eps: added to the variance.
    """

    def __init__(self, n_neurons: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.n_neurons = n_neurons
        self.eps = eps
        self.gamma = nn.Parameter(torch.ones(n_neurons))
        self.beta = nn.Parameter(torch.zeros(n_neurons))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """The normalised input, of its shape (n_batch, n_neurons) and type.

        Raises:
            ValueError: the input has another shape, or whole numbers.
        """
        check_input(input, self.n_neurons)
        return self.normalise(input)

    def normalise(self, input: torch.Tensor) -> torch.Tensor:
        """The output."""
        raise NotImplementedError


class CustomLayerNormAutograd(CustomLayerNorm):
    """Layer normalisation out of elementary tensor operations, which PyTorch differentiates."""

    def normalise(self, input: torch.Tensor) -> torch.Tensor:
        """The output."""
        x = input.to(wide(input))
        mean = x.mean(dim=1, keepdim=True)
        var = ((x - mean) ** 2).mean(dim=1, keepdim=True)
        x_hat = (x - mean) / torch.sqrt(var + self.eps)
        return (self.gamma.to(x.dtype) * x_hat + self.beta.to(x.dtype)).to(input.dtype)


class CustomLayerNormManualFunction(Function):
    """Layer normalisation with its backward pass by hand: `apply(input, gamma, beta, eps=1e-5)` returns the output.

    It can be differentiated as often as one likes, and batched by `torch.vmap`.
    """

    @staticmethod
    @ask_once
    def forward(input: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor, eps: float = 1e-5) -> torch.Tensor:
        """The output (n_batch, n_neurons) for input of the same shape, gamma and beta (n_neurons,)."""
        dtype = wide(input)
        scale, shift = gamma.to(dtype), beta.to(dtype)
        out = input.new_empty(input.shape)
        for x, block in row_blocks(input, out):
            x_hat, _ = standardise(x, eps)
            torch.addcmul(shift, x_hat, scale, out=block)
        return out

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple, output: torch.Tensor) -> None:
        """Saves the input and gamma, or what of that the backward pass needs."""
        input, gamma, beta, ctx.eps = inputs
        ctx.gamma_dtype, ctx.gamma_shape = gamma.dtype, gamma.shape
        ctx.beta_dtype, ctx.beta_shape = beta.dtype, beta.shape
        needs_dx, needs_dgamma = ctx.needs_input_grad[:2]
        if needs_dx or needs_dgamma:
            ctx.save_for_backward(input, gamma if needs_dx else None)

    @staticmethod
    def backward(ctx: FunctionCtx, dout: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The gradients of those inputs that ask for one."""
        needs = tuple(ctx.needs_input_grad[:3])
        input, gamma = ctx.saved_tensors if needs[0] or needs[1] else (None, None)
        dx, dgamma, dbeta = CustomLayerNormManualBackward.apply(dout, input, gamma, ctx.eps, needs)
        if dgamma is not None:
            dgamma = dgamma.to(ctx.gamma_dtype).reshape(ctx.gamma_shape)
        if dbeta is not None:
            dbeta = dbeta.to(ctx.beta_dtype).reshape(ctx.beta_shape)
        return dx, dgamma, dbeta, None

    @staticmethod
    def vmap(info: object, in_dims: tuple, *args: object) -> tuple[object, object]:
        """The rule of `torch.vmap`."""
        return apply_to_batches(CustomLayerNormManualFunction, info, in_dims, args)


class CustomLayerNormManualBackward(Function):
    """The backward pass, as a Function of its own whose backward pass is by hand, too: second derivatives."""

    @staticmethod
    @ask_once
    def forward(
        dout: torch.Tensor,
        input: torch.Tensor | None,
        gamma: torch.Tensor | None,
        eps: float,
        needs: tuple[bool, bool, bool],
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """The gradients that `needs` asks for; Σ is over the batch; dgamma and dbeta are (1, n_neurons).

        dbeta  = Σ dout                                                               (Eq. 19)
        dgamma = Σ dout · x_hat                                                       (Eq. 20)
        dx_hat = gamma · dout                                                         (Eq. 21)
        dx     = (dx_hat − mean(dx_hat) − x_hat · mean(x_hat · dx_hat)) / √(var + eps)  (Eq. 33)
        """
        needs_dx, needs_dgamma, needs_dbeta = needs
        dx = dgamma = dbeta = None
        if not (needs_dx or needs_dgamma):
            return None, None, dout.sum(dim=-2, keepdim=True, dtype=wide(dout))
        dtype = wide(input)
        if needs_dx:
            dx, scale = dout.new_empty(dout.shape, dtype=input.dtype), gamma.to(dtype)
        dgammas, dbetas = [], []
        # No `out`: with `is_grads_batched`, dout alone is a batch of them.
        for g, x, block in row_blocks(dout, input, dx if needs_dx else input):
            x_hat, rstd = standardise(x, eps)
            if needs_dgamma:
                dgammas.append((g * x_hat).sum(dim=-2, keepdim=True))
            if needs_dbeta:
                dbetas.append(g.sum(dim=-2, keepdim=True, dtype=dtype))
            if needs_dx:
                dx_hat = scale * g
                along = (x_hat * dx_hat).mean(dim=-1, keepdim=True)
                shift = -rstd * dx_hat.mean(dim=-1, keepdim=True)
                block.copy_(torch.addcmul(shift, dx_hat.addcmul_(x_hat, along, value=-1), rstd))
        if needs_dgamma:
            dgamma = torch.cat(dgammas, dim=-2).sum(dim=-2, keepdim=True)
        if needs_dbeta:
            dbeta = torch.cat(dbetas, dim=-2).sum(dim=-2, keepdim=True)
        return dx, dgamma, dbeta

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple, output: tuple) -> None:
        """Saves what the backward pass was given."""
        dout, input, gamma, ctx.eps, _ = inputs
        ctx.save_for_backward(dout, input, gamma)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(
        ctx: FunctionCtx, ddx: torch.Tensor | None, ddgamma: torch.Tensor | None, ddbeta: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, ...]:
        """The gradients with respect to dout, input and gamma (Eqs. 28, 29 and 32)."""
        dout, input, gamma = ctx.saved_tensors
        if input is None:  # only dbeta was asked for
            return None if ddbeta is None else ddbeta.expand(dout.shape).to(dout.dtype), *[None] * 4
        of_dout, of_input, of_gamma = second_gradients(ddx, ddgamma, ddbeta, dout, input, gamma, ctx.eps, dim=-1)
        return of_dout, of_input, of_gamma, None, None

    @staticmethod
    def vmap(info: object, in_dims: tuple, *args: object) -> tuple[object, object]:
        """The rule of `torch.vmap`."""
        return apply_to_batches(CustomLayerNormManualBackward, info, in_dims, args)


class CustomLayerNormManualModule(CustomLayerNorm):
    """Layer normalisation with the backward pass by hand, as a module."""

    def normalise(self, input: torch.Tensor) -> torch.Tensor:
        """The output."""
        return CustomLayerNormManualFunction.apply(input, self.gamma, self.beta, self.eps)


def standardise(x: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """x_hat and 1 / √(var + eps), (..., n_batch, 1), of rows x, in float32 or wider."""
    x = x.to(wide(x))
    centred = x - x.mean(dim=-1, keepdim=True)
    var = torch.linalg.vector_norm(centred, dim=-1, keepdim=True).square() / x.shape[-1]
    rstd = (var + eps).rsqrt()
    return centred.mul_(rstd), rstd
