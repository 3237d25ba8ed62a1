"""The loss of the paper (§3.1): first as the equation, then as it is computed.

Shapes: N tokens of learned actions, n of one action or of one chunk, C hidden size, V vocabulary size.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from engine.kernels import causal_attention
from lora import without_newest
from training.packing import Row, hidden_states

# ---- the definition

def kl_divergence(student_logits: Sequence, teacher_logits: Sequence, temperature: float) -> torch.Tensor:
    """KL(teacher ‖ student) over the vocabulary, both at `temperature`: the mean over an action's tokens, then over the
    actions.

    student_logits, teacher_logits: for each action, the logits (n, V) at its tokens. Returns a scalar."""
    losses = []
    for student, teacher in zip(student_logits, teacher_logits, strict=True):
        log_q = F.log_softmax(student / temperature, dim=-1)
        log_p = F.log_softmax(teacher / temperature, dim=-1)
        losses.append((log_p.exp() * (log_p - log_q)).sum(-1).mean())
    return torch.stack(losses).mean()


def cross_entropy(student_logits: Sequence, targets: Sequence) -> torch.Tensor:
    """The paper's comparison (§5.4, Table 7; --loss ce): cross-entropy on the sampled tokens, with the same means.

    targets: for each action, its tokens, (n,)."""
    return torch.stack([F.cross_entropy(*action) for action in zip(student_logits, targets, strict=True)]).mean()


# ---- the fast version

def token_kl(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """KL(teacher ‖ student) at each token, in float32, of logits (n, V) that are divided by the temperature already →
    (n,)."""
    log_p, log_q = (logits.log_softmax(-1, dtype=torch.float32) for logits in (teacher, student))
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)


@dataclass(frozen=True)
class Backend:
    """The loss's settings for one kind of device."""
    chunk_bytes: int                                            # of logits in memory at a time, in lm_head's precision
    causal: Callable = causal_attention
    kl: Callable = token_kl


BACKENDS = {"cuda": Backend(2 ** 26), "cpu": Backend(2 ** 25)}


def chunked_loss(model: torch.nn.Module, row: Row, teacher_hidden: torch.Tensor | None = None,
                 temperature: float = 1.0, learn: bool = True, actions: int | None = None, processes: int = 1,
                 backend: Backend | None = None) -> torch.Tensor:
    """The same loss of a packed row: `kl_divergence` or, without a teacher, `cross_entropy` → (). With `learn` the
    gradients are added to the adapter's parameters.

        loss = Σ_i w_i · KL_i / actions            over the row's tokens i; w_i = 1 / the number of tokens in i's action

    It saves memory: the (N, V) logits never exist as a whole. The model runs up to lm_head once for the row. Then one
    chunk of tokens after the other goes through lm_head, the loss and their backward pass, and its logits are freed
    before the next chunk's are computed. A last backward pass goes from lm_head's input through the rest of the model.

    teacher_hidden: what lm_head reads in the teacher's pass, (N, C). actions: how many the whole batch has [those of
    the row], so that the results of a batch's rows add up. processes: how many share the model; FSDP averages their
    gradients, so each process multiplies its own by this number."""
    backend = backend or BACKENDS[model.device.type]
    weights = torch.tensor([w for x in row.examples for w in x.weights], device=model.device)           # (N,)
    labels = torch.tensor([t for x in row.examples for t in x.labels], device=model.device)             # (N,)
    hidden = hidden_states(model, row, backend.causal)                                                  # (N, C)
    actions = actions or weights.sum()                          # an action's weights add up to 1
    head_input = hidden.detach().requires_grad_(learn)
    size = chunk_size(model, len(hidden), backend.chunk_bytes)
    total = hidden.new_zeros((), dtype=torch.float32)
    for start in range(0, len(hidden), size):
        chunk = model.lm_head.part = slice(start, start + size)         # lm_head's dropout needs to know, too
        x = head_input[chunk]
        if teacher_hidden is None:
            losses = F.cross_entropy(model.lm_head(x).float(), labels[chunk], reduction="none")
        else:
            # lm_head has no bias, so this divides the logits by the temperature.
            with torch.no_grad(), without_newest(model.lm_head, row.adapters):
                teacher_logits = model.lm_head(teacher_hidden[chunk] / temperature)
            losses = backend.kl(model.lm_head(x / temperature), teacher_logits)
        loss = (losses * weights[chunk]).sum() / actions
        if learn:
            (loss * processes).backward()
        total += loss.detach()
        teacher_logits = None                                   # freed before the next chunk's are computed
    if learn and hidden.requires_grad:                          # false if only lm_head has an adapter
        hidden.backward(head_input.grad)
    return total


def chunk_size(model, tokens: int, chunk_bytes: int) -> int:
    """How many tokens' logits are computed at a time: as few chunks as possible of at most `chunk_bytes`, of equal
    size."""
    limit = max(1, chunk_bytes // (model.config.vocab_size * model.lm_head.weight.element_size()))
    return math.ceil(tokens / math.ceil(tokens / limit))
