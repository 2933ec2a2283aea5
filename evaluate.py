"""What a kept network has learnt: how often it is right, what it confuses, what its weights look like.

    python evaluate.py networks/mlp_numpy.npz                               # on the test set
    python evaluate.py networks/mlp_numpy.npz networks/convnet_pytorch.pt   # several in one table
    python evaluate.py networks/convnet_pytorch.pt --image cat.jpg dog.png  # on pictures of your own

A network's file is all that is needed of its training: even the mean image that it subtracts is there. No code is run
from it.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from augmentation import VIEWS, views
from checkpoints import EVALUATION_BATCH, LoadedNetwork, NetworkError, load_network
from cifar10_utils import CLASSES, IMAGE_SHAPE, N_PIXELS, read_part
from evaluate_figures import plot_calibration, plot_images, plot_weights
from experiment import DATASET_TITLES, check_output, output_paths, say
from files import write_json
from flags import add_data_dir_flag, add_views_flag
from machine import machine, versions
from metrics import calibration, confusion_matrix, confusion_matrix_to_metrics
from parsing import FlagError, OneLineParser, check_not_launched, file_path
from pictures import PictureError, read_picture
from plots import plot_confusion_matrix
from script import run_script

PARTS = {'train': 'training set', 'validation': 'validation set', 'test': 'test set'}
RECORDED = {'test': 'test_acc', 'validation': 'val_acc'}  # where a network's own record has its accuracy
FIGURES = ('confusion_matrix', 'weights', 'mistakes', 'calibration')  # how the names of their files end
N_MISTAKES = 24
N_LIKELIEST = 3
MAX_DRAWN = 24  # pictures of a user's in one figure
COLUMNS = ('accuracy', 'recorded', 'loss', 'mean F1', 'cal. error', 'images', 'views')


def build_parser() -> OneLineParser:
    """The script's flags."""
    parser = OneLineParser(description='Evaluates networks that a training has kept, and shows what they have learnt.')
    add = parser.add_argument
    add('networks', nargs='+', type=file_path, metavar='NETWORK', help='a .npz or .pt file of networks/')
    which = parser.add_mutually_exclusive_group()
    which.add_argument('--part', choices=list(PARTS), default='test',
        help='of the data, divided as they were to train the network')  # fmt: skip
    which.add_argument('--image', nargs='+', type=file_path, metavar='FILE',
        help='look at these pictures of your own instead')  # fmt: skip
    add_views_flag(parser, VIEWS)
    add('--dataset', choices=list(DATASET_TITLES), help='if not given, the one that the network was trained on')
    add_data_dir_flag(parser)
    add('--output_dir', type=file_path, default='.', help='where results/ and figures/ go')
    return parser


def work(flags: argparse.Namespace) -> int:
    """Does what the flags ask for; returns the exit status.

    Raises:
        DataError, FlagError: a file cannot be used, or the flags cannot be followed.
    """
    check_not_launched()
    networks = load_networks(flags.networks)
    if flags.image:
        if flags.dataset:
            raise FlagError('--image looks at no data set: leave out --dataset')
        show_pictures(networks, flags.image, flags.views, flags.output_dir)
        return 0
    evaluations = [
        Evaluation(name, network, flags.part, flags.views, flags.dataset, flags.data_dir, flags.output_dir)
        for name, network in networks.items()
    ]
    say(f'{"".join(f"{column:>12}" for column in COLUMNS)}  network')
    written: list[Path] = []
    for evaluation in evaluations:
        evaluation.run()
        say(evaluation.row())
        if len(evaluations) == 1:
            say(evaluation.table())
        written += evaluation.write()
    say('wrote ' + ', '.join(map(str, written)))
    return 0


def load_networks(paths: Sequence[str]) -> dict[str, LoadedNetwork]:
    """The networks in these files, by the names of the files.

    Raises:
        FlagError: one cannot be used, or two have the same name.
    """
    networks: dict[str, LoadedNetwork] = {}
    for path in paths:
        name = Path(path).stem
        if name in networks:
            raise FlagError(
                f'two networks are named {name}, and so would be what is written of them: '
                'evaluate them one by one, each into an --output_dir of its own'
            )
        try:
            networks[name] = load_network(path)
        except NetworkError as error:
            raise FlagError(str(error)) from error
        trained = networks[name].description
        kinds = [type(trained.get(key)) for key in ('flags', 'row')]
        if trained.get('dataset') not in DATASET_TITLES or kinds != [dict, dict]:
            raise FlagError(f'{path} does not say how it was trained: it is no network that these scripts have kept')
    return networks


