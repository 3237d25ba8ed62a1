"""Logs of any agent → chats that distill.py learns from, with the agent's manual as hints (docs/chats.md).

    python tools/from_chats.py logs.jsonl --manual manual.md --out chats.jsonl

Each line of the logs is one of
    {"messages": […], "tools": […]}                                             OpenAI's format for fine-tuning
    {"request": {"messages": …, "tools": …}, "response": {"choices": […]}}      a request of the OpenAI SDK, answered
or of a similar shape, as tracing tools export them. The manual is looked for in the system message: as a whole, or
section by section. Each section found becomes a hint and leaves the message, whose other text stays. With --bare-tools,
the descriptions in a tool's schema become a hint, too, and leave the schema. With neither option, the chats have no
hints, as distill.py --keep wants them. With --manual, a record without the manual is left out and reported; so is any
record that cannot be learned from.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import command_line, files

import codecs
import itertools
import json
import re
from collections import defaultdict
from collections.abc import Iterator

from formats.chats import MESSAGE, check_chat, check_messages, learned_messages, normal, normal_message
from formats.records import mismatch, read_line, read_lines

REQUESTS = ("request", "input", "inputs", "kwargs", "body")     # where a log keeps what was asked …
RESPONSES = ("response", "output", "outputs", "completion", "body")     # … and what was answered
HEADING = re.compile(r"^#{1,6} +.*$", re.M)
CUT = ("length", "content_filter", "max_tokens")                # reasons why a reply is unfinished
EXPLANATIONS = ("title", "description", "examples", "$comment")         # in a schema: they permit and forbid nothing
NAMED = ("properties", "patternProperties", "dependentSchemas", "$defs", "definitions")         # {name: schema}
VALUES = ("enum", "const", "default", "dependentRequired")


class Unusable(Exception):
    """Why a record is left out."""


# ---- the shapes of logs

def read_logs(file: str | Path) -> Iterator[tuple[int, dict]]:
    """(line, record) of a JSONL file, or (number, record) of a JSON list. Raises ValueError, naming file and line."""
    file = Path(file)
    if not file.is_file():
        raise ValueError(f"{file}: no such file")
    content = file.read_bytes().removeprefix(codecs.BOM_UTF8)
    if content.lstrip().startswith(b"["):
        yield from enumerate(read_line(b'{"list": %s}' % content, str(file))["list"], 1)
        return
    yield from read_lines(content, file)


def to_chat(record: dict) -> dict:
    """A record of a log → {"messages", "tools"}, with "success" if it is known. Raises Unusable."""
    asked = messages_of(record)
    messages = asked + answer(record, asked)
    unanswered = messages[-1:] and messages[-1].get("role") != "assistant"
    if unanswered and any(record.get(name) for name in RESPONSES if name not in REQUESTS):
        raise Unusable('no reply found in the response; write it as {"role": "assistant", "content": …}')
    if any(m.get("refusal") for m in messages):
        raise Unusable("the model refused to answer")
    if any(m.get("weight") == 0 for m in messages):
        raise Unusable("a reply has weight 0, but all replies of a chat are learned")
    if any(m.get("reasoning_content") or m.get("reasoning") for m in messages):
        raise Unusable("a reply has its reasoning in a field of its own; put it where the template writes it")
    tools = found(record, "tools") or [{"type": "function", "function": f} for f in found(record, "functions") or []]
    success = {"success": record["success"]} if isinstance(record.get("success"), bool) else {}
    return {"messages": list(today(messages)), "tools": tools} | success


def messages_of(record: dict) -> list[dict]:
    """What was asked: the messages, behind Anthropic's field for a system message. Raises Unusable."""
    request = next((r for r in nested(record, REQUESTS) if isinstance(r.get("messages"), list)), None)
    if request is None:
        raise Unusable("no messages found")
    if not all(isinstance(m, dict) for m in request["messages"]):
        raise Unusable("a message that is not an object")
    system = request.get("system")
    return [{"role": "system", "content": system}] * bool(system) + request["messages"]


def found(record: dict, field: str) -> object:
    """A field of a record's request, wherever it is; None if it is empty everywhere."""
    return next((r[field] for r in nested(record, (*REQUESTS, "metadata")) if r.get(field)), None)


