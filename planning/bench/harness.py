"""What every measurement needs: the device, models with random weights, processes of their own, a line of the table.

Each measurement runs in a process of its own, so that its peak memory is its own. It alternates with what it is
compared with: other people's code, or our own without one of its special cases (without.py).
"""

from common import ROOT

import concurrent.futures
import importlib.util
import json
import multiprocessing
import statistics
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

from engine import decoder
from model import Config, Llama
from planning.bench.without import without

DEVICE, DTYPE = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
PEERS = all(importlib.util.find_spec(name) for name in ("transformers", "peft"))        # are they installed?


def shape(vocabulary, hidden, intermediate, layers, heads, kv_heads):
    return dict(vocab_size=vocabulary, hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers,
                num_attention_heads=heads, num_key_value_heads=kv_heads)


SMALL = shape(8192, 384, 1024, 6, 6, 2)
LARGE = shape(32000, 2048, 5632, 8, 32, 8)
LARGE_VOCABULARY = shape(128256, 1024, 2816, 4, 16, 4)
if DEVICE == "cuda":
    SMALL = shape(8192, 2048, 8192, 16, 32, 8)                      # Llama-3.2-1B with a small vocabulary
    LARGE = shape(128256, 4096, 14336, 32, 32, 8)                   # Llama-3.1-8B
    LARGE_VOCABULARY = LARGE | dict(num_hidden_layers=8)            # a quarter of its blocks
    decoder.STEPS_BEFORE_COMPILING = min(decoder.STEPS_BEFORE_COMPILING, 0)     # --without makes it -1: never


def checkpoint(folder: Path, config: dict) -> Path:
    """Writes a model with random weights in Hugging Face format, and the starter's tokenizer; returns its directory."""
    if folder.exists():
        return folder
    config = config | {"max_position_embeddings": 8192}
    torch.manual_seed(0)
    with torch.device(DEVICE):
        model = Llama(Config(**config)).to(DTYPE)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=p.shape[-1] ** -0.5) if p.ndim > 1 else torch.nn.init.ones_(p)
    torch.nn.init.normal_(model.lm_head.weight, std=3 * config["hidden_size"] ** -0.5)      # far from ties
    folder.mkdir()
    save_file(model.hf_state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    kind = "mistral" if "sliding_window" in config else "llama"
    (folder / "config.json").write_text(json.dumps(config | {
        "architectures": [f"{kind.title()}ForCausalLM"], "model_type": kind, "rms_norm_eps": 1e-6}))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((ROOT / "starter" / name).read_bytes())
    return folder


# ---- memory --------------------------------------------------------------------------------------------------------

def held(model: torch.nn.Module) -> int:
    """Bytes in memory once the model's weights and the code are loaded: on the GPU, or in this process. The peak is
    measured from here on, because loading is not part of the work."""
    for p in model.parameters():
        p.sum()                                                     # a mapped file's pages are loaded when read
    torch.optim.AdamW([torch.zeros(1)])                             # a process's first optimizer imports 70 MB of code
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")
    return torch.cuda.memory_allocated() if DEVICE == "cuda" else resident("VmRSS")


def resident(what):
    """Bytes of this process in memory, now (VmRSS) or at most (VmHWM). getrusage would report those of the process that
    started it, if they are more."""
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(what))


# ---- processes -----------------------------------------------------------------------------------------------------

def process(*disabled: str) -> concurrent.futures.Executor:
    """A new process in which some special cases are disabled; it computes what is submitted to it."""
    return concurrent.futures.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"),
                                                  initializer=without, initargs=disabled)


def alone(function: Callable, *arguments: object, disabled: tuple = ()) -> object:
    """Calls the function in a new process."""
    with process(*disabled) as one:
        return one.submit(measured, function, *arguments).result()


def measured(function, *arguments):
    """The function's result, with the most memory it held: on the GPU, or of this process."""
    result = function(*arguments)
    peak = torch.cuda.max_memory_allocated() if DEVICE == "cuda" else resident("VmHWM")
    return result | {"memory": peak} if isinstance(result, dict) else result


def against(args: Namespace, title: str, unit: str, ours: Callable, peer: Callable, same: Callable,
            *arguments: object) -> list[dict]:
    """Prints a line of the table, in a unit like "tokens/s": ours, and the peer or, with --without, ours without a
    special case, in turn. Returns the results of ours."""
    base = ("bfloat16",) if DEVICE == "cpu" and "float32" in args.dtype else ()
    rivals = {"ours": (ours, base)}
    if args.without:
        rivals[f"without {args.without}"] = ours, (*base, args.without)
    elif PEERS:
        rivals["the peer"] = peer, base
    runs = {name: [] for name in rivals}
    for _ in range(args.repeats):
        for name, (function, disabled) in rivals.items():
            runs[name].append(alone(function, *arguments, disabled=disabled))
    rates = {name: statistics.median(r["units"] / r["seconds"] for r in results) for name, results in runs.items()}
    memory = {name: max(r["memory"] for r in results) / 2 ** 30 for name, results in runs.items()}
    shown = {name: f"{rate:,.{1 if rate >= 10 else 3}f} {unit}" for name, rate in rates.items()}
    line = f"{title}: {shown['ours']}, peak memory {memory['ours']:.2f} GiB"
    for name in rivals.keys() - {"ours"}:
        line += (f"; {name} {shown[name]}, {memory[name]:.2f} GiB: {rates['ours'] / rates[name]:.2f} "
                 f"times as fast, {memory['ours'] / memory[name]:.0%} of the memory; ")
        if all("held" in r for results in runs.values() for r in results):
            more = {name: max(r["memory"] - r["held"] for r in results) / 2 ** 30 for name, results in runs.items()}
            line += (f"beyond the loaded model {more['ours']:.2f} and {more[name]:.2f} GiB, "
                     f"{more['ours'] / more[name]:.0%}; ")
        line += same(runs["ours"][0]["output"], runs[name][0]["output"])
    print(line, flush=True)
    return runs["ours"]
