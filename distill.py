"""Hints into weights: trajectories → a LoRA adapter (paper §3, Algorithm 1).

    python distill.py --model starter --data runs/demo/hinted.jsonl --out runs/demo/round1
    python distill.py --model starter --adapter runs/demo/round1 --data runs/demo/corrected2.jsonl --balance runs/demo/candidates2.jsonl --out runs/demo/round2

The teacher is the current agent (the model with all --adapter) that sees the hints which the trajectory was made with. The student is
the same agent with one new adapter, and sees each hint section only with probability 1 - hint dropout. The loss at each
sampled token is KL(teacher ‖ student) over the vocabulary; of the model itself nothing changes.

What makes it fast and changes no gradient: one pass over a trajectory for all its actions; trajectories packed in a row without
padding (but for less than 64 tokens, where a CPU computes in bfloat16); logits only where actions are, in chunks that are never all in
memory; the teacher's last hidden states computed once, hints that trajectories have in common once for all of them; on a GPU kernels
compiled for it.
"""

from common import command_line
from common import files
from formats import records

import json
import math
import os
import random
import time
from collections import Counter
from pathlib import Path
from zlib import crc32

import torch
import torch.nn.functional as F
from tqdm import tqdm

from agent.chat import Chat
from scaling import checkpoints
from scaling import parallel
from planning import plan as planning
from engine.decoder import can_compile, compiled
from engine.kernels import cast, fast_bfloat16, give_back_freed_memory, packed_attention
from lora import TARGETS, adapters, add_adapter, both_logits, noise, save_adapter, seed_dropout, trainable
from model import local_folder

FUSED_AFTER = 100                                                     # updates on a GPU: compiling takes about as long as these
CHUNK = {"cuda": 2 ** 26, "cpu": 2 ** 25}                             # bytes of logits in memory at a time, in the precision of lm_head
CACHED = {"cuda": 2 ** 25, "cpu": 2 ** 19}                            # logits in float32 at a time: on a CPU what its cache holds


# ---------------------------------------------------------------------------------------------------- data

def read(paths):
    """The records of several files, by id: in which order they were written does not matter. Raises ValueError if a file is given twice."""
    if twice := [file for n, file in enumerate(paths) if Path(file).resolve() in [Path(f).resolve() for f in paths[:n]]]:
        raise ValueError(f"{twice[0]}: given twice")
    return sorted((r for file in paths for r in records.read_trajectories(file)), key=lambda r: r["id"])


def example(chat, record, dropout=0.0, rng=random):
    """A record as tokens, with each hint section (corrective hints too) left out with probability `dropout`.

    → ids; `at`, the positions whose next token is an action's; `targets`, those tokens; `weights`, each 1 / the tokens of its action,
    where an action is a step's monologue and code. Targets and weights are the same whatever is left out."""
    keep = lambda: rng.random() >= dropout
    hints = [h["text"] for h in record["hints"] if keep()]
    learned = record.get("targets", range(len(record["steps"])))       # the agent saw a corrective hint in its own step alone
    steps = [s if s["hint"] is None or n in learned and keep() else s | {"hint": None} for n, s in enumerate(record["steps"][:max(learned) + 1])]
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
    learned, last = record.get("targets", range(len(record["steps"]))), len(record["steps"]) - 1
    return bool(learned) and not (last in learned and record["stop"] in ("length", "invalid")) \
        and all(ids.get("monologue") and "code" in ids for ids in (record["steps"][n]["token_ids"] for n in learned))


def spelled(chat, step, words):
    """Do a step's token ids spell its monologue and code, but for white space, with this tokenizer and a vocabulary of that many words?"""
    ids = [i for part in step["token_ids"].values() for i in part]     # code may stand in the monologue's
    if not all(0 <= i < words for i in ids):
        return False
    text = "".join(chat.decode(ids).split())
    return all("".join(step[name].split()) in text for name in ("monologue", "code") if name in step["token_ids"])


def kept(trajectories, args):
    """Those to learn from: --verified and cross-entropy want successes."""
    return [r for r in trajectories if usable(r) and (r["success"] or not (args.verified or args.loss == "ce"))]


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


