"""How good an agent is: a model → success rates; several results → the paper's table.

    python evaluate.py --model starter --adapter runs/demo/round1 --tasks data/starter/test.jsonl --out 3-round1.jsonl
    python evaluate.py --model M --suite humaneval --file F --out humaneval.jsonl        a standard benchmark
    python evaluate.py --chats held-out.jsonl --model M --adapter A         another agent's chats, without its manual
    python evaluate.py --table runs/demo/test/*.jsonl [--html run.html]     a row per file; the whole run as a page

Success is an exact match of the answer (paper §5.1), in percent, with the standard error over the trials.
"""

from common import command_line, files

import functools
import sys
from argparse import Namespace

from agent import options, rollouts
from agent.play import play
from desk import backend, chats, suites
from desk.run_report import run_page
from desk.tables import changes, table, unfinished
from formats import records
from formats.model_card import add_results
from planning import plan


def main():
    args = arguments()
    if args.table:
        print_table(args.table, args.html, args.card)
    elif args.model and args.plan:
        plan.print_collection(args)
    elif args.chats:
        print(chats.compare(args))
    else:
        play_tasks(args)


def arguments() -> Namespace:
    parser = command_line.Parser(__doc__)
    options.add_arguments(parser)
    options.add_task_arguments(parser)
    parser.add_argument("--table", nargs="+", metavar="FILE", help="print the table of these results, play nothing")
    parser.add_argument("--html", metavar="FILE", help="with --table: also write the run as a page")
    parser.add_argument("--card", metavar="DIR", help="with --table: also put it into this adapter's model card")
    parser.add_argument("--suite", choices=suites.PROMPTS, help="play a standard benchmark instead of --tasks")
    parser.add_argument("--file", metavar="FILE", help="with --suite: its official file")
    parser.add_argument("--chats", metavar="FILE",
                        help="compare the model with and without the manual of these chats, and with its adapters")
    plan.add_argument(parser)
    args = parser.parse_args()
    if (args.html or args.card) and not args.table:
        parser.error("--html and --card need --table")
    if args.table or args.model and (args.plan or args.chats):
        return args
    one_source = bool(args.tasks) != bool(args.suite) and bool(args.suite) == bool(args.file)
    if not (args.model and args.out and one_source):
        parser.error("give --model, --out, and --tasks or --suite with --file; or --model and --chats; or --table")
    if args.suite and (args.hints != "none" or args.kinds or args.hints_for):
        parser.error("a --suite has no hints; it takes no --hints, --kinds or --hints-for")
    return args


def print_table(paths: list[str], html: str | None, card: str | None) -> None:
    files.refuse_overwriting(html, paths)
    for path in paths:
        if unfinished(records.read_trajectories(path)):
            print(f"WARNING: {path}: its trials have different tasks, as if it were unfinished; its row says little",
                  file=sys.stderr)
    print(text := table(paths))
    if said := changes(paths):
        print(f"\n{said}")
    if card:
        add_results(card, text)
    if html:
        files.write_whole({html: run_page(paths)})
        print(f"\n{html}: written")


def play_tasks(args: Namespace) -> None:
    """Plays all trials, then prints their table."""
    if args.suite:
        tasks, args.tools, args.data = suites.read_suite(args.suite, args.file), None, None
    else:
        tasks = records.read_tasks(args.tasks)
    chat = backend.chat_with(args)
    player = (functools.partial(suites.attempt, chat) if args.suite else
              functools.partial(play, chat, max_steps=args.max_steps))
    report = lambda: f"{table([args.out])}\n\n{rollouts.summary(args.out)}"
    backend.play_planned(rollouts.trials(tasks, args), args, chat, player, report)


if __name__ == "__main__":
    command_line.run_stage(main)
