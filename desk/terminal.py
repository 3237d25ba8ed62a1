"""Trajectories as text for a terminal."""

import re
import shutil
import textwrap
from itertools import zip_longest

from desk.mistakes import Mistake

CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def harmless(text: str) -> str:
    """A text in which control characters are spelled out. What an agent's code has printed may hold escape sequences
    or reverse the direction of writing."""
    return CONTROLS.sub(lambda match: ascii(match[0])[1:-1], text)


def show(trajectory: dict) -> str:
    """A whole trajectory."""
    task = trajectory["task"]
    lines = [f"=== {trajectory['id']}  ({task['template']})  {trajectory['stop']}", f"question: {task['question']}"]
    for n, step in enumerate(trajectory["steps"]):
        hint = f"\n[hint {step['hint']['name']}]" if step["hint"] else ""
        lines += [f"--- {n + 1}{hint}: {step['monologue']}", step["code"], f"→ {step['observation']}"]
    return "\n".join([*lines, f"answer: {trajectory['answer']!r}, right: {task['answer']!r}"])


def compare(trajectory: dict, mistake: Mistake, n: int, corrected: dict) -> str:
    """The hint, then the step with the mistake and the corrected one side by side, as in the paper's Figure 4."""
    width = max(20, (min(shutil.get_terminal_size().columns, 160) - 3) // 2)
    text = lambda step: f"{step['monologue']}\n\n{step['code']}\n\n→ {step['observation']}"
    outcome = f"  then: {'right' if corrected['success'] else 'wrong'}" if corrected["stop"] else ""
    return "\n".join([
        f"=== {trajectory['id']}, step {n + 1} ({'a success' if trajectory['success'] else 'a failure'})",
        trajectory["task"]["question"], "",
        textwrap.indent(mistake.hint, "    "), "",
        side_by_side("as it was", "with the hint" + outcome, width),
        "─" * width + "─┼─" + "─" * width,
        side_by_side(text(trajectory["steps"][n]), text(corrected["steps"][n]), width)])


def side_by_side(left: str, right: str, width: int) -> str:
    """Two texts as columns of this width."""
    def wrap(text):
        return [part for line in text.splitlines()
                for part in textwrap.wrap(line, width, subsequent_indent="  ") or [""]]

    pairs = zip_longest(wrap(left), wrap(right), fillvalue="")
    return "\n".join(f"{a:{width}} │ {b}".rstrip() for a, b in pairs)
