"""What each hint did: how many tasks were solved before, and from the flagged states with the hint and without it.

The outcomes of tasks are lists of booleans, one list per task: several attempts at one task often end alike.
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from desk.mistakes import Finding, Mistake
from formats import records

Outcomes = list[list[bool]]                       # for each task, whether each attempt solved it
Corrected = dict[tuple[str, str], list[dict]]     # (trajectory's id, mistake's name) → corrected actions


def read_corrected(file: str | Path, found: Sequence[Finding], control: bool = False) -> Corrected:
    """What collect.py --resample made of these flagged states: with the hint, or as a control without it.

    Raises ValueError if a record does not belong to them: another state, step or wording of the hint."""
    again = "run collect.py --resample again"
    states = {f"{t['id']}!{mistake.name}": Finding(t, mistake, n) for t, mistake, n in found}
    by_state = {}
    for r in records.read_trajectories(file):
        state = r["id"].rpartition("~")[0]
        if state not in states or not r.get("targets"):
            raise ValueError(f"{file}: {r['id']} continues from a state that is not flagged here; "
                             "give the trajectories and the --hint-dir it was made with")
        t, mistake, n = states[state]
        target = r["targets"][0]
        if target != n:
            raise ValueError(f"{file}: {r['id']} continues from step {target + 1}, "
                             f"but the mistake is now flagged in step {n + 1}; {again}")
        hint = r["steps"][target]["hint"]
        if control and hint:
            raise ValueError(f"{file}: {r['id']} was made with a hint; --control takes what collect.py --control made")
        if not control and not hint:
            raise ValueError(f"{file}: {r['id']} was made without a hint; {again}")
        if not control and hint["text"] != mistake.hint:
            raise ValueError(f"{file}: {r['id']} was made with another wording of {mistake.file}; {again}")
        by_state.setdefault((t["id"], mistake.name), []).append(r)
    return by_state


def hint_effects(mistakes: Sequence[Mistake], found: Sequence[Finding],
                 corrected: Corrected, control: Corrected) -> dict[str, dict]:
    """What each hint did → {mistake's name: row}. A row is {"flagged", "before", "without", "with": outcomes by task,
    "corrected": {trajectory's id: corrected actions}}.

    "flagged" has all flagged trajectories, as they ended. "without" and "with" have the rollouts without and with the
    hint. "before" has the trajectories that these rollouts started from (without rollouts, all), as they ended.

    Actions that were not played on (collect.py without --rollout) do not count. If a mistake has rollouts of both
    kinds, only the states with both count."""
    rollouts = {"without": control, "with": corrected}
    for way, by_state in rollouts.items():
        if not all(r["stop"] for rs in by_state.values() for r in rs):
            rollouts[way] = {}
    rows = {}
    for mistake in mistakes:
        flagged = [t for t, m, _ in found if m is mistake]
        played = {way: {t["id"]: [r["success"] for r in by_state[t["id"], mistake.name]]
                        for t in flagged if (t["id"], mistake.name) in by_state}
                  for way, by_state in rollouts.items()}
        compared = [t for t in flagged if all(t["id"] in successes for successes in played.values() if successes)]
        rows[mistake.name] = {
            "flagged": by_task((t, t["success"]) for t in flagged),
            "before": by_task((t, t["success"]) for t in compared),
            **{way: by_task((t, success) for t in compared for success in successes.get(t["id"], []))
               for way, successes in played.items()},
            "corrected": {t["id"]: corrected[t["id"], mistake.name]
                          for t in flagged if (t["id"], mistake.name) in corrected}}
    return rows


def by_task(attempts: Iterable[tuple[dict, bool]]) -> Outcomes:
    """(trajectory, success) pairs → the successes of each task."""
    tasks = {}
    for trajectory, success in attempts:
        tasks.setdefault(trajectory["task"]["id"], []).append(success)
    return list(tasks.values())


def gain(row: dict) -> float | None:
    """How much more often tasks were solved with a hint than without it; if that was not tried, than before.
    `row` is one of `hint_effects`. None if the hint was not tried."""
    mean = lambda outcomes: sum(map(sum, outcomes)) / sum(map(len, outcomes))
    return mean(row["with"]) - mean(row["without"] or row["before"]) if row["with"] else None


def interval(successes: float, n: float) -> tuple[float, float]:
    """Wilson's 95 % interval of a success rate, (low, high) in percent."""
    z, p = 1.96, successes / n
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0, 100 * (middle - half) / (1 + z * z / n)), min(100, 100 * (middle + half) / (1 + z * z / n))


def rate(outcomes: Outcomes) -> str:
    """The success rate in percent, its 95 % interval, and the number of attempts n.

    Attempts at one task often end alike. So the interval counts fewer attempts: as many independent ones as would vary
    as much as the tasks do, at least one per task and at most n."""
    if not outcomes:
        return "–"
    n, tasks = sum(map(len, outcomes)), len(outcomes)
    p = sum(map(sum, outcomes)) / n
    variance = sum((sum(o) - p * len(o)) ** 2 for o in outcomes) / n ** 2 * tasks / max(tasks - 1, 1)
    if variance:
        independent = min(max(p * (1 - p) / variance, tasks), n)
    else:                                         # all tasks at the same rate, between 0 and 1: none is easier
        independent = n if 0 < p < 1 and tasks > 1 else tasks
    low, high = interval(p * independent, independent)
    return f"{100 * p:.0f} % ({low:.0f} to {high:.0f}, n = {n})"
