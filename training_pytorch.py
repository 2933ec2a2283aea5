"""What the PyTorch trainers share: the device, the data on it, evaluation and the one training loop, `train_model`.

Under `torchrun` every process runs this same code on its share of each batch: the data-parallel model averages the
gradients, sums over the ranks give the loss and the accuracies, and rank 0 alone prints and writes.
"""

import argparse
import contextlib
import inspect
import os
import warnings
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import cross_entropy, interpolate
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from augmentation import Augmentation, add_augment_flag, views
from checkpoints import EVALUATION_BATCH, KeptNetwork, RunState
from cifar10_utils import IMAGE_SHAPE, DataSet
from experiment import RunRecord, output_paths
from files import check_can_write
from flags import add_optimizer_flags, add_pytorch_flags, check_same_flags
from parsing import FlagError, OneLineParser
from ranks import ALONE, Ranks, from_rank_0, join_ranks, pick_device, sum_over_ranks, together
from schedules import SHAPES, ImageSize, Schedule, check_share
from script import load_data, run_length

OPTIMIZERS = {
    'sgd': torch.optim.SGD, 'adam': torch.optim.Adam, 'adamw': torch.optim.AdamW, 'adadelta': torch.optim.Adadelta,
}  # fmt: skip
FLOAT32_MAX = 3.4e38


# The data and evaluation


def load_on_all_ranks(
    data_dir: str, dataset: str, validation_size: int, batch_size: int, standardise: bool, seed: int, ranks: Ranks
) -> dict[str, DataSet]:
    """The data sets of `load_data`: rank 0 finds, downloads or replaces them, and says to the others which they are."""

    def load(dataset: str) -> dict[str, DataSet]:
        rng = np.random.RandomState(seed)
        return load_data(
            data_dir, dataset, validation_size, batch_size, standardise=standardise, one_hot=False, rng=rng
        )

    sets = None
    with together(ranks):
        sets = load(dataset) if ranks.rank == 0 else None
    dataset = from_rank_0(sets['train'].name if sets else None, ranks)
    with together(ranks):
        sets = sets or load(dataset)
    return sets


