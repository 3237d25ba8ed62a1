"""Adapters on disk, in PEFT's format: adapter_config.json and adapter_model.safetensors.

Only low-rank updates of linear layers are supported: y = W x + scale B A x, where scale is alpha / r, or alpha / √r for
rank-stabilized LoRA. Anything else that a file asks for is refused by name, even a field that PEFT adds later. So no
adapter loads that would compute something else here than in PEFT.
"""

from common.files import read_json, write_whole

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from formats.records import mismatch
from formats.weights import hf_name

# Fields of adapter_config.json: those we implement, and those that do not change what a trained adapter computes.
# Any other field must be at a neutral value.
COMPUTED = {"r?": int, "lora_alpha?": (int, float), "use_rslora?": (None, bool), "rank_pattern?": (None, {}),
            "alpha_pattern?": (None, {}), "target_modules?": (None, str, [str]), "exclude_modules?": (None, str, [str]),
            "layers_to_transform?": (None, int, [int]), "layers_pattern?": (None, str, [str])}
IGNORED = {"peft_type", "peft_version", "task_type", "auto_mapping", "base_model_name_or_path", "revision",
           "inference_mode", "lora_dropout", "runtime_config", "megatron_core", "qalora_group_size", "merge_weights",
           "init_lora_weights", "loftq_config", "eva_config", "corda_config", "lora_ga_config"}   # see PLAIN_INITS
NEUTRAL = (None, False, "", [], {})
PLAIN_INITS = ("gaussian", "orthogonal", "eva", "mica")         # these, true and false leave the base weights alone
CONVERTED = ("pissa", "corda", "olora", "lora_ga")              # PEFT can convert these to plain LoRA

UPDATE = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
REPEATED = re.compile(r"base_model\.model\.(?:(.+)\.base_layer|(model\.embed_tokens|lm_head))\.weight")


def write_adapter(path: str | Path, tensors: dict[str, tuple], rank: int, alpha: float, dropout: float = 0.0,
                  base_model: str = "", repeated: dict[str, torch.Tensor] | None = None) -> None:
    """Writes {layer name: (A, B)} in PEFT's format, and base weights as `repeated_weights` returns them.

    Raises ValueError if the files cannot be written."""
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(base_model), "r": rank,
              "lora_alpha": int(alpha) if alpha == int(alpha) else alpha, "lora_dropout": dropout,
              "target_modules": sorted({name.split(".")[-1] for name in tensors}), "bias": "none",
              "inference_mode": True}
    flat = {f"base_model.model.{hf_name(name)}.lora_{half}.weight": tensor.contiguous().clone()
            for name, pair in tensors.items() for half, tensor in zip("AB", pair)}
    for name, weight in (repeated or {}).items():
        layer = name.removesuffix(".weight")
        kind = "base_layer.weight" if layer.removeprefix("model.") in tensors else "weight"
        flat[f"base_model.model.{layer}.{kind}"] = weight
    write_whole({path / "adapter_config.json": json.dumps(config, indent=2) + "\n",
                 path / "adapter_model.safetensors": lambda part: save_file(flat, part, metadata={"format": "pt"})})


def check_config(config, file):
    """Raises ValueError, naming the file and the field, if adapter_config.json asks for more than low-rank updates."""
    if config.get("peft_type") != "LORA":
        raise ValueError(f"{file}: peft_type is {config.get('peft_type')!r}; only LORA adapters can be loaded")
    numbers = {"rank_pattern": int, "alpha_pattern": (int, float)}
    patterns = {f"{field}?": (None, dict.fromkeys(config[field], kind))
                for field, kind in numbers.items() if isinstance(config.get(field), dict)}
    if wrong := mismatch(config, COMPUTED | patterns):
        raise ValueError(f"{file}, field {wrong[0]!r}: {wrong[1]}")
    for field in ("rank_pattern", "alpha_pattern", "layers_pattern", "target_modules", "exclude_modules"):
        value, part = config.get(field) or [], field.endswith("pattern")        # is it put into a larger pattern?
        for pattern in [value] if isinstance(value, str) else value if part else []:
            try:
                re.compile(f"({pattern})" if part else pattern)
            except re.error as e:
                raise ValueError(f"{file}, field {field!r}: {e}") from None
    init = config.get("init_lora_weights", True)
    if not (init in NEUTRAL or init is True or str(init).lower() in PLAIN_INITS):
        way_out = "let PEFT convert it to a plain LoRA: save_pretrained(…, path_initial_model_for_weight_conversion=…)"
        raise ValueError(f"{file}: init_lora_weights is {init!r}, which " + (
            f"changes the base weights; {way_out}" if str(init).lower().startswith(CONVERTED) else
            f"is not supported, since it may change the base weights; true, false, {', '.join(PLAIN_INITS)} are"))
    for field, value in config.items():
        neutral = value in NEUTRAL or (field, value) == ("bias", "none")
        if not neutral and field not in IGNORED and f"{field}?" not in COMPUTED:
            plain = "'none'" if field == "bias" else "null or false"
            raise ValueError(f"{file}: {field} is {value!r}, which is not supported; only {plain} is")