def predict(network: LoadedNetwork, pixels: np.ndarray, n_views: int, name: str) -> np.ndarray:
    """The logarithms of the probabilities, (n, n_classes) float64, behind a progress bar with this name.

    Args:
        network: whose they are; it is given as many images at a time as when it was trained.
        pixels: (n, 3072) or (n, 3, 32, 32) uint8.
        n_views: probabilities are averaged over so many views of each image.
        name: of the network.
    """
    batches = []
    with tqdm(total=len(pixels), desc=name[:40], unit='image', leave=False, disable=None) as bar:
        for start in range(0, len(pixels), EVALUATION_BATCH):
            images = pixels[start : start + EVALUATION_BATCH].reshape(-1, N_PIXELS)
            averaged = np.full((len(images), len(CLASSES)), -np.inf)
            for view, weight in views(images, n_views):
                averaged = np.logaddexp(averaged, network.log_probabilities(view) + math.log(weight))
            batches.append(averaged)
            bar.update(len(images))
    return np.concatenate(batches)


def files_of(
    output_dir: str, name: str, what: str, n_views: int, figures: Sequence[str]
) -> tuple[Path, dict[str, Path]]:
    """The paths of the JSON and of each figure of what is found of a network on `what`, such as a part of the data.

    Raises:
        FlagError: one of them cannot be written.
    """
    words = [name, *([what] if what != 'test' else []), *([f'views={n_views}'] if n_views > 1 else [])]
    _, json_path, png_path = output_paths(output_dir, '_'.join(words))
    json_path = json_path.with_name(f'evaluate_{json_path.name}')
    paths = {figure: png_path.with_name(f'{png_path.stem}_{figure}.png') for figure in figures}
    if 'weights' in paths:  # which are the same whatever they are tried on
        paths['weights'] = png_path.with_name(f'{name}_weights.png')
    for path in (json_path, *paths.values()):
        check_output(path, output_dir)
    return json_path, paths


class Evaluation:
    """What a network does on one part of the data.

    Args:
        name: of the network.
        network: as it was loaded.
        part: a key of PARTS.
        n_views: of each image.
        dataset: None for the one that the network was trained on.
        data_dir: where the data are.
        output_dir: where what is found goes.

    Raises:
        DataError, FlagError: the data cannot be had, there is no such part, or a file cannot be written.
    """

    def __init__(
        self, name: str, network: LoadedNetwork, part: str, n_views: int, dataset: str | None, data_dir: str,
        output_dir: str,
    ) -> None:  # fmt: skip
        trained = network.description
        validation_size = trained['flags'].get('validation_size', 0)
        if part == 'validation' and not validation_size:
            raise FlagError(
                f'--part validation: {name} has no such part, having been trained without --validation_size'
            )
        self.dataset = dataset or trained['dataset']
        self.pixels, self.classes = read_part(part, self.dataset, data_dir, validation_size)
        if not len(self.pixels):
            raise FlagError(f'--part {part}: {name} has no such part, its --validation_size being all of it')
        self.name, self.network, self.part, self.n_views = name, network, part, n_views
        on_its_own = self.dataset == trained['dataset']
        self.recorded = trained['row'].get(RECORDED.get(part)) if on_its_own else None
        what = part if on_its_own else f'{part}_{self.dataset}'
        self.json_path, self.figures = files_of(output_dir, name, what, n_views, FIGURES)

    def run(self) -> None:
        """Computes all that there is to tell."""
        log_probabilities = predict(self.network, self.pixels, self.n_views, self.name)
        self.said = log_probabilities.argmax(axis=1)
        self.confidence = np.exp(log_probabilities.max(axis=1))
        self.loss = -float(log_probabilities[np.arange(len(self.said)), self.classes].mean())
        self.matrix = confusion_matrix(log_probabilities, self.classes)
        self.metrics = confusion_matrix_to_metrics(self.matrix)
        self.calibration = calibration(np.exp(log_probabilities), self.classes)
        mistakes = np.flatnonzero(self.said != self.classes)
        self.surest_mistakes = mistakes[np.argsort(-self.confidence[mistakes], kind='stable')][:N_MISTAKES]

    def row(self) -> str:
        """A line of the table of networks."""
        values = (self.metrics['accuracy'], self.recorded, self.loss, self.metrics['f1_beta'].mean(),
                  self.calibration['expected_calibration_error'])  # fmt: skip
        cells = ['–' if value is None else f'{value:.4f}' for value in values] + [len(self.pixels), self.n_views]
        return f'{"".join(f"{cell:>12}" for cell in cells)}  {self.name}'

    def table(self) -> str:
        """Precision, recall and F1 of each class."""
        lines = [f'{"class":<12}{"precision":>12}{"recall":>12}{"F1":>12}{"images":>12}']
        measures = [self.metrics[key] for key in ('precision', 'recall', 'f1_beta')]
        for name, *values, n_images in zip(CLASSES, *measures, self.matrix.sum(axis=1), strict=True):
            lines.append(f'{name:<12}{"".join(f"{value:>12.4f}" for value in values)}{n_images:>12}')
        return '\n'.join(lines)

    def summary(self) -> dict[str, object]:
        """All of it, as it goes into the file of results."""
        trained = self.network.description
        per_class = {key: self.metrics[key].tolist() for key in ('precision', 'recall', 'f1_beta')}
        return {
            'network': self.name,
            'dataset': self.dataset,
            'part': self.part,
            'views': self.n_views,
            'images': len(self.pixels),
            'accuracy': self.metrics['accuracy'],
            'recorded_accuracy': self.recorded,
            'loss': self.loss,
            'classes': list(CLASSES),
            **per_class,
            'confusion_matrix': self.matrix.tolist(),
            'calibration': {key: np.asarray(value).tolist() for key, value in self.calibration.items()},
            'surest_mistakes': [
                {'image': int(i), 'said': CLASSES[self.said[i]], 'is': CLASSES[self.classes[i]],
                 'confidence': float(self.confidence[i])}
                for i in self.surest_mistakes
            ],
            'first_layer_std': float(self.network.first_weights.std()),
            'trained': {key: trained.get(key) for key in ('script', 'dataset', 'flags', 'row')},
            'versions': versions(),
            'machine': machine(),
        }  # fmt: skip

    def write(self) -> list[Path]:
        """Writes the file of results and the four figures, and returns their paths.

        Raises:
            OSError: one of them cannot be written.
        """
        write_json(self.json_path, self.summary())
        title = f'{self.name} on the {PARTS[self.part]} of {DATASET_TITLES[self.dataset]}'
        title += f', {self.n_views} views' if self.n_views > 1 else ''
        plot_confusion_matrix(self.matrix, CLASSES, f'{title}: confusion matrix', self.figures['confusion_matrix'])
        plot_weights(
            self.network.first_weights, f'{self.name}: weights of the first layer', self.figures['weights']
        )  # fmt: skip
        captions = [
            f'said {CLASSES[self.said[i]]} {self.confidence[i]:.1%}\nis {CLASSES[self.classes[i]]}'
            for i in self.surest_mistakes
        ]
        images = self.pixels[self.surest_mistakes].reshape(-1, *IMAGE_SHAPE)
        plot_images(images, captions, f'{title}: the mistakes it was surest of', self.figures['mistakes'])
        plot_calibration(self.calibration, f'{title}: calibration', self.figures['calibration'])
        return [self.json_path, *self.figures.values()]


