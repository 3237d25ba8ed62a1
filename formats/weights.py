"""A checkpoint's weights: where its files are, and which tensor is in which."""

from common.files import read_json

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from formats.config import QUANTIZED
from formats.records import mismatch

INDEX = "model.safetensors.index.json"                          # of a checkpoint of several files


def local_folder(path: str | Path, weights: bool = True) -> Path:
    """`path` if it is a directory. Otherwise it is a hub id, and its config, tokenizer and (with `weights`) weights are
    downloaded or found in the hub's cache.

    Raises ValueError if there is neither."""
    if Path(path).is_dir():
        return Path(path)
    try:
        from huggingface_hub import snapshot_download  # here, as most runs need no hub
        wanted = ["*.json", "*.jinja"]
        if weights:                                             # and what `lora.py merge` copies along with them
            wanted += ["*.safetensors", "*.model", "*.txt", "*.md", "LICENSE*", "NOTICE*"]
        return Path(snapshot_download(str(path), allow_patterns=wanted,
                                      ignore_patterns=["*/*", "consolidated*"]))     # Mistral's weights once more
    except Exception as e:                                      # no such repository, no network, not a hub id at all
        reason = str(e).splitlines()[0]
        raise ValueError(f"{path}: neither a directory nor a model on the hub ({reason})") from None


def hf_name(name: str) -> str:
    """A layer's or a weight's name in the checkpoint."""
    return name if name.startswith("lm_head") else f"model.{name}"


def weight_files(folder: Path) -> dict[str, Path]:
    """{tensor name: its safetensors file} of a checkpoint of one or several files.

    Raises ValueError, naming the file, if it cannot be read."""
    index, single = folder / INDEX, folder / "model.safetensors"
    if index.exists():
        weight_map = read_json(index).get("weight_map")
        expected = dict.fromkeys(weight_map, str) if isinstance(weight_map, dict) else {}
        if wrong := mismatch(weight_map, expected, "weight_map"):
            raise ValueError(f"{index}, field {wrong[0]!r}: {wrong[1]}")
        return {name: folder / file for name, file in weight_map.items()}
    try:
        with safe_open(single, "pt") as f:
            return dict.fromkeys(f.keys(), single)
    except (SafetensorError, OSError) as e:
        raise ValueError(f"{single}: cannot be read ({e}); is the file there and whole?") from None


def read_weight(shards: dict[str, Path], name: str, shape: tuple | None = None,
                part: slice | tuple[slice, ...] | None = None) -> torch.Tensor:
    """A tensor of a checkpoint, or only `part` of it: a slice of its rows, or one slice for each dimension. `shards` is
    what `weight_files` returns. `shape` is what config.json says; None: not checked.

    Raises ValueError, naming the file and the tensor."""
    if name not in shards:
        raise ValueError(f"{next(iter(shards.values())).parent}: no tensor {name} in the safetensors files")
    file = shards[name]
    try:
        with safe_open(file, "pt") as f:
            stored = f.get_slice(name)
            if stored.get_dtype() not in ("F64", "F32", "F16", "BF16"):
                raise ValueError(f"{file}: {name} holds {stored.get_dtype()}: {QUANTIZED}")
            if shape and stored.get_shape() != list(shape):
                raise ValueError(f"{file}: {name} is {stored.get_shape()}, config.json says {list(shape)}")
            return f.get_tensor(name) if part is None else stored[part]
    except (SafetensorError, OSError) as e:
        raise ValueError(f"{file}: {name} cannot be read ({e}); is the file there and whole?") from None


def checkpoint_weight(shards: dict[str, Path], name: str) -> torch.Tensor:
    """`read_weight`; for an lm_head that is tied and therefore in no file, the embedding."""
    return read_weight(shards, "model.embed_tokens.weight" if name == "lm_head.weight" and name not in shards else name)
