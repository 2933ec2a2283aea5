"""A run to go on with, and a network to use.

    state = RunState(defaults, model, optimizer, data['train'], record)
    state.save('run.pt', step=500)
    step = state.load('run.pt')  # in another process: the steps that follow are the same, bit for bit on a CPU

    network = load_network('networks/mlp_numpy.npz')
    network.probabilities(pixels)  # (n, 10) for pixels (n, 3072), as CIFAR-10 has them

Reading runs no code from a file. PyTorch is imported only where a file of its own is met, so that the NumPy path does
without it.
"""

import copy
import importlib
import json
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from augmentation import Augmentation
from cifar10_files import one_line
from cifar10_utils import CLASSES, IMAGE_SHAPE, DataSet, centred
from experiment import RunRecord, identity
from files import atomic_file, regular_path
from flags import LENGTH_FLAGS, by_present_names, check_same_flags
from modules import CrossEntropyModule
from parsing import FlagError

if TYPE_CHECKING:
    import torch
    from torch import nn

    import mlp_numpy

# Examples at a time, wherever a network is evaluated: more would fall out of the processor's cache, and another number
# may round otherwise.
EVALUATION_BATCH = 200


def check_archive(path: str | Path) -> None:
    """Raises zipfile.BadZipFile where a file that NumPy or PyTorch wrote is damaged: neither looks at the checksums.

    Raises:
        OSError: it cannot be read.
    """
    with open(regular_path(path), 'rb') as file:
        try:
            with zipfile.ZipFile(file) as archive:
                # Neither compresses, so that no more comes out of a file than is in it.
                damaged = any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist())
                damaged = damaged or archive.testzip()
        except Exception as error:  # of any kind: of structures, of codecs, of encryption
            raise zipfile.BadZipFile from error
    if damaged:
        raise zipfile.BadZipFile


def torch_load(path: str | Path) -> Any:
    """The tensors, numbers and strings in a file of PyTorch's."""
    import torch

    check_archive(path)
    with warnings.catch_warnings(action='ignore'):  # PyTorch comments on damaged files before it refuses them
        return torch.load(path, map_location='cpu', weights_only=True)


# A run to go on with


class RunState:
    """All that a PyTorch run needs to go on: weights, optimizer, order of the batches and record.

    Args:
        defaults: every flag at its default, which stands for those that an older checkpoint lacks.
        model, optimizer, data: what is saved, and put back in place.
        record: likewise; a checkpoint must agree with those of its flags that shape the result, but may be of a
            shorter run.
        average: the moving average of the model, if there is one, and how images are augmented: saved likewise.

    `former_length` is the number of steps of the run that a checkpoint was loaded of; None before.
    """

    def __init__(
        self,
        defaults: dict[str, object],
        model: 'nn.Module',
        optimizer: 'torch.optim.Optimizer',
        data: DataSet,
        record: RunRecord,
        average: 'nn.Module | None' = None,
        augmentation: Augmentation | None = None,
    ) -> None:
        self.flags = identity(record.description())
        self.defaults = {**defaults, 'processes': 1}
        self.model = model
        self.optimizer = optimizer
        self.data = data
        self.drawn = {'order': data} | ({'augmentation': augmentation} if augmentation else {})
        self.record = record
        self.average = average
        self.former_length: int | None = None

    def save(self, path: str, step: int) -> None:
        """Writes the state after `step` steps, whole or not at all.

        Raises:
            OSError: the file cannot be written; what was there before is left as it was.
        """
        import torch

        state = {
            'flags': self.flags,
            'step': step,
            'model': self.model.state_dict(),
            'optimizer': self.optimizer.state_dict(),
            'average': self.average.state_dict() if self.average else None,
            **{part: {key: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
                      for key, value in of_part.state().items()} for part, of_part in self.drawn.items()},
            'record': self.record.state(),
            'kept': self.record.network.state if self.record.network else None,
        }  # fmt: skip
        with atomic_file(path) as file:
            torch.save(state, file)

    def load(self, path: str, flag: str = 'resume') -> int:
        """Puts everything back as it was and returns the number of steps already done.

        Raises:
            FlagError: the file cannot be read, is damaged, belongs to a run with other flags, or has more steps than
                the run asks for. `flag` is the one that named it.
        """
        import torch

        try:
            state = torch_load(path)
            check_same_flags(f'--{flag} {path}', state['flags'], self.flags, self.defaults, LENGTH_FLAGS)
            if state['step'] > self.flags['max_steps']:
                raise FlagError(
                    f'--{flag} {path} has {state["step"]} steps already: --max_steps must be as many or more'
                )
            self.model.load_state_dict(state['model'])
            self.optimizer.load_state_dict(state['optimizer'])
            if self.average:
                self.average.load_state_dict(state['average'])
            for part, of_part in self.drawn.items():
                of_part.restore({key: value.numpy() if isinstance(value, torch.Tensor) else value
                                 for key, value in state[part].items()})  # fmt: skip
            self.former_length = state['flags']['max_steps']
            self.record.restore(state['record'])
            if self.record.network:
                self.record.network.state = state.get('kept') or copy.deepcopy(state['model'])
            return state['step']
        except FlagError:
            raise
        except OSError as error:
            raise FlagError(f'cannot read --{flag} {path}: {error.strerror or error}') from error
        except Exception as error:  # of any kind: of structures, of types, of sizes
            raise FlagError(
                f'--{flag} {path} is damaged or no checkpoint of these scripts: name another file'
            ) from error


