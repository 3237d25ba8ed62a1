"""Hints into weights: trajectories → a LoRA adapter (paper §3, Algorithm 1).

    python distill.py --model starter --data runs/demo/hinted1.jsonl --out runs/demo/round1
    python distill.py --model starter --adapter runs/demo/round1 --data runs/demo/corrected2.jsonl \\
        --balance runs/demo/hinted1.jsonl --out runs/demo/round2

The student is the current agent (the model with every --adapter) with one new adapter. Its teacher is the agent that
played the record: for an earlier round's trajectory, the model with the adapters of that time. The teacher sees the
record's hints; the student sees each hint section with probability 1 - hint dropout, and all hints of the --keep
records. The loss at each sampled token is KL(teacher ‖ student) over the vocabulary (training/loss.py). Only the new
adapter is trained (training/trainer.py). Below, a small model has fewer than 4 billion parameters
(training/defaults.py).
"""

from common import command_line, files

import gc
import json
import os
import random
from argparse import BooleanOptionalAction, Namespace
from datetime import timedelta
from itertools import chain, zip_longest
from pathlib import Path
from statistics import mean

import torch

from agent.chat import Chat
from engine.kernels import fast_bfloat16
from formats.model_card import write_card
from formats.weights import local_folder
from lora import TARGETS, save_adapter, stack
from planning import plan as planning
from scaling import checkpoints, parallel
from training.defaults import fill_in, shown
from training.examples import balance, batches, count_actions, distinct, read, select, to_example
from training.packing import longest_row
from training.schedule import FEWEST_EPOCHS, enough_epochs
from training.trainer import recent, say, train


def main():
    p = command_line.Parser(__doc__)
    p.add_argument("--model", required=True, help="directory or hub id in Hugging Face format")
    p.add_argument("--adapter", action="append", default=[], metavar="DIR",
                   help="adapter of an earlier round, which stays frozen; can be repeated, in order")
    p.add_argument("--data", nargs="+", metavar="FILE", help="trajectories with hints, corrected actions, chats")
    p.add_argument("--balance", nargs="+", metavar="FILE",
                   help="candidate trajectories for the paper's data balancing (Appendix F); each epoch draws some")
    p.add_argument("--keep", nargs="+", metavar="FILE",
                   help="records of other tasks, or chats, whose hints the student always sees, so that it still "
                        "follows hints afterwards")
    p.add_argument("--verified", action="store_true",
                   help="learn only from records that end in success (corrected actions need collect.py --rollout)")
    p.add_argument("--val", metavar="FILE", help="records whose loss is printed after every epoch")
    p.add_argument("--loss", choices=("kl", "ce"), default="kl",
                   help="ce: cross-entropy on successful trajectories only")
    p.add_argument("--rank", type=command_line.number(int, 1, 65536), help=shown("rank"))
    p.add_argument("--alpha", type=command_line.number(float, 0), help="[twice the rank]")
    p.add_argument("--lora-dropout", type=command_line.number(float, 0, 0.99), help=shown("lora_dropout"))
    p.add_argument("--targets", nargs="+", choices=TARGETS, default=TARGETS, help="layers that get an adapter")
    p.add_argument("--lr", type=command_line.number(float, 0), help=f"learning rate {shown('lr')}")
    p.add_argument("--decay", action=BooleanOptionalAction,
                   help="let the learning rate fall to zero linearly, the default for a small model; otherwise it is "
                        "constant after warm-up")
    p.add_argument("--warmup", type=command_line.number(int, 0), help=f"updates of warm-up {shown('warmup')}")
    p.add_argument("--epochs", type=command_line.number(int, 1),
                   help="[2; for a small model 2 to 10, so that it sees each type of task about 15 times, or in a "
                        "later round each type with corrected actions about 10 times]")
    p.add_argument("--batch", type=command_line.number(int, 1),
                   help=f"at least this many actions per update {shown('batch')}; trajectories are not split")
    p.add_argument("--row", type=command_line.number(int, 1),
                   help="tokens that a process computes at a time; the gradients of a batch's rows add up [16384 on "
                        "several GPUs; on one GPU 8192 for the teacher and 4096 for the student; on a CPU fewer for a "
                        "wider model, and fewer still for the student in a single process]")
    p.add_argument("--kl-temperature", type=command_line.number(float, 1e-3), help=shown("kl_temperature"))
    p.add_argument("--hint-dropout", type=command_line.number(float, 0, 1), default=0.9,
                   help="probability that the student does not see a hint section")
    p.add_argument("--seed", type=command_line.number(int, 0), nargs="+", default=[0],
                   help="with several seeds, one training each; the new adapter is their mean, and its rank is the sum "
                        "of theirs")
    p.add_argument("--weight", type=command_line.number(float, 0), default=1.0,
                   help="scales the finished adapter: 0.5 applies half of what was learned")
    p.add_argument("--out", type=Path, help="directory of the new adapter")
    planning.add_argument(p)
    args = p.parse_args()
    if not args.plan and not (args.data and args.out):
        p.error("give --data and --out")
    fill_in(args, planning.count(planning.config_of(args.model)))
    if args.plan:
        measured = measure(args) if args.data else ()
        args.epochs = args.epochs or FEWEST_EPOCHS
        return planning.print_distillation(args, *measured)
    if len(set(args.seed)) < len(args.seed):
        p.error("--seed: the same seed twice would train the same adapter twice")
    args.out.mkdir(parents=True, exist_ok=True)
    folder = os.open(args.out, os.O_RDONLY)
    try:
        if parallel.RANK == 0:
            files.lock(folder, args.out)
        distill(args)
    finally:
        os.close(folder)


