"""What each device computes in its own way, for speed: attention, products of linear layers, a CPU's memory.

The equation stands first (`attention`, `F.linear`); the rest computes the same faster. Each figure names its machine.

Attention is over keys and values that exist already: a row's own, several documents' in one row, a KV cache's.
Shapes: B sequences, T tokens, S positions with keys and values, H query heads, G key/value heads, D dimensions of a
head.
"""

import contextlib
import ctypes
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F

# cuDNN's attention makes a plan for each new length. With it, a process distilled 11 actions/s on a GPU the first time,
# and 100 the second time, when all plans were made.
torch.backends.cuda.enable_cudnn_sdp(False)

CPU = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""      # what Linux says about it
# MKL, PyTorch's float32 product, uses AVX-512 only on Intel CPUs. On others that have it, oneDNN is faster.
WITHOUT_AVX512 = (torch.backends.cpu.get_cpu_capability() == "AVX512" and torch.backends.mkldnn.is_available()
                  and "AuthenticAMD" in CPU)


def fast_bfloat16() -> bool:
    """Does this CPU have instructions for bfloat16 products?"""
    return "avx512_bf16" in CPU


# ---- attention -----------------------------------------------------------------------------------------------------

def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int | None = None) -> torch.Tensor:
    """The definition: softmax(q kᵀ / √D) v, of q (B, H, T, D) on k, v (B, G, S, D) → (B, H, T, D).

    The queries are the last T of the S positions. Each sees itself and what comes before it, or with a sliding window
    the last `window` of these. H/G query heads share a key/value head."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    S, T = k.shape[2], q.shape[2]
    distance = torch.arange(S - T, S, device=q.device)[:, None] - torch.arange(S, device=q.device)
    seen = (distance >= 0) & (distance < (window or S))
    return (q @ k.mT / q.shape[3] ** 0.5).masked_fill(~seen, float("-inf")).softmax(-1) @ v


def causal_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int | None = None,
                     mask: torch.Tensor | None = None) -> torch.Tensor:
    """`attention` by the kernel that is fastest here. mask: `causal_mask`, if the caller has made it already."""
    T, S = q.shape[2], k.shape[2]
    if window and S > window:
        return windowed_attention(q, k, v, window)
    if trains_by_plain_products(q):
        return CausalAttention.apply(q, k, v)
    mask = causal_mask(T, S, q.device) if mask is None else mask
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=S == T, enable_gqa=True)


def causal_mask(T: int, S: int, device: torch.device) -> torch.Tensor | None:
    """Which of S positions each of the last T sees, the same in all layers; None if T = S, which needs no mask. On a
    CPU it is a tensor; a GPU's kernels need only a description."""
    if T == S:
        return None
    if device.type == "cuda":
        from torch.nn.attention.bias import causal_lower_right  # here, as it takes a second to import
        return causal_lower_right(T, S)
    return torch.ones(T, S, dtype=torch.bool, device=device).tril(S - T)


