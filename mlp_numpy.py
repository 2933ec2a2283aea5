"""A multi-layer perceptron in NumPy: linear layers, an activation after each hidden one, a softmax at the end."""

from collections.abc import Iterator, Sequence

import numpy as np

from modules import (
    BatchNormModule,
    DropoutModule,
    ELUModule,
    LayerNormModule,
    LeakyReLUModule,
    LinearModule,
    Module,
    ReLUModule,
    SoftMaxModule,
)

NORMS = {'none': None, 'batch': BatchNormModule, 'layer': LayerNormModule}


def rectifier(neg_slope: float) -> Module:
    """A ReLU, or a leaky one where it has a slope below zero."""
    return LeakyReLUModule(neg_slope) if neg_slope else ReLUModule()


ACTIVATIONS = {'relu': rectifier, 'leaky_relu': rectifier, 'elu': lambda neg_slope: ELUModule()}


class MLP:
    """Class probabilities from flat images.

    Args:
        n_inputs: the length of an input, such as 3072.
        n_hidden: the widths of the hidden layers; with none, the network is multinomial logistic regression.
        n_classes: the number of classes.
        neg_slope: the rectifiers' slope below zero; 0 is the plain ReLU.
        rng: draws the weights, layer by layer, and dropout's masks; NumPy's global generator if None.
        dtype: of the parameters; inputs should be of the same.
        norm: a key of NORMS; it stands between each hidden linear layer and its activation.
        activation: a key of ACTIVATIONS.
        init: of the linear layers, one of `modules.INITS`.
        dropout: the probability with which an activation's output is dropped in training.

    `modules` holds the layers in order, the softmax last; layers of other kinds may be put among them.
    """

    def __init__(
        self,
        n_inputs: int,
        n_hidden: Sequence[int],
        n_classes: int,
        neg_slope: float = 0.0,
        rng: np.random.RandomState | None = None,
        dtype: type | str = np.float64,
        norm: str = 'none',
        activation: str = 'relu',
        init: str = 'report',
        dropout: float = 0.0,
    ) -> None:
        self.training = True
        self.modules: list[Module] = []
        width = n_inputs
        for n_units in n_hidden:
            self.modules.append(LinearModule(width, n_units, not self.modules, init, rng, dtype))
            if NORMS[norm]:
                self.modules.append(NORMS[norm](n_units, dtype=dtype))
            self.modules.append(ACTIVATIONS[activation](neg_slope))
            if dropout:
                self.modules.append(DropoutModule(dropout, rng))
            width = n_units
        self.modules.append(LinearModule(width, n_classes, not self.modules, init, rng, dtype))
        self.modules.append(SoftMaxModule())

    def forward(self, x: np.ndarray) -> np.ndarray:
        """The probabilities (n_batch, n_classes) for x (n_batch, n_inputs).

        Raises:
            ValueError: x has another shape.
        """
        for module in self.modules:
            x = module.forward(x)
        return x

    def backward(self, dout: np.ndarray) -> None:
        """Fills every layer's `grads` from the loss's gradient with respect to the probabilities, of their shape.

        Raises:
            ValueError: dout has another shape than the last output.
        """
        first, *rest = self.modules
        for module in reversed(rest):
            dout = module.backward(dout)
        first.needs_dx = False  # nobody asks for the pixels' gradient, a third of all arithmetic
        try:
            first.backward(dout)
        finally:
            first.needs_dx = True

    def params_and_grads(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Every parameter of every layer with its gradient, in order: all that an optimiser needs to know."""
        for module in self.modules:
            for name, param in module.params.items():
                yield param, module.grads[name]

    def state_dict(self) -> dict[str, np.ndarray]:
        """All that the network has learnt: parameters and running statistics, by place and name, such as `0.weight`."""
        return {
            f'{i}.{name}': array
            for i, module in enumerate(self.modules)
            for name, array in {**module.params, **module.buffers}.items()
        }

    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        """Copies the arrays of a `state_dict` into this network's.

        Raises:
            ValueError: they are those of another network.
        """
        here = self.state_dict()
        if {name: array.shape for name, array in state.items()} != {name: array.shape for name, array in here.items()}:
            raise ValueError(f'the state must have the arrays {", ".join(here)} in the shapes of this network')
        for name, array in here.items():
            array[...] = state[name]

    def train(self, mode: bool = True) -> 'MLP':
        """Puts every layer into training mode, or with False into evaluation mode; returns the network."""
        self.training = mode
        for module in self.modules:
            module.train(mode)
        return self

    def eval(self) -> 'MLP':
        """Puts every layer into evaluation mode; returns the network."""
        return self.train(False)

    def clear_cache(self) -> None:
        """Lets go of what the last `forward` has kept."""
        for module in self.modules:
            module.clear_cache()
