"""Low-rank adapters on a language model, in PEFT's format: add one, stack several, save, load, export.

    python lora.py stack runs/demo/round1 runs/demo/round2 --out runs/demo/stacked     their exact sum as one adapter
    python lora.py merge --model M --adapter runs/demo/round1 --adapter runs/demo/round2 --out DIR      into the weights
    python lora.py export --for vllm --model M --adapter runs/demo/round1 --adapter runs/demo/round2 --out DIR

Every adapted layer computes y = W x + Σ_i scale_i B_i A_i x (engine/lora_layer.py). Training never changes W; adapters
are float32. All loaded adapters are frozen and act as one, their ranks side by side, or `fold` adds them to a float32
W. At most one more, the newest, is trained.
"""

from common.command_line import Parser, number, run_stage
from common.files import read_json, refuse_overwriting, write_whole

import json
import math
import shutil
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.torch import save_file

from engine.lora_layer import adapted, adapter_device, frozen, layers, load_adapter, noise
from formats.config import Config
from formats.model_card import write_card
from formats.peft_files import check_repeated, equal, read_adapter, repeated_weights, write_adapter
from formats.vllm import MERGE, RANKS, check_limits, check_lm_head, reasons_to_rewrite, serving
from formats.weights import INDEX, checkpoint_weight, hf_name, local_folder, read_weight, weight_files
from model import Llama

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head")
WEIGHTS = (".safetensors", ".index.json", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".part")


# ---- a model's adapters --------------------------------------------------------------------------------------------

def add_adapter(model: nn.Module, rank: int, alpha: float, dropout: float = 0.0,
                targets: Iterable[str] = TARGETS) -> list[nn.Parameter]:
    """Adds a trainable adapter and freezes the earlier ones. Returns the new adapter's parameters.

    A is Kaiming-uniform and B zero, so the adapter changes nothing until it is trained. The adapted layers are put
    into training mode. Dropout acts only where gradients are computed, so the teacher's pass under no_grad has none."""
    unknown = set(targets) - set(TARGETS)
    if unknown:
        raise ValueError(f"adapter targets {', '.join(sorted(unknown))}: unknown; there are {', '.join(TARGETS)}")
    model.requires_grad_(False)
    count = frozen(model)
    for layer in layers(model).values():
        if layer.lora_A is not None:
            layer.freeze(layer.lora_A, layer.lora_B, layer.scale, count)
            layer.lora_A = layer.lora_B = None
    linears = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    for name in (name for name in linears if name.split(".")[-1] in targets):
        layer = adapted(model, name)
        A = torch.empty(rank, layer.in_features, dtype=torch.float32, device=adapter_device(layer))
        nn.init.kaiming_uniform_(A, a=math.sqrt(5))
        layer.lora_A = nn.Parameter(A)
        layer.lora_B = nn.Parameter(A.new_zeros(layer.out_features, rank))
        layer.scale, layer.dropout = alpha / rank, dropout
        layer.train()
    return trainable(model)


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """The newest adapter's parameters, in a fixed order."""
    return [p for layer in layers(model).values() if layer.lora_A is not None for p in (layer.lora_A, layer.lora_B)]


@contextmanager
def without_newest(model: nn.Module, first: float = math.inf) -> Iterator[None]:
    """Inside, the newest adapter does not act, and of the frozen ones only the `first`: the model is a teacher of the
    newest."""
    adapted_layers = layers(model).values()
    try:
        for layer in adapted_layers:
            rank = bisect_left(layer.numbers, first)
            layer.use_newest, layer.frozen_rank = False, rank if rank < len(layer.numbers) else None
        yield
    finally:
        for layer in adapted_layers:
            layer.use_newest, layer.frozen_rank = True, None


def fold(model: nn.Module) -> None:
    """Adds the frozen adapters to float32 weights for good; the sum is as exact as separate products. Weights of lower
    precision stay as they are. A weight mapped from a file becomes a copy in memory.

    A step of SmolLM2-135M with a rank-128 adapter was 1.5 times as fast for 16 agents (two AVX-512 cores, 79f91cd)."""
    for layer in layers(model).values():
        if layer.frozen_A is not None and layer.weight.dtype == torch.float32 and not layer.weight.is_meta:
            weight = torch.addmm(layer.weight, layer.frozen_B, layer.frozen_A)
            layer.weight = nn.Parameter(weight, requires_grad=False)
            layer.frozen_A = layer.frozen_B = None
            layer.numbers = []


