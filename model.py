"""Llama and its relatives Mistral, Qwen2 and Qwen3 in plain PyTorch, loaded from checkpoints in Hugging Face format.

    python model.py --model starter --prompt "Step 1:" --max-new-tokens 20

Everything here is about token ids; this file knows nothing of prompts, agents, tools or hints. Names follow the
checkpoint format (`self_attn.q_proj`), so weights and adapters load without renaming. Shapes: B sequences, T tokens,
H query heads, G key/value heads, D dimensions of a head, C = hidden size, V tokens in the vocabulary.
"""

from common.command_line import Parser, number, run_stage

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch.utils.checkpoint import checkpoint

from engine.kernels import cast, causal_attention, fast_bfloat16, linear
from engine.lora_layer import load_adapter
from engine.sampler import Request, Sampler
from formats.config import SUPPORTED, Config
from formats.weights import hf_name, local_folder, read_weight, weight_files


def rope_frequencies(config: Config) -> torch.Tensor:
    """(D/2,) float32 angles per position. With Llama 3.1's scaling, those that turn slowly within the original context
    are stretched."""
    dimensions = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device="cpu")
    freq = config.rope_theta ** -(dimensions / config.head_dim)
    if config.rope_scaling:
        s = config.rope_scaling
        turns = s["original_max_position_embeddings"] * freq / (2 * math.pi)    # over the original context
        low, high = s["low_freq_factor"], s["high_freq_factor"]
        keep = ((turns - low) / (high - low)).clamp(0, 1)                       # 1: unchanged, 0: fully stretched
        freq = freq * keep + freq / s["factor"] * (1 - keep)
    return freq


def rotate(x, cos, sin):
    """Rotary embedding of x (B, H, T, D) by cos, sin (B or 1, 1, T, D/2). Dimension i pairs with i + D/2, as in the
    checkpoints."""
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).type_as(x)


