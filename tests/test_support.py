"""examples/support: its customers, and what becomes of its logs. A stub that knows the manual replaces the model."""

from common import ROOT

import json
import sys
from itertools import islice
from types import SimpleNamespace

import pytest

import chat_templates
from agent.chat import Chat
from examples.support import converse
from examples.support.converse import HERE, PARAMETERS, customers
from formats.chats import normal_message, read_chats
from tools import from_chats
from training.examples import to_example

SAID = "Sorry. Fernhill is here for you."
ARGUMENTS = ["converse.py", "--model", "stub", "--customers", "0", "4", "--out"]


def split():
    everyone = list(islice(customers(), 150))
    return everyone[:110], everyone[110:]


def test_nobody_who_trains_is_held_out():
    for facts in (lambda c: [arguments["order"] for _, arguments in c.calls], lambda c: c.says, lambda c: [c.id]):
        train, held_out = ([fact for c in part for fact in facts(c)] for part in split())
        assert not set(train) & set(held_out) and len({*train, *held_out}) == len(train) + len(held_out)


def test_customers_are_always_the_same_and_want_everything_in_one_turn_or_two():
    train, held_out = split()
    assert train + held_out == [*train, *split()[1]]
    kinds = [{json.dumps({k: v for k, v in arguments.items() if k in ("reason", "code", "team")} | {"tool": tool})
              for c in part for tool, arguments in c.calls} for part in (train, held_out)]
    assert kinds[0] == kinds[1] and len(kinds[0]) == 11
    assert 0.2 < sum(len(c.says) == 2 for c in train + held_out) / 150 < 0.4


def test_the_manual_explains_what_the_tools_and_the_customers_need():
    manual = (HERE / "manual.md").read_text()
    for customer in split()[0]:
        for tool, arguments in customer.calls:
            assert f"`{tool}`" in manual and list(arguments) == PARAMETERS[tool]
            assert all(f"`{value}`" in manual for key, value in arguments.items() if key in ("reason", "code", "slot"))


class Agent:
    """In place of the sampler: makes the calls that the manual asks for, then answers."""

    def __init__(self, chat):
        self.chat, self.queue = chat, []
        self.calls = {c.id: list(c.calls) for c in islice(customers(), 150)}

    @property
    def idle(self):
        return not self.queue

    def add(self, request):
        self.queue.append(request)

    def step(self):
        request = self.queue.pop()
        text = SAID
        if not self.chat.decode(request.prompt).rpartition("user\n")[2].startswith("Result"):
            tool, arguments = self.calls[request.key].pop(0)
            text = json.dumps({"name": tool, "arguments": arguments})
        request.new_ids, request.ended = self.chat.encode_template(f"{text}<|im_end|>"), "stop"
        return [request]


@pytest.fixture(params=[False, True])
def described(request):
    return request.param


@pytest.fixture
def played(described, tmp_path, monkeypatch, capsys):
    """converse.py with this agent → (its output, the chat, the prompts that it made, what it printed)."""
    tokenizer = chat_templates.tokenizer()
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_str())
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}')
    (tmp_path / "chat_template.jinja").write_text((HERE / "chat_template.jinja").read_text())
    chat, prompts = Chat(tmp_path), []

    def to_request(key, prompt, seed, stop):
        assert stop(chat.encode_template("<|im_end|>")) and not stop(chat.encode_template(SAID))
        prompts.append(prompt)
        return SimpleNamespace(key=key, prompt=prompt)

    monkeypatch.setattr(converse, "Chat", lambda path: chat)
    monkeypatch.setattr(converse, "local_folder", lambda path: path)
    monkeypatch.setattr(converse.parallel, "sampler", lambda args: (Agent(chat), to_request))
    monkeypatch.setattr(sys, "argv", [*ARGUMENTS, str(tmp_path / "logs.jsonl"), *["--described"] * described])
    converse.main()
    return tmp_path / "logs.jsonl", chat, prompts, capsys.readouterr().out


def test_an_agent_that_follows_the_manual_succeeds_and_the_log_is_not_made_twice(played, capsys):
    file, _, prompts, said = played
    assert "4 conversations, 4 with the manual's calls" in said
    assert len(prompts) == 2 * sum(len(c.calls) for c in islice(customers(), 4))
    converse.main()
    assert "4 conversations, 4 with the manual's calls" in capsys.readouterr().out
    assert len(file.read_text().splitlines()) == 4


def test_the_whole_manual_becomes_hints_and_the_teacher_reads_what_the_agent_read(
        described, played, tmp_path, monkeypatch, capsys):
    file, chat, prompts, _ = played
    manual, tools = converse.prompt(described)
    bare = ["--bare-tools", str(tmp_path / "bare.json")] * described
    monkeypatch.setattr(sys, "argv", ["from_chats.py", str(file), "--manual", str(HERE / "manual.md"), *bare, "--out",
                                      str(tmp_path / "chats.jsonl")])
    from_chats.main()
    assert capsys.readouterr().out.count("without the section") == 5 * described
    for record in read_chats(tmp_path / "chats.jsonl"):
        system = record["messages"][0]["content"]
        assert len(record["hints"]) == 8 and "#" not in system and "Today is" in system
        texts = [hint["text"] for hint in record["hints"] if "text" in hint]
        assert "\n\n".join([system, *texts]) == manual
        assert record["tools"] == converse.TOOLS                        # which the student sees
        taught = to_example(chat, record)
        last = max((p for p in prompts if taught.tokens[:len(p)] == p), key=len)
        assert chat.decode(taught.tokens[len(last):]) == f"{SAID}<|im_end|>"
        assert chat.decode(last) == chat.write([normal_message(m) for m in [
            {"role": "system", "content": manual}, *record["messages"][1:-1]]], tools, generate=True)


@pytest.mark.parametrize("text, calls", [
    ('{"name": "lookup", "arguments": {"order": "SO-001234"}}', 1),
    ('One moment.\n{"name": "lookup", "arguments": {}}\n{"name": "goodwill", "arguments": {}}', 2),
    ('{"name": "lookup"}', 0), ('{"name": "lookup", "arguments": "SO-001234"}', 0), ('{"name": "lookup', 0),
    ("[1]", 0), ("12", 0), ("", 0)])
def test_only_well_formed_calls_are_calls(text, calls):
    message = converse.to_message(Chat(ROOT / "starter"), text, 7)
    assert len(message.get("tool_calls", [])) == calls
    lines = [*filter(None, message["content"].split("\n")),
             *(json.dumps({"name": c["function"]["name"], "arguments": json.loads(c["function"]["arguments"])})
               for c in message.get("tool_calls", []))]
    assert lines == [*filter(None, text.split("\n"))]


def test_the_shop_refuses_orders_and_arguments_that_it_does_not_know():
    customer = next(customers())
    tool, arguments = customer.calls[0]
    assert "error" not in converse.answer(customer, tool, arguments)
    for wrong in (arguments | {"order": arguments["order"][-4:]}, arguments | {"note": ""}, {}):
        assert "error" in converse.answer(customer, tool, wrong)
