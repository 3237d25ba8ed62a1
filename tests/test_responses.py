"""What real models write: the code found in it, what is recorded, and what the next prompt and training see of it."""

from common import ROOT

import ast
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent import endpoint, protocol, rollouts
from agent.chat import Chat
from agent.play import Execute, Generate, play
from agent.responses import code_in, monologue_in
from tools.sandbox import Observation
from training.examples import to_example, usable

TASK = {"id": "t-1", "group": "g", "template": "p", "question": "What is 1?", "answer": "1"}
FENCE = "```"

RESPONSES = [                                            # (a response to the request for code, the code to run)
    ("print(1)\n</python>", "print(1)"),
    ("print(1)", "print(1)"),
    ("Here is the code:\n```py\nprint(1)\n```\nThis prints one.", "print(1)"),
    ("Sure: ```python\nprint(1)\n```", "print(1)"),
    ("<python>\n```Python\nprint(1)\n```", "print(1)"),
    ("<python>\n```python3\nprint(1)\n```\n</python>", "print(1)"),
    ("```python\nprint(1)\n```\nI hope that helps.", "print(1)"),
    ("```\nprint(1)\n```\n</python>", "print(1)"),
    ("```tool_code\nprint(1)\n```", "print(1)"),
    ("```python title=\"a.py\"\nprint(1)\n```", "print(1)"),
    ("```python print(1)```", "print(1)"),
    ("```print(1)```", "print(1)"),
    ("```python\nprint(1)\n", "print(1)"),                                 # the fence is not closed
    ("print(1)\n```", "print(1)"),                                         # … or was not opened
    ("print(1)\n```\nThis prints one.\n</python>", "print(1)"),
    ("print(1)\n```\nOutput:\n```\n1\n```", "print(1)"),
    ("First:\n```bash\npip install x\n```\nThen:\n```python\nprint(1)\n```", "print(1)"),
    ("  ```python\n  for i in x:\n      print(i)\n  ```", "for i in x:\n    print(i)"),
    ("<think>\nThe user wants a print.\n</think>\nprint(1)", "print(1)"),
    ("<think>\nOr <python>\nprint(2)\n</python>?\n</think>\n<python>\nprint(1)\n</python>", "print(1)"),
    ("The price is needed.\n</think>\n\n<python>\nprint(1)\n</python>", "print(1)"),
    ("print(1)\n</think>", "print(1)"),
    ("<python>\n    print(1)\n    print(2)\n</python>", "print(1)\nprint(2)"),
    ("    if x:\n        print(1)\n", "if x:\n    print(1)"),
    ("<python> print(1) </python>", "print(1)"),
    ("<python>\n<python>\nprint(1)\n</python>\n</python>", "print(1)"),
    ("I print it. <python>\nprint(1)\n</python> Done.", "print(1)"),
    ("</inner_monologue>\n<python>\nprint(1)\n</python>", "print(1)"),
    ("I print it.\n</inner_monologue>\nprint(1)", "print(1)"),
    ("</python>\n<python>\nprint(1)\n</python>", "print(1)"),
    ("print(1)\n<observation>\n1\n</observation>\n<inner_monologue>\nDone.", "print(1)"),
    ("print(1)\n<observation>\n1\n</observation>\n<python>\nprint(2)\n</python>", "print(1)"),
    ("print(1)\n</python>\n<observation>\n1\n</observation>\n<python>\nprint(2)\n</python>", "print(1)"),
    ("<inner_monologue>\nGo.\n</inner_monologue>\n<python>\nprint(1)\n</python>\n"           # it plays on alone
     "<observation>\n1\n</observation>\n<inner_monologue>\nx\n", "print(1)"),
    ("print('<hint>')\ntext = '''\n```\nx\n```\n'''\n</python>", "print('<hint>')\ntext = '''\n```\nx\n```\n'''"),
    ("!pip install pandas\nprint(1)\n</python>", "!pip install pandas\nprint(1)"),
    ("print(1\n</python>", "print(1"),                                     # the sandbox says what is wrong with it
    ("", ""), ("\n</python>", ""), ("<python></python>", ""), ("<python>\n```python\n```\n</python>", ""),
    ("<think>\nHm, print(1).", "")]

