"""The part of config.json that decides what a model computes, for the types of model that model.py implements.

A field that changes the mathematics is implemented or refused, never ignored. One of these rules applies to each field:
* FIELDS and ROPE are implemented.
* FIXED fields would change the mathematics. Each may only have the listed values, with which it changes nothing.
* HARMLESS fields do not matter to trained weights: token ids, dropout, initialization, storage, generation defaults,
  bookkeeping.
* Any other field may only be null, false, 0 or empty, because a switch that is off changes nothing. Otherwise it is
  refused by name.
"""

from common.files import read_json

import re
from dataclasses import dataclass, field
from pathlib import Path

from formats.records import mismatch

SUPPORTED = ("supported are dense llama, mistral, qwen2 and qwen3 models, not quantized, with silu, rotary embeddings "
             "of type default or llama3, and sliding windows")
QUANTIZED = "the checkpoint is quantized; weights have to be float32, float16 or bfloat16"
NUMBER = (int, float)
SIZES = {"vocab_size": int, "hidden_size": int, "intermediate_size": int, "num_hidden_layers": int,
         "num_attention_heads": int, "num_key_value_heads?": int, "head_dim?": int, "max_position_embeddings?": int,
         "original_max_position_embeddings?": int, "sliding_window?": int}
FIELDS = SIZES | {"model_type?": str, "rms_norm_eps?": NUMBER, "rope_theta?": NUMBER, "rope_scaling?": {},
                  "rope_parameters?": {}, "tie_word_embeddings?": bool, "attention_bias?": bool, "mlp_bias?": bool,
                  "use_sliding_window?": bool, "max_window_layers?": int, "layer_types?": [str],
                  "eos_token_id?": (int, [int])}
LLAMA3 = dict.fromkeys(("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"), NUMBER)
ROPE = {"rope_type?": str, "type?": str, "rope_theta?": NUMBER}         # and, if the type is llama3, LLAMA3
FIXED = {"hidden_act": ("silu", "swish"), "hidden_activation": ("silu", "swish"), "is_causal": (True,),
         "partial_rotary_factor": (1,), "rotary_pct": (1,), "rope_ratio": (1,), "embedding_multiplier": (1,),
         "residual_multiplier": (1,), "logits_scaling": (1,), "logit_scale": (1,), "is_encoder_decoder": (False,)}
HARMLESS = re.compile(r"""_.*|.*_token_ids?|.*dropout.*|.*_pdrop|transformers.*|unsloth.*
    |(torch_|use_b)?(dtype|float16)|architectures|initializer_range|use_cache|pretraining_tp|is_llama_config|is_decoder
    |name_or_path|tokenizer_class|attn_implementation|base_model_[tp]p_plan|gradient_checkpointing
    |chunk_size_feed_forward|neftune_noise_alpha|model_max_length|max_sequence_length|max_seq_len|finetuning_task
    |id2label|label2id|num_labels|problem_type|task_specific_params|prefix|return_dict.*|output_.*
    |keys_to_ignore_at_inference|max_length|min_length|max_new_tokens|do_sample|early_stopping|num_beams
    |num_beam_groups|num_return_sequences|temperature|top_[kp]|typical_p|diversity_penalty|repetition_penalty
    |length_penalty|(encoder_)?no_repeat_ngram_size|bad_words_ids|remove_invalid_values
    |exponential_decay_length_penalty|(begin_)?suppress_tokens""", re.VERBOSE)
QWEN = {"num_key_value_heads": 32, "sliding_window": 4096, "max_window_layers": 28, "max_position_embeddings": 32768}
DEFAULTS = {                                                            # of each type, for fields that the file omits
    "llama": {},
    "mistral": {"num_key_value_heads": 8, "sliding_window": 4096, "max_position_embeddings": 131072},
    "qwen2": QWEN,
    "qwen3": QWEN | {"head_dim": 128}}


