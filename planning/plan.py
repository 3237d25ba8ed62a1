"""What a run will hold on each GPU and how long it will take, before anybody pays for it: --plan of distill.py and collect.py.

    python distill.py --model meta-llama/Llama-3.1-70B-Instruct --plan 8 80                 8 GPUs of 80 GiB
    python collect.py --model meta-llama/Llama-3.1-70B-Instruct --tp 4 --plan 8 80 400 3350

No formula here repeats what the code does: the code itself runs, on tensors without storage, and what would be in memory is added up,
storage by storage, and so are the operations. Computed is only how FSDP2 and tensor parallelism divide it. Some seconds, no weights,
no GPU.
"""

import argparse
import weakref
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from engine import kernels
from lora import add_adapter, adapters
from model import Config, Llama
from engine.sampler import ADMITTED

GIB = 2 ** 30
FLASH, BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention, torch.ops.aten._scaled_dot_product_flash_attention_backward
FLOPS = flop_registry | {torch.ops.aten.addmm_: flop_registry[torch.ops.aten.addmm],
                         FLASH: lambda q, k, *_, **__: 4 * q.numel() * k.shape[2],         # older PyTorch's own formula refuses fewer key heads than query heads
                         BACKWARD: lambda gradient, q, k, *_, **__: 10 * q.numel() * k.shape[2]}
HINTS, STEPS, SHOWN, SAMPLED = 3000, 4, 150, 100       # a trajectory's tokens, if there is none yet: hints; of each step what is shown and what is sampled


class Memory(TorchDispatchMode):
    """Adds up the bytes of all storages that are alive, remembers the most that there were, and counts floating-point operations."""

    def __init__(self):
        super().__init__()
        self.sizes, self.live, self.peak, self.flops = {}, 0, 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if count := FLOPS.get(function.overloadpacket):
            self.flops += count(*args, **(kwargs or {}), out_val=result)
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and (key := (storage := tensor.untyped_storage())._cdata) not in self.sizes:
                self.sizes[key] = storage.nbytes()
                self.live += storage.nbytes()
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self.gone, key)
        return result

    def gone(self, key):
        self.live -= self.sizes.pop(key)

    def above(self, work):
        """Bytes that `work` needs at most beyond what is there already, and its floating-point operations."""
        before, self.flops = self.live, 0
        self.peak = before
        work()
        return self.peak - before, self.flops


@contextmanager
def without_storage(gpus):
    """Inside, tensors have shapes only; with `gpus`, attention is the fused kernel that a GPU would run, and as many logits as there are in memory."""
    import distill
    kept = kernels.causal_attention, distill.CHUNK, distill.CACHED
    if gpus:
        kernels.causal_attention, distill.CHUNK, distill.CACHED = fused_attention, {"cpu": distill.CHUNK["cuda"]}, {"cpu": distill.CACHED["cuda"]}
    try:
        with FakeTensorMode(), Memory() as memory:
            yield memory
    finally:
        kernels.causal_attention, distill.CHUNK, distill.CACHED = kept


def fused_attention(q, k, v, window=None, mask=None):
    if window and k.shape[2] > window:
        return kernels.windowed_attention(q, k, v, window)
    return FLASH(q, k, v, 0.0, True)[0]


