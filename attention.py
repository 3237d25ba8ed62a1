"""Attention over keys and values that are there already: a row's own, several documents' in one row, a KV cache's.

Shapes: B sequences, T tokens, S positions with keys and values, H query heads, G key/value heads, D dimensions a head.
"""

import torch
import torch.nn.functional as F

torch.backends.cuda.enable_cudnn_sdp(False)              # in the whole process: for each new length it would make a plan first


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
    (B, H, T, D), (G, S) = q.shape, k.shape[1:3]
    if q.device.type == "cuda" or q.dtype != torch.bfloat16 or torch.is_inference_mode_enabled():
        mask = causal_mask(T, S, q.device) if mask is None else mask
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=S == T, enable_gqa=True)
    # A CPU with instructions for bfloat16 products trains 1.5 times faster by plain products over blocks of queries than by the fused kernel,
    # at small head sizes. The R query heads that share keys are the rows of one product.
    R, before, out = H // G, S - T, []
    q, k, v = (q * D ** -0.5).reshape(B * G, R, T, D), k.reshape(B * G, S, D), v.reshape(B * G, S, D)
    for start in range(0, T, 128):
        end = min(start + 128, T)
        n, reach = end - start, before + end
        scores = (q[:, :, start:end].reshape(B * G, R * n, D) @ k[:, :reach].transpose(1, 2)).float().view(B * G, R, n, reach)
        future = torch.ones(n, reach, dtype=torch.bool, device=q.device).triu(before + start + 1)
        weights = scores.masked_fill(future, float("-inf")).softmax(-1).type_as(v)
        out.append((weights.view(B * G, R * n, reach) @ v[:, :reach]).view(B * G, R, n, D))
    return torch.cat(out, dim=2).view(B, H, T, D)


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
