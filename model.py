"""Llama in plain PyTorch: the weights of any Llama-architecture checkpoint in Hugging Face format, and how tokens run through them.

    python model.py --model starter --prompt "Step 1:" --max-new-tokens 20

Everything here is about token ids: prompts, agents, tools and hints are agent.py's business. Names follow the checkpoint
format (`self_attn.q_proj`), so that weights and adapters load without renaming. Shapes: B sequences, T tokens, H query
heads, G key/value heads, D dimensions a head, C = hidden size, V words in the vocabulary.
"""

import argparse
import json
import math
import random
import sys
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch.nn.attention.bias import causal_lower_right
from torch.utils.checkpoint import checkpoint


def read_json(file):
    try:
        return json.loads(Path(file).read_text())
    except OSError as e:
        raise ValueError(f"{file}: cannot be read ({e.strerror})") from None
    except ValueError as e:
        raise ValueError(f"{file}: not JSON ({e})") from None


@dataclass
class Config:
    """The part of config.json that a Llama needs; the names are the file's."""
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int = 0              # 0: as many as query heads (no grouping)
    head_dim: int = 0                         # 0: hidden_size / num_attention_heads
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: dict | None = None          # Llama 3.1's {"rope_type": "llama3", "factor": …}
    max_position_embeddings: int = 2048
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    eos_token_id: list[int] = field(default_factory=list)

    def __post_init__(self):
        self.num_key_value_heads = self.num_key_value_heads or self.num_attention_heads
        self.head_dim = self.head_dim or self.hidden_size // self.num_attention_heads

    @classmethod
    def from_json(cls, file):
        """config.json as older hub files write it (`rope_theta`, `rope_scaling`) and as transformers 5 does (`rope_parameters`).

        Raises ValueError, naming the file and the field, when the file describes no Llama."""
        c = read_json(file)
        if c.get("model_type") not in ("llama", None):
            raise ValueError(f"{file}: model_type is {c['model_type']!r}; only Llama-architecture models can be loaded")
        if c.get("hidden_act", "silu") != "silu":
            raise ValueError(f"{file}: hidden_act is {c['hidden_act']!r}; a Llama has silu")
        rope = c.pop("rope_parameters", None) or {}
        c.setdefault("rope_theta", rope.get("rope_theta", 10000.0))
        c.setdefault("rope_scaling", rope or None)
        kind = (c["rope_scaling"] or {}).get("rope_type", (c["rope_scaling"] or {}).get("type", "default"))
        if kind not in ("default", "llama3"):
            raise ValueError(f"{file}: rope_scaling of type {kind!r} is not supported; default and llama3 are")
        if kind == "default":
            c["rope_scaling"] = None
        eos = c.get("eos_token_id")
        generation = Path(file).with_name("generation_config.json")
        if generation.exists():
            eos = read_json(generation).get("eos_token_id", eos)
        c["eos_token_id"] = eos if isinstance(eos, list) else [] if eos is None else [eos]
        missing = [name for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
                                     "num_attention_heads") if not isinstance(c.get(name), int)]
        if missing:
            raise ValueError(f"{file}: no whole number for {', '.join(missing)}")
        return cls(**{k: v for k, v in c.items() if k in cls.__dataclass_fields__ and v is not None})


def rope_frequencies(config):
    """(D/2,) float32 angles per position, with Llama 3.1's scaling of the slow ones beyond the original context."""
    freq = config.rope_theta ** -(torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim)
    if config.rope_scaling:
        s = config.rope_scaling
        turns = s["original_max_position_embeddings"] * freq / (2 * math.pi)    # over the original context
        low, high = s["low_freq_factor"], s["high_freq_factor"]
        keep = ((turns - low) / (high - low)).clamp(0, 1)                       # 1: unchanged, 0: stretched in full
        freq = freq * keep + freq / s["factor"] * (1 - keep)
    return freq


def rotate(x, cos, sin):
    """Rotary embedding of x (B, H, T, D) by cos, sin (B or 1, 1, T, D/2), pairing dimension i with i + D/2 as the checkpoints do."""
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).type_as(x)


