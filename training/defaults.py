"""The settings of a training that its command line leaves out.

A large model gets those of the paper and its authors' code, chosen for Llama-3.1-70B and a first round of 1,778 updates
(rounds 2 and 3, on top of it, had 138 and 270). A small model is usually trained for fewer and needs a higher learning
rate: these settings taught Qwen2.5-Coder-1.5B its hints (docs/coaching.md). A later round has less to learn, and at the
first round's rate the loss rose instead (docs/results.md, "Examples in one step").
"""

from argparse import Namespace

LARGE = {"rank": 128, "lora_dropout": 0.05, "lr": 1e-5, "decay": False, "warmup": 30, "batch": 8, "kl_temperature": 2.0,
         "epochs": 2}
SMALL = {"rank": 32, "lora_dropout": 0.0, "lr": 3e-4, "decay": True, "warmup": 3, "batch": 4, "kl_temperature": 1.0,
         "epochs": None}                                        # as many as the records need: schedule.enough_epochs
LATER = SMALL | {"lr": 1e-4}                                    # on top of an earlier adapter
FEWEST = 4e9                                                    # a model with at least this many parameters is large


def fill_in(args: Namespace, parameters: int) -> None:
    """Sets what is None in `args` to the default for a model with this many parameters. alpha is twice the rank. The
    epochs of a small model stay None until its records are read."""
    small = LATER if args.adapter else SMALL
    for name, value in (LARGE if parameters >= FEWEST else small).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.alpha is None:
        args.alpha = 2.0 * args.rank


def shown(name: str) -> str:
    """The defaults of a setting, as --help shows them."""
    later = f", with an --adapter {LATER[name]:g}" * (LATER[name] != SMALL[name])
    return f"[{LARGE[name]:g}; for a small model {SMALL[name]:g}{later}]"
