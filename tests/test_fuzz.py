"""Any text, anywhere: it ends up as text, and forges no role, no tag and no stop."""

import json
import random
from pathlib import Path

import pytest

import agent
import records
from agent import RESPONSES, TAGS, Chat
from tools.sandbox import Observation

ROOT = Path(__file__).resolve().parent.parent
EVIL = ["<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|eot_id|>", "<|start_header_id|>", "\ue000", "\ue001", "\ue0000\ue001", "\ue0001\ue001", "{{", "}}", "{% raw %}",
        "\\", '"', "'", "\n", "\r\n", "\t", "\x00", "\u2028", "\ufeff", "é", "日本", "🙂", "\ud83d"[:0], "```", "```python", "</s>", "<s>", "[INST]", "&lt;", "<", "</", ">",
        *(f"<{t}>" for t in TAGS), *(f"</{t}>" for t in TAGS), "## tools: x", "+++", "Step 1:", "complete_task(1, 2)"]


def texts(seed, n):
    rng = random.Random(seed)
    for _ in range(n):
        yield "".join(rng.choice((rng.choice(EVIL), rng.choice(EVIL), chr(rng.randrange(32, 0x2FFF)), "word ", str(rng.random()))) for _ in range(rng.randrange(1, 25)))


@pytest.fixture(scope="module")
def chat():
    return Chat(ROOT / "starter")


def built(chat, question, hint, observation, corrective):
    ids = {"monologue": [7, 8, chat.tokenizer.token_to_id("</inner_monologue>")], "code": [9, 10, chat.tokenizer.token_to_id("</python>")]}
    steps = [{"monologue": "", "code": "", "observation": observation, "hint": None, "token_ids": ids},
             {"monologue": "", "code": "", "observation": "", "hint": {"name": "", "text": corrective}, "token_ids": ids}]
    return chat.prompt(question, [hint], steps)


def test_no_text_forges_a_control_token_or_a_tag(chat):
    special = {i for t, i in chat.tokenizer.get_vocab().items() if t.strip().startswith("<") and len(t.strip()) > 3}
    count = lambda ids: [i for i in ids if i in special]
    plain, spans = built(chat, "a", "b", "c", "d")
    generator = texts("prompt", 600)
    for question, hint, observation, corrective in zip(*[generator] * 4):
        ids, where = built(chat, question, hint, observation, corrective)
        assert count(ids) == count(plain), (question, hint, observation, corrective)
        for key, (start, end) in where.items():                              # what was sampled is there, token by token
            assert ids[start:end] == plain[slice(*spans[key])]


def test_outside_text_comes_back_as_it_was_but_for_our_tags(chat):
    for text in texts("decode", 300):
        back = chat.decode(chat.encode_text(text))
        assert back == agent._TAG.sub("&lt;", text) or "\ufffd" in back or not text.isprintable()


def test_the_prompt_grows_at_its_end_only(chat):
    generator = texts("grow", 200)
    for question, observation in zip(generator, generator):
        ids = {"monologue": [7, chat.tokenizer.token_to_id("</inner_monologue>")], "code": [9, chat.tokenizer.token_to_id("</python>")]}
        steps, before = [], []
        for n in range(2):
            steps.append({"monologue": "", "code": "", "observation": None, "hint": None, "token_ids": {}})
            for name, _, _ in RESPONSES:
                prompt, _ = chat.prompt(question, ["hint"], steps, ask=name)
                assert prompt[:len(before)] == before
                steps[-1]["token_ids"][name] = ids[name]
                before = prompt + ids[name]
            steps[-1]["observation"] = observation
        whole, _ = chat.prompt(question, ["hint"], steps)
        assert whole[:len(before)] == before


def test_any_response_is_parsed_without_an_accident(chat):
    """Random token ids as the model's output: the agent ends in one of the ways that the record knows."""
    rng = random.Random("response")
    size = chat.tokenizer.get_vocab_size()
    for n in range(200):
        trajectory = {"id": "t#0", "task": {"id": "t", "question": "?", "answer": "1"}, "seed": 1, "hints": [], "steps": [], **agent.UNPLAYED, "usage": dict(agent.NOTHING_USED)}
        player, result = agent.play(chat, trajectory, max_steps=2), None
        try:
            while True:
                wish = player.send(result)
                if isinstance(wish, agent.Generate):
                    closed, ids = chat.closes(wish.tag), []
                    while not ids or not (closed(ids) or len(ids) == 20):
                        ids.append(rng.choice((rng.randrange(size), chat.tokenizer.token_to_id(f"</{wish.tag}>"))) if rng.random() < 0.2 else rng.randrange(size))
                    result = ids, "stop" if closed(ids) else "length"
                else:
                    result = Observation("text")
        except StopIteration:
            pass
        assert trajectory["stop"] in ("complete", "max_steps", "length", "invalid")
        json.dumps(trajectory)



def test_any_line_is_a_record_or_one_clear_line(tmp_path):
    rng, good = random.Random("records"), json.dumps({"id": "t", "group": "g", "template": "p", "question": "q", "answer": "a"})
    for text in texts("records", 400):
        i = rng.randrange(len(good))
        line = rng.choice((text, good[:i] + text + good[i:], good[:i] + text, json.dumps({**json.loads(good), rng.choice(["id", "answer", "x"]): text})))
        (tmp_path / "t.jsonl").write_bytes(line.encode("utf-8", "replace"))
        try:
            assert records.read_tasks(tmp_path / "t.jsonl")
        except ValueError as e:
            assert str(tmp_path / "t.jsonl") in str(e)


def test_any_hint_file_is_sections_or_one_clear_line(tmp_path):
    for text in texts("hints", 400):
        (tmp_path / "g.md").write_text("## tools: a\n" + text, encoding="utf-8", newline="")
        try:
            sections = agent.load_hints(tmp_path)
            assert sections[0]["name"] == "g/a" and all(s["text"].startswith("## ") for s in sections)
        except ValueError as e:
            assert str(tmp_path) in str(e)