def causal_attention(q, k, v):
    """Attention of q (B, H, T, D) on k, v (B, G, S, D): the queries are the last T of S positions, each sees itself and what is before it."""
    (B, H, T, D), (G, S) = q.shape, k.shape[1:3]
    if q.device.type == "cuda":
        mask = {"is_causal": True} if S == T else {"attn_mask": causal_lower_right(T, S)}
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=True, **mask)
    # On the CPU plain matrix products over blocks of queries train 1.5 times faster than the fused kernel at small head sizes.
    q = q.reshape(B, G, H // G, T, D) * D ** -0.5
    k, v = k.unsqueeze(2), v.unsqueeze(2)
    out = []
    for start in range(0, T, 128):
        end, before = min(start + 128, T), S - T
        scores = (q[..., start:end, :] @ k[..., :before + end, :].transpose(-1, -2)).float()     # (B, G, H/G, 128, S')
        future = torch.ones(end - start, before + end, dtype=torch.bool, device=q.device).triu(before + start + 1)
        out.append(scores.masked_fill(future, float("-inf")).softmax(-1).type_as(v) @ v[..., :before + end, :])
    return torch.cat(out, dim=3).view(B, H, T, D)


def decode_attention(q, k, v, common_k, common_v, hide):
    """Attention of one position of each sequence, q (B, G, R, D) with R = H/G, on what all sequences have in common, common_k and
    common_v (G, P, D), which is read only once, and then on its own k, v (B, G, S, D). `hide` (B, 1, 1, P + S) is added to the scores."""
    (B, G, R, D), P = q.shape, common_k.shape[1]
    q = q * D ** -0.5
    common = (q.transpose(0, 1).reshape(G, B * R, D) @ common_k.transpose(-1, -2)).view(G, B, R, P).transpose(0, 1)
    own = (k @ q.transpose(-1, -2)).transpose(-1, -2)
    weights = (torch.cat((common, own), dim=-1).float() + hide).softmax(-1).type_as(v)
    common = (weights[..., :P].transpose(0, 1).reshape(G, B * R, P) @ common_v).view(G, B, R, D).transpose(0, 1)
    return common + weights[..., P:] @ v


def packed_attention(lengths):
    """Causal attention within each of several documents that stand one after the other in a row, without padding."""
    def attend(layer, q, k, v):
        parts = zip(*(x.split(lengths, dim=2) for x in (q, k, v)))
        return torch.cat([causal_attention(*part) for part in parts], dim=2)
    return attend


class RMSNorm(nn.Module):
    def __init__(self, dim, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        y = x.float()
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * y.type_as(x)


class Attention(nn.Module):
    def __init__(self, c, layer):
        super().__init__()
        self.layer, self.head_dim = layer, c.head_dim
        self.q_proj = nn.Linear(c.hidden_size, c.num_attention_heads * c.head_dim, bias=c.attention_bias)
        self.k_proj = nn.Linear(c.hidden_size, c.num_key_value_heads * c.head_dim, bias=c.attention_bias)
        self.v_proj = nn.Linear(c.hidden_size, c.num_key_value_heads * c.head_dim, bias=c.attention_bias)
        self.o_proj = nn.Linear(c.num_attention_heads * c.head_dim, c.hidden_size, bias=c.attention_bias)

    def forward(self, x, cos, sin, attend):
        q, k, v = (proj(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
                   for proj in (self.q_proj, self.k_proj, self.v_proj))                         # (B, H or G, T, D)
        y = attend(self.layer, rotate(q, cos, sin), rotate(k, cos, sin), v)
        return self.o_proj(y.transpose(1, 2).flatten(-2))


class MLP(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.gate_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=c.mlp_bias)
        self.up_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=c.mlp_bias)
        self.down_proj = nn.Linear(c.intermediate_size, c.hidden_size, bias=c.mlp_bias)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, c, layer):
        super().__init__()
        self.input_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.self_attn = Attention(c, layer)
        self.post_attention_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.mlp = MLP(c)
        self.recompute = False                                  # in the backward pass, instead of keeping what it needs in memory

    def forward(self, *args):
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(self.run, *args, use_reentrant=False)
        return self.run(*args)

    def run(self, x, cos, sin, attend):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, attend)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    """tokens (B, T) int64 → logits (B, T, V)."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.embed_tokens.weight
        self.register_buffer("frequencies", rope_frequencies(config), persistent=False)

    @property
    def device(self):
        return self.embed_tokens.weight.device

    def hidden(self, tokens, positions=None, attend=None):
        """tokens (B, T) → what lm_head reads (B, T, C). `positions` (B or 1, T) default to 0 … T-1; `attend(layer, q, k, v)`
        defaults to causal attention over the row; a KV cache or several documents in a row bring their own."""
        if positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device)[None]
        angles = (positions[..., None].float() * self.frequencies)[:, None]                     # (B or 1, 1, T, D/2)
        cos, sin = angles.cos(), angles.sin()
        attend = attend or (lambda layer, q, k, v: causal_attention(q, k, v))
        x = self.embed_tokens(tokens)
        for block in self.layers:
            x = block(x, cos, sin, attend)
        return self.norm(x)

    def forward(self, tokens):
        return self.lm_head(self.hidden(tokens))

    def hf_state_dict(self):
        """The weights without adapters under the checkpoint format's names; `lm_head.weight` only if it is not the embedding."""
        return {name if name.startswith("lm_head") else f"model.{name}": weight for name, weight in self.state_dict().items()
                if "lora_" not in name and not (name == "lm_head.weight" and self.config.tie_word_embeddings)}

    @classmethod
    def from_pretrained(cls, path, dtype=torch.float32, device="cpu"):
        """A checkpoint in Hugging Face format, from a directory or by its hub id. The files are memory-mapped and the weights are
        built nowhere else, so float32 weights on the CPU take no memory of their own.

        Raises ValueError, naming the file and the tensor, when something is missing, broken or does not fit."""
        folder = local_folder(path)
        config = Config.from_json(folder / "config.json")
        with torch.device("meta"):
            model = cls(config).to(dtype)
        if device != "meta":                                    # "meta": the weights come later, each process its part (parallel.py)
            shards = weight_files(folder)
            loaded = {name.removeprefix("model."): read_weight(shards, name, weight.shape).to(device, dtype)
                      for name, weight in model.hf_state_dict().items()}
            model.load_state_dict(loaded, strict=False, assign=True)
        if config.tie_word_embeddings:
            model.lm_head.weight = model.embed_tokens.weight
        model.frequencies = rope_frequencies(config).to("cpu" if device == "meta" else device)
        return model.requires_grad_(False).eval()