def seed_dropout(model: nn.Module, seed: int, tokens: torch.Tensor, head_tokens: torch.Tensor) -> None:
    """Makes dropout in the next passes depend only on `seed` and on the tokens' random numbers (`noise`), not on the
    process or on which documents share the row. `tokens` (T,) are the row's numbers. `head_tokens` (N,) are those of
    the tokens that lm_head reads; after its attention the last block computes only these."""
    generator, last = torch.Generator().manual_seed(seed), len(model.layers) - 1
    tokens, head_tokens = tokens.to(model.device), head_tokens.to(model.device)
    at_some = ("lm_head", f"layers.{last}.mlp.", f"layers.{last}.self_attn.o_proj")
    for name, layer in layers(model).items():
        numbers = head_tokens if name.startswith(at_some) else tokens, noise(layer.in_features, generator=generator)
        layer.noise = tuple(x.to(adapter_device(layer)) for x in numbers)


# ---- on disk --------------------------------------------------------------------------------------------------------

def save_adapter(model: nn.Module, path: str | Path, base_model: str = "", write: bool = True) -> None:
    """Writes the newest adapter to the directory `path`. The weights appear last and mark the end. If processes
    share the model, all of them must call this, and one of them with `write`.

    Raises ValueError if there is no trainable adapter or if the files cannot be written."""
    tensors, alpha, rank = {}, 0, 0
    for name, layer in layers(model).items():
        if layer.lora_A is not None:
            pair = [p.detach() for p in (layer.lora_A, layer.lora_B)]
            pair = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in pair]
            tensors[name] = tuple(p.cpu() if write else p.shape for p in pair)
            rank = len(layer.lora_A)
            alpha, dropout = layer.scale * rank, layer.dropout
    if not tensors:
        raise ValueError(f"{path}: this model has no trainable adapter to save")
    if write:
        write_adapter(path, tensors, rank, alpha, dropout, base_model)


# ---- several adapters as one ---------------------------------------------------------------------------------------

def stack(paths: Sequence[str | Path], out: str | Path, weight: float = 1.0, without: Sequence[str] = (),
          base_weights: bool = True, card: bool = True) -> None:
    """Writes one adapter that computes exactly the sum of several, each times `weight`. Their ranks stand side by side.
    If their scales differ, these are folded into B; ranks that differ between layers are filled up with zeros. without:
    layers that are left out. base_weights: keep those that PEFT repeats in the files. card: also write a model card and
    print what was made.

    Raises ValueError if an adapter is not supported, or if their shapes differ."""
    refuse_overwriting(out, paths)
    loaded = [read_adapter(path) for path in paths]
    names = [name for name in dict.fromkeys(name for _, adapter in loaded for name in adapter) if name not in without]
    scales = {scale for _, adapter in loaded for _, _, scale in adapter.values()}
    shared = scales.pop() if len(scales) == 1 else None
    ranks = [max(len(A) for A, _, _ in adapter.values()) for _, adapter in loaded]
    tensors, repeated = {}, {}
    for path in paths if base_weights else ():                  # loading the stack checks them
        own = repeated_weights(path)
        check_repeated(path, lambda name: repeated.get(name, own[name]))
        repeated = own | repeated
    for name in names:
        first, (A, B, _) = next((path, adapter[name]) for path, (_, adapter) in zip(paths, loaded) if name in adapter)
        shape = B.shape[0], A.shape[1]
        parts = []
        for path, (_, adapter), rank in zip(paths, loaded, ranks):
            A, B, scale = adapter.get(name, (torch.zeros(0, shape[1]), torch.zeros(shape[0], 0), 1.0))
            if (B.shape[0], A.shape[1]) != shape:
                file = Path(path) / "adapter_model.safetensors"
                raise ValueError(f"{file}: {hf_name(name)} is {B.shape[0]} × {A.shape[1]}, "
                                 f"in {first} it is {shape[0]} × {shape[1]}: these adapters are of different models")
            A, B = A.float(), B.float() * (1 if shared else scale)
            parts.append((F.pad(A, (0, 0, 0, rank - len(A))), F.pad(B, (0, rank - B.shape[1]))))
        tensors[name] = torch.cat([A for A, _ in parts]), torch.cat([B for _, B in parts], dim=1)
    rank = sum(ranks)
    base_model = loaded[0][0].get("base_model_name_or_path", "")
    write_adapter(out, tensors, rank, weight * (shared or 1) * rank, base_model=base_model, repeated=repeated)
    if not card:
        return
    text = f"The exact sum of {len(paths)} adapters as one" if len(paths) > 1 else "The same adapter in another form"
    but = f", but without {', '.join(without)}" if without else ""
    write_card(out, base_model, f"{text}{but}.", {"adapters": paths, "weight": weight})
    print(f"{out}: one adapter of rank {rank} on {len(tensors)} layers")
    if rank > RANKS[-1]:
        print(f"rank {rank} is more than vLLM serves (max_lora_rank is at most {RANKS[-1]}); use {MERGE}")


