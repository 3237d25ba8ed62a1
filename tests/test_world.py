"""The starter world, its hints and the tools, against plain Python over the same data.

    python -m pytest tests/test_world.py
"""

from common import ROOT

import copy
import json
import operator
import os
import random
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from recipes import find_values, follow, read_hints, read_recipes
from tools import starter_world, toolqa
from tools.sandbox import World as Sandboxes

SPLITS = {"train": 360, "val": 60, "test": 180, "train-unseen": 360, "test-unseen": 180, "train2": 432, "train3": 360}
HINTS = ROOT / "hints" / "starter" / "round1"


def build(out, seed=0, **environment):
    command = [sys.executable, ROOT / "tools" / "starter_world.py", "--out", out, "--seed", str(seed)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)


def read_tasks(directory):
    return {split: [json.loads(line) for line in (directory / f"{split}.jsonl").read_text().splitlines()]
            for split in SPLITS}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    out = tmp_path_factory.mktemp("starter")
    result = build(out)
    assert result.returncode == 0, result.stderr
    toolqa._open(str(out / "world"))
    return out


@pytest.fixture(scope="module")
def tasks(built):
    return read_tasks(built)


@pytest.fixture(scope="module")
def data():
    return starter_world.World(0)


# ---- tasks ----

def test_the_splits_have_their_sizes_and_cover_all_templates(tasks):
    assert {split: len(records) for split, records in tasks.items()} == SPLITS
    templates = {(task["group"], task["template"]) for task in tasks["train"]}
    assert len(templates) == 36 == len({template for _, template in templates})
    assert all(sum(group == g for g, _ in templates) == 6 for group in starter_world.GROUPS)
    for split in ("train", "val", "test", "train2", "train3"):
        assert {(task["group"], task["template"]) for task in tasks[split]} == templates


def test_records_have_the_fields_of_the_design_as_strings(tasks):
    for task in sum(tasks.values(), []):
        assert list(task) == ["id", "group", "template", "question", "answer"]
        assert all(isinstance(value, str) and value.strip() == value != "" for value in task.values())


def test_no_id_and_no_question_occurs_twice_in_or_across_splits(tasks):
    everything = sum(tasks.values(), [])
    assert len({task["id"] for task in everything}) == len(everything)
    assert len({task["question"] for task in everything}) == len(everything)


def test_no_test_question_is_asked_in_training_in_other_words(tasks):
    def asked(split):
        return {(task["template"], *sorted(v for _, v in find_values(task["question"])[1])) for task in tasks[split]}
    before = set().union(*map(asked, ("train", "val", "train-unseen", "train2", "train3")))
    assert not asked("test") & before
    assert not asked("val") & asked("train")


def test_two_templates_of_each_group_are_only_in_test_unseen(tasks):
    unseen = {(task["group"], task["template"]) for task in tasks["test-unseen"]}
    seen = {(task["group"], task["template"]) for task in tasks["train-unseen"]}
    assert not unseen & seen and len(unseen | seen) == 36
    assert all(sum(g == group for g, _ in unseen) == 2 for group in starter_world.GROUPS)


def test_every_template_is_asked_in_three_wordings(tasks):
    for split in ("train", "test"):
        wordings = {}
        for task in tasks[split]:
            question = task["question"]
            for _, value in sorted(find_values(question)[1], key=lambda v: -len(v[1])):
                question = question.replace(value, "_")
            wordings.setdefault(task["template"], set()).add(question)
        assert {len(found) for found in wordings.values()} == {3}, wordings


def test_values_in_questions_can_be_told_from_words(tasks):
    for task in sum(tasks.values(), []):
        tokens, found = find_values(task["question"])
        rest = task["question"].split(" ", 1)[1]
        for _, value in found:
            rest = rest.replace(value, "", 1)
            assert 1 <= len(value.split()) <= 5 and value[-1].isalnum() and "\\" not in value
        assert found[0][0] > 0 and not re.search(r"[A-Z0-9]", rest), task["question"]
        assert len(task["question"]) <= 110, task["question"]


