"""Decoding on a GPU: the next token of every running request as one CUDA graph, which is compiled after a while.

A GPU finishes a block sooner than Python can start the block's kernels one by one. A graph starts all kernels of a step
at once, but only on the tensors that it was captured with. So there is a graph for each of a few sizes, and a table
says what each slot of the cache is to do. No step waits for the host: each step reads the token that the step before
drew, while the host looks at that token. On a CPU the same steps run without graphs, for the tests.

One sequence of Llama-3.1-8B's shape decoded 34.5 tokens/s with kernels started one by one, 125.9 with graphs, and 174.9
with compiled kernels too (one GPU, ae786ee).

Shapes: N slots, from the first one on; H query heads, G key/value heads, S positions, D dimensions of a head, C =
hidden size.
"""

import os
import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Iterable

import numpy as np
import torch

from engine.kernels import decode_attention, unseen
from engine.sampling import draw_on_device, most_likely, to_device

POSITION, TOKEN, TEMPERATURE, TOP_P, RANDOM, LEAD = range(6)    # the table's rows; LEAD: a slot to share from
STEPS_BEFORE_CAPTURE = 2                                        # of one size
STEPS_BEFORE_COMPILING = 1000                                   # of any size: compiling takes about as long as these


class Decoder:
    """Steps of decoding on `cache` (L, 2, slots, G, S, D). Idle slots write to its last position.

    The model must not change: a graph does not see an adapter that is added later."""

    def __init__(self, model: torch.nn.Module, cache: torch.Tensor):
        slots, gpu = cache.shape[2], cache.is_cuda
        self.model, self.cache, self.gpu = model, cache, gpu
        self.table = torch.zeros(6, slots, dtype=torch.float64, device=cache.device)
        self.tokens = torch.zeros(slots, dtype=torch.int64, device=cache.device)        # drawn last
        self.decode_one, self.decode_many, self.steps = decode, decode, 0
        self.drop_graphs()

    def drop_graphs(self):
        self.runs, self.graphs = Counter(), {}
        self.pool = torch.cuda.graph_pool_handle() if self.gpu else None

    def compile(self):
        if can_compile():
            torch.cuda.synchronize()                            # no graph that is dropped is still running
            self.decode_one = compiled(decode, coordinate_descent_tuning=True)      # kernels for matrix by vector
            self.decode_many = compiled(decode)
            self.drop_graphs()

    def start(self, slots: np.ndarray, positions: np.ndarray, tokens: np.ndarray, rules: Iterable,
              shared: int) -> Callable[[], list[int]]:
        """Starts to compute the next token of some slots. Each slot's input is its token, or the token drawn last where
        that is -1; it stands at the slot's position. rules: the slots' temperatures, top_p and random numbers. shared:
        how many first tokens all slots have in common.

        Returns a function that waits for the new tokens and returns them."""
        N, last = min(1 << int(slots.max()).bit_length(), self.cache.shape[2]), self.cache.shape[4] - 1
        temperature, top_p, u = rules
        table = np.zeros((6, N))
        table[POSITION], table[TOP_P], table[LEAD] = last, 1, slots[0]
        table[:LEAD, slots] = positions, tokens, temperature, top_p, u
        length, sampled = min(above(int(positions.max()) + 1), last), any(temperature)
        size = N, length, below(shared), sampled, sampled and min(top_p) < 1
        self.table[:, :N].copy_(to_device(torch.from_numpy(table), self.cache.device))
        if self.gpu and self.steps == STEPS_BEFORE_COMPILING:
            self.compile()
        self.steps += 1
        self.runs[size] += 1
        if self.gpu and self.runs[size] > STEPS_BEFORE_CAPTURE:
            if size not in self.graphs:
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, pool=self.pool):
                    self.step(*size)
                self.graphs[size] = graph
            self.graphs[size].replay()
        else:
            with warnings.catch_warnings(action="ignore"):      # the compiler's hints on what it could do better
                self.step(*size)
        if not self.gpu:
            return self.tokens[slots].tolist
        new, done = torch.empty(N, dtype=torch.int64, pin_memory=True), torch.cuda.Event()
        new.copy_(self.tokens[:N], non_blocking=True)
        done.record()

        def wait():
            done.synchronize()
            return new[slots].tolist()

        return wait

    def step(self, N: int, length: int, shared: int, sampled: bool, nucleus: bool) -> None:
        """Does what the table says for the first N slots. Attention reads the first `length` positions, of which the
        first `shared` are the same in all slots."""
        table, before = self.table[:, :N], self.tokens[:N]
        position, token, lead = table[POSITION].long(), table[TOKEN].long(), table[LEAD, :1].long()
        windows, valid = set(self.model.config.windows), before.clamp(max=self.model.config.vocab_size - 1)
        hide = {window: unseen(position, length, window)[:, None, None] for window in windows}     # (N, 1, 1, length)
        cos, sin = self.model.rope(position[:, None])
        x = self.model.embed_tokens(torch.where(token < 0, valid, token))[:, None]
        run = self.decode_one if N == 1 else self.decode_many
        for block, cache in zip(self.model.layers, self.cache):
            x = run(block, x, cos, sin, cache, position, lead, hide[block.window], shared)
        logits = self.model.lm_head(self.model.norm(x))[:, 0]
        rules = table[TEMPERATURE:LEAD, :, None]
        before.copy_(draw_on_device(logits, *rules, nucleus) if sampled else most_likely(logits))


def can_compile() -> bool:
    """Is there the C compiler that torch.compile needs, and is it exact? On a GPU, PyTorch before 2.11 replaces `addmm`
    by a product and a sum, each rounded, so that an adapter's update is lost (LoraLinear.large_term_last)."""
    exact = not torch.cuda.is_available() or tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 11)
    return exact and (bool(os.environ.get("CC")) or any(map(shutil.which, ("gcc", "clang", "cc"))))


def compiled(function: Callable, **options) -> Callable:
    """`function` for all sizes, with its kernels fused by torch.compile. What that cannot compile runs as it is."""
    dynamo = torch._dynamo.config
    dynamo.cache_size_limit, dynamo.suppress_errors = 64, True
    dynamo.force_nn_module_property_static_shapes = False
    return torch.compile(function, dynamic=True, options=options)


def decode(block, x, cos, sin, cache, position, lead, hide, shared):
    """A block's work on x (N, 1, C), whose keys and values go to cache (2, slots, G, S, D)."""
    def attend(q, k, v, window):                                # q (N, H, 1, D); k, v (N, G, 1, D)
        (N, G, _, D), length = k.shape, hide.shape[-1]
        cache[:, torch.arange(N, device=x.device), :, position] = torch.stack((k, v))[:, :, :, 0].transpose(0, 1)
        keys, values = cache[:, :N, :, shared:length]
        common = cache[:, :, :, :shared].index_select(1, lead)[:, 0] if shared else None
        y = decode_attention(q.reshape(N, G, -1, D), keys, values, hide, common)
        return y.reshape(N, -1, 1, D)

    return block(x, cos, sin, attend)


def above(n: int) -> int:
    """The smallest of 256, 384, 512, 768, 1024, 1536 … that is at least n: few sizes, at most half too large."""
    power = 1 << max(8, (n - 1).bit_length())
    return power * 3 // 4 if 256 < power and n <= power * 3 // 4 else power


def below(n: int) -> int:
    """The largest of 0, 256, 512, 1024 … that does not exceed n."""
    return 1 << n.bit_length() - 1 if n >= 256 else 0
