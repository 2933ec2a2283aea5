"""What a result was computed with: the processor, its cores, and the versions of the libraries."""

import contextlib
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path


def versions() -> dict[str, str]:
    """The versions of Python, NumPy and Matplotlib, and of PyTorch where this process has imported it."""
    used = ['numpy', 'matplotlib', *(['torch'] if 'torch' in sys.modules else [])]
    return {'python': platform.python_version()} | {name: version(name) for name in used}


def machine() -> str:
    """What this process computes on, such as 'AMD EPYC (family 25, model 1, avx2), 2 cores'.

    Of the instructions only those are named on which speed depends most; of cores, those that this process may use.
    Where the environment forces another processor's kernels upon NumPy, that is told, too.
    """
    name, details = platform.processor() or platform.machine(), []
    with contextlib.suppress(OSError):  # Linux alone has the file, and alone says too little above
        lines = Path('/proc/cpuinfo').read_text(encoding='utf-8', errors='replace').splitlines()
        pairs = (line.split(':', 1) for line in lines if ':' in line)
        first: dict[str, str] = {}
        for key, value in pairs:
            first.setdefault(key.strip(), value.strip())
        name = first.get('model name', name)
        details = [f'{key.split()[-1]} {first[key]}' for key in ('cpu family', 'model') if key in first]
        known = first.get('flags', '').split()
        details += [flag for flag in ('avx2', 'avx512f', 'avx512_bf16', 'amx_bf16') if flag in known]
    forced = [f', {key}={os.environ[key]}' for key in ('OPENBLAS_CORETYPE', 'MKL_CBWR') if key in os.environ]
    cores = '1 core' if usable_cores() == 1 else f'{usable_cores()} cores'
    return f'{name}{" (" + ", ".join(details) + ")" if details else ""}, {cores}{"".join(forced)}'


def usable_cores() -> int:
    """The number of cores that this process is allowed to use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
