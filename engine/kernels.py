"""What a device has to be asked for in its own way to be fast: attention, a CPU's products, and its memory.

Attention is over keys and values that are there already: a row's own, several documents' in one row, a KV cache's. Shapes: B sequences,
T tokens, S positions with keys and values, H query heads, G key/value heads, D dimensions a head.
"""

import contextlib
import ctypes
from pathlib import Path

import torch
import torch.nn.functional as F

torch.backends.cuda.enable_cudnn_sdp(False)              # in the whole process: for each new length it would make a plan first

# What Linux says of this CPU, elsewhere nothing; and whether it has AVX-512, but MKL, which uses that on Intel's only, goes without.
CPU = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
WITHOUT_AVX512 = torch.backends.cpu.get_cpu_capability() == "AVX512" and torch.backends.mkldnn.is_available() and "AuthenticAMD" in CPU


def fast_bfloat16():
    """Has this CPU instructions for bfloat16 products?"""
    return "avx512_bf16" in CPU


# ---- attention -----------------------------------------------------------------------------------------------------

def causal_mask(T, S, device):
    """What each of the last T of S positions sees, the same in all layers; None if these are all. As a tensor for a CPU, a GPU's kernels need none."""
    if T == S:
        return None
    if device.type == "cuda":
        from torch.nn.attention.bias import causal_lower_right         # here, as it takes a second to import
        return causal_lower_right(T, S)
    return torch.ones(T, S, dtype=torch.bool, device=device).tril(S - T)


def causal_attention(q, k, v, window=None, mask=None):
    """Attention of q (B, H, T, D) on k, v (B, G, S, D): the queries are the last T of S positions, each sees itself and what is before it,
    which `mask` may say already; with a sliding window, only the last `window` of these."""
    T, S = q.shape[2], k.shape[2]
    if window and S > window:
        return windowed_attention(q, k, v, window)
    plain = q.requires_grad if q.dtype == torch.float32 else torch.is_autocast_enabled(q.device.type) and "avx512_bf16" in CPU and "amx_bf16" not in CPU
    if plain and q.device.type == "cpu" and not torch.compiler.is_compiling():
        return CausalAttention.apply(q, k, v)
    mask = causal_mask(T, S, q.device) if mask is None else mask
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=S == T, enable_gqa=True)


