"""Conversations logged elsewhere (formats/chats.py), as the token ids that the agent's own server would see.

The model's chat template writes the messages, the tools' schemas and the tool calls. A reply is what the model would
have sampled: the text behind the generation prompt, up to the token that ends the turn. Each reply is encoded by
itself, since the prompt before it only grows at its end.
"""

from common import files

import functools
import json
import os
import re
from collections.abc import Callable

from agent.chat import SLOT, Chat, alternatives, as_text, rewrites
from agent.protocol import THOUGHT_TAG
from formats.chats import learned_messages

OWN_TAG = re.compile(rf"{THOUGHT_TAG.pattern}|</?tool_call>")   # control tokens that may be the model's own words


def tokens(chat: Chat, record: dict, hints: list[dict]) -> tuple[list[int], list[tuple[int, int]]]:
    """A chat up to its last reply, with these of its hints → its ids, and where each reply is in them. A hint is a text
    in the system message, or takes the place of a tool's schema.

    Raises ValueError, naming the record, if the chat template cannot write it."""
    learned = learned_messages(record["messages"])
    messages = with_hints(record["messages"][:learned[-1] + 1], [h["text"] for h in hints if "text" in h])
    described = {h["tool"]["function"]["name"]: h["tool"] for h in hints if "tool" in h}
    tools = [described.get(tool["function"]["name"], tool) for tool in record["tools"]]
    for bare, tool in zip(record["tools"], tools):
        if tool is not bare and one_tool(chat, json.dumps(tool)) == one_tool(chat, json.dumps(bare)):
            raise ValueError(f"{record['id']}: {chat.path}: the chat template leaves out the descriptions of the tool "
                             f"{tool['function']['name']}; write a chat_template.jinja that has a place for them")
    try:
        return encode(chat, messages, tools, len(learned))
    except ValueError as e:
        raise ValueError(f"{record['id']}: {e}") from None


@functools.lru_cache
def one_tool(chat: Chat, tool: str) -> str:
    """What the template writes for a tool, given as JSON."""
    return chat.write([{"role": "user", "content": "."}], [json.loads(tool)])


def prompt(chat: Chat, messages: list[dict], tools: list[dict], thinking: bool = False) -> list[int]:
    """The ids that the model reads before its next reply: what `tokens` has before that reply. thinking: the reply
    begins with thoughts, before which some templates write another prompt.

    Raises ValueError if the chat template cannot write the messages."""
    messages = [*messages, {"role": "assistant", "content": "<think>\n.\n</think>\n\n." if thinking else "."}]
    ids, spans = encode(chat, messages, tools, len(learned_messages(messages)))
    return ids[:spans[-1][0]]


def encode(chat: Chat, messages: list[dict], tools: list[dict],
           replies: int) -> tuple[list[int], list[tuple[int, int]]]:
    """Messages up to a reply → their ids, and where each of the last `replies` replies is in them."""
    ids, spans = [], []
    for before, reply in turns(chat, messages, tools, replies):
        ids += chat.encode_template(before, begins=not ids)
        said = chat.encode_template(reply)
        spans.append((len(ids), len(ids) + len(said)))
        ids += said
    return ids, spans


def with_hints(messages: list[dict], hints: list[str]) -> list[dict]:
    """The messages with the hints at the end of the system message, or as the system message if there is none."""
    if not hints:
        return messages
    system, rest = ([], messages) if messages[0]["role"] != "system" else (messages[:1], messages[1:])
    texts = [*(m["content"] for m in system if m["content"]), *hints]
    return [{"role": "system", "content": "\n\n".join(texts)}, *rest]


def turns(chat: Chat, messages: list[dict], tools: list[dict], replies: int) -> list[tuple[str, str]]:
    """[(what the model reads before a reply, the reply with its end)] for the last `replies` of the assistant's
    messages. All of these texts together are the conversation up to its last reply."""
    (messages, tools), found = writable(chat, messages, tools), []
    at = [n for n, message in enumerate(messages) if message["role"] == "assistant"]
    for n in at[len(at) - replies:]:
        whole = chat.write(messages[:n + 1], tools)
        ways = (chat.write(messages[:n], tools, generate=True, thinking=thinking) for thinking in (False, True))
        asked = next((text for text in ways if whole.startswith(text)), None)
        if asked is None:
            raise ValueError(f"{chat.path}: the chat template writes a reply differently than it asks for it; "
                             "write a chat_template.jinja whose generation prompt begins the assistant's messages")
        start = behind(found, asked, chat)
        found.append((asked[start:], whole[len(asked):end_of_turn(chat, whole, len(asked))]))
        if without_space(messages[n]["content"]) not in without_space("".join(found[-1])):
            raise ValueError(f"{chat.path}: the chat template leaves out a part of what the assistant says "
                             f"({messages[n]['content'][:40]!r}); write a chat_template.jinja that has a place for it")
    return found


def without_space(text: str) -> str:
    return "".join(text.split())


def behind(found: list[tuple[str, str]], text: str, chat: Chat) -> int:
    """Where in the template's text the turns found so far end. The text before a reply may have lost its end, as with
    Qwen3, where only the latest reply begins with an empty think block. Raises ValueError for any other change."""
    at = 0
    for before, reply in found:
        same = len(os.path.commonprefix([before, text[at:at + len(before)]]))
        kept = next((n for n in range(same, -1, -1) if text.startswith(reply, at + n)), None)
        if kept is None:
            raise rewrites(chat.path, (before + reply)[same:], text[at + same:])
        at += kept + len(reply)
    return at


