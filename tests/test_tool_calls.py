"""Tools behind agent/server.py: prompts as transformers writes them, and the calls in a reply."""

import json
import threading

import pytest

import chat_templates
from agent.chat import Chat
from agent.logged import tokens
from agent.served_prompts import Prompts
from agent.server import Batch, Server
from agent.tool_calls import find, split
from chat_templates import PARALLEL, SINGLE
from engine.sampler import Request
from formats.chats import learned_messages, normal_message
from test_chats import RECORDED, chat_with, is_prompt
from test_server import request, send

RECORDS = {r["id"]: r for r in (SINGLE, PARALLEL)}


def with_manual(record):
    """The messages as a client that has not internalized the manual sends them."""
    system, *others = record["messages"]
    return [system | {"content": "\n\n".join([system["content"], *(h["text"] for h in record["hints"])])}, *others]


@pytest.mark.parametrize("name", RECORDED)
def test_a_request_with_tools_becomes_the_prompt_that_transformers_writes(name, tmp_path):
    form, key = name.split(", ")
    chat, record = chat_with(tmp_path, chat_templates.FORMS[form]), RECORDS[key]
    messages = with_manual(record)
    for n, (prompt, _) in zip(learned_messages(messages), RECORDED[name], strict=True):
        asked = request(messages[:n], tools=record["tools"], continue_final_message=False)
        assert is_prompt(chat, form, Prompts(chat).encode(asked), prompt)


@pytest.mark.parametrize("name", RECORDED)
def test_the_calls_in_a_reply_are_those_that_the_template_was_given(name, tmp_path):
    form, key = name.split(", ")
    chat, record = chat_with(tmp_path, chat_templates.FORMS[form]), RECORDS[key]
    end, messages = chat.tokenizer.token_to_id("<|end|>"), [normal_message(m) for m in record["messages"]]
    for n, (prompt, whole) in zip(learned_messages(messages), RECORDED[name], strict=True):
        reply = whole[len(prompt):]
        said, calls = split(chat, chat.decode(reply[:reply.index(end)]))
        made = [call["function"] for call in messages[n].get("tool_calls", ())]
        assert calls == [(call["name"], call["arguments"]) for call in made]
        assert said == messages[n]["content"]


F, G = '{"name": "f", "arguments": {"x": "<b>{"}}', '{"name": "g", "parameters": {}}'


@pytest.mark.parametrize("text, calls", [
    ('<think>I could {"name": "a", "arguments": {}}.</think>\n{"name": "b", "arguments": {}}', ["b"]),
    ('Or {"name": "a", "arguments": {}}?\n</thinking>{"name": "b", "arguments": {}}', ["b"]),
    ('<think>{"name": "a", "arguments": {}}</think>No.', []),
    ('<think>I could {"name": "a", "arguments": {}}, but', []),                # it was cut off
    ('{"name": "a", "arguments": {}}\n<think>{"name": "b", "arguments": {}}', ["a"]),
    ('{"name": "a", "arguments": {"text": "</think>"}} {"name": "b", "arguments": {}}', ["a", "b"])])
def test_a_call_that_is_only_considered_is_none(text, calls):
    assert [name for _, _, (name, _) in find(text)] == calls


@pytest.mark.parametrize("text, said, calls", [
    (f"[TOOL_CALLS] [{F}, {G}]", "", "fg"), (f"```json\n{F}\n```", "", "f"), (f"{F}\n{G}", "", "fg"),
    (f"<b>One</b>, see [1].\n\n<tool_call>\n{F}\n</tool_call>\nThen wait.", "<b>One</b>, see [1].\nThen wait.", "f"),
    (f'{{"type": "function", "function": {F}}}', "", "f"), (f"<tool_call>\n{F[:-1]}", f"<tool_call>\n{F[:-1]}", ""),
    ('It is {"name": "Zoë", "age": 3}.\n', 'It is {"name": "Zoë", "age": 3}.\n', ""), ("{" * 5000, "{" * 5000, "")])
