"""The training loop: records → a new adapter on the model. distill.py says what is learned, and from what.

Four things make it fast without changing a gradient: all actions of a trajectory are learned in one pass; trajectories
are packed into rows without padding (training/packing.py); logits are computed only at action tokens, chunk by chunk;
the teacher's hidden states, and hints that several trajectories share, are computed only once.
"""

from common import files

import json
import math
import random
import time
from argparse import Namespace
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from zlib import crc32

import torch
from tqdm import tqdm

from agent.chat import Chat
from engine.decoder import can_compile, compiled
from engine.kernels import fast_bfloat16
from lora import add_adapter, noise, seed_dropout, trainable, without_newest
from scaling import checkpoints, parallel
from training.examples import batches, count_actions, distinct, teacher_adapters, to_example
from training.loss import BACKENDS, chunked_loss, token_kl
from training.packing import Row, hidden_states, pack, pack_by_prefix, row_limits
from training.schedule import factor, outcome, passes, unfit_settings

COMPILE_AFTER = 100                                             # updates on a GPU; compiling takes about as long


def train(model: torch.nn.Module, chat: Chat, epochs: list[list[dict]], args: Namespace, checkpoint: Path,
          teacher: Path, validation: list[dict] = (), all_records: list[dict] = ()) -> list[dict]:
    """Trains a new adapter on `model`, which is changed in place, with the records of each epoch. Returns the log, one
    object per update.

    A checkpoint is written to the folder `checkpoint` about once a minute, less often where that takes long. Training
    resumes from it if there is one, and ends with the same adapter: bit for bit on a CPU, with the same machine and
    number of processes. `teacher` is the folder of the teacher's hidden states. Trainings can share it; `all_records`
    are then the records of all."""
    seen = [r for records in epochs for r in records]
    all_records = all_records or distinct(epochs)
    trainer = Trainer(model, chat, [*all_records, *validation], args, checkpoint, teacher)
    optimizer, rng = trainer.optimizer, random.Random(args.seed)
    by_epoch = [list(batches(records, args.batch, rng)) for records in epochs]
    updates = [batch for epoch in by_epoch for batch in epoch]
    sizes = [len(epoch) for epoch in by_epoch]
    ends = set(accumulate(sizes))
    say(f"{len(epochs[0])} records, {count_actions(epochs[0])} actions; {len(updates)} updates in {len(epochs)} "
        f"epoch{'s' * (len(epochs) > 1)}; {trainer.sizes()}")
    for line in [*trainer.earlier_teachers(), *unfit_settings(args, len(updates), passes(seen))]:
        say(line)
    if (share := len(seen) / len(updates)) < parallel.WORLD:
        say(f"an update has about {share:.1f} trajectories for {parallel.WORLD} processes, so some are idle; raise "
            "--batch")

    log = trainer.restore()
    if args.loss == "kl":
        trainer.run_teacher()
    saved, clock, start, took = len(log), time.time(), len(log), 0.0
    with tqdm(total=len(updates), initial=start, unit="update", disable=parallel.RANK > 0) as progress:
        try:
            for update in range(start, len(updates)):
                if model.device.type == "cuda" and update - start == COMPILE_AFTER:
                    trainer.compile()
                optimizer.param_groups[0]["lr"] = args.lr * factor(update, len(updates), args)
                loss = trainer.loss(updates[update], f"{args.seed} {update}", args.hint_dropout)
                norm = torch.nn.utils.clip_grad_norm_(trainer.parameters, 1.0, **trainer.at_once)
                norm = parallel.full_tensor(norm).item()
                if not math.isfinite(loss + norm):
                    raise ValueError(f"update {update + 1}: the loss or its gradient is NaN or infinite; "
                                     "a lower --lr may help, or --model or an --adapter is damaged")
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                log.append({"update": update + 1, "loss": loss, "gradient_norm": norm})
                if validation and update + 1 in ends:
                    log[-1]["validation_loss"] = trainer.validate(validation)
                    say(f"update {update + 1}: validation loss {log[-1]['validation_loss']:.4f}")
                if parallel.broadcast(time.time() - clock > max(60, 20 * took)):    # at most a twentieth of the time
                    began = time.monotonic()
                    trainer.save(log)
                    saved, clock, took = len(log), time.time(), time.monotonic() - began
                progress.update()
                progress.set_postfix(loss=f"{recent(log):.4f}")
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"{saved} of {len(updates)} updates are kept (a checkpoint is written about once "
                                    "a minute); the same command resumes from there") from None
    for line in outcome([entry["loss"] for entry in log], sizes):
        say(line)
    return log