def test_no_answer_of_a_template_is_the_answer_of_half_its_tasks(tasks):
    """Guessing a template's most frequent answer must not pay."""
    answers = {}
    for task in sum(tasks.values(), []):
        answers.setdefault(task["template"], []).append(task["answer"])
    for template, given in answers.items():
        assert max(map(given.count, given)) < len(given) / 2, template


def dump(file):
    return list(sqlite3.connect(file).iterdump())


def test_the_same_seed_gives_the_same_world_and_another_seed_another(built, tmp_path):
    assert build(tmp_path / "again", PYTHONHASHSEED="7").returncode == 0
    assert build(tmp_path / "other", seed=1).returncode == 0
    for split in SPLITS:
        text = (built / f"{split}.jsonl").read_text()
        assert (tmp_path / "again" / f"{split}.jsonl").read_text() == text
        assert (tmp_path / "other" / f"{split}.jsonl").read_text() != text
    world = Path("world") / "world.sqlite"
    assert dump(built / world) == dump(tmp_path / "again" / world) != dump(tmp_path / "other" / world)


def test_a_directory_that_cannot_be_written_ends_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    result = build(tmp_path / "file" / "out")
    assert result.returncode == 2 and result.stderr.count("\n") == 1 and "file" in result.stderr


# ---- hints ----

def test_every_group_has_tools_and_every_template_a_recipe_of_the_agreed_form(tasks):
    hints = read_hints(HINTS)
    assert set(hints) == set(starter_world.GROUPS)
    for group, sections in hints.items():
        kinds = [heading.split(": ")[0] for heading in sections]
        assert kinds.count("tools") == 1 and kinds[0] == "tools" and len(sections["tools: " + group]) <= 8
        practices = {heading.removeprefix("practice: ") for heading in list(sections)[1:]}
        assert practices == {task["template"] for task in tasks["train"] if task["group"] == group}
        for practice in practices:
            assert sections[f"practice: {practice}"][0] == f"for: {practice}"
    thoughts = []
    for template, steps in read_recipes(HINTS).items():
        assert 2 <= len(steps) <= 4 and "complete_task(" in steps[-1][1]
        thoughts.append(steps[0][0])
        for thought, code in steps:
            lines = code.splitlines()
            assert re.fullmatch(r"[a-z]+:?( [a-z]+){2,7}", thought), thought
            assert len(lines) <= 8 and all(len(line) <= 70 and line.isascii() for line in lines), template
            slots = [re.fullmatch(r'[a-z]+ = "\.\.\."', line) is not None for line in lines]
            assert slots == sorted(slots, reverse=True) and code.count('"..."') == sum(slots), template
    assert len(set(thoughts)) == 36


def test_every_recipe_gives_the_answer_in_each_wording(built, tasks):
    everything = tasks["test"] + tasks["train-unseen"] + tasks["test-unseen"]
    with Sandboxes(tools=ROOT / "tools" / "toolqa.py", data=built / "world") as world:
        for template, recipe in read_recipes(HINTS).items():
            with world.start() as box:
                for wording in range(3):
                    asked = [t for t in everything if t["template"] == template and int(t["id"][-4:]) % 3 == wording]
                    assert len(asked) >= 3
                    for task in asked[:3]:
                        assert follow(recipe, task["question"], box.run)[1] == task["answer"], task


# ---- tools ----

COMPARE = {"=": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt,
           ">=": operator.ge}


@pytest.mark.parametrize("name", ["coffee", "flights", "airports", "listings", "businesses"])
def test_data_filter_and_get_value_agree_with_plain_python(built, data, name):
    rows, rng = getattr(data, name), random.Random(name)
    table = toolqa.load_db(name)
    assert len(table) == len(rows) and list(table) == rows and table.columns == list(rows[0])
    for _ in range(60):
        conditions = [(column, rng.choice(list(COMPARE)), rng.choice(rows)[column])
                      for column in rng.sample(table.columns, rng.randint(1, 3))]
        expected = [row for row in rows if all(COMPARE[c](row[column], value) for column, c, value in conditions)]
        found = toolqa.data_filter(table, ", ".join(f"{column}{c}{value}" for column, c, value in conditions))
        assert list(found) == expected and len(found) == len(expected)
        column = rng.choice(table.columns)
        assert found[column] == [row[column] for row in expected]
        if expected:
            assert toolqa.get_value(found, column) == ", ".join(str(row[column]) for row in expected)


