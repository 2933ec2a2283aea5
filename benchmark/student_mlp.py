"""The reference protocol as a good student writes it in PyTorch: all of it in float32 and in memory at once.

    python benchmark/student_mlp.py --data_dir cifar10 --output_dir .

It stands alone, so that what it takes is what any plain script takes; it writes student.png.
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn
from torchvision.datasets import CIFAR10

BATCHES_FOLDER = 'cifar-10-batches-py'


def build_parser() -> argparse.ArgumentParser:
    """The script's flags."""
    parser = argparse.ArgumentParser(description='Trains an MLP on CIFAR-10 in plain PyTorch.')
    parser.add_argument('--data_dir', type=Path, default='cifar10', help=f'holds {BATCHES_FOLDER}, or is it')
    parser.add_argument('--output_dir', type=Path, default='.', help='where student.png goes')
    return parser


def train(train_set: CIFAR10, test_set: CIFAR10) -> list[tuple[float, ...]]:
    """Trains; returns a tuple per evaluation: step, training accuracy and loss, test accuracy and loss."""
    torch.manual_seed(42)
    np.random.seed(42)
    train_images = train_set.data.transpose(0, 3, 1, 2).astype(np.float32)
    test_images = test_set.data.transpose(0, 3, 1, 2).astype(np.float32)
    mean_image = train_images.mean(axis=0)
    train_images, test_images = train_images - mean_image, test_images - mean_image
    train_labels, test_labels = np.array(train_set.targets), np.array(test_set.targets)

    model = nn.Sequential(nn.Linear(3 * 32 * 32, 100), nn.ReLU(), nn.Linear(100, 10))
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=2e-3)
    history = []
    position, max_steps, batch_size = 0, 1500, 200
    for step in range(max_steps):
        if position + batch_size > len(train_images):
            order = np.random.permutation(len(train_images))
            train_images, train_labels = train_images[order], train_labels[order]
            position = 0
        x = torch.from_numpy(train_images[position : position + batch_size]).reshape(batch_size, -1)
        y = torch.from_numpy(train_labels[position : position + batch_size])
        position += batch_size
        optimizer.zero_grad()
        out = model(x)
        loss = criterion(out, y)
        loss.backward()
        optimizer.step()
        if step % 100 == 0 or step == max_steps - 1:
            train_accuracy = (out.argmax(dim=1) == y).float().mean().item()
            with torch.no_grad():
                x, y = torch.from_numpy(test_images).reshape(len(test_images), -1), torch.from_numpy(test_labels)
                out = model(x)
                test_loss, test_accuracy = criterion(out, y).item(), (out.argmax(dim=1) == y).float().mean().item()
            history.append((step, train_accuracy, loss.item(), test_accuracy, test_loss))
            print('step {}: train {:.3f} {:.3f}, test {:.3f} {:.3f}'.format(*history[-1]))
    return history


def plot(history: list[tuple[float, ...]], path: Path) -> None:
    """Draws accuracy and loss over the steps."""
    steps, train_accuracy, train_loss, test_accuracy, test_loss = zip(*history, strict=True)
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    left.plot(steps, train_accuracy, label='train')
    left.plot(steps, test_accuracy, label='test')
    left.legend()
    right.plot(steps, train_loss, label='train')
    right.plot(steps, test_loss, label='test')
    right.legend()
    figure.savefig(path)


def main() -> None:
    """Reads the data, trains, draws."""
    parser = build_parser()
    args = parser.parse_args()
    root = args.data_dir.absolute()
    if root.name == BATCHES_FOLDER:
        root = root.parent
    try:
        args.output_dir.mkdir(parents=True, exist_ok=True)
        train_set, test_set = CIFAR10(root, train=True), CIFAR10(root, train=False)
    except OSError as error:
        parser.exit(2, f'{parser.prog}: error: {error}\n')
    except RuntimeError:
        parser.exit(2, f'{parser.prog}: error: no CIFAR-10 in {root}: name its place with --data_dir\n')
    plot(train(train_set, test_set), args.output_dir / 'student.png')


if __name__ == '__main__':
    main()
