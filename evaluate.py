"""How good an agent is: a model → success rates; several results → the paper's table.

    python evaluate.py --model starter --adapter runs/demo/round1 --tasks data/starter/test.jsonl --hints none --out runs/demo/test/3-round1.jsonl
    python evaluate.py --suite humaneval|gsm8k --file F --model M --out humaneval.jsonl         standard benchmarks (suites.py)
    python evaluate.py --table runs/demo/test/*.jsonl [--html run.html]          Markdown, a row for each file; the run as a page

Success is an exact match of the answer (paper §5.1), in percent, with the standard error over the trials.
"""

from common import command_line
from common import files
from formats import records

import functools
import json
import math
import statistics
from pathlib import Path

from agent import options, rollouts
from desk import backend
from scaling import parallel
from planning import plan
from desk import report
from desk import suites


def percent(trajectories):
    """Success rate and its standard error over the trials, both in percent; nan for the error of a single trial. As in the paper's tables
    each group counts alike, however many tasks it has."""
    trials = {}
    for t in trajectories:
        trials.setdefault(t["id"].rpartition("#")[2], {}).setdefault(t["task"]["group"], []).append(t["success"])
    rates = [100 * statistics.mean(sum(s) / len(s) for s in groups.values()) for groups in trials.values()]
    return statistics.mean(rates), statistics.stdev(rates) / math.sqrt(len(rates)) if len(rates) > 1 else math.nan


def in_words(trajectories):
    mean, error = percent(trajectories)
    return f"{mean:.1f}" + (f" ± {error:.1f}" if math.isfinite(error) else "")


def describe(trajectories):
    """One row of the table: {column: text} of all trajectories of a results file."""
    groups = {}
    for t in trajectories:
        groups.setdefault(t["task"]["group"], []).append(t)
    row = {group: in_words(ts) for group, ts in sorted(groups.items())}
    row["all"] = in_words(trajectories)
    for name, title, form in (("input_tokens", "input tokens", "{:,.0f}"), ("output_tokens", "output tokens", "{:,.0f}"), ("seconds", "seconds", "{:.2f}")):
        row[title] = form.format(sum(t["usage"].get(name, 0) for t in trajectories) / len(trajectories))
    return row


def table(paths):
    """The rows of several results files as Markdown. Tokens and seconds are means per task; input tokens are summed over its prompts."""
    rows = [{"agent": Path(file).stem, **describe(records.read_trajectories(file))} for file in paths]
    columns = list(dict.fromkeys(c for row in rows for c in row if c not in ("all", "input tokens", "output tokens", "seconds")))
    columns += ["all", "input tokens", "output tokens", "seconds"]
    cells = [columns, *([row.get(c, "") for c in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths)) + " |" for line in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


def near(path, file):
    """A path as the stage was given it that wrote `file`, whatever folder we run in: seen from a folder above the file, or else from here."""
    return next((p for folder in Path(file).resolve().parents if (p := folder / path).exists()), Path(path))


def run_page(paths):
    """The page of a whole run: success by agent and group, and what each adapter was trained on, as far as its folder tells."""
    agents, adapters, known = [], {}, set()
    for file in paths:
        trajectories, groups = records.read_trajectories(file), {}
        for t in trajectories:
            groups.setdefault(t["task"]["group"], []).append(t)
            for path in t.get("adapters", []):
                adapters.setdefault(path, near(path, file))
        rates = {name: [x if math.isfinite(x) else 0 for x in percent(ts)] for name, ts in [*groups.items(), ("all", trajectories)]}
        agents.append({"name": Path(file).stem, "hinted": any(t["hints"] for t in trajectories), "rates": rates,
                       "tokens": sum(t["usage"].get("input_tokens", 0) for t in trajectories) / len(trajectories)})
    for key, folder in adapters.items():
        adapters[key] = {"name": key, "losses": [], "hints": []}
        if (folder / "log.jsonl").exists() and (folder / "arguments.json").exists():
            trained = files.read_json(folder / "arguments.json")
            if wrong := records.mismatch(trained, {"data": [str]}):
                raise ValueError(f"{folder / 'arguments.json'}, field {wrong[0]!r}: {wrong[1]}")
            hints, data = set(), [near(path, folder) for path in trained["data"]]
            for r in (r for file in data if file.exists() for r in records.read_trajectories(file)):
                given = [r["steps"][n]["hint"] for n in r["targets"]] if "targets" in r else r["hints"]
                hints.update((report.section_name(h), h["text"]) for h in given if h)
            try:
                losses = [x for line in files.read_text(folder / "log.jsonl").splitlines() if math.isfinite(x := json.loads(line)["loss"])]
            except (LookupError, TypeError, json.JSONDecodeError) as e:
                raise ValueError(f"{folder / 'log.jsonl'}: not the log of a training ({e})") from None
            adapters[key] = {"name": folder.name, "losses": losses, "hints": sorted(hints - known), "earlier": len(hints & known)}
            known |= hints
    return report.run_page("Coaching, round by round", agents, list(adapters.values()))


def main():
    parser = command_line.Parser(__doc__)
    options.add_arguments(parser)
    options.add_task_arguments(parser)
    parser.add_argument("--table", nargs="+", metavar="FILE", help="print the table of these results, instead of playing")
    parser.add_argument("--html", metavar="FILE", help="with --table: write the run as a page, too")
    parser.add_argument("--suite", choices=suites.PROMPTS, help="play a standard benchmark instead of --tasks")
    parser.add_argument("--file", metavar="FILE", help="with --suite: its official file")
    plan.add_argument(parser)
    args = parser.parse_args()
    if args.html and not args.table:
        parser.error("--html needs --table")
    if args.table:
        files.apart(args.html, args.table)
        print(table(args.table))
        if args.html:
            files.write_whole({args.html: run_page(args.table)})
            print(f"\n{args.html}: written")
        return
    if args.model and args.plan:
        return plan.print_collection(args)
    if not (args.model and args.out and bool(args.tasks) != bool(args.suite)) or bool(args.suite) != bool(args.file):
        parser.error("give --model, --out, and --tasks or --suite with --file; or --table")
    if args.suite:
        tasks, args.tools, args.data, args.hints = suites.read_suite(args.suite, args.file), None, None, "none"
    else:
        tasks = records.read_tasks(args.tasks)
    chat = backend.chat_with(args)
    player = functools.partial(suites.attempt, chat) if args.suite else None
    parallel.start()
    replica, replicas, leads = parallel.replica(args.tp)
    if leads:
        output = files.Output(args.out, vars(args), replica, replicas)
        rollouts.play_all(rollouts.trials(tasks, args), args, output, chat, backend.start_engine, player)
        output.sync()
        parallel.dismiss()
    else:
        parallel.follow(args)
    parallel.wait()
    if parallel.RANK == 0:
        output.gather()
        print(table([args.out]), rollouts.summary(args.out), sep="\n\n")
    parallel.stop()


if __name__ == "__main__":
    command_line.run_stage(main)
