"""The reviewer: trajectories → the states in which a known mistake was made, each with the hint against it (paper §3.2, Fig. 3b).

    python review.py runs/demo/seen2.jsonl --show 5                                  read failures, to find out what goes wrong
    python review.py runs/demo/seen2.jsonl --html report.html                        the same as a page
    python review.py runs/demo/seen2.jsonl --try my-hint.md --model starter          what it detects, what the agent does with it
    python review.py runs/demo/seen2.jsonl --hint-dir hints/starter/round2 --out runs/demo/flagged2.jsonl
    python review.py runs/demo/seen2.jsonl --hint-dir hints/starter/round2 --corrected runs/demo/corrected2.jsonl    does it help?

A mistake is one Markdown file: between two lines of +++ how it is detected (TOML), below them the hint. See README, "coaching".
"""

from common import command_line
from common import files
from formats import records

import functools
import json
import re
import shutil
import signal
import textwrap
import tomllib
from collections import Counter
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from types import SimpleNamespace

from agent import options
from agent.play import play
from agent.rollouts import corrections, play_all
from desk import backend
from desk import judge
from desk import report


PATIENCE = 5                                                          # seconds for a detector to look at one step


class TooSlow(BaseException):
    """Which code that catches every Exception does not catch."""


@contextmanager
def patience(place):
    """A coach's own code may run inside for PATIENCE seconds. Raises ValueError, with `place` before it, if it takes longer or fails."""
    def too_slow(*_):
        raise TooSlow

    signal.signal(signal.SIGALRM, too_slow)
    try:
        signal.setitimer(signal.ITIMER_REAL, PATIENCE)
        yield
    except TooSlow:
        raise ValueError(f"{place}: no answer after {PATIENCE} seconds") from None
    except (Exception, SystemExit) as e:
        raise ValueError(f"{place}: {type(e).__name__}: {e}") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


class Mistake:
    """One file of a later round's hints: which steps have the mistake, and the hint against it."""

    def __init__(self, file):
        """Raises ValueError, naming the file and what is wrong in it."""
        self.file, self.name = file, file.stem
        parts = re.split(r"^\+\+\+[ \t]*$", files.read_text(file), flags=re.M)
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
        self.judge, (self.field,) = header.get("judge"), ways
        if ways == ["judge"]:
            return
        if ways == ["regex"]:
            try:
                pattern = re.compile(header["regex"], re.M)
            except re.error as e:
                raise ValueError(f"{file}, field 'regex': {e}") from None
            self.detect = lambda trajectory, step: pattern.search(step["code"])
        else:
            space = {"re": re}
            with patience(f"{file}, field 'python'"):
                exec(compile(header["python"], f"{file} (python)", "exec"), space)     # the coach's own code, trusted like ours
            if not callable(space.get("detect")):
                raise ValueError(f"{file}, field 'python': no function detect(trajectory, step)")
            self.detect = space["detect"]

    def concerns(self, task):
        return (self.groups is None or task["group"] in self.groups) and (self.templates is None or task["template"] in self.templates)

    def first_step(self, trajectory):
        """The number of the first step that has the mistake, or None."""
        if not self.concerns(trajectory["task"]):
            return None
        key = trajectory["id"]
        for n, step in enumerate(trajectory["steps"]):
            with patience(f"{self.file}, field {self.field!r}: on step {n + 1} of {key}"):
                found = bool(self.detect(trajectory, step))
            if found:
                return n
        return None


def load_mistakes(directory):
    """All mistakes of a round, <directory>/*.md."""
    paths = sorted(Path(directory).glob("*.md"))
    if not paths:
        raise ValueError(f"{directory}: no *.md file with a mistake there")
    return [Mistake(file) for file in paths]