class DeviceData:
    """A data set on the device, as bytes; batches are gathered and centred there."""

    def __init__(self, data: DataSet, device: torch.device) -> None:
        self.data = data
        self.device = device
        with warnings.catch_warnings():  # PyTorch warns of arrays that are read-only; nothing here writes to these
            warnings.filterwarnings('ignore', 'The given NumPy array is not writable')
            self.pixels = torch.from_numpy(data.pixels).to(device)
        self.labels = torch.from_numpy(data.classes.astype(np.int64)).to(device)
        self.mean_image = torch.from_numpy(data.mean_image).to(device)
        self.std_image = None if data.std_image is None else torch.from_numpy(data.std_image).to(device)

    def examples(self, indices: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """The images (n, 3, 32, 32) float32, centred, and the labels (n,) int64 with these indices."""
        pixels, labels = self.pixels_and_labels(indices)
        return self.centre(pixels), labels

    def pixels_and_labels(self, indices: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """The pixels (n, 3072) uint8 and the labels (n,) int64 with these indices."""
        on_device = torch.from_numpy(indices).to(self.device)
        return self.pixels.index_select(0, on_device), self.labels.index_select(0, on_device)

    def centre(self, pixels: torch.Tensor) -> torch.Tensor:
        """Images (n, 3, 32, 32) float32 as a network sees them, out of pixels (n, 3072)."""
        images = pixels.to(torch.float32).sub_(self.mean_image)
        if self.std_image is not None:
            images.div_(self.std_image)
        return images.view(-1, *IMAGE_SHAPE)


def evaluate(
    model: nn.Module, data: DeviceData, precision: str, ranks: Ranks = ALONE, n_views: int = 1
) -> tuple[float, float]:
    """The accuracy and the mean cross-entropy over every example of `data` exactly once, shared out over the ranks.

    In evaluation mode, and back into the mode that the model was in. The probabilities are averaged over `n_views`
    views of each image; see `augmentation.views`.
    """
    if ranks.n_ranks > 1:  # a training step leaves each rank with running statistics of its own
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)
    training = model.training
    model.eval()
    share = np.array_split(np.arange(data.data.num_examples), ranks.n_ranks)[ranks.rank]
    totals = torch.zeros(2, device=data.device, dtype=torch.float32 if data.device.type == 'mps' else torch.float64)
    with torch.inference_mode():
        for start in range(0, len(share), EVALUATION_BATCH):
            pixels, labels = data.pixels_and_labels(share[start : start + EVALUATION_BATCH])
            with autocast(data.device, precision):
                by_view = [(model(data.centre(view)), weight) for view, weight in views(pixels, n_views)]
            logits = average_of(*zip(*by_view, strict=True))
            correct = (logits.argmax(dim=1) == labels).sum()
            totals += torch.stack([correct, cross_entropy(logits.float(), labels, reduction='sum')])
    model.train(training)
    return tuple((sum_over_ranks(totals, ranks) / data.data.num_examples).tolist())


def average_of(logits: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """Logits (n, n_classes) of the weighted mean of the probabilities that these logits stand for."""
    if len(logits) == 1:
        return logits[0]
    log_weights = torch.tensor(weights, device=logits[0].device).log()
    return (torch.stack(logits).float().log_softmax(dim=2) + log_weights[:, None, None]).logsumexp(dim=0)


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """The context in which the forward pass runs: none in float32, since even a disabled autocast takes time."""
    return torch.autocast(device.type, torch.bfloat16) if precision == 'bfloat16' else contextlib.nullcontext()


# Training


def add_training_flags(parser: OneLineParser, optimizer: str) -> None:
    """Adds what says how any network is trained here; `optimizer` is the default one."""
    add_pytorch_flags(parser, OPTIMIZERS, optimizer)
    add_optimizer_flags(parser, SHAPES)
    add_augment_flag(parser)


def check_float32(flag: str, value: float) -> None:
    """Raises a FlagError if the value of a flag is no number in float32."""
    if value > FLOAT32_MAX:
        raise FlagError(f'--{flag} must be at most {FLOAT32_MAX:g} in float32, got {value:g}')


def check_optimizer(name: str, learning_rate: float, momentum: float, nesterov: bool, weight_decay: float) -> None:
    """Raises a FlagError if one of these flags does nothing, or a number is none in float32."""
    check_float32('learning_rate', learning_rate)
    check_float32('weight_decay', weight_decay)
    if momentum and name != 'sgd':
        raise FlagError(f'--momentum {momentum:g} does nothing with --optimizer {name}: it is for sgd')
    if nesterov and not momentum:
        raise FlagError('--nesterov does nothing without a --momentum above 0')


def make_optimizer(
    name: str,
    model: nn.Module,
    learning_rate: float,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
) -> torch.optim.Optimizer:
    """PyTorch's own, with its fused kernels, which update all parameters in one pass, where it has them.

    Weight decay is of matrices and filters alone: biases and normalisations have one dimension.

    Raises:
        FlagError: see `check_optimizer`.
    """
    check_optimizer(name, learning_rate, momentum, nesterov, weight_decay)
    options: dict[str, object] = {'lr': learning_rate, 'weight_decay': 0.0}  # AdamW would have some by default
    if name == 'sgd':
        options |= {'momentum': momentum, 'nesterov': nesterov}
    has_fused = 'fused' in inspect.signature(OPTIMIZERS[name]).parameters
    if has_fused and next(model.parameters()).device.type != 'mps':
        options['fused'] = True
    if not weight_decay:
        return OPTIMIZERS[name](model.parameters(), **options)
    decayed, others = ([param for param in model.parameters() if (param.ndim > 1) == is_matrix]
                       for is_matrix in (True, False))  # fmt: skip
    return OPTIMIZERS[name]([{'params': decayed, 'weight_decay': weight_decay}, {'params': others}], **options)


def make_scheduler(
    optimizer: torch.optim.Optimizer, schedule: Schedule, learning_rate: float, start: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """PyTorch's own, at the position of step `start`: what the optimizer's learning rate is then and will be."""
    for group in optimizer.param_groups:
        group['initial_lr'] = learning_rate
    with warnings.catch_warnings(action='ignore'):  # of the first step, which sets this position
        return torch.optim.lr_scheduler.LambdaLR(optimizer, schedule.factor, last_epoch=start - 1)


def training_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: torch.Tensor,
    labels: torch.Tensor,
    precision: str,
    scale: torch.Tensor,
    label_smoothing: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One update of the parameters.

    Args:
        images: (n, 3, size, size).
        labels: (n,); or (n, n_classes), the share of each class.
        precision: 'float32' or 'bfloat16'.
        scale: what makes of the sum of the losses the loss that is minimised, such as 1 / n.
        label_smoothing: the share of each label that is spread over all classes in the loss that is minimised.

    Returns:
        The logits (n, n_classes) before the update, and the sum of their losses, without smoothing.
    """
    with autocast(images.device, precision):
        logits = model(images)
    loss_sum = minimised = cross_entropy(logits.float(), labels, reduction='sum')
    if label_smoothing:
        minimised = cross_entropy(logits.float(), labels, reduction='sum', label_smoothing=label_smoothing)
    optimizer.zero_grad()
    minimised.backward(scale)
    optimizer.step()
    return logits.detach(), loss_sum.detach()


def train_model(
    script: str,
    title: str,
    model: nn.Module,
    arguments: dict[str, object],
    flags: argparse.Namespace,
    defaults: dict[str, object],
    output_dir: str | None = None,
    quiet: bool = False,
    alone: bool = False,
    evaluate_after: Collection[int] = (),
    small_images: tuple[int, float] | None = None,
) -> RunRecord:
    """Trains `model` in place as the flags say and returns the record of the run.

    Args:
        script, title: what the run's files and its figure are named after.
        model: maps images (n, 3, 32, 32) to logits (n, n_classes).
        arguments: those that the model's class was made with, by name.
        flags: those of every group in `flags.py` but the MLP's, and any others, which are recorded.
        defaults: the script's flags at their defaults.
        output_dir: where the run's files go; None: nowhere.
        quiet: no progress bar and no lines.
        alone: train in this process alone, even if torchrun started others.
        evaluate_after: numbers of steps after which to evaluate as well.
        small_images: the side of small images, and the share of the steps in which the model is trained on those.

    Raises:
        DataError, FlagError: the data, the device or the checkpoint cannot be had.
    """
    device = pick_device(flags.device)
    model.to(device)
    optimizer = make_optimizer(
        flags.optimizer, model, flags.learning_rate, flags.momentum, flags.nesterov, flags.weight_decay
    )  # fmt: skip
    ranks = ALONE if alone else join_ranks(device)
    sets = load_on_all_ranks(
        flags.data_dir, flags.dataset, flags.validation_size, flags.batch_size, flags.standardise, flags.seed, ranks
    )  # fmt: skip
    max_steps, epoch_ends = run_length(
        flags.max_steps, flags.epochs, flags.batch_size, sets['train'].num_examples
    )  # fmt: skip
    check_share(f'--warmup {flags.warmup:g}', flags.warmup, max_steps)
    if small_images:
        check_share('--small_images {}={:g}'.format(*small_images), small_images[1], max_steps)
    data = {part: DeviceData(data_set, device) for part, data_set in sets.items() if data_set.num_examples}
    average = moving_average(model, flags.ema) if flags.ema else None
    kept = average.module if average else model
    augmentation = Augmentation(flags.augment, sets['train'].num_examples, flags.seed)
    augmentation.check_batch(flags.batch_size, ranks.n_ranks)
    schedule = Schedule(flags.schedule, flags.warmup, max_steps)
    image_size = ImageSize(small_images[0], IMAGE_SHAPE[-1], small_images[1], max_steps) if small_images else None
    all_flags = {**vars(flags), 'max_steps': max_steps, 'device': str(device)}
    checkpoint = checkpoint_path(flags.checkpoint, flags.seed if flags.seeds else None)
    with together(ranks):
        record = RunRecord(
            script, title, sets['train'].name, all_flags, defaults, output_dir if ranks.rank == 0 else None,
            quiet or ranks.rank > 0, [*evaluate_after, *epoch_ends],
            KeptNetwork(script, kept, arguments, sets['train'].mean_image, sets['train'].std_image), ranks.n_ranks,
        )  # fmt: skip
        state = RunState(
            defaults, model, optimizer, sets['train'], record, average,
            augmentation if augmentation.strengths else None,
        )  # fmt: skip
        is_done = record.already_done()
        start = 0 if is_done else find_start(state, flags.resume, checkpoint, ranks)
    if from_rank_0(is_done, ranks):
        return record
    check_agreement(state.flags, start, ranks)
    announce(record, device, flags.precision, ranks)
    if (schedule.depends_on_length or image_size) and state.former_length not in (None, max_steps):
        record.say(
            f'the schedule of {state.former_length} steps is now one of {max_steps}: the learning rate goes on at '
            f'{flags.learning_rate * schedule.factor(start):.3g}'
            + (f' with images of {image_size.at(start)} pixels' if image_size else '')
            + ', as if it had been so from the start'
        )
    scheduler = make_scheduler(optimizer, schedule, flags.learning_rate, start)
    if flags.compile:
        model.compile()
    parallel = data_parallel(model, data['train'].examples(np.arange(1))[0], ranks)
    parts = [part for part in ('test', 'validation') if part in data]
    # Of the sum over this rank's share, which may be an example more than another's, to the mean over the batch;
    # the ranks' gradients are averaged, not summed.
    scale = torch.tensor(ranks.n_ranks / flags.batch_size, device=device)

    model.train()
    with record.running(start) as steps:
        for step in steps:
            indices = sets['train'].next_indices(flags.batch_size)
            pixels, labels = data['train'].pixels_and_labels(ranks.share(indices))
            draws = ranks.share(augmentation.draw(indices, sets['train'].epochs_completed))
            images = augmentation.apply(pixels, draws, data['train'].mean_image, data['train'].std_image)
            if image_size:
                images = resized(images, image_size.at(step))
            seed_draws(device, seed_of_step(flags.seed, step))
            images, labels = augmentation.mix(images, labels)
            if ranks.rank > 0:  # which mixes as rank 0 does, but has dropout masks of its own
                seed_draws(device, seed_of_step(flags.seed, step, ranks.rank))
            logits, loss_sum = training_step(
                parallel, optimizer, images, labels, flags.precision, scale, flags.label_smoothing
            )  # fmt: skip
            scheduler.step()
            if average:
                average.update_parameters(model)
            loss = sum_over_ranks(loss_sum, ranks).item() / flags.batch_size
            if record.evaluation_due(step, loss):
                largest = labels if labels.ndim == 1 else labels.argmax(dim=1)  # of a mixed image, the larger share
                correct = sum_over_ranks((logits.argmax(dim=1) == largest).sum(), ranks).item()
                held_out = {part: evaluate(kept, data[part], flags.precision, ranks) for part in parts}
                by_views = {f'{part}_views': evaluate(kept, data[part], flags.precision, ranks, flags.views)
                            for part in parts if flags.views > 1}  # fmt: skip
                record.add(step, train=(correct / flags.batch_size, loss), **held_out, **by_views)
                if checkpoint is not None and ranks.rank == 0:
                    record.attempt(checkpoint, lambda path, n_done=step + 1: state.save(path, n_done))
    return record


def resized(images: torch.Tensor, size: int) -> torch.Tensor:
    """Images (n, c, size, size), each pixel the mean of those that it covers, weighted by their nearness."""
    if images.shape[-1] == size:
        return images
    return interpolate(images, size=(size, size), mode='bilinear', antialias=True)


def moving_average(model: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of a model's parameters and running statistics, of the first step's on."""
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)


def seed_of_step(seed: int, step: int, rank: int = 0) -> int:
    """The seed of what PyTorch draws in a step, such as dropout's masks: others in each step and on each rank.

    So a run that goes on from a checkpoint draws what it would have drawn without the stop, on every rank.
    """
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1)[0])