def local_folder(path):
    """`path` if it is a directory; otherwise it is a hub id, whose config, weights and tokenizer are fetched or found in the hub's cache."""
    if Path(path).is_dir():
        return Path(path)
    try:
        from huggingface_hub import snapshot_download
        return Path(snapshot_download(str(path), allow_patterns=["*.json", "*.jinja", "*.safetensors"], ignore_patterns=["*/*"]))
    except Exception as e:                                      # no such repository, no network, not a hub id at all
        raise ValueError(f"{path}: neither a directory nor a model on the hub ({str(e).splitlines()[0]})") from None


def read_weight(shards, name, shape, rows=slice(None)):
    """A tensor of a checkpoint, or only some of its rows; `shards` is what `weight_files` gives, `shape` what config.json says.

    Raises ValueError, naming the file and the tensor."""
    if name not in shards:
        raise ValueError(f"{next(iter(shards.values())).parent}: no tensor {name} in the safetensors files")
    file = shards[name]
    try:
        with safe_open(file, "pt") as f:
            found = f.get_slice(name).get_shape()
            if found != list(shape):
                raise ValueError(f"{file}: {name} is {found}, config.json says {list(shape)}")
            return f.get_tensor(name) if rows == slice(None) else f.get_slice(name)[rows]
    except (SafetensorError, OSError) as e:
        raise ValueError(f"{file}: {name} cannot be read ({e}); is the file there and whole?") from None