MONOLOGUES = [                      # (a response to the request for a monologue, the monologue, the code after it)
    ("I look.\n</inner_monologue>", "I look.", ""),
    ("I look.", "I look.", ""),
    ("<think>a</think>I b", "I b", ""),
    ("<think>a</think>I b</think>", "I b", ""),
    ("<inner_monologue>\nI look.\n</inner_monologue>", "I look.", ""),
    ("Sure!\n<inner_monologue>\nI look.", "I look.", ""),
    ("<think>\nHm.\n</think>\nI look.\n</inner_monologue>", "I look.", ""),
    ("I look.\n</think>\n", "I look.", ""),
    ("I look.\n<python>\nprint(1)\n</python>", "I look.", "print(1)"),
    ("I look.\n<python>\n```python\nprint(1)\n```", "I look.", "print(1)"),
    ("<python>\nprint(1)", "", "print(1)"),
    ("I look.\n<python>\nprint(1)\n</python>\n<observation>\n1\n</observation>\n"
     "<inner_monologue>\nDone.\n</inner_monologue>", "I look.", "print(1)"),
    ("I look.\n<python>\n</python>", "I look.\n<python>\n</python>", ""),
    ("I look. <python>\nprint(1)", "I look.", "print(1)"),
    ("I look.\n  <python> print(1) </python>", "I look.", "print(1)"),
    ("I write the code between <python> and </python>.", "I write the code between <python> and </python>.", ""),
    ("I write it between <python> and </python>.\n<python>\nprint(1)",
     "I write it between <python> and </python>.", "print(1)"),
    ("I try <python>\nprint(1)\n</python> next.\n</inner_monologue>",                 # the code is yet to be asked for
     "I try <python>\nprint(1)\n</python> next.", "")]


@pytest.mark.parametrize("response, code", RESPONSES)
def test_the_code_of_a_response(response, code):
    assert code_in(response) == code


@pytest.mark.parametrize("response, monologue, code", MONOLOGUES)
def test_the_monologue_of_a_response_and_the_code_that_it_ran_on_into(response, monologue, code):
    assert monologue_in(response) == (monologue, code)


PIECES = ["<python>", "</python>", "<inner_monologue>", "</inner_monologue>", "<observation>", "</observation>",
          "<think>", "</think>", "```", "```py", "```bash",
          "\n", "    ", "print(1)", "'''", "Sure.", "x = [", "\x00", "\ud800", "日本", "\t", "(" * 300]


@settings(max_examples=500, deadline=None, derandomize=True, database=None)
@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=16).map("".join))
def test_any_response_has_code_or_none(response):
    for text in (code_in(response), *monologue_in(response)):             # or its tokens would not spell it
        assert "".join(text.split()) in "".join(response.split())
    for code in (code_in(response), *monologue_in(response)[1:]):
        assert code == code.strip("\n") and isinstance(code, str)
        if protocol.TAG.search(code) or protocol.THOUGHT_TAG.search(code) or FENCE in code:
            ast.parse(code)                                                # in a string, then


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(st.sampled_from(["print(1)", "for i in x:\n    print(i)\n\nprint(2)", "x = '''\n  a\n'''", "x = (",
                        "data_filter(db, 'a<b')"]),
       st.sampled_from(["", "py", "Python", "python3"]),
       st.sampled_from(["", "Here is the code:\n", "<think>\nHm.\n</think>\n"]),
       st.booleans(), st.booleans(), st.booleans(),
       st.sampled_from(["", "\nI hope that helps."]))
