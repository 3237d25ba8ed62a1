"""Logs of a support agent that reads its manual: made-up customers, a model that answers them, simulated tools.

    python examples/support/converse.py --model M --customers 0 110 --out runs/support/logs.jsonl
    python examples/support/converse.py --model M --customers 110 150 --out runs/support/held-out-logs.jsonl

The manual (manual.md) is in the system message. The tools (tools.json) have names and parameters, no explanation. With
--described, each section about a tool is that tool's description instead, and the system message has the others. Each
line of the output is a conversation in OpenAI's format, as your own agent might log it (docs/chats.md); "success" tells
whether the agent made exactly the calls that the manual asks for. The same command resumes after an interruption.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from common import command_line, files

import itertools
import json
import random
import re
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta

from tqdm import tqdm

from agent import logged, tool_calls
from agent.chat import Chat
from formats.chats import normal_message
from formats.weights import local_folder
from scaling import parallel

HERE, TODAY = Path(__file__).resolve().parent, date(2026, 3, 2)
WORDS = files.read_json(HERE / "customers.json")
TOOLS = json.loads(files.read_text(HERE / "tools.json"))
PARAMETERS = {tool["function"]["name"]: list(tool["function"]["parameters"]["properties"]) for tool in TOOLS}
MANUAL = files.read_text(HERE / "manual.md").strip()
INTRODUCTION = f"You are Nora and answer the customers of Fernhill, a shop for home and garden. Today is {TODAY}."
SLOTS = {"AM": " in the morning", "PM": " in the afternoon", "EV": " in the evening", "": ""}


# ---- customers

@dataclass
class Customer:
    id: str
    says: list[str]                                             # one turn each
    calls: list[tuple[str, dict]]                               # (tool, arguments) that the manual asks for


def customers() -> Iterator[Customer]:
    """Always the same ones, nearly 7,000. No two of them have an order number or a request's text in common."""
    rng = random.Random("Fernhill")
    numbers = iter(rng.sample(range(1000, 10000), 9000))
    for n in itertools.count():
        greeting = rng.choice(WORDS["greetings"]).format(name=rng.choice(WORDS["names"]))
        text, call = request(rng, next(numbers))                # 9,000 numbers
        customer = Customer(f"customer-{n}", [greeting + text], [call])
        if rng.random() < 0.3:                                  # one more request, about another order
            text, call = request(rng, next(numbers))
            customer.says.append(rng.choice(WORDS["second"]) + text)
            customer.calls.append(call)
        yield customer


def request(rng: random.Random, number: int) -> tuple[str, tuple[str, dict]]:
    """What a customer wants, in words, and the call that the manual asks for."""
    kind = rng.choice(WORDS["requests"])
    day, slot, euros = TODAY + timedelta(rng.randint(3, 120)), rng.choice(list(SLOTS)), rng.choice((5, 10, 12, 20, 25))
    own = {"order": f"SO-00{number}", "date": f"{day}", "slot": slot or "PM", "cents": 100 * euros}
    order = rng.choice(WORDS["orders"]).format(number=number)
    spelled = rng.choice((f"{day.day} {day:%B}", f"{day:%B} {day.day}"))
    text = rng.choice(kind["texts"]).format(order=order, item=rng.choice(WORDS["items"]), day=spelled, time=SLOTS[slot],
                                            late=rng.randint(2, 9), euros=euros)
    arguments = own | kind["arguments"]
    return text, (kind["tool"], {name: arguments[name] for name in PARAMETERS[kind["tool"]]})


# ---- a conversation

def prompt(described: bool) -> tuple[str, list[dict]]:
    """The system message and the tools. described: the sections that say when to call a tool are its description."""
    system, descriptions = [INTRODUCTION], {}
    for section in re.split(r"\n\n(?=## )", MANUAL):
        about = re.search(r"[Cc]all `(\w+)`", section)
        if described and about:
            descriptions[about[1]] = {"description": section.partition("\n")[2]}
        else:
            system.append(section)
    functions = [tool["function"] | descriptions.get(tool["function"]["name"], {}) for tool in TOOLS]
    return "\n\n".join(system), [{"type": "function", "function": function} for function in functions]


