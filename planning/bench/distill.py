"""Distilling: distill.py's training against peft with the paper's loss, an action at a time."""

from common import ROOT

import argparse
import gc
import random
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from agent.chat import Chat
from engine.kernels import fast_bfloat16
from formats.weights import local_folder
from lora import TARGETS
from planning.bench.harness import DEVICE, LARGE_VOCABULARY, against, checkpoint, held
from scaling import parallel
from training import examples, trainer
from training.packing import pack_by_prefix, row_limits

RANK, ALPHA, LR, EPOCHS = 16, 32, 1e-4, 2


def compare(args: argparse.Namespace, folder: Path, limit: float) -> None:
    """Prints a line for trajectories of several actions, and one for single actions. limit: floating-point operations
    per second of the faster matrix product."""
    model = checkpoint(folder / "vocabulary", LARGE_VOCABULARY)
    gpu, cpu = ((4, 32, None), (4, 32, 512), (1, 64, None)), ((4, 4, None), (1, 8, None))
    for steps, trajectories, row in gpu if DEVICE == "cuda" else cpu:
        title = (f"distill{f' with --row {row}' if row else ''}: trajectories of {steps} actions, 1,500 tokens of "
                 f"hints, a vocabulary of {LARGE_VOCABULARY['vocab_size']:,}")
        measure(args, title, limit, model, (trajectories, steps), row)


def compare_real(args: argparse.Namespace, limit: float) -> None:
    """The job `real MODEL --distill FILE`: a real model and the successful trajectories of a file."""
    measure(args, f"distill: {Path(args.model).name}, {args.distill}", limit, local_folder(args.model), args.distill)


def measure(args, title, limit, model, source, row=None):
    runs = against(args, title, "actions/s", ours_distill, peer_distill, same_loss, model, source, row)
    rate = max(r["flops"] / r["seconds"] for r in runs)
    print(f"    {rate / 1e9:,.0f} GFLOP/s of the model's operations: {rate / limit:.0%} of the matrix product's",
          flush=True)


def read(model: Path, source: str | tuple[int, int]) -> tuple[Chat, list[dict]]:
    """What is learned: a file's successful trajectories, or (number, steps) of random ones."""
    if isinstance(source, tuple):
        return records(*source)
    return Chat(model), examples.select(examples.read([source]), successes_only=True)


