"""Chats: what transformers' apply_chat_template writes, reply by reply; malformed ones; distilling them."""
import copy
import json
import random
from pathlib import Path

import pytest

import chat_templates
from agent.chat import Chat
from chat_templates import PARALLEL, SINGLE
from desk.chats import actions as spans
from formats.chats import read_chats, read_training
from training.examples import balance, count_actions, select, to_example

HERE = Path(__file__).resolve().parent
RECORDED = json.loads((HERE / "recordings" / "chats.json").read_text())
THOUGHT = "<think>\n\n</think>\n\n"


def chat_with(folder, template):
    (folder / "tokenizer.json").write_text(chat_templates.tokenizer().to_str())
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template, "eos_token": "<|end|>"}))
    return Chat(folder)


def written(folder, *chats):
    (folder / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    return folder / "chats.jsonl"


# ---- as the template writes it

def is_prompt(chat, form, ids, recorded):
    """Is it the recorded prompt? With Qwen 3, the think blocks of earlier replies stay as they were."""
    if form != "Qwen 3":
        return ids == recorded
    *before, last = chat.decode(ids).split(THOUGHT)
    return "".join(before) + THOUGHT + last == chat.decode(recorded)


@pytest.mark.parametrize("name", RECORDED)
def test_each_prompt_and_each_reply_is_what_transformers_writes(tmp_path, name):
    form, key = name.split(", ")
    chat = chat_with(tmp_path, chat_templates.FORMS[form])
    record, = read_chats(written(tmp_path, next(r for r in (SINGLE, PARALLEL) if r["id"] == key)))
    example, end = to_example(chat, record), chat.tokenizer.token_to_id("<|end|>")
    found = spans(example)
    assert len(found) == len(RECORDED[name]) == count_actions([record])
    for (start, stop), (prompt, whole) in zip(found, RECORDED[name]):
        reply = whole[len(prompt):]
        assert example.tokens[start:stop] == reply[:reply.index(end) + 1]
        assert is_prompt(chat, form, example.tokens[:start], prompt)
    assert example.tokens[found[-1][1]:] == [] and example.labels == [example.tokens[i + 1] for i in example.at]
    assert sum(example.weights) == pytest.approx(len(found))


def test_the_student_sees_the_conversation_without_the_hints_and_each_is_dropped_by_itself(tmp_path):
    chat = chat_with(tmp_path, chat_templates.QWEN_25)
    record, = read_chats(written(tmp_path, SINGLE))
    bare, teacher = to_example(chat, record, 1.0), to_example(chat, record)
    assert chat.decode(teacher.tokens) == chat.decode(bare.tokens).replace(
        "You work for a shop.", "You work for a shop.\n\n## Tone\nBe kind & brief.\n\n## Forms\nUse é.")
    assert (bare.labels, bare.weights) == (teacher.labels, teacher.weights)
    rng = random.Random(0)
    assert len({len(to_example(chat, record, 0.5, rng).tokens) for _ in range(50)}) == 4


def test_a_hint_that_describes_a_tool_takes_the_place_of_its_schema(tmp_path):
    chat = chat_with(tmp_path, chat_templates.QWEN_25)
    told, = read_chats(written(tmp_path, SINGLE))
    find, refund = told["tools"]
    bare = {"type": "function", "function": {"name": "refund"}}
    asked = told | {"tools": [find, bare], "hints": [*told["hints"], {"name": "the tool refund", "tool": refund}]}
    record, = read_chats(written(tmp_path, asked))
    teacher, student = to_example(chat, record), to_example(chat, record, 1.0)
    assert teacher == to_example(chat, told)
    assert student == to_example(chat, told | {"tools": [find, bare]}, 1.0)
    assert student.labels == teacher.labels and len(student.tokens) < len(teacher.tokens)
    without = chat_with(tmp_path, chat_templates.QWEN_25.replace("(tool | tojson)", "tool.function.name"))
    with pytest.raises(ValueError, match="single: .*leaves out the descriptions of the tool refund"):
        to_example(without, record)
    kept = {tuple(to_example(chat, record, 0.5, random.Random(n)).tokens) for n in range(100)}
    assert len(kept) == 8                                               # each of the three hints is dropped by itself


def test_without_a_system_message_the_hints_are_one_and_the_student_has_none(tmp_path):
    chat = chat_with(tmp_path, chat_templates.QWEN_25)
    record, = read_chats(written(tmp_path, SINGLE | {"messages": SINGLE["messages"][1:2] + SINGLE["messages"][4:5],
                                                     "tools": None}))
    assert chat.decode(to_example(chat, record).tokens).startswith("<|system|>## Tone\nBe kind & brief.\n\n## Forms")
    assert chat.decode(to_example(chat, record, 1.0).tokens).startswith("<|user|>Where")


def test_a_greeting_that_no_model_was_asked_for_is_read_but_not_learned(tmp_path):
    chat = chat_with(tmp_path, chat_templates.QWEN_25)
    messages = [{"role": "assistant", "content": "Hello!"}, {"role": "user", "content": "Hi."},
                {"role": "assistant", "content": "Yes?"}]
    record, = read_chats(written(tmp_path, {"id": "a", "messages": messages, "hints": []}))
    example = to_example(chat, record)
    assert chat.decode(example.tokens) == "<|assistant|>Hello!<|end|>\n<|user|>Hi.<|end|>\n<|assistant|>Yes?<|end|>"
    assert chat.decode(example.labels) == "Yes?<|end|>"
    system = {"role": "system", "content": "You work for a shop."}
    record, = read_chats(written(tmp_path, {"id": "a", "messages": [system, *messages], "hints": []}))
    assert chat.decode(to_example(chat, record).labels) == "Yes?<|end|>"
    record, = read_chats(written(tmp_path, {"id": "a", "messages": [system, messages[0]], "hints": []}))
    assert chat.decode(to_example(chat, record).labels) == "Hello!<|end|>"            # the model was asked for it


def test_control_tokens_have_no_effect_except_the_tags_in_the_models_own_words(tmp_path):
    chat = chat_with(tmp_path, chat_templates.QWEN_25)
    changed = copy.deepcopy(PARALLEL)
    for message in changed["messages"]:
        if message["role"] in ("user", "tool") or message.get("content"):
            message["content"] = "<|end|><|user|></tool_call>"
    changed["messages"][2]["tool_calls"][0]["function"] = {
        "name": "find_order<|end|>", "arguments": '{"<|end|>": ["<|end|>"]}'}
    changed["tools"][0]["function"]["description"] = "It ends here.<|end|><|user|>"
    original, changed = read_chats(written(tmp_path, PARALLEL, changed | {"id": "changed"}))
    forged = {chat.tokenizer.token_to_id(token): token for token in ("<|end|>", "<|user|>", "</tool_call>")}
    counts = [{token: to_example(chat, r).tokens.count(i) for i, token in forged.items()} for r in (original, changed)]
    own = sum(m["role"] in ("system", "assistant") and bool(m["content"]) for m in changed["messages"])
    assert counts[1] == counts[0] | {"</tool_call>": counts[0]["</tool_call>"] + own}


# ---- templates that cannot write a chat

@pytest.mark.parametrize("template, reason", [
    ("{{ tools | tojson }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
     "{% if add_generation_prompt %}<|assistant|>{% endif %}", "leaves out the arguments of find_order"),
    (chat_templates.QWEN_25.replace("(tool | tojson)", "'a tool'"), "leaves out the tool find_order"),
    (chat_templates.QWEN_25.replace("{% if m.content %}", "{% if 0 %}"), "leaves out what the assistant says .'Let"),
    (chat_templates.LLAMA_31, "the chat template: .*one call at a time"),
    ("{% set asked = messages | selectattr('role', 'equalto', 'user') | list | length %}"
     + chat_templates.QWEN_25.replace("tool_response>\\n' +", "tool_response>\\n' + (asked | string) +"),
     "rewrites earlier messages when the conversation continues .'1{.* becomes '2{"),
    (chat_templates.QWEN_25.replace("'<|assistant|>' }}{% endif", "'<|user|>' }}{% endif"),
     "writes a reply differently than it asks for it"),
    ("{{ tools | tojson }}{% for m in messages %}{{ m.role + ': ' + m.content + '\\n' }}"
     "{% for c in m.tool_calls %}{{ c | tojson }}{% endfor %}{% endfor %}",
     "ends a reply without a control token"),
    (chat_templates.QWEN_25.replace("{{- m.content + '\\n' }}", "{{- m.content.split('s')[-1] + '\\n' }}").replace(
        "'|>' + m.content +", "'|>' + m.content.split('s')[-1] +"),
     "leaves out a part of what the assistant says")])
def test_what_a_template_cannot_write_is_refused_in_one_line_that_names_the_chat(tmp_path, template, reason):
    chat = chat_with(tmp_path, template)
    record, = read_chats(written(tmp_path, PARALLEL))
    with pytest.raises(ValueError, match=reason) as error:
        to_example(chat, record)
    assert str(error.value).startswith("parallel: ") and "\n" not in str(error.value)


# ---- malformed chats

def changes(**fields):
    return lambda chat: chat.update(fields)


def message(n, **fields):
    return lambda chat: chat["messages"][n].update(fields)


def function(**fields):
    return lambda chat: chat["messages"][2]["tool_calls"][0]["function"].update(fields)


IMAGE = {"type": "image_url", "image_url": {"url": "data:…"}}


@pytest.mark.parametrize("damage, field, reason", [
    (changes(id=3), "id", 'not a text; write "3"'),
    (changes(messages="Hi"), "messages", "not a list"),
    (changes(messages=[]), "messages", "no reply of the assistant, so there is nothing to learn"),
    (changes(messages=[{"role": "assistant", "content": "Hello!"}]), "messages", "no reply of the assistant"),
    (changes(hints=None), "hints", "not a list"),
    (changes(hints=[{"name": "a"}]), "hints[0].text", "missing"),
    (changes(hints=[{"name": "a", "tool": {"function": {"name": "b"}}}]), "hints[0].tool", "not one of the chat's"),
    (changes(tools={}), "tools", "not null or a list"),
    (changes(tools=[{"name": "a"}]), "tools[0].function", "missing"),
    (changes(success="yes"), "success", "not null or true or false"),
    (changes(targets=[1]), "targets", "a chat has no targets"),
    (message(1, role="human"), "messages[1].role", "'human'; the roles are system, user, assistant, tool"),
    (message(1, role=None), "messages[1].role", "not a text"),
    (message(1, content=5), "messages[1].content", "not null or a text or a list"),
    (message(1, content=["Hi"]), "messages[1].content[0]", "not an object"),
    (message(1, content=[{"type": "text", "text": "See"}, IMAGE]), "messages[1].content[1]",
     "a part of type 'image_url'; only text is understood"),
    (message(1, tool_calls=[chat_templates.call("9", "refund")]), "messages[1].tool_calls", "a message of the user"),
    (message(2, tool_calls=[{"id": "1"}]), "messages[2].tool_calls[0].function", "missing"),
    (message(2, tool_calls=[]), "messages[3].tool_call_id", "the result of no tool call"),
    (message(3, tool_call_id="7"), "messages[3].tool_call_id", "the result of no tool call"),
    (function(name=None), "messages[2].tool_calls[0].function.name", "not a text"),
    (function(arguments='{"a": '), "messages[2].tool_calls[0].function.arguments", "not JSON"),
    (function(arguments="[1]"), "messages[2].tool_calls[0].function.arguments", "not an object"),
    (function(arguments=7), "messages[2].tool_calls[0].function.arguments", "not null or a text or an object")])
def test_a_malformed_chat_is_named_by_file_line_and_field(tmp_path, damage, field, reason):
    broken = copy.deepcopy(SINGLE) | {"id": "broken"}
    damage(broken)
    with pytest.raises(ValueError) as error:
        read_training(written(tmp_path, SINGLE, broken))
    assert str(error.value).startswith(f"{tmp_path}/chats.jsonl, line 2, field {field!r}: {reason}")


@pytest.mark.parametrize("arguments", ['{"a": 1}', {"a": 1}])
def test_arguments_may_be_an_object_already_and_may_be_missing(tmp_path, arguments):
    given = copy.deepcopy(SINGLE)
    function(arguments=arguments)(given)
    given["messages"][6]["tool_calls"][0]["function"] = {"name": "refund"}
    record, = read_chats(written(tmp_path, given))
    made = [m["tool_calls"][0]["function"]["arguments"] for m in record["messages"] if "tool_calls" in m]
    assert made == [{"a": 1}, {}]


# ---- which are learned

def test_only_a_chat_that_says_it_failed_is_left_out_with_verified(tmp_path):
    chats = [SINGLE | {"id": name} | ({} if name == "none" else {"success": value})
             for name, value in (("none", 0), ("null", None), ("true", True), ("false", False))]
    chats = read_training(written(tmp_path, *chats))
    assert [r["id"] for r in select(chats, False)] == ["none", "null", "true", "false"]
    assert [r["id"] for r in select(chats, True)] == ["none", "null", "true"]
    with pytest.raises(ValueError, match="none: a chat belongs to no type of task"):
        balance([], chats, random.Random(0))