def nested(record: dict, names: tuple) -> Iterator[dict]:
    """The record, and the objects in it under these names, at any depth. A list there is taken for messages."""
    yield record
    for name in names:
        inner = record.get(name)
        if isinstance(inner, list):
            inner = {"messages": inner}
        if isinstance(inner, dict):
            yield from nested(inner, names)


def answer(record: dict, asked: list[dict]) -> list[dict]:
    """What a response adds to the messages `asked`: the assistant's message, or also the calls and results before it.
    Raises Unusable if it was cut off."""
    for response in nested(record, RESPONSES):
        choices = response.get("choices")
        if isinstance(choices, list) and choices and isinstance(choices[0], dict):
            if choices[0].get("finish_reason") in CUT:
                raise Unusable(f"the reply was cut off ({choices[0]['finish_reason']})")
            response = choices[0].get("message")
        elif cut := next((response[name] for name in ("finish_reason", "stop_reason") if response.get(name) in CUT), 0):
            raise Unusable(f"the reply was cut off ({cut})")
        elif response is not record and isinstance(response.get("messages"), list):
            new = added(asked, [m for m in response["messages"] if isinstance(m, dict)])
            if new and new[-1].get("role") != "assistant":
                raise Unusable("a response whose last message is not the assistant's")
            return new
        if isinstance(response, dict) and response.get("role") == "assistant":
            return added(asked, [response])
    return []


def added(asked: list[dict], messages: list[dict]) -> list[dict]:
    """The messages without those at their beginning with which `asked` ends already."""
    said = lambda some: [(m.get("role"), m.get("content") or "", m.get("tool_calls") or []) for m in some]
    n = next(n for n in range(min(len(asked), len(messages)), -1, -1)
             if said(asked[len(asked) - n:]) == said(messages[:n]))
    return messages[n:]


def today(messages: list[dict]) -> Iterator[dict]:
    """The messages in OpenAI's current format: function_call becomes tool_calls, the role developer becomes system."""
    key = None
    for n, message in enumerate(messages):
        kept = {k: message[k] for k in ("role", "content", "tool_calls", "tool_call_id") if message.get(k) is not None}
        if message.get("function_call"):
            key = f"call-{n}"
            kept["tool_calls"] = [{"id": key, "type": "function", "function": message["function_call"]}]
        elif message.get("role") == "function":
            kept |= {"role": "tool", "tool_call_id": key}
        elif message.get("role") == "developer":
            kept["role"] = "system"
        yield kept


# ---- the manual

def read_manual(file: str | Path) -> list[dict]:
    """The manual's sections, [{"name", "text"}]: any text before the first heading, then each heading with its text."""
    text = files.read_text(file)
    heads = [match.start() for match in HEADING.finditer(text)]
    parts = [text[a:b].strip() for a, b in zip([0, *heads], [*heads, None])]
    sections = []
    for part in filter(None, parts):
        if sections and HEADING.fullmatch(sections[-1]["text"]):        # a title without a text of its own
            part = f"{sections.pop()['text']}\n\n{part}"
        name, known = part.splitlines()[0].lstrip("# ").strip()[:60], {s["name"] for s in sections}
        sections.append({"name": f"{name} ({len(sections) + 1})" if name in known else name, "text": part})
    if not sections:
        raise ValueError(f"{file}: empty; it should hold the agent's manual")
    return sections


def take_out(manual: list[dict], text: str) -> tuple[list[dict], list[str], str]:
    """Looks for the manual's sections in a text → the hints, the names of those whose text differs there, and the
    rest of the text. White space makes no difference, except that each heading must be on its own line."""
    hints, changed = [], []
    first_lines = {section["text"].splitlines()[0] for section in manual}
    for section in manual:
        heads = headings(section["text"])
        end = r"(?=[^\S\n]*$)" if heads else r"(?!\w)"         # a longer text is another one
        match = re.search(as_written(section["text"]) + end, text, re.M)
        if match and heads and (head := HEADING.search(text, match.end())) and head[0].strip() in first_lines:
            match = match if not text[match.end():head.start()].strip() else None      # more lines before the next one
        if not match and heads:                                 # another version of the section: up to the next heading
            match = re.search(rf"^{as_written(heads)}[^\S\n]*$(?:\n(?!\s*#{{1,6}} ).*)*", text, re.M)
            changed += [section["name"]] if match else []
        if match:
            hints.append({"name": section["name"], "text": match[0].strip()})
            text = text[:match.start()].rstrip() + "\n\n" + text[match.end():].lstrip()
    return hints, changed, text.strip()


