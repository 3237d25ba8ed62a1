"""The bytes and the operations of code that runs on tensors without storage.

`with without_storage() as memory:` runs any PyTorch code on shapes alone, in seconds for a model of any size. `Memory`
sees every operation. It adds up the storages that are alive, remembers their peak, and counts operations.
"""

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from engine.kernels import windowed_attention
from model import Config, Llama

FLASH = torch.ops.aten._scaled_dot_product_flash_attention
FLASH_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_backward
FLOPS = flop_registry | {
    torch.ops.aten.addmm_: flop_registry[torch.ops.aten.addmm],
    # Older PyTorch's own formulas refuse fewer key heads than query heads.
    FLASH: lambda q, k, *_, **__: 4 * q.numel() * k.shape[2],
    FLASH_BACKWARD: lambda gradient, q, k, *_, **__: 10 * q.numel() * k.shape[2],
}


class Memory(TorchDispatchMode):
    """live, peak: bytes of all storages, now and at most. flops: floating-point operations."""

    def __init__(self):
        super().__init__()
        self.sizes, self.live, self.peak, self.flops = {}, 0, 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if formula := FLOPS.get(function.overloadpacket):
            self.flops += formula(*args, **(kwargs or {}), out_val=result)
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.add(tensor.untyped_storage())
        return result

    def add(self, storage):
        key = storage._cdata
        if key not in self.sizes:
            self.sizes[key] = storage.nbytes()
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self.remove, key)

    def remove(self, key):
        self.live -= self.sizes.pop(key)

    def above(self, work: Callable[[], None]) -> tuple[int, int]:
        """The bytes that `work` needs at its peak beyond those already alive, and its floating-point operations."""
        before, self.flops = self.live, 0
        self.peak = before
        work()
        return self.peak - before, self.flops


@contextmanager
def without_storage() -> Iterator[Memory]:
    """Inside, tensors have shapes only."""
    with FakeTensorMode(), Memory() as memory:
        yield memory


def fused_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int | None = None) -> torch.Tensor:
    """`causal_attention` by the fused kernel that a GPU runs, also for tensors on the CPU."""
    if window and k.shape[2] > window:
        return windowed_attention(q, k, v, window)
    return FLASH(q, k, v, 0.0, True)[0]


def bare(config: Config, dtype: torch.dtype) -> Llama:
    """A frozen model of that precision."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return Llama(config).requires_grad_(False)
    finally:
        torch.set_default_dtype(before)


def size(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes."""
    return sum(t.numel() * t.element_size() for t in tensors)


def by_layers(config: Config, measure: Callable[..., tuple]) -> tuple:
    """measure(config), a tuple of numbers, without running every block. Blocks are of one kind, or of two if some have
    a sliding window. Three blocks are measured, and then one more of each kind; every further one adds the same.
    """
    if config.num_hidden_layers < 4:
        return measure(config)

    def with_layers(types):
        return measure(replace(config, num_hidden_layers=len(types), layer_types=types))

    counts = Counter(config.layer_types)
    first = [min(counts)] * 3                                   # full attention, if there is any
    three = total = with_layers(first)
    for kind, n in counts.items():
        more = n - first.count(kind)
        four = with_layers([*first, kind])
        total = [t + (b - a) * more for t, a, b in zip(total, three, four, strict=True)]
    return total
