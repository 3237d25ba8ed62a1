"""How good an agent is: a model → success rates; several results → the paper's table.

    python evaluate.py --model starter --adapter runs/demo/round1 --tasks data/starter/test.jsonl --hints none --out runs/demo/test-round1.jsonl
    python evaluate.py --table runs/demo/test-*.jsonl          Markdown, a row for each file

Success is an exact match of the answer (paper §5.1), in percent, with the standard error over the trials.
"""

import functools
import math
from pathlib import Path

import agent
import parallel
import records
from model import Request, Sampler, local_folder


def percent(trajectories):
    """Success rate and its standard error over the trials, both in percent; nan for the error of a single trial."""
    trials = {}
    for t in trajectories:
        trials.setdefault(t["id"].rpartition("#")[2], []).append(t["success"])
    rates = [100 * sum(s) / len(s) for s in trials.values()]
    mean, n = 100 * sum(t["success"] for t in trajectories) / len(trajectories), len(rates)
    error = math.sqrt(sum((r - sum(rates) / n) ** 2 for r in rates) / (n - 1) / n) if n > 1 else math.nan
    return mean, error


def describe(trajectories):
    """One row of the table: {column: text} of all trajectories of a results file."""
    groups = {}
    for t in trajectories:
        groups.setdefault(t["task"]["group"], []).append(t)
    row = {group: "{:.1f} ± {:.1f}".format(*percent(ts)) for group, ts in sorted(groups.items())}
    row["all"] = "{:.1f} ± {:.1f}".format(*percent(trajectories))
    for name, title, form in (("input_tokens", "input tokens", "{:,.0f}"), ("output_tokens", "output tokens", "{:,.0f}"), ("seconds", "seconds", "{:.2f}")):
        row[title] = form.format(sum(t["usage"][name] for t in trajectories) / len(trajectories))
    return row


def table(files):
    """The rows of several results files as Markdown. Tokens and seconds are means per task; input tokens are summed over its prompts."""
    rows = [{"agent": Path(file).stem, **describe(records.read_trajectories(file))} for file in files]
    columns = list(dict.fromkeys(c for row in rows for c in row if c not in ("all", "input tokens", "output tokens", "seconds")))
    columns += ["all", "input tokens", "output tokens", "seconds"]
    cells = [columns, *([row.get(c, "") for c in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths)) + " |" for line in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


def main():
    parser = records.Parser(__doc__)
    agent.add_arguments(parser)
    parser.add_argument("--table", nargs="+", metavar="FILE", help="print the table of these results, instead of playing")
    args = parser.parse_args()
    if args.table:
        print(table(args.table))
        return
    if not (args.model and args.tasks and args.out):
        parser.error("give --model, --tasks and --out, or --table")
    tasks = records.read_tasks(args.tasks)
    chat = agent.Chat(local_folder(args.model))
    parallel.start()
    output = records.Output(args.out, vars(args), parallel.RANK, parallel.WORLD)
    model = parallel.load(args.model, args.adapter)
    sampler = Sampler(model, args.batch, min(args.max_length, model.config.max_position_embeddings))
    request = functools.partial(Request, max_new_tokens=args.max_new_tokens, temperature=args.temperature, top_p=args.top_p)
    agent.play_all(agent.trials(tasks, args), args, output, chat, sampler, request)
    parallel.wait()
    output.gather()
    if parallel.RANK == 0:
        print(table([args.out]))
    parallel.stop()


if __name__ == "__main__":
    records.run_stage(main)