def bare(config, dtype):
    """A frozen model of that precision."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return Llama(config).requires_grad_(False)
    finally:
        torch.set_default_dtype(before)


def size(parameters):
    return sum(p.numel() * p.element_size() for p in parameters)


def earlier(args):
    """Bytes of the adapters that are there already."""
    return sum((Path(folder) / "adapter_model.safetensors").stat().st_size for folder in args.adapter)


def config_of(path):
    """Of a directory, a config.json, or a hub id, of which nothing else is fetched."""
    if Path(path).is_dir():
        path = Path(path) / "config.json"
    elif not Path(path).is_file():
        try:
            from huggingface_hub import hf_hub_download
            path = hf_hub_download(path, "config.json")
        except Exception as e:
            raise ValueError(f"{path}: neither a directory, a config.json nor a model on the hub ({str(e).splitlines()[0]})") from None
    return Config.from_json(path)


def by_layers(config, measure):
    """measure(config) → a tuple of numbers. All blocks but the last are alike, or of two kinds if some have a sliding window: what three
    need, and what one more of each kind adds, tells what any more need."""
    if config.num_hidden_layers < 4:
        return measure(config)
    counts = Counter(config.layer_types)
    first = [min(counts)] * 3                                          # full attention, if there is any
    alike = lambda types: measure(replace(config, num_hidden_layers=len(types), layer_types=types))
    three = needed = alike(first)
    for kind, n in counts.items():
        more = n - first.count(kind)
        needed = [a + (c - b) * more for a, b, c in zip(needed, three, alike([*first, kind]))]
    return needed


# ---------------------------------------------------------------------------------------------------- distill.py

def stand_ins(batch):
    """An update's records before there are any → [(teacher's tokens, student's tokens, action tokens, actions)]."""
    return [(HINTS + STEPS * (SHOWN + SAMPLED), STEPS * (SHOWN + SAMPLED), STEPS * SAMPLED, STEPS)] * max(1, -(-batch // STEPS))


def stand_in_row(most):
    """A row of at most so many tokens for the teacher, of such records, all with the same hints → (tokens that all begin with, [(tokens, action tokens)])."""
    records = max(1, (most - HINTS) // (STEPS * (SHOWN + SAMPLED)))
    return HINTS * (records > 1), [(HINTS + STEPS * (SHOWN + SAMPLED), STEPS * SAMPLED)] * records


def distillation(config, gpus, args, lengths, row, dtype=torch.bfloat16, on_gpu=True):
    """What each of `gpus` processes holds in distill.py, in an update on records of the given lengths (see `stand_ins`) and in the teacher's pass
    over a row (see `stand_in_row`).

    → ({part: bytes} of the process that holds most, with no hint dropped if that can be; floating-point operations of the teacher's pass over
    the row, and of an update of the process that has most to do; bytes that a process receives in both, as FSDP2
    gathers the weights for each row, forward and backward). args: rank, alpha, lora_dropout, targets, kl_temperature, hint_dropout, loss, row."""
    import distill
    limits, shares = distill.row_limits(config, "cuda" if on_gpu else "cpu", gpus, args.row), [lengths[rank::gpus] for rank in range(min(gpus, len(lengths)))]
    example = lambda n, m, k=1: ([0] * n, list(range(n - m, n)), [0] * m, [k / m] * m)

    def seen(share, hints):                                            # of the hints' tokens this part
        return distill.packed([example(bare + round(hints * (whole - bare)), m, k) for whole, bare, m, k in share], limits[1])

    fullest = max((seen(share, float(args.hint_dropout < 1)) for share in shares), key=lambda rows: max(sum(len(x[0]) for x in row) for row in rows))
    slowest = max(shares, key=lambda share: sum(n for _, n, *_ in share))

    def measure(config):
        with without_storage(on_gpu) as memory, torch.autocast("cpu", dtype=torch.bfloat16, enabled=on_gpu, cache_enabled=False):
            model = bare(config, dtype)
            weights, blocks = size(model.parameters()), size(model.layers.parameters())
            adapter = size(add_adapter(model, args.rank, args.alpha, args.lora_dropout, args.targets))
            in_blocks = size(p for p in model.layers.parameters() if p.requires_grad)
            for block in model.layers:
                block.recompute = on_gpu or gpus > 1

            def teach(common, records):
                with torch.no_grad(), adapters(model, newest=False):
                    distill.hidden_at(model, [example(*record) for record in records], common)

            def learn(rows):
                states = [[torch.empty(len(x[1]), config.hidden_size, dtype=dtype) for x in row] for row in rows]
                for row, hidden in zip(rows, states):
                    distill.loss_of(model, row, torch.cat(hidden) if args.loss == "kl" else None, args.kl_temperature)

            learning, _ = memory.above(lambda: learn(fullest))
            _, flops = memory.above(lambda: learn(seen(slowest, 1 - args.hint_dropout)))
            teaching, teacher_flops = memory.above(lambda: teach(*row)) if args.loss == "kl" else (0, 0)
        return weights, blocks, adapter, in_blocks, teaching, teacher_flops, learning, flops

    weights, blocks, adapter, in_blocks, teaching, teacher_flops, learning, flops = by_layers(config, measure)
    parts = {"weights": weights / gpus, "adapter": adapter / gpus, "its gradients": adapter / gpus, "AdamW's moments": 2 * adapter / gpus,
             "activations, logits": max(teaching - adapter / gpus, learning - adapter, adapter / gpus if on_gpu else 0)}     # the last: what AdamW computes at once
    if gpus > 1:                                                       # FSDP2: the root's, a block's, the next one's on its way in
        parts["gathered"] = weights - blocks + adapter - in_blocks + 3 * (blocks + in_blocks) / config.num_hidden_layers
    rows = max(len(seen(share, 1 - args.hint_dropout)) for share in shares)
    gathered, reduced = (n * (gpus - 1) / gpus for n in (weights + adapter, adapter))
    return parts, teacher_flops, flops, gathered * (args.loss == "kl"), rows * (2 * gathered + reduced)


# ---------------------------------------------------------------------------------------------------- collect.py, evaluate.py

def collection(config, args, dtype=torch.bfloat16, on_gpu=True):
    """What each of the --tp processes of a replica holds while agents act.

    → ({part: bytes}, floating-point operations of a token, bytes that each reads for one more token of each of --batch agents
    whose slots are half full). args: tp, batch, max_length. Raises ValueError if --tp does not divide the model."""
    for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
        if getattr(config, name) % args.tp:
            raise ValueError(f"--tp {args.tp} does not divide {name}, which is {getattr(config, name)}")
    length = min(args.max_length, config.max_position_embeddings)
    prompts = min(args.batch, 1 + ADMITTED // length)                  # in one pass; the longest
    part = replace(config, num_attention_heads=config.num_attention_heads // args.tp, num_key_value_heads=config.num_key_value_heads // args.tp,
                   intermediate_size=config.intermediate_size // args.tp)

    def measure(part):
        with without_storage(on_gpu) as memory:
            model = bare(part, dtype)
            cache = size([torch.empty(2, part.num_hidden_layers, args.batch, part.num_key_value_heads, length, part.head_dim, dtype=dtype)])

            def run():
                with torch.no_grad():
                    x = model.hidden(torch.zeros(1, prompts * length, dtype=torch.long), attend=kernels.packed_attention([length] * prompts))
                    p = model.lm_head(x[0, :args.batch]).float().softmax(-1)
                    p.cumsum(-1, dtype=torch.float64)

            working, flops = memory.above(run)
            return size(model.parameters()), cache, working, flops * args.tp / (prompts * length)

    weights, cache, working, flops = by_layers(part, measure)
    embedding = 0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size * dtype.itemsize    # a row of it is read, not all
    return {"weights": weights, "KV cache": cache, "activations, logits": working}, flops, weights - embedding + cache / 2


# ---------------------------------------------------------------------------------------------------- what is printed

def add_argument(parser):
    parser.add_argument("--plan", nargs="+", type=float, metavar="N",
                        help="GPUS GIB [TFLOPS GBS]: only print what each of so many GPUs of so much memory would hold, and how long it takes if each "
                             "computes at TFLOPS [400] and moves GBS gigabytes a second [300 between GPUs, 2500 out of its memory]")


def given(args, bandwidth):
    """--plan's numbers → GPUs, bytes of memory, operations a second, bytes a second."""
    numbers = [*args.plan, *(8, 80, 400, bandwidth)[len(args.plan):]]
    if len(args.plan) not in (2, 4) or not all(0 < n < 1e9 for n in numbers) or numbers[0] % 1 or numbers[0] > 65536:
        raise ValueError("--plan: give GPUS GIB or GPUS GIB TFLOPS GBS, such as 8 80 or 8 80 400 300")
    return int(numbers[0]), numbers[1] * GIB, numbers[2] * 1e12, numbers[3] * 1e9


def table(parts, memory):
    """Markdown, and whether it fits: a twentieth is left to CUDA itself and to fragmentation."""
    whole = sum(parts.values())
    rows = [("on each GPU", "GiB"), ("---", "---:"), *((name, f"{n / GIB:.2f}") for name, n in parts.items()), ("together", f"{whole / GIB:.2f} of {memory / GIB:g}")]
    return "\n".join(f"| {a:<22} | {b:>11} |" for a, b in rows), whole < 0.95 * memory


def count(config):
    with without_storage(True):
        return sum(p.numel() for p in bare(config, torch.bfloat16).parameters())


def print_distillation(args, lengths=None, longest=None, updates=1778):
    """What distill.py --plan prints. lengths: of the update to plan for, of real records; None: of typical ones. longest: a function of how many tokens
    a row may have → the teacher's longest, how many of such rows there are. updates: of the training; the paper's for 70B."""
    import distill
    gpus, memory, rate, bandwidth = given(args, 300)
    config, lengths = config_of(args.model), lengths or stand_ins(args.batch)

    def typical(most):
        row = stand_in_row(most)
        return row, updates / args.epochs * len(lengths) / len(row[1])

    def planned(gpus, **other):
        changed = argparse.Namespace(**vars(args) | other)
        row, rows = (longest or typical)(distill.row_limits(config, "cuda", gpus, changed.row)[0])
        parts, *costs = distillation(config, gpus, changed, lengths, row)
        return parts | ({"earlier adapters": earlier(args) / gpus} if args.adapter else {}), rows, *costs

    parts, rows, teacher, student, *received = planned(gpus)
    text, fits = table(parts, memory)
    print(f"{count(config) / 1e9:.3g}B parameters in bfloat16, an adapter of rank {args.rank} in float32, {gpus} GPU{'s' * (gpus > 1)}; an update of {sum(n[3] for n in lengths)} "
          f"actions in {len(lengths)} trajectories of {max(n[0] for n in lengths):,} tokens with hints, {max(n[1] for n in lengths):,} without\n\n{text}\n")
    rows = -(-rows // gpus)                                            # of a GPU
    first, update = (max(flops / rate, bytes / bandwidth) for flops, bytes in zip((teacher, student), received))
    print(f"the teacher's pass before the first update: {rows * teacher / 1e12:,.0f} TFLOP on a GPU, {rows * first / 3600:.2g} h; an update: {student / 1e12:,.1f} TFLOP, {update:.2g} s "
          f"at {rate / 1e12:g} TFLOP/s" + (f" and {bandwidth / 1e9:g} GB/s between GPUs" if gpus > 1 else "")
          + f"; with {updates:,} updates in {args.epochs} epochs {(rows * first + updates * update) / 3600:.2g} h")
    if gpus > len(lengths):
        print(f"{gpus - len(lengths)} of the GPUs have no trajectory of an update: --batch {gpus * STEPS} would take about as long")
    if fits:
        print(f"it fits: {memory / GIB - sum(parts.values()) / GIB:.1f} GiB are left")
    else:
        static = lambda n, rank: (parts["weights"] + (parts["adapter"] + parts["its gradients"] + parts["AdamW's moments"]) * rank / args.rank) * gpus / n
        may = lambda n, **other: static(n, other.get("rank", args.rank)) < memory and table(planned(n, **other)[0], memory)[1]       # what alone is too much is not planned
        more = next((n for n in range(gpus + 1, 513) if (n % 8 == 0 or n < 8) and may(n)), None)
        row = next((n for n in (distill.row_limits(config, "cuda", gpus, args.row)[0] // 2 ** k for k in range(1, 10)) if n >= max(record[0] for record in lengths) and may(gpus, row=n)), None)
        rank = next((n for n in (args.rank // 2 ** k for k in range(1, 10)) if n >= 4 and may(gpus, rank=n)), None)
        ways = [f"on {more} such GPUs"] * bool(more) + [f"with --row {row}"] * bool(row) + [f"with --rank {rank}"] * bool(rank)
        print("it does NOT fit; it would " + (" or ".join(ways) or "with shorter trajectories: no number of GPUs is enough"))
    return fits


def print_collection(args):
    """What collect.py --plan and evaluate.py --plan print."""
    gpus, memory, rate, bandwidth = given(args, 2500)
    if gpus % args.tp:
        raise ValueError(f"--tp {args.tp}: the number of GPUs has to be a multiple of it, and is {gpus}")
    config = config_of(args.model)

    def planned(**other):
        parts, *costs = collection(config, argparse.Namespace(**vars(args) | other))
        return parts | ({"adapters": earlier(args)} if args.adapter else {}), *costs

    parts, flops, read = planned()
    text, fits = table(parts, memory)
    replicas = gpus // args.tp
    seconds = max(read / bandwidth, args.batch * flops / args.tp / rate)
    print(f"{count(config) / 1e9:.3g}B parameters in bfloat16; {replicas} replica{'s' * (replicas > 1)} on {args.tp} GPU{'s' * (args.tp > 1)} each, "
          f"{args.batch} agents at a time of {min(args.max_length, config.max_position_embeddings):,} tokens at most\n\n{text}\n")
    print(f"a token: {flops / 1e9:.3g} GFLOP; at most {replicas * args.batch / seconds:,.0f} new tokens/s and {gpus * rate / flops:,.0f} prompt tokens/s "
          f"at {rate / 1e12:g} TFLOP/s and {bandwidth / 1e9:g} GB/s out of the memory of each GPU")
    if fits:
        print(f"it fits: {memory / GIB - sum(parts.values()) / GIB:.1f} GiB are left")
    else:
        def would(**other):
            return table(planned(**other)[0], memory)[1]

        batch = next((n for n in range(args.batch - 1, 0, -1) if would(batch=n)), None)
        tp = next((n for n in range(args.tp + 1, config.num_key_value_heads + 1) if config.num_key_value_heads % n == 0 and would(tp=n)), None)
        ways = [f"with --batch {batch}"] * bool(batch) + [f"with --tp {tp}"] * bool(tp)
        print("it does NOT fit; it would " + (" or ".join(ways) or "with a shorter --max-length"))
    return fits