def windowed_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int,
                       queries: int = 512) -> torch.Tensor:
    """`attention` with a sliding window, some queries at a time, each part only on the keys that it sees."""
    H, T, S, out = q.shape[1], q.shape[2], k.shape[2], []
    for start in range(S - T, S, queries):
        stop, first = min(start + queries, S), max(0, start - window + 1)
        distance = torch.arange(start, stop, device=q.device)[:, None] - torch.arange(first, stop, device=q.device)
        seen = (distance >= 0) & (distance < window)
        keys, values = (x[:, :, first:stop].repeat_interleave(H // x.shape[1], dim=1) for x in (k, v))
        out.append(F.scaled_dot_product_attention(q[:, :, start - S + T:stop - S + T], keys, values, seen))
    return torch.cat(out, dim=2)


def trains_by_plain_products(q):
    """Is `CausalAttention` the faster kernel? It is on a CPU in two cases: float32 where gradients are wanted; and
    training's bfloat16 (autocast), including the teacher's passes, if the CPU has no AMX."""
    if q.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    if q.dtype == torch.float32:
        return q.requires_grad
    return torch.is_autocast_enabled("cpu") and fast_bfloat16() and "amx_bf16" not in CPU


class CausalAttention(torch.autograd.Function):
    """`attention` for training on a CPU, by plain products over a few queries at a time. So the keys that they do not
    see are left out, and the scores stay in the cache. The backward pass recomputes the scores (Dao et al., 2022).

    With a CPU's bfloat16 instructions and small heads, training was 1.5 times as fast as with PyTorch's fused kernel
    (70878db). In bfloat16 the scores are rounded here; the fused kernel keeps float32, so sampling uses that one."""
    QUERIES = 64

    @staticmethod
    def parts(q, k):
        """For each part of the queries: which (a slice), the queries (B, G, R n, D), how many keys they see, and their
        weights (B, G, R n, keys seen), with R = H/G."""
        T, S, D = q.shape[2], k.shape[2], q.shape[3]
        q = (q * D ** -0.5).unflatten(1, (k.shape[1], -1))
        for start in range(0, T, CausalAttention.QUERIES):
            part = slice(start, min(start + CausalAttention.QUERIES, T))
            n, seen = part.stop - start, S - T + part.stop
            some = q[:, :, :, part].flatten(2, 3)
            scores = some @ k[:, :, :seen].mT
            scores.unflatten(2, (-1, n))[..., seen - n:].add_(q.new_full((n, n), float("-inf")).triu(1))
            yield part, some, seen, scores.softmax(-1)

    @staticmethod
    def forward(ctx, q, k, v):
        ctx.save_for_backward(q, k, v)
        y = [(weights @ v[:, :, :seen]).unflatten(2, (-1, part.stop - part.start))
             for part, _, seen, weights in CausalAttention.parts(q, k)]
        return torch.cat(y, dim=3).flatten(1, 2)

    @staticmethod
    def backward(ctx, gradient):
        q, k, v = ctx.saved_tensors
        gradient, dq = gradient.unflatten(1, (k.shape[1], -1)), []
        dk, dv = torch.zeros(2, *k.shape, dtype=torch.promote_types(k.dtype, torch.float32), device=k.device)
        for part, some, seen, weights in CausalAttention.parts(q, k):
            g = gradient[:, :, :, part].flatten(2, 3)
            dv[:, :, :seen] += weights.mT @ g
            scores = torch._softmax_backward_data(g @ v[:, :, :seen].mT, weights, -1, weights.dtype)
            dk[:, :, :seen] += scores.mT @ some
            dq.append((scores @ k[:, :, :seen]).unflatten(2, (-1, part.stop - part.start)))
        dq = torch.cat(dq, dim=3).flatten(1, 2).mul_(q.shape[-1] ** -0.5)
        return dq, dk.type_as(k), dv.type_as(v)


def decode_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, hide: torch.Tensor,
                     common: torch.Tensor | None = None) -> torch.Tensor:
    """`attention` of one position of each sequence, q (B, G, R, D) with R = H/G, on its own keys and values k, v
    (B, G, S, D) and on those that all sequences begin with, `common` (2, G, P, D), which are read only once.
    hide (B, 1, 1, P + S) is added to the scores (`unseen`)."""
    (B, G, R, D), P = q.shape, 0 if common is None else common.shape[2]
    q = q * D ** -0.5
    scores = dot_products(q, k)
    if P:
        shared = q.transpose(0, 1).reshape(G, B * R, D) @ common[0].transpose(-1, -2)
        scores = torch.cat((shared.view(G, B, R, P).transpose(0, 1), scores), dim=-1)
    weights = (scores.float() + hide).softmax(-1).type_as(v)
    y = weights[..., P:] @ v
    if P:
        shared = weights[..., :P].transpose(0, 1).reshape(G, B * R, P) @ common[1]
        y = shared.view(G, B, R, D).transpose(0, 1) + y
    return y


def dot_products(q, k):
    """q kᵀ of few queries q (…, R, D) with many keys k (…, S, D) → (…, R, S). On a CPU in bfloat16, (k qᵀ)ᵀ took 0.37
    to 0.53 of the time for 1 to 128 sequences and 2 to 6 queries, with the same bits (two cores of an AMD EPYC). In
    float32 it is slower."""
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        return (k @ q.mT.contiguous()).mT
    return q @ k.mT


def unseen(positions: torch.Tensor, S: int, window: int | None = None) -> torch.Tensor:
    """What `decode_attention` adds to the scores of queries at positions (N,) on the first S positions → (N, S): 0, or
    -1e30 where a query does not see a position."""
    distance = positions[:, None] - torch.arange(S, device=positions.device)
    return ((distance < 0) | (distance >= window) if window else distance < 0) * -1e30


def packed_attention(lengths: Sequence[int], common: int = 0, causal: Callable = causal_attention) -> Callable:
    """`attend` for `Llama.hidden`: causal attention within each of several documents that stand one after the other in
    a row, without padding. The row begins with `common` tokens, the beginning of every document. causal: the attention
    within a document."""
    def attend(layer, q, k, v, window=None):
        first, *own = zip(*(x.split([common, *lengths], dim=2) for x in (q, k, v)))
        out = [causal(*first, window)] if common else []
        for q, k, v in own:
            keys, values = (torch.cat(pair, dim=2) for pair in zip(first[1:], (k, v)))
            out.append(causal(q, keys, values, window))
        return torch.cat(out, dim=2)
    return attend


# ---- products of linear layers -------------------------------------------------------------------------------------

def cast(x: torch.Tensor) -> torch.Tensor:
    """x in autocast's precision if autocast is on, so that it is cast once and not for each product that reads it."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`F.linear` by the fastest product: x (…, in) times the transposed weight (out, in), plus bias → (…, out)."""
    if weight.is_mkldnn:                                        # see `pack`
        return onednn_linear(x, weight, bias)
    if x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32:
        return cpu_linear(x, weight, bias)
    return F.linear(x, weight, bias)


def onednn_linear(x, weight, bias):
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def cpu_linear(x, weight, bias):
    """`F.linear` in float32 on a CPU, where MKL is slow in three cases. (a) Where it does not use AVX-512, oneDNN is
    faster. (b) It multiplies a few rows by a large weight on one core only. (c) It distributes the product of some more
    rows by a vocabulary's weight badly over the cores. In (b) and (c), slices of the weight are multiplied as a batch.

    On one core of an AMD EPYC (CPU time), oneDNN was 2.2, 1.9, 1.5 and 1.3 times as fast as MKL for 3, 16, 64 and 256
    rows by a weight of 5632 × 2048. One and two rows by one of 49152 × 576 were 2.4 and 3.8 times as fast when computed
    as a batch of matrices by vectors."""
    rows, learns = x.shape[:-1].numel(), torch.is_grad_enabled()
    if onednn_is_faster(rows, weight) and not learns:
        return onednn_linear(x, weight, bias)                                                   # (a)
    if keeps_to_one_core(rows, weight) and not learns:
        slices = 8                                                                              # (b)
    elif is_badly_distributed(rows, weight):
        slices = 32                                                                             # (c)
    else:
        return F.linear(x, weight, bias)
    if len(weight) % slices:
        return F.linear(x, weight, bias)
    weight, x_ = weight.view(slices, -1, weight.shape[1]), x.reshape(rows, -1)
    if slices == 32 and not learns:
        y = in_groups(x_, weight)
    elif rows <= 2 and by_vectors(weight.numel()):
        y = (weight @ x_.mT.expand(slices, -1, -1)).permute(2, 0, 1)
    else:
        y = as_a_batch(x_, weight)
    y = y.reshape(*x.shape[:-1], -1)
    return y if bias is None else y + bias


def onednn_is_faster(rows, weight):
    return WITHOUT_AVX512 and rows > 2 and rows * weight.numel() >= 2 ** 21


def keeps_to_one_core(rows, weight):
    return rows <= 16 and weight.numel() >= 2 ** 18


def is_badly_distributed(rows, weight):
    return rows <= 256 and len(weight) >= 2 ** 15


def as_a_batch(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x (rows, in) times each slice of weight (slices, out, in) → (rows, slices, out)."""
    return (x.expand(len(weight), -1, -1) @ weight.mT).transpose(0, 1)


def in_groups(x, weight):
    """`as_a_batch`, eight slices at a time: logits are in memory once, not twice."""
    y = x.new_empty(len(x), len(weight), weight.shape[1])
    for part in range(0, len(weight), 8):
        y[:, part:part + 8] = as_a_batch(x, weight[part:part + 8])
    return y


def by_vectors(size):
    """Is a weight of that many elements multiplied faster as matrices by vectors than as rows by matrices? The faster
    way takes a third to a half less time."""
    return WITHOUT_AVX512 or size < 2 ** 20 and torch.backends.cpu.get_cpu_capability() != "AVX512"


def add_linear(y: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """y (n, out) + x weightᵀ of x (n, in) and weight (out, in), rounded once; y may be overwritten."""
    if weight.is_mkldnn:
        return torch.ops.mkldnn._linear_pointwise.binary(x, y, weight, None, "add")
    return y.addmm_(x, cast(weight).T)


def pack_weights(model: torch.nn.Module) -> None:
    """Brings a CPU's bfloat16 weights, and the float32 adapters on them, into the layout that oneDNN would otherwise
    prepare for every product. Products by the weights are the same bit for bit. From then on, linear layers work only
    without gradients, by `linear` and `add_linear`.

    For Qwen2.5-Coder-1.5B's layers, 1, 16 and 32 rows take 1.5, 1.5 and 1.3 times less CPU time (one avx512_bf16 core).
    With a rank-128 adapter on every layer of the 0.5B, packing the adapter too made a step 1.4, 1.3 and 1.2 times as
    fast for 1, 16 and 64 agents (two such cores). What is packed takes memory of its own; a mapped file does not."""
    if not (fast_bfloat16() and torch.backends.mkldnn.is_available()):
        return
    for layer in model.modules():
        weight = layer.weight if isinstance(layer, torch.nn.Linear) else None
        if weight is not None and weight.dtype == torch.bfloat16 and weight.device.type == "cpu":
            matrices = {name: p for name, p in layer.named_parameters(recurse=False) if p.ndim == 2}    # not the bias
            for name, matrix in matrices.items():
                packed = torch.ops.mkldnn._reorder_linear_weight(matrix.detach())
                setattr(layer, name, torch.nn.Parameter(packed, requires_grad=False))


# ---- a CPU's memory ------------------------------------------------------------------------------------------------

def keep_freed_memory() -> None:
    """glibc returns a large freed block to the system, and gets the next tensor's memory page by page, cleared. From
    now on it keeps up to a gigabyte of what is freed, except blocks of 16 MiB and more."""
    glibc("mallopt", -1, 2 ** 30)                               # M_TRIM_THRESHOLD
    glibc("mallopt", -3, 2 ** 24)                               # M_MMAP_THRESHOLD


def give_back_freed_memory() -> None:
    """Returns to the system what glibc has kept."""
    glibc("malloc_trim", 0)


def glibc(function, *arguments):
    with contextlib.suppress(AttributeError, OSError, TypeError):      # another C library
        getattr(ctypes.CDLL(None), function)(*arguments)
