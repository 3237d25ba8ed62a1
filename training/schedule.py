"""The learning rate over the updates, whether they go far enough for the adapter to learn anything, and whether they
helped.

Adam moves a parameter by about the learning rate in each update, and the model sees alpha / rank times the adapter. So
a training reaches about as far as

    reach = alpha / rank · Σ_t lr_t                             over the updates t

A long reach is not enough: the model also has to see each type of task often. docs/coaching.md lists both for trainings
of real models.
"""

from argparse import Namespace
from collections.abc import Sequence
from statistics import mean

SHORT = 0.005               # a shorter reach gives a warning; two easy types of task were once learned with 0.0027
FEW, USUAL = 10, 15         # passes over each type of task: fewer give a warning; what a first round aims at
CORRECTED = 10              # what a later round aims at, for each type with corrected actions
FEWEST_EPOCHS, MOST_EPOCHS = 2, 10


def factor(update: int, updates: int, args: Namespace) -> float:
    """The learning rate's factor: linear warm-up, then constant or, with --decay, falling to zero linearly."""
    warm_up = min(1, (update + 1) / max(args.warmup, 1))
    return warm_up * (1 - update / updates) if args.decay else warm_up


def passes(records: Sequence[dict]) -> float | None:
    """How often a training sees each type of task, on average; `records` are those of all epochs. Chats, which have no
    type, and kept records do not count. None without trajectories, and None with corrected actions: FEW was measured
    for first rounds only."""
    counted = [r for r in records if not r.get("kept")]
    return None if any("targets" in r for r in counted) else per_type(counted)


def per_type(records):
    types = [r["task"]["template"] for r in records if "task" in r]
    return len(types) / len(set(types)) if types else None


def enough_epochs(records: Sequence[dict]) -> int:
    """In how many epochs a small model sees each type of task about 15 times or, in a later round, each type with
    corrected actions about 10 times: 2 to 10."""
    counted = [r for r in records if not r.get("kept")]
    corrected = [r for r in counted if "targets" in r]
    seen, aim = per_type(corrected or counted), CORRECTED if corrected else USUAL
    return FEWEST_EPOCHS if seen is None else min(max(round(aim / seen), FEWEST_EPOCHS), MOST_EPOCHS)


def unfit_settings(args: Namespace, updates: int, seen: float | None = None) -> list[str]:
    """A sentence on each setting that does not fit the number of updates, or how often each type of task is seen
    (`passes`). On top of an earlier round, the limit is a fifth of SHORT: the paper's round 2 reaches only
    0.0025."""
    lines = []
    if args.warmup > updates / 2:
        lines.append(f"--warmup {args.warmup} is long for {updates} updates; try --warmup {max(updates // 20, 1)}")
    reach = args.alpha / args.rank * args.lr * sum(factor(t, updates, args) for t in range(updates))
    if reach < (SHORT / 5 if args.adapter else SHORT):
        lines.append(f"{updates} updates with --lr {args.lr:g} may hardly move the adapter: they reach {reach:.1g}, "
                     "where 0.02 is usual. docs/coaching.md, 'How long, and how fast', has settings for few updates")
    if seen is not None and seen < FEW:
        lines.append(f"the model will see each type of task {seen:.1f} times, where {USUAL} is usual "
                     "(docs/coaching.md). Raise --epochs, or collect more tasks of each type")
    return lines


def outcome(losses: Sequence[float], sizes: Sequence[int]) -> list[str]:
    """How the loss of each update went from the first epoch to the last, in sentences; `sizes` are the numbers of
    updates in the epochs. Nothing with a single epoch, whose updates learn from different records."""
    if len(sizes) == 1:
        return []
    first, last = mean(losses[:sizes[0]]), mean(losses[-sizes[-1]:])
    lines = [f"loss {first:.4f} in the first epoch, {last:.4f} in the last"]
    if last >= first:
        lines.append("the loss did not fall, so the agent may do worse than before: evaluate it with and without this "
                     "adapter, and see 'If it did not work' in docs/coaching.md")
    return lines
