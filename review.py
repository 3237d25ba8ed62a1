"""The coach's desk: trajectories → the states in which a known mistake was made, each with the hint against it
(paper §3.2, Fig. 3b).

    python review.py seen2.jsonl --show 5                          read failures, to find out what goes wrong
    python review.py seen2.jsonl --html report.html                the same as a page
    python review.py seen2.jsonl --try my-hint.md --model starter  what it flags, what the agent does with the hint
    python review.py seen2.jsonl --hint-dir hints/starter/round2 --out flagged2.jsonl
    python review.py seen2.jsonl --hint-dir hints/starter/round2 --corrected corrected2.jsonl      does it help?

A mistake is one Markdown file: a detector, and the hint against what it detects. docs/hints.md says how to write one,
docs/coaching.md when.
"""

from common import command_line, files

import functools
import json
from argparse import Namespace
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

from agent import options
from agent.play import play
from agent.rollouts import check_player, corrections, play_all
from desk import backend, judge, report
from desk.effects import gain, hint_effects, rate, read_corrected
from desk.mistakes import Finding, Mistake, flag, load_mistakes
from desk.terminal import compare, harmless, show
from formats import records


def main():
    args = arguments()
    trajectories = records.read_trajectories(args.trajectories)
    if args.attempt:
        mistakes = [Mistake(Path(args.attempt))]
    else:
        mistakes = load_mistakes(args.hint_dir) if args.hint_dir else []

    found, unreadable, agreements = find(trajectories, mistakes, args)
    flagged = {t["id"] for t, _, _ in found}
    failures = [t for t in trajectories if not t["success"]]
    missed = [t for t in failures if t["id"] not in flagged]
    print(f"{len(trajectories)} trajectories, {len(failures)} failed; "
          f"flagged: {len(found)} states in {len(flagged)} trajectories"
          + (f"; {unreadable} verdicts of the judge could not be read and flag nothing" if unreadable else ""))

    corrected = read_corrected(args.corrected, found) if args.corrected else {}
    control = read_corrected(args.control, found, control=True) if args.control else {}
    if args.attempt and args.model and found:
        corrected = try_hint(found, args)
    rows = hint_effects(mistakes, found, corrected, control)

    if args.html:
        title = Path(args.trajectories).stem + (f", {mistakes[0].name}" if args.attempt else "")
        flags, hints = [(t, m.name, n) for t, m, n in found], {m.name: m.hint for m in mistakes}
        files.write_whole({args.html: report.review_page(title, trajectories, flags, hints, rows)})
        print(f"{args.html}: written")
    print_effects(rows)
    for sentence in agreements:
        print(f"  {sentence}")
    if args.attempt:
        print_coverage(trajectories, mistakes[0], found, args.states)
    elif missed:
        print_missed(trajectories, missed)
    for t in missed[:args.show]:
        print("\n" + harmless(show(t)))
    if args.out:
        write_flagged(found, mistakes, args)


def arguments() -> Namespace:
    p = command_line.Parser(__doc__)
    p.add_argument("trajectories", help="JSONL")
    p.add_argument("--hint-dir", metavar="DIR", help="the mistakes to look for, one Markdown file each")
    p.add_argument("--show", type=command_line.number(int, 0), default=0, metavar="N",
                   help="print N failures that no detector flags")
    p.add_argument("--html", metavar="FILE", help="write everything as a page")
    p.add_argument("--corrected", metavar="FILE",
                   help="what collect.py --resample --rollout made of the flagged states: report what each hint does")
    p.add_argument("--control", metavar="FILE", help="the same, but made with --control, without the hint")
    p.add_argument("--try", dest="attempt", metavar="FILE",
                   help="a mistake's file: print what it flags and, with --model, what the agent does with the hint")
    p.add_argument("--judge", metavar="MODEL",
                   help="who judges mistakes described in words: a model's directory or hub id, or openai:NAME; its "
                        "verdicts are kept beside --out")
    p.add_argument("--states", type=command_line.number(int, 1), default=8,
                   help="with --try: try at most this many states, failures first")
    p.add_argument("--rollout", action="store_true", help="with --try: play each task to its end")
    options.add_arguments(p)
    args = p.parse_args()
    if args.attempt and (args.hint_dir or args.out or args.corrected or args.control):
        p.error("--try looks at one mistake only; it takes no --hint-dir, --out, --corrected or --control")
    if args.out and not args.hint_dir:
        p.error("--out needs the --hint-dir whose mistakes are flagged")
    if (args.corrected or args.control) and not args.hint_dir:
        p.error("--corrected and --control need the --hint-dir they were made with")
    for written in (args.html, args.out):
        files.refuse_overwriting(written, [args.trajectories, args.corrected, args.control])
    return args