def chosen(args):
    """What is learned: of --data and, balanced, of --balance. Raises ValueError if nothing is left."""
    data = kept(read(args.data), args)
    if args.balance:
        candidates = kept(read(args.balance), args)
        added = balance(data, candidates, random.Random(args.seed))
        if parallel.RANK == 0:
            print(f"{len(data)} records and {len(added)} of {len(candidates)} candidates")
        data += added
    if not data:
        missing = "no successes; corrected actions have some only if collect.py played them on with --rollout" if args.loss == "ce" or args.verified else "no finished actions"
        raise ValueError(f"{', '.join(args.data)}: nothing to learn from is left ({missing})")
    return data


def batches(trajectories, size, rng):
    """Shuffled records in batches of at least `size` actions (the last may hold fewer)."""
    batch = []
    for record in rng.sample(trajectories, len(trajectories)):
        batch.append(record)
        if sum(map(actions, batch)) >= size:
            yield batch
            batch = []
    if batch:
        yield batch


def row_limits(config, device, processes, row=None):
    """How many tokens a process computes at a time, in the teacher's passes and in the student's: `row`, or else as many as make it fast.
    For each row the weights travel between GPUs. In a single process the student's are shorter, since its activations are kept, on a CPU all."""
    if row:
        return row, row
    many = processes > 1
    if device == "cuda":
        return 2 ** (14 if many else 13), 2 ** (14 if many else 12)
    return 2 ** (22 if fast_bfloat16() else 21) // config.hidden_size, 2 ** (21 if many else 18) // config.hidden_size


def packed(examples, most):
    """Examples in rows of together at most `most` tokens, in order; a longer one has a row of its own."""
    rows, left = [], -1
    for x in examples:
        if len(x[0]) > left:
            rows, left = rows + [[]], most
        rows[-1].append(x)
        left -= len(x[0])
    return rows


def together(examples, most):
    """Examples in rows for the teacher, those that begin alike in one row, which computes that once → [(tokens that all of a row begin with,
    examples)]. A row has at most `most` tokens, or a single example."""
    rows = []
    for x in sorted(examples, key=lambda x: x[0]):
        if rows:
            common, row = rows[-1]
            shared = len(os.path.commonprefix([x[0][:-1], row[-1][0][:-1][:common]]))      # of each example something is left
            tokens = sum(len(y[0]) for y in row) + len(x[0]) - len(row) * shared
            if tokens <= most and len(row) * shared >= (len(row) - 1) * common:      # no more tokens than in a row of its own
                rows[-1] = shared, row + [x]
                continue
        rows.append((len(x[0]), [x]))
    return [(common if len(row) > 1 else 0, row) for common, row in rows]


def filler(row, common=0):
    """One more example for a row, without weight, or none: so that its tokens are a multiple of 64, and those of its actions of 32. A CPU's bfloat16
    products are up to twice as fast then, and oneDNN makes and keeps kernels for few shapes, not for each row's."""
    tokens, learned = -(common + sum(len(x[0]) - common for x in row)) % 64, -sum(len(x[1]) for x in row) % 32
    tokens = tokens or 64 * (learned > 0)
    return [(row[0][0][:common] + [0] * tokens, [common] * learned, [0] * learned, [0.0] * learned)] * (tokens > 0)


def longest(examples, most):
    """Of the teacher's rows the longest, as plan.stand_in_row describes one → row, how many such rows' tokens all have."""
    rows = together(examples, most)
    sizes = [common + sum(len(x[0]) - common for x in row) for common, row in rows]
    common, row = rows[sizes.index(max(sizes))]
    return (common, [(len(x[0]), len(x[1])) for x in row]), sum(sizes) / max(sizes)


def to_plan(args):
    """Of the records of --data what plan.print_distillation wants to know."""
    chat, lengths, data = Chat(local_folder(args.model, weights=False)), [], chosen(args)
    for batch in batches(data, args.batch, random.Random(args.seed)):
        rows = [(example(chat, r), example(chat, r, 1.0), actions(r)) for r in batch]
        lengths.append([(len(taught[0]), len(seen[0]), len(seen[1]), n) for taught, seen, n in rows])
    examples = [example(chat, r)[:2] for r in data]
    return max(lengths, key=lambda rows: sum(row[1] for row in rows)), lambda most: longest(examples, most), len(lengths) * args.epochs