def test_what_stands_around_a_call_belongs_to_it(text, said, calls, tmp_path):
    chat = chat_with(tmp_path, chat_templates.QWEN_25 + "{# [TOOL_CALLS] #}")
    arguments = {"f": {"x": "<b>{"}, "g": {}}
    assert split(chat, text) == (said, [(name, arguments[name]) for name in calls])


class Scripted:
    """An engine whose model writes given replies."""
    max_length = 4096

    def __init__(self, replies):
        self.replies, self.waiting = replies, []

    idle = property(lambda self: not self.waiting)

    def add(self, request):
        self.waiting.append((request, self.replies.pop(0)))

    def step(self):
        (request, ids), = self.waiting
        request.new_ids.append(ids[len(request.new_ids)])
        stopped = request.stop(request.new_ids)
        request.ended = "stop" if stopped else "length" if len(request.new_ids) == request.max_new_tokens else ""
        if not request.ended:
            return []
        self.waiting = []
        return [request]


def ask(chat, reply, **more):
    """A server with such a model → its answer to a request with tools: the only choice, or a stream's pieces."""
    ids = chat.tokenizer.encode(reply, add_special_tokens=False).ids
    batch = Batch(chat, Scripted([ids]), lambda key, prompt, **how: Request(key, prompt, **how))
    server = Server(("127.0.0.1", 0), "m", Prompts(chat), batch)
    for run in server.serve_forever, batch.run:
        threading.Thread(target=run, daemon=True).start()
    body = {"model": "m", "messages": [{"role": "user", "content": "Refund A-1."}], "tools": SINGLE["tools"]}
    status, content = send(server, body | more)
    server.shutdown()
    assert status == 200, content
    if not more.get("stream"):
        return json.loads(content)["choices"][0]
    lines = content.decode().split("\n\n")
    return [json.loads(line.removeprefix("data: "))["choices"][0] for line in lines if line.startswith("data: {")]


REPLY = ('<think>\n\n</think>\n\nI look, {} wait.\n<tool_call>\n{"name": "find_order", "arguments": {"order": "Zoë"}}\n'
         '</tool_call>\n<tool_call>\n{"name": "refund", "arguments": {"amount": 3}}\n</tool_call><|end|>never read')
SAID = "<think>\n\n</think>\n\nI look, {} wait."
CALLS = [("find_order", '{"order": "Zoë"}'), ("refund", '{"amount": 3}')]


@pytest.mark.parametrize("more, said, calls, finish", [
    ({}, SAID, CALLS, "tool_calls"), ({"parallel_tool_calls": False}, SAID, CALLS[:1], "tool_calls"),
    ({"tool_choice": "auto", "stop": ["never"]}, SAID, CALLS, "tool_calls"), ({"max_tokens": 8}, None, [], "length"),
    ({"tool_choice": "none"}, REPLY.partition("<|end|>")[0], [], "stop")])
def test_a_clients_answer_has_the_calls_in_openais_form(more, said, calls, finish, tmp_path):
    chat = chat_with(tmp_path, chat_templates.QWEN_25)
    choice, pieces = ask(chat, REPLY, **more), ask(chat, REPLY, **more, stream=True)
    message = choice["message"]
    made = message.get("tool_calls", [])
    assert [(call["function"]["name"], call["function"]["arguments"]) for call in made] == calls
    assert len({call["id"] for call in made}) == len(calls) and {call["type"] for call in made} <= {"function"}
    assert message["content"] == said or said is None and REPLY.startswith(message["content"])
    assert choice["finish_reason"] == finish
    assert "".join(piece["delta"].get("content", "") for piece in pieces) == message["content"]
    streamed = [call for piece in pieces for call in piece["delta"].get("tool_calls", [])]
    assert [(n, call["function"]) for n, call in enumerate(made)] == [(c["index"], c["function"]) for c in streamed]
    assert [p["finish_reason"] for p in pieces if p["finish_reason"]] == [finish]


def test_a_reply_ends_where_the_template_ends_it_even_if_the_model_has_another_end_of_text(tmp_path):
    chat = chat_with(tmp_path, chat_templates.QWEN_25)
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": chat_templates.QWEN_25, "eos_token": "<|endoftext|>"}))
    assert ask(Chat(tmp_path), REPLY)["message"]["content"] == ask(chat, REPLY)["message"]["content"] == SAID