def test_tables_are_indexed_and_sliced_like_lists(built, data):
    table = copy.copy(toolqa.load_db("coffee"))
    for key in (0, 5, -1, slice(3), slice(2, 9), slice(-3, None), slice(9, 2), slice(0, 20, 3), slice(None, None, -1)):
        assert table[key] == data.coffee[key], key
    assert "coffee" in repr(table) and "Volume" in repr(table)
    empty = toolqa.data_filter(table, "Date=1999-01-01")
    assert len(empty) == 0 and list(empty) == [] == empty["Open"] and not empty


@pytest.mark.parametrize("name", ["AuthorNet", "PaperNet"])
def test_graph_tools_agree_with_plain_python(built, data, name):
    nodes, edges = {"AuthorNet": (data.authors, data.together), "PaperNet": (data.papers, data.citations)}[name]
    graph = toolqa.load_graph(name)
    linked = {node: set() for node in nodes}
    for (a, b), attributes in edges.items():
        linked[a].add(b)
        linked[b].add(a)
        assert toolqa.check_edges(graph, a, b) == attributes == toolqa.check_edges(graph, b, a)
    for node, attributes in nodes.items():
        assert toolqa.check_nodes(graph, node) == attributes
        assert toolqa.check_neighbours(graph, node) == sorted(linked[node])


def test_retrieve_agenda_gives_the_texts_with_all_words(built, data):
    rng = random.Random(0)
    for _ in range(100):
        entry = rng.choice(data.entries)
        words = [entry[key] for key in rng.sample(["titled", "by", "on", "at", "guest"], 2)]
        tokens = " ".join(words).lower().split()
        expected = [text for text in data.agenda if set(tokens) <= set(re.findall(r"[\w-]+", text.lower()))]
        found = toolqa.retrieve_agenda(" ".join(words)).splitlines()
        assert set(found) <= set(expected) and len(found) == len(set(found)) == min(10, len(expected))
    entry = data.entries[0]
    closest = toolqa.retrieve_agenda(f'{entry["by"]} {entry["titled"]} {entry["on"]} nonsense').splitlines()
    assert closest[0] == data.agenda[0] and len(closest) == 3


@pytest.fixture
def odd(built, tmp_path):
    """A world of odd names and cells; afterwards the starter's is open again."""
    rows = [{"NAME": 'Bright, "quiet" flat', "room type": "a=b", "code": "04103", "size": 4, "note": None},
            {"NAME": "Loft 100% sunny", "room type": "x", "code": "4103", "size": 4.5, "note": "n/a"},
            {"NAME": "5", "room type": "it's", "code": "9", "size": 10, "note": "7"}]
    rows += [{"NAME": name, "room type": "y", "code": "8", "size": size, "note": "a"}
             for name, size in (('"Cosy"', 7), ("Cosy", 8))]
    toolqa._write_world(tmp_path / "world.sqlite", {"odd one": rows}, {"G": ({"a": {}, "b'": {"x": [1]}}, {})}, [])
    toolqa._open(tmp_path)
    yield toolqa.load_db("odd one")
    toolqa._open(str(built / "world"))


@pytest.mark.parametrize("conditions, sizes", [
    ('NAME=Bright, "quiet" flat', [4]), ('NAME=Bright, "quiet" flat, size>=4', [4]), ("room type=a=b", [4]),
    ("code=04103", [4]), ("code=4103", [4.5]), ("size=4.0", [4]), ("size == 4", [4]), ("size>4", [4.5, 10, 7, 8]),
    ("size<10", [4, 4.5, 7, 8]), ("size!=4", [4.5, 10, 7, 8]), ("size>=4, size<=4.5", [4, 4.5]), ("NAME=5", [10]),
    ("room type=it's", [10]), ("note=n/a", [4.5]), ("note>m", [4.5]), ("size>=abc", []),
    ("NAME = Loft 100% sunny", [4.5]), ("NAME='Loft 100% sunny'", [4.5]), ('size>="4.5", code=\'4103\'', [4.5]),
    ("NAME='Bright, \"quiet\" flat', size=4", [4]), ('NAME="Cosy"', [7]), ("NAME='Cosy'", [8]), ("NAME=Cosy", [8]),
])
def test_conditions_are_read_as_meant(odd, conditions, sizes):
    assert toolqa.data_filter(odd, conditions)["size"] == sizes


