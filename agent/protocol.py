"""The agent's prompt: its fixed wording, its tags, and the messages that a trajectory consists of (ReAct, paper §2).

Every step has two turns: the model is asked for an inner monologue, then for Python code. What the code prints opens
the next step, in the same message as the request for a monologue, since many chat templates want turns to alternate. A
conversation only grows at its end, except that a corrective hint disappears after its step.
"""

import re
from collections.abc import Callable

# A model trained on this wording, like the starter, has it in its vocabulary. Changing it means training again.
PROTOCOL = ("You solve a task step by step. In each step you reason, then write Python code that calls tools; "
            "what it prints comes\nback as an observation, and its variables last. "
            "Call complete_task(report, answer) in your code when you have the answer.")
THINK = ": reason about what to do next, in <inner_monologue> and </inner_monologue>."
CODE = ": write the Python code that does it, in <python> and </python>."
TAGS = ("hints", "task_description", "hint", "inner_monologue", "python", "observation")

# The two responses of a step, in order: {field of the record: (the response's tag, how it is asked for)}.
RESPONSES = {"monologue": ("inner_monologue", THINK), "code": ("python", CODE)}

TAG = re.compile(rf"(</?(?:{'|'.join(TAGS)})>)")
TAG_START = re.compile(rf"<(?=/?(?:{'|'.join(TAGS)})>)")
THOUGHT_TAG = re.compile(r"</?think(?:ing)?>")          # a reasoning model puts its first thoughts between these


def disarmed(text: str) -> str:
    """A text from outside (a question, an observation, an answer), changed so that our tags in it have no effect."""
    return TAG_START.sub("&lt;", text)


def conversation(question: str, hints: list[str], steps: list[dict], ask: str | None, outside: Callable[[str], str],
                 hinted: Callable[[str], str], said: Callable[[int, str], str]) -> list[dict]:
    """The messages of a trajectory, [{"role", "content"}], up to the response that is asked for.

    hints: the texts of the hint sections in the prompt.
    steps: as in the record. If a response is asked for, the last step needs only the fields before it.
    ask: "monologue" or "code" of the last step, or None for all of a finished trajectory.
    The three functions write the variable parts: outside(text) a question or an observation, hinted(text) the coach's
    words, said(n, field) step n's monologue or code with its closing tag."""
    messages, content = [], PROTOCOL + "\n\n"
    if hints:
        content += f"<hints>\n{hinted(chr(10).join(hints))}\n</hints>\n"
    content += f"<task_description>\n{outside(question)}\n</task_description>\n"
    for n, step in enumerate(steps):
        if step.get("hint"):
            content += f"<hint>\n{hinted(step['hint']['text'])}\n</hint>\n"
        for field, (tag, request) in RESPONSES.items():
            if field == "code" and step.get("token_ids", {}).get(field) == []:      # the monologue contains the code
                continue
            messages.append({"role": "user", "content": f"{content}Step {n + 1}{request}"})
            if ask == field and n == len(steps) - 1:
                return messages
            messages.append({"role": "assistant", "content": f"<{tag}>\n{said(n, field)}"})
            content = ""
        content = f"<observation>\n{outside(step['observation'])}\n</observation>\n"
    return messages
