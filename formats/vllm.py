"""What vLLM accepts as an adapter: its limits, and the command that serves one.

The limits are those of its releases 0.14 to 0.22. vLLM reads `r`, `lora_alpha` and `use_rslora` of
adapter_config.json, and ignores the ranks and alphas of single layers.
"""

from common.files import read_json

import shlex
from pathlib import Path

from formats.config import Config
from formats.peft_files import repeated_weights

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)                  # what --max-lora-rank may be
VOCABULARY = 258_048                                            # the largest beside adapters
WITH_LM_HEAD = ("llama", "mistral")                             # served with an adapter on lm_head by every release
MERGE = "`lora.py merge` and serve the merged model without an adapter"


def check_limits(config: Config, rank: int, folder: Path) -> None:
    """Raises ValueError if vLLM cannot serve an adapter of this rank on this model."""
    if rank > RANKS[-1]:
        raise ValueError(f"the adapters have rank {rank} together, and vLLM serves at most {RANKS[-1]}; use {MERGE}")
    if config.vocab_size > VOCABULARY:
        raise ValueError(f"{folder / 'config.json'}: the vocabulary has {config.vocab_size:,} tokens, and vLLM serves "
                         f"adapters of models with at most {VOCABULARY:,}; use {MERGE}")


def check_lm_head(folder: Path, choice: str | None) -> None:
    """Raises ValueError, explaining the choice, if the user has to say what becomes of an adapter on lm_head."""
    kind = read_json(folder / "config.json").get("model_type", "llama")
    if choice is None and kind not in WITH_LM_HEAD:
        raise ValueError(
            f"the adapter changes lm_head, which not every release of vLLM serves for a {kind} model (some stop with "
            "'expected target modules'). Choose: --lm-head keep, the same answers, if your release serves it; "
            "--lm-head leave-out, served by every release, but these are other answers, so evaluate it again; "
            f"or {MERGE}")


def reasons_to_rewrite(paths: list[str], configs: list[dict], lm_head: bool) -> list[str]:
    """Why vLLM would misread these adapters' folders, or not read them. lm_head: leave it out."""
    reasons = [f"{len(paths)} adapters become one"] if len(paths) > 1 else []
    for field in ("rank_pattern", "alpha_pattern"):
        if any(config.get(field) for config in configs):
            reasons.append(f"vLLM ignores {field}")
    if any(map(repeated_weights, paths)):
        reasons.append("vLLM reads no base weights from an adapter's file")
    return reasons + (["lm_head is left out"] if lm_head else [])


def serving(model: str, folder: Path, adapter: Path, rank: int, head: bool) -> str:
    """The command that serves an adapter, and the one that evaluates it there. head: it changes lm_head."""
    config, name = read_json(folder / "config.json"), adapter.resolve().name
    dtype, half, notes = config.get("dtype") or config.get("torch_dtype"), "", []
    if dtype == "float32":
        dtype, half = "bfloat16", " --dtype bfloat16"           # vLLM's own choice is float16, with its smaller range
        notes.append("The checkpoint is in float32, which vLLM serves in half precision.")
    notes.append(f"vLLM rounds the adapter to the model's precision ({dtype or 'its own choice'}).")
    if head and config.get("tie_word_embeddings"):
        notes.append("The embeddings are tied to lm_head: never merge this adapter with PEFT, which would change both; "
                     "`lora.py merge` does not.")
    max_rank = next(limit for limit in RANKS if limit >= rank)
    return f"""{chr(10).join(notes)}
This serves it. Without --generation-config, vLLM would sample as the model's generation_config.json says.

    vllm serve {shlex.quote(str(model))}{half} --generation-config vllm \\
        --enable-lora --max-lora-rank {max_rank} --lora-modules {shlex.quote(f"{name}={adapter}")}

This evaluates it there:

    python evaluate.py --model {shlex.quote(f"openai:{name}")} --base-url http://localhost:8000/v1 --prefill …"""