def test_code_is_found_in_any_wrapping(code, language, before, opened, fenced, closed, after):
    text = f"{FENCE}{language}\n{code}\n{FENCE}" if fenced else code
    text = f"<python>\n{text}" if opened else text
    text = f"{text}\n</python>" if closed else text
    before = before if opened or fenced or "think" in before else ""     # only tags and fences separate prose from code
    after = after if closed or fenced else ""
    assert code_in(before + text + after) == code


# ---- the prompt after such turns, in sampling and in training

LLAMA_2_LIKE = ("{% for m in messages %}{% if m['role'] == 'user' %}"
                "{{ '<|begin|>[INST] ' + m['content'] + ' [/INST]' }}{% else %}"
                "{{ ' ' + m['content'] + ' <|eot|>' }}{% endif %}{% endfor %}")
QWEN_LIKE = ("{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|eot|>\n' }}{% endfor %}"
             "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")


@pytest.fixture(scope="module", params=["starter", QWEN_LIKE, LLAMA_2_LIKE])
def chat(request, tmp_path_factory):
    """The starter's, whose tags are tokens, and two whose tags are text, as real models' are."""
    if request.param == "starter":
        return Chat(ROOT / "starter")
    folder = tmp_path_factory.mktemp("model")
    tokenizer = json.loads((ROOT / "starter" / "tokenizer.json").read_text())
    added, vocabulary = tokenizer["added_tokens"], tokenizer["model"]["vocab"]
    names = {token["content"]: f"unused {token['id']}" for token in added}
    names |= {"<|end|>": "<|eot|>", "<|user|>": "<|im_start|>", "<|system|>": "<think>"}
    tokenizer["added_tokens"] = [token | {"content": names[token["content"]]}
                                 for token in added if token["id"] in (0, 1, 3)]
    tokenizer["model"]["vocab"] = {names.get(token, token): i for token, i in vocabulary.items()}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": request.param, "eos_token": "<|eot|>"}))
    return Chat(folder)


WHERE_TAGS_ARE_TEXT = pytest.mark.parametrize("chat", [QWEN_LIKE, LLAMA_2_LIKE], indirect=True, scope="module")


def unplayed():
    """The record of a trajectory that is still to be played."""
    return {"id": "t-1#0", "task": TASK, "seed": 1, "hints": [], "steps": [], **rollouts.UNPLAYED,
            "usage": dict(rollouts.NOTHING_USED)}


def played(chat, responses, max_steps):
    """Plays these responses, each sampled until it is over. Returns the trajectory, the prompts, what was sampled and
    the code that ran."""
    trajectory = unplayed()
    player, result, prompts, sampled, ran = play(chat, trajectory, max_steps), None, [], [], []
    responses = iter(responses)
    while True:
        try:
            wish = player.send(result)
        except StopIteration:
            return trajectory, prompts, sampled, ran
        if isinstance(wish, Generate):
            ids, over = chat.encode_template(next(responses)), chat.closes(wish.tag)
            ids = ids[:next((n for n in range(1, len(ids) + 1) if over(ids[:n])), len(ids))]
            prompts.append(wish.prompt)
            sampled.append(ids)
            result = ids, "stop"
        else:
            ran.append(wish.code)
            result = Observation("1")


def turns(end):
    """Two steps of turns that end without their closing tags."""
    return [f"I look.{end}", f"Here:\n```py\nprint(1)\n```{end}",
            f"Again.\n</inner_monologue>{end}", f"    print(2){end}"]


