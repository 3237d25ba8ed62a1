"""Logs → chats with the manual as hints, and how much of the manual an agent has internalized."""

import copy
import json
import re
import sys

import pytest
import torch
from safetensors.torch import save_file

import chat_templates
import evaluate
import lora
from agent.chat import Chat
from chat_templates import SINGLE
from desk import chats
from formats.chats import read_chats
from model import Config, Llama, Sampler
from test_chats import chat_with, written
from test_distill import SHAPE
from tools import from_chats
from training.examples import to_example
from training.loss import kl_divergence

MANUAL = "# Shop\n\n## Tone\nBe kind.\n\n## Refunds\nAsk for the\norder first.\n"
SYSTEM = "You are Ada.\n\n# Shop\n\n## Tone\nBe kind.\n\n## Refunds\nAsk for the order first.\n\nToday is Monday."
ASKED = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "Hi"}]
REPLY = {"role": "assistant", "content": "Hello."}
TOOLS = [{"type": "function", "function": {"name": "refund"}}]


def response(message, reason="stop"):
    return {"choices": [{"message": message, "finish_reason": reason}]}


def converted(tmp_path, monkeypatch, capsys, *records, manual=MANUAL, options=("--manual", "manual.md")):
    """from_chats.py on these records → (the chats, what it printed)."""
    (tmp_path / "manual.md").write_text(manual)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "logs.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    monkeypatch.setattr(sys, "argv", ["from_chats.py", "logs.jsonl", *options, "--out", "chats.jsonl"])
    from_chats.main()
    return read_chats(tmp_path / "chats.jsonl"), capsys.readouterr().out


@pytest.mark.parametrize("record", [
    {"messages": [*ASKED, REPLY], "tools": TOOLS},
    {"request": {"model": "m", "messages": ASKED, "tools": TOOLS}, "response": response(REPLY)},
    {"input": {"messages": ASKED, "tools": TOOLS}, "output": REPLY},
    {"input": ASKED, "output": [REPLY], "tools": TOOLS},
    {"input": {"messages": ASKED}, "output": {"messages": [*ASKED, REPLY]}, "tools": TOOLS},
    {"body": {"messages": [*ASKED, REPLY], "tools": TOOLS}},
    {"messages": [*ASKED, REPLY], "response": response(REPLY), "tools": TOOLS},
    {"input": ASKED, "output": {"messages": [ASKED[1], REPLY]}, "tools": TOOLS},
    {"input": ASKED, "output": {"messages": [m | {"id": "x"} for m in (*ASKED, REPLY)]}, "tools": TOOLS},
    {"request": {"input": ASKED, "tools": TOOLS}, "output": REPLY},
    {"input": ASKED, "metadata": {"tools": TOOLS}, "output": REPLY},
    {"request": {"system": SYSTEM, "messages": ASKED[1:], "tools": TOOLS},                  # Anthropic's
     "response": {"role": "assistant", "content": [{"type": "text", "text": "Hello."}], "stop_reason": "end_turn"}},
    {"request": {"body": {"messages": ASKED, "tools": TOOLS}}, "response": {"body": response(REPLY)}}])
def test_the_manual_becomes_hints_in_every_shape_of_a_log(record, tmp_path, monkeypatch, capsys):
    (chat,), said = converted(tmp_path, monkeypatch, capsys, record)
    assert [m["content"] for m in chat["messages"]] == ["You are Ada.\n\nToday is Monday.", "Hi", "Hello."]
    assert chat["hints"] == [{"name": "Shop", "text": "# Shop\n\n## Tone\nBe kind."},
                             {"name": "Refunds", "text": "## Refunds\nAsk for the order first."}]
    assert chat["tools"] == TOOLS and "1 chats of 1 records, with a manual of 2 sections" in said


@pytest.mark.parametrize("whole", [True, False])
def test_calls_and_results_in_a_response_are_kept(whole, tmp_path, monkeypatch, capsys):
    calls = {"role": "assistant", "content": None, "tool_calls": [
        {"id": "1", "type": "function", "function": {"name": "refund", "arguments": "{}"}}]}
    new = [calls, {"role": "tool", "tool_call_id": "1", "content": "done"}, REPLY]
    output = {"messages": [*ASKED, *new]} if whole else new
    log = {"input": {"messages": ASKED, "tools": TOOLS}, "output": output}
    (chat,), _ = converted(tmp_path, monkeypatch, capsys, log)
    assert [m["role"] for m in chat["messages"]] == ["system", "user", "assistant", "tool", "assistant"]