def flag(trajectory, mistake, n):
    """The trajectory cut before step n, with the mistake that was made there and the hint against it."""
    rejected = {k: trajectory["steps"][n][k] for k in ("monologue", "code", "observation")}
    return {k: v for k, v in trajectory.items() if k != "targets"} | {"id": f"{trajectory['id']}!{mistake.name}", "steps": trajectory["steps"][:n],
                         "mistake": {"name": mistake.name, "step": n, "rejected": rejected},
                         "hint": {"name": mistake.name, "text": mistake.hint}}


def outcomes(file, found, control=False):
    """The actions in a file that were sampled anew in these flagged states, with the hint or as a control without → {(trajectory's id, mistake's name): [records]}."""
    states = {f"{t['id']}!{mistake.name}": (t["id"], mistake, n) for t, mistake, n in found}
    by_state = {}
    for r in records.read_trajectories(file):
        state = r["id"].rpartition("~")[0]
        if state not in states or not r.get("targets"):
            raise ValueError(f"{file}: {r['id']} goes on from a state that is not flagged here; give the trajectories and the --hint-dir it was made with")
        t, mistake, n = states[state]
        if r["targets"][0] != n:
            raise ValueError(f"{file}: {r['id']} goes on from step {r['targets'][0] + 1}, the mistake is flagged in step {n + 1} now; run collect.py --resample again")
        hint = r["steps"][r["targets"][0]]["hint"]
        if control and hint:
            raise ValueError(f"{file}: {r['id']} was made with a hint; --control takes what collect.py --control made")
        if not control and (hint or {}).get("text") != mistake.hint:
            raise ValueError(f"{file}: {r['id']} was made {'with another wording of ' + str(mistake.file) if hint else 'without a hint'}; run collect.py --resample again")
        by_state.setdefault((t, mistake.name), []).append(r)
    return by_state


def by_task(outcomes):
    """[(task's id, success)] → a list of successes for each task."""
    tasks = {}
    for task, success in outcomes:
        tasks.setdefault(task, []).append(success)
    return list(tasks.values())


def effects(mistakes, found, corrected, control):
    """What each hint did → {name: {"flagged", "before", "without", "with": whether the task was solved, by task: in all flagged trajectories; in those
    of them that were played on, before; in all rollouts without and with the hint; "corrected": {trajectory's id: records}}}. Actions that were not
    played on, without collect.py's --rollout, do not count, nor a state from which there are rollouts in only one of the two ways, if there are any in both."""
    table, ended = {}, [ways if all(r["stop"] for rs in ways.values() for r in rs) else {} for ways in (control, corrected)]
    for m in mistakes:
        flagged = [t for t, mistake, _ in found if mistake is m]
        played = [{t["id"]: [r["success"] for r in rollouts[t["id"], m.name]] for t in flagged if (t["id"], m.name) in rollouts} for rollouts in ended]
        both = [t for t in flagged if all(t["id"] in ways for ways in played if ways)]
        without, with_ = (by_task((t["task"]["id"], success) for t in both for success in ways.get(t["id"], [])) for ways in played)
        before = lambda trajectories: by_task((t["task"]["id"], t["success"]) for t in trajectories)
        table[m.name] = {"flagged": before(flagged), "before": before(both), "without": without, "with": with_,
                         "corrected": {t["id"]: corrected[t["id"], m.name] for t in flagged if (t["id"], m.name) in corrected}}
    return table


def resample(found, args):
    """An action with the hint from each flagged state, as collect.py --resample makes them: records, the same order."""
    states, new = [flag(*f) for f in found], []
    args.samples, args.control = 1, False
    chat = backend.chat_with(args)
    collected = SimpleNamespace(world=1, rank=0, done=(), write=new.append)
    player = functools.partial(play, chat, max_steps=args.max_steps, only_next=not args.rollout)
    play_all(corrections(states, args), args, collected, chat, backend.start_engine, player)
    new = {r["id"]: r for r in new}
    return [new[f"{state['id']}~0"] for state in states]


def side_by_side(left, right, width):
    """Two texts as columns."""
    wrap = lambda text: [part for line in text.splitlines() for part in textwrap.wrap(line, width, subsequent_indent="  ") or [""]]
    return "\n".join(f"{a:{width}} │ {b}".rstrip() for a, b in zip_longest(wrap(left), wrap(right), fillvalue=""))