# A network to use

# The class of each script's network, which is rebuilt with the arguments that it was made with.
NETWORKS = {
    'mlp_numpy': ('mlp_numpy', 'MLP'),
    'mlp_pytorch': ('mlp_pytorch', 'MLP'),
    'convnet_pytorch': ('convnet_pytorch', 'ConvNet'),
}


class NetworkError(ValueError):
    """A file of a network cannot be used; the message is one line."""


class KeptNetwork:
    """A copy of a network in training, as it was when it was last kept.

    Args:
        script: a key of NETWORKS.
        model: in training.
        arguments: those that the model's class was made with, by name.
        mean_image, std_image: (3072,) float32, what its inputs are centred with; see `cifar10_utils.centred`.
    """

    def __init__(
        self,
        script: str,
        model: 'nn.Module | mlp_numpy.MLP',
        arguments: dict[str, object],
        mean_image: np.ndarray,
        std_image: np.ndarray | None = None,
    ) -> None:
        self.script = script
        self.model = model
        self.arguments = json.loads(json.dumps(arguments))  # what no file could hold fails before the training
        self.images = {'mean_image': mean_image} | ({} if std_image is None else {'std_image': std_image})
        self.suffix = '.npz' if script == 'mlp_numpy' else '.pt'
        self.state: dict[str, Any] | None = None

    def keep(self) -> None:
        """Keeps a copy of the network as it is."""
        self.state = copy.deepcopy(self.model.state_dict())

    def save(self, path: Path, description: dict[str, object]) -> None:
        """Writes the copy and what it is, whole or not at all.

        Raises:
            OSError: the file cannot be written.
        """
        text = json.dumps({**description, 'arguments': self.arguments, 'classes': CLASSES})
        with atomic_file(path) as file:
            if self.suffix == '.npz':
                np.savez(file, description=text, **self.images, **self.state)
            else:
                import torch

                images = {name: torch.from_numpy(image) for name, image in self.images.items()}
                torch.save({'description': text, **images, 'state': self.state}, file)