class RMSNorm(nn.Module):
    """weight * x / √(mean(x²) + eps), computed in float32."""

    def __init__(self, dim, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        y = x.float()
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * y.type_as(x)


class Linear(nn.Linear):
    """x Wᵀ + bias, by the product that is fastest on this device."""

    def forward(self, x):
        return linear(x, self.weight, self.bias)


class Attention(nn.Module):
    """The projections before and after each head's softmax(q kᵀ / √D) v. H/G query heads share a key/value head.

    `attend`, an argument of `Llama.hidden`, computes the softmax: over a row's own keys and values, over a cache's, or
    over each of several documents in a row."""

    def __init__(self, c):
        super().__init__()
        self.head_dim = c.head_dim
        self.q_proj = Linear(c.hidden_size, c.num_attention_heads * c.head_dim, bias=c.qkv_bias)
        self.k_proj = Linear(c.hidden_size, c.num_key_value_heads * c.head_dim, bias=c.qkv_bias)
        self.v_proj = Linear(c.hidden_size, c.num_key_value_heads * c.head_dim, bias=c.qkv_bias)
        self.o_proj = Linear(c.num_attention_heads * c.head_dim, c.hidden_size, bias=c.attention_bias)
        self.q_norm = RMSNorm(c.head_dim, c.rms_norm_eps) if c.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(c.head_dim, c.rms_norm_eps) if c.qk_norm else nn.Identity()

    def heads(self, x):
        """(B, T, heads · D) → (B, heads, T, D)."""
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def project(self, x, cos, sin):
        """x (B, T, C) → q (B, H, T, D), k and v (B, G, T, D)."""
        q, k, v = self.heads(self.q_proj(x)), self.heads(self.k_proj(x)), self.heads(self.v_proj(x))
        return rotate(self.q_norm(q), cos, sin), rotate(self.k_norm(k), cos, sin), v

    def output(self, y: torch.Tensor) -> torch.Tensor:
        """The heads' results y (B, H, T, D) → (B, T, C)."""
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
    def __init__(self, c, window):
        super().__init__()
        self.window = window                                    # how many positions a token sees; None: no limit
        self.input_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.self_attn = Attention(c)
        self.post_attention_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.mlp = MLP(c)
        self.recompute = False                                  # see `forward`

    def forward(self, *args):
        """`compute`. While `recompute` is true, the backward pass computes the block again, so that its intermediate
        results need no memory (Chen et al., 2016)."""
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(self.compute, *args, use_reentrant=False)
        return self.compute(*args)

    def compute(self, x, cos, sin, attend, at=None):
        """x (B, T, C) → (B, T, C). If `at` (N,) is given, the result is for these positions only, (B, N, C)."""
        y = attend(*self.before(x, cos, sin), self.window)      # softmax(q kᵀ / √D) v, (B, H, T, D); q, k, v are freed
        if at is not None:
            x, y = x.index_select(1, at), y.index_select(2, at)
        return self.after(x, y)

    # The steps before and after `attend` are methods of their own, so that training can compile each of them into a
    # few kernels on a GPU. `attend` has its own kernels.

    def before(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.self_attn.project(cast(self.input_layernorm(x)), cos, sin)

    def after(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        x = x + self.self_attn.output(y)
        return x + self.mlp(cast(self.post_attention_layernorm(x)))


class Llama(nn.Module):
    """tokens (B, T) int64 → logits (B, T, V)."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        # nn.Embedding's own normal_ would import a compiler if the model is built without memory.
        embedding = torch.empty(config.vocab_size, config.hidden_size).uniform_(-1, 1)
        self.embed_tokens = nn.Embedding.from_pretrained(embedding, freeze=False)
        self.layers = nn.ModuleList(Block(config, window) for window in config.windows)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.embed_tokens.weight
        self.register_buffer("frequencies", rope_frequencies(config), persistent=False)

    @property
    def device(self) -> torch.device:
        return self.embed_tokens.weight.device

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.lm_head(self.hidden(tokens))

    def hidden(self, tokens: torch.Tensor, positions: torch.Tensor | None = None, attend: Callable | None = None,
               at: torch.Tensor | None = None) -> torch.Tensor:
        """tokens (B, T) → what lm_head reads, (B, T, C). If only some positions `at` (N,) are needed, the last block's
        o_proj and MLP compute no others → (B, N, C).

        positions (B or 1, T): the tokens' positions [0 … T-1]. attend(layer, q, k, v, window): the attention [causal
        within the row]; a KV cache, or several documents in a row, bring their own."""
        if positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device)[None]
        x, (cos, sin) = self.embed_tokens(tokens), self.rope(positions)
        for layer, block in enumerate(self.layers):
            attention = partial(attend, layer) if attend else causal_attention
            x = block(x, cos, sin, attention, at if block is self.layers[-1] else None)
        return self.norm(x)

    def rope(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin of the angles at positions (B or 1, T), each (B or 1, 1, T, D/2)."""
        angles = (positions[..., None].float() * self.frequencies)[:, None]
        return angles.cos(), angles.sin()

    def hf_state_dict(self) -> dict[str, torch.Tensor]:
        """The weights without adapters, under the checkpoint format's names. A tied lm_head is left out."""
        tied = self.config.tie_word_embeddings
        return {hf_name(name): weight for name, weight in self.state_dict().items()
                if "lora_" not in name and "frozen_" not in name and not (tied and name == "lm_head.weight")}

    @classmethod
    def from_pretrained(cls, path: str | Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu",
                        linear_dtype: torch.dtype | None = None) -> "Llama":
        """Loads a checkpoint in Hugging Face format from a directory or by its hub id, in precision `dtype`, and the
        weights of linear layers in `linear_dtype` [the same]. With device "meta" no weights are loaded; each process
        reads its part later (scaling/parallel.py).

        The files are memory-mapped, and no other weights are built first. So on the CPU, weights that keep their
        precision take no memory of their own.

        Raises ValueError, naming the file and the tensor, when something is missing or broken or does not fit."""
        folder = local_folder(path)
        config, shards = Config.from_json(folder / "config.json"), weight_files(folder)
        if config.tie_word_embeddings and "lm_head.weight" in shards:           # the file decides, as in transformers 5
            embedding, head = (read_weight(shards, name) for name in ("model.embed_tokens.weight", "lm_head.weight"))
            config.tie_word_embeddings = torch.equal(embedding, head)
        with torch.device("meta"):
            model = cls(config).to(dtype)
            for layer in (m for m in model.modules() if isinstance(m, Linear)):
                layer.weight = nn.Parameter(layer.weight.to(linear_dtype or dtype))
        for name in shards.keys() - model.hf_state_dict().keys() - {"lm_head.weight"}:
            if not name.endswith("rotary_emb.inv_freq"):        # in old files, though it follows from the config
                raise ValueError(f"{shards[name]}: {name} has no place in the model that config.json describes; "
                                 f"{SUPPORTED}")
        if device != "meta":
            weights = {name.removeprefix("model."): read_weight(shards, name, weight.shape).to(device, weight.dtype)
                       for name, weight in model.hf_state_dict().items()}
            model.load_state_dict(weights, strict=False, assign=True)
        if config.tie_word_embeddings:
            tied = model.embed_tokens.weight
            model.lm_head.weight = tied if linear_dtype in (None, dtype) else nn.Parameter(tied.to(linear_dtype))
        model.frequencies = rope_frequencies(config).to("cpu" if device == "meta" else device)
        return model.requires_grad_(False).eval()


def fastest_dtype(path: str | Path, device: str) -> torch.dtype:
    """What to sample in: bfloat16 on a GPU, and on a CPU that multiplies it natively if the checkpoint is stored in it;
    float32 otherwise."""
    if device == "cuda":
        return torch.bfloat16
    stored = read_weight(weight_files(local_folder(path)), "model.embed_tokens.weight", part=slice(1)).dtype
    return torch.bfloat16 if stored == torch.bfloat16 and fast_bfloat16() else torch.float32


def main() -> None:
    parser = Parser("Continues a text and prints the continuation as it is sampled.")
    parser.add_argument("--model", required=True, help="directory or hub id in Hugging Face format")
    parser.add_argument("--adapter", action="append", default=[],
                        help="directory of an adapter; can be repeated, in order")
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--max-new-tokens", type=number(int, 1), default=200)
    parser.add_argument("--temperature", type=number(float, 0), default=0.0)
    parser.add_argument("--top-p", type=number(float, 0, 1), default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"],
                        help="[bfloat16 on a GPU, and on a CPU with instructions for it if the checkpoint is stored "
                             "in it]")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu",
                        choices=["cpu"] + ["cuda"] * torch.cuda.is_available())
    args = parser.parse_args()

    folder = local_folder(args.model)
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as e:                                      # the library raises nothing more specific
        raise ValueError(f"{folder / 'tokenizer.json'}: not a tokenizer ({e})") from None
    dtype = getattr(torch, args.dtype) if args.dtype else fastest_dtype(folder, args.device)
    model = Llama.from_pretrained(folder, dtype, args.device)
    for adapter in args.adapter:
        load_adapter(model, adapter)
    prompt, limit = tokenizer.encode(args.prompt).ids, model.config.max_position_embeddings
    if len(prompt) >= limit:
        raise ValueError(f"--prompt: {len(prompt)} tokens; the model sees at most {limit}")
    sampler = Sampler(model, batch=1, max_length=min(len(prompt) + args.max_new_tokens, limit))
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
