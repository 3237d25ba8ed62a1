"""Llama in plain PyTorch: the weights of any Llama-architecture checkpoint in Hugging Face format, and how tokens run through them.

    python model.py --model starter --prompt "Step 1:" --max-new-tokens 20

Everything here is about token ids: prompts, agents, tools and hints are agent.py's business. Names follow the checkpoint
format (`self_attn.q_proj`), so that weights and adapters load without renaming. Shapes: B sequences, T tokens, H query
heads, G key/value heads, D dimensions a head, C = hidden size, V words in the vocabulary.
"""

from records import Parser, mismatch, number, read_json, run_stage  # first: from here on Ctrl-C ends in one line

import math
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch.utils.checkpoint import checkpoint

from kernels import cast, causal_attention, linear
from sampler import Request, Sampler


NUMBER = (int, float)
SIZES = {"vocab_size": int, "hidden_size": int, "intermediate_size": int, "num_hidden_layers": int, "num_attention_heads": int,
         "num_key_value_heads?": int, "head_dim?": int, "max_position_embeddings?": int}
FIELDS = SIZES | {"rms_norm_eps?": NUMBER, "rope_theta?": NUMBER, "tie_word_embeddings?": bool, "attention_bias?": bool, "mlp_bias?": bool,
                  "eos_token_id?": (int, [int]), "rope_scaling?": {}, "rope_parameters?": {"rope_theta?": NUMBER}}     # of config.json
LLAMA3 = dict.fromkeys(("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"), NUMBER)


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
        def check(wrong):
            if wrong:
                raise ValueError(f"{file}, field {wrong[0]!r}: {wrong[1]}")

        c, generation = read_json(file), Path(file).with_name("generation_config.json")
        if generation.exists():
            c["eos_token_id"] = read_json(generation).get("eos_token_id") or c.get("eos_token_id")
        c = {name: value for name, value in c.items() if value is not None}
        if c.get("model_type", "llama") != "llama":
            raise ValueError(f"{file}: model_type is {c['model_type']!r}; only Llama-architecture models can be loaded")
        if c.get("hidden_act", "silu") != "silu":
            raise ValueError(f"{file}: hidden_act is {c['hidden_act']!r}; a Llama has silu")
        check(mismatch(c, FIELDS))
        check(next(((name, f"{c[name]}; it has to be from 1 to {2 ** 31}") for name in (field.rstrip("?") for field in SIZES) if not 1 <= c.get(name, 1) <= 2 ** 31), None))
        rope = c.get("rope_parameters", {})
        scaling = c.get("rope_scaling", rope)
        kind = scaling.get("rope_type", scaling.get("type", "default"))
        if kind not in ("default", "llama3"):
            raise ValueError(f"{file}: rope_scaling of type {kind!r} is not supported; default and llama3 are")
        if kind == "llama3":
            check(mismatch(scaling, LLAMA3, "rope_scaling"))
        eos = c.get("eos_token_id", [])
        c |= {"rope_theta": c.get("rope_theta", rope.get("rope_theta", 10000.0)), "rope_scaling": scaling if kind == "llama3" else None,
              "eos_token_id": eos if isinstance(eos, list) else [eos]}
        config = cls(**{name: value for name, value in c.items() if name in cls.__dataclass_fields__})
        if config.num_attention_heads % config.num_key_value_heads or config.head_dim % 2:
            raise ValueError(f"{file}: {config.num_attention_heads} query heads of {config.head_dim} for {config.num_key_value_heads} key/value heads; "
                             "there have to be as many for each, of an even size")
        return config


def rope_frequencies(config):
    """(D/2,) float32 angles per position, with Llama 3.1's scaling of the slow ones beyond the original context."""
    freq = config.rope_theta ** -(torch.arange(0, config.head_dim, 2, dtype=torch.float32, device="cpu") / config.head_dim)
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