def distill(args):
    """The stage, once its command line is read and no other run writes to its folder."""
    note, adapter = args.out / "arguments.json", args.out / "adapter_model.safetensors"
    unfinished = args.out / checkpoints.UNFINISHED
    if parallel.RANK == 0:
        noted = note.read_bytes() if note.exists() else None
        started = adapter.exists() or any(unfinished.glob("checkpoint*")) or any(unfinished.glob("seed*"))
        files.same_arguments(note, {k: v for k, v in vars(args).items() if k != "row"}, started)
        if note.read_bytes() != noted:                          # hidden states of a teacher with other arguments
            checkpoints.tidy(args.out)
    if adapter.exists():
        if parallel.RANK == 0:
            checkpoints.tidy(args.out)
        return say(f"{args.out}: already there")

    chat, selected = Chat(local_folder(args.model)), select_records(args)
    validation = usable_records([args.val], args) if args.val else []

    parallel.start(timedelta(hours=1))                          # its processes do the same at the same time
    parts = [unfinished / f"seed{seed}" for seed in args.seed]  # one per seed, and one to be scaled
    if len(parts) == 1 and args.weight == 1:
        parts = [args.out]
    records = distinct(chain(*selected))
    logs = [train_one(chat, epochs, records, validation, args, seed, part)
            for epochs, seed, part in zip(selected, args.seed, parts, strict=True)]
    log = [mean_of(entries) for entries in zip_longest(*logs)]
    parallel.wait()                                             # until every process has read the parts
    if parallel.RANK == 0:
        if parts != [args.out]:
            write_notes(args.out, args, log)
            stack(parts, args.out, args.weight / len(parts), card=False)        # last: it marks the end
        checkpoints.tidy(args.out)
    say(f"{args.out}: adapter of rank {args.rank * len(parts)}, loss {recent(log):.4f} over the last updates")
    parallel.stop()


def train_one(chat, epochs, records, validation, args, seed, folder):
    """Trains an adapter with one seed on its epochs' records and writes it to `folder`, if it is not there yet. Returns
    the training's log. `records` are those of all seeds, which share their teacher's hidden states."""
    if not (folder / "adapter_model.safetensors").exists():
        folder.mkdir(parents=True, exist_ok=True)
        gc.collect()                                            # the previous seed's model, which refers to itself
        model = parallel.load(args.model, args.adapter, whole=False,
                              linear_dtype=torch.bfloat16 if fast_bfloat16() else None)
        for r in records + validation:
            check_tokens(r, chat, model.config)
        args = Namespace(**vars(args) | {"seed": seed})
        unfinished = args.out / checkpoints.UNFINISHED
        log = train(model, chat, epochs, args, unfinished / f"checkpoint{seed}", unfinished / "teacher", validation,
                    records)
        if parallel.RANK == 0:
            write_notes(folder, args, log)
        save_adapter(model, folder, base_model=args.model, write=parallel.RANK == 0)           # last: it marks the end
        parallel.wait()
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def write_notes(folder, args, log):
    """Writes the training's log and the model card."""
    files.write_whole({folder / "log.jsonl": files.as_lines(log)})
    write_card(folder, args.model, card_text(args), settings(args) | {"loss at the end": f"{recent(log):.4f}"})


