"""Lets the agent work: tasks → trajectories, or flagged states → corrected actions.

    python collect.py --model starter --tasks data/starter/train.jsonl --hints task --out runs/demo/hinted1.jsonl
    python collect.py --model starter --adapter runs/demo/round1 --resample runs/demo/flagged2.jsonl \\
                      --out runs/demo/corrected2.jsonl

The first command plays a round's tasks: with hints in round 1 (paper §3.1), without hints in later rounds.
The second returns to the states where review.py found a mistake, puts the corrective hint at the end of the prompt, and
samples the action again (§3.2). A coach first watches an agent at work:

    python collect.py --model starter --adapter runs/demo/round1 --ask "What was the opening price on 2013-12-24?"
    python collect.py --model M --hints task --group coffee --ask --beside "--adapter round1 --hints none"
"""

from common import command_line

import argparse
import copy
import functools
import shlex

from agent import options, rollouts
from agent.play import play
from desk import backend
from desk.ask import ask
from formats import records
from planning import plan
from scaling import parallel


def main():
    parser = command_line.Parser(__doc__)
    options.add_arguments(parser)
    options.add_task_arguments(parser)
    parser.add_argument("--resample", metavar="FILE", help="JSONL of flagged states, instead of --tasks")
    parser.add_argument("--samples", type=command_line.number(int, 1), default=4,
                        help="actions from each flagged state")
    parser.add_argument("--control", action="store_true",
                        help="do not show the hint; the hint's effect is measured against this")
    parser.add_argument("--rollout", action="store_true",
                        help="after the corrected action, play on to the task's end without further hints")
    parser.add_argument("--ask", nargs="?", const="", metavar="QUESTION",
                        help="play QUESTION live in the terminal, or without it every question that you type")
    parser.add_argument("--beside", metavar="OPTIONS",
                        help="with --ask: a second agent answers, too; it gets these options on top of the others "
                             "(write --beside=--prefill if it is a single flag)")
    parser.add_argument("--group", help="with --ask and --hints task: the question's group")
    parser.add_argument("--template", help="with --ask and --hints task: the question's template")
    plan.add_argument(parser)
    args = parser.parse_args()
    if args.model and args.plan:
        return plan.print_collection(args)
    if args.ask is not None:
        if not args.model or args.tasks or args.resample or args.tp > 1:
            parser.error("--ask needs --model, and takes no --tasks, no --resample and no --tp")
        return ask(args, second_agent(parser, args) if args.beside is not None else None)
    if args.group or args.template or args.beside is not None:
        parser.error("--group, --template and --beside need --ask")
    if not args.model or not args.out or bool(args.tasks) == bool(args.resample):
        parser.error("give --model, --out, and either --tasks or --resample")
    if (args.control or args.rollout) and not args.resample:
        parser.error("--control and --rollout need --resample")
    if args.resample and (args.hints != "none" or args.kinds or args.hints_for):
        parser.error("--resample plays the flagged prompts as they are; it takes no --hints, --kinds or --hints-for")

    if args.resample:
        states = records.read_flagged(args.resample)
        if parallel.RANK == 0:
            rollouts.check_player(states, args)
        planned = rollouts.corrections(states, args, args.samples, args.control)
    else:
        planned = rollouts.trials(records.read_tasks(args.tasks), args)
    chat = backend.chat_with(args)
    only_next = bool(args.resample) and not args.rollout
    player = functools.partial(play, chat, max_steps=args.max_steps, only_next=only_next)
    backend.play_planned(planned, args, chat, player, lambda: rollouts.summary(args.out))


def second_agent(parser: command_line.Parser, args: argparse.Namespace) -> argparse.Namespace:
    """The options of --beside on top of the others."""
    try:
        return parser.parse_args(shlex.split(args.beside), copy.copy(args))
    except ValueError as e:                                             # a quotation mark without its partner
        parser.error(f"--beside: {e}")


if __name__ == "__main__":
    command_line.run_stage(main)
