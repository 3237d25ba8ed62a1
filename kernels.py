"""What a device has to be asked for in its own way to be fast: attention, a CPU's products, and its memory.

Attention is over keys and values that are there already: a row's own, several documents' in one row, a KV cache's. Shapes: B sequences,
T tokens, S positions with keys and values, H query heads, G key/value heads, D dimensions a head.
"""

import contextlib
import ctypes

import torch
import torch.nn.functional as F

torch.backends.cuda.enable_cudnn_sdp(False)              # in the whole process: for each new length it would make a plan first


# ---- attention -----------------------------------------------------------------------------------------------------

def causal_mask(T, S, device):
    """What each of the last T of S positions sees, the same in all layers; None if these are all. As a tensor for a CPU, a GPU's kernels need none."""
    if T == S:
        return None
    if device.type == "cuda":
        from torch.nn.attention.bias import causal_lower_right         # here, as it takes a second to import
        return causal_lower_right(T, S)
    return torch.ones(T, S, dtype=torch.bool, device=device).tril(S - T)


def causal_attention(q, k, v, mask=None):
    """Attention of q (B, H, T, D) on k, v (B, G, S, D): the queries are the last T of S positions, each sees itself and what is before it,
    which `mask` may say already."""
    T, S = q.shape[2], k.shape[2]
    mask = causal_mask(T, S, q.device) if mask is None else mask
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=S == T, enable_gqa=True)


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


def packed_attention(lengths, common=0):
    """Causal attention within each of several documents that stand one after the other in a row, without padding; before them stand `common`
    tokens with which all of them begin."""
    def attend(layer, q, k, v):
        first, *own = zip(*(x.split([common, *lengths], dim=2) for x in (q, k, v)))
        out = [causal_attention(*first)] if common else []
        for q, k, v in own:
            out.append(causal_attention(q, *(torch.cat(pair, dim=2) for pair in zip(first[1:], (k, v)))))
        return torch.cat(out, dim=2)
    return attend


# ---- a CPU's products and memory -----------------------------------------------------------------------------------

def linear(x, weight, bias=None):
    """F.linear of x (…, in) and weight (out, in) → (…, out). A CPU's product of a few rows by a large weight uses one core only, and one of some
    more rows by a vocabulary no core well; by several slices of the weight it is faster."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or weight.dtype != torch.float32:
        return F.linear(x, weight, bias)
    rows = x.shape[:-1].numel()
    slices = 8 if rows <= 16 and weight.numel() >= 2 ** 18 and not torch.is_grad_enabled() else 32 if rows <= 256 and len(weight) >= 2 ** 15 else 1
    if slices == 1 or len(weight) % slices:
        return F.linear(x, weight, bias)
    weight, x_ = weight.view(slices, -1, weight.shape[1]), x.reshape(rows, -1)
    if slices == 32 and not torch.is_grad_enabled():
        y = x.new_empty(rows, slices, weight.shape[1])
        for part in range(0, slices, 8):                        # group by group, so that a vocabulary of logits is in memory once, not twice
            y[:, part:part + 8] = (x_.expand(8, -1, -1) @ weight[part:part + 8].mT).transpose(0, 1)
    elif rows > 2 or weight.numel() >= 2 ** 20 or torch.backends.cpu.get_cpu_capability() == "AVX512":            # faster or slower by a third to a half, as measured
        y = (x_.expand(slices, -1, -1) @ weight.mT).transpose(0, 1)
    else:
        y = (weight @ x_.mT.expand(slices, -1, -1)).permute(2, 0, 1)                            # a matrix by a vector
    y = y.reshape(*x.shape[:-1], -1)
    return y if bias is None else y + bias


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
