"""Many trajectories at a time: what is to be played, and the loop that plays it.

While one agent's code runs in the sandbox, the model continues with the others.
"""

from common import files

import copy
import difflib
import os
import sys
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import wait
from pathlib import Path
from zlib import crc32

from tqdm import tqdm

from agent.chat import Chat
from agent.hints import hints_for, load_hints
from agent.play import Execute, Generate, new_step
from formats import records
from tools.sandbox import World

UNPLAYED = {"report": "", "answer": "", "success": False, "stop": ""}
NOTHING_USED = {"input_tokens": 0, "output_tokens": 0, "seconds": 0.0}


# ---- what is to be played

def trials(tasks: list[dict], args: Namespace) -> Iterator[dict]:
    """The empty trajectories of all tasks and trials, in order, with the hints that --hints, --kinds and --hints-for
    choose."""
    sections = load_hints(args.hint_dir) if args.hints != "none" else []
    if args.hints == "task":
        check_templates(tasks, sections)
    if args.hints_for:
        shown = records.read_tasks(args.hints_for)
        groups, templates = ({task[field] for task in shown} for field in ("group", "template"))
        sections = [s for s in sections if s["group"] in groups | {"common"}
                    and (s["templates"] is None or templates & set(s["templates"]))]
    without = {task["group"] for task in tasks} - {s["group"] for s in sections}
    if args.hints == "task" and without and not any(s["group"] == "common" for s in sections):
        group = min(without)
        raise ValueError(f"{args.hint_dir}: no hints for the group {group!r}"
                         + ("; --hints-for leaves them out" if args.hints_for else f"; write {group}.md or common.md"))
    for task in tasks:
        hints = hints_for(task, sections, args.hints, args.kinds)
        for trial in range(args.trials):
            key = f"{task['id']}#{trial}"
            yield {"id": key, "task": task, "model": args.model, "adapters": args.adapter,
                   "seed": seed_of(key, args), "hints": hints, "steps": [], **UNPLAYED, "usage": dict(NOTHING_USED)}


def corrections(states: list[dict], args: Namespace, samples: int, control: bool = False) -> Iterator[dict]:
    """`samples` trajectories that continue each flagged state. Their next step is open and shows the hint, or no hint
    with `control`."""
    for state in states:
        known = all(step["token_ids"].keys() >= {"monologue", "code"} for step in state["steps"])
        if not known and not args.model.startswith("openai:"):
            raise ValueError(f"{state['id']}: its steps hold no token ids, as if they came from an endpoint; "
                             "only --model openai:NAME can continue from there")
        for sample in range(samples):
            key = f"{state['id']}~{sample}"
            t = copy.deepcopy(state) | UNPLAYED
            t |= {"id": key, "seed": seed_of(key, args), "model": args.model, "adapters": args.adapter,
                  "targets": [len(t["steps"])], "usage": dict(NOTHING_USED)}
            hint = t.pop("hint")
            t["steps"].append(new_step(None if control else hint))
            yield t


def seed_of(key: str, args: Namespace) -> int:
    """A trajectory's own seed: the same whatever else is played."""
    return crc32(f"{args.seed}/{key}".encode())


# ---- playing

def play_all(trajectories: Iterable[dict], args: Namespace, output: files.Output, chat: Chat,
             start_engine: Callable, player: Callable) -> None:
    """Plays the trajectories that `output` does not hold yet and writes them there, with a progress bar. With
    several replicas, each plays its share.

    start_engine(args) → (what samples, what makes its requests), as scaling.parallel.sampler or endpoint.engine return
    them; called only when the sandbox has started. player(trajectory) → its generator, such as `play`."""
    trajectories = list(trajectories)
    mine = trajectories[output.replica::output.replicas]
    todo = [t for t in mine if t["id"] not in output.done]
    successes, changed, first = 0, 0, output.replica == 0
    check_answers_hidden(args)
    if isinstance(chat, Chat):
        check_tokens(todo, chat)
    with World(args.tools, args.data) as world:
        check_protections(world, args.require_sandbox, first)
        sampler, request = start_engine(args)
        check_room(trajectories, player, getattr(sampler, "max_length", None))
        share = f"replica 1 of {output.replicas}" if output.replicas > 1 else None
        with tqdm(total=len(todo), unit="trajectory", desc=share, disable=not first) as progress:
            try:
                for trajectory in serve(todo, player, chat, sampler, request, world, args.batch):
                    output.write(trajectory | rejected(sampler))
                    successes += trajectory["success"]
                    changed += "replayed" in trajectory
                    progress.update()
                    progress.set_postfix(success=f"{successes / max(progress.n, 1):.0%}")
            except KeyboardInterrupt:
                kept = f"are in {args.out}; the same command resumes from there" if args.out else "are not kept"
                raise KeyboardInterrupt(f"{progress.n} of {len(todo)} trajectories were played and {kept}") from None
    if changed:
        print(f"WARNING: in {changed} of {len(todo)} trajectories, an earlier step that was executed again printed "
              "something else than it had; are --tools and --data the same? If such steps ran out of time, a smaller "
              "--batch helps", file=sys.stderr)


