"""Records what transformers and peft compute, for tests that run without them.

    pip install torch transformers peft safetensors     transformers 5.23 (families: 5.24), peft 0.21
    python tests/recordings/make.py                     everything
    python tests/recordings/make.py families            only Llama's relatives
    python tests/recordings/make.py chats               only conversations as chat templates write them

The checkpoints are not recorded: `checkpoint` recomputes them from a formula, with numpy's frozen legacy generator.
"""

import json
import sys
import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

HERE = Path(__file__).parent
SIZE = dict(vocab_size=96, hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4)
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32}
# config.json as transformers 5 writes it (`rope_parameters`) or as older files have it
MODELS = {
    "default": SIZE | {"rope_theta": 10000.0, "torch_dtype": "float32", "max_position_embeddings": 512,
                       "rms_norm_eps": 1e-5},
    "grouped": SIZE | {"num_key_value_heads": 2, "head_dim": 20, "attention_bias": True, "mlp_bias": True,
                       "dtype": "float32", "max_position_embeddings": 512,
                       "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
    "llama3": SIZE | {"num_key_value_heads": 1, "tie_word_embeddings": True, "dtype": "float32",
                      "max_position_embeddings": 512, "rope_parameters": LLAMA3 | {"rope_theta": 10000.0}},
    "llama3-old": SIZE | {"num_key_value_heads": 2, "rope_theta": 10000.0, "rope_scaling": LLAMA3,
                          "max_position_embeddings": 512},
}
NEW = {"dtype": "float32", "max_position_embeddings": 512}
OLD = {"torch_dtype": "float32", "max_position_embeddings": 512, "rope_theta": 50000.0}
THETA = {"rope_parameters": {"rope_type": "default", "rope_theta": 50000.0}}
LAYERS_OF_BOTH_KINDS = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16,
                        "use_sliding_window": True}
