"""What each device computes in its own way, for speed: attention, and products of linear layers.

The equation stands first (`attention`, `F.linear`); the rest computes the same faster. Each figure names its machine.

Attention is over keys and values that exist already: a row's own, several documents' in one row, a KV cache's.
Shapes: B sequences, T tokens, S positions with keys and values, H query heads, G key/value heads, D dimensions of a
head.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F

# cuDNN's attention makes a plan for each new length. With it, a process distilled 11 actions/s on a GPU the first time,
# and 100 the second time, when all plans were made.
torch.backends.cuda.enable_cudnn_sdp(False)

CPU = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""      # what Linux says about it
X86 = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
FEW = 2                                                         # rows: see `pack_weights`
# MKL, PyTorch's float32 product, uses AVX-512 only on Intel CPUs.
MKL_WITHOUT_AVX512 = torch.backends.cpu.get_cpu_capability() == "AVX512" and "AuthenticAMD" in CPU


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


def causal_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int | None = None) -> torch.Tensor:
    """`attention` by PyTorch's fused kernel."""
    T, S = q.shape[2], k.shape[2]
    if window and S > window:
        return windowed_attention(q, k, v, window)
    mask = causal_mask(T, S, q.device)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=S == T, enable_gqa=True)


def causal_mask(T: int, S: int, device: torch.device) -> torch.Tensor | None:
    """Which of S positions each of the last T sees; None if T = S, which needs no mask. On a CPU it is a tensor; for a
    GPU's kernels, a description is enough."""
    if T == S:
        return None
    if device.type == "cuda":
        from torch.nn.attention.bias import causal_lower_right  # here, as it takes a second to import
        return causal_lower_right(T, S)
    return torch.ones(T, S, dtype=torch.bool, device=device).tril(S - T)