def weight_files(folder):
    """{tensor name: its safetensors file} of a checkpoint of one or several files."""
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if index.exists():
        return {name: folder / file for name, file in read_json(index)["weight_map"].items()}
    try:
        with safe_open(single, "pt") as f:
            return dict.fromkeys(f.keys(), single)
    except (SafetensorError, OSError) as e:
        raise ValueError(f"{single}: cannot be read ({e}); is the file there and whole?") from None


@dataclass(eq=False)
class Request:
    """A prompt to continue, and what came of it."""
    key: object                                                 # the caller's own name for it
    prompt: list[int]
    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    stop: Callable[[list[int]], bool] = lambda new_ids: False   # asked after every new token
    seed: object = 0                                            # of this request's own random stream: a number or a string
    new_ids: list[int] = field(default_factory=list)
    ended: str = ""                                             # "stop", or "length" when max_new_tokens or the cache is full

    def __post_init__(self):
        self.random = random.Random(self.seed)


def draw(logits, temperature, top_p, u):
    """One id (N,) for each row of logits (N, V); temperature, top_p and u are lists. u in [0, 1) picks from the row's cumulative
    distribution, so that the same u draws the same id whatever the other rows are."""
    greedy = logits.argmax(-1)
    if not any(temperature):
        return greedy
    nucleus = min(top_p) < 1
    temperature, top_p, u = send(torch.tensor([temperature, top_p, u], dtype=torch.float64), logits.device)[..., None]
    p = (logits.float() / temperature.float().clamp(min=1e-6)).softmax(-1)
    if nucleus:                                                 # drop what follows the smallest set with at least top_p
        ranked, order = p.sort(dim=-1, descending=True)
        drop = (ranked.cumsum(-1) - ranked >= top_p) & (top_p < 1)
        p = p.masked_fill(torch.zeros_like(drop).scatter(-1, order, drop), 0)
    cdf = p.cumsum(-1, dtype=torch.float64)
    ids = torch.searchsorted(cdf, u * cdf[:, -1:], right=True)
    return torch.where(temperature > 0, ids, greedy[:, None])[:, 0]


