"""Kills runs with checkpoints at random moments, by SIGKILL, SIGTERM and SIGINT in turn, and goes on; run by hand.

    python tests/kill_runs.py 200     # kills
    python tests/kill_runs.py 200 1   # with another seed of the moments

After each kill the same command is started again, until it ends by itself. The record must then be that of a run never
stopped, byte for byte but for the seconds, the network the same, and no temporary file left over.
"""

import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
FLAGS = ['--dataset', 'synthetic', '--max_steps', '300', '--eval_freq', '15', '--dnn_hidden_units', '20,20',
         '--optimizer', 'adam', '--batch_norm', 'manual', '--validation_size', '500', '--name', 'run',
         '--dropout', '0.1', '--augment', 'flip', 'shift=2', '--schedule', 'triangular', '--warmup', '0.2',
         '--ema', '0.9']  # fmt: skip
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


def start(directory: Path, *flags: str) -> subprocess.Popen:
    """The trainer, in a process of its own."""
    command = [sys.executable, ROOT / 'train_mlp_pytorch.py', *FLAGS, '--output_dir', directory, *flags]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def kill_until_done(directory: Path, seconds: float, kills: int, first: int) -> int:
    """Starts the run until it ends by itself, killing it up to `kills` times; returns how often it was killed."""
    for killed in range(kills + 1):
        process = start(directory, '--checkpoint', str(directory / 'run.pt'))
        try:
            if killed < kills:
                time.sleep(random.uniform(0.3 * seconds, 0.9 * seconds))
                process.send_signal(SIGNALS[(first + killed) % len(SIGNALS)])
            _, stderr = process.communicate(timeout=600)
        finally:
            process.kill()
        if process.returncode == 0:
            return killed
        if process.returncode not in (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, 130, 143):
            raise SystemExit(f'status {process.returncode}: {stderr}')
    raise SystemExit('the run that was not killed did not end well')


def contents(directory: Path) -> dict[str, object]:
    """What the run left, without what may differ: the seconds, and the names of the directories."""
    summary = json.loads((directory / 'results/run.json').read_text())
    for key in ('seconds', 'flags'):
        del summary[key]
    network = torch.load(directory / 'networks/run.pt', weights_only=True)
    return {
        'csv': (directory / 'results/run.csv').read_bytes(),
        'json': summary,
        'network': {name: tensor.tolist() for name, tensor in network['state'].items()},
        'files': sorted(str(path.relative_to(directory)) for path in directory.rglob('*') if path.name != 'run.pt'),
    }


def main() -> int:
    """Kills as often as the command line says; returns the exit status."""
    n_kills = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's job in the background, and its runs, ignore it
    random.seed(int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    with tempfile.TemporaryDirectory() as name:
        whole = Path(name) / 'whole'
        start(whole).communicate()
        began = time.perf_counter()
        start(Path(name) / 'again').communicate()  # with PyTorch in the machine's memory
        seconds = time.perf_counter() - began
        expected = contents(whole)
        done, runs, wrong = 0, 0, 0
        with tqdm(total=n_kills, unit='kill') as bar:
            while done < n_kills:
                directory = Path(name) / str(runs)
                killed = kill_until_done(directory, seconds, min(5, n_kills - done), first=done)
                if contents(directory) != expected:
                    wrong += 1
                    print(f'run {runs}, killed {killed} times, left something else', file=sys.stderr)
                done, runs = done + killed, runs + 1
                bar.update(killed)
    print(f'{done} kills in {runs} runs: {runs - wrong} runs left what a run never stopped leaves, {wrong} did not')
    return int(wrong > 0)


if __name__ == '__main__':
    sys.exit(main())
