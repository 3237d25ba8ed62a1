"""What the server (agent/server.py) makes of a client's messages: the token ids of a prompt.

The agent's own conversations become, token by token, what they are without a server: its fixed wording, hints and text
from outside are encoded separately (agent/chat.py). A response that comes back becomes the ids that were sampled,
although the client has kept only the monologue or the code in it. Any other conversation becomes what it is when it is
learned (agent/logged.py); if its template does not permit this, each message is encoded by itself. Control tokens in a
message have no effect.
"""

import itertools
import re
import threading
from argparse import Namespace
from collections import OrderedDict

from agent import logged
from agent.chat import Chat
from agent.protocol import CODE, PROTOCOL, RESPONSES, THINK, disarmed
from agent.responses import code_in, monologue_in

REMEMBERED = 4096                                                       # responses

# The agent's conversations (agent/protocol.py): blocks of text, what it is asked around them, and its responses.
BLOCK = re.compile(r"<(hints|task_description|hint|observation)>\n(.*?)\n</\1>\n", re.S)
ASKED = re.compile(rf"(?:{re.escape(PROTOCOL)}\n\n)?Step \d+(?:{re.escape(THINK)}|{re.escape(CODE)})")
SAID = re.compile(r"(<(inner_monologue|python)>\n)(.*\n</\2>)", re.S)
STARTS = [f"<{tag}>\n" for tag, _ in RESPONSES.values()]


class Prompts:
    """Messages → token ids. Threads may share it."""

    def __init__(self, chat: Chat):
        self.chat, self.lock = chat, threading.Lock()                   # a tokenizer has modes
        self.said = OrderedDict()           # {(hash of the messages before, response): see `remember`}

    def encode(self, asked: Namespace) -> list[int]:
        """The prompt of a request. Raises ValueError if the model's template or tokenizer cannot write it."""
        with self.lock:
            ours = any(PROTOCOL in m["content"] for m in asked.messages if m["role"] == "user")
            if asked.calling or not (ours or asked.continues):
                try:
                    return logged.prompt(self.chat, asked.messages, asked.tools, asked.thinking)
                except ValueError:
                    if asked.calling:
                        raise
            return asked.continues and self.of_agent(asked.messages) or self.of_any(asked.messages, asked.continues)

    def of_agent(self, messages):
        """The prompt as `Chat.prompt` writes it, or None if these are not the agent's messages."""
        contents, slots, before = [], [], hashes(messages)

        def slot(content):
            slots.append(content)
            return f"\ue000{len(slots) - 1}\ue001"

        def block(match):
            tag, text = match.groups()
            return f"<{tag}>\n{slot(self.chat.encode_hint(text) if tag in ('hints', 'hint') else text)}\n</{tag}>\n"

        pairs = iter(range(0, len(messages), 2) if len(messages) % 2 == 0 else ())
        for n in pairs:
            ask, answer, last = messages[n]["content"], messages[n + 1]["content"], n + 2 == len(messages)
            said = SAID.fullmatch(answer)
            ours = ASKED.fullmatch(BLOCK.sub("", ask)) and (answer in STARTS if last else said)
            if not ours or (messages[n]["role"], messages[n + 1]["role"]) != ("user", "assistant"):
                return None
            contents.append(BLOCK.sub(block, ask))
            if last:
                contents.append(answer + slot([]))
                return self.chat.encode(self.chat.grow(tuple(contents), unfinished=True), slots)[0]
            start, ids, code = self.recall(before[n + 1], answer)
            contents.append(said[1] + slot(ids if start == said[1] else self.chat.encode_hint(said[3])))
            if code and messages[n + 3]["content"] == code:             # it was in the monologue's turn
                next(pairs)
        return None

    def of_any(self, messages, continues):
        """Any conversation in the model's chat template."""
        filled = [m | {"content": f"\ue000{n}\ue001"} for n, m in enumerate(messages)]
        slots = [self.chat.encode_hint(m["content"]) for m in messages]
        for n, before in enumerate(hashes(messages)[:len(messages) - continues]):
            if messages[n]["role"] == "assistant":
                start, ids, _ = self.recall(before, messages[n]["content"])
                slots[n] = self.chat.encode_hint(start) + ids
        text = self.chat.fill_template(filled, generate=not continues)
        if continues:
            text = text.partition(filled[-1]["content"])[0] + filled[-1]["content"]
        return self.chat.encode(text, slots)[0]

    def remember(self, asked: Namespace, text: str, stopped_by: str | None, ids: list[int]) -> None:
        """Keeps a response to `asked` under what a client will say that it was: (the message's start, which was given,
        the ids that continue it, the code if the model put it into the monologue's turn)."""
        before, start = asked.messages, ""
        if asked.continues:
            before, start = before[:-1], before[-1]["content"]
        said, code, ask = start + text, "", before[-1]["content"] if before else ""
        text += stopped_by or ""
        if start in ("", *STARTS) and ask.endswith(THINK):
            monologue, code = monologue_in(text)
            said, code = tagged("inner_monologue", monologue), code and tagged("python", code)
        elif start in ("", *STARTS) and ask.endswith(CODE):
            said = tagged("python", code_in(text))
        elif stopped_by:                                                # the client's message ends before these ids do
            return
        with self.lock:
            self.said[hashes(before)[-1], said] = start, ids, code
            while len(self.said) > REMEMBERED:
                self.said.popitem(last=False)

    def recall(self, before: int, content: str) -> tuple[str, list[int], str]:
        """What `remember` has kept of a message; of an unknown one all of it is the start."""
        return self.said.get((before, content), (content, [], ""))


def tagged(tag: str, text: str) -> str:
    """A monologue or code as agent/endpoint.py sends it."""
    return f"<{tag}>\n{disarmed(text)}\n</{tag}>"


def hashes(messages: list[dict]) -> list[int]:
    """A hash of all messages before each one, and of all of them."""
    return list(itertools.accumulate(messages, lambda h, m: hash((h, m["role"], m["content"])), initial=0))