def headings(text: str) -> str:
    """The headings with which a section begins: its own, and that of the chapter whose first section it is."""
    lines = [line for line in text.splitlines() if line.strip()]
    return "\n".join(itertools.takewhile(HEADING.fullmatch, lines))


def as_written(text: str) -> str:
    """A regular expression for the text, whatever its white space."""
    return r"\s+".join(map(re.escape, text.split()))


def with_hints(chat: dict, manual: list[dict]) -> tuple[dict, list[str]]:
    """The chat with the manual's sections as its "hints", which are no longer in its system messages, and the sections
    with another text. Raises Unusable if there are none."""
    hints, changed, messages, left = [], [], [], manual
    for message in chat["messages"]:
        if message["role"] == "system":
            taken, other, rest = take_out(left, message["content"])
            hints, changed = hints + taken, changed + other
            left = [s for s in left if s["name"] not in {h["name"] for h in taken}]
            if taken and not rest:
                continue
            message = message | {"content": rest} if taken else message
        messages.append(message)
    if not hints:
        raise Unusable("the manual is not in the system message")
    if not learned_messages(messages):                          # a greeting, now that no system message precedes it
        raise Unusable("messages: no reply of the assistant, so there is nothing to learn")
    return chat | {"messages": messages, "hints": hints}, changed


# ---- the tools' schemas

def with_tool_hints(chat: dict) -> dict:
    """The chat whose tools have no descriptions; each tool that had some is a hint."""
    bare_tools = [bare_tool(tool) for tool in chat["tools"]]
    hints = [{"name": f"the tool {tool['function']['name']}", "tool": tool}
             for tool, short in zip(chat["tools"], bare_tools) if short != tool]
    return chat | {"tools": bare_tools, "hints": chat["hints"] + hints}


def bare_tool(tool: dict) -> dict:
    """A tool with its name and its parameters' names and types."""
    function = {k: v for k, v in tool["function"].items() if k not in EXPLANATIONS}
    if function.get("parameters"):
        function["parameters"] = bare(function["parameters"])
    return tool | {"function": function}


