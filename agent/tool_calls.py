"""The tool calls in a model's reply: JSON objects with a name and arguments, as most chat templates write them, between
control tokens, in a list, in a code fence, or bare.
"""

import json
import re
from collections.abc import Iterator

from agent.chat import Chat
from agent.logged import control_tokens

THOUGHTS = re.compile("<(/?)think(?:ing)?>")
Call = tuple[str, dict]                                         # a tool's name, its arguments


def find(text: str) -> Iterator[tuple[int, int, Call]]:
    """Yields (start, end, call) of each tool call behind the model's thoughts; one in them is only considered."""
    found = list(objects(text))
    tags = [match for match in THOUGHTS.finditer(text)
            if not any(start <= match.start() < end for start, end, _ in found)]
    behind = max((match.end() for match in tags if match[1]), default=0)
    unfinished = next((match.start() for match in tags if match.start() >= behind), len(text))
    yield from (call for call in found if behind <= call[0] < unfinished)


def objects(text: str) -> Iterator[tuple[int, int, Call]]:
    """Yields (start, end, call) of each JSON object that is a call."""
    at, decoder = 0, json.JSONDecoder()
    while (at := text.find("{", at)) >= 0:
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            at += 1
            continue
        function = value.get("function", value)                 # OpenAI's own form, if a template writes that
        if isinstance(function, dict) and isinstance(function.get("name"), str):
            given = function.get("arguments", function.get("parameters"))
            if isinstance(given, dict):
                yield at, end, (function["name"], given)
                at = end
                continue
        at += 1


def split(chat: Chat, text: str) -> tuple[str, list[Call]]:
    """A reply → what it says apart from its calls, and the calls. What the template writes around calls belongs to
    neither. Without a call the text stays as it is."""
    around = rf"{control_tokens(chat).pattern}|```\w*|\s"
    opening, closing = re.compile(rf"(?:{around}|\[)*\Z"), re.compile(rf"(?:{around}|[\],;])*")
    calls, said, at = [], [], 0
    for start, end, call in find(text):
        calls.append(call)
        said.append(opening.sub("", text[at:start]))
        at = closing.match(text, end).end()
    return ("\n".join(filter(None, [*said, text[at:]])), calls) if calls else (text, [])
