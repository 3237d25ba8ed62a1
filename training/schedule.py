"""The learning rate over the updates, and whether they go far enough for the adapter to learn anything.

Adam moves a parameter by about the learning rate in each update, and the model sees alpha / rank times the adapter. So
a training reaches about as far as

    reach = alpha / rank · Σ_t lr_t                             over the updates t

docs/coaching.md lists the reach of trainings that learned their hints.
"""

from argparse import Namespace

ENOUGH = 0.005                                                  # the shortest that taught a model its hints had 0.008


def factor(update: int, updates: int, args: Namespace) -> float:
    """The learning rate's factor: linear warm-up, then constant or, with --decay, falling to zero linearly."""
    warm_up = min(1, (update + 1) / max(args.warmup, 1))
    return warm_up * (1 - update / updates) if args.decay else warm_up


def unfit_settings(args: Namespace, updates: int) -> list[str]:
    """A sentence on each setting that does not fit the number of updates."""
    lines = []
    if args.warmup > updates / 2:
        lines.append(f"--warmup {args.warmup} is long for {updates} updates; try --warmup {max(updates // 20, 1)}")
    reach = args.alpha / args.rank * args.lr * sum(factor(t, updates, args) for t in range(updates))
    if reach < ENOUGH:
        lines.append(f"{updates} updates with --lr {args.lr:g} will hardly move the adapter: they reach {reach:.1g}, "
                     "where 0.02 is usual (docs/coaching.md). Raise --lr, up to 5e-4, or --epochs")
    return lines
