"""Records → token examples: which records are learned, in which batches, and what the teacher and the student see.

A record is a trajectory or a corrected action (formats/records.py), or a chat (formats/chats.py). The first two are
read the same way: `targets` names the steps to learn, and without it every step is learned. An action is a step's
monologue and code, or one reply in a chat.
"""

import math
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from agent import logged
from agent.chat import Chat
from formats.chats import is_chat, learned_messages, read_training


@dataclass
class Example:
    """A record as tokens. N is the number of tokens in its learned actions; labels[i] is tokens[at[i] + 1]."""
    tokens: list[int]
    at: list[int]                                               # (N,) positions at which an action's token is predicted
    labels: list[int] = field(default_factory=list)             # (N,) those tokens
    weights: list[float] = field(default_factory=list)          # (N,) 1 / the number of tokens in the action
    teacher_file: Path | None = None                            # file of the teacher's hidden states at the N tokens
    adapters: float = math.inf                                  # how many of the frozen adapters its teacher has
    noise_seed: int = 0                                         # of the student's LoRA dropout


def to_example(chat: Chat, record: dict, dropout: float = 0.0, rng: random.Random = random) -> Example:
    """A record → its tokens. Each hint section, and the corrective hint of a learned step, is left out with probability
    `dropout`, but none of a `kept` record's; other corrective hints always are. Labels and weights do not depend on
    what is left out."""
    def keep():
        return record.get("kept") or rng.random() >= dropout

    def shown(n, step):
        return step if step["hint"] is None or (n in learned and keep()) else step | {"hint": None}

    learned = learned_steps(record)
    hints = [h for h in record["hints"] if keep()]
    if is_chat(record):
        tokens, spans = logged.tokens(chat, record, hints)
        actions = [range(*span) for span in spans]
    else:
        steps = [shown(n, s) for n, s in enumerate(record["steps"][:max(learned) + 1])]
        tokens, spans = chat.prompt(record["task"]["question"], [h["text"] for h in hints], steps)
        actions = [positions(spans, n) for n in learned]
    example = Example(tokens, [])
    for action in actions:
        example.at += [i - 1 for i in action]
        example.labels += [tokens[i] for i in action]
        example.weights += [1 / len(action)] * len(action)
    return example


def teacher_adapters(record: dict, model: str, adapters: Sequence[str]) -> float:
    """How many of these adapters the teacher of a record has: those of the agent that played it, by the names of their
    folders. Infinity, so all of them, for a chat and for another agent's trajectory."""
    if record.keys() >= {"model", "adapters"}:
        agent, played = ([Path(x).name for x in paths]
                         for paths in ((model, *adapters), (record["model"], *record["adapters"])))
        if played == agent[:len(played)]:
            return len(played) - 1
    return math.inf


def positions(spans: dict, n: int) -> list[int]:
    """Where step n's monologue and code are. A monologue that ran on into the code has both in its span."""
    return [i for part in ("monologue", "code") if (n, part) in spans for i in range(*spans[n, part])]


# ---- which records are learned

def read(paths: Sequence[str]) -> list[dict]:
    """The records of several files, sorted by id. Raises ValueError if a file is given twice."""
    seen = set()
    for file in paths:
        if Path(file).resolve() in seen:
            raise ValueError(f"{file}: given twice")
        seen.add(Path(file).resolve())
    return sorted((r for file in paths for r in read_training(file)), key=lambda r: r["id"])


def distinct(epochs: Iterable[list[dict]]) -> list[dict]:
    """Each record of several epochs once."""
    return list({id(r): r for records in epochs for r in records}.values())


def learned_steps(record: dict) -> Sequence[int]:
    """The steps of a trajectory, or the messages of a chat, that are learned."""
    if is_chat(record):
        return learned_messages(record["messages"])
    return record.get("targets", range(len(record["steps"])))


def count_actions(records: Sequence[dict]) -> int:
    """How many actions are learned from the records."""
    return sum(len(learned_steps(r)) for r in records)


def usable(record: dict) -> bool:
    """Is every learned action complete, with its token ids and those of the steps before it? Chats are taken as they
    are."""
    if is_chat(record):
        return True
    learned, steps = learned_steps(record), record["steps"]
    if not learned or len(steps) - 1 in learned and record["stop"] in ("length", "invalid"):
        return False
    known = all(step["token_ids"].keys() >= {"monologue", "code"} for step in steps[:max(learned) + 1])
    return known and all(steps[n]["token_ids"]["monologue"] for n in learned)


def select(records: Sequence[dict], successes_only: bool) -> list[dict]:
    """The records to learn from. A chat that says nothing of its success counts as one."""
    return [r for r in records if usable(r) and not (successes_only and r.get("success") is False)]


def balance(corrected: list[dict], candidates: list[dict], rng: random.Random) -> list[dict]:
    """Full trajectories to train on together with the corrected actions (paper, Appendix F):
    1. Templates with few corrected actions are filled up to the mean, from the same template.
    2. Groups with few examples are filled up to the largest, from the templates with the most corrected actions first
       (the paper: from the tasks that failed most in earlier rounds).
    3. As many again as 1 and 2 added, but at least a quarter of the corrected and one of each template that is missing,
       are drawn from the tasks not yet chosen, from the templates with the fewest examples first.
    The steps are otherwise the paper's; the amounts are ours. `corrected` may hold full trajectories, too; each counts
    as one.
    """
    if chats := [r["id"] for r in corrected + candidates if is_chat(r)]:
        raise ValueError(f"{chats[0]}: a chat belongs to no type of task, so it cannot be balanced; "
                         "leave out --balance")
    counted, pool = Counter(r["task"]["template"] for r in corrected), {}       # pool: {template: its candidates}
    for t in rng.sample(candidates, len(candidates)):
        pool.setdefault(t["task"]["template"], []).append(t)
    # 1.
    mean = round(sum(counted.values()) / max(len(counted), 1))
    chosen = [pool[name].pop() for name, n in counted.items() for _ in range(min(mean - n, len(pool.get(name, ()))))]
    # 2.
    groups = Counter(r["task"]["group"] for r in corrected + chosen)
    templates = sorted(pool, key=lambda name: -counted[name])
    for group in sorted({t["task"]["group"] for t in candidates}):
        waiting = [t for name in templates for t in pool[name] if t["task"]["group"] == group]
        added = waiting[:max(groups.values(), default=0) - groups[group]]
        chosen += added
        for t in added:
            pool[t["task"]["template"]].remove(t)
    # 3.
    tasks = {t["task"]["id"] for t in corrected + chosen}
    have, ranked = Counter(t["task"]["template"] for t in corrected + chosen), []
    for name, trajectories in pool.items():                     # (how many of its template come before it, candidate)
        ranked += zip(count(have[name]), [t for t in trajectories if t["task"]["id"] not in tasks])
    ranked.sort(key=lambda pair: pair[0])
    missing = [n for n, _ in ranked].count(0)
    return chosen + [t for _, t in ranked[:max(len(chosen), len(corrected) // 4, missing)]]


def batches(records: list[dict], size: int, rng: random.Random) -> Iterator[list[dict]]:
    """Shuffled records in batches of at least `size` actions; the last one may have fewer. The paper draws single
    actions; here those of a trajectory share a batch and one draw of hint dropout, as they are computed together."""
    batch = []
    for record in rng.sample(records, len(records)):
        batch.append(record)
        if count_actions(batch) >= size:
            yield batch
            batch = []
    if batch:
        yield batch