def seed_draws(device: torch.device, seed: int) -> None:
    """Seeds what is drawn on the CPU and on this device; `torch.manual_seed`, for all, takes half a millisecond."""
    torch.default_generator.manual_seed(seed)
    if device.type != 'cpu':
        getattr(torch, device.type).manual_seed(seed)


def data_parallel(model: nn.Module, image: torch.Tensor, ranks: Ranks) -> nn.Module:
    """The model, averaging its gradients over the ranks.

    PyTorch arranges the gradients anew after the first backward pass, so that three or more ranks then sum them in
    another order. A pass that changes nothing, on any `image` (1, 3, 32, 32), has that done before the first step: of a
    run that is resumed, too, whose steps must not be rounded otherwise.
    """
    if ranks.n_ranks == 1:
        return model
    parallel = DistributedDataParallel(model)
    model.eval()
    parallel(image).sum().backward()
    model.zero_grad()
    return parallel


def checkpoint_path(checkpoint: str | None, seed: int | None) -> str | None:
    """The file of `--checkpoint`, with the seed in its name where there are several."""
    if checkpoint is None or seed is None or not Path(checkpoint).name:
        return checkpoint
    path = Path(checkpoint)
    return str(path.with_name(f'{path.stem}_seed={seed}{path.suffix}'))


