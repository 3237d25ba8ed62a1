"""What a run will hold on each GPU and how long it will take, before anybody pays for it: --plan of the stages.

    python distill.py --model meta-llama/Llama-3.1-70B-Instruct --plan 8 80                 8 GPUs of 80 GiB
    python collect.py --model meta-llama/Llama-3.1-70B-Instruct --tp 4 --plan 8 80 400 3350

No formula here repeats what the code does: the code itself runs, on tensors without storage (planning/memory.py). Only
the division by FSDP2 and tensor parallelism is calculated. A plan takes seconds and needs no weights and no GPU.
"""

import argparse
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from engine.kernels import packed_attention
from engine.sampler import ADMITTED
from lora import add_adapter, without_newest
from model import Config
from planning.memory import bare, by_layers, fused_attention, size, without_storage
from training.examples import Example
from training.loss import BACKENDS, chunked_loss
from training.packing import Row, hidden_states, pack, row_limits

GIB = 2 ** 30
# A typical trajectory: tokens of hints, number of steps, and tokens shown and sampled in each step.
HINTS, STEPS, SHOWN, SAMPLED = 3000, 4, 150, 100


# ---- distill.py

class Lengths(NamedTuple):
    """A record's tokens with hints (teacher), without hints (student) and in learned actions; its number of actions."""
    teacher: int
    student: int
    learned: int
    actions: int


def example(tokens: int, learned: int, actions: int = 1) -> Example:
    """An example of `tokens` tokens, of which the last `learned` are learned."""
    return Example([0] * tokens, list(range(tokens - learned, tokens)), [0] * learned, [actions / learned] * learned)


