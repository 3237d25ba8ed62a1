"""The LLM judge: does a step have a mistake that a person describes in words? (paper §3.2: one judge prompt per mistake.)

A judge reasons and then gives a verdict on one step at a time, the first steps first. A verdict that cannot be read is asked for again;
if none of the tries can be read it counts as none, is reported, and never guessed.
"""

import re
from argparse import Namespace
from zlib import crc32

from tqdm import tqdm

from desk import backend
from common import files

TRIES = 3
PROMPT = """You check the work of an agent that solves tasks step by step: it reasons, then writes Python code that calls tools, and sees what the code prints.
Look for one mistake only, and in one step only.

# The mistake
{mistake}

# The task
{question}

# The steps before
{before}

# The step to check
{step}

Say in a few sentences whether this step has the mistake. Then end with <verdict>yes</verdict> or <verdict>no</verdict>."""


def written(n, step):
    return f"Step {n + 1}: {step['monologue']}\n{step['code']}\nprinted: {step['observation']}"


def question(trajectory, mistake, n):
    """What the judge is asked about step n. What the agent wrote cannot bring a verdict of its own along."""
    steps = trajectory["steps"]
    parts = {"mistake": mistake.judge, "question": trajectory["task"]["question"], "before": "\n\n".join(written(i, s) for i, s in enumerate(steps[:n])) or "none", "step": written(n, steps[n])}
    return PROMPT.format_map({k: re.sub(r"<(?=/?verdict)", "&lt;", v) for k, v in parts.items()})


def verdict(text):
    """True, False, or None if there is none."""
    found = re.findall(r"(?:^|<verdict>)\s*(yes|no)\s*(?:</verdict>|\Z)", text, re.I)
    return found[-1].lower() == "yes" if found else None


def first_steps(trajectories, mistakes, args):
    """{(trajectory's id, mistake's name): the first step that has it, or None}, and how many verdicts could not be read.

    args: the command line; `args.judge` is the model. Beside `args.out` the verdicts are kept: a rerun asks for none twice."""
    args = Namespace(**vars(args) | {"model": args.judge, "adapter": []})
    chat, (engine, request) = backend.chat_with(args), backend.start_engine(args)
    known, cache = {}, None
    if args.out:
        cache = files.Output(f"{args.out}.verdicts", {"judge": args.judge})
        known = {r["id"]: r["verdict"] for r in files.whole_lines(cache.path)}
    first, unreadable = {}, set()

    def ask(trajectory, mistake, n=0, attempt=0):
        """Goes on to the first step whose verdict is not known, and asks for it."""
        while n < len(trajectory["steps"]):
            text = question(trajectory, mistake, n)
            key = f"{trajectory['id']}!{mistake.name}@{n}#{crc32(text.encode()):08x}"
            if key not in known:
                engine.add(request((trajectory, mistake, n, attempt, key), chat.ask(text), stop=chat.closes("verdict"), seed=f"{args.seed}/{key}/{attempt}"))
                return 1
            if known[key]:
                first[trajectory["id"], mistake.name] = n
                return 0
            if known[key] is None:
                unreadable.add(key)
            n, attempt = n + 1, 0
        first[trajectory["id"], mistake.name] = None
        return 0

    pairs = [(t, m) for t in trajectories for m in mistakes if m.concerns(t["task"])]
    with tqdm(total=len(pairs), unit="trajectory", desc="judge") as progress:
        open_ = sum(ask(t, m) for t, m in pairs)
        progress.update(len(pairs) - open_)
        while open_:
            for done in engine.step():
                t, m, n, attempt, key = done.key
                text = chat.heard(done.prompt, done.new_ids)[0]
                answer = verdict(text)
                if answer is not None or attempt + 1 == TRIES:
                    known[key], attempt = answer, -1
                    if cache:
                        cache.write({"id": key, "verdict": answer, "reasoning": text})
                if not ask(t, m, n, attempt + 1):
                    open_ -= 1
                    progress.update()
    return first, len(unreadable)
