"""What the starter is trained on: nothing of the worlds that it is evaluated on."""

from common import ROOT

import inspect
import random
import re
import sqlite3

import pytest
import torch

from agent import protocol
from agent.chat import Chat
from agent.hints import load_hints
from model import Config, Llama
from starter import pretrain, samples
from tools import starter_world, toolqa


@pytest.fixture(scope="module")
def stream():
    """A part of the training stream as text, without the agent's own wording."""
    chat, forbidden, texts = Chat(ROOT / "starter"), samples.evaluated(), []
    for length, n in ((128, 64), (256, 64), (512, 192), (768, 96)):
        ids, _ = samples.batch(chat, f"test {length}", length, n, forbidden)
        texts += [re.sub(r"\w+$", "", chat.decode(row.tolist())) for row in ids]          # a row's last word may be cut
    text = "\n".join(texts)
    for phrase in (protocol.PROTOCOL, protocol.THINK, protocol.CODE):
        text = text.replace(phrase, "")
    return text


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    out = tmp_path_factory.mktemp("world")
    starter_world.World(0).write(out / "world.sqlite")
    return sqlite3.connect(out / "world.sqlite")


def names(world):
    tools = [name for name, f in inspect.getmembers(toolqa, inspect.isfunction)
             if not name.startswith("_") and f.__module__ == toolqa.__name__]
    tables = [name for name, in world.execute(
        "SELECT name FROM sqlite_master WHERE type = 'table' AND name LIKE '%/%'")]
    columns = [row[1] for table in tables if table.startswith("db/")
               for row in world.execute(f'PRAGMA table_info("{table}")')]
    return tools, [t.split("/")[1] for t in tables], columns


def test_no_tool_table_or_column_name_is_in_the_stream(stream, world):
    tools, tables, columns = names(world)
    assert len(tools) == 8 and len(tables) >= 6 and len(columns) >= 25
    words = set(re.findall(r"\w+", stream))
    found = set(tools + tables + columns) & words
    assert not found


def test_no_wording_of_a_question_and_no_line_of_a_recipe_is_in_the_stream(stream):
    wordings = [line for group in starter_world.GROUPS.values() for f in group
                for line in inspect.getdoc(f).splitlines() if line.strip()]
    parts = [part.split() for line in wordings for part in re.split(r"\{.*?\}|[?\"]", line)]
    stretches = {" ".join(words) for words in parts if len(words) >= 2}
    assert len(wordings) >= 108 and len(stretches) > 100
    stream_lower = stream.lower()
    assert not [s for s in stretches if re.search(rf"\b{re.escape(s.lower())}\b", stream_lower)]
    hints = load_hints(ROOT / "hints" / "starter" / "round1")
    lines = {line.strip() for section in hints for line in section["text"].splitlines()}
    lines = {re.sub(r"^Step \d: ", "", line) for line in lines if not re.fullmatch(r'\w+ = "\.\.\."', line)}
    recipes = [line for line in lines if re.search(r"\w{3}", line)]
    assert len(recipes) > 200
    assert not [line for line in recipes if f"\n{line}\n" in stream or f": {line}\n" in stream]


def test_the_stream_is_the_same_again_for_the_same_seed():
    chat = Chat(ROOT / "starter")
    first, second = (samples.batch(chat, "7 3", 256, 4, samples.Forbidden()) for _ in range(2))
    assert (first[0] == second[0]).all() and (first[1] == second[1]).all()


def test_forbidden_names_are_never_drawn_and_rows_with_forbidden_texts_are_drawn_again():
    chat = Chat(ROOT / "starter")
    pieces = samples.vocabulary_pieces(chat)
    w = samples.World(random.Random(0), pieces, samples.Forbidden(frozenset(pieces)))
    assert not {w.word() for _ in range(3000)} & set(pieces)
    common = "print("
    texts = lambda forbidden: map(chat.decode, samples.batch(chat, "a", 256, 16, forbidden)[0].tolist())
    assert any(common in text for text in texts(samples.Forbidden()))
    assert not any(common in text for text in texts(samples.Forbidden(texts=(common,))))


def learned(row, length):
    """(the text before it, its text) of each learned stretch in 20 rows, except a row's last one, which may be cut."""
    chat = Chat(ROOT / "starter")
    for i in range(20):
        world = samples.World(random.Random(f"{row} {i}"), samples.vocabulary_pieces(chat), samples.Forbidden())
        ids, mask = samples.sample(world, chat, length, row=row)
        assert "<hints>" not in chat.decode(ids)
        edges = [n for n in range(1, length) if mask[n] != mask[n - 1]]
        for start, end in zip(edges[::2], edges[1::2]):
            yield chat.decode(ids[:start]), chat.decode(ids[start:end])


def test_rows_without_hints_teach_only_values_that_stand_behind_their_names():
    values = 0
    for before, value in learned("bare", 512):
        name = re.search(r'(\w+) = "$', before)[1]
        assert value.endswith('"\n') and re.search(rf'\b{name} "?{re.escape(value[:-2])}', before), (name, value)
        values += 1
    assert values > 60


def test_rows_of_recurring_questions_teach_what_was_done_before():
    actions = [(before, action) for before, action in learned("shown", 768)
               if before.endswith(("<python>\n", "<inner_monologue>\n"))]
    assert len(actions) > 40
    for before, action in actions:
        for line in action.splitlines():
            assert f"\n{line}\n" in before or re.match(r'\w+ = ".*"$', line) or line.startswith("</"), line


def test_rows_about_known_recipes_teach_the_same_in_all_of_them(monkeypatch):
    monkeypatch.setattr(samples, "KNOWN", 1)
    actions = [[line for line in action.splitlines() if not re.match(r'\w+ = ".*"$', line)]
               for before, action in learned("known", 768)
               if before.endswith("<python>\n") and before.count("Step 1: reason") == before.count("Step 1: write")]
    first = {tuple(lines) for lines in actions[:len(actions) // 2]}
    assert len(actions) > 40 and len(first) <= 3 and {tuple(lines) for lines in actions} == first


def test_a_grown_model_computes_the_same_before_it_is_trained():
    shape = dict(vocab_size=50, hidden_size=32, intermediate_size=64, num_attention_heads=2)
    small, grown = (Llama(Config(**shape, num_hidden_layers=n)) for n in (3, 5))
    weights = {f"model.{name}": weight for name, weight in small.state_dict().items()}
    grown.load_state_dict({name.removeprefix("model."): weight for name, weight in pretrain.grown(weights, 5).items()})
    tokens = torch.arange(20)[None]
    assert torch.equal(grown.hidden(tokens), small.hidden(tokens))
    assert torch.equal(grown.layers[4].mlp.up_proj.weight, small.layers[2].mlp.up_proj.weight)
    assert pretrain.grown(weights, 3).keys() == weights.keys()
