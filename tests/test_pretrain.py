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
from starter import pretrain
from tools import starter_world, toolqa


@pytest.fixture(scope="module")
def stream():
    """A part of the training stream as text, without agent/protocol.py's wording."""
    chat, forbidden, texts = Chat(ROOT / "starter"), pretrain.evaluated(), []
    for length, n in ((128, 64), (256, 64), (512, 192), (768, 96)):
        ids, _ = pretrain.batch(chat, f"test {length}", length, n, forbidden)
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
    tools = [name for name, f in inspect.getmembers(toolqa, inspect.isfunction) if not name.startswith("_") and f.__module__ == toolqa.__name__]
    tables = [name for name, in world.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name LIKE '%/%'")]
    columns = [row[1] for table in tables if table.startswith("db/") for row in world.execute(f'PRAGMA table_info("{table}")')]
    return tools, [t.split("/")[1] for t in tables], columns


def test_no_tool_table_or_column_name_is_in_the_stream(stream, world):
    tools, tables, columns = names(world)
    assert len(tools) == 8 and len(tables) >= 6 and len(columns) >= 25
    words = set(re.findall(r"\w+", stream))
    found = set(tools + tables + columns) & words
    assert not found


def test_no_wording_of_a_question_and_no_line_of_a_recipe_is_in_the_stream(stream):
    wordings = [line for group in starter_world.GROUPS.values() for f in group for line in inspect.getdoc(f).splitlines() if line.strip()]
    stretches = {" ".join(part.split()) for line in wordings for part in re.split(r"\{.*?\}|[?\"]", line) if len(part.split()) >= 2}
    assert len(wordings) >= 108 and len(stretches) > 100
    stream_lower = stream.lower()
    assert not [s for s in stretches if re.search(rf"\b{re.escape(s.lower())}\b", stream_lower)]
    lines = {line.strip() for s in load_hints(ROOT / "hints" / "starter" / "round1") for line in s["text"].splitlines()}
    lines = {re.sub(r"^Step \d: ", "", line) for line in lines if not re.fullmatch(r'\w+ = "\.\.\."', line)}
    recipes = [line for line in lines if re.search(r"\w{3}", line)]
    assert len(recipes) > 200
    assert not [line for line in recipes if f"\n{line}\n" in stream or f": {line}\n" in stream]


def test_the_stream_is_the_same_again_for_the_same_seed():
    chat = Chat(ROOT / "starter")
    first, second = (pretrain.batch(chat, "7 3", 256, 4, pretrain.Forbidden()) for _ in range(2))
    assert (first[0] == second[0]).all() and (first[1] == second[1]).all()


def test_forbidden_names_are_never_drawn_and_rows_with_forbidden_texts_are_drawn_again():
    chat = Chat(ROOT / "starter")
    pieces = pretrain.vocabulary_pieces(chat)
    w = pretrain.World(random.Random(0), pieces, pretrain.Forbidden(frozenset(pieces)))
    assert not {w.word() for _ in range(3000)} & set(pieces)
    common = "print("
    assert any(common in chat.decode(row.tolist()) for row in pretrain.batch(chat, "a", 256, 16, pretrain.Forbidden())[0])
    assert not any(common in chat.decode(row.tolist()) for row in pretrain.batch(chat, "a", 256, 16, pretrain.Forbidden(texts=(common,)))[0])


def learned(row, length):
    """Of 20 rows of a kind, each stretch of tokens that is to be learned: (the text before it, its text). The last of a row may be cut and is left out."""
    chat = Chat(ROOT / "starter")
    for i in range(20):
        world = pretrain.World(random.Random(f"{row} {i}"), pretrain.vocabulary_pieces(chat), pretrain.Forbidden())
        ids, mask = pretrain.sample(world, chat, length, row=row)
        assert "<hints>" not in chat.decode(ids)
        edges = [n for n in range(1, length) if mask[n] != mask[n - 1]]
        for start, end in zip(edges[::2], edges[1::2]):
            yield chat.decode(ids[:start]), chat.decode(ids[start:end])


def test_rows_without_hints_teach_nothing_but_values_that_stand_behind_their_names():
    values = 0
    for before, value in learned("bare", 512):
        name = re.search(r'(\w+) = "$', before)[1]
        assert value.endswith('"\n') and re.search(rf'\b{name} "?{re.escape(value[:-2])}', before), (name, value)
        values += 1
    assert values > 60


def test_rows_of_questions_that_come_again_teach_what_was_done_before():
    actions = [(before, action) for before, action in learned("shown", 768) if before.endswith(("<python>\n", "<inner_monologue>\n"))]
    assert len(actions) > 40
    for before, action in actions:
        for line in action.splitlines():
            assert f"\n{line}\n" in before or re.match(r'\w+ = ".*"$', line) or line.startswith("</"), line


def test_rows_about_known_recipes_teach_the_same_in_all_of_them(monkeypatch):
    monkeypatch.setattr(pretrain, "KNOWN", 1)
    actions = [[line for line in action.splitlines() if not re.match(r'\w+ = ".*"$', line)] for before, action in learned("known", 768)
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