def test_an_unclosed_turn_is_played_recorded_and_learned_as_sampled(chat):
    end = chat.names["eos_token"]
    t, prompts, sampled, ran = played(chat, turns(end), 2)
    assert ran == ["print(1)", "print(2)"] and [s["monologue"] for s in t["steps"]] == ["I look.", "Again."]
    assert [s["token_ids"][name] for s in t["steps"] for name in ("monologue", "code")] == sampled
    whole, spans = chat.prompt(TASK["question"], [], t["steps"])
    for prompt, ids, longer in zip(prompts, sampled, [*prompts[1:], whole]):     # it grows by what was sampled
        assert longer[:len(prompt) + len(ids)] == prompt + ids
    assert [whole[start:stop] for start, stop in spans.values()] == sampled
    ended = [text.replace(end, f"\n</{tag}>") for text, tag in zip(turns(end), ["inner_monologue", "python"] * 2)]
    closed, _ = chat.prompt(TASK["question"], [], played(chat, ended, 2)[0]["steps"])
    eot = chat.tokenizer.token_to_id(end)
    assert whole.count(eot) == closed.count(eot)         # a turn that the model ended is not ended again
    assert usable(t) and all(chat.spells(s) for s in t["steps"])
    example = to_example(chat, t)
    ids, labels, weights = example.tokens, example.labels, example.weights
    assert ids == whole and labels == sum(sampled, []) and sum(weights) == pytest.approx(2)


@WHERE_TAGS_ARE_TEXT
def test_a_monologue_that_runs_on_into_code_is_one_turn(chat):
    end = chat.names["eos_token"]
    responses = [f"I look.\n<python>\nprint(1)\n</python>{end}", "Again.\n</inner_monologue>", "print(2)\n</python>",
                 "<python>print(3)</python>\n<observation>\n1\n</observation>"]
    t, prompts, sampled, ran = played(chat, responses, 3)
    assert ran == ["print(1)", "print(2)", "print(3)"]
    assert [s["monologue"] for s in t["steps"]] == ["I look.", "Again.", ""]
    assert [len(s["token_ids"]["code"]) > 0 for s in t["steps"]] == [False, True, False]
    assert chat.decode(sampled[-1]).rstrip().endswith("<observation>")     # the observation is ours to write
    whole, spans = chat.prompt(TASK["question"], [], t["steps"])
    for prompt, ids, longer in zip(prompts, sampled, [*prompts[1:], whole]):
        assert longer[:len(prompt) + len(ids)] == prompt + ids
    assert list(spans) == [(0, "monologue"), (1, "monologue"), (1, "code"), (2, "monologue")]
    assert chat.decode(whole).count(protocol.CODE) == 1 and usable(t)
    assert all(chat.spells(s) for s in t["steps"])
    assert to_example(chat, t).labels == sum(sampled, [])


@WHERE_TAGS_ARE_TEXT
def test_thinking_does_not_end_a_turn(chat):
    responses = ["<think>Hm.</think>I look.\n</inner_monologue>", "<think>Hm.</think>\nprint(1)\n</python>"]
    t, _, sampled, ran = played(chat, responses, 1)
    assert ran == ["print(1)"] and t["steps"][0]["monologue"] == "I look."
    assert sampled[0][0] == chat.tokenizer.token_to_id("<think>")


def test_an_endpoint_sees_the_code_that_a_local_model_wrote_in_its_monologues_turn():
    step = {"monologue": "I look.", "code": "print(1)", "observation": "1", "hint": None,
            "token_ids": {"monologue": [5], "code": []}}
    messages, _ = endpoint.Messages().prompt("q", [], [step, {"hint": None, "token_ids": {}}], ask="monologue")
    assert sum("print(1)" in m["content"] for m in messages) == 1


@pytest.mark.parametrize("responses, ran", [(["I look.", "```py\nprint(1)\n```"], ["print(1)"]),
                                            (["I look.\n<python>\nprint(1)\n</python>"], ["print(1)"]),
                                            (["I look.", "<think>\nHm."], [])])
def test_a_model_behind_an_endpoint_is_heard_alike(responses, ran):
    trajectory = unplayed()
    messages, codes = endpoint.Messages(), []
    player, result, responses = play(messages, trajectory, 1), None, iter(responses)
    try:
        while True:
            wish = player.send(result)
            if isinstance(wish, Execute):
                codes.append(wish.code)
            result = (endpoint.Said(next(responses)), "stop") if isinstance(wish, Generate) else Observation("1")
    except StopIteration:
        pass
    assert codes == ran and trajectory["stop"] == ("max_steps" if ran else "invalid")
    assert trajectory["steps"][0]["token_ids"] == {}