def find(trajectories: list[dict], mistakes: list[Mistake], args: Namespace) -> tuple[list[Finding], int, list[str]]:
    """Looks for every mistake in every trajectory. → the findings; how many verdicts of the judge could not be read;
    and a sentence on how far detector and judge agree, for each mistake that has both. There the detector decides."""
    undecided = [m for m in mistakes if m.kind == "judge"]
    if undecided and not args.judge:
        raise ValueError(f"{undecided[0].place}: give the model that judges with --judge")
    first, verdicts, unreadable = {}, {}, 0     # first, verdicts: (trajectory's id, mistake's name) → step or None
    for t in trajectories:
        text = json.dumps(t)                                          # a copy for each detector, which may change it
        first |= {(t["id"], m.name): m.first_step(json.loads(text) if m.kind == "python" else t)
                  for m in mistakes if m.kind != "judge"}
    judged = [m for m in mistakes if m.judge and args.judge]
    if judged:
        verdicts, unreadable = judge.first_steps(trajectories, judged, args)
    agreements = [judge.agreement(m.name, {key: first[key] for key in verdicts if key[1] == m.name}, verdicts)
                  for m in judged if m.kind != "judge"]
    steps = verdicts | first                                          # with both, the detector decides
    found = [Finding(t, m, n) for t in trajectories for m in mistakes
             if (n := steps.get((t["id"], m.name))) is not None]
    return found, unreadable, agreements


# ---- --try

def failures_first(found: list[Finding]) -> list[Finding]:
    return sorted(found, key=lambda finding: finding.trajectory["success"])


def try_hint(found: list[Finding], args: Namespace) -> dict:
    """Lets the agent act again in up to --states flagged states, now with the hint, and prints each action next to the
    one with the mistake. → {(trajectory's id, mistake's name): [corrected action]}"""
    tried = failures_first(found)[:args.states]
    corrected = {(f.trajectory["id"], f.mistake.name): [r] for f, r in zip(tried, resample(tried, args))}
    for t, mistake, n in tried:
        print("\n" + harmless(compare(t, mistake, n, *corrected[t["id"], mistake.name])))
    print()
    return corrected


def resample(found: list[Finding], args: Namespace) -> list[dict]:
    """A corrected action from each flagged state, in the same order, made as collect.py --resample makes it."""
    states, made = [flag(*finding) for finding in found], []
    check_player(states, args)
    chat = backend.chat_with(args)
    output = SimpleNamespace(replica=0, replicas=1, done=(), write=made.append)
    player = functools.partial(play, chat, max_steps=args.max_steps, only_next=not args.rollout)
    play_all(corrections(states, args, samples=1), args, output, chat, backend.start_engine, player)
    by_id = {r["id"]: r for r in made}
    return [by_id[f"{state['id']}~0"] for state in states]


def print_coverage(trajectories: list[dict], mistake: Mistake, found: list[Finding], limit: int) -> None:
    """Prints how many of the trajectories that a mistake concerns it flags, with up to `limit` examples."""
    flagged = {t["id"] for t, _, _ in found}
    concerned = [t for t in trajectories if mistake.concerns(t["task"])]
    for success, kind in ((False, "failures"), (True, "successes")):
        ids = [t["id"] for t in concerned if t["success"] == success]
        print(f"it flags {len(flagged.intersection(ids))} of {len(ids)} {kind} that it concerns")
    for t, _, n in failures_first(found)[:limit]:
        code = t["steps"][n]["code"].strip().splitlines() or ["no code"]
        print(harmless(f"  {'✓' if t['success'] else '✗'} {t['id']}, step {n + 1}: {code[-1]}"))
    if len(found) > limit:
        print(f"  … and {len(found) - limit} more")
    passed = [t["id"] for t in concerned if not t["success"] and t["id"] not in flagged]
    if passed:
        print(f"  failures it does not flag: {', '.join(passed[:limit])}{' …' if len(passed) > limit else ''}")


# ---- what is printed and written

def print_effects(rows: dict) -> None:
    """Prints a line for each mistake: how many states it flags and what its hint does."""
    for name, row in rows.items():
        successes = sum(map(sum, row["flagged"]))
        line = f"  {name:<40} {sum(map(len, row['flagged'])):4} states, {successes:4} of them in successes"
        line += "".join(f"; right {how} the hint {rate(row[how])}" for how in ("without", "with") if row[how])
        gained = gain(row)
        print(line + ("; does not help" if gained is not None and gained <= 0 else ""))


def print_missed(trajectories: list[dict], missed: list[dict]) -> None:
    """Prints the failures that nothing flags, by template: these need the next hints."""
    print(f"{len(missed)} failures are not flagged, by template:")
    played = Counter(t["task"]["template"] for t in trajectories)
    for template, n in Counter(t["task"]["template"] for t in missed).most_common():
        print(f"  {template:<40} {n:4} of {played[template]}")


def write_flagged(found: list[Finding], mistakes: list[Mistake], args: Namespace) -> None:
    """Writes the flagged states, for collect.py --resample: an empty file if there are none."""
    texts = {str(m.file): files.read_text(m.file) for m in mistakes}
    files.Output(args.out, {"trajectories": args.trajectories, "mistakes": texts})       # refuses what others made
    files.write_whole({args.out: files.as_lines([flag(*finding) for finding in found])})
    print(f"{args.out}: {len(found)} flagged states" + ("" if found else "; there is nothing to correct"))


if __name__ == "__main__":
    command_line.run_stage(main)
