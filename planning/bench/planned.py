"""What --plan says about memory and speed, against a GPU. On a CPU, tests/test_plan.py checks the plan."""

import argparse
import os
import random
import tempfile
import time
from pathlib import Path

import torch

from lora import TARGETS
from model import Config, Sampler
from planning import plan
from planning.bench.distill import records
from planning.bench.harness import LARGE, alone, checkpoint
from scaling import parallel
from training import trainer
from training.examples import to_example
from training.packing import longest_row, row_limits


def training(folder, fsdp):
    """Updates of distill.py with the paper's settings while the student sees all hints, as --plan assumes for memory →
    the seconds of an update, and the bytes and operations that were planned."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    chat, data = records(6, 4, hints=3000)
    args = argparse.Namespace(rank=128, alpha=256, model=folder, lora_dropout=0.05, targets=TARGETS, lr=1e-5,
                              decay=False, warmup=30, epochs=2,
                              batch=8, loss="kl", kl_temperature=2.0, hint_dropout=0.0, seed=0, row=None, adapter=[])
    ends = []
    register_optimizer_step_post_hook(lambda *_: (torch.cuda.synchronize(), ends.append(time.perf_counter())))
    parallel.MANY = fsdp                                               # also for one process
    parallel.start()
    model = parallel.load(folder, whole=False)
    with tempfile.TemporaryDirectory() as out:
        trainer.train(model, chat, [data] * args.epochs, args, Path(out) / "checkpoint", Path(out) / "teacher")
    examples = [(to_example(chat, r), to_example(chat, r, 1.0)) for r in data]
    lengths = sorted((len(taught.tokens), len(bare.tokens), len(taught.at), 4) for taught, bare in examples)[-2:]
    row, _ = longest_row([taught for taught, _ in examples], row_limits(Config(**LARGE), "cuda", 1)[0])
    parts, _, flops, *_ = plan.distillation(Config(**LARGE), 1, args, lengths, row)
    if fsdp:
        parts["gathered"] = plan.distillation(Config(**LARGE), 2, args, lengths, row)[0]["gathered"]
    return {"seconds": ends[5] - ends[4], "planned": sum(parts.values()), "flops": flops}


def sampling(folder):
    """32 agents with prompts of 3,000 tokens → tokens per second, and the bytes that were planned."""
    args = argparse.Namespace(tp=1, batch=32, max_length=4096)
    sampler = Sampler(parallel.load(folder), args.batch, args.max_length)
    rng = random.Random(0)
    prompts = [[rng.randrange(3, LARGE["vocab_size"]) for _ in range(3000)] for _ in range(args.batch)]
    texts = sampler.generate(prompts, max_new_tokens=10, temperature=0.7)
    again = [prompt + text for prompt, text in zip(prompts, texts)]
    sampler.generate(again, max_new_tokens=200, temperature=0.7)    # from now on all decode at once, compiled
    began = time.perf_counter()
    texts = sampler.generate(again, max_new_tokens=200, temperature=0.7)
    seconds = time.perf_counter() - began
    parts, _, read = plan.collection(plan.config_of(folder), args)
    return {"rate": sum(map(len, texts)) / seconds, "planned": sum(parts.values()),
            "read": read - parts["KV cache"] / 2 + parts["KV cache"] * 3100 / 4096}


def compare(folder: Path, memory: float) -> None:
    """Prints planned and measured figures. memory: bytes that the machine copies in a second."""
    large = checkpoint(folder / "large", LARGE)
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT="0", RANK="0", WORLD_SIZE="1")
    for title, fsdp in (("distill.py, one process", False), ("the same with FSDP2", True)):
        r = alone(training, large, fsdp)
        print(f"plan: {title}, {r['memory'] / 2 ** 30:.2f} GiB, planned {r['planned'] / 2 ** 30:.2f}; an update "
              f"{r['seconds']:.2f} s, {r['flops'] / r['seconds'] / 1e12:,.0f} TFLOP/s of the planned operations",
              flush=True)
    r = alone(sampling, large)
    print(f"plan: 32 agents of 3,000 tokens, {r['memory'] / 2 ** 30:.2f} GiB, planned {r['planned'] / 2 ** 30:.2f}; "
          f"{r['rate']:,.0f} tokens/s, {r['rate'] / 32 * r['read'] / memory:.0%} of what the memory allows", flush=True)
