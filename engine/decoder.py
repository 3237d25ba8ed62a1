"""Decoding on a GPU: the next token of every running request as one CUDA graph, which is compiled after a while.

A GPU finishes a block sooner than Python can start the block's kernels one by one. A graph starts all kernels of a step
at once, but only on the tensors that it was captured with. So there is a graph for each of a few sizes, and a table
says what each slot of the cache is to do. No step waits for the host: it reads the token that the step before drew,
and meanwhile the host looks at that token. On a CPU the same steps run without graphs, for the tests.

On an H100, collecting with Llama-3.2-1B's shape was 5.2 times as fast as with transformers (docs/results.md).

Shapes: N slots, from the first one on; H query heads, G key/value heads, S positions, D dimensions of a head, C =
hidden size.
"""

import os
import shutil
import warnings
from collections import Counter

import numpy as np
import torch

from engine.kernels import decode_attention, unseen
from engine.sampling import draw_on_device, most_likely, to_device

COLUMN, TOKEN, TEMPERATURE, TOP_P, RANDOM, LEAD = range(6)         # the table's rows; LEAD: a slot with what all have in common
STEPS_BEFORE_CAPTURE = 2                                        # of a size
STEPS_BEFORE_COMPILING = 1000                                   # of any: compiling takes about as long as these


class Decoder:
    """Steps of decoding on `cache` (L, 2, slots, G, S, D), whose last position takes what idle slots write.

    The model has to stay as it is: graphs do not see an adapter that comes later."""

    def __init__(self, model, cache):
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
            torch.cuda.synchronize()                            # no graph that is dropped is running
            self.decode_one = compiled(decode, coordinate_descent_tuning=True)                                     # with kernels for a matrix by a vector
            self.decode_many = compiled(decode)
            self.drop_graphs()

    def start(self, slots, columns, tokens, rules, shared):
        """Begins to compute the next token of some slots (numpy, int64): each one's input stands at its column and is its token, or, where
        that is -1, the one drawn last. rules: their temperatures, top_p and random numbers; shared: the tokens that they all begin with.

        → a function that waits for these tokens and returns them, a list."""
        N, last = min(1 << int(slots.max()).bit_length(), self.cache.shape[2]), self.cache.shape[4] - 1
        temperature, top_p, u = rules
        table = np.zeros((6, N))
        table[COLUMN], table[TOP_P], table[LEAD] = last, 1, slots[0]
        table[:LEAD, slots] = columns, tokens, temperature, top_p, u
        size = N, min(above(int(columns.max()) + 1), last), below(shared), (sampled := any(temperature)), sampled and min(top_p) < 1
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
            with warnings.catch_warnings(action="ignore"):      # of what a compiler could do better
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

    def step(self, N, until, common, sampled, nucleus):
        """What the table says, for the first N slots: attention up to the position `until`, of which `common` are the same in all slots."""
        table, before = self.table[:, :N], self.tokens[:N]
        column, token, lead = table[COLUMN].long(), table[TOKEN].long(), table[LEAD, :1].long()
        hide = {window: unseen(column, until, window)[:, None, None] for window in set(self.model.config.windows)}      # each (N, 1, 1, until)
        cos, sin = self.model.rope(column[:, None])
        x = self.model.embed_tokens(torch.where(token < 0, before.clamp(max=self.model.config.vocab_size - 1), token))[:, None]
        for block, cache in zip(self.model.layers, self.cache):
            x = (self.decode_one if N == 1 else self.decode_many)(block, x, cos, sin, cache, column, lead, hide[block.window], common)
        logits = self.model.lm_head(self.model.norm(x))[:, 0]
        before.copy_(draw_on_device(logits, *table[TEMPERATURE:LEAD, :, None], nucleus) if sampled else most_likely(logits))


def can_compile():
    """Is there the C compiler that torch.compile needs?"""
    return bool(os.environ.get("CC")) or any(map(shutil.which, ("gcc", "clang", "cc")))


def compiled(function, **options):
    """`function` for all sizes, with its kernels fused by torch.compile. What that cannot compile stays as it is."""
    dynamo = torch._dynamo.config
    dynamo.cache_size_limit, dynamo.suppress_errors, dynamo.force_nn_module_property_static_shapes = 64, True, False
    return torch.compile(function, dynamic=True, options=options)


def decode(block, x, cos, sin, cache, column, lead, hide, common):
    """A block's work on x (N, 1, C), whose keys and values go to cache (2, slots, G, S, D)."""
    def attend(q, k, v, window):                                   # q (N, H, 1, D); k, v (N, G, 1, D)
        (N, G, _, D), until = k.shape, hide.shape[-1]
        cache[:, torch.arange(N, device=x.device), :, column] = torch.stack((k, v))[:, :, :, 0].transpose(0, 1)
        keys, values = cache[:, :N, :, common:until]
        shared = cache[:, :, :, :common].index_select(1, lead)[:, 0] if common else None
        y = decode_attention(q.reshape(N, G, -1, D), keys, values, hide, shared)
        return y.reshape(N, -1, 1, D)

    return block(x, cos, sin, attend)


def above(n):
    """The smallest of 256, 384, 512, 768, 1024, 1536 … that n does not exceed: sizes are few, and at most half too large."""
    power = 1 << max(8, (n - 1).bit_length())
    return power * 3 // 4 if 256 < power and n <= power * 3 // 4 else power


def below(n):
    """The largest of 0, 256, 512, 1024 … that does not exceed n."""
    return 1 << n.bit_length() - 1 if n >= 256 else 0
