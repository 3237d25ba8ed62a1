"""The LLM judge: does a step have a mistake that is described in words? (paper §3.2 and Appendix E)

A judge reasons and then gives a verdict on one step at a time, from the first step on. A verdict that cannot be read is
asked for again. If no attempt can be read, it counts as no mistake and is reported; it is never guessed.
"""

from common import files

import re
from argparse import Namespace
from zlib import crc32

from tqdm import tqdm

from agent.endpoint import is_remote
from desk import backend
from desk.mistakes import Mistake

ATTEMPTS = 3                                      # at a verdict that can be read
PROMPT = """\
You check the work of an agent that solves tasks step by step: it reasons, then writes Python code that calls tools, \
and sees what the code prints.
Look for one mistake only, and in one step only.

# The mistake
{mistake}

# The task
{question}

# The steps before
{before}

# The step to check
{step}

Say in a few sentences whether this step has the mistake. \
Then end with <verdict>yes</verdict> or <verdict>no</verdict>."""


def question(trajectory: dict, mistake: Mistake, n: int) -> str:
    """The judge's prompt about step n. The agent's own text cannot smuggle in a verdict."""
    steps = [f"Step {i}: {step['monologue']}\n{step['code']}\nprinted: {step['observation']}"
             for i, step in enumerate(trajectory["steps"][:n + 1], 1)]
    parts = {"mistake": mistake.judge, "question": trajectory["task"]["question"],
             "before": "\n\n".join(steps[:n]) or "none", "step": steps[n]}
    return PROMPT.format_map({k: re.sub(r"(?i)<(?=/?verdict)", "&lt;", v) for k, v in parts.items()})


def verdict(text: str) -> bool | None:
    """The verdict at the end of a response, or None if there is none."""
    found = re.findall(r"(?:^|<verdict>)\W*(yes|no)\W*(?:</verdict>|\Z)", text, re.I)
    return found[-1].lower() == "yes" if found else None


def first_steps(trajectories: list[dict], mistakes: list[Mistake], args: Namespace) -> tuple[dict, int]:
    """{(trajectory's id, mistake's name): the first step with it, or None}, and how many verdicts could not be read.

    args: the command line; `args.judge` is the model. The verdicts are stored beside `args.out`, so that a second run
    does not ask for them again, unless they could not be read and the settings have changed."""
    local = {"dtype": None} if is_remote(args.judge) else {}              # --dtype is then the agent's alone
    args = Namespace(**vars(args) | {"model": args.judge, "adapter": []} | local)
    chat, (engine, request) = backend.chat_with(args), backend.start_engine(args)
    settings = {name: getattr(args, name) for name in ("max_new_tokens", "max_length", "temperature", "top_p", "seed")}
    known, cache = {}, None                                           # key of a question → verdict
    if args.out:
        server = {"base_url": args.base_url} if is_remote(args.judge) else {}
        cache = files.Output(f"{args.out}.verdicts", {"judge": args.judge} | server)
        known = {r["id"]: r["verdict"] for r in files.whole_lines(cache.path)
                 if r["verdict"] is not None or r.get("settings") == settings}
    first, unreadable = {}, set()

    def ask(trajectory, mistake, n=0, attempt=0):
        """Asks about the first step, from n on, whose verdict is not known. → False if the search is over."""
        first[trajectory["id"], mistake.name] = None
        while n < len(trajectory["steps"]):
            text = question(trajectory, mistake, n)
            key = f"{trajectory['id']}!{mistake.name}@{n}#{crc32(text.encode()):08x}"
            if key not in known:
                engine.add(request((trajectory, mistake, n, attempt, key), chat.ask(text), stop=chat.closes("verdict"),
                                   seed=f"{args.seed}/{key}/{attempt}"))
                return True
            if known[key]:
                first[trajectory["id"], mistake.name] = n
                return False
            if known[key] is None:
                unreadable.add(key)
            n, attempt = n + 1, 0
        return False

    pairs = [(t, m) for t in trajectories for m in mistakes if m.concerns(t["task"])]
    with tqdm(total=len(pairs), unit="trajectory", desc="judge") as progress:
        pending = sum(ask(t, m) for t, m in pairs)
        progress.update(len(pairs) - pending)
        while pending:
            for done in engine.step():
                t, m, n, attempt, key = done.key
                text = chat.heard(done.prompt, done.new_ids)[0]
                answer, attempt = verdict(text), attempt + 1
                if answer is not None or attempt == ATTEMPTS:
                    known[key], attempt = answer, 0
                    if cache:
                        cache.write({"id": key, "verdict": answer, "reasoning": text, "settings": settings})
                if not ask(t, m, n, attempt):
                    pending -= 1
                    progress.update()
    return first, len(unreadable)


def agreement(name: str, detected: dict, judged: dict) -> str:
    """A sentence on how far the judge agrees with a mistake's detector. detected, judged: {(trajectory's id, mistake's
    name): the first step with it, or None}, of the same trajectories."""
    flagged = [key for key, step in detected.items() if step is not None]
    others = [key for key, step in detected.items() if step is None]
    same = sum(judged[key] == detected[key] for key in flagged)
    found, more = (sum(judged[key] is not None for key in keys) for keys in (flagged, others))
    return (f"{name}: judge and detector agree on {same + len(others) - more} of {len(detected)} trajectories; "
            f"of {len(flagged)} that the detector flags, the judge flags {found}, {same} in the same step; "
            f"of {len(others)} others, {more}")