def export(model_path, paths, out=None, lm_head=None):
    """Makes adapters servable by vLLM, in the directory `out` if a folder has to be written, and prints the command.
    lm_head: "keep" its adapter or "leave-out".

    Raises ValueError if vLLM cannot serve them, if the user has to choose, or if they are another model's."""
    folder = local_folder(model_path)
    model = Llama.from_pretrained(folder, device="meta")
    for path in paths:
        load_adapter(model, path, folder)
    loaded = [read_adapter(path) for path in paths]
    head = any("lm_head" in adapter for _, adapter in loaded)
    if head:
        check_lm_head(folder, lm_head)
    without = ("lm_head",) if head and lm_head == "leave-out" else ()
    rank = sum(max(len(A) for A, _, _ in adapter.values()) for _, adapter in loaded)
    check_limits(model.config, rank, folder)
    reasons = reasons_to_rewrite(paths, [config for config, _ in loaded], bool(without))
    if reasons and not out:
        raise ValueError(f"give --out, because a folder has to be written: {', '.join(reasons)}")
    if reasons:
        stack(paths, out, without=without, base_weights=False)
    print(", ".join(reasons) if reasons else f"{paths[0]}: vLLM serves it as it is")
    print(serving(model_path, folder, Path(out if reasons else paths[0]), rank, head and not without))