def typical_update(batch: int) -> list[Lengths]:
    """The records of a typical update, for a plan without --data."""
    steps = STEPS * (SHOWN + SAMPLED)
    return [Lengths(HINTS + steps, steps, STEPS * SAMPLED, STEPS)] * max(1, -(-batch // STEPS))


def typical_row(limit: int) -> Row:
    """A row of at most `limit` tokens for the teacher, of typical records that share their hints."""
    steps = STEPS * (SHOWN + SAMPLED)
    records = max(1, (limit - HINTS) // steps)
    return Row([example(HINTS + steps, STEPS * SAMPLED)] * records, HINTS if records > 1 else 0)


def student_rows(lengths: list[Lengths], gpus: int, limit: int, seen: float) -> list[list[Row]]:
    """The rows of each process in an update, when the student sees this part of the hints' tokens."""
    return [pack([example(student + round(seen * (teacher - student)), learned, actions)
                  for teacher, student, learned, actions in lengths[rank::gpus]], limit)
            for rank in range(min(gpus, len(lengths)))]


def longest(rows: list[Row]) -> int:
    return max(row.length for row in rows)


def largest(updates: list[list[Lengths]], gpus: int, limit: int) -> list[Lengths]:
    """The update with the longest row if the student sees every hint; of several, the one with most tokens without."""
    return max(updates, key=lambda lengths: (max(map(longest, student_rows(lengths, gpus, limit, 1.0))),
                                             sum(n.student for n in lengths)))


def distillation(config: Config, gpus: int, args: argparse.Namespace, lengths: list[Lengths], row: Row,
                 dtype: torch.dtype = torch.bfloat16, on_gpu: bool = True) -> tuple:
    """What each of `gpus` processes holds in distill.py, in an update on records of these lengths and in the teacher's
    pass over a row.

    Returns {part: bytes} of the process that holds most, with every hint seen if that can happen; the floating-point
    operations of the teacher's pass and of an update, in the process that has most to do; and the bytes that a process
    receives in both, since FSDP2 gathers the weights for each row, forward and backward. args: rank, alpha,
    lora_dropout, targets, kl_temperature, hint_dropout, loss, row."""
    backend = replace(BACKENDS["cuda"], causal=fused_attention) if on_gpu else BACKENDS["cpu"]
    limit = row_limits(config, "cuda" if on_gpu else "cpu", gpus, args.row)[1]
    fullest = max(student_rows(lengths, gpus, limit, float(args.hint_dropout < 1)), key=longest)
    usual = student_rows(lengths, gpus, limit, 1 - args.hint_dropout)
    slowest = max(usual, key=lambda rows: sum(row.length for row in rows))

    def measure(config):
        autocast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=on_gpu, cache_enabled=False)
        with without_storage() as memory, autocast:
            model = bare(config, dtype)
            weights, blocks = size(model.parameters()), size(model.layers.parameters())
            adapter = size(add_adapter(model, args.rank, args.alpha, args.lora_dropout, args.targets))
            in_blocks = size(p for p in model.layers.parameters() if p.requires_grad)
            for block in model.layers:
                block.recompute = on_gpu or gpus > 1

            def teach():
                with torch.no_grad(), without_newest(model):
                    hidden_states(model, row, backend.causal)

            def learn(rows):
                states = [torch.empty(row.learned, config.hidden_size, dtype=dtype) for row in rows]
                for student_row, hidden in zip(rows, states, strict=True):
                    chunked_loss(model, student_row, hidden if args.loss == "kl" else None, args.kl_temperature,
                                 backend=backend)

            learning, _ = memory.above(lambda: learn(fullest))
            _, flops = memory.above(lambda: learn(slowest))
            teaching, teacher_flops = memory.above(teach) if args.loss == "kl" else (0, 0)
        return weights, blocks, adapter, in_blocks, teaching, teacher_flops, learning, flops

    weights, blocks, adapter, in_blocks, teaching, teacher_flops, learning, flops = by_layers(config, measure)
    adamw = adapter / gpus if on_gpu else 0                     # AdamW's temporaries
    parts = {"weights": weights / gpus, "adapter": adapter / gpus, "its gradients": adapter / gpus,
             "AdamW's moments": 2 * adapter / gpus,
             "activations, logits": max(teaching - adapter / gpus, learning - adapter, adamw)}
    if gpus > 1:                                                # FSDP2: the root, a block, and blocks gathered ahead
        parts["gathered"] = weights - blocks + adapter - in_blocks + 3 * (blocks + in_blocks) / config.num_hidden_layers
    rows = max(map(len, usual))
    gathered, reduced = (n * (gpus - 1) / gpus for n in (weights + adapter, adapter))
    return parts, teacher_flops, flops, gathered * (args.loss == "kl"), rows * (2 * gathered + reduced)


def print_distillation(args: argparse.Namespace, updates: list[list[Lengths]] | None = None,
                       teacher_row: Callable[[int], tuple] | None = None) -> bool:
    """What distill.py --plan prints. Returns whether it fits. updates: those of the training, of which the largest is
    planned for [typical ones, as many as in the paper's training of the 70B]. teacher_row: for a limit of tokens, the
    teacher's longest row and how many of that length there are."""
    gpus, memory, rate, bandwidth = given(args, 300)
    config, updates = config_of(args.model), updates or [typical_update(args.batch)] * 1778
    lengths = largest(updates, gpus, row_limits(config, "cuda", gpus, args.row)[1])

    def typical(limit):
        row = typical_row(limit)
        return row, len(updates) / args.epochs * len(lengths) / len(row.examples)

    def plan(gpus, **other):
        changed = argparse.Namespace(**vars(args) | other)
        row, rows = (teacher_row or typical)(row_limits(config, "cuda", gpus, changed.row)[0])
        parts, *costs = distillation(config, gpus, changed, lengths, row)
        return parts | ({"earlier adapters": earlier(args) / gpus} if args.adapter else {}), rows, *costs

    parts, rows, teacher, student, *received = plan(gpus)
    text, fits = table(parts, memory)
    print(f"{count(config) / 1e9:.3g}B parameters in bfloat16, an adapter of rank {args.rank} in float32, "
          f"{gpus} GPU{'s' * (gpus > 1)}; an update of {sum(n.actions for n in lengths)} actions in {len(lengths)} "
          f"trajectories of {max(n.teacher for n in lengths):,} tokens for the teacher, "
          f"{max(n.student for n in lengths):,} for the student\n\n{text}\n")
    rows = -(-rows // gpus)                                     # of each GPU
    costs = zip((teacher, student), received, strict=True)
    first, update = (max(flops / rate, received / bandwidth) for flops, received in costs)
    between = f" and {bandwidth / 1e9:g} GB/s between GPUs" if gpus > 1 else ""
    print(f"the teacher's pass before the first update: {rows * teacher / 1e12:,.0f} TFLOP on a GPU, "
          f"{rows * first / 3600:.2g} h; the largest update: {student / 1e12:,.1f} TFLOP, {update:.2g} s "
          f"at {rate / 1e12:g} TFLOP/s{between}; with {len(updates):,} updates in {args.epochs} "
          f"epochs at most {(rows * first + len(updates) * update) / 3600:.2g} h")
    if gpus > len(lengths):
        batch = -(-gpus * sum(n.actions for n in lengths) // len(lengths))      # a trajectory for each GPU
        print(f"{gpus - len(lengths)} of the GPUs are idle in an update: one with --batch {batch} would take about as "
              "long")
    if fits:
        print(left(parts, memory))
        return True

    def may_fit(n, **other):
        """Does it fit on n GPUs with these arguments? If what they always hold is too much, no plan is made."""
        static = parts["adapter"] + parts["its gradients"] + parts["AdamW's moments"]
        static = parts["weights"] + static * other.get("rank", args.rank) / args.rank
        return static * gpus / n < memory and table(plan(n, **other)[0], memory)[1]

    limit, longest_record = row_limits(config, "cuda", gpus, args.row)[0], max(n.teacher for n in lengths)
    numbers = [n for n in range(gpus + 1, 513) if n % 8 == 0 or n < 8]
    more = next((n for n in numbers if may_fit(n)), None) if may_fit(512) else None
    row = next((n for n in halves(limit) if n >= longest_record and may_fit(gpus, row=n)), None)
    rank = next((n for n in halves(args.rank) if n >= 4 and may_fit(gpus, rank=n)), None)
    ways = [f"on {more} such GPUs"] * bool(more) + [f"with --row {row}"] * bool(row)
    ways += [f"with --rank {rank}"] * bool(rank)
    print(advice(ways, "with shorter trajectories: no number of GPUs is enough"))
    return False


# ---- collect.py, evaluate.py

def collection(config: Config, args: argparse.Namespace, dtype: torch.dtype = torch.bfloat16,
               on_gpu: bool = True) -> tuple:
    """What each of the --tp processes of a replica holds while agents act.

    Returns {part: bytes}, the floating-point operations of a token, and the bytes that each process reads for one more
    token of each of --batch agents whose slots are half full. args: tp, batch, max_length. Raises ValueError if --tp
    does not divide the model."""
    divided = ("num_attention_heads", "num_key_value_heads", "intermediate_size")
    for name in divided:
        if getattr(config, name) % args.tp:
            raise ValueError(f"--tp {args.tp} does not divide {name}, which is {getattr(config, name)}")
    length = min(args.max_length, config.max_position_embeddings)
    prompts = min(args.batch, max(1, ADMITTED // length))       # in one pass, each of that length
    shard = replace(config, **{name: getattr(config, name) // args.tp for name in divided})

    def measure(shard):
        with without_storage() as memory:
            model = bare(shard, dtype)
            shape = 2, shard.num_hidden_layers, args.batch, shard.num_key_value_heads, length, shard.head_dim
            cache = size([torch.empty(shape, dtype=dtype)])
            attend = packed_attention([length] * prompts, **{"causal": fused_attention} if on_gpu else {})

            def run():
                with torch.no_grad():
                    x = model.hidden(torch.zeros(1, prompts * length, dtype=torch.long), attend=attend)
                    p = model.lm_head(x[0, :args.batch]).float().softmax(-1)
                    p.cumsum(-1, dtype=torch.float64)

            working, flops = memory.above(run)
            return size(model.parameters()), cache, working, flops * args.tp / (prompts * length)

    weights, cache, working, flops = by_layers(shard, measure)
    embedding = 0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size * dtype.itemsize
    parts = {"weights": weights, "KV cache": cache, "activations, logits": working}
    return parts, flops, weights - embedding + cache / 2        # only some rows of the embedding are read


def print_collection(args: argparse.Namespace) -> bool:
    """What collect.py --plan and evaluate.py --plan print, in bfloat16 or --dtype. Returns whether it fits."""
    gpus, memory, rate, bandwidth = given(args, 2500)
    if gpus % args.tp:
        raise ValueError(f"--tp {args.tp}: the number of GPUs has to be a multiple of it, but is {gpus}")
    config, dtype = config_of(args.model), args.dtype or "bfloat16"

    def plan(**other):
        parts, *costs = collection(config, argparse.Namespace(**vars(args) | other), getattr(torch, dtype))
        return parts | ({"adapters": earlier(args)} if args.adapter else {}), *costs

    parts, flops, read = plan()
    text, fits = table(parts, memory)
    replicas = gpus // args.tp
    seconds = max(read / bandwidth, args.batch * flops / args.tp / rate)
    print(f"{count(config) / 1e9:.3g}B parameters in {dtype}; {replicas} replica{'s' * (replicas > 1)} on {args.tp} "
          f"GPU{'s' * (args.tp > 1)} each, {args.batch} agents at a time of "
          f"{min(args.max_length, config.max_position_embeddings):,} tokens at most\n\n{text}\n")
    print(f"a token: {flops / 1e9:.3g} GFLOP; at most {replicas * args.batch / seconds:,.0f} new tokens/s and "
          f"{gpus * rate / flops:,.0f} prompt tokens/s at {rate / 1e12:g} TFLOP/s and {bandwidth / 1e9:g} GB/s out of "
          "the memory of each GPU")
    if fits:
        print(left(parts, memory))
        return True

    def would_fit(**other):
        return table(plan(**other)[0], memory)[1]

    heads = config.num_key_value_heads
    batch = bisect_left(range(1, args.batch), True, key=lambda n: not would_fit(batch=n))     # the largest that fits
    tp = next((n for n in range(args.tp + 1, heads + 1) if heads % n == 0 == gpus % n and would_fit(tp=n)), None)
    ways = [f"with --batch {batch}"] * bool(batch) + [f"with --tp {tp}"] * bool(tp)
    print(advice(ways, "perhaps with a shorter --max-length"))
    return False


# ---- what both use

def add_argument(parser: argparse.ArgumentParser) -> None:
    """Adds --plan to a stage's options."""
    parser.add_argument("--plan", nargs="+", type=float, metavar="N",
                        help="GPUS GIB [TFLOPS GBS]: only print what each of GPUS GPUs with GIB of memory would hold, "
                             "and how long (distill.py) or how fast the run would be if each computes at TFLOPS [400] "
                             "and moves GBS gigabytes a second [300 between GPUs, 2500 out of its memory]")


def given(args, bandwidth):
    """--plan's numbers → GPUs, bytes of memory, operations a second, bytes a second."""
    numbers = [*args.plan, *(8, 80, 400, bandwidth)[len(args.plan):]]
    valid = len(args.plan) in (2, 4) and all(0 < n < 1e9 for n in numbers)
    if not valid or numbers[0] % 1 or numbers[0] > 65536:
        raise ValueError("--plan: give GPUS GIB or GPUS GIB TFLOPS GBS, such as 8 80 or 8 80 400 300")
    return int(numbers[0]), numbers[1] * GIB, numbers[2] * 1e12, numbers[3] * 1e9


def config_of(path: str | Path) -> Config:
    """The config from a directory, a config.json or a hub id; nothing else is downloaded."""
    if Path(path).is_dir():
        path = Path(path) / "config.json"
    elif not Path(path).is_file():
        try:
            from huggingface_hub import hf_hub_download
            path = hf_hub_download(path, "config.json")
        except Exception as e:
            raise ValueError(f"{path}: neither a directory, a config.json nor a model on the hub "
                             f"({str(e).splitlines()[0]})") from None
    return Config.from_json(path)


def count(config):
    """Parameters."""
    with without_storage():
        return sum(p.numel() for p in bare(config, torch.bfloat16).parameters())


def earlier(args):
    """Bytes of the earlier adapters."""
    return sum((Path(folder) / "adapter_model.safetensors").stat().st_size for folder in args.adapter)


def table(parts: dict, memory: float) -> tuple[str, bool]:
    """The parts in Markdown, and whether they fit: a twentieth is left to CUDA itself and to fragmentation."""
    total = sum(parts.values())
    rows = [("on each GPU", "GiB"), ("---", "---:"), *((name, f"{n / GIB:.2f}") for name, n in parts.items()),
            ("together", f"{total / GIB:.2f} of {memory / GIB:g}")]
    return "\n".join(f"| {a:<22} | {b:>11} |" for a, b in rows), total < 0.95 * memory


def left(parts, memory):
    return f"it fits: {memory / GIB - sum(parts.values()) / GIB:.1f} GiB are left"


def advice(ways, otherwise):
    return f"it does NOT fit; it would {' or '.join(ways) or otherwise}"


def halves(n):
    return [n // 2 ** k for k in range(1, 10)]