def test_what_is_left_out_is_reported_with_its_lines(tmp_path, monkeypatch, capsys):
    without = [{"role": "system", "content": "You are Ada."}, *ASKED[1:]]
    half = [{"role": "system", "content": "## Refunds\nAsk for the order first."}, *ASKED[1:]]
    image = [ASKED[0], {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:…"}}]}]
    found, said = converted(
        tmp_path, monkeypatch, capsys, {"messages": [*ASKED, REPLY]}, {"messages": [*without, REPLY]},
        {"messages": [*half, REPLY]}, {"messages": [*image, REPLY]}, {"prompt": "Hi"},
        {"request": {"messages": ASKED}, "response": response(REPLY, "length")},
        {"messages": [*ASKED, REPLY, {"role": "user", "content": "And?"}, REPLY]},
        {"messages": [*ASKED, REPLY | {"weight": 0}]},
        {"request": {"messages": ASKED}, "response": response(REPLY | {"reasoning_content": "Hm."})},
        {"messages": [{"role": "system", "content": MANUAL}, REPLY]},
        {"messages": [*ASKED, REPLY, {"role": "user", "content": "And then?"}], "response": "Then I refund it."},
        {"request": {"messages": ASKED}, "response": REPLY | {"stop_reason": "max_tokens"}},
        {"messages": [*ASKED, REPLY | {"tool_calls": [{"function": {"name": "f", "arguments": '{"x": "\\ud83d"}'}}]}]})
    assert [chat["id"] for chat in found] == ["logs-3", "logs-7"]
    for line in ("left out, the manual is not in the system message: 1 (line 2)",
                 "without the section 'Shop': 1 (line 3)", "left out, no messages found: 1 (line 5)",
                 "left out, the reply was cut off (length): 1 (line 6)",
                 "left out, a reply has weight 0, but all replies of a chat are learned: 1 (line 8)",
                 "a reply has its reasoning in a field of its own; put it where the template writes it: 1 (line 9)",
                 "left out, messages: no reply of the assistant, so there is nothing to learn: 1 (line 10)",
                 "left out, a later record continues it or repeats it: 1 (line 1)",
                 "left out, the reply was cut off (max_tokens): 1 (line 12)",
                 "left out, messages[n].tool_calls[n].function.arguments: half a character: 1 (line 13)",
                 "left out, no reply found in the response; write it as"):
        assert line in said
    assert "a part of type 'image_url'" in said and "2 chats of 13 records" in said


@pytest.mark.parametrize("success, kept", [(False, {"success": False}), (True, {})])
def test_a_conversation_has_failed_also_if_its_last_record_is_left_out(success, kept, tmp_path, monkeypatch, capsys):
    more = {"request": {"messages": [*ASKED, REPLY, {"role": "user", "content": "And?"}]},
            "response": response(REPLY, "length"), "success": success}
    (chat,), _ = converted(tmp_path, monkeypatch, capsys, {"messages": [*ASKED, REPLY]}, more)
    assert {k: v for k, v in chat.items() if k == "success"} == kept


def test_calls_of_tools_that_are_not_listed_are_reported(tmp_path, monkeypatch, capsys):
    called = REPLY | {"tool_calls": [{"function": {"name": "refund", "arguments": "{}"}}]}
    _, said = converted(tmp_path, monkeypatch, capsys, {"messages": [*ASKED, called]},
                        {"messages": [*ASKED, called], "tools": TOOLS})
    assert 'its replies call tools, but it has no "tools": 1 (line 1)\n' in said


def test_another_text_under_a_sections_headings_becomes_the_hint(tmp_path, monkeypatch, capsys):
    asked = [ASKED[0] | {"content": SYSTEM.replace("Be kind.", "Be kind and brief.")}, ASKED[1]]
    (chat,), said = converted(tmp_path, monkeypatch, capsys, {"messages": [*asked, REPLY]})
    assert [hint["text"] for hint in chat["hints"]] == [
        "# Shop\n\n## Tone\nBe kind and brief.", "## Refunds\nAsk for the order first."]
    assert chat["messages"][0]["content"] == "You are Ada.\n\nToday is Monday."
    assert "the section 'Shop' has another text, which is kept: 1 (line 1)" in said


@pytest.mark.parametrize("space", [" ", "\n", "\n\n"])
def test_a_section_that_goes_on_in_the_logs_is_another_text(space, tmp_path, monkeypatch, capsys):
    asked = [ASKED[0] | {"content": SYSTEM.replace("Be kind.", f"Be kind.{space}Say thanks.")}, ASKED[1]]
    (chat,), said = converted(tmp_path, monkeypatch, capsys, {"messages": [*asked, REPLY]})
    assert [hint["text"] for hint in chat["hints"]] == [
        f"# Shop\n\n## Tone\nBe kind.{space}Say thanks.", "## Refunds\nAsk for the order first."]
    assert "the section 'Shop' has another text, which is kept: 1 (line 1)" in said
    assert "the system message keeps what is not in the manual, for example: You are Ada. Today is Monday.\n" in said
    kinder = [{"role": "system", "content": "Be kinder"}, ASKED[1]]
    with pytest.raises(ValueError, match="nothing is left to learn from"):
        converted(tmp_path, monkeypatch, capsys, {"messages": [*kinder, REPLY]}, manual="Be kind")


def test_without_a_manual_the_chats_have_no_hints(tmp_path, monkeypatch, capsys):
    (tmp_path / "logs.jsonl").write_text(json.dumps({"messages": [*ASKED, REPLY]}))
    monkeypatch.setattr(sys, "argv", ["from_chats.py", str(tmp_path / "logs.jsonl"), "--out", str(tmp_path / "out")])
    from_chats.main()
    chat, = read_chats(tmp_path / "out")
    assert chat["hints"] == [] and chat["messages"][0]["content"] == SYSTEM
    assert "1 chats of 1 records, with no hints: for distill.py --keep" in capsys.readouterr().out


def test_the_line_ends_of_a_system_message_do_not_matter(tmp_path, monkeypatch, capsys):
    for ends in "\r\n", "\u00a0\n":
        asked = [ASKED[0] | {"content": SYSTEM.replace("\n", ends)}, ASKED[1]]
        (chat,), said = converted(tmp_path, monkeypatch, capsys, {"messages": [*asked, REPLY]})
        assert [hint["name"] for hint in chat["hints"]] == ["Shop", "Refunds"] and "another text" not in said


DESCRIBED = {"type": "function", "function": {
    "name": "refund", "description": "Pays money back.", "strict": True, "parameters": {
        "title": "Refund", "description": "What to pay back.", "type": "object", "required": ["description"],
        "properties": {
            "description": {"type": "string", "description": "why"},            # a parameter of that name
            "title": {"anyOf": [{"type": "string", "examples": ["Dr."]}, {"$ref": "#/$defs/title"}]},
            "reason": {"enum": [{"description": "late"}, "broken"], "default": {"title": "x"}}},
        "$defs": {"title": {"type": "null", "title": "None"}}}}}
BARE = {"type": "function", "function": {
    "name": "refund", "strict": True, "parameters": {
        "type": "object", "required": ["description"],
        "properties": {
            "description": {"type": "string"},
            "title": {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/title"}]},
            "reason": {"enum": [{"description": "late"}, "broken"], "default": {"title": "x"}}},
        "$defs": {"title": {"type": "null"}}}}}


def test_tools_descriptions_become_hints_and_the_agent_gets_the_bare_tools(tmp_path, monkeypatch, capsys):
    plain = {"type": "function", "function": {"name": "close"}}
    logs = [{"messages": [{"role": "user", "content": text}, REPLY], "tools": tools}
            for text, tools in (("Hi", [DESCRIBED, plain]), ("Hello", [DESCRIBED]), ("Hey", [plain]))]
    found, said = converted(tmp_path, monkeypatch, capsys, *logs, options=("--bare-tools", "new/bare.json"))
    assert [chat["tools"] for chat in found] == [[BARE, plain], [BARE]]
    assert [chat["hints"] for chat in found] == [[{"name": "the tool refund", "tool": DESCRIBED}]] * 2
    assert json.loads((tmp_path / "new/bare.json").read_text()) == [BARE, plain]
    assert "left out, its tools have no descriptions: 1 (line 3)" in said
    assert "2 chats of 3 records, with the descriptions of 1 tools" in said


def test_a_manual_may_stand_in_the_system_message_and_in_the_descriptions(tmp_path, monkeypatch, capsys):
    options = ("--manual", "manual.md", "--bare-tools", "bare.json")
    (chat,), said = converted(tmp_path, monkeypatch, capsys, {"messages": [*ASKED, REPLY], "tools": [DESCRIBED]},
                              options=options)
    assert [hint["name"] for hint in chat["hints"]] == ["Shop", "Refunds", "the tool refund"]
    assert "with a manual of 2 sections and the descriptions of 1 tools" in said


def test_logs_of_the_same_name_in_two_folders_give_different_ids(tmp_path):
    files = [tmp_path / day / "logs.jsonl" for day in ("monday", "tuesday")]
    for file, hello in zip(files, ("Hi", "Hello")):
        file.parent.mkdir()
        messages = [ASKED[0], {"role": "user", "content": hello}, REPLY]
        file.write_text(json.dumps({"messages": messages}) + "\n")
    (tmp_path / "manual.md").write_text(MANUAL)
    found, _, _ = from_chats.convert(list(map(str, files)), from_chats.read_manual(tmp_path / "manual.md"), False)
    assert [chat["id"] for chat in found] == ["logs-1-1", "logs-2-1"]


def test_an_accent_by_itself_or_on_its_letter_is_the_same_call():
    assert chats.spelled("open", {"file": "Cafe\u0301"}) == chats.spelled("open", {"file": "Caf\xe9"})


def test_the_share_of_equal_calls_and_the_tokens_saved_are_counted():
    record = SINGLE | {"id": "a", "hints": [], "messages": [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "", "tool_calls": [
            {"function": {"name": name, "arguments": {"order": 7}}} for name in ("find", "refund")]},
        {"role": "user", "content": "And?"}, {"role": "assistant", "content": "Done."}]}
    both = '{"name": "refund", "arguments": {"order": 7.0}} {"name": "find", "arguments": {"order": 7}}'
    other = '{"name": "find", "arguments": {"order": 8}} {"name": "find", "arguments": {"order": 7}}'
    results = [{"agent": agent, "chat": "a", "kl": [kl, 3 * kl], "replies": [first, "Done."], "prompts": prompts}
               for agent, kl, first, prompts in (("with the manual", 0.0, both, [100, 120]),
                                                 ("without", 0.5, other, [50, 60]))]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in chats.table(results, [record]).splitlines()]
    assert rows[2] == ["with the manual", "0.0000", "100.0 %", "100.0 %", "220"]
    assert rows[3] == ["without the manual", "1.0000", "50.0 %", "50.0 %", "110"]
    assert "saves 110 input tokens (50%)" in chats.table(results, [record])


def test_the_divergence_is_the_definitions_and_the_replies_are_greedy(tmp_path, monkeypatch, capsys):
    torch.manual_seed(0)
    shape = SHAPE | {"vocab_size": chat_templates.tokenizer().get_vocab_size(), "max_position_embeddings": 2048}
    (tmp_path / "config.json").write_text(json.dumps(shape | {"model_type": "llama"}))
    model = Llama(Config(**shape))
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.5)
    save_file(model.hf_state_dict(), tmp_path / "model.safetensors")
    adapted = copy.deepcopy(model)
    for p in lora.add_adapter(adapted, 4, 8):
        torch.nn.init.normal_(p, std=0.2)
    lora.save_adapter(adapted, tmp_path / "adapter")
    chat, file = chat_with(tmp_path, chat_templates.QWEN_25), written(tmp_path, SINGLE)
    monkeypatch.setattr(sys, "argv", [
        "evaluate.py", "--chats", str(file), "--model", str(tmp_path), "--dtype", "float32", "--max-new-tokens", "5",
        "--adapter", str(tmp_path / "adapter"),
        "--out", str(tmp_path / "out.jsonl")])
    sampled = []
    monkeypatch.setattr(chats, "greedy", lambda *a, real=chats.greedy: sampled.append(a[-1]) or real(*a))
    for cut in 2, 3:                                                    # the second time, from the file but for one
        evaluate.main()
        lines = (tmp_path / "out.jsonl").read_text().splitlines(keepends=True)
        assert len(lines) == 3
        (tmp_path / "out.jsonl").write_text("".join(lines[:cut]))
        said = capsys.readouterr().out
        assert re.search(r"\| with the manual +\| 0\.0000 ", said) and "| without " in said
    assert sampled == [chats.TEACHER, chats.BARE, chats.COACHED, chats.COACHED]
    results = {r["agent"]: r for r in map(json.loads, open(tmp_path / "out.jsonl"))}
    assert len(results) == 3
    record, = read_chats(file)
    teacher, bare = to_example(chat, record), to_example(chat, record, 1.0)
    with torch.no_grad():
        q, a, p = (m(torch.tensor([x.tokens]))[0][x.at].split([end - start for start, end in chats.actions(x)])
                   for m, x in ((model, bare), (adapted, bare), (model, teacher)))
    for name, student in (("without", q), ("without, adapters", a)):
        expected = [kl_divergence([x], [y], 1.0).item() for x, y in zip(student, p, strict=True)]
        assert results[name]["kl"] == pytest.approx(expected, rel=1e-3)
    prompts = [bare.tokens[:start] for start, _ in chats.actions(bare)]
    greedy = Sampler(model, batch=4, max_length=2048).generate(prompts, max_new_tokens=5)
    ends = {chat.tokenizer.token_to_id("<|end|>")}
    for text, ids in zip(results["without"]["replies"], greedy, strict=True):
        cut = next((n + 1 for n, i in enumerate(ids) if i in ends), len(ids))
        assert text == Chat(tmp_path).decode(ids[:cut])