def serve(trajectories: Iterable[dict], player: Callable, chat, sampler, request: Callable, world: World,
          batch: int) -> Iterator[dict]:
    """Plays `batch` agents at a time and yields each trajectory when it has ended.

    player(trajectory) → its generator; request(key, prompt, stop=…, seed=…) → what the sampler takes."""
    active, running = {}, {}                        # id → (trajectory, generator, box); box with code in it → id
    trajectories = iter(trajectories)

    def advance(key, result):
        """Hands an agent its result. Returns [its trajectory] if that was the end, otherwise []."""
        trajectory, generator, box = active[key]
        try:
            wish = generator.send(result)
        except StopIteration:
            box.close()
            del active[key]
            return [trajectory]
        if isinstance(wish, Generate):
            sampler.add(request(key, wish.prompt, stop=chat.closes(wish.tag), seed=wish.seed))
        else:
            box.send(wish.code)
            running[box] = key
        return []

    clock, more = time.perf_counter(), True
    while active or more:
        ended = []
        while more and len(active) < batch:
            trajectory = next(trajectories, None)
            if more := trajectory is not None:
                active[trajectory["id"]] = trajectory, player(trajectory), world.start()
                ended += advance(trajectory["id"], None)
        for answered in sampler.step():
            ended += advance(answered.key, (answered.new_ids, answered.ended))
        if running:
            timeout = 1.0 if sampler.idle and not ended else 0.0
            for box in wait(running, timeout):
                ended += advance(running.pop(box), box.receive())
        now = time.perf_counter()
        playing = [t for t, _, _ in active.values()] + ended
        for trajectory in playing:                  # agents that play at the same time share the seconds
            trajectory["usage"]["seconds"] += (now - clock) / len(playing)
        clock = now
        yield from ended


def rejected(sampler: object) -> dict:
    """The record's field about parameters that an endpoint has rejected, if it has."""
    parameters = getattr(sampler, "rejected", None)
    return {"rejected_parameters": parameters} if parameters else {}


# ---- checks before the first step

def check_answers_hidden(args: Namespace) -> None:
    """Raises ValueError if the agent's code could read a file that holds answers."""
    for name in ("tasks", "resample", "trajectories", "hints_for", "out", "html"):
        file = getattr(args, name, None)
        if file and args.data and Path(file).resolve().is_relative_to(Path(args.data).resolve()):
            raise ValueError(f"{file}: holds answers, and the agent's code can read all of --data {args.data}; "
                             "keep it elsewhere")


def check_protections(world: World, required: bool, report: bool) -> None:
    """Reports what the sandbox cannot prevent on this system. Raises ValueError if everything is required."""
    if world.missing and required:
        raise ValueError("--require-sandbox: on this system the agent's code cannot be kept from "
                         f"{', '.join(world.missing)}; docs/sandbox.md says what it takes")
    if world.missing and report:
        print("WARNING: on this system the sandbox cannot prevent:", "; ".join(world.missing), file=sys.stderr)


def check_tokens(trajectories: list[dict], chat: Chat) -> None:
    """Raises ValueError if what the agent has said before is in another model's tokens."""
    for trajectory in trajectories:
        if not all(chat.spells(step) for step in trajectory["steps"]):
            raise ValueError(f"{trajectory['id']}: its tokens are not those of --model {trajectory['model']}; "
                             "only the model that has played it can continue from there")


def check_player(states: list[dict], args: Namespace) -> None:
    """Warns if another agent has played the states than the one that is to continue them, by the names of the model's
    and the adapters' folders."""
    agent = lambda model, adapters: " + ".join(Path(x).name for x in (model, *adapters))
    now = agent(args.model, args.adapter)
    before = {agent(t["model"], t["adapters"]) for t in states if "model" in t and "adapters" in t} - {now}
    if before:
        print(f"WARNING: {min(before)} has played these states, and {now} continues them; is an --adapter missing?",
              file=sys.stderr)


def check_templates(tasks: list[dict], sections: list[dict]) -> None:
    """Warns of a `for:` that names a template which no task has, if a template without hints of its own is spelled
    almost like that."""
    for group in sorted({task["group"] for task in tasks}) if os.environ.get("RANK", "0") == "0" else ():
        asked = {task["template"] for task in tasks if task["group"] == group}
        named = {name for s in sections if s["group"] == group for name in s["templates"] or ()}
        for name in sorted(named - asked):
            for meant in difflib.get_close_matches(name, asked - named, n=1, cutoff=0.85):
                print(f"WARNING: {group}.md: no task has the template {name!r} behind 'for:'; is it {meant!r}?",
                      file=sys.stderr)


def check_room(trajectories: list[dict], player: Callable, limit: int | None) -> None:
    """Raises ValueError if no trajectory's first prompt fits into `limit` tokens. None: the limit is not known."""
    if not trajectories or not limit:
        return
    for trajectory in trajectories:
        wish = next(player(copy.deepcopy(trajectory)))
        if isinstance(wish, Execute) or len(wish.prompt) < limit:       # Execute: it repeats steps that have fitted
            return
    raise ValueError(f"{trajectory['id']}: its first prompt has {len(wish.prompt):,} tokens, and no other one is "
                     f"shorter than the {limit:,} that --max-length and the model allow; "
                     "show fewer hints, or give a larger --max-length")


def summary(file: str | Path) -> str:
    """One line on a finished file: how many trajectories, how many of them right, and how they ended."""
    trajectories = records.read_trajectories(file)
    right = sum(t["success"] for t in trajectories)
    stops = Counter(t["stop"] or "to be continued" for t in trajectories)
    ends = ", ".join(f"{stop} {n}" for stop, n in stops.most_common())
    return f"{file}: {len(trajectories)} trajectories, {right} right; ended by {ends}"