def merge(model_path, paths, out):
    """Writes a checkpoint with the adapters added to its weights. Each sum is computed in float32 and rounded once, to
    the checkpoint's own precision; the share of the update that rounding loses is printed. Other files in the folder
    are copied.

    Raises ValueError if the checkpoint is not supported (a quantized one is not), or if an adapter is another
    model's."""
    folder, out = local_folder(model_path), Path(out)
    refuse_overwriting(out, [folder, *paths])
    loaded = [read_adapter(path)[1] for path in paths]
    config, shards = read_json(folder / "config.json"), weight_files(folder)
    if config.get("quantization_config") or config.get("compression_config"):
        raise ValueError(f"{folder / 'config.json'}: the checkpoint is quantized, so nothing can be added to its "
                         "weights; merge into the original one")
    tied = Config.from_json(folder / "config.json").tie_word_embeddings
    for path in paths:
        check_repeated(path, lambda name: checkpoint_weight(shards, name))
    update = {f"{hf_name(name)}.weight": [] for adapter in loaded for name in adapter}
    for path, adapter in zip(paths, loaded):
        for name, (A, B, scale) in adapter.items():
            update[f"{hf_name(name)}.weight"].append((path, A, B, scale))
    head, embedding = "lm_head.weight", "model.embed_tokens.weight"
    sources = {name: name for name in shards}                       # {tensor to write: tensor to read}
    own_head = tied and head in shards and not equal(read_weight(shards, head), read_weight(shards, embedding))
    if own_head or tied and head in update:
        config["tie_word_embeddings"] = False                       # the head differs from the embedding from now on
        if head not in shards:
            sources[head], shards[head] = embedding, shards[embedding]
    missing = [name for name in update if name not in shards]
    if missing:
        raise ValueError(f"{folder}: no tensor {missing[0]}, which {update[missing[0]][0][0]} adapts; "
                         "it is another model's adapter")
    others = {name for file in out.glob("*.safetensors*") if not (name := file.name).endswith(".part")}
    others -= {file.name for file in shards.values()} | {INDEX}
    if others or (out / INDEX).exists() > (folder / INDEX).exists():
        raise ValueError(f"{out}: there are other weights already ({min(others, default=INDEX)}); give another --out")
    out.mkdir(parents=True, exist_ok=True)
    asked, lost, precision = 0.0, 0.0, None                     # squared norms of the update and of the rounding error

    def merged(name):
        """The tensor `name` with the adapters added."""
        nonlocal asked, lost, precision
        weight = read_weight(shards, sources[name])
        if weight.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise ValueError(f"{shards[name]}: {name} holds {weight.dtype}; merge adds to float32, bfloat16 and "
                             "float16 weights only")
        if name not in update:
            return weight
        delta = torch.zeros(weight.shape)
        for path, A, B, scale in update[name]:
            if (B.shape[0], A.shape[1]) != weight.shape:
                raise ValueError(f"{path}: {name}: the adapter is {B.shape[0]} × {A.shape[1]}, "
                                 f"the weight {list(weight.shape)}; it is another model's adapter")
            delta += scale * (B.float() @ A.float())
        exact = weight.float() + delta
        rounded, precision = exact.to(weight.dtype), weight.dtype
        asked += delta.double().pow(2).sum().item()
        lost += (rounded.float() - exact).double().pow(2).sum().item()
        return rounded

    def files():
        """Yields the files one after the other, so that only one shard is in memory."""
        for file in sorted(set(shards.values())):
            tensors = {name: merged(name) for name, held_in in shards.items() if held_in == file}
            yield out / file.name, lambda part: save_file(tensors, part, metadata={"format": "pt"})
        if (folder / INDEX).exists():
            index = {"metadata": {}, "weight_map": {name: file.name for name, file in shards.items()}}
            yield out / INDEX, json.dumps(index, indent=2) + "\n"
        yield out / "config.json", json.dumps(config, indent=2) + "\n"
        for file in sorted(folder.iterdir()):
            other = not file.name.startswith((".", "adapter_", "config.json")) and not file.name.endswith(WEIGHTS)
            if file.is_file() and other:
                yield out / file.name, lambda part: shutil.copy(file, part)

    write_whole(files())
    print(f"{out}: {len(update)} weights changed; rounding to {str(precision).removeprefix('torch.')} lost "
          f"{math.sqrt(lost / asked) if asked else 0:.2%} of the update (norm of the error over norm of the update)")


def main():
    parser = Parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("stack", help="several adapters as one exact PEFT adapter")
    command.add_argument("adapters", nargs="+", metavar="ADAPTER")
    command.add_argument("--weight", type=number(float, 0), default=1.0,
                         help="factor on each adapter: 0.5 makes the mean of two")
    command.add_argument("--out", required=True)
    command = commands.add_parser("merge", help="add adapters to a copy of the weights")
    command.add_argument("--model", required=True)
    command.add_argument("--adapter", action="append", required=True,
                         help="directory of an adapter; can be repeated, in order")
    command.add_argument("--out", required=True)
    command = commands.add_parser("export", help="check adapters against a server's limits, and print its command")
    command.add_argument("--for", dest="server", choices=("vllm",), required=True)
    command.add_argument("--model", required=True)
    command.add_argument("--adapter", action="append", required=True,
                         help="directory of an adapter; can be repeated, in order")
    command.add_argument("--lm-head", choices=("keep", "leave-out"),
                         help="what becomes of an adapter on lm_head, where the server may not support it")
    command.add_argument("--out", help="directory for the adapter, if one has to be written")
    args = parser.parse_args()
    if args.command != "merge" and args.out and (Path(args.out) / "arguments.json").exists():
        raise ValueError(f"{args.out}: distill.py has written an adapter there; give another --out")
    if args.command == "stack":
        stack(args.adapters, args.out, args.weight)
    elif args.command == "export":
        export(args.model, args.adapter, args.out, args.lm_head)
    else:
        merge(args.model, args.adapter, args.out)


if __name__ == "__main__":
    run_stage(main)
