"""Lets the agent work: tasks → trajectories, or flagged states → corrected actions.

    python collect.py --model starter --tasks data/starter/train.jsonl --hints task --out runs/demo/hinted.jsonl
    python collect.py --model starter --adapter runs/demo/round1 --resample runs/demo/flagged.jsonl --out runs/demo/corrected.jsonl

The first is how a round gets its experience: with the hints of round 1 (paper §3.1), later without any. The second goes back to the
states where review.py found a mistake, puts the corrective hint at the end of the prompt, and samples the action anew (§3.2).
"""

import copy
import functools
from zlib import crc32

import agent
import parallel
import records
from model import Request, Sampler, local_folder


def corrections(states, args):
    """From every flagged state `--samples` trajectories that go on from it, with the hint shown before the next step."""
    for state in states:
        for sample in range(args.samples):
            t = copy.deepcopy(state) | agent.UNPLAYED
            t["id"] = f"{state['id']}~{sample}"
            t |= {"seed": crc32(f"{args.seed}/{t['id']}".encode()), "model": args.model, "adapters": args.adapter,
                  "targets": [len(t["steps"])], "usage": dict(agent.NOTHING_USED)}
            t["steps"].append({"monologue": "", "code": "", "observation": None, "hint": t.pop("hint"), "token_ids": {}})
            yield t


def main():
    parser = records.Parser(__doc__)
    agent.add_arguments(parser)
    parser.add_argument("--resample", metavar="FILE", help="JSONL of flagged states, instead of --tasks")
    parser.add_argument("--samples", type=records.number(int, 1), default=4, help="actions from each flagged state")
    parser.add_argument("--rollout", action="store_true", help="play on after the corrected action to the task's end, without further hints")
    args = parser.parse_args()
    if not args.model or not args.out or bool(args.tasks) == bool(args.resample):
        parser.error("give --model, --out, and either --tasks or --resample")

    if args.resample:
        states = records.read_flagged(args.resample)
        planned = corrections(states, args)
    else:
        tasks = records.read_tasks(args.tasks)
        planned = agent.trials(tasks, args)
    chat = agent.Chat(local_folder(args.model))
    parallel.start()
    output = records.Output(args.out, vars(args), parallel.RANK, parallel.WORLD)
    model = parallel.load(args.model, args.adapter)
    sampler = Sampler(model, args.batch, min(args.max_length, model.config.max_position_embeddings))
    request = functools.partial(Request, max_new_tokens=args.max_new_tokens, temperature=args.temperature, top_p=args.top_p)
    agent.play_all(planned, args, output, chat, sampler, request,
                   only_next=bool(args.resample) and not args.rollout)
    parallel.wait()
    output.gather()
    if parallel.RANK == 0:
        print(f"{args.out}: {len(output.done)} trajectories")
    parallel.stop()


if __name__ == "__main__":
    records.run_stage(main)
