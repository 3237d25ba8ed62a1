"""Drawing the next token from the logits.

A token's random number picks it from its row's cumulative distribution, so that the same number draws the same token
whatever the other rows are. Shapes: N rows, V tokens in the vocabulary.
"""

from collections.abc import Sequence

import torch


def draw(logits: torch.Tensor, temperature: Sequence[float], top_p: Sequence[float],
         u: Sequence[float]) -> torch.Tensor:
    """One token (N,) for each row of logits (N, V). Each row has its own temperature (0: the most likely token), top_p
    and random number u in [0, 1). Where a logit is NaN, V is drawn, which is no token."""
    if not any(temperature):
        return most_likely(logits)
    numbers = to_device(torch.tensor([temperature, top_p, u], dtype=torch.float64), logits.device)
    return draw_on_device(logits, *numbers[..., None], nucleus=min(top_p) < 1)


def draw_on_device(logits: torch.Tensor, temperature: torch.Tensor, top_p: torch.Tensor, u: torch.Tensor,
                   nucleus: bool) -> torch.Tensor:
    """`draw` of float64 tensors (N, 1) on the logits' device. nucleus: is any top_p below 1?"""
    p = (logits.float() / temperature.float().clamp(min=1e-6)).softmax(-1)
    if nucleus:                                                 # drop what follows the smallest set with at least top_p
        ranked, order = p.sort(dim=-1, descending=True)
        drop = (ranked.cumsum(-1) - ranked >= top_p) & (top_p < 1)
        drop[:, 0] = False
        p = p.masked_fill(torch.zeros_like(drop).scatter(-1, order, drop), 0)
    cdf = p.cumsum(-1, dtype=torch.float64)
    tokens = torch.searchsorted(cdf, u * cdf[:, -1:], right=True)
    return torch.where(temperature > 0, tokens, most_likely(logits)[:, None])[:, 0]


def most_likely(logits: torch.Tensor) -> torch.Tensor:
    """The token with the largest logit of each row; V where a logit is NaN."""
    largest, tokens = logits.max(-1)
    return tokens.masked_fill(largest.isnan(), logits.shape[-1])


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copies a tensor from the CPU to the device. The host does not wait for a GPU's copy."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