@dataclass
class Config:
    """What a model computes. The names are config.json's, except `qkv_bias` and `qk_norm`, which follow from the
    model's type."""
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
    attention_bias: bool = False              # on q_proj, k_proj, v_proj and o_proj
    qkv_bias: bool = False                    # on the first three only, as in Qwen2
    mlp_bias: bool = False
    qk_norm: bool = False                     # RMSNorm over each head's queries and keys, as in Qwen3
    sliding_window: int | None = None         # how many positions a token sees in such layers, its own included
    layer_types: list[str] = field(default_factory=list)      # full_attention or sliding_attention; []: all full
    eos_token_id: list[int] = field(default_factory=list)

    def __post_init__(self):
        self.num_key_value_heads = self.num_key_value_heads or self.num_attention_heads
        self.head_dim = self.head_dim or self.hidden_size // self.num_attention_heads
        self.qkv_bias |= self.attention_bias
        self.layer_types = self.layer_types or ["full_attention"] * self.num_hidden_layers

    @property
    def windows(self) -> list[int | None]:
        """The sliding window of each layer, None where attention is full."""
        return [self.sliding_window if kind == "sliding_attention" else None for kind in self.layer_types]

    @classmethod
    def from_json(cls, file: str | Path) -> "Config":
        """Reads config.json as older hub files write it (`rope_theta`, `rope_scaling`) and as transformers 5 does
        (`rope_parameters`).

        Raises ValueError, naming the file and the field, if the model it describes is not supported."""
        def check(wrong, supported=""):
            if wrong:
                raise ValueError(f"{file}, field {wrong[0]!r}: {wrong[1]}{supported}")

        c, generation = read_json(file), Path(file).with_name("generation_config.json")
        if generation.exists():
            c["eos_token_id"] = read_json(generation).get("eos_token_id") or c.get("eos_token_id")
        kind = c.get("model_type", "llama")
        check(kind not in DEFAULTS and ("model_type", f"{kind!r}"), f"; {SUPPORTED}")
        check(next(((name, QUANTIZED) for name in c
                    if c[name] and re.match("quantization|compression_config", name)), None))
        c = {name: value for name, value in (DEFAULTS[kind] | c).items() if value is not None}
        check(unsupported(c, FIELDS), f"; {SUPPORTED}")
        check(mismatch(c, FIELDS))
        check(next(((name, f"{c[name]}; it has to be from 1 to {2 ** 31}")
                    for name in (size.rstrip("?") for size in SIZES) if not 1 <= c.get(name, 1) <= 2 ** 31), None))
        eos = c.get("eos_token_id", [])
        c |= {"eos_token_id": eos if isinstance(eos, list) else [eos], "layer_types": layer_types(c, kind, check)}
        c |= rope(c, check)
        # Biases that a type does not have are off, whatever the file says; from_pretrained refuses their tensors.
        c |= {"qk_norm": kind == "qwen3", "qkv_bias": kind == "qwen2",
              "attention_bias": kind in ("llama", "qwen3") and c.get("attention_bias", False),
              "mlp_bias": kind == "llama" and c.get("mlp_bias", False)}
        config = cls(**{name: value for name, value in c.items() if name in cls.__dataclass_fields__})
        if config.num_attention_heads % config.num_key_value_heads or config.head_dim % 2:
            raise ValueError(f"{file}: {config.num_attention_heads} query heads of {config.head_dim} for "
                             f"{config.num_key_value_heads} key/value heads; the number of key/value heads has "
                             "to divide that of query heads, and a head's size has to be even")
        return config


def unsupported(c, fields, where=""):
    """(field, what is wrong with it) of the first field that is neither implemented nor harmless, or None."""
    known = {name.rstrip("?") for name in fields}
    for name, value in c.items():
        if name in FIXED and value not in FIXED[name]:
            return where + name, f"{value!r} is not supported"
        if value and name not in known and name not in FIXED and not HARMLESS.fullmatch(name):
            return where + name, (f"{str(value)[:40]} is not known here and may change what the model computes; "
                                  "if it does not, remove it")
    return None


def rope(c, check):
    """config.json's fields → {"rope_theta", "rope_scaling"}. As in transformers, a field inside `rope_scaling` or
    `rope_parameters` overrides the same field outside it, except for the original context's length."""
    where = "rope_scaling" if c.get("rope_scaling") else "rope_parameters"
    inner = {name: value for name, value in c.get(where, {}).items() if value is not None}
    check(mismatch(inner, ROPE, where))
    kind = inner.get("rope_type", inner.get("type", "default"))
    check(kind not in ("default", "llama3") and (where, f"type {kind!r} is not supported"), f"; {SUPPORTED}")
    check(unsupported(inner, ROPE | LLAMA3 if kind == "llama3" else ROPE, f"{where}."), f"; {SUPPORTED}")
    theta = inner.get("rope_theta", c.get("rope_theta", 10000.0))
    if kind == "default":
        return {"rope_theta": theta, "rope_scaling": None}
    length = inner.get("original_max_position_embeddings", c.get("max_position_embeddings"))
    inner |= {"original_max_position_embeddings": c.get("original_max_position_embeddings", length)}
    check(mismatch(inner, LLAMA3, where))
    return {"rope_theta": theta, "rope_scaling": inner}


def layer_types(c, kind, check):
    """The type of each layer. With a sliding window, all layers of Mistral have it, and of Qwen those from
    `max_window_layers` on, or those that a list names. A file that contradicts itself is refused, because
    other programs read it differently."""
    n, listed = c["num_hidden_layers"], c.get("layer_types")
    window, used = "sliding_window" in c, c.get("use_sliding_window", kind == "mistral")
    if kind == "llama":
        check(window and c.get("use_sliding_window") is not False and ("sliding_window", "a llama has none"))
    if kind == "mistral":
        check(window and not used and
              ("use_sliding_window", "false, but a mistral always uses its sliding_window"))
    types = ["full_attention"] * n
    if kind != "llama" and used and window:
        first = c.get("max_window_layers", 0) if kind.startswith("qwen") else 0
        types = types[:first] + ["sliding_attention"] * (n - first)
    if listed:
        check(len(listed) != n and ("layer_types", f"{len(listed)} for {n} layers"))
        other = next((t for t in listed if t not in ("full_attention", "sliding_attention")), None)
        check(other and ("layer_types", f"{other!r} is not supported"), f"; {SUPPORTED}")
        any_order = kind.startswith("qwen") and used and window
        check(not any_order and listed != types and ("layer_types", "contradicts the fields about the sliding window"))
    return listed or types