def setting(patterns, default, module):
    """PEFT's rule for rank_pattern and alpha_pattern: the first pattern that matches the end of the module's name."""
    matching = (value for pattern, value in (patterns or {}).items() if re.match(rf"(.*\.)?({pattern})$", module))
    return next(matching, default)


def targeted(config, module):
    """Does PEFT adapt this module? It ignores tensors of the others."""
    def among(names):
        if isinstance(names, str):
            return bool(re.fullmatch(names, module))
        return any(f".{module}".endswith(f".{name}") for name in names)

    targets, excluded = config.get("target_modules"), config.get("exclude_modules")
    indices, patterns = config.get("layers_to_transform"), config.get("layers_pattern") or r"[^.]*"
    if excluded and among(excluded):
        return False
    if targets in (None, "all-linear"):
        return targets is None or module != "lm_head"
    if indices in (None, []) or isinstance(targets, str) or module in targets:
        return among(targets)
    patterns = [patterns] if isinstance(patterns, str) else patterns
    matches = (re.match(rf"(?:.*?\.)?{pattern}\.(?P<index>\d+)\.", module) for pattern in patterns)
    match = next(filter(None, matches), None)
    indices = indices if isinstance(indices, list) else [indices]
    return bool(among(targets) and match and int(match["index"]) in indices)


def read_tensors(path):
    """The tensors in an adapter's directory."""
    try:
        return load_file(Path(path) / "adapter_model.safetensors")
    except (SafetensorError, OSError) as e:
        raise ValueError(f"{path}: cannot be read as an adapter ({e}); "
                         "it needs adapter_config.json and adapter_model.safetensors") from None


def read_adapter(path: str | Path) -> tuple[dict, dict[str, tuple]]:
    """PEFT's files in the directory `path` → config, {layer name: (A (r, in), B (out, r), scale)}.

    Raises ValueError, naming the file and the field or tensor, if they hold anything but low-rank updates of linear
    layers."""
    path = Path(path)
    config_file, file = path / "adapter_config.json", path / "adapter_model.safetensors"
    config, tensors = read_json(config_file), read_tensors(path)
    check_config(config, config_file)
    adapter = {}
    for key in tensors:
        if not UPDATE.fullmatch(key) and not REPEATED.fullmatch(key):
            raise ValueError(f"{file}: {key}: not supported; only low-rank updates of linear layers are")
    for module in dict.fromkeys(match[1] for key in tensors if (match := UPDATE.fullmatch(key))):
        keys = [f"base_model.model.{module}.lora_{half}.weight" for half in "AB"]
        for key in keys:
            if key not in tensors:
                raise ValueError(f"{file}: no tensor {key}")
        A, B = (tensors[key] for key in keys)
        if A.ndim != 2 or B.ndim != 2 or not 0 < len(A) == B.shape[1]:
            raise ValueError(f"{file}: {keys[0]}: A is {list(A.shape)} and B {list(B.shape)}; "
                             "they should be [rank, in] and [out, rank]")
        rank = setting(config.get("rank_pattern"), config.get("r", 8), module)
        alpha = setting(config.get("alpha_pattern"), config.get("lora_alpha", 8), module)
        if not targeted(config, module):
            raise ValueError(f"{file}: {keys[0]}: not one of the modules that adapter_config.json names, "
                             "so PEFT would ignore it; correct target_modules or remove the tensor")
        if len(A) != rank:
            raise ValueError(f"{file}: {keys[0]} is {list(A.shape)}; adapter_config.json gives this layer rank {rank}")
        if not abs(alpha) <= torch.finfo(torch.float32).max:    # not infinite, NaN, or too large for a float
            raise ValueError(f"{config_file}, field 'lora_alpha': {alpha} is not a finite number")
        adapter[module.removeprefix("model.")] = A, B, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    if not adapter:
        raise ValueError(f"{file}: no tensor named like base_model.model.….lora_A.weight")
    return config, adapter


def repeated_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """{name in the checkpoint: weight} of the base weights that PEFT repeats in an adapter's file, e.g. lm_head."""
    matches = ((REPEATED.fullmatch(key), weight) for key, weight in read_tensors(path).items())
    return {f"{match[1] or match[2]}.weight": weight for match, weight in matches if match}


def check_repeated(path: str | Path, weight_of: Callable[[str], torch.Tensor]) -> None:
    """Raises ValueError if a base weight in the adapter's file is not the model's, weight_of(name)."""
    for name, weight in repeated_weights(path).items():
        if not equal(weight, weight_of(name)):
            raise ValueError(f"{Path(path) / 'adapter_model.safetensors'}: {name} differs from the model's: it was "
                             "trained, too, which is not supported, or the adapter is another model's")


def equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Are two weights the same, in the lower of their precisions?"""
    if a.shape != b.shape or not a.is_floating_point():
        return False
    coarse = max(a.dtype, b.dtype, key=lambda dtype: torch.finfo(dtype).eps)
    return torch.equal(a.to(b.device, coarse), b.to(coarse))
