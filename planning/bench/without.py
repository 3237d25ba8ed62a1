"""The special cases of our code, and what is computed instead when a measurement runs without one of them.

    python -m planning.bench --without list

A case replaces functions, where they are looked up, by the plain version of the same computation. The code itself has
no switches: only the process of a measurement is changed.
"""

import math
from contextlib import ExitStack
from dataclasses import dataclass, replace
from unittest.mock import patch

import torch

from engine import decoder, kernels, sampler
from training.loss import BACKENDS
from training.packing import pack


@dataclass(frozen=True)
class Case:
    job: str                                                    # the measurement in which it is meant to help …
    where: str                                                  # … and on which machines
    helps: str
    plain: dict[str, object]                                    # {where it is looked up: what replaces it}


def backends(**changes):
    """The loss's settings for every device, changed; where they are looked up."""
    changed = {device: replace(backend, **changes) for device, backend in BACKENDS.items()}
    return {"training.loss.BACKENDS": changed, "training.trainer.BACKENDS": changed}


def mask_as_tensor(T, S, device):
    return None if T == S else torch.ones(T, S, dtype=torch.bool, device=device).tril(S - T)


def attention_with_cudnn(*arguments):
    torch.backends.cuda.enable_cudnn_sdp(True)
    return kernels.causal_attention(*arguments)


def sampler_that_waits(self, model, batch=32, max_length=4096, ahead=None):
    new_sampler(self, model, batch, max_length, ahead=False)


def nothing(*_):
    pass


new_sampler, compiled = sampler.Sampler.__init__, decoder.compiled
CASES = {
    # engine/kernels.py: attention
    "windowed-attention": Case(
        "window", "all", "attention with a sliding window by parts, each on the keys that it sees",
        {"engine.kernels.windowed_attention": kernels.attention}),
    "described-mask": Case(
        "collect", "GPU", "the same mask as a description instead of a tensor",
        {"engine.kernels.causal_mask": mask_as_tensor}),
    "no-cudnn": Case(
        "distill", "GPU", "attention without cuDNN, which makes a plan for each length",
        backends(causal=attention_with_cudnn)),
    "shared-prefix": Case(
        "real", "all", "decoding: keys and values that all agents begin with are read once",
        {"engine.sampler.Sampler._shared": lambda self, slots: 0}),
    "fused-decoding": Case(
        "real", "CPU", "decoding: attention by PyTorch's fused kernel",
        {"engine.kernels.fused_decode_attention": kernels.plain_decode_attention}),
    # engine/kernels.py: products of linear layers
    "packed-weights": Case(
        "real", "CPU", "sampling: weights in oneDNN's layout, multiplied by its private operator",
        {"scaling.parallel.pack_weights": nothing}),
    "sliced-products": Case(
        "decode", "CPU, float32", "one or two rows by a large weight, in 8 slices",
        {"engine.kernels.keeps_to_one_core": lambda rows, weight: False}),
    "sliced-vocabulary": Case(
        "distill", "CPU, float32", "up to 256 rows by a vocabulary's weight, in 32 slices",
        {"engine.kernels.is_badly_distributed": lambda rows, weight: False}),
    "by-vectors": Case(
        "decode", "CPU, float32", "one or two rows by slices, as matrices by vectors",
        {"engine.kernels.by_vectors": lambda size: False}),
    "cast-once": Case(
        "distill", "GPU; CPU in bfloat16", "what several products read is cast to bfloat16 once",
        {"model.cast": lambda x: x}),
    "bfloat16": Case(
        "distill", "CPU with bfloat16 products", "training in bfloat16",
        {"engine.kernels.CPU": ""}),
    # engine/lora_layer.py, lora.py
    "fold": Case(
        "real", "float32", "sampling: adapters added to the weights",
        {"scaling.parallel.fold": nothing}),
    # training/loss.py
    "logit-chunks": Case(
        "distill", "all", "memory: the logits of some tokens at a time",
        backends(chunk_bytes=2 ** 62)),
    # training/packing.py, training/trainer.py
    "packing": Case(
        "distill", "all", "the student's rows hold several examples",
        {"training.trainer.pack": lambda examples, limit: pack(examples, 0)}),
    "prefix-packing": Case(
        "distill", "all", "the teacher computes the hints that examples share once",
        {"training.trainer.pack_by_prefix": pack}),
    "compiled-training": Case(
        "distill", "GPU", "kernels between the attentions are fused by torch.compile",
        {"training.trainer.Trainer.compile": nothing}),
    # engine/decoder.py
    "decode-ahead": Case(
        "collect", "GPU", "the next token is computed while the host looks at the last (all of decoder.py)",
        {"engine.sampler.Sampler.__init__": sampler_that_waits}),
    "cuda-graphs": Case(
        "decode", "GPU", "the kernels of a step start at once",
        {"engine.decoder.STEPS_BEFORE_CAPTURE": math.inf}),
    "compiled-decoding": Case(
        "decode", "GPU", "the kernels of a block are fused by torch.compile",
        {"engine.decoder.STEPS_BEFORE_COMPILING": -1}),
    "second-compilation": Case(
        "decode", "GPU", "one sequence has kernels of its own, matrices by vectors",
        {"engine.decoder.compiled": lambda function, **_: compiled(function)}),
}


def without(*names: str) -> ExitStack:
    """A context in which these special cases are disabled."""
    stack = ExitStack()
    for name in names:
        for target, plain in CASES[name].plain.items():
            stack.enter_context(patch(target, plain))
    return stack


def listed() -> str:
    """A line for each special case."""
    return "\n".join(f"{name:20}{case.helps} [{case.job}; {case.where}]" for name, case in CASES.items())