def test_filters_can_be_filtered_again_and_missing_cells_are_empty_text(odd):
    assert toolqa.data_filter(toolqa.data_filter(odd, "size>4"), "size<5")["code"] == ["4103"]
    assert toolqa.get_value(odd, "note") == ", n/a, 7, a, a"
    assert [toolqa.get_value(row, "note") for row in odd[:3]] == ["", "n/a", "7"]
    assert toolqa.check_nodes(toolqa.load_graph("G"), "b'") == {"x": [1]}
    with pytest.raises(ValueError, match="no agenda"):
        toolqa.retrieve_agenda("anything")


ERRORS = [
    ('load_db("cofee")', 'there is no table "cofee"; did you mean "coffee"?'),
    ('load_db("cofee")', 'did you mean "coffee"? There are: coffee, flights'),
    ('load_db("zzz")', "there are: coffee, flights"),
    ("load_db(3)", 'there is no table "3"'),
    ('load_graph("authornet")', 'did you mean "AuthorNet"?'),
    ('load_graph("x")', "there are: AuthorNet, PaperNet"),
    ('data_filter("coffee", "Open>3")',
     "data_filter needs what load_db or data_filter returned as its first argument, not str"),
    ('data_filter(load_db("coffee"), "open>3")', 'there is no column of coffee "open"; did you mean "Open"'),
    ('data_filter(load_db("coffee"), "Open>3, Volum<9")',
     'there is no column of coffee "Volum"; did you mean "Volume"?'),
    ('data_filter(load_db("coffee"), "Date>=2013")',
     'cannot compare Date with 2013; its values are texts such as "20'),
    ('data_filter(load_db("coffee"), "Opens=1")',
     'did you mean "Open"? There are: Date, Open, High, Low, Close, Volume'),
    ('data_filter("coffee", "Open>3")', "not str; write first table = load_db(name) with one of the names coffee, "),
    ('check_nodes("AuthorNet", "x")', "write first graph = load_graph(name) with one of the names AuthorNet, PaperNet"),
    ('data_filter(load_db("coffee"), {"Open": 3})', 'conditions as a text, one or several with commas between; '
     'write data_filter(table, "Date=DATE")'),
    ('data_filter(load_db("coffee"), "Open 3")', 'with one of = != < <= > >=, such as "Date=DATE"'),
    ('data_filter(load_db("coffee"), "Date={day}, Open>3")',
     '"Date={day}" is meant as an f-string; write f"Date={day}", with an f before it'),
    ('load_db("coffee")[load_db("coffee")["Date"] == "2015-01-02"]',
     'a comparison in brackets does not filter a table; write data_filter(table, "Date=DATE")'),
    ('load_db("coffee").head()', 'a table has no .head; len(table) counts its rows, table[:5] gives the first five, '
     'table["Date"] a column, data_filter(table, "Date=DATE") what fits'),
    ('data_filter(load_db("coffee"), "qqq=1")', "there are: Date, Open, High, Low, Close, Volume"),
    ('data_filter(load_db("coffee"), "Open 3")', 'cannot read the condition "Open 3"; write Column=value'),
    ('data_filter(load_db("coffee"), "")', "needs its conditions as a text"),
    ('data_filter(load_db("coffee"), None)', "needs its conditions as a text"),
    ('get_value(load_db("coffee"), "Closed")', 'did you mean "Close"?'),
    ('get_value([1], "Close")', "get_value needs what load_db or data_filter returned as its first argument, not list"),
    ('get_value(data_filter(load_db("coffee"), "Date=2015-02-01"), "Low")',
     'no row of coffee has Date=2015-02-01; did you mean'),
    ('get_value(data_filter(load_db("coffee"), "Open<1, Low>3"), "Low")', "no row of coffee has Open<1, Low>3"),
    ('get_value(data_filter(load_db("flights"), "Airline=Lantern Airr"), "Dest")', 'did you mean "Lantern Air"?'),
    ('load_db("coffee")["Volumes"]', 'did you mean "Volume"?'),
    ('load_db("coffee")[99999]', "there is no row 99999: the table has 2610 rows"),
    ('check_nodes("AuthorNet", "x")', "check_nodes needs what load_graph returned as its first argument, not str"),
    ('check_neighbours(load_db("coffee"), "x")', "check_neighbours needs what load_graph returned"),
    ('check_nodes(load_graph("AuthorNet"), AUTHOR + "x")', "did you mean AUTHOR"),
    ('check_neighbours(load_graph("AuthorNet"), "?")', "nodes are named by their full name or title"),
    ('check_edges(load_graph("AuthorNet"), AUTHOR, AUTHOR)',
     "there is no edge between AUTHOR and AUTHOR; check_neighbours("),
    ('retrieve_agenda(7)', "retrieve_agenda needs a text, not int"),
    ('retrieve_agenda(" ?! ")', "the query has no words"),
    ('retrieve_agenda("qwxyz")', 'no text of the agenda has any of the words "qwxyz"; try others'),
]