def show_pictures(networks: dict[str, LoadedNetwork], paths: Sequence[str], n_views: int, output_dir: str) -> None:
    """Says, writes and draws what the networks take a user's pictures for.

    Raises:
        FlagError: a picture cannot be used, or a file cannot be written.
    """
    outputs = {name: files_of(output_dir, name, 'pictures', n_views, ('as_seen',)) for name in networks}
    try:
        pixels = np.stack([read_picture(path) for path in tqdm(paths, unit='picture', leave=False, disable=None)])
    except PictureError as error:
        raise FlagError(str(error)) from error
    files = [''.join(c if c.isprintable() else '?' for c in Path(path).name) for path in paths]
    for name, network in networks.items():
        probabilities = np.exp(predict(network, pixels, n_views, name))
        likeliest = np.argsort(-probabilities, axis=1, kind='stable')[:, :N_LIKELIEST]
        found = [{CLASSES[c]: float(row[c]) for c in classes}
                 for row, classes in zip(probabilities, likeliest, strict=True)]  # fmt: skip
        told = [[f'{label} {share:.1%}' for label, share in shares.items()] for shares in found]
        say(f'{name}:')
        say('\n'.join(f'  {file}: {", ".join(words)}' for file, words in zip(files, told, strict=True)))
        json_path, figures = outputs[name]
        pictures = [{'file': file, 'likeliest': shares} for file, shares in zip(files, found, strict=True)]
        write_json(json_path, {'network': name, 'views': n_views, 'pictures': pictures, 'versions': versions(),
                               'machine': machine()})  # fmt: skip
        title = f'What {name} takes them for' + (f', {n_views} views' if n_views > 1 else '')
        title += f' (the first {MAX_DRAWN} of {len(files)})' if len(files) > MAX_DRAWN else ''
        captions = ['\n'.join([file[:20], *words]) for file, words in zip(files, told, strict=True)]
        plot_images(pixels[:MAX_DRAWN], captions[:MAX_DRAWN], title, figures['as_seen'], n_columns=4)
        say(f'wrote {json_path}, {figures["as_seen"]}')


if __name__ == '__main__':
    sys.exit(run_script(build_parser(), work))
