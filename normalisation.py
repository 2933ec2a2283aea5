"""What batch and layer normalisation share: their arithmetic on blocks of rows, and their second derivatives.

Both take M values that belong together and make their mean 0 and their variance 1: batch normalisation those of a
neuron over the batch (dim=-2), layer normalisation those of an example over its neurons (dim=-1). The difference is
this axis and nothing else; gamma and beta belong to the neurons in both.

An array is (..., n_batch, n_neurons): axes before these two are batches of batches, as `torch.vmap` makes them.
"""

import inspect
from collections.abc import Callable, Iterator

import torch
from torch.autograd.function import Function

BLOCK = 2**18  # values, 1 MB in float32: what is computed of a block is still in the cache when it is used

# What `nn.BatchNorm1d` and `nn.LayerNorm` call the parameters; running statistics have the same names there.
NATIVE_NAMES = {'gamma': 'weight', 'beta': 'bias'}


def to_native(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The `state_dict` of a module of ours as one that PyTorch's own module loads, by NATIVE_NAMES."""
    return {NATIVE_NAMES.get(name, name): tensor for name, tensor in state.items()}


def from_native(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The `state_dict` of PyTorch's own module as one that ours loads; its count of batches, which we lack, goes."""
    ours = {native: name for name, native in NATIVE_NAMES.items()}
    return {ours.get(name, name): tensor for name, tensor in state.items() if name != 'num_batches_tracked'}


def wide(*tensors: torch.Tensor) -> torch.dtype:
    """The type to compute in: that which holds all of these, and at least float32."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def check_input(input: torch.Tensor, n_neurons: int) -> None:
    """Raises a ValueError unless the input is (n_batch, n_neurons), in floating point, which alone has fractions."""
    if input.dim() != 2 or input.shape[1] != n_neurons:
        raise ValueError(f'input must have shape (n_batch, {n_neurons}), got {tuple(input.shape)}')
    if not input.is_floating_point():
        raise ValueError(f'input must be of a floating point type, got {input.dtype}')


def ask_once(forward: Callable) -> Callable:
    """Keeps the signature of a Function's forward pass, for which `apply` asks at each call: a tenth of a small one."""
    forward.__signature__ = inspect.signature(forward)
    return forward


def row_blocks(*arrays: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """Views of some rows at a time of arrays with as many rows; only a CPU, and not a compiler, gains by that."""
    first, n_rows = arrays[0], arrays[0].shape[-2]
    if first.device.type == 'cpu' and not torch.compiler.is_compiling():
        n_rows = max(1, BLOCK * n_rows // max(1, first.numel()))
    if n_rows >= first.shape[-2]:
        return iter([arrays])
    return zip(*(array.split(n_rows, dim=-2) for array in arrays), strict=True)


def second_gradients(
    ddx: torch.Tensor | None,
    ddgamma: torch.Tensor | None,
    ddbeta: torch.Tensor | None,
    dout: torch.Tensor,
    input: torch.Tensor,
    gamma: torch.Tensor | None,
    eps: float,
    dim: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """The backward pass of the backward pass: gradients with respect to dout, input and gamma.

    Sums and means over the M values that are normalised together, but Σ_batch; P v = v − mean(v) − x_hat mean(x_hat v):

        of dout  = gamma rstd P ddx + ddgamma x_hat + ddbeta                                            (Eq. 28)
        of gamma = Σ_batch dout rstd P ddx                                                              (Eq. 29)
        of x_hat = ddgamma dout − rstd (ddx mean(x_hat gamma dout) + gamma dout mean(x_hat ddx))        (Eq. 30)
        of input = rstd P (of x_hat) − rstd² x_hat mean(ddx P (gamma dout))                             (Eq. 32)

    Elementary operations all, on statistics of the input itself, so that PyTorch differentiates them once more.

    Args:
        ddx, ddgamma, ddbeta: the gradients with respect to what the backward pass returned; None: zero.
        dout, input: what the backward pass was given, (..., n_batch, n_neurons).
        gamma: (n_neurons,) or (..., 1, n_neurons), or None where no dx was computed.
        eps: added to the variance.
        dim: the axis that is normalised over.
    """
    dtype = wide(input)
    wide_dout, x = dout.to(dtype), input.to(dtype)
    ddx = torch.zeros_like(x) if ddx is None else ddx.to(dtype)
    scale = x.new_ones(()) if gamma is None else gamma.to(dtype)

    def mean(array: torch.Tensor) -> torch.Tensor:
        return array.mean(dim=dim, keepdim=True)

    def project(array: torch.Tensor) -> torch.Tensor:
        return array - mean(array) - x_hat * mean(x_hat * array)

    centred = x - mean(x)
    rstd = (mean(centred * centred) + eps).rsqrt()
    x_hat = centred * rstd
    dx_hat = scale * wide_dout
    along = rstd * project(ddx)
    of_dout = scale * along
    of_x_hat = -rstd * (ddx * mean(x_hat * dx_hat) + dx_hat * mean(x_hat * ddx))
    if ddgamma is not None:
        of_dout = of_dout + ddgamma * x_hat
        of_x_hat = of_x_hat + ddgamma * wide_dout
    if ddbeta is not None:
        of_dout = of_dout + ddbeta
    of_input = rstd * project(of_x_hat) - rstd * rstd * x_hat * mean(ddx * project(dx_hat))
    of_gamma = None
    if gamma is not None:
        of_gamma = (wide_dout * along).sum(dim=-2, keepdim=True).to(gamma.dtype).reshape(gamma.shape)
    return of_dout.to(dout.dtype), of_input.to(input.dtype), of_gamma


def apply_to_batches(function: type[Function], info: object, in_dims: tuple, args: tuple) -> tuple[object, object]:
    """The `vmap` rule of a Function here: batches of batches become one more axis in front, in a single call."""

    def in_front(arg: object, dim: int | None) -> object:
        if not isinstance(arg, torch.Tensor):
            return arg
        arg = arg.expand(info.batch_size, *arg.shape) if dim is None else arg.movedim(dim, 0)
        return arg.unsqueeze(1) if arg.dim() == 2 else arg  # a parameter's (n_neurons,) is (1, n_neurons) then

    results = function.apply(*(in_front(arg, dim) for arg, dim in zip(args, in_dims, strict=True)))
    if isinstance(results, tuple):
        return results, tuple(None if result is None else 0 for result in results)
    return results, 0