def send(tensor, device):
    """To the device, without waiting for it."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class Sampler:
    """Continuous batching over the slots of one KV cache.

        sampler.add(Request(…)); …; while not sampler.idle: for request in sampler.step(): …

    A slot holds one running request, or what the last one left there: a later prompt that begins the same takes these keys and
    values over, its own slot's or a copy of another's. `prefilled` counts the prompt tokens that had to be computed."""

    def __init__(self, model, batch=32, max_length=4096):
        c, weight = model.config, model.embed_tokens.weight
        self.model, self.batch, self.max_length = model, batch, max_length
        self.cache = torch.empty(2, c.num_hidden_layers, batch, c.num_key_value_heads, max_length, c.head_dim,
                                 dtype=weight.dtype, device=weight.device)      # keys and values: (2, L, slots, G, S, D)
        self.cleared = 0                                        # what is masked must still be a number: zero up to here, or better
        self.ids = np.zeros((batch, max_length), dtype=np.int64)    # the tokens of each slot …
        self.length = np.zeros(batch, dtype=np.int64)           # … how many these are …
        self.cached = np.zeros(batch, dtype=np.int64)           # … and how many of them have their keys and values
        self.used = np.zeros(batch, dtype=np.int64)             # when the slot last ran
        self.requests = [None] * batch
        self.queue = deque()
        self.clock = self.prefilled = 0

    @property
    def idle(self):
        return not self.queue and not any(self.requests)

    def add(self, request):
        if not request.prompt:
            raise ValueError(f"request {request.key!r}: the prompt is empty; a model needs at least one token to continue")
        self.queue.append(request)

    def generate(self, prompts, max_new_tokens=64, temperature=0.0, top_p=1.0, stop_ids=(), seed=0):
        """Continues each prompt (a list of ids) until a stop id, which is the last in its list of new ids, or to max_new_tokens."""
        stop_ids = set(stop_ids)
        requests = [Request(i, prompt, max_new_tokens, temperature, top_p, lambda ids: ids[-1] in stop_ids, f"{seed}/{i}")
                    for i, prompt in enumerate(prompts)]
        for request in requests:
            self.add(request)
        while not all(request.ended for request in requests):
            self.step()
        return [request.new_ids for request in requests]

    @torch.inference_mode()
    def step(self):
        """One new token for every running request, after queued ones have taken the free slots. Returns the requests that ended."""
        ended = self._admit()
        slots = np.array([s for s in range(self.batch) if self.requests[s]], dtype=np.int64)
        if not len(slots):
            return ended
        slots = slots[np.argsort(self.length[slots] - self.cached[slots] > 1, kind="stable")]   # decoding ones first
        running = [self.requests[s] for s in slots]
        rules = zip(*((r.temperature, r.top_p, r.random.random()) for r in running))
        new = draw(self._logits(slots), *rules).tolist()        # the one wait for the device
        self.clock += 1
        self.cached[slots] = self.length[slots]
        self.used[slots] = self.clock
        for slot, request, token in zip(slots, running, new):
            request.new_ids.append(token)
            if request.stop(request.new_ids):
                request.ended = "stop"
            elif len(request.new_ids) >= request.max_new_tokens or self.length[slot] == self.max_length:
                request.ended = "length"
            if request.ended:
                self.requests[slot] = None
                ended.append(request)
            else:
                self.ids[slot, self.length[slot]] = token
                self.length[slot] += 1
        return ended

    def _common(self, prompt):
        """(slots,) how many tokens each slot's content and the prompt have in common at their beginnings."""
        differ = self.ids[:, :len(prompt)] != np.array(prompt)
        return np.minimum(np.where(differ.any(1), differ.argmax(1), len(prompt)), self.length)

    def _admit(self):
        """Gives free slots to queued requests, first to those with the longest cached beginning; returns those that cannot run."""
        free, ended, later, pending = [s for s in range(self.batch) if not self.requests[s]], [], [], 0
        window = [self.queue.popleft() for _ in range(min(len(self.queue), 2 * self.batch) if free else 0)]
        for request in [r for r in window if len(r.prompt) > self.max_length or r.max_new_tokens < 1]:
            request.ended = "length"
            ended.append(request)
        window = [r for r in window if not r.ended]
        if len(window) > 1:
            window.sort(key=lambda r: -np.minimum(self._common(r.prompt), self.cached).max())
        for request in window:
            common = self._common(request.prompt)
            ready = np.minimum(common, self.cached)             # the keys and values that are there
            if not free or pending > 4096 or common.max() - ready.max() > 16:   # another computes this beginning in this very
                later.append(request)                                           # step: take it from there in the next
                continue
            # A slot whose whole content the prompt continues, or else the one that has waited longest.
            slot = max(free, key=lambda s: (ready[s] if ready[s] == self.cached[s] else 0, -self.used[s]))
            source, n = ready.argmax(), len(request.prompt)
            kept = min(int(ready.max()), n - 1)                 # one token is left to compute
            if source != slot:
                self.cache[:, :, slot, :, :kept] = self.cache[:, :, source, :, :kept]
            self.ids[slot, :n], self.length[slot], self.cached[slot] = request.prompt, n, kept
            self.requests[slot] = request
            free.remove(slot)
            pending += n - kept
        self.prefilled += pending
        self.queue.extendleft(reversed(later))
        return ended

    def _logits(self, slots):
        """Runs the tokens of these slots that have no keys yet, all in one row, decoding slots (one token) before others; returns
        the logits (N, V) after the last token of each."""
        counts, reach = self.length[slots] - self.cached[slots], int(self.length[slots].max())
        ends = counts.cumsum()
        row = np.repeat(slots, counts)                                                  # the slot of each token …
        column = np.arange(len(row)) + np.repeat(self.length[slots] - ends, counts)     # … and its position there
        N = int((counts == 1).sum())
        prefills = [(slot, end - count, end, self.length[slot]) for slot, count, end in zip(slots[N:], counts[N:], ends[N:])]
        table = torch.from_numpy(np.stack((self.ids[row, column], row, column)))
        tokens, row, column = send(table, self.cache.device)
        if reach > self.cleared:
            self.cache[..., self.cleared:reach, :] = 0
            self.cleared = reach
        if N:
            decoding, reach = slots[:N], int(self.length[slots[:N]].max())
            lead, low, high = decoding[0], decoding.min(), decoding.max() + 1
            differ = (self.ids[decoding, :reach] != self.ids[lead, :reach]).any(0)
            shared = min(differ.argmax() if differ.any() else reach, self.cached[decoding].min()) if N > 1 else 0
            if high - low < 4 * N:                              # over a range of slots; those without a query ride along
                width, span, place = high - low, slice(low, high), row[:N] - int(low)
            else:                                               # over a copy of few scattered ones
                width, span, place = N, row[:N], torch.arange(N, device=row.device)
            hide = torch.zeros(width, 1, 1, reach, device=row.device)
            hide[place, 0, 0] = (torch.arange(reach, device=row.device) > column[:N, None]) * -1e30

        def attend(layer, q, k, v):                             # q (1, H, tokens, D); k, v (1, G, tokens, D)
            keys, values = self.cache[:, layer]
            keys[row, :, column], values[row, :, column] = k[0].transpose(0, 1), v[0].transpose(0, 1)
            out = []
            if N:                                               # one batched product for all that decode …
                queries = q.new_zeros(width, k.shape[1], q.shape[1] // k.shape[1], q.shape[-1])
                queries[place] = q[0, :, :N].transpose(0, 1).unflatten(1, queries.shape[1:3])
                y = decode_attention(queries, keys[span, :, shared:reach], values[span, :, shared:reach],
                                     keys[lead, :, :shared], values[lead, :, :shared], hide)
                out.append(y[place].flatten(1, 2).transpose(0, 1)[None])
            for slot, start, end, length in prefills:           # … the others one by one
                out.append(causal_attention(q[:, :, start:end], keys[None, slot, :, :length], values[None, slot, :, :length]))
            return torch.cat(out, dim=2)

        x = self.model.hidden(tokens[None], column[None], attend)[0]
        return self.model.lm_head(x[send(torch.from_numpy(ends - 1), x.device)])


def main():
    parser = argparse.ArgumentParser(description="Continues a text and prints the continuation as it is sampled.")
    parser.add_argument("--model", required=True, help="directory or hub id in Hugging Face format")
    parser.add_argument("--adapter", action="append", default=[], help="directory of an adapter; repeats, in order")
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--max-new-tokens", type=int, default=200)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()

    from tokenizers import Tokenizer
    from lora import load_adapter
    folder = local_folder(args.model)
    if not (folder / "tokenizer.json").exists():
        raise ValueError(f"{folder / 'tokenizer.json'}: no such file")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    model = Llama.from_pretrained(folder, getattr(torch, args.dtype), args.device)
    for adapter in args.adapter:
        load_adapter(model, adapter)
    prompt = tokenizer.encode(args.prompt).ids
    sampler = Sampler(model, batch=1, max_length=len(prompt) + args.max_new_tokens)
    request = Request("cli", prompt, args.max_new_tokens, args.temperature, args.top_p,
                      lambda ids: ids[-1] in model.config.eos_token_id, args.seed)
    sampler.add(request)
    printed = ""
    while not sampler.idle:
        sampler.step()
        text = tokenizer.decode(request.new_ids)
        if not text.endswith("\ufffd"):                         # half of a character
            print(text[len(printed):], end="", flush=True)
            printed = text
    print()


if __name__ == "__main__":
    try:
        main()
    except ValueError as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(2)