def windowed_attention(q, k, v, window, queries=512):
    """causal_attention with a sliding window, a few queries at a time, each part on the keys that it sees."""
    H, T, S, out = q.shape[1], q.shape[2], k.shape[2], []
    for start in range(S - T, S, queries):
        stop, first = min(start + queries, S), max(0, start - window + 1)
        behind = torch.arange(start, stop, device=q.device)[:, None] - torch.arange(first, stop, device=q.device)
        keys, values = (x[:, :, first:stop].repeat_interleave(H // x.shape[1], dim=1) for x in (k, v))      # a GPU's kernel with a mask wants that
        out.append(F.scaled_dot_product_attention(q[:, :, start - S + T:stop - S + T], keys, values, (behind >= 0) & (behind < window)))
    return torch.cat(out, dim=2)


class CausalAttention(torch.autograd.Function):
    """The same by plain products, a few queries at a time, so that what they do not see is left out and the scores stay in the cache; computed
    anew for the gradient (Dao et al., 2022). PyTorch's own kernel is slower on a CPU where gradients are wanted or, without AMX, in bfloat16. In that
    it is more exact where scores are large, since these are rounded here, so this is for training only."""
    QUERIES = 64

    @staticmethod
    def parts(q, k):
        """For each part of the queries: which (a slice), they (B, G, R n, D), how many keys they see, and their weights (B, G, R n, those)."""
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
        y = [(weights @ v[:, :, :seen]).unflatten(2, (-1, part.stop - part.start)) for part, _, seen, weights in CausalAttention.parts(q, k)]
        return torch.cat(y, dim=3).flatten(1, 2)

    @staticmethod
    def backward(ctx, gradient):
        q, k, v = ctx.saved_tensors
        gradient, dq, (dk, dv) = gradient.unflatten(1, (k.shape[1], -1)), [], torch.zeros(2, *k.shape, dtype=torch.promote_types(k.dtype, torch.float32), device=k.device)
        for part, some, seen, weights in CausalAttention.parts(q, k):
            g = gradient[:, :, :, part].flatten(2, 3)
            dv[:, :, :seen] += weights.mT @ g
            scores = torch._softmax_backward_data(g @ v[:, :, :seen].mT, weights, -1, weights.dtype)
            dk[:, :, :seen] += scores.mT @ some
            dq.append((scores @ k[:, :, :seen]).unflatten(2, (-1, part.stop - part.start)))
        return torch.cat(dq, dim=3).flatten(1, 2).mul_(q.shape[-1] ** -0.5), dk.type_as(k), dv.type_as(v)


def decode_attention(q, k, v, hide, common=None):
    """Attention of one position of each sequence, q (B, G, R, D) with R = H/G, on its own k, v (B, G, S, D), and before these on what all
    sequences have in common, keys and values (2, G, P, D), which are read only once. `hide` (B, 1, 1, P + S) is added to the scores."""
    (B, G, R, D), P = q.shape, 0 if common is None else common.shape[2]
    q = q * D ** -0.5
    scores = q @ k.transpose(-1, -2)
    if P:
        shared = q.transpose(0, 1).reshape(G, B * R, D) @ common[0].transpose(-1, -2)
        scores = torch.cat((shared.view(G, B, R, P).transpose(0, 1), scores), dim=-1)
    weights = (scores.float() + hide).softmax(-1).type_as(v)
    y = weights[..., P:] @ v
    if P:
        shared = weights[..., :P].transpose(0, 1).reshape(G, B * R, P) @ common[1]
        y = shared.view(G, B, R, D).transpose(0, 1) + y
    return y


def unseen(columns, until, window=None):
    """For queries at the columns (N,): what decode_attention adds to their scores of the positions up to `until`, (N, until): 0, or -1e30
    where a query does not see a position, since that comes later or before its sliding window."""
    behind = columns[:, None] - torch.arange(until, device=columns.device)
    return ((behind < 0) | (behind >= window) if window else behind < 0) * -1e30


def packed_attention(lengths, common=0, causal=causal_attention):
    """Causal attention within each of several documents that stand one after the other in a row, without padding; before them stand `common`
    tokens with which all of them begin. causal: the attention within a document."""
    def attend(layer, q, k, v, window=None):
        first, *own = zip(*(x.split([common, *lengths], dim=2) for x in (q, k, v)))
        out = [causal(*first, window)] if common else []
        for q, k, v in own:
            out.append(causal(q, *(torch.cat(pair, dim=2) for pair in zip(first[1:], (k, v))), window))
        return torch.cat(out, dim=2)
    return attend


# ---- products, and a CPU's memory -----------------------------------------------------------------------------------

def cast(x):
    """x in the precision of autocast, if that is on: once, and not for each product that reads it."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


def linear(x, weight, bias=None):
    """F.linear of x (…, in) and weight (out, in) → (…, out). MKL's product of a few rows by a large weight uses one core only, and one of some
    more rows by a vocabulary no core well; by several slices of the weight it is faster. Where MKL is without AVX-512, oneDNN is twice as fast."""
    if weight.is_mkldnn:                                        # packed
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    if x.device.type != "cpu" or x.dtype != torch.float32 or weight.dtype != torch.float32:
        return F.linear(x, weight, bias)
    rows = x.shape[:-1].numel()
    if WITHOUT_AVX512 and rows > 2 and rows * weight.numel() >= 2 ** 21 and not torch.is_grad_enabled():
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    slices = 8 if rows <= 16 and weight.numel() >= 2 ** 18 and not torch.is_grad_enabled() else 32 if rows <= 256 and len(weight) >= 2 ** 15 else 1
    if slices == 1 or len(weight) % slices:
        return F.linear(x, weight, bias)
    weight, x_ = weight.view(slices, -1, weight.shape[1]), x.reshape(rows, -1)
    if slices == 32 and not torch.is_grad_enabled():
        y = x.new_empty(rows, slices, weight.shape[1])
        for part in range(0, slices, 8):                        # group by group, so that a vocabulary of logits is in memory once, not twice
            y[:, part:part + 8] = (x_.expand(8, -1, -1) @ weight[part:part + 8].mT).transpose(0, 1)
    elif rows <= 2 and (WITHOUT_AVX512 or weight.numel() < 2 ** 20 and torch.backends.cpu.get_cpu_capability() != "AVX512"):      # as measured, by a third to a half
        y = (weight @ x_.mT.expand(slices, -1, -1)).permute(2, 0, 1)                            # a matrix by a vector
    else:
        y = (x_.expand(slices, -1, -1) @ weight.mT).transpose(0, 1)
    y = y.reshape(*x.shape[:-1], -1)
    return y if bias is None else y + bias


def add_linear(y, x, weight):
    """y (n, out) + x weight^T of x (n, in) and weight (out, in), rounded once; y may be overwritten."""
    if weight.is_mkldnn:
        return torch.ops.mkldnn._linear_pointwise.binary(x, y, weight, None, "add")
    return y.addmm_(x, cast(weight).T)


def pack(model):
    """Brings a CPU's bfloat16 weights into the layout that oneDNN would otherwise prepare for every product. Results
    are the same bit for bit. From then on linear layers compute without gradients only, by `linear` and `add_linear`.

    For Qwen2.5-Coder-1.5B's layers, 1, 16 and 32 rows take 1.5, 1.5 and 1.3 times less CPU time (one avx512_bf16 core).
    The packed weights take memory of their own, where those of a mapped file do not."""
    if fast_bfloat16() and torch.backends.mkldnn.is_available():
        for layer in model.modules():
            weight = layer.weight if isinstance(layer, torch.nn.Linear) else None
            if weight is not None and weight.dtype == torch.bfloat16 and weight.device.type == "cpu":
                packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach())
                layer.weight = torch.nn.Parameter(packed, requires_grad=False)


def keep_freed_memory():
    """glibc gives a large freed block back to the system and gets the next tensor's anew, page by page, cleared. From now on it keeps what is
    freed, up to a gigabyte of it, but for blocks of 16 MiB and more."""
    glibc("mallopt", -1, 2 ** 30)                                      # M_TRIM_THRESHOLD
    glibc("mallopt", -3, 2 ** 24)                                      # M_MMAP_THRESHOLD


def give_back_freed_memory():
    """What glibc has kept, now."""
    glibc("malloc_trim", 0)


def glibc(function, *arguments):
    with contextlib.suppress(AttributeError, OSError, TypeError):      # another C library
        getattr(ctypes.CDLL(None), function)(*arguments)
