"""The agent: it reasons, writes code, sees what the code prints, and so on until the task is done (ReAct, paper §2).

`play` is a generator. It yields Generate and Execute requests and receives their results, so an agent reads as
straight-line code, and one loop serves many of them at a time (rollouts.py). Nothing here knows how a model computes.
"""

from collections.abc import Generator
from dataclasses import dataclass

from agent.chat import Chat
from agent.protocol import RESPONSES
from agent.responses import code_in, monologue_in


@dataclass
class Generate:
    """An agent yields this to get text. It receives (the response, how it ended): "stop" or "length"; from an endpoint
    also "refused", by a content filter or a rejected request, or "empty"."""
    prompt: list        # token ids, or messages for an endpoint
    tag: str            # the response ends where this tag closes
    seed: str


@dataclass
class Execute:
    """An agent yields this to have its code run. It receives the sandbox's Observation."""
    code: str


def play(chat: Chat, trajectory: dict, max_steps: int,
         only_next: bool = False) -> Generator[Generate | Execute, object, None]:
    """Plays a trajectory to its end, or with `only_next` for one step.

    chat: a `chat.Chat`, or `endpoint.Messages` for a model behind an endpoint. trajectory: a record, changed in place.
    Its finished steps are executed again first, which restores the interpreter's variables; if one of them prints
    something else than before, the record says so in its field "replayed". If it ends in an open step
    (see `new_step`), that step is played next, even beyond max_steps."""
    steps = trajectory["steps"]
    finished = sum(step["observation"] is not None for step in steps)
    for step in steps[:finished]:
        again = yield Execute(step["code"])
        if again.text != step["observation"]:
            trajectory["replayed"] = "with other output"

    for n in range(finished, max(max_steps, finished + 1)):
        if n == len(steps):
            steps.append(new_step())
        step = steps[n]
        trouble = yield from respond(chat, trajectory, n)
        if trouble:
            step["observation"], trajectory["stop"] = "", trouble
            return
        observation = yield Execute(step["code"])
        step["observation"] = observation.text
        if observation.completed is not None:
            trajectory["report"], trajectory["answer"] = observation.completed
            trajectory["success"] = is_right(trajectory["answer"], trajectory["task"]["answer"])
            trajectory["stop"] = "complete"
            return
        if only_next:
            return
    trajectory["stop"] = "max_steps"


def new_step(hint: dict | None = None) -> dict:
    """An open step, with a corrective hint or without one."""
    return {"monologue": "", "code": "", "observation": None, "hint": hint, "token_ids": {}}


def respond(chat, trajectory: dict, n: int) -> Generator[Generate, tuple, str | None]:
    """Fills in step n's monologue and code. Returns None, or why the trajectory ends here: "invalid", or as in
    `generate`."""
    step = trajectory["steps"][n]
    text, trouble = yield from generate(chat, trajectory, n, "monologue")
    step["monologue"], step["code"] = monologue_in(text)
    if trouble:
        return trouble
    if step["code"]:                                # the model went straight on to the code: do not ask for it again
        if "monologue" in step["token_ids"]:
            step["token_ids"]["code"] = []
        return None

    text, trouble = yield from generate(chat, trajectory, n, "code")
    step["code"] = code_in(text)
    return trouble or (None if step["code"] else "invalid")


def generate(chat, trajectory: dict, n: int, field: str) -> Generator[Generate, tuple, tuple[str, str | None]]:
    """Asks for step n's "monologue" or "code". Returns (the response's text, how it ended too early, or None). The
    record gets its token ids, where they are known, and the token counts."""
    steps = trajectory["steps"]
    before = [step | {"hint": None} for step in steps[:n]]          # a corrective hint is shown in its own step only
    hints = [hint["text"] for hint in trajectory["hints"]]
    prompt, _ = chat.prompt(trajectory["task"]["question"], hints, [*before, steps[n]], ask=field)
    tag, _ = RESPONSES[field]
    seed = f"{trajectory['seed']}/{n}/{list(RESPONSES).index(field)}"
    response, ended = yield Generate(prompt, tag, seed)
    text, ids, (read, written) = chat.heard(prompt, response)
    trajectory["usage"]["input_tokens"] += read
    trajectory["usage"]["output_tokens"] += written
    if ids is not None:                             # an endpoint does not report them
        steps[n]["token_ids"][field] = ids
    return text, None if ended == "stop" or f"</{tag}>" in text else ended


def is_right(answer: str, expected: str | list[str]) -> bool:
    """Exact match (paper §5.1). `expected` may list several right answers."""
    return answer in ([expected] if isinstance(expected, str) else expected)