def windowed_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int,
                       queries: int = 512) -> torch.Tensor:
    """`attention` with a sliding window, some queries at a time, each part only on the keys that it sees. A batch of
    eight prompts of 1,500 tokens was 2.6 times as fast with a window of 512 (two AVX-512 cores, 79f91cd)."""
    H, T, S, out = q.shape[1], q.shape[2], k.shape[2], []
    for start in range(S - T, S, queries):
        stop, first = min(start + queries, S), max(0, start - window + 1)
        distance = torch.arange(start, stop, device=q.device)[:, None] - torch.arange(first, stop, device=q.device)
        seen = (distance >= 0) & (distance < window)
        keys, values = (x[:, :, first:stop].repeat_interleave(H // x.shape[1], dim=1) for x in (k, v))
        out.append(F.scaled_dot_product_attention(q[:, :, start - S + T:stop - S + T], keys, values, seen))
    return torch.cat(out, dim=2)


def decode_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, hide: torch.Tensor,
                     common: torch.Tensor | None = None) -> torch.Tensor:
    """`attention` of one position of each sequence, q (B, G, R, D) with R = H/G, on its own keys and values k, v
    (B, G, S, D) and on those that all sequences begin with, `common` (2, G, P, D), which are read only once.
    hide (B, 1, 1, P + S) is added to the scores (`unseen`)."""
    compute = fused_decode_attention if q.device.type == "cpu" else plain_decode_attention
    return compute(q, k, v, hide, common)


def plain_decode_attention(q, k, v, hide, common):
    (B, G, R, D), P = q.shape, 0 if common is None else common.shape[2]
    q = q * D ** -0.5
    scores = q @ k.mT
    if P:
        shared = q.transpose(0, 1).reshape(G, B * R, D) @ common[0].transpose(-1, -2)
        scores = torch.cat((shared.view(G, B, R, P).transpose(0, 1), scores), dim=-1)
    weights = (scores.float() + hide).softmax(-1).type_as(v)
    y = weights[..., P:] @ v
    if P:
        shared = weights[..., :P].transpose(0, 1).reshape(G, B * R, P) @ common[1]
        y = shared.view(G, B, R, D).transpose(0, 1) + y
    return y


def fused_decode_attention(q, k, v, hide, common):
    """The same by PyTorch's fused kernel, which also returns l, the logarithm of the softmax's denominator. With these,
    attention y₁ on a sequence's own keys and y₂ on the common ones combine to y = (e^l₁ y₁ + e^l₂ y₂) / (e^l₁ + e^l₂).

    In bfloat16 its error was half as large, and 64 agents with 500 tokens of their own decoded 1.2 times as fast (two
    cores of an AMD EPYC with AVX-512). It also saves memory: oneDNN makes and keeps a
    kernel for a product of any new length, which took 2 GB in 80 steps of 48 agents with 1,000 tokens each."""
    (B, G, R, D), P = q.shape, 0 if common is None else common.shape[2]
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    y1, l1 = fused(q, k, v, attn_mask=hide[..., P:])
    if not P:
        return y1
    queries, seen = q.transpose(0, 1).reshape(1, G, B * R, D), hide[..., :P].expand(B, 1, R, P)
    result = fused(queries, common[:1], common[1:], attn_mask=seen.reshape(1, 1, B * R, P))
    y2, l2 = (x.view(G, B, R, -1).transpose(0, 1) for x in result)
    return torch.lerp(y1.float(), y2.float(), (l2 - l1[..., None]).sigmoid()).type_as(q)


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
    if weight.is_mkldnn:                                        # see `pack_weights`
        return onednn_linear(x, weight, bias)
    if x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32:
        return cpu_linear(x, weight, bias)
    return F.linear(x, weight, bias)


def onednn_linear(x, weight, bias):
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def cpu_linear(x, weight, bias):
    """`F.linear` in float32 on a CPU, where MKL is slow in two cases. (a) It multiplies a few rows by a large weight on
    one core only. (b) It distributes the product of some more rows by a vocabulary's weight badly over the cores. Then
    slices of the weight are multiplied as a batch.

    On two cores of an AMD EPYC with AVX-512, decoding one sequence was 1.7 times as fast with (a), 1.2 times with
    matrices by vectors, and distilling 1.1 and 1.2 times with (b) (random weights, 79f91cd)."""
    rows = x.shape[:-1].numel()
    if keeps_to_one_core(rows, weight) and not torch.is_grad_enabled():
        slices = 8                                                                              # (a)
    else:
        slices = 32 if is_badly_distributed(rows, weight) else 1                                # (b)
    if slices == 1 or len(weight) % slices:
        return F.linear(x, weight, bias)
    weight, x_ = weight.view(slices, -1, weight.shape[1]), x.reshape(rows, -1)
    if rows <= FEW and by_vectors(weight.numel()):
        y = (weight @ x_.mT.expand(slices, -1, -1)).permute(2, 0, 1)
    else:
        y = (x_.expand(slices, -1, -1) @ weight.mT).transpose(0, 1)
    y = y.reshape(*x.shape[:-1], -1)
    return y if bias is None else y + bias


def keeps_to_one_core(rows, weight):
    return rows <= FEW and weight.numel() >= 2 ** 18


def is_badly_distributed(rows, weight):
    return rows <= 256 and len(weight) >= 2 ** 15


def by_vectors(size):
    """Is a weight with this many elements multiplied faster as matrices by vectors than as rows by matrices?"""
    return MKL_WITHOUT_AVX512 or size < 2 ** 20 and torch.backends.cpu.get_cpu_capability() != "AVX512"


def add_linear(y: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """y (n, out) + x weightᵀ of x (n, in) and weight (out, in), rounded once; y may be overwritten."""
    if weight.is_mkldnn:
        return torch.ops.mkldnn._linear_pointwise.binary(x, y, weight, None, "add")
    return y.addmm_(x, cast(weight).T)


def pack_weights(model: torch.nn.Module, agents: int) -> None:
    """Brings a CPU's weights, and the float32 adapters on them, into oneDNN's layout, for sampling by `agents` agents
    at a time. From then on, linear layers work only without gradients, by `linear` and `add_linear`.

    In bfloat16, oneDNN would otherwise prepare this layout for every product; products by the weights are the same bit
    for bit. A step of Qwen2.5-Coder-0.5B was 1.3, 1.5 and 1.3 times as fast for 1, 16 and 64 agents (two avx512_bf16
    cores, 79f91cd). With a rank-128 adapter on every layer, packing the adapter too made it 1.4, 1.3 and 1.2 times as
    fast. In float32, where MKL is the alternative, the step was 1.8 and 1.7 times as fast for 16 and 64 agents (the
    same cores, 8fea448), but slower for one, so with one or two they are left to `cpu_linear`.

    What is packed takes memory of its own; a mapped file does not."""
    if not (X86 and torch.backends.mkldnn.is_available()):
        return
    fast = [torch.bfloat16] * fast_bfloat16() + [torch.float32] * (agents > FEW)
    for layer in model.modules():
        weight = layer.weight if isinstance(layer, torch.nn.Linear) else None
        if weight is not None and weight.dtype in fast and weight.device.type == "cpu":
            matrices = {name: p for name, p in layer.named_parameters(recurse=False) if p.ndim == 2}    # not the bias
            for name, matrix in matrices.items():
                packed = torch.ops.mkldnn._reorder_linear_weight(matrix.detach())
                setattr(layer, name, torch.nn.Parameter(packed, requires_grad=False))