def test_without_tools_the_tags_of_calls_are_the_models_own_words(tmp_path):
    chat = chat_with(tmp_path, chat_templates.QWEN_25)
    choice = ask(chat, REPLY, tools=None)
    assert choice == {"index": 0, "message": {"role": "assistant", "content": REPLY.partition("<|end|>")[0]},
                      "finish_reason": "stop", "stop_reason": None}


@pytest.mark.parametrize("form", [name for name in chat_templates.FORMS])
def test_a_conversation_without_tools_becomes_the_prompt_that_is_learned(form, tmp_path):
    chat = chat_with(tmp_path, chat_templates.FORMS[form])
    said = "Be brief.\n", "\nHi<|end|>", "Hello.", "<python>, <tool_call>?", " Yes. "
    messages = [{"role": role, "content": text} for role, text in zip(
        ("system", "user", "assistant", "user", "assistant"), said)]
    for n in 2, 4:
        ids, spans = tokens(chat, {"id": "1", "messages": messages[:n + 1], "tools": []}, [])
        asked = request(messages[:n], continue_final_message=False)
        assert Prompts(chat).encode(asked) == ids[:spans[-1][0]]


def test_a_request_that_lets_the_agent_think_becomes_the_prompt_before_its_thoughts(tmp_path):
    form = chat_templates.QWEN_3.replace("if loop.last and", "if loop.last and '</think>' not in m.content and")
    chat, messages = chat_with(tmp_path, form), [{"role": "user", "content": "Hi"}]
    for reply in "<think>\nHm.\n</think>\n\nHello.", "Hello.":
        record = {"id": "1", "messages": [*messages, {"role": "assistant", "content": reply}], "tools": []}
        ids, (span,) = tokens(chat, record, [])
        thinks = "Hm" in reply
        asked = request(messages, continue_final_message=False, chat_template_kwargs={"enable_thinking": thinks})
        assert Prompts(chat).encode(asked) == ids[:span[0]] and ("think" in chat.decode(ids[:span[0]])) != thinks


def test_other_fields_of_a_message_do_not_reach_the_template(tmp_path):
    chat = chat_with(tmp_path, chat_templates.QWEN_25.replace("m.content + '", "m.content + m.name | default('') + '"))
    one, other = (request([{"role": "user", "content": "Hi"} | more], continue_final_message=False)
                  for more in ({}, {"name": "<|end|>"}))
    assert Prompts(chat).encode(one) == Prompts(chat).encode(other)


@pytest.mark.parametrize("reply, content, calls", [
    ('{"name": "refund", "parameters": {}}; {"name": "find_order", "parameters": {}}', None, ["refund"]),
    ('I look.\n{"name": "refund", "parameters": {}}', None, ["refund"]),
    ("I look.", "I look.", [])])
def test_an_answer_can_be_sent_back(reply, content, calls, tmp_path):
    """This template writes one call and nothing next to it."""
    chat = chat_with(tmp_path, chat_templates.LLAMA_31)
    message = ask(chat, f"{reply}<|end|>")["message"]
    assert message["content"] == content
    assert [call["function"]["name"] for call in message.get("tool_calls", [])] == calls
    more = [{"role": "tool", "content": "It is done."}] if calls else [{"role": "user", "content": "Well?"}]
    again = request([{"role": "user", "content": "Refund A-1."}, message, *more], tools=SINGLE["tools"],
                    continue_final_message=False)
    assert reply.partition(";")[0].split("\n")[-1] in chat.decode(Prompts(chat).encode(again))


def test_a_reply_that_is_only_a_call_has_no_content(tmp_path):
    chat = chat_with(tmp_path, chat_templates.LLAMA_31)
    choice = ask(chat, '{"name": "refund", "parameters": {"amount": 3}}<|end|>')
    assert choice["message"]["content"] is None and len(choice["message"]["tool_calls"]) == 1