def records(trajectories: int, steps: int, hints: int = 1500) -> tuple[Chat, list[dict]]:
    """Trajectories of random tokens: `hints` in the hints, 20 in the question, and in each step about 20 in the
    monologue, 50 in the code and 20 in the observation."""
    rng, chat = random.Random(0), Chat(ROOT / "starter")
    words = sorted(w for w in chat.tokenizer.get_vocab() if w.isalpha() and len(w) > 2)
    text = lambda n: " ".join(rng.choice(words) for _ in range(n // 2))
    tag = lambda name: [chat.tokenizer.token_to_id(f"</{name}>")]
    ids = lambda n: [rng.randrange(300, 1500) for _ in range(n)]
    step = lambda: {"monologue": "", "code": "", "observation": text(20), "hint": None,
                    "token_ids": {"monologue": ids(rng.randint(10, 30)) + tag("inner_monologue"),
                                  "code": ids(rng.randint(30, 70)) + tag("python")}}
    hints = [{"name": "all", "kind": "tools", "text": text(hints)}]
    return chat, [{"id": str(i), "task": {"question": text(20), "template": "any"}, "hints": hints, "success": True,
                   "steps": [step() for _ in range(steps)]} for i in range(trajectories)]


def ours_distill(folder, source, row=None):
    trainer.COMPILE_AFTER = 0
    chat, data = read(folder, source)
    actions = examples.count_actions(data)
    load = lambda: parallel.load(folder, whole=False, linear_dtype=torch.bfloat16 if fast_bfloat16() else None)
    args = argparse.Namespace(rank=RANK, alpha=ALPHA, model=folder, lora_dropout=0.0, targets=TARGETS, lr=LR,
                              adapter=[], decay=False, warmup=0, batch=actions, loss="kl", kl_temperature=2.0,
                              hint_dropout=1.0, seed=0, row=row)
    if DEVICE == "cuda":
        with tempfile.TemporaryDirectory() as out:
            trainer.train(load(), chat, [data] * EPOCHS, args, Path(out) / "checkpoint", Path(out) / "teacher")
        gc.collect()
    model = load()
    before, began = held(model), time.perf_counter()
    with tempfile.TemporaryDirectory() as out:
        log = trainer.train(model, chat, [data] * EPOCHS, args, Path(out) / "checkpoint", Path(out) / "teacher")
    seconds = time.perf_counter() - began
    rows = pack_by_prefix([examples.to_example(chat, r) for r in data], row_limits(model.config, DEVICE, 1, row)[0])
    flops = model_flops(model, rows, [examples.to_example(chat, r, 1.0) for r in data])
    return {"seconds": seconds, "units": EPOCHS * actions, "output": log, "flops": flops, "held": before}


def model_flops(model, rows, students):
    """Floating-point operations of distilling: the teacher's rows once, the student's examples in each epoch. They are
    counted as for model-flops utilisation (Chowdhery et al., 2022, Appendix B): 2 per weight and token forward, and 2
    for each gradient, which frozen weights do not need. Only the causal half of attention's products counts, and what
    follows attention in the last block counts only where it is read."""
    c, last = model.config, model.layers[-1]

    def count(modules):
        """(frozen, trained) weights."""
        weights = [p for module in modules for p in module.parameters() if p.ndim > 1]
        return [sum(p.numel() for p in weights if p.requires_grad == learns) for learns in (False, True)]

    frozen, trained = count([model.layers])
    frozen_last, trained_last = count([last.self_attn.o_proj, last.mlp])
    head = sum(count([model.lm_head]))
    attention = lambda n: 2 * n * n * c.num_attention_heads * c.head_dim * c.num_hidden_layers
    forward = lambda n: 2 * (frozen - frozen_last) * n + attention(n)
    teacher = sum(forward(row.shared) + sum(forward(len(x.tokens)) - forward(row.shared) + 2 * frozen_last * len(x.at)
                                            for x in row.examples) for row in rows)
    student = sum((4 * (frozen - frozen_last) + 6 * (trained - trained_last)) * len(x.tokens)
                  + 3 * attention(len(x.tokens))
                  + (4 * frozen_last + 6 * trained_last + 6 * head) * len(x.at) for x in students)
    return teacher + EPOCHS * student


def peer_distill(folder, source, row=None):
    """The paper's loss with peft: one action at a time, each with a pass over the prompt with hints, full logits,
    gradients accumulated. `row` only concerns ours."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    chat, data = read(folder, source)
    actions = examples.count_actions(data)
    bfloat16 = DEVICE == "cuda" or fast_bfloat16()
    layers = "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj lm_head".split()
    dtype = torch.bfloat16 if bfloat16 else torch.float32
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(DEVICE),
                           LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=layers))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LR, weight_decay=0.02)

    def learn(record, n):
        """Adds the gradients of a record's action n. Returns its loss."""
        def logits(hints):
            ids, spans = chat.prompt(record["task"]["question"], hints, record["steps"][:n + 1])
            out = model(torch.tensor([ids], device=DEVICE)).logits[0]
            return torch.cat([out[a - 1:b - 1] for a, b in (spans[n, "monologue"], spans[n, "code"])]).float() / 2.0
        with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=bfloat16):
            with torch.no_grad(), model.disable_adapter():
                p = logits([hint["text"] for hint in record["hints"]]).log_softmax(-1)
            q = logits([]).log_softmax(-1)
            loss = torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(-1).mean()
        (loss / actions).backward()
        return loss.item()

    if DEVICE == "cuda":
        learn(data[0], 0)
        optimizer.zero_grad()
    before, began, losses = held(model), time.perf_counter(), []
    for _ in range(EPOCHS):
        losses += [learn(record, n) for record in data for n in range(len(record["steps"]))]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return {"seconds": time.perf_counter() - began, "units": len(losses),
            "output": [{"loss": float(np.mean(losses[:actions]))}], "held": before}


def same_loss(a, b):
    return f"first loss {a[0]['loss']:.5f} and {b[0]['loss']:.5f}"