def compare(trajectory, mistake, n, corrected):
    """Mistake, hint and corrected action, as in the paper's Figure 4."""
    width = max(20, (min(shutil.get_terminal_size().columns, 160) - 3) // 2)
    text = lambda step: f"{step['monologue']}\n\n{step['code']}\n\n→ {step['observation']}"
    outcome = f"  then: {'right' if corrected['success'] else 'wrong'}" if corrected["stop"] else ""
    return "\n".join([f"=== {trajectory['id']}, step {n + 1} ({'a success' if trajectory['success'] else 'a failure'})", trajectory["task"]["question"], "", textwrap.indent(mistake.hint, "    "), "",
                      side_by_side("as it was", "with the hint" + outcome, width), "─" * width + "─┼─" + "─" * width,
                      side_by_side(text(trajectory["steps"][n]), text(corrected["steps"][n]), width)])


CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def harmless(text):
    """What the agent's code has printed, without power over the terminal: no escape sequences, no writing backwards."""
    return CONTROLS.sub(lambda match: ascii(match[0])[1:-1], text)


def show(trajectory):
    """A trajectory for reading in a terminal."""
    task = trajectory["task"]
    lines = [f"=== {trajectory['id']}  ({task['template']})  {trajectory['stop']}", f"question: {task['question']}"]
    for n, step in enumerate(trajectory["steps"]):
        hint = f"\n[hint {step['hint']['name']}]" if step["hint"] else ""
        lines += [f"--- {n + 1}{hint}: {step['monologue']}", step["code"], f"→ {step['observation']}"]
    return "\n".join([*lines, f"answer: {trajectory['answer']!r}, right: {task['answer']!r}"])


def main():
    p = command_line.Parser(__doc__)
    p.add_argument("trajectories", help="JSONL")
    p.add_argument("--hint-dir", metavar="DIR", help="the mistakes to look for, one Markdown file each")
    p.add_argument("--show", type=command_line.number(int, 0), default=0, metavar="N", help="print N failures that no filter flags")
    p.add_argument("--html", metavar="FILE", help="write all of it as a page")
    p.add_argument("--corrected", metavar="FILE", help="what collect.py --resample --rollout made of the flagged states: a table of what each hint does")
    p.add_argument("--control", metavar="FILE", help="the same made with --control, without the hint")
    p.add_argument("--try", dest="attempt", metavar="FILE", help="one mistake: what it flags and, with --model, what the agent does when it gets the hint")
    p.add_argument("--judge", metavar="MODEL", help="who judges mistakes described in words: a model's directory or hub id, or openai:NAME")
    p.add_argument("--states", type=command_line.number(int, 1), default=8, help="how many states to --try at most, failures first")
    p.add_argument("--rollout", action="store_true", help="with --try: play on to the task's end")
    options.add_arguments(p)
    args = p.parse_args()
    if args.attempt and (args.hint_dir or args.out or args.corrected or args.control):
        p.error("--try looks at one mistake alone: no --hint-dir, --out, --corrected or --control with it")
    if args.out and not args.hint_dir:
        p.error("--out needs the --hint-dir whose mistakes are flagged")
    if (args.corrected or args.control) and not args.hint_dir:
        p.error("--corrected and --control need the --hint-dir they were made with")
    files.apart(args.html, [args.trajectories, args.corrected, args.control])
    files.apart(args.out, [args.trajectories, args.corrected, args.control])
    trajectories = records.read_trajectories(args.trajectories)
    mistakes = [Mistake(Path(args.attempt))] if args.attempt else load_mistakes(args.hint_dir) if args.hint_dir else []
    judged, silent = [m for m in mistakes if m.judge], 0
    if judged and not args.judge:
        raise ValueError(f"{judged[0].file}, field 'judge': give the model that judges with --judge")
    first = {}
    for t in trajectories:
        seen = json.loads(json.dumps(t))                              # whatever a detector does to it
        first |= {(t["id"], m.name): m.first_step(seen) for m in mistakes if not m.judge}
    if judged:
        steps, silent = judge.first_steps(trajectories, judged, args)
        first |= steps
    found = [(t, m, n) for t in trajectories for m in mistakes if (n := first.get((t["id"], m.name))) is not None]

    failures = [t for t in trajectories if not t["success"]]
    flagged = {t["id"] for t, _, _ in found}
    print(f"{len(trajectories)} trajectories, {len(failures)} failed; flagged: {len(found)} states in {len(flagged)} trajectories"
          + (f"; {silent} verdicts of the judge could not be read, they flag nothing" if silent else ""))
    corrected = outcomes(args.corrected, found) if args.corrected else {}
    control = outcomes(args.control, found, control=True) if args.control else {}
    if args.attempt and args.model and found:
        tried = sorted(found, key=lambda f: f[0]["success"])[:args.states]
        again = resample(tried, args)
        corrected = {(t["id"], m.name): [r] for (t, m, _), r in zip(tried, again)}
        for (t, m, n), r in zip(tried, again):
            print("\n" + harmless(compare(t, m, n, r)))
        print()
    table = effects(mistakes, found, corrected, control)
    if args.html:
        title = Path(args.trajectories).stem + (f", {mistakes[0].name}" if args.attempt else "")
        files.write_whole({args.html: report.review_page(title, trajectories, [(t, m.name, n) for t, m, n in found], {m.name: m.hint for m in mistakes}, table)})
        print(f"{args.html}: written")
    for mistake in mistakes:
        row = table[mistake.name]
        print(f"  {mistake.name:<40} {sum(map(len, row['flagged'])):4} states, {sum(map(sum, row['flagged'])):4} of them in successes"
              + "".join(f"; right {how} the hint {report.rate(row[how])}" for how in ("without", "with") if row[how])
              + ("; does not help" if (gain := report.gain(row)) is not None and gain <= 0 else ""))
    if args.attempt:
        concerned = {right: [t for t in trajectories if mistakes[0].concerns(t["task"]) and t["success"] == right] for right in (False, True)}
        for right, kind in ((False, "failures"), (True, "successes")):
            print(f"of {len(concerned[right])} {kind} that it concerns it flags {sum(t['id'] in flagged for t in concerned[right])}")
        for t, _, n in sorted(found, key=lambda f: f[0]["success"])[:args.states]:
            print(harmless(f"  {'✓' if t['success'] else '✗'} {t['id']}, step {n + 1}: {(t['steps'][n]['code'].strip().splitlines() or ['no code'])[-1]}"))
        if len(found) > args.states:
            print(f"  … and {len(found) - args.states} more")
        if passed := [t["id"] for t in concerned[False] if t["id"] not in flagged]:
            print(f"  failures it does not flag: {', '.join(passed[:args.states])}{' …' if len(passed) > args.states else ''}")
    missed = [t for t in failures if t["id"] not in flagged]
    if missed and not args.attempt:
        print(f"{len(missed)} failures are not flagged, by template:")
        played = Counter(t["task"]["template"] for t in trajectories)
        for template, n in Counter(t["task"]["template"] for t in missed).most_common():
            print(f"  {template:<40} {n:4} of {played[template]}")
    for t in missed[:args.show]:
        print("\n" + harmless(show(t)))
    if args.out:
        if not found:
            raise ValueError(f"{args.hint_dir}: no step of {args.trajectories} has any of these mistakes, there is nothing to correct")
        output = files.Output(args.out, {"trajectories": args.trajectories, "mistakes": {str(m.file): m.file.read_text() for m in mistakes}})
        for t, m, n in found:
            if (state := flag(t, m, n))["id"] not in output.done:
                output.write(state)
        print(f"{args.out}: {len(output.done)} flagged states")


if __name__ == "__main__":
    command_line.run_stage(main)