def converse(chat: Chat, customer: Customer, system: str, tools: list[dict]) -> Iterator[list[dict]]:
    """Yields the messages so far whenever the agent is to reply, and is sent the reply's text, or None if it was cut
    off. Returns the record for the log."""
    messages, made = [{"role": "system", "content": system}], []
    for said in customer.says:
        messages.append({"role": "user", "content": said})
        for _ in range(3):                                      # replies to one turn: an agent may call on and on
            text = yield messages
            if text is None:
                return {"id": customer.id, "messages": messages, "tools": tools, "success": False}
            messages.append(to_message(chat, text, len(messages)))
            calls = messages[-1].get("tool_calls", [])
            for call in calls:
                tool, arguments = call["function"]["name"], json.loads(call["function"]["arguments"])
                made.append((tool, arguments))
                content = json.dumps(answer(customer, tool, arguments))
                messages.append({"role": "tool", "tool_call_id": call["id"], "content": content})
            if not calls:
                break
    return {"id": customer.id, "messages": messages, "tools": tools, "success": made == customer.calls}


def to_message(chat: Chat, text: str, n: int) -> dict:
    """A reply's text → message number n, with the calls in it as its tool calls."""
    content, calls = tool_calls.split(chat, text)
    calls = [{"id": f"call-{n}-{k}", "type": "function",
              "function": {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}}
             for k, (name, arguments) in enumerate(calls)]
    return {"role": "assistant", "content": content} | ({"tool_calls": calls} if calls else {})


def answer(customer: Customer, tool: str, arguments: dict) -> dict:
    """What the shop's systems say to a call."""
    if tool not in PARAMETERS or list(arguments) != PARAMETERS[tool]:
        return {"error": "unknown tool or arguments"}
    if arguments["order"] not in [known["order"] for _, known in customer.calls]:
        return {"error": "no such order"}
    rng = random.Random(arguments["order"])
    number, day = rng.randint(100, 999), TODAY + timedelta(rng.randint(1, 9))
    return {"lookup": {"status": "on its way", "arrives": f"{day}"}, "return_item": {"label": f"RL-{number}"},
            "reschedule": {"status": "moved"}, "goodwill": {"status": "credited"},
            "escalate": {"ticket": f"T-{number}"}}[tool]


# ---- all conversations

def play(todo: list[Customer], args: Namespace, output: files.Output) -> None:
    """All at once, batched: the manual is computed once, and a conversation pays for what is new in it."""
    chat, (engine, to_request) = Chat(local_folder(args.model)), parallel.sampler(args)
    ends = logged.stop_ids(chat)
    system, tools = prompt(args.described)
    talks = {customer.id: converse(chat, customer, system, tools) for customer in todo}

    def go_on(key, text):
        """Adds the conversation's next reply to the queue, or writes the conversation if it is over. Is it over?"""
        try:
            messages = talks[key].send(text)
        except StopIteration as end:
            output.write(end.value)
            return True
        text = chat.write([normal_message(m) for m in messages], tools, generate=True)
        engine.add(to_request(key, chat.encode_template(text, begins=True), seed=f"{key}/{len(messages)}",
                              stop=lambda ids: ids[-1] in ends))
        return False

    for key in talks:
        go_on(key, None)
    with tqdm(total=len(todo), unit="conversation") as progress:
        while not engine.idle:
            for ended in engine.step():
                text = chat.decode(ended.new_ids[:-1]) if ended.ended == "stop" else None
                progress.update(go_on(ended.key, text))


def main():
    parser = command_line.Parser(__doc__)
    add, number = parser.add_argument, command_line.number
    add("--model", required=True, help="directory or hub id in Hugging Face format")
    add("--customers", nargs=2, type=number(int, 0, 6900), required=True, metavar=("FIRST", "END"),
        help="the customers from number FIRST to before END")
    add("--described", action="store_true", help="the manual's sections about tools are in the tools' descriptions")
    add("--temperature", type=number(float, 0), default=0.1, help="0 is greedy")
    add("--batch", type=number(int, 1), default=32, help="conversations at a time")
    add("--out", required=True, metavar="FILE", help="JSONL of logs")
    args = parser.parse_args()
    output = files.Output(args.out, vars(args))
    todo = [c for c in itertools.islice(customers(), *args.customers) if c.id not in output.done]
    settings = {"adapter": [], "dtype": None, "tp": 1, "max_new_tokens": 150, "max_length": 4096, "top_p": 1.0}
    if todo:
        play(todo, Namespace(**vars(args) | settings), output)
    output.sync()
    records = files.whole_lines(output.path)
    print(f"{args.out}: {len(records)} conversations, {sum(r['success'] for r in records)} with the manual's calls")


if __name__ == "__main__":
    command_line.run_stage(main)