def bare(schema: object) -> object:
    """A JSON schema without its explanations. It permits the same values."""
    if isinstance(schema, list):
        return [bare(inner) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {k: v for k, v in schema.items() if k not in EXPLANATIONS}
    return {k: v if k in VALUES else {name: bare(inner) for name, inner in v.items()}
            if k in NAMED and isinstance(v, dict) else bare(v) for k, v in kept.items()}


# ---- all records

def convert(paths: list[str], manual: list[dict], bare_tools: bool) -> tuple[list[dict], dict[str, list[str]], int]:
    """The chats; what is to be reported, {what: where}; and how many records there were. Without a manual, what becomes
    a hint are the tools' descriptions only."""
    chats, report, records, failed = [], defaultdict(list), 0, set()
    stems = [Path(file).stem for file in paths]
    names = [stem if stems.count(stem) == 1 else f"{stem}-{k}" for k, stem in enumerate(stems, 1)]
    for file, name in zip(paths, names):
        for n, record in read_logs(file):
            records += 1
            where = str(n) if len(paths) == 1 else f"{file}:{n}"
            try:
                if not isinstance(record, dict):
                    raise Unusable("not an object")
                logged = {"id": f"{name}-{n}", "hints": []} | to_chat(record)
                if wrong := check_chat(logged):
                    raise Unusable(f"{re.sub(r'[0-9]+', 'n', wrong[0])}: {wrong[1]}")
                logged = normal(logged)
                chat, changed = with_hints(logged, manual) if manual else (logged, [])
                if bare_tools:
                    chat = with_tool_hints(chat)
                if bare_tools and not chat["hints"]:
                    raise Unusable("its tools have no descriptions")
            except Unusable as e:
                report[f"left out, {e}"].append(where)
                failed |= failed_beginnings(record)
                continue
            chats.append((chat, where, beginnings(logged["messages"])))
            absent = {s["name"] for s in manual} - {h["name"] for h in chat["hints"]}
            for section in (s["name"] for s in manual):
                if section in absent:
                    report[f"without the section {section!r}"].append(where)
                elif section in changed:
                    report[f"the section {section!r} has another text, which is kept"].append(where)
            if not chat["tools"] and any("tool_calls" in message for message in chat["messages"]):
                report['its replies call tools, but it has no "tools"'].append(where)
    begun = {key for _, _, keys in chats for key in keys[:-1]}
    whole = {keys[-1]: chat["id"] for chat, _, keys in chats if keys[-1] not in begun}     # of equal ones the last
    report["left out, a later record continues it or repeats it"] = [
        where for chat, where, keys in chats if whole.get(keys[-1]) != chat["id"]]
    return [chat | {"success": False} if keys[-1] in failed else chat
            for chat, _, keys in chats if whole.get(keys[-1]) == chat["id"]], report, records


def beginnings(messages: list[dict]) -> list[int]:
    """A hash of each beginning of a conversation, and of all of it: an agent sends its conversation again with every
    request."""
    def longer(before, message):
        calls = [call["function"] for call in message.get("tool_calls", ())]
        return hash((before, json.dumps([message["role"], message["content"], calls], sort_keys=True)))
    return list(itertools.accumulate(messages, longer, initial=0))


def failed_beginnings(record: object) -> set[int]:
    """The beginnings of a conversation that failed, of a record that is left out: they have failed, too."""
    try:
        if not isinstance(record, dict) or record.get("success") is not False:
            return set()
        messages = list(today(messages_of(record)))
    except Unusable:
        return set()
    wrong = mismatch({"messages": messages}, {"messages": [MESSAGE]}) or check_messages(messages)
    return set() if wrong else set(beginnings(list(map(normal_message, messages))))


def main():
    parser = command_line.Parser(__doc__)
    parser.add_argument("logs", nargs="+", help="JSONL, or a JSON list")
    parser.add_argument("--manual", metavar="FILE", help="the manual, Markdown or plain text")
    parser.add_argument("--bare-tools", metavar="FILE",
                        help="the descriptions in the tools' schemas are hints, too; FILE gets the tools without them, "
                        "for the agent to send once it has learned them")
    parser.add_argument("--out", required=True, metavar="FILE", help="JSONL of chats")
    args = parser.parse_args()
    files.refuse_overwriting(args.out, [*args.logs, args.manual, args.bare_tools])
    files.refuse_overwriting(args.bare_tools, [*args.logs, args.manual])
    manual = read_manual(args.manual) if args.manual else []
    chats, report, records = convert(args.logs, manual, bool(args.bare_tools))
    for what, where in report.items():
        if where:
            print(f"{what}: {len(where)} (line{'s' * (len(where) > 1)} {', '.join(where[:5])}"
                  f"{', …' * (len(where) > 5)})")
    if not chats:
        raise ValueError(f"{', '.join(args.logs)}: nothing is left to learn from")
    written = {args.out: files.as_lines(chats)}
    sources = [f"a manual of {len(manual)} sections"] if manual else []
    sources += ["no hints: for distill.py --keep"] if not manual and not args.bare_tools else []
    if args.bare_tools:
        tools = {json.dumps(tool, ensure_ascii=False): None for chat in chats for tool in chat["tools"]}
        written[args.bare_tools] = "[\n" + ",\n".join(tools) + "\n]\n"
        described = {hint["name"] for chat in chats for hint in chat["hints"] if "tool" in hint}
        sources.append(f"the descriptions of {len(described)} tools")
    kept = (" ".join(m["content"].split()) for chat in chats for m in chat["messages"] if m["role"] == "system")
    if text := next(kept, None):
        short = text[:200] + " …" * (len(text) > 200)
        print(f"the system message keeps what is not in the manual, for example: {short}")
    files.write_whole(written)
    print(f"{args.out}: {len(chats)} chats of {records} records, with {' and '.join(sources)}")


if __name__ == "__main__":
    command_line.run_stage(main)