@pytest.mark.parametrize("call, message", ERRORS)
def test_errors_tell_what_to_do(built, data, call, message):
    names = vars(toolqa) | {"AUTHOR": list(data.authors)[3]}
    with pytest.raises((ValueError, TypeError, IndexError, AttributeError)) as raised:
        eval(call, names)
    message = message.replace("DATE", data.coffee[0]["Date"])
    assert message.replace("AUTHOR", f'"{names["AUTHOR"]}"') in str(raised.value) and "\n" not in str(raised.value)


def test_a_missing_world_is_named_with_its_remedy(built, tmp_path):
    with pytest.raises(FileNotFoundError, match="world.sqlite: no such file; build the world first"):
        toolqa._open(tmp_path)
    (tmp_path / "world.sqlite").write_text("no database at all" * 99)
    with pytest.raises(ValueError, match="world.sqlite: not a world, or of an earlier version .*; build it again"):
        toolqa._open(tmp_path)
    (tmp_path / "world.sqlite").unlink()
    toolqa._write_world(tmp_path / "world.sqlite", {}, {"G": ({"a": {}}, {})}, [])
    with closing(sqlite3.connect(tmp_path / "world.sqlite")) as db:
        db.execute('ALTER TABLE "nodes/G" DROP COLUMN neighbours')
    with pytest.raises(ValueError, match="or of an earlier version .*neighbours.*; build it again"):
        toolqa._open(tmp_path)
    toolqa._open(str(built / "world"))


def test_the_world_cannot_be_written_and_serves_forked_processes(built, data):
    toolqa._open(str(built / "world"))
    with pytest.raises(sqlite3.OperationalError):
        toolqa._db().execute('DELETE FROM "db/coffee"')
    parent = toolqa._db()
    child = os.fork()
    if child == 0:
        os._exit(0 if toolqa._db() is not parent and len(toolqa.load_db("coffee")) == len(data.coffee) else 1)
    assert os.waitpid(child, 0)[1] == 0 and toolqa._db() is parent


def test_every_tool_documents_its_arguments_its_result_and_an_example():
    tools = [f for name, f in vars(toolqa).items() if callable(f) and getattr(f, "__module__", "") == toolqa.__name__
             and not name.startswith("_") and not isinstance(f, type)]
    assert [f.__name__ for f in tools] == ["load_db", "data_filter", "get_value", "load_graph", "check_neighbours",
                                           "check_nodes", "check_edges", "retrieve_agenda"]
    for tool in tools:
        arguments = tool.__code__.co_varnames[: tool.__code__.co_argcount]
        assert all(re.search(rf"^    [\w, ]*\b{a}\b[\w, ]*: ", tool.__doc__, re.M) for a in arguments)
        assert "Returns" in tool.__doc__ and f"{tool.__name__}(" in tool.__doc__.split("Example: ")[1]