def end_of_turn(chat: Chat, text: str, start: int) -> int:
    """Where the reply that starts there ends: behind the first token at which a server stops or, if there is none, the
    last control token."""
    stop = end_tokens(chat).search(text, start)
    others = [m for m in control_tokens(chat).finditer(text, start) if not OWN_TAG.fullmatch(m[0])]
    if not stop and not others:
        raise ValueError(f"{chat.path}: the chat template ends a reply without a control token, so an agent could not "
                         "learn to stop; write a chat_template.jinja that writes one")
    return (stop or others[-1]).end()


@functools.lru_cache
def end_tokens(chat: Chat) -> re.Pattern:
    """The tokens at which a server stops, by the model's own files."""
    ends, ids = {chat.names.get("eos_token")} - {None}, []
    for name in ("config.json", "generation_config.json"):
        if (chat.path / name).exists():
            given = files.read_json(chat.path / name).get("eos_token_id")
            ids += given if isinstance(given, list) else [given]
    ends |= {chat.special[i] for i in ids if i in chat.special}
    return alternatives(ends)


@functools.lru_cache
def stop_ids(chat: Chat) -> set[int]:
    """The ids at which a reply ends: of the tokens at which a server stops, and of the one that the template writes."""
    (_, reply), = turns(chat, [{"role": "user", "content": "."}, {"role": "assistant", "content": "."}], [], 1)
    return {i for i, token in chat.special.items() if end_tokens(chat).fullmatch(token) or reply.endswith(token)}


@functools.lru_cache
def control_tokens(chat: Chat) -> re.Pattern:
    return re.compile(f"{alternatives(chat.special.values()).pattern}|{chat.markers.pattern}")


# ---- messages as the template takes them

def writable(chat: Chat, messages: list[dict], tools: list[dict]) -> tuple[list[dict], list[dict]]:
    """The messages and tools without control tokens in their texts, and with the arguments of tool calls in the form
    that this template writes as JSON: an object for most, a JSON text for some.

    Raises ValueError if the template leaves out a part."""
    error = None
    for form in (dict, json_text):
        marked, marked_tools, names = with_slots(messages, tools, form)
        try:
            text = chat.write(marked, marked_tools)
        except ValueError as e:
            error = error or e
            continue
        if "{'\ue000" in text:                                  # Python's notation of an object
            continue
        if missing := names.keys() - set(SLOT.findall(text)):
            raise ValueError(f"{chat.path}: the chat template leaves out {names[min(missing, key=int)]}; take it away, "
                             "or write a chat_template.jinja that has a place for it")
        return [plain(chat, m, form) for m in messages], inert(chat, tools, own=True)
    raise error or ValueError(f"{chat.path}: the chat template does not write the arguments of tool calls as JSON")


def json_text(arguments: dict) -> str:
    return json.dumps(arguments, ensure_ascii=False)


def with_slots(messages: list[dict], tools: list[dict], form: Callable) -> tuple[list[dict], list[dict], dict]:
    """The messages and tools with a slot in place of each content, each call's arguments and each tool's name, and
    {slot: what stands there}."""
    names = {}

    def slot(name):
        names[str(len(names))] = name
        return f"\ue000{len(names) - 1}\ue001"

    def marked(message):
        role, content = message["role"], message["content"].strip()
        content = slot(f"what the {role} says ({content[:40]!r})") if content else ""
        return changed(message | {"content": content},
                       lambda call: form({slot(f"the arguments of {call['name']}"): ""}))

    named = [tool | {"function": tool["function"] | {"name": slot(f"the tool {tool['function']['name']}")}}
             for tool in tools]
    return [marked(m) for m in messages], named, names


def plain(chat: Chat, message: dict, form: Callable) -> dict:
    """The message with its control tokens as plain text, and with form(arguments) of its tool calls. The model's own
    words, and those of the agent's author, may hold the tags of thoughts and calls."""
    message = inert(chat, message, own=message["role"] in ("system", "assistant"))
    return changed(message, lambda call: form(call["arguments"]))


def inert(chat: Chat, value: object, own: bool) -> object:
    """A value, with the control tokens in its texts as plain text. own: tags of thoughts and calls stay."""
    control, normalizer = control_tokens(chat), chat.tokenizer.normalizer

    def escaped(text):
        return control.sub(lambda m: m[0] if own and OWN_TAG.fullmatch(m[0]) else as_text(m[0]), text)

    if isinstance(value, dict):
        return {inert(chat, k, own): inert(chat, v, own) for k, v in value.items()}
    if isinstance(value, list):
        return [inert(chat, v, own) for v in value]
    if not isinstance(value, str):
        return value
    text = escaped(value)
    normal = normalizer.normalize_str(text) if normalizer else text         # full-width letters may become a token
    return text if escaped(normal) == normal else escaped(normal)


def changed(message: dict, arguments: Callable) -> dict:
    """The message with arguments(call) as the arguments of each tool call."""
    if "tool_calls" not in message:
        return message
    calls = [call | {"function": call["function"] | {"arguments": arguments(call["function"])}}
             for call in message["tool_calls"]]
    return message | {"tool_calls": calls}
