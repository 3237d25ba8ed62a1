"""Hints into weights: trajectories → a LoRA adapter (paper §3, Algorithm 1).

    python distill.py --model starter --data runs/demo/hinted.jsonl --out runs/demo/round1
    python distill.py --model starter --adapter runs/demo/round1 --data runs/demo/corrected2.jsonl --balance runs/demo/candidates2.jsonl --out runs/demo/round2

The teacher is the current agent (the model with all --adapter) that sees the hints which the trajectory was made with. The student is
the same agent with one new adapter, and sees each hint section only with probability 1 - hint dropout. The loss at each
sampled token is KL(teacher ‖ student) over the vocabulary; of the model itself nothing changes.

What makes it fast and changes no gradient: one pass over a trajectory for all its actions; trajectories packed in a row without
padding; logits only where actions are, in chunks that are never all in memory; the teacher's last hidden states kept between epochs.
"""

import argparse
import contextlib
import json
import random
import time
from collections import Counter
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm

import agent
from lora import TARGETS, adapters, add_adapter, save_adapter
from model import local_folder, packed_attention
from parallel import load

CHUNK = 2 ** 25                                                       # logits in memory at a time: 128 MiB in float32


# ---------------------------------------------------------------------------------------------------- data

def read(files):
    """The records of several files, by id: in which order they were written does not matter."""
    return sorted((r for file in files for r in agent.read_trajectories(file)), key=lambda r: r["id"])


def example(chat, record, dropout=0.0, rng=random):
    """A record as tokens, with each hint section (corrective hints too) left out with probability `dropout`.

    → ids; `at`, the positions whose next token is an action's; `targets`, those tokens; `weights`, each 1 / the tokens of its action,
    where an action is a step's monologue and code. All but ids are the same whatever is left out."""
    keep = lambda: rng.random() >= dropout
    hints = [h["text"] for h in record["hints"] if keep()]
    steps = [s if s["hint"] is None or keep() else s | {"hint": None} for s in record["steps"]]
    learned = record.get("targets", range(len(steps)))
    steps = steps[:max(learned) + 1]
    ids, spans = chat.prompt(record["task"]["question"], hints, steps)
    at, targets, weights = [], [], []
    for n in learned:
        action = [i for part in ("monologue", "code") if (n, part) in spans for i in range(*spans[n, part])]
        at += [i - 1 for i in action]
        targets += [ids[i] for i in action]
        weights += [1 / len(action)] * len(action)
    return ids, at, targets, weights


def actions(record):
    """How many actions of a record are learned."""
    return len(record.get("targets", record["steps"]))


def usable(record):
    """Was every learned action sampled to its end?"""
    return all({"monologue", "code"} <= record["steps"][n]["token_ids"].keys() for n in record.get("targets", range(len(record["steps"]))))


