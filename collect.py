"""Lets the agent work: tasks → trajectories, or flagged states → corrected actions.

    python collect.py --model starter --tasks data/starter/train.jsonl --hints task --out runs/demo/hinted.jsonl
    python collect.py --model starter --adapter runs/demo/round1 --resample runs/demo/flagged.jsonl --out runs/demo/corrected.jsonl

The first is how a round gets its experience: with the hints of round 1 (paper §3.1), later without any. The second goes back to the
states where review.py found a mistake, puts the corrective hint at the end of the prompt, and samples the action anew (§3.2).
"""

from common import command_line
from common import files
from formats import records

import functools

import agent
import endpoint
from scaling import parallel
from planning import plan


def main():
    parser = command_line.Parser(__doc__)
    agent.add_arguments(parser)
    agent.add_task_arguments(parser)
    parser.add_argument("--resample", metavar="FILE", help="JSONL of flagged states, instead of --tasks")
    parser.add_argument("--samples", type=command_line.number(int, 1), default=4, help="actions from each flagged state")
    parser.add_argument("--control", action="store_true", help="do not show the hint: what its effect is measured against")
    parser.add_argument("--rollout", action="store_true", help="play on after the corrected action to the task's end, without further hints")
    plan.add_argument(parser)
    args = parser.parse_args()
    if args.model and args.plan:
        return plan.print_collection(args)
    if not args.model or not args.out or bool(args.tasks) == bool(args.resample):
        parser.error("give --model, --out, and either --tasks or --resample")

    if (args.control or args.rollout) and not args.resample:
        parser.error("--control and --rollout need --resample")
    if args.resample:
        planned = agent.corrections(records.read_flagged(args.resample), args)
    else:
        tasks = records.read_tasks(args.tasks)
        planned = agent.trials(tasks, args)
    chat = endpoint.chat_with(args)
    parallel.start()
    replica, replicas, leads = parallel.replica(args.tp)
    if leads:
        output = files.Output(args.out, vars(args), replica, replicas)
        player = functools.partial(agent.play, chat, max_steps=args.max_steps, only_next=bool(args.resample) and not args.rollout)
        agent.play_all(planned, args, output, chat, endpoint.engine, player)
        output.sync()
        parallel.dismiss()
    else:
        parallel.follow(args)
    parallel.wait()
    if parallel.RANK == 0:
        output.gather()
        print(agent.summary(args.out))
    parallel.stop()


if __name__ == "__main__":
    command_line.run_stage(main)