def mean_of(entries):
    """The mean of each figure over the trainings that had this update; how many a training has depends on its order."""
    entries = [entry for entry in entries if entry]
    figures = {name: [entry[name] for entry in entries if name in entry] for entry in entries for name in entry}
    return {name: mean(values) for name, values in figures.items()}


def card_text(args):
    """What the model card says."""
    earlier = f" It stands on top of {', '.join(args.adapter)}: load these first." if args.adapter else ""
    data = ", ".join(args.data + (args.balance or []))
    return f"Hints of {data}, distilled into a LoRA adapter for {args.model}.{earlier}"


def settings(args):
    """The settings that the model card lists."""
    names = ("adapter", "data", "balance", "keep", "val", "verified", "loss", "rank", "alpha", "lora_dropout",
             "targets", "lr", "decay", "warmup", "epochs", "batch", "kl_temperature", "hint_dropout", "seed", "weight")
    return {name.replace("_", " "): getattr(args, name) for name in names}


def select_records(args):
    """For each seed, the records of each epoch: all of --data, some of --balance, drawn anew for each epoch, and all of
    --keep, marked as `kept`. Sets args.epochs if it is None. Raises ValueError if one of them has none."""
    records = usable_records(args.data, args)
    kept = [r | {"kept": True} for r in usable_records(args.keep, args)] if args.keep else []
    candidates = usable_records(args.balance, args) if args.balance else []

    def draw(rng):
        return records + (balance(records, candidates, rng) if args.balance else []) + kept

    first = draw(random.Random(args.seed[0]))
    if args.balance:
        say(f"{len(records)} records and in each epoch {len(first) - len(records) - len(kept)} of {len(candidates)} "
            "candidates")
    if not args.epochs:
        args.epochs = enough_epochs(first)
        say(f"{args.epochs} epochs, chosen for these records (docs/coaching.md); --epochs overrides this")
    return [[draw(rng) for _ in range(args.epochs)] for rng in map(random.Random, args.seed)]


def successes_only(args):
    return args.verified or args.loss == "ce"


def usable_records(paths, args):
    """The records of these files that can be learned. Raises ValueError if there are none."""
    found = read(paths)
    records, whole = select(found, successes_only(args)), select(found, successes_only=False)
    if len(whole) < len(found):
        say(f"{', '.join(map(str, paths))}: {len(found) - len(whole)} of {len(found)} records are left out, because an "
            "action was cut off, is no code, or has no token ids")
    if not records:
        missing = "no finished actions"
        if successes_only(args):
            missing = "no successes; corrected actions count as such only if collect.py played them with --rollout"
        raise ValueError(f"{', '.join(map(str, paths))}: nothing is left to learn from ({missing})")
    return records


def check_tokens(record, chat, config):
    """Raises ValueError if a record's tokens are not this model's, or if there are too many for it."""
    if not all(chat.spells(step) for step in record.get("steps", ())):
        raise ValueError(f"the tokens of {record['id']} are not this model's: "
                         f"it was collected with {record.get('model', 'another one')}")
    length, limit = len(to_example(chat, record).tokens), config.max_position_embeddings
    if length > limit:
        raise ValueError(f"{record['id']} is {length} tokens long; the model sees at most {limit}")


def measure(args):
    """What `planning.print_distillation` needs to know of the records. Sets args.epochs if it is None."""
    chat, selected = Chat(local_folder(args.model, weights=False)), select_records(args)
    records, validation = distinct(chain(*selected)), usable_records([args.val], args) if args.val else []
    taught = {id(r): to_example(chat, r) for r in records}

    def lengths(r):
        bare = to_example(chat, r, 1.0)
        return planning.Lengths(len(taught[id(r)].tokens), len(bare.tokens), len(bare.at), count_actions([r]))

    known, updates = {id(r): lengths(r) for r in records}, []
    for epochs, seed in zip(selected, args.seed, strict=True):
        rng = random.Random(seed)
        updates += [[known[id(r)] for r in batch] for epoch in epochs for batch in batches(epoch, args.batch, rng)]
    read_by_teacher = [*taught.values(), *(to_example(chat, r) for r in validation)]
    return updates, lambda limit: longest_row(read_by_teacher, limit)


if __name__ == "__main__":
    command_line.run_stage(main)