def balance(corrected, candidates, rng):
    """Full trajectories to train on beside the corrected actions (paper, Appendix F):
    1. templates with few corrected actions are filled up to the mean, from the same template;
    2. groups with few examples are filled up to the largest, templates with more mistakes first;
    3. of what is covered by neither, as many again as 1 and 2 brought, at least a quarter of the corrected, at random."""
    mistakes, pool = Counter(r["task"]["template"] for r in corrected), {}
    for t in rng.sample(candidates, len(candidates)):
        pool.setdefault(t["task"]["template"], []).append(t)
    chosen, enough = [], round(sum(mistakes.values()) / max(len(mistakes), 1))
    for template, n in mistakes.items():
        while n < enough and pool.get(template):
            chosen.append(pool[template].pop())
            n += 1
    groups = Counter(r["task"]["group"] for r in corrected + chosen)
    for group in sorted({t["task"]["group"] for t in candidates}):
        rest = [t for template in sorted(pool, key=lambda name: -mistakes[name]) for t in pool[template] if t["task"]["group"] == group]
        take = rest[:max(groups.values(), default=0) - groups[group]]
        chosen += take
        for t in take:
            pool[t["task"]["template"]].remove(t)
    seen = {t["task"]["id"] for t in corrected + chosen}
    uncovered = [t for ts in pool.values() for t in ts if t["task"]["id"] not in seen]
    return chosen + rng.sample(uncovered, min(len(uncovered), max(len(chosen), len(corrected) // 4)))


def batches(records, size, rng):
    """Shuffled records in batches of at least `size` actions (the last may hold fewer)."""
    batch = []
    for record in rng.sample(records, len(records)):
        batch.append(record)
        if sum(map(actions, batch)) >= size:
            yield batch
            batch = []
    if batch:
        yield batch


# ---------------------------------------------------------------------------------------------------- the loss

def hidden_at(model, rows):
    """rows: [(ids, at, …)] packed into one row → what lm_head reads at all their `at`, (N, C)."""
    lengths = [len(row[0]) for row in rows]
    device = model.device
    tokens = torch.tensor([sum((row[0] for row in rows), [])], device=device)
    positions = torch.cat([torch.arange(n) for n in lengths])[None].to(device)
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    at = torch.tensor([start + i for start, row in zip(starts, rows) for i in row[1]], device=device)
    return model.hidden(tokens, positions, packed_attention(lengths))[0, at]


def kl_terms(student, teacher, lm_head, teacher_head, temperature):
    """KL(teacher ‖ student) over the vocabulary for each token, both at `temperature`; student, teacher: hidden states (n, C) → (n,)."""
    p = (teacher_head(teacher).float() / temperature).log_softmax(-1)
    q = (lm_head(student).float() / temperature).log_softmax(-1)
    return F.kl_div(q, p, log_target=True, reduction="none").sum(-1)


def loss_of(model, rows, teacher=None, temperature=1.0, learn=True):
    """Mean over each action's tokens, then over the actions of the batch. rows: [(ids, at, targets, weights)] as the student sees them.
    teacher: hidden states (N, C) at the same tokens, for KL; None: cross-entropy on the sampled tokens.

    With `learn` the gradients are added to the adapter's parameters. They are computed chunk by chunk: when the next chunk's logits
    come into memory, this one's and their gradients are gone."""
    student = hidden_at(model, rows)
    weights = torch.tensor(sum((row[3] for row in rows), []), device=student.device)
    targets = torch.tensor(sum((row[2] for row in rows), []), device=student.device)

    def teacher_head(x):
        with torch.no_grad(), adapters(model, newest=False):
            return model.lm_head(x)

    head_input, total = student.detach().requires_grad_(learn), 0.0
    step = max(1, CHUNK // model.config.vocab_size)
    for start in range(0, len(student), step):
        part = slice(start, start + step)
        x = head_input[part]
        if teacher is None:
            terms = F.cross_entropy(model.lm_head(x).float(), targets[part], reduction="none")
        else:
            terms = kl_terms(x, teacher[part], model.lm_head, teacher_head, temperature)
        loss = (terms * weights[part]).sum() / weights.sum()          # an action's weights sum to 1: the sum counts the actions
        if learn:
            loss.backward()
        total += loss.detach()
    if learn and student.requires_grad:                               # not if lm_head alone has an adapter
        student.backward(head_input.grad)
    return total


# ---------------------------------------------------------------------------------------------------- the training

def train(model, chat, records, args, validation=(), checkpoint_file=None):
    """Trains a new adapter on `model` (changed in place) with the settings in `args`, the parsed command line. Returns the log, a dict an update.

    With `checkpoint_file` everything that training goes on from is saved there once a minute; if it is there already, training goes on
    from it and ends with the same adapter, bit for bit on the same machine."""
    rng = random.Random(args.seed)
    torch.manual_seed(args.seed)
    parameters = add_adapter(model, args.rank, args.alpha, args.lora_dropout, args.targets)
    model.train()
    optimizer = torch.optim.AdamW(parameters, lr=args.lr, betas=(0.9, 0.999), weight_decay=0.02)
    autocast = torch.autocast("cpu", dtype=torch.bfloat16) if model.device.type == "cpu" and fast_bfloat16() else contextlib.nullcontext()
    cache = {}                                                        # record → the teacher's hidden states at the action tokens

    @torch.no_grad()
    def teach(batch):
        if new := [r for r in batch if id(r) not in cache]:
            rows = [example(chat, r) for r in new]
            with autocast, adapters(model, newest=False):
                hidden = hidden_at(model, rows)
            for r, h in zip(new, hidden.split([len(row[1]) for row in rows])):
                cache[id(r)] = h.cpu()
        return torch.cat([cache[id(r)] for r in batch]).to(model.device)

    def loss_on(batch, dropout, learn=True):
        teacher = teach(batch) if args.loss == "kl" else None
        rows = [example(chat, r, dropout, rng) for r in batch]
        with autocast:
            return loss_of(model, rows, teacher, args.kl_temperature, learn)

    plan = [batch for _ in range(args.epochs) for batch in batches(records, args.batch, rng)]
    total, log = len(plan), []
    print(f"{len(records)} records, {sum(map(actions, records))} actions; {total} updates; "
          f"{sum(p.numel() for p in parameters):,} trained of {sum(p.numel() for p in model.parameters()):,} parameters")
    if checkpoint_file and checkpoint_file.exists():
        state = torch.load(checkpoint_file, weights_only=False)       # our own file
        for p, saved in zip(parameters, state["parameters"]):
            p.data.copy_(saved)
        optimizer.load_state_dict(state["optimizer"])
        log = state["log"]
        if args.loss == "kl":                                         # as before: what shares a pass decides the last bits
            for batch in tqdm(plan[:len(log)], unit="batch", desc="the teacher again"):
                teach(batch)
        rng.setstate(state["random"])
        torch.set_rng_state(state["torch_random"])
    saved = time.time()
    with tqdm(total=total, initial=len(log), unit="update") as progress:
        for update, batch in list(enumerate(plan))[len(log):]:
            scale = min(1, (update + 1) / max(args.warmup, 1)) * (1 - update / total if args.decay else 1)
            for group in optimizer.param_groups:
                group["lr"] = args.lr * scale
            loss = loss_on(batch, args.hint_dropout)
            norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            log.append({"update": update + 1, "loss": loss.item(), "gradient_norm": norm.item()})
            if validation and (update + 1) % (total // args.epochs) == 0:
                with torch.no_grad():
                    losses = [loss_on(b, 1.0, learn=False).item() for b in batches(validation, 64, random.Random(0))]
                log[-1]["validation_loss"] = sum(losses) / len(losses)
                tqdm.write(f"update {update + 1}: validation loss {log[-1]['validation_loss']:.4f}")
            if checkpoint_file and time.time() - saved > 60:
                state = {"parameters": [p.detach() for p in parameters], "optimizer": optimizer.state_dict(), "log": log,
                         "random": rng.getstate(), "torch_random": torch.get_rng_state()}
                torch.save(state, part := checkpoint_file.with_suffix(".part"))
                part.replace(checkpoint_file)
                saved = time.time()
            progress.update()
            progress.set_postfix(loss=f"{recent(log):.4f}")
    return log


def recent(log):
    """Mean loss of the last updates."""
    return sum(x["loss"] for x in log[-50:]) / len(log[-50:])


def fast_bfloat16():
    """Has this CPU instructions for bfloat16 products?"""
    return "avx512_bf16" in Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else False


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", required=True, help="directory or hub id in Hugging Face format")
    p.add_argument("--adapter", action="append", default=[], metavar="DIR", help="earlier rounds', in order; they stay as they are")
    p.add_argument("--data", nargs="+", required=True, metavar="FILE", help="trajectories with hints, corrected actions")
    p.add_argument("--balance", metavar="FILE", help="candidate trajectories for the paper's data balancing (Appendix F)")
    p.add_argument("--val", metavar="FILE", help="records whose loss is printed after every epoch")
    p.add_argument("--loss", choices=("kl", "ce"), default="kl", help="ce: cross-entropy on successful trajectories only")
    p.add_argument("--rank", type=int, default=128)
    p.add_argument("--alpha", type=float, default=256)
    p.add_argument("--lora-dropout", type=float, default=0.05)
    p.add_argument("--targets", nargs="+", choices=TARGETS, default=TARGETS, help="layers that get an adapter")
    p.add_argument("--lr", type=float, default=1e-5)
    p.add_argument("--decay", action="store_true", help="let the learning rate fall to zero linearly; else it is constant after warm-up")
    p.add_argument("--warmup", type=int, default=30, help="updates")
    p.add_argument("--epochs", type=int, default=2)
    p.add_argument("--batch", type=int, default=8, help="actions an update, at least; trajectories are not split")
    p.add_argument("--kl-temperature", type=float, default=2.0)
    p.add_argument("--hint-dropout", type=float, default=0.9, help="probability that the student does not see a hint section")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--out", type=Path, required=True, help="directory of the new adapter")
    args = p.parse_args()
    agent.same_arguments(args.out / "arguments.json", vars(args), args.out.exists())
    if (args.out / "adapter_model.safetensors").exists():
        print(f"{args.out}: there already")
        return

    chat = agent.Chat(local_folder(args.model))
    records = read(args.data)
    if args.balance:
        candidates = read([args.balance])
        chosen = balance(records, candidates, random.Random(args.seed))
        print(f"{len(records)} records and {len(chosen)} of {len(candidates)} candidates")
        records += chosen
    if args.loss == "ce":
        records = [r for r in records if r["success"]]
    records = [r for r in records if usable(r)]
    if not records:
        raise ValueError(f"{', '.join(args.data)}: nothing to learn from is left ({'no successes' if args.loss == 'ce' else 'no finished actions'})")
    validation = [r for r in read([args.val]) if usable(r)] if args.val else []

    model = load(args.model, args.adapter)
    args.out.mkdir(parents=True, exist_ok=True)
    log = train(model, chat, records, args, validation, args.out / "checkpoint.pt")
    (args.out / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    save_adapter(model, args.out, base_model=args.model)
    (args.out / "checkpoint.pt").unlink(missing_ok=True)
    print(f"{args.out}: adapter of rank {args.rank}, loss {recent(log):.4f} over the last updates")


if __name__ == "__main__":
    agent.run_stage(main)
