"""The machine's limits: a large matrix product, a large copy."""

import timeit

import torch

from planning.bench.harness import DEVICE


def best(work, n=5):
    """Seconds of the fastest of n runs."""
    wait = torch.cuda.synchronize if DEVICE == "cuda" else lambda: None
    return min(timeit.repeat(lambda: (work(), wait()), repeat=n, number=1))


def product_rate(dtype):
    """Floating-point operations a second in a large matrix product."""
    n = 8192 if DEVICE == "cuda" else 2048
    a, b = (torch.randn(n, n, device=DEVICE).to(dtype) for _ in range(2))
    return 2 * n ** 3 / best(lambda: a @ b.T)       # without bfloat16 instructions, a @ b would take minutes


def memory_rate(n: int = 5) -> float:
    """Bytes a second in a large copy (read and written) or in a large sum, whichever is more."""
    x = torch.ones(2 ** 28, device=DEVICE)
    y = torch.empty_like(x)
    return max(2 * 4 * len(x) / best(lambda: y.copy_(x), n), 4 * len(x) / best(lambda: x.sum(), n))


def limits() -> tuple[float, float, float]:
    """Operations a second in float32 and in bfloat16, bytes a second."""
    return product_rate(torch.float32), product_rate(torch.bfloat16), memory_rate()
