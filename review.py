"""The reviewer: trajectories → the states in which a known mistake was made, each with the hint against it (paper §3.2, Fig. 3b).

    python review.py runs/demo/seen2.jsonl --show 5                                  read failures, to find out what goes wrong
    python review.py runs/demo/seen2.jsonl --hint-dir hints/starter/round2 --out runs/demo/flagged2.jsonl

A mistake is one Markdown file: between two lines of +++ how it is detected (TOML), below them the hint. See README, "coaching".
"""

import re
import signal
import tomllib
from collections import Counter
from pathlib import Path

import records


PATIENCE = 5                                                          # seconds for a detector to look at one step


def _too_slow(*_):
    raise TimeoutError(f"no answer after {PATIENCE} seconds")


signal.signal(signal.SIGALRM, _too_slow)


class Mistake:
    """One file of a later round's hints: which steps have the mistake, and the hint against it."""

    def __init__(self, file):
        """Raises ValueError, naming the file and what is wrong in it."""
        self.file, self.name = file, file.stem
        parts = re.split(r"^\+\+\+[ \t]*$", file.read_text(), flags=re.M)
        if len(parts) != 3 or parts[0].strip():
            raise ValueError(f"{file}: a mistake begins with a header between two lines of +++, and its hint stands below")
        try:
            header = tomllib.loads(parts[1])
        except tomllib.TOMLDecodeError as e:
            raise ValueError(f"{file}: the header between the +++ lines is not TOML: {e}") from None
        self.hint = parts[2].strip()
        if not self.hint:
            raise ValueError(f"{file}: no hint below the header")
        unknown = header.keys() - {"groups", "templates", "regex", "python", "judge"}
        if unknown:
            raise ValueError(f"{file}, field {min(unknown)!r}: unknown; there are groups, templates, regex, python and judge")
        for field, kind in {"groups": [str], "templates": [str], "regex": str, "python": str, "judge": str}.items():
            if field in header and (wrong := records.mismatch(header[field], kind, field)):
                raise ValueError(f"{file}, field {wrong[0]!r}: {wrong[1]}")
        self.groups, self.templates = header.get("groups"), header.get("templates")
        ways = [way for way in ("regex", "python", "judge") if way in header]
        if len(ways) != 1:
            raise ValueError(f"{file}: give exactly one of regex, python and judge, not {' and '.join(ways) or 'none'}")
        if ways == ["judge"]:
            raise ValueError(f"{file}, field 'judge': there is no LLM judge yet; use regex or python")
        if ways == ["regex"]:
            try:
                pattern = re.compile(header["regex"], re.M)
            except re.error as e:
                raise ValueError(f"{file}, field 'regex': {e}") from None
            self.detect = lambda trajectory, step: pattern.search(step["code"])
        else:
            space = {"re": re}
            try:
                exec(compile(header["python"], f"{file} (python)", "exec"), space)     # the coach's own code, trusted like ours
            except Exception as e:
                raise ValueError(f"{file}, field 'python': {type(e).__name__}: {e}") from None
            if not callable(space.get("detect")):
                raise ValueError(f"{file}, field 'python': no function detect(trajectory, step)")
            self.detect = space["detect"]

    def concerns(self, task):
        return (self.groups is None or task["group"] in self.groups) and (self.templates is None or task["template"] in self.templates)

    def first_step(self, trajectory):
        """The number of the first step that has the mistake, or None."""
        if not self.concerns(trajectory["task"]):
            return None
        for n, step in enumerate(trajectory["steps"]):
            try:
                signal.setitimer(signal.ITIMER_REAL, PATIENCE)
                found = self.detect(trajectory, step)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except Exception as e:
                signal.setitimer(signal.ITIMER_REAL, 0)
                raise ValueError(f"{self.file}, field 'python': on step {n} of {trajectory['id']}: {type(e).__name__}: {e}") from None
            if found:
                return n
        return None


def load_mistakes(directory):
    """All mistakes of a round, <directory>/*.md."""
    files = sorted(Path(directory).glob("*.md"))
    if not files:
        raise ValueError(f"{directory}: no *.md file with a mistake there")
    return [Mistake(file) for file in files]


def flag(trajectory, mistake, n):
    """The trajectory cut before step n, with the mistake that was made there and the hint against it."""
    rejected = {k: trajectory["steps"][n][k] for k in ("monologue", "code", "observation")}
    return trajectory | {"id": f"{trajectory['id']}!{mistake.name}", "steps": trajectory["steps"][:n],
                         "mistake": {"name": mistake.name, "step": n, "rejected": rejected},
                         "hint": {"name": mistake.name, "text": mistake.hint}}


def show(trajectory):
    """A trajectory for reading in a terminal."""
    task = trajectory["task"]
    lines = [f"=== {trajectory['id']}  ({task['template']})  {trajectory['stop']}", f"question: {task['question']}"]
    for n, step in enumerate(trajectory["steps"]):
        hint = f"\n[hint {step['hint']['name']}]" if step["hint"] else ""
        lines += [f"--- {n + 1}{hint}: {step['monologue']}", step["code"], f"→ {step['observation']}"]
    return "\n".join([*lines, f"answer: {trajectory['answer']!r}, right: {task['answer']!r}"])


def main():
    p = records.Parser(__doc__)
    p.add_argument("trajectories", help="JSONL")
    p.add_argument("--hint-dir", metavar="DIR", help="the mistakes to look for, one Markdown file each")
    p.add_argument("--out", metavar="FILE", help="JSONL of flagged states")
    p.add_argument("--show", type=records.number(int, 0), default=0, metavar="N", help="print N failures that no filter flags")
    args = p.parse_args()
    trajectories = records.read_trajectories(args.trajectories)
    mistakes = load_mistakes(args.hint_dir) if args.hint_dir else []
    found = [(t, m, n) for t in trajectories for m in mistakes if (n := m.first_step(t)) is not None]

    failures = [t for t in trajectories if not t["success"]]
    flagged = {t["id"] for t, _, _ in found}
    print(f"{len(trajectories)} trajectories, {len(failures)} failed; flagged: {len(found)} states in {len(flagged)} trajectories")
    for mistake in mistakes:
        states = [t for t, m, _ in found if m is mistake]
        print(f"  {mistake.name:<40} {len(states):4} states, {sum(t['success'] for t in states):4} of them in successes")
    missed = [t for t in failures if t["id"] not in flagged]
    if missed:
        print(f"{len(missed)} failures are not flagged, by template:")
        played = Counter(t["task"]["template"] for t in trajectories)
        for template, n in Counter(t["task"]["template"] for t in missed).most_common():
            print(f"  {template:<40} {n:4} of {played[template]}")
    for t in missed[:args.show]:
        print("\n" + show(t))
    if args.out:
        if not found:
            raise ValueError(f"{args.hint_dir}: no step of {args.trajectories} has any of these mistakes, there is nothing to correct")
        output = records.Output(args.out, {"trajectories": args.trajectories, "mistakes": {str(m.file): m.file.read_text() for m in mistakes}})
        for t, m, n in found:
            if (state := flag(t, m, n))["id"] not in output.done:
                output.write(state)
        print(f"{args.out}: {len(output.done)} flagged states")


if __name__ == "__main__":
    records.run_stage(main)
