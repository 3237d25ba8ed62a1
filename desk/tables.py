"""Success rates and the table of several results, as in the paper."""

import itertools
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from formats import records

USAGE = {"input tokens": ("input_tokens", "{:,.0f}"),                 # column: (field of the record, format)
         "output tokens": ("output_tokens", "{:,.0f}"),
         "seconds": ("seconds", "{:.2f}")}


def percent(trajectories: list[dict]) -> tuple[float, float]:
    """The success rate and its standard error over the trials, in percent. The error of a single trial is nan.

    As in the paper's tables, all groups have the same weight, however many tasks they have."""
    rates = [100 * statistics.mean(sum(t["success"] for t in ts) / len(ts) for ts in by_group(trial).values())
             for trial in by_trial(trajectories)]
    error = statistics.stdev(rates) / math.sqrt(len(rates)) if len(rates) > 1 else math.nan
    return statistics.mean(rates), error


def unfinished(trajectories: list[dict]) -> bool:
    """Do the trials have different tasks? Then their means, and the error over them, say little."""
    tasks = [{t["task"]["id"] for t in trial} for trial in by_trial(trajectories)]
    return any(some != tasks[0] for some in tasks)


def by_trial(trajectories: list[dict]) -> list[list[dict]]:
    """The trajectories of each trial, whose number is at the end of their ids."""
    trials = {}
    for t in trajectories:
        trials.setdefault(t["id"].rpartition("#")[2], []).append(t)
    return list(trials.values())


def by_group(trajectories: list[dict]) -> dict[str, list[dict]]:
    """{group of tasks: its trajectories}, in the order in which the groups occur."""
    groups = {}
    for t in trajectories:
        groups.setdefault(t["task"]["group"], []).append(t)
    return groups


def mean_usage(trajectories: list[dict], field: str) -> float:
    """Tokens or seconds per task. A task's input tokens are the sum over its prompts."""
    return sum(t["usage"].get(field, 0) for t in trajectories) / len(trajectories)


def table(paths: Sequence[str | Path]) -> str:
    """Several results files as Markdown: a row per file; a column per group, one for all, and the usage per task."""
    rows = [{"agent": name, **describe(records.read_trajectories(file))} for name, file in zip(names(paths), paths)]
    last = ["all", *USAGE]
    columns = [*dict.fromkeys(column for row in rows for column in row if column not in last), *last]
    return markdown([columns, *([row.get(column, "") for column in columns] for row in rows)])


def changes(paths: Sequence[str | Path]) -> str:
    """How many trials became right and how many wrong from each results file to the next, where both have them, and
    which types of task got worse. A line for each pair of files that share trials."""
    lines, results = [], [(name, records.read_trajectories(file)) for name, file in zip(names(paths), paths)]
    for (one, earlier), (other, later) in itertools.pairwise(results):
        before, after = ({t["id"]: t for t in some} for some in (earlier, later))
        shared = [(before[key], after[key]) for key in before if key in after]
        if not shared:
            continue
        right = sum(b["success"] and not a["success"] for a, b in shared)
        wrong = sum(a["success"] and not b["success"] for a, b in shared)
        counts = {}
        for a, b in shared:
            count = counts.setdefault(a["task"]["template"], [0, 0, 0])
            count[:] = count[0] + a["success"], count[1] + b["success"], count[2] + 1
        worse = sorted((b - a, f"{template} {a} → {b} of {n}") for template, (a, b, n) in counts.items() if b < a)
        lines.append(f"{one} → {other}: of {len(shared)} trials, {right} became right and {wrong} wrong"
                     + (f"; worse: {', '.join(text for _, text in worse[:5])}" if worse else "")
                     + (", …" if len(worse) > 5 else ""))
    return "\n".join(lines)


def markdown(rows: list[list[str]]) -> str:
    """Rows of cells as a Markdown table; the first row is its head."""
    rows = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def names(paths: Sequence[str | Path]) -> list[str]:
    """What to call each results file: its name without ".jsonl", or its whole path if another has the same name."""
    stems = [Path(file).stem for file in paths]
    return [stem if stems.count(stem) == 1 else str(file) for stem, file in zip(stems, paths)]


def describe(trajectories: list[dict]) -> dict[str, str]:
    """A row of the table, {column: text}."""
    groups = by_group(trajectories)
    row = {f"group {group}" if group in ("agent", "all", *USAGE) else group: with_error(groups[group])
           for group in sorted(groups)}
    row["all"] = with_error(trajectories)
    return row | {column: form.format(mean_usage(trajectories, field)) for column, (field, form) in USAGE.items()}


def with_error(trajectories: list[dict]) -> str:
    """The success rate with its standard error, if it has one: "52.3 ± 1.4"."""
    mean, error = percent(trajectories)
    return f"{mean:.1f}" + (f" ± {error:.1f}" if math.isfinite(error) else "")
