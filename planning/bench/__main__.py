"""Measures speed and memory, and compares them with this machine's limits and with other people's code.

    python -m planning.bench                        everything that needs no MODEL
    python -m planning.bench collect distill        some of it: limits, collect, batch, window, decode, distill, sandbox
                                                    and, on a GPU, plan
    python -m planning.bench real MODEL --profile   decoding with a real model, and where a step's time goes
    python -m planning.bench real MODEL --without packed-weights
    python -m planning.bench real MODEL --play "--tasks T --hints task"     collecting, with collect.py's options
    python -m planning.bench real MODEL --distill trajectories.jsonl        distilling them
    python -m planning.bench --without list         the special cases of our code

MODEL is a directory or hub id. The other models have random weights of a chosen size. The peers are what people use
today, transformers and peft. They are measured only where they are installed, with the same weights and the same work,
and the outputs are compared. Our code and the peer alternate, and the ratio of the medians is printed. On a GPU, the
memory is the GPU's, and everything that is compiled is compiled before the clock starts.

With --without, our code alternates with itself, without one of its special cases.
"""

from common import ROOT
from common.command_line import Parser, number, run_stage

import sys
import tempfile
from pathlib import Path

import torch

from planning.bench import collect, decode, distill, planned, play, sandbox
from planning.bench.harness import DEVICE, alone
from planning.bench.limits import limits
from planning.bench.without import CASES, listed

JOBS = ["limits", *collect.JOBS, "decode", "distill", *["plan"] * (DEVICE == "cuda"), "sandbox"]


def arguments():
    parser = Parser(__doc__)
    parser.add_argument("jobs", nargs="*", metavar="JOB", help=f"{', '.join(JOBS)}, or real MODEL [all but real]")
    parser.add_argument("--repeats", type=number(int, 1), default=3)
    parser.add_argument("--without", metavar="NAME", help="a special case to disable; `list` prints their names")
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "starter" / "world",
                        help="the starter world's data, for the sandbox job")
    parser.add_argument("--play", metavar="OPTIONS", help="of collect.py: play these tasks instead of decoding")
    parser.add_argument("--distill", metavar="FILE", help="learn a file's trajectories instead of decoding")
    real = parser.add_argument_group("decoding")
    real.add_argument("--agents", type=number(int, 1), nargs="+", default=[1, 16, 64], metavar="N")
    real.add_argument("--shared", type=number(int, 0), nargs="+", default=[400, 2000], metavar="TOKENS",
                      help="of the agents' prompts, the same for all")
    real.add_argument("--own", type=number(int, 1), default=32, metavar="TOKENS", help="of each agent's prompt")
    real.add_argument("--rank", type=number(int, 0), nargs="+", default=[0, 128], metavar="R",
                      help="of an adapter on every linear layer; 0: no adapter")
    real.add_argument("--dtype", choices=["bfloat16", "float32"], nargs="+", default=[],
                      help="[the fastest of this machine, and float32]; distilling on a CPU, too, can be measured in "
                           "float32")
    real.add_argument("--steps", type=number(int, 2), default=200 if DEVICE == "cuda" else 32, help="that are timed")
    real.add_argument("--profile", action="store_true", help="also print where the time of a step goes (on a CPU)")
    args = parser.parse_args()
    if args.without == "list":
        print(listed())
        parser.exit()
    if args.without and args.without not in CASES:
        parser.error(f"--without: no special case {args.without!r}; --without list prints their names")
    args.model = None
    if "real" in args.jobs:
        at = args.jobs.index("real")
        args.model, args.jobs = next(iter(args.jobs[at + 1:]), None), args.jobs[:at] + args.jobs[at + 2:]
        if not args.model:
            parser.error("real: name the model, a directory or hub id")
    elif not args.jobs:
        args.jobs = [CASES[args.without].job] if args.without else JOBS
        if args.jobs == ["real"]:
            parser.error(f"--without {args.without}: measure it with: real MODEL")
    if (args.play or args.distill) and not args.model:
        parser.error("--play and --distill need: real MODEL")
    if unknown := set(args.jobs) - set(JOBS):
        parser.error(f"no job {min(unknown)!r}; there are {', '.join(JOBS)}, real MODEL")
    if args.profile and DEVICE == "cuda":
        parser.error("--profile: on a CPU only; a GPU runs a step as one graph")
    if "sandbox" in args.jobs and not (args.data / "world.sqlite").exists():
        parser.error(f"--data {args.data}: no world.sqlite there; "
                     "python tools/starter_world.py --out data/starter makes it")
    return args


def main() -> None:
    args = arguments()
    float32, bfloat16, memory = alone(limits)
    name = torch.cuda.get_device_name() if DEVICE == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{name}; torch {torch.__version__}; matrix product {float32 / 1e9:,.0f} GFLOP/s in float32, "
          f"{bfloat16 / 1e9:,.0f} in bfloat16; memory {memory / 1e9:,.1f} GB/s", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for job in (job for job in collect.JOBS if job in args.jobs):
            collect.compare(args, job, folder)
        if args.play:
            play.compare_real(args)
        if args.distill:
            distill.compare_real(args, max(float32, bfloat16))
        if args.model and not args.play and not args.distill:
            decode.compare_real(args, folder)
        if "decode" in args.jobs:
            decode.compare(args, folder)
        if "distill" in args.jobs:
            distill.compare(args, folder, max(float32, bfloat16))
        if "plan" in args.jobs:
            planned.compare(folder, memory)
    if "sandbox" in args.jobs:
        sandbox.compare(args.data)


if __name__ == "__main__":
    sys.argv[0] = "planning.bench"                              # the name in --help and error messages
    run_stage(main)