class RMSNorm(nn.Module):
    def __init__(self, dim, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        y = x.float()
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * y.type_as(x)


class Linear(nn.Linear):
    def forward(self, x):
        return linear(x, self.weight, self.bias)


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.head_dim = c.head_dim
        self.q_proj = Linear(c.hidden_size, c.num_attention_heads * c.head_dim, bias=c.attention_bias)
        self.k_proj = Linear(c.hidden_size, c.num_key_value_heads * c.head_dim, bias=c.attention_bias)
        self.v_proj = Linear(c.hidden_size, c.num_key_value_heads * c.head_dim, bias=c.attention_bias)
        self.o_proj = Linear(c.num_attention_heads * c.head_dim, c.hidden_size, bias=c.attention_bias)

    def project(self, x, cos, sin):
        """What attends to what: q (B, H, T, D); k, v (B, G, T, D)."""
        q, k, v = (proj(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for proj in (self.q_proj, self.k_proj, self.v_proj))
        return rotate(q, cos, sin), rotate(k, cos, sin), v

    def forward(self, y):
        return self.o_proj(y.transpose(1, 2).flatten(-2))


class MLP(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.gate_proj = Linear(c.hidden_size, c.intermediate_size, bias=c.mlp_bias)
        self.up_proj = Linear(c.hidden_size, c.intermediate_size, bias=c.mlp_bias)
        self.down_proj = Linear(c.intermediate_size, c.hidden_size, bias=c.mlp_bias)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.input_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.self_attn = Attention(c)
        self.post_attention_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.mlp = MLP(c)
        self.recompute = False                                  # in the backward pass, instead of keeping what it needs in memory

    def forward(self, *args):
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(self.run, *args, use_reentrant=False)
        return self.run(*args)

    def run(self, x, cos, sin, attend, at=None):
        y = attend(*self.before(x, cos, sin))
        return self.after(x, y) if at is None else self.after(x.index_select(1, at), y.index_select(2, at))

    def before(self, x, cos, sin):                              # apart from attention, so that a compiler can have it
        return self.self_attn.project(cast(self.input_layernorm(x)), cos, sin)

    def after(self, x, y):
        x = x + self.self_attn(y)
        return x + self.mlp(cast(self.post_attention_layernorm(x)))


class Llama(nn.Module):
    """tokens (B, T) int64 → logits (B, T, V)."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        beginning = torch.empty(config.vocab_size, config.hidden_size).uniform_(-1, 1)           # normal_, without memory, would import a compiler
        self.embed_tokens = nn.Embedding.from_pretrained(beginning, freeze=False)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.embed_tokens.weight
        self.register_buffer("frequencies", rope_frequencies(config), persistent=False)

    @property
    def device(self):
        return self.embed_tokens.weight.device

    def rope(self, positions):
        """cos and sin of the angles at positions (B or 1, T), each (B or 1, 1, T, D/2)."""
        angles = (positions[..., None].float() * self.frequencies)[:, None]
        return angles.cos(), angles.sin()

    def hidden(self, tokens, positions=None, attend=None, at=None):
        """tokens (B, T) → what lm_head reads (B, T, C), or only `at` some of the T, so that the last block has less to do. `positions` (B or 1, T)
        default to 0 … T-1; `attend(layer, q, k, v)` defaults to causal attention over the row; a KV cache or several documents in a row bring their own."""
        if positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device)[None]
        x, (cos, sin) = self.embed_tokens(tokens), self.rope(positions)
        for layer, block in enumerate(self.layers):
            x = block(x, cos, sin, partial(attend, layer) if attend else causal_attention, at if block is self.layers[-1] else None)
        return self.norm(x)

    def forward(self, tokens):
        return self.lm_head(self.hidden(tokens))

    def hf_state_dict(self):
        """The weights without adapters under the checkpoint format's names; `lm_head.weight` only if it is not the embedding."""
        return {name if name.startswith("lm_head") else f"model.{name}": weight for name, weight in self.state_dict().items()
                if "lora_" not in name and not (name == "lm_head.weight" and self.config.tie_word_embeddings)}

    @classmethod
    def from_pretrained(cls, path, dtype=torch.float32, device="cpu", linear_dtype=None):
        """A checkpoint in Hugging Face format, from a directory or by its hub id, in precision `dtype`, the weights of linear layers in
        `linear_dtype`. The files are memory-mapped and the weights are built nowhere else, so on the CPU those that keep their precision
        take no memory of their own.

        Raises ValueError, naming the file and the tensor, when something is missing, broken or does not fit."""
        folder = local_folder(path)
        config = Config.from_json(folder / "config.json")
        with torch.device("meta"):
            model = cls(config).to(dtype)
            for layer in (m for m in model.modules() if isinstance(m, Linear)):
                layer.weight = nn.Parameter(layer.weight.to(linear_dtype or dtype))
        if device != "meta":                                    # "meta": the weights come later, each process its part (parallel.py)
            shards = weight_files(folder)
            loaded = {name.removeprefix("model."): read_weight(shards, name, weight.shape).to(device, weight.dtype)
                      for name, weight in model.hf_state_dict().items()}
            model.load_state_dict(loaded, strict=False, assign=True)
        if config.tie_word_embeddings:
            tied = model.embed_tokens.weight
            model.lm_head.weight = tied if linear_dtype in (None, dtype) else nn.Parameter(tied.to(linear_dtype))
        model.frequencies = rope_frequencies(config).to("cpu" if device == "meta" else device)
        return model.requires_grad_(False).eval()


def local_folder(path, weights=True):
    """`path` if it is a directory; otherwise it is a hub id, whose config, weights (if they are wanted) and tokenizer are fetched or found in the hub's cache."""
    if Path(path).is_dir():
        return Path(path)
    try:
        from huggingface_hub import snapshot_download
        # for `lora.py merge`, whatever belongs to the weights
        wanted = ["*.json", "*.jinja"] + ["*.safetensors", "*.model", "*.txt", "*.md", "LICENSE*", "NOTICE*"] * weights
        return Path(snapshot_download(str(path), allow_patterns=wanted, ignore_patterns=["*/*"]))
    except Exception as e:                                      # no such repository, no network, not a hub id at all
        raise ValueError(f"{path}: neither a directory nor a model on the hub ({str(e).splitlines()[0]})") from None


def read_weight(shards, name, shape=None, part=None):
    """A tensor of a checkpoint, or only `part` of it (a slice of its rows, or one for each dimension); `shards` is what `weight_files`
    gives, `shape` what config.json says, if it is to be checked.

    Raises ValueError, naming the file and the tensor."""
    if name not in shards:
        raise ValueError(f"{next(iter(shards.values())).parent}: no tensor {name} in the safetensors files")
    file = shards[name]
    try:
        with safe_open(file, "pt") as f:
            found = f.get_slice(name).get_shape()
            if shape and found != list(shape):
                raise ValueError(f"{file}: {name} is {found}, config.json says {list(shape)}")
            tensor = f.get_tensor(name) if part is None else f.get_slice(name)[part]
            if not tensor.is_floating_point():
                raise ValueError(f"{file}: {name} holds {tensor.dtype}; quantized checkpoints cannot be loaded")
            return tensor
    except (SafetensorError, OSError) as e:
        raise ValueError(f"{file}: {name} cannot be read ({e}); is the file there and whole?") from None


def weight_files(folder):
    """{tensor name: its safetensors file} of a checkpoint of one or several files."""
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if index.exists():
        files = read_json(index).get("weight_map")
        if wrong := mismatch(files, dict.fromkeys(files, str) if isinstance(files, dict) else {}, "weight_map"):
            raise ValueError(f"{index}, field {wrong[0]!r}: {wrong[1]}")
        return {name: folder / file for name, file in files.items()}
    try:
        with safe_open(single, "pt") as f:
            return dict.fromkeys(f.keys(), single)
    except (SafetensorError, OSError) as e:
        raise ValueError(f"{single}: cannot be read ({e}); is the file there and whole?") from None


def main():
    parser = Parser("Continues a text and prints the continuation as it is sampled.")
    parser.add_argument("--model", required=True, help="directory or hub id in Hugging Face format")
    parser.add_argument("--adapter", action="append", default=[], help="directory of an adapter; repeats, in order")
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--max-new-tokens", type=number(int, 1), default=200)
    parser.add_argument("--temperature", type=number(float, 0), default=0.0)
    parser.add_argument("--top-p", type=number(float, 0, 1), default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    args = parser.parse_args()

    from tokenizers import Tokenizer
    from lora import load_adapter
    folder = local_folder(args.model)
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as e:                                      # the library raises nothing more special
        raise ValueError(f"{folder / 'tokenizer.json'}: not a tokenizer ({e})") from None
    model = Llama.from_pretrained(folder, getattr(torch, args.dtype), args.device)
    for adapter in args.adapter:
        load_adapter(model, adapter)
    prompt = tokenizer.encode(args.prompt).ids
    if len(prompt) >= model.config.max_position_embeddings:
        raise ValueError(f"--prompt: {len(prompt)} tokens; the model sees {model.config.max_position_embeddings}")
    sampler = Sampler(model, batch=1, max_length=min(len(prompt) + args.max_new_tokens, model.config.max_position_embeddings))
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
    run_stage(main)