# ---------------------------------------------------------------------------------------------------- the loss

def hidden_at(model, rows, common=0):
    """rows: [(ids, at, …)] packed into one row, what they have in `common` at their beginnings only once → what lm_head reads at all their `at`, (N, C)."""
    lengths = [len(row[0]) - common for row in rows]
    device = model.device
    tokens = torch.tensor([sum((row[0][common:] for row in rows), rows[0][0][:common])], device=device)
    positions = torch.cat([torch.arange(common), *(torch.arange(common, common + n) for n in lengths)])[None].to(device)
    starts = [sum(lengths[:i]) for i in range(len(lengths))]           # where what is before it would begin
    at = torch.tensor([i if i < common else start + i for start, row in zip(starts, rows) for i in row[1]], device=device)
    return model.hidden(tokens, positions, packed_attention(lengths, common), at)[0]


def divergence(student, teacher, weights):
    """Σ weights · KL(teacher ‖ student) of the distributions that rows of logits (n, V) stand for, in float32; weights (n,). Its gradient, weights times
    the student's distribution minus the teacher's, takes the place of the teacher's logits, so of each distribution there is one copy in memory."""
    p, q = (logits.log_softmax(-1, dtype=torch.float32) for logits in (teacher, student))
    difference = p - q
    p, q = (x.mul_(math.log2(math.e)).exp2_() for x in (p, q))        # faster than exp_ on a CPU
    terms = difference.mul_(p).sum(-1)
    teacher.copy_(q.sub_(p).mul_(weights[:, None]))
    return (terms * weights).sum()