class LoadedNetwork:
    """A network that was kept, in evaluation mode.

    Args:
        description: what its file says of it: script, flags, classes, the row that it is of, and more.
        mean_image, std_image: (3072,) float32, what pixels are centred with; see `cifar10_utils.centred`.
        first_weights: the first layer's, as images: an MLP's (n_units, 3, 32, 32), a ConvNet's (n_filters, 3, 3, 3).
        forward: for centred images (n, 3, 32, 32) float32, the probabilities and, in float64, their logarithms as the
            trainer's loss has them, (n, n_classes) each.
    """

    def __init__(
        self,
        description: dict[str, Any],
        mean_image: np.ndarray,
        std_image: np.ndarray | None,
        first_weights: np.ndarray,
        forward: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    ) -> None:
        self.description = description
        self.mean_image = mean_image
        self.std_image = std_image
        self.first_weights = first_weights
        self._forward = forward

    def probabilities(self, pixels: np.ndarray) -> np.ndarray:
        """The probability of each class, (n, n_classes).

        Args:
            pixels: (n, 3072) or (n, 3, 32, 32), channels first: uint8 as CIFAR-10 has them, or floating point and
                centred already, as `next_batch` gives them.

        Raises:
            ValueError: they have another shape or type.
        """
        return self._run(pixels)[0]

    def log_probabilities(self, pixels: np.ndarray) -> np.ndarray:
        """The logarithm of each class's probability, (n, n_classes) float64; for the rest see `probabilities`.

        What the trainer's figures follow from to the digit: here a probability that is too small for its type, or near
        another one, is still told apart.
        """
        return self._run(pixels)[1]

    def _run(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        pixels = np.asarray(pixels)
        if pixels.shape[1:] not in ((self.mean_image.size,), IMAGE_SHAPE):
            raise ValueError(
                f'pixels must have shape (n, {self.mean_image.size}) or (n, 3, 32, 32), got {pixels.shape}'
            )
        if pixels.dtype != np.uint8 and not np.issubdtype(pixels.dtype, np.floating):
            raise ValueError(f'pixels must be uint8, or floating point and centred, got {pixels.dtype}')
        outputs = []
        for start in range(0, len(pixels), EVALUATION_BATCH):
            batch = pixels[start : start + EVALUATION_BATCH]
            if batch.dtype == np.uint8:
                batch = centred(batch.reshape(len(batch), -1), self.mean_image, self.std_image)
            outputs.append(self._forward(batch.reshape(len(batch), *IMAGE_SHAPE)))
        if not outputs:
            return (np.zeros((0, len(self.description['classes']))),) * 2
        return tuple(map(np.concatenate, zip(*outputs, strict=True)))


def load_network(path: str | Path) -> LoadedNetwork:
    """The network in a `.npz` or a `.pt` file of `networks/`.

    Raises:
        NetworkError: the file cannot be read, or is damaged or no network of these scripts.
    """
    read = {'.npz': _read_numpy, '.pt': _read_pytorch}.get(Path(path).suffix)
    if read is None:
        raise NetworkError(f'{path} is no network: its name must end in .npz or .pt')
    try:
        network = read(path)
        # What else may be wrong with it shows in what it does.
        outputs = network.probabilities(np.zeros((1, *IMAGE_SHAPE), np.uint8))
        if outputs.shape != (1, len(CLASSES)) or network.description['classes'] != list(CLASSES):
            raise ValueError
        return network
    except NetworkError as error:
        raise NetworkError(f'{path} cannot be built again: {error}') from error
    except OSError as error:
        raise NetworkError(f'cannot read {path}: {error.strerror or error}') from error
    except Exception as error:  # of any kind: of structures, of types, of sizes
        raise NetworkError(f'{path} is damaged or no network of these scripts ({one_line(error)})') from error


def _network_class(description: dict[str, Any]) -> type:
    script = description['script']
    if script not in NETWORKS:
        raise NetworkError(f'NETWORKS in checkpoints.py has no line for {script!r}')
    module, name = NETWORKS[script]
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise NetworkError(f'there is no {name} in {module}.py, which NETWORKS in checkpoints.py names') from error


def _read_numpy(path: str | Path) -> LoadedNetwork:
    check_archive(path)
    with np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    description = json.loads(str(arrays.pop('description')))
    mean_image, std_image = arrays.pop('mean_image'), arrays.pop('std_image', None)
    mlp = _network_class(description)(**description['arguments'], rng=np.random.RandomState(0))  # overwritten at once
    mlp.load_state_dict(arrays)
    mlp.eval()
    dtype = description['arguments']['dtype']

    def forward(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with np.errstate(all='ignore'):  # as in training: what overflows shows in the figures
            probabilities = mlp.forward(images.reshape(len(images), -1).astype(dtype, copy=False))
        return probabilities, np.log(probabilities.astype(np.float64) + CrossEntropyModule.EPS)

    return LoadedNetwork(description, mean_image, std_image, _first_weights(arrays), forward)


def _first_weights(state: dict[str, np.ndarray]) -> np.ndarray:
    """The first layer's weights, as images, out of a `state_dict`, in which the layers stand in their order."""
    weights = next(array for array in state.values() if array.ndim > 1)
    return weights.reshape(len(weights), *IMAGE_SHAPE) if weights.ndim == 2 else weights


def _read_pytorch(path: str | Path) -> LoadedNetwork:
    import torch

    contents = torch_load(path)
    description = json.loads(contents['description'])
    with torch.device('meta'):  # no memory is taken for initial weights
        model = _network_class(description)(**by_present_names(description['arguments']))
    model.load_state_dict(contents['state'], assign=True)
    model.to(memory_format=torch.channels_last).eval()
    narrow = description['flags'].get('precision') == 'bfloat16'

    def forward(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with torch.inference_mode(), torch.autocast('cpu', torch.bfloat16, enabled=narrow):
            logits = model(torch.from_numpy(np.ascontiguousarray(images, np.float32))).float()
        return logits.softmax(dim=1).numpy(), logits.double().log_softmax(dim=1).numpy()

    images = {name: contents[name].numpy() for name in ('mean_image', 'std_image') if name in contents}
    state = {name: tensor.numpy() for name, tensor in contents['state'].items()}
    return LoadedNetwork(
        description, images['mean_image'], images.get('std_image'), _first_weights(state), forward
    )  # fmt: skip