FAMILIES = {                                      # their windows are shorter than ROW and than what is generated
    "mistral": SIZE | OLD | {"model_type": "mistral", "num_key_value_heads": 2, "sliding_window": 24, "head_dim": 20},
    "mistral-new": SIZE | NEW | THETA | {"model_type": "mistral", "num_key_value_heads": 1, "sliding_window": None,
                                         "tie_word_embeddings": True},
    "qwen2": SIZE | OLD | {"model_type": "qwen2", "num_key_value_heads": 2, "use_sliding_window": True,
                           "sliding_window": 16, "max_window_layers": 1, "tie_word_embeddings": True},
    "qwen2-new": SIZE | NEW | THETA | LAYERS_OF_BOTH_KINDS | {
        "model_type": "qwen2", "num_key_value_heads": 4, "head_dim": 16},
    "qwen3": SIZE | OLD | {"model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 20, "tie_word_embeddings": True,
                           "use_sliding_window": False, "sliding_window": 16, "max_window_layers": 1},
    "qwen3-new": SIZE | NEW | THETA | LAYERS_OF_BOTH_KINDS | {
        "model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 8, "attention_bias": True},
    # two contradictions: rope_parameters and the file's own output head take precedence
    "contradictory": SIZE | NEW | THETA | {"rope_theta": 100.0, "tie_word_embeddings": True, "num_key_value_heads": 2},
}
LAYERS = {"self_attn.q_proj": 0, "self_attn.k_proj": 1, "self_attn.v_proj": 1, "self_attn.o_proj": 2,
          "mlp.gate_proj": 3, "mlp.up_proj": 3, "mlp.down_proj": 4}


def random(name, *shape, scale=1.0):
    generator = np.random.RandomState(zlib.crc32(name.encode()))
    return torch.from_numpy((generator.standard_normal(shape) * scale).astype(np.float32))


def shapes(config):
    """{layer name: (out, in)} of every linear layer, in the checkpoint's names."""
    c, ff = config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"]
    d = config.get("head_dim", c // heads)
    sizes = [(heads * d, c), (config.get("num_key_value_heads", heads) * d, c), (c, heads * d), (ff, c), (c, ff)]
    layers = {f"model.layers.{i}.{layer}": sizes[kind]
              for i in range(config["num_hidden_layers"]) for layer, kind in LAYERS.items()}
    return layers | {"lm_head": (config["vocab_size"], c)}


def weights(config):
    """A checkpoint's tensors, {name: float32 tensor}."""
    tensors = {"model.embed_tokens.weight": random("embed", config["vocab_size"], config["hidden_size"], scale=0.7)}
    for name, (out, inside) in shapes(config).items():
        if name != "lm_head" or not config.get("tie_word_embeddings") or config is FAMILIES["contradictory"]:
            tensors[f"{name}.weight"] = random(name, out, inside, scale=1.4 * inside ** -0.5)
        if ("self_attn" in name and config.get("attention_bias")) or ("mlp" in name and config.get("mlp_bias")):
            tensors[f"{name}.bias"] = random(name + "bias", out, scale=0.3)
        if config.get("model_type") == "qwen2" and name[-6:] in ("q_proj", "k_proj", "v_proj"):
            tensors[f"{name}.bias"] = random(name + "bias", out, scale=0.3)
    blocks = [f"model.layers.{i}" for i in range(config["num_hidden_layers"])]
    norms = [f"{block}.{norm}_layernorm" for block in blocks for norm in ("input", "post_attention")]
    for name in norms + ["model.norm"]:
        tensors[f"{name}.weight"] = 1 + random(name, config["hidden_size"], scale=0.2)
    if config.get("model_type") == "qwen3":
        for name in (f"{block}.self_attn.{norm}_norm" for block in blocks for norm in "qk"):
            tensors[f"{name}.weight"] = 1 + random(name, config["head_dim"], scale=0.2)
    return tensors


def checkpoint(name, folder):
    """Writes the model `name` in Hugging Face format; returns its directory."""
    folder = Path(folder) / name
    folder.mkdir(parents=True, exist_ok=True)
    config = (MODELS | FAMILIES)[name]
    kind = config.get("model_type", "llama")
    architectures = [f"{kind.title()}ForCausalLM"]
    (folder / "config.json").write_text(json.dumps({"model_type": kind, "architectures": architectures, **config}))
    save_file(weights(config), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def tokens(name, length):
    return np.random.RandomState(zlib.crc32(name.encode())).randint(3, SIZE["vocab_size"], length).tolist()


PROMPTS = [tokens(f"prompt {length}", length) for length in (1, 3, 9, 30, 47)]
ROW = tokens("row", 120)


def adapter_tensors(config, rank, label):
    """{layer name: (A, B)} for all seven projections and lm_head."""
    return {name: (random(f"{label} A {name}", rank, inside, scale=inside ** -0.5),
                   random(f"{label} B {name}", out, rank, scale=0.3))
            for name, (out, inside) in shapes(config).items()}


@torch.no_grad()
def outputs(names, folder):
    """What models compute: the logits at some positions of ROW, in two precisions, and greedy continuations."""
    from transformers import AutoModelForCausalLM
    logits, greedy = {}, {}
    for name in names:
        path = checkpoint(name, folder)
        load = lambda dtype: AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation="eager").eval()
        model = load(torch.float32)
        logits[name] = model(torch.tensor([ROW])).logits[0, ::8].clone()
        logits[f"{name} bfloat16"] = load(torch.bfloat16)(torch.tensor([ROW])).logits[0, ::8].clone()
        greedy[name] = [model.generate(torch.tensor([p]), max_new_tokens=200, do_sample=False, eos_token_id=None,
                                       pad_token_id=0)[0, len(p):].tolist() for p in PROMPTS]
    return logits, greedy


def families(folder):
    logits, greedy = outputs(FAMILIES, folder)
    save_file(logits, HERE / "families.safetensors")
    (HERE / "families.json").write_text(json.dumps(greedy) + "\n")


def chats():
    """The ids of every prompt of a conversation, and of the conversation with the reply."""
    from transformers import PreTrainedTokenizerFast
    sys.path.insert(0, str(HERE.parent))
    import chat_templates
    recorded = {}
    for form, template in chat_templates.FORMS.items():
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=chat_templates.tokenizer(), chat_template=template)
        for record in chat_templates.CHATS[form]:
            messages = chat_templates.as_the_template_takes_it(record, form)
            write = lambda n, generate: tokenizer.apply_chat_template(
                messages[:n], tools=record["tools"], add_generation_prompt=generate, enable_thinking=False,
                return_dict=False)
            recorded[f"{form}, {record['id']}"] = [
                [write(n, True), write(n + 1, False)] for n, m in enumerate(messages) if m["role"] == "assistant"]
    (HERE / "chats.json").write_text(json.dumps(recorded) + "\n")


def main():
    import tempfile

    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM
    sys.path.insert(0, str(HERE.parent.parent))
    import lora

    chats()
    if sys.argv[1:] == ["chats"]:
        return
    folder = Path(tempfile.mkdtemp())
    families(folder)
    if sys.argv[1:] == ["families"]:
        return
    logits, greedy = outputs(MODELS, folder)
    patterns = dict(use_rslora=True, rank_pattern={"k_proj": 2}, alpha_pattern={"layers.1.mlp.up_proj": 7})
    with torch.no_grad():
        for name, base, settings in (("peft-plain", "default", dict(r=3, lora_alpha=6)),
                                     ("peft-patterns", "llama3", dict(r=3, lora_alpha=5, **patterns))):
            model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder / base), LoraConfig(
                target_modules=[*(layer.split(".")[-1] for layer in LAYERS), "lm_head"], **settings)).eval()
            for key, weight in model.named_parameters():
                if "lora_" in key:
                    weight.copy_(random(key, *weight.shape, scale=0.2))
            model.save_pretrained(HERE / name)                          # peft writes, we load
            (HERE / name / "README.md").unlink()
            config = HERE / name / "adapter_config.json"                # it names a folder of this machine
            config.write_text(config.read_text().replace(f"{folder}/", ""))
            logits[name] = model(torch.tensor([ROW])).logits[0, ::8].clone()
        for base in ("grouped", "llama3"):                              # we write, peft loads
            path = folder / f"ours-{base}"
            ours = adapter_tensors(MODELS[base], 3, "ours")
            tensors = {key.removeprefix("model."): pair for key, pair in ours.items()}
            lora.write_adapter(path, tensors, rank=3, alpha=6)
            model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder / base), path).eval()
            logits[f"ours-{base}"] = model(torch.tensor([ROW])).logits[0, ::8].clone()
    save_file(logits, HERE / "logits.safetensors")
    (HERE / "greedy.json").write_text(json.dumps(greedy) + "\n")


if __name__ == "__main__":
    main()
