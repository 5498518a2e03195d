"""Where randomness comes from: every draw is a function of the stage's seed and of *what* it is drawn for.

Nothing depends on how many draws came before. So image i of epoch e looks the same for any number of workers, and a
resumed run needs no generator state: step s draws what it would have drawn anyway.
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive(*parts: int | str) -> int:
    """A 64-bit seed from what it is for, for example `derive(seed, "image", epoch, index)`."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def seed_all(seed: int, device: torch.device | None = None) -> None:
    """Seed Python, NumPy, torch on CPU, and torch on this device if it is a GPU.

    `torch.manual_seed` would leave a note with a formatted stack trace for a CUDA that was never used: a millisecond
    each time, and this is called for every image.
    """
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    torch.default_generator.manual_seed(seed)
    if device is not None and device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


@contextmanager
def preserved() -> Iterator[None]:
    """Put the CPU generators of Python, NumPy and torch back as they were."""
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)


@contextmanager
def determinism(device: torch.device, threads: int) -> Iterator[None]:
    """Make a stage repeatable on one device, and leave the process as it was found.

    On CPU the number of threads decides the order of sums. On CUDA deterministic kernels are asked for; an operation
    that has none warns. Lanes reuse their processes for measurements, which must not inherit any of this.
    """
    num_threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    try:
        if device.type == "cuda":
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
            torch.use_deterministic_algorithms(True, warn_only=True)
            torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
        else:
            torch.set_num_threads(threads)
        yield
    finally:
        torch.set_num_threads(num_threads)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn
