"""Lets the agent work: tasks → trajectories, or flagged states → corrected actions.

    python collect.py --model starter --tasks data/starter/train.jsonl --hints task --out runs/demo/hinted.jsonl
    python collect.py --model starter --adapter runs/demo/round1 --resample runs/demo/flagged.jsonl \\
                      --out runs/demo/corrected.jsonl

The first command gives a round its experience: with the hints of round 1 (paper §3.1), in later rounds without hints.
The second returns to the states where review.py found a mistake, puts the corrective hint at the end of the prompt, and
samples the action again (§3.2).
"""

from common import command_line, files

import functools

from agent import options, rollouts
from agent.play import play
from desk import backend
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
    plan.add_argument(parser)
    args = parser.parse_args()
    if args.model and args.plan:
        return plan.print_collection(args)
    if not args.model or not args.out or bool(args.tasks) == bool(args.resample):
        parser.error("give --model, --out, and either --tasks or --resample")
    if (args.control or args.rollout) and not args.resample:
        parser.error("--control and --rollout need --resample")

    if args.resample:
        planned = rollouts.corrections(records.read_flagged(args.resample), args)
    else:
        planned = rollouts.trials(records.read_tasks(args.tasks), args)
    chat = backend.chat_with(args)
    only_next = bool(args.resample) and not args.rollout
    player = functools.partial(play, chat, max_steps=args.max_steps, only_next=only_next)

    parallel.start()
    replica, replicas, leads = parallel.replica(args.tp)
    if leads:
        output = files.Output(args.out, vars(args), replica, replicas)
        rollouts.play_all(planned, args, output, chat, backend.start_engine, player)
        output.sync()
        parallel.dismiss()
    else:
        parallel.follow(args)
    parallel.wait()
    if parallel.RANK == 0:
        output.gather()
        print(rollouts.summary(args.out))
    parallel.stop()


if __name__ == "__main__":
    command_line.run_stage(main)
