"""Chats: conversations of any agent in OpenAI's format, with its manual as hints (docs/chats.md).

A chat is the second kind of record that distill.py reads, next to trajectories. What OpenAI's format permits and
a chat template does not is brought into one form: texts in parts are joined, null contents become empty, and the
arguments of tool calls become objects.
"""

import json
from pathlib import Path

from formats.records import HINT, TRAJECTORY, mismatch, read_records

PART = {"type": str, "text?": (None, str)}
CALL = {"id?": (None, str), "type?": (None, str), "function": {"name": str, "arguments?": (None, str, dict)}}
MESSAGE = {"role": str, "content?": (None, str, [PART]), "tool_calls?": (None, [CALL]), "tool_call_id?": (None, str)}
TOOL = {"function": {"name": str, "description?": (None, str), "parameters?": (None, dict)}}
TOOL_HINT = {"name": str, "tool": TOOL}                           # a tool of the chat, with its descriptions
CHAT = {"id": str, "messages": [MESSAGE], "tools?": (None, [TOOL]), "hints": [(HINT, TOOL_HINT)],
        "success?": (None, bool)}
ROLES = ("system", "user", "assistant", "tool")


def is_chat(record: dict) -> bool:
    return "messages" in record


def read_training(file: str | Path) -> list[dict]:
    """A file of trajectories, corrected actions and chats. Raises ValueError, naming file, line and field."""
    def check(record):
        if is_chat(record):
            return check_chat(record)
        if "hint" in record:
            return "hint", "a flagged state has no corrected action yet; collect.py --resample makes one"
        return mismatch(record, TRAJECTORY)

    read = read_records(file, TRAJECTORY, check)
    return [normal(r) if is_chat(r) else r for r in read]


def read_chats(file: str | Path) -> list[dict]:
    """A file of chats. Raises ValueError, naming file, line and field."""
    return [normal(r) for r in read_records(file, CHAT, check_chat)]


def check_chat(record: dict) -> tuple[str, str] | None:
    """The first field of a chat that is wrong, and what is wrong with it, or None."""
    if "targets" in record:
        return "targets", "a chat has no targets, since all its replies are learned; take this field away"
    if wrong := mismatch(record, CHAT) or check_messages(record["messages"]):
        return wrong
    if not learned_messages(record["messages"]):
        return "messages", "no reply of the assistant, so there is nothing to learn"
    names = {tool["function"]["name"] for tool in record.get("tools") or []}
    for n, hint in enumerate(record["hints"]):
        if "tool" in hint and hint["tool"]["function"]["name"] not in names:
            return f"hints[{n}].tool", "not one of the chat's tools, which this hint describes"
    return None


def check_messages(messages: list[dict]) -> tuple[str, str] | None:
    """The same for messages that match their schema: which role may say what, and in which order."""
    open_calls = None                                           # ids of the calls whose results may come now
    for n, message in enumerate(messages):
        field, role = f"messages[{n}]", message["role"]
        if role not in ROLES:
            return f"{field}.role", f"{role!r}; the roles are {', '.join(ROLES)}"
        if wrong := check_content(message, f"{field}.content") or check_calls(message, f"{field}.tool_calls"):
            return wrong
        if role == "tool":
            key = message.get("tool_call_id")
            if open_calls is None or key and any(open_calls) and key not in open_calls:
                return f"{field}.tool_call_id", "the result of no tool call; it must follow the message with the call"
        else:
            open_calls = [call.get("id") for call in message.get("tool_calls") or []] or None
    return None


def learned_messages(messages: list[dict]) -> list[int]:
    """Which messages are learned: the assistant's, except a greeting."""
    return [n for n, message in enumerate(messages) if message["role"] == "assistant" and not is_greeting(messages, n)]


def is_greeting(messages: list[dict], n: int) -> bool:
    """Does the assistant's message n open the conversation, so that no model was asked for it? Behind a system message
    it does so if it calls no tool and the user answers."""
    answered = [m["role"] for m in messages[n + 1:n + 2]] == ["user"] and not messages[n].get("tool_calls")
    return n == 0 or answered and all(m["role"] == "system" for m in messages[:n])


def check_content(message, field):
    content = message.get("content")
    for n, part in enumerate(content if isinstance(content, list) else []):
        if part["type"] != "text" or part.get("text") is None:
            return f"{field}[{n}]", f"a part of type {part['type']!r}; only text is understood"
    return None


def check_calls(message, field):
    calls = message.get("tool_calls") or []
    if calls and message["role"] != "assistant":
        return field, f"a message of the {message['role']} calls no tools; take this field away"
    for n, call in enumerate(calls):
        try:
            if not isinstance(given := arguments(call), dict):
                return f"{field}[{n}].function.arguments", "not an object"
            json.dumps(given, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return f"{field}[{n}].function.arguments", "half a character"
        except (ValueError, RecursionError):
            return f"{field}[{n}].function.arguments", "not JSON"
    return None


def arguments(call: dict) -> dict:
    """The arguments of a tool call as an object; OpenAI writes them as a JSON text. Raises ValueError if it is not
    JSON."""
    given = call["function"].get("arguments") or "{}"
    return json.loads(given) if isinstance(given, str) else given


def normal(chat: dict) -> dict:
    """A chat in the one form that the rest of the code reads."""
    return chat | {"messages": [normal_message(m) for m in chat["messages"]], "tools": chat.get("tools") or []}


def normal_message(message: dict) -> dict:
    """A message whose content is a text, and whose tool calls, if there are any, have objects as arguments."""
    content = message.get("content") or ""
    if isinstance(content, list):
        content = "\n".join(part["text"] for part in content)
    others = {k: v for k, v in message.items() if k not in ("content", "tool_calls") and v is not None}
    calls = [call | {"function": call["function"] | {"arguments": arguments(call)}}
             for call in message.get("tool_calls") or []]
    return others | {"content": content} | ({"tool_calls": calls} if calls else {})