class Trainer:
    """The model with its new adapter, the optimizer, and what the loss of a batch needs. Under torchrun each process
    computes its share of the rows."""

    def __init__(self, model, chat, records, args, checkpoint, teacher):
        torch.manual_seed(args.seed)
        add_adapter(model, args.rank, args.alpha, args.lora_dropout, args.targets)
        self.model = parallel.shard(model, args.model).train()
        self.chat, self.records, self.args, self.checkpoint = chat, records, args, checkpoint
        self.parameters = trainable(self.model)
        device = self.model.device.type
        self.at_once = {"foreach": True} if device == "cuda" else {}    # PyTorch would not choose it for FSDP's shards
        self.optimizer = torch.optim.AdamW(self.parameters, lr=args.lr, betas=(0.9, 0.999), weight_decay=0.02,
                                           **self.at_once)
        self.backend = BACKENDS[device]
        self.limits = row_limits(self.model.config, device, parallel.WORLD, args.row)
        bfloat16 = device == "cuda" or fast_bfloat16()
        self.autocast = torch.autocast(device, dtype=torch.bfloat16, enabled=bfloat16,
                                       cache_enabled=device == "cpu")           # cast adapters are kept only on a CPU
        self.taught = {id(r): {"teacher_file": teacher / f"{n}.pt",             # two records may share an "id"
                               "adapters": teacher_adapters(r, args.model, args.adapter)}
                       for n, r in enumerate(records)}

    def sizes(self):
        trained, total = (sum(p.numel() for p in ps) for ps in (self.parameters, self.model.parameters()))
        return f"{trained:,} trained of {total:,} parameters"

    def earlier_teachers(self):
        """A sentence on the records that an earlier round's agent has played, if there are any. Those of all epochs and
        seeds count, and validation's."""
        earlier = sum(taught["adapters"] < len(self.args.adapter) for taught in self.taught.values())
        line = f"{earlier} of {len(self.taught)} records are taught by an earlier round's agent, which played them"
        return [line] if earlier and self.args.loss == "kl" else []

    def run_teacher(self):
        """Writes the teacher's hidden states (N, C) at each record's action tokens. The teacher sees all hints."""
        examples = [replace(to_example(self.chat, r), **self.taught[id(r)]) for r in self.records]
        rows = [row for row in parallel.share(pack_by_prefix(examples, self.limits[0]))
                if not all(x.teacher_file.exists() for x in row.examples)]
        idle = lambda: Row([replace(examples[0], teacher_file=None)])
        for row in tqdm(same_number(rows, idle), unit="row", desc="teacher", leave=False, disable=parallel.RANK > 0):
            with torch.no_grad(), self.autocast, without_newest(self.model, row.adapters):
                hidden = hidden_states(self.model, row)
            for x, states in zip(row.examples, hidden.split([len(x.at) for x in row.examples]), strict=True):
                if x.teacher_file:
                    checkpoints.save_tensor(states.cpu().clone(), x.teacher_file)   # a copy: no view of the whole row
        parallel.wait()                                         # until all are written

    def loss(self, batch, seed, hint_dropout, learn=True):
        """The loss of a batch of records. With `learn`, its gradients are added to the adapter's."""
        examples = []
        for r in parallel.share(batch):
            rng = random.Random(f"{seed} {r['id']}")
            example = to_example(self.chat, r, hint_dropout, rng)
            examples.append(replace(example, **self.taught[id(r)], noise_seed=rng.getrandbits(63)))

        def idle():
            """The batch's record with the fewest actions, at weight 0."""
            x = to_example(self.chat, min(batch, key=lambda r: count_actions([r])), 1.0)
            return Row([replace(x, weights=[0.0] * len(x.at))])

        total = 0.0
        for row in same_number(pack(examples, self.limits[1]), idle):
            kl = self.args.loss == "kl"
            teacher_hidden = torch.cat([self.teacher_hidden(x) for x in row.examples]) if kl else None
            if self.args.lora_dropout and learn:
                self.seed_dropout(row, seed)
            with self.autocast, torch.set_grad_enabled(learn):
                total += chunked_loss(self.model, row, teacher_hidden, self.args.kl_temperature, learn,
                                      count_actions(batch), parallel.WORLD, self.backend)
        return parallel.all_reduce_sum(total).item()

    def teacher_hidden(self, x):
        """The teacher's hidden states of an example (N, C); zeros for one of weight 0."""
        width = self.model.config.hidden_size
        states = checkpoints.load_tensor(x.teacher_file) if x.teacher_file else torch.zeros(len(x.at), width)
        return states.to(self.model.device)

    def seed_dropout(self, row, seed):
        """Makes dropout depend on the record and the update, not on the row or the process."""
        drawn = [noise(len(x.tokens), generator=torch.Generator().manual_seed(x.noise_seed)) for x in row.examples]
        at_actions = [n[x.at] for n, x in zip(drawn, row.examples, strict=True)]
        seed_dropout(self.model, crc32(seed.encode()), torch.cat(drawn), torch.cat(at_actions))

    def validate(self, records):
        """The mean loss of an action; the teacher sees all hints, the student none."""
        parts = list(batches(records, 64, random.Random(0)))
        losses = [self.loss(part, "", 1.0, learn=False) * count_actions(part) for part in parts]
        return sum(losses) / count_actions(records)

    def compile(self):
        """Fuses the kernels between attentions, and those of the loss (torch.compile)."""
        if can_compile():
            say("compiling kernels, which takes about as long as these updates did")
            self.backend = replace(self.backend, kl=compiled(token_kl))
            for block in self.model.layers:
                block.before, block.after = compiled(block.before), compiled(block.after)

    def state(self, log):
        """What a checkpoint holds."""
        def moments(p):
            return self.optimizer.state[p] or {"step": torch.tensor(0.0), "exp_avg": torch.zeros_like(p),
                                               "exp_avg_sq": torch.zeros_like(p)}
        return {"parameters": [p.detach() for p in self.parameters], "moments": list(map(moments, self.parameters)),
                "log": json.dumps(log)}

    def save(self, log):
        """Writes a checkpoint, and beside it the log so far for the user to read."""
        checkpoints.save(self.state(log), self.checkpoint)
        if parallel.RANK == 0:
            files.write_whole({self.checkpoint.with_suffix(".jsonl"): files.as_lines(log)})

    def restore(self):
        """Fills the adapter and the optimizer from a checkpoint. Returns its log, empty if there is no checkpoint."""
        saved = checkpoints.restore(self.state([]), self.checkpoint)
        if saved is None:
            return []
        self.optimizer.state.update(zip(self.parameters, saved["moments"], strict=True))
        return json.loads(saved["log"])


def same_number(rows, idle):
    """This process's rows, filled up with idle() to the largest number of any process: FSDP needs equal numbers."""
    return rows + [idle() for _ in range(parallel.all_reduce_max(len(rows)) - len(rows))]


def recent(log: list[dict]) -> float:
    """Mean loss of the last updates."""
    last = log[-50:]
    return sum(entry["loss"] for entry in last) / len(last)


def say(text: str) -> None:
    """Prints a text above the progress bar, in the first process only."""
    if parallel.RANK == 0:
        tqdm.write(text)