class Divergence(torch.autograd.Function):
    kernel = divergence

    @staticmethod
    def forward(ctx, student, teacher, weights):
        size, student = max(1, CACHED[student.device.type] // student.shape[1]), student.detach()      # a compiler minds that both share memory
        total = sum(Divergence.kernel(*part) for part in zip(student.split(size), teacher.split(size), weights.split(size)))
        ctx.save_for_backward(teacher)
        return total

    @staticmethod
    def backward(ctx, gradient):
        return ctx.saved_tensors[0].mul_(gradient), None, None


def loss_of(model, rows, teacher=None, temperature=1.0, learn=True, count=None):
    """Mean over each action's tokens, then over the actions of the batch. rows: [(ids, at, targets, weights)] as the student sees them.
    teacher: hidden states (N, C) at the same tokens, for KL; None: cross-entropy on the sampled tokens. count: the actions of the whole
    batch, if other processes have more of them: their results add up.

    With `learn` the gradients are added to the adapter's parameters. They are computed chunk by chunk: when the next chunk's logits
    come into memory, this one's and their gradients are gone."""
    student = hidden_at(model, rows)
    weights = torch.tensor(sum((row[3] for row in rows), []), device=student.device)
    targets = torch.tensor(sum((row[2] for row in rows), []), device=student.device)

    count = count or weights.sum()                                    # an action's weights sum to 1
    head_input, total = student.detach().requires_grad_(learn), student.new_zeros((), dtype=torch.float32)
    limit = max(1, CHUNK[student.device.type] // (model.config.vocab_size * model.lm_head.weight.element_size()))
    unit = 32 if limit >= 32 and len(student) % 32 == 0 else 1        # see filler
    chunks = -(-len(student) // (limit // unit * unit))
    step = -(-len(student) // (chunks * unit)) * unit
    large = student.device.type == "cpu" and len(student) * model.config.vocab_size > 2 ** 22        # logits: they can have what the pass needed on its way
    if large:
        give_back_freed_memory()
    precision = cast(student[:0]).dtype
    memory = student.new_empty(2 * step * (teacher is not None and precision != torch.float32), model.config.vocab_size, dtype=precision)
    for start in range(0, len(student), step):
        part = model.lm_head.part = slice(start, start + step)
        x = head_input[part]
        if teacher is None:
            loss = (F.cross_entropy(model.lm_head(x).float(), targets[part], reduction="none") * weights[part]).sum() / count
        else:
            loss = Divergence.apply(*both_logits(model, x / temperature, teacher[part] / temperature, memory), weights[part]) / count
        if learn:
            (loss * parallel.WORLD).backward()                        # FSDP takes the mean over the processes
        total += loss.detach()
    del memory
    if large:
        give_back_freed_memory()
    if learn and student.requires_grad:                               # not if lm_head alone has an adapter
        student.backward(head_input.grad)
    return total


# ---------------------------------------------------------------------------------------------------- the training

def train(model, chat, trajectories, args, folder, validation=()):
    """Trains a new adapter on `model` (changed in place) with the settings in `args`, the parsed command line. Returns the log, a dict an update.

    In `folder` the teacher's hidden states are kept, and once a minute what training goes on from; if that is there already, training goes on
    from it, and ends with the same adapter, on a CPU bit for bit on the same machine and as many processes."""
    torch.manual_seed(args.seed)
    add_adapter(model, args.rank, args.alpha, args.lora_dropout, args.targets)
    model = parallel.share_out(model, args.model).train()
    limits = row_limits(model.config, model.device.type, parallel.WORLD, args.row)
    parameters = trainable(model)
    optimizer = torch.optim.AdamW(parameters, lr=args.lr, betas=(0.9, 0.999), weight_decay=0.02)
    autocast = torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=model.device.type == "cuda" or fast_bfloat16(),
                              cache_enabled=model.device.type == "cpu")        # of adapters' copies: a GPU makes them fast, and holds large ones
    fill = filler if model.device.type == "cpu" and fast_bfloat16() else lambda row, common=0: []
    checkpoint, teacher = folder / "checkpoint", folder / "teacher"
    teacher.mkdir(parents=True, exist_ok=True)
    paths = {id(r): teacher / f"{n}.pt" for n, r in enumerate([*trajectories, *validation])}

    def even(rows, idle):
        """Rows, and for each more that another process has an idle one: FSDP wants all to go through the motions."""
        return rows + [idle] * (parallel.most(len(rows)) - len(rows))

    def teach(trajectories):
        """Keeps the teacher's hidden states (N, C) at the action tokens of each record, which it sees with all its hints."""
        examples = [(*example(chat, r)[:2], paths[id(r)]) for r in trajectories]
        rows = [row for row in parallel.share(together(examples, limits[0])) if not all(file.exists() for _, _, file in row[1])]
        for common, row in tqdm(even(rows, (0, [(*examples[0][:2], None)])), unit="row", desc="teacher", leave=False, disable=parallel.RANK > 0):
            with torch.no_grad(), autocast, adapters(model, newest=False):
                hidden = hidden_at(model, row + fill(row, common), common)
            for (_, _, file), states in zip(row, hidden.split([len(x[1]) for x in row + fill(row, common)])):
                if file:
                    checkpoints.store(states.cpu().clone(), file)                # of the row only this record's part
        parallel.most(0)                                                         # all have written theirs

    def loss_on(batch, seed, dropout=1.0, learn=True):
        """The loss of a batch, and with `learn` its gradients. Each process takes its share of the records."""
        mine, (ids, at, targets, _), loss = parallel.share(batch), example(chat, batch[0], 1.0), 0.0
        idle = ids, at, targets, [0.0] * len(at), torch.zeros(len(at), model.config.hidden_size), random.Random(0)
        taught = [None if args.loss == "ce" else checkpoints.fetch(paths[id(r)]) for r in mine]
        rngs = [random.Random(f"{seed} {r['id']}") for r in mine]
        examples = [(*example(chat, r, dropout, rng), hidden, rng) for r, hidden, rng in zip(mine, taught, rngs)]
        for row in even(packed(examples, limits[1]), [idle]):
            row = row + [(*x, torch.zeros(len(x[1]), model.config.hidden_size), random.Random(0)) for x in fill(row)]
            hidden = None if args.loss == "ce" else torch.cat([x[4].to(model.device) for x in row])
            if args.lora_dropout and learn:
                drawn = [noise(len(x[0]), generator=torch.Generator().manual_seed(x[5].getrandbits(63))) for x in row]
                seed_dropout(model, crc32(seed.encode()), torch.cat(drawn), torch.cat([n[x[1]] for n, x in zip(drawn, row)]))
            with autocast, torch.set_grad_enabled(learn):
                loss += loss_of(model, row, hidden, args.kl_temperature, learn, count=sum(map(actions, batch)))
        return parallel.total(loss).item()

    def validate():
        """The mean loss of an action in the validation records, without hints."""
        parts = list(batches(validation, 64, random.Random(0)))
        losses = [loss_on(part, "", learn=False) * sum(map(actions, part)) for part in parts]
        mean = sum(losses) / sum(map(actions, validation))
        if parallel.RANK == 0:
            tqdm.write(f"update {len(log)}: validation loss {mean:.4f}")
        return mean

    def state():
        """What training goes on from."""
        moments = [optimizer.state[p] or {"step": torch.tensor(0.0), "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)} for p in parameters]
        return {"parameters": [p.detach() for p in parameters], "moments": moments, "log": json.dumps(log)}

    rng = random.Random(args.seed)
    epochs = [list(batches(trajectories, args.batch, rng)) for _ in range(args.epochs)]
    plan, log = sum(epochs, []), []
    ends = {sum(map(len, epochs[:n + 1])) for n in range(args.epochs)}
    if parallel.RANK == 0:
        print(f"{len(trajectories)} records, {sum(map(actions, trajectories))} actions; {len(plan)} updates; "
              f"{sum(p.numel() for p in parameters):,} trained of {sum(p.numel() for p in model.parameters()):,} parameters")
    if saved := checkpoints.restore(state(), checkpoint):
        log = json.loads(saved["log"])
        optimizer.state.update(zip(parameters, saved["moments"]))
    if args.loss == "kl":
        teach([*trajectories, *validation])
    clock, safe, start = time.time(), len(log), len(log)
    with tqdm(total=len(plan), initial=len(log), unit="update", disable=parallel.RANK > 0) as progress:
        try:
            for update in range(start, len(plan)):
                if model.device.type == "cuda" and update - start == FUSED_AFTER:
                    fuse(model)
                scale = min(1, (update + 1) / max(args.warmup, 1)) * (1 - update / len(plan) if args.decay else 1)
                optimizer.param_groups[0]["lr"] = args.lr * scale
                loss = loss_on(plan[update], f"{args.seed} {update}", args.hint_dropout)
                norm = parallel.whole(torch.nn.utils.clip_grad_norm_(parameters, 1.0)).item()
                if not math.isfinite(loss + norm):
                    raise ValueError(f"update {update + 1}: the loss or its gradient is no number; a lower --lr may help, or --model or an --adapter is damaged")
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                log.append({"update": update + 1, "loss": loss, "gradient_norm": norm})
                if validation and update + 1 in ends:
                    log[-1]["validation_loss"] = validate()
                if parallel.agree(time.time() - clock > 60):
                    checkpoints.save(state(), checkpoint)
                    clock, safe = time.time(), len(log)
                progress.update()
                progress.set_postfix(loss=f"{recent(log):.4f}")
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"{safe} of {len(plan)} updates are kept (a checkpoint is written once a minute)") from None
    return log


def fuse(model):
    """Lets torch.compile make fewer kernels of what is between the attentions, and of the loss."""
    if can_compile():
        Divergence.kernel = compiled(divergence)
        for block in model.layers:
            block.before, block.after = compiled(block.before), compiled(block.after)


def recent(log):
    """Mean loss of the last updates."""
    return sum(x["loss"] for x in log[-50:]) / len(log[-50:])


def main():
    p = command_line.Parser(__doc__)
    p.add_argument("--model", required=True, help="directory or hub id in Hugging Face format")
    p.add_argument("--adapter", action="append", default=[], metavar="DIR", help="earlier rounds', in order; they stay as they are")
    p.add_argument("--data", nargs="+", metavar="FILE", help="trajectories with hints, corrected actions")
    p.add_argument("--balance", nargs="+", metavar="FILE", help="candidate trajectories for the paper's data balancing (Appendix F)")
    p.add_argument("--verified", action="store_true", help="learn only from what ended in success (corrected actions: collect.py --rollout)")
    p.add_argument("--val", metavar="FILE", help="records whose loss is printed after every epoch")
    p.add_argument("--loss", choices=("kl", "ce"), default="kl", help="ce: cross-entropy on successful trajectories only")
    p.add_argument("--rank", type=command_line.number(int, 1, 65536), default=128)
    p.add_argument("--alpha", type=command_line.number(float, 0), default=256)
    p.add_argument("--lora-dropout", type=command_line.number(float, 0, 0.99), default=0.05)
    p.add_argument("--targets", nargs="+", choices=TARGETS, default=TARGETS, help="layers that get an adapter")
    p.add_argument("--lr", type=command_line.number(float, 0), default=1e-5)
    p.add_argument("--decay", action="store_true", help="let the learning rate fall to zero linearly; else it is constant after warm-up")
    p.add_argument("--warmup", type=command_line.number(int, 0), default=30, help="updates")
    p.add_argument("--epochs", type=command_line.number(int, 1), default=2)
    p.add_argument("--batch", type=command_line.number(int, 1), default=8, help="actions an update, at least; trajectories are not split")
    p.add_argument("--row", type=command_line.number(int, 1), help="tokens that a process computes at a time; what is more of a batch comes after it, and its gradients add up [16384; on one GPU 8192 of the teacher's and 4096 of the student's; on a CPU fewer the wider the model is, the student's far fewer in one process]")
    p.add_argument("--kl-temperature", type=command_line.number(float, 1e-3), default=2.0)
    p.add_argument("--hint-dropout", type=command_line.number(float, 0, 1), default=0.9, help="probability that the student does not see a hint section")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--out", type=Path, help="directory of the new adapter")
    planning.add_argument(p)
    args = p.parse_args()
    if args.plan:
        return planning.print_distillation(args, *to_plan(args) if args.data else ())
    if not args.data or not args.out:
        p.error("give --data and --out")
    args.out.mkdir(parents=True, exist_ok=True)
    folder = os.open(args.out, os.O_RDONLY)
    try:
        if parallel.RANK == 0:
            files.lock(folder, args.out)
        distill(args)
    finally:
        os.close(folder)


def distill(args):
    """The stage, once its command line is read and nobody else is writing to its folder."""
    if parallel.RANK == 0:
        made, note = any((args.out / name).exists() for name in ("adapter_model.safetensors", "checkpoint")), args.out / "arguments.json"
        before = note.exists() and note.read_bytes()
        files.same_arguments(note, {k: v for k, v in vars(args).items() if k != "row"}, made)
        if note.read_bytes() != before:                                # what another teacher has left there
            checkpoints.tidy(args.out)
    if (args.out / "adapter_model.safetensors").exists():
        if parallel.RANK == 0:
            checkpoints.tidy(args.out)
            print(f"{args.out}: there already")
        return

    chat = Chat(local_folder(args.model))
    data = chosen(args)
    validation = [r for r in read([args.val]) if usable(r)] if args.val else []
    if args.val and not validation:
        raise ValueError(f"{args.val}: no finished actions")

    parallel.start()
    model = parallel.load(args.model, args.adapter, whole=False, linear_dtype=torch.bfloat16 if fast_bfloat16() else None)
    for r in data + validation:
        if not all(spelled(chat, step, model.config.vocab_size) for step in r["steps"]):
            raise ValueError(f"the tokens of {r['id']} are not this model's: it was collected with {r.get('model', 'another one')}")
        if (length := len(example(chat, r)[0])) > model.config.max_position_embeddings:
            raise ValueError(f"{r['id']} is {length} tokens long; the model sees {model.config.max_position_embeddings}")
    log = train(model, chat, data, args, args.out, validation)
    if parallel.RANK == 0:
        files.write_whole({args.out / "log.jsonl": "".join(json.dumps(line) + "\n" for line in log)})
    save_adapter(model, args.out, base_model=args.model, write=parallel.RANK == 0)                # last: whoever sees it finds all of the rest
    if parallel.RANK == 0:
        checkpoints.tidy(args.out)
        print(f"{args.out}: adapter of rank {args.rank}, loss {recent(log):.4f} over the last updates")
    parallel.stop()


if __name__ == "__main__":
    command_line.run_stage(main)