def find_start(state: RunState, resume: str | None, checkpoint: str | None, ranks: Ranks) -> int:
    """The step to go on from, after the files that the flags name are seen to be right and the checkpoint is read.

    Raises:
        FlagError: a rank would have no examples, a file cannot be read, or could not be written.
    """
    batch_size = state.flags['batch_size']
    if batch_size < ranks.n_ranks:
        raise FlagError(f'--batch_size {batch_size} leaves some of {ranks.n_ranks} processes without an example')
    if checkpoint is not None and ranks.rank == 0:
        record = state.record
        own = output_paths(record.output_dir, record.name, '.pt') if record.output_dir is not None else []
        if os.path.realpath(checkpoint) in map(os.path.realpath, own):
            raise FlagError(f'--checkpoint {checkpoint} is what the run itself writes at its end: name another file')
        try:
            check_can_write(checkpoint)
        except OSError as error:
            raise FlagError(f'cannot write --checkpoint {checkpoint}: {error.strerror or error}') from error
    if checkpoint is not None and os.path.exists(checkpoint):
        return state.load(checkpoint, flag='checkpoint')
    return state.load(resume) if resume is not None else 0


def check_agreement(flags: dict[str, object], start: int, ranks: Ranks) -> None:
    """Raises a FlagError, on rank 0, where the ranks would not train the same from the same step on."""
    flags_of_0, start_of_0 = from_rank_0((flags, start), ranks)
    with together(ranks):
        check_same_flags('the run of rank 0', flags_of_0, flags, {})
        if start != start_of_0:
            raise FlagError(f'it would go on from step {start}, rank 0 from step {start_of_0}')


def announce(record: RunRecord, device: torch.device, precision: str, ranks: Ranks) -> None:
    """Says what the training runs on, and where that is a bad choice."""
    if device.type == 'cuda':
        record.machine += f', {torch.cuda.get_device_name(device)}'
    record.say(f'device: {device.type}' + (f', {ranks.n_ranks} process(es)' if ranks.n_ranks > 1 else ''))
    if precision == 'bfloat16' and device.type == 'cpu' and torch.backends.cpu.get_cpu_capability() == 'AVX2':
        record.say('this processor has no bfloat16 instructions: --precision float32 will be many times as fast')
