"""Llama and its relatives Mistral, Qwen2 and Qwen3 in plain PyTorch: their checkpoints in Hugging Face format, and how tokens run through them.

    python model.py --model starter --prompt "Step 1:" --max-new-tokens 20

Everything here is about token ids: prompts, agents, tools and hints are agent.py's business. Names follow the checkpoint
format (`self_attn.q_proj`), so that weights and adapters load without renaming. Shapes: B sequences, T tokens, H query
heads, G key/value heads, D dimensions a head, C = hidden size, V words in the vocabulary.
"""

from common.command_line import Parser, number, run_stage

import math
from functools import partial

import torch
import torch.nn as nn
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch.utils.checkpoint import checkpoint

from engine.kernels import cast, causal_attention, fast_bfloat16, linear
from engine.lora_layer import load_adapter
from engine.sampler import Request, Sampler
from formats.config import SUPPORTED, Config
from formats.weights import local_folder, read_weight, weight_files


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
        self.q_proj = Linear(c.hidden_size, c.num_attention_heads * c.head_dim, bias=c.qkv_bias)
        self.k_proj = Linear(c.hidden_size, c.num_key_value_heads * c.head_dim, bias=c.qkv_bias)
        self.v_proj = Linear(c.hidden_size, c.num_key_value_heads * c.head_dim, bias=c.qkv_bias)
        self.o_proj = Linear(c.num_attention_heads * c.head_dim, c.hidden_size, bias=c.attention_bias)
        self.q_norm, self.k_norm = (RMSNorm(c.head_dim, c.rms_norm_eps) if c.qk_norm else nn.Identity() for _ in range(2))

    def project(self, x, cos, sin):
        """What attends to what: q (B, H, T, D); k, v (B, G, T, D)."""
        q, k, v = (proj(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for proj in (self.q_proj, self.k_proj, self.v_proj))
        return rotate(self.q_norm(q), cos, sin), rotate(self.k_norm(k), cos, sin), v

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
    def __init__(self, c, window):
        super().__init__()
        self.window = window                                    # how many positions a token sees, or None: all before it
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
        y = attend(*self.before(x, cos, sin), self.window)
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
        self.layers = nn.ModuleList(Block(config, window) for window in config.windows)
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
        default to 0 … T-1; `attend(layer, q, k, v, window)` defaults to causal attention over the row; a KV cache or several documents in a row bring their own."""
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
        config, shards = Config.from_json(folder / "config.json"), weight_files(folder)
        if config.tie_word_embeddings and "lm_head.weight" in shards:           # the file decides, as in transformers 5
            embedding, head = (read_weight(shards, name) for name in ("model.embed_tokens.weight", "lm_head.weight"))
            config.tie_word_embeddings = torch.equal(embedding, head)
        with torch.device("meta"):
            model = cls(config).to(dtype)
            for layer in (m for m in model.modules() if isinstance(m, Linear)):
                layer.weight = nn.Parameter(layer.weight.to(linear_dtype or dtype))
        for name in shards.keys() - model.hf_state_dict().keys() - {"lm_head.weight"}:
            if not name.endswith("rotary_emb.inv_freq"):        # which old files hold, though it follows from the config
                raise ValueError(f"{shards[name]}: {name} has no place in the model that config.json describes; {SUPPORTED}")
        if device != "meta":                                    # "meta": the weights come later, each process its part (scaling/parallel.py)
            loaded = {name.removeprefix("model."): read_weight(shards, name, weight.shape).to(device, weight.dtype)
                      for name, weight in model.hf_state_dict().items()}
            model.load_state_dict(loaded, strict=False, assign=True)
        if config.tie_word_embeddings:
            tied = model.embed_tokens.weight
            model.lm_head.weight = tied if linear_dtype in (None, dtype) else nn.Parameter(tied.to(linear_dtype))
        model.frequencies = rope_frequencies(config).to("cpu" if device == "meta" else device)
        return model.requires_grad_(False).eval()


def fastest_dtype(path, device):
    """What to sample in: bfloat16 on a GPU, and on a CPU that multiplies it natively if the checkpoint is stored in it; float32 otherwise."""
    if device == "cuda":
        return torch.bfloat16
    stored = read_weight(weight_files(local_folder(path)), "model.embed_tokens.weight", part=slice(1)).dtype
    return torch.bfloat16 if stored == torch.bfloat16 and fast_bfloat16() else torch.float32


def main():
    parser = Parser("Continues a text and prints the continuation as it is sampled.")
    parser.add_argument("--model", required=True, help="directory or hub id in Hugging Face format")
    parser.add_argument("--adapter", action="append", default=[], help="directory of an adapter; repeats, in order")
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--max-new-tokens", type=number(int, 1), default=200)
    parser.add_argument("--temperature", type=number(float, 0), default=0.0)
    parser.add_argument("--top-p", type=number(float, 0, 1), default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"],
                        help="[bfloat16 on a GPU, and on a CPU with instructions for it if the checkpoint is stored in it]")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    args = parser.parse_args()

    folder = local_folder(args.model)
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as e:                                      # the library raises nothing more special
        raise ValueError(f"{folder / 'tokenizer.json'}: not a tokenizer ({e})") from None
    dtype = getattr(torch, args.dtype) if args.dtype else fastest_dtype(folder, args.device)
    model = Llama.from_pretrained(folder, dtype, args.device)
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
