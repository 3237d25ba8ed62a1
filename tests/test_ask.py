"""collect.py --ask: one question, watched live."""

from common import ROOT

import io
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

import collect as collect_py
from agent.chat import Chat
from agent.play import is_right
from agent.responses import before_stop
from desk.ask import stream


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    subprocess.run([sys.executable, ROOT / "tools/starter_world.py", "--out", folder], check=True, cwd=ROOT)
    return folder


@pytest.fixture
def collect(world, monkeypatch, capsys):
    """collect(…, typed=…) → what collect.py prints."""
    def run(*arguments, typed=""):
        command = ["collect.py", "--model", ROOT / "starter", "--data", world / "world", "--temperature", "0.1",
                   "--max-steps", "4", *arguments]
        monkeypatch.setattr(sys, "argv", list(map(str, command)))
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        collect_py.main()
        return capsys.readouterr().out
    return run


def test_what_is_watched_is_what_collect_plays(world, collect, tmp_path):
    task = next(t for t in map(json.loads, open(world / "train.jsonl")) if t["template"] == "opening price")
    (tmp_path / "tasks.jsonl").write_text(json.dumps(task | {"id": "ask-0"}))
    hints = ["--hints", "task"]
    collect(*hints, "--tasks", tmp_path / "tasks.jsonl", "--trials", 1, "--out", tmp_path / "played.jsonl")
    played = json.loads((tmp_path / "played.jsonl").read_text())
    shown = collect(*hints, "--ask", task["question"], "--group", task["group"], "--template", task["template"],
                    "--out", tmp_path / "asked.jsonl")
    asked = json.loads((tmp_path / "asked.jsonl").read_text())
    assert played["success"] and asked["steps"] == played["steps"] and asked["answer"] == played["answer"]

    at = 0
    for n, step in enumerate(asked["steps"], 1):
        printed = [f"→ {step['observation'].rstrip()}"] if step["observation"] else []
        for part in (f"--- {n}\n", step["monologue"], step["code"], *printed):
            at = shown.index(part, at) + len(part)
    assert f"answer: {task['answer']!r} ({asked['usage']['input_tokens']} tokens read" in shown[at:]
    assert "</" not in shown


def test_questions_are_read_until_the_input_ends(collect, tmp_path):
    shown = collect("--max-new-tokens", 5, "--ask", "--out", tmp_path / "asked.jsonl", typed="Who?\n\nWhere?\n")
    asked = [json.loads(line) for line in open(tmp_path / "asked.jsonl")]
    assert [(t["id"], t["task"]["question"]) for t in asked] == [("ask-0#0", "Who?"), ("ask-1#0", "Where?")]
    assert shown.count("no answer, it ended by length") == 2
    assert not any(is_right("", t["task"]["answer"]) for t in asked)      # nobody knows the right answer
    collect("--max-new-tokens", 5, "--ask", "When?", "--out", tmp_path / "asked.jsonl")
    assert json.loads(open(tmp_path / "asked.jsonl").readlines()[2])["id"] == "ask-2#0"


def test_without_its_group_a_question_has_no_hints_for_its_task(collect, tmp_path):
    (tmp_path / "coffee.md").write_text("## tools: a table\nload_db()\n")
    with pytest.raises(ValueError, match="--hints task: --group says"):
        collect("--hints", "task", "--hint-dir", tmp_path, "--ask", "Who?")


def test_the_control_token_that_ends_a_turn_is_not_shown(monkeypatch):
    chat, shown = Chat(ROOT / "starter"), []
    ids = chat.encode_template("I look it up.<|end|>")
    assert ids[-1] in chat.ends

    class Engine:
        def add(self, request):
            self.request = request

        def step(self):
            for n in range(1, len(ids) + 1):
                self.request.stop(ids[:n])
            self.request.new_ids, self.request.ended = ids, "stop"
            return [self.request]
    agent = SimpleNamespace(chat=chat, engine=Engine(), request=lambda key, prompt, **how: SimpleNamespace(**how))
    stream(SimpleNamespace(tag="inner_monologue", prompt=[], seed=0), agent, shown.append)
    assert "".join(shown) == "I look it up.\n"


@pytest.mark.parametrize("columns", [100, 80])
def test_two_agents_side_by_side_play_what_each_plays_alone(world, tmp_path, columns, monkeypatch, capsys):
    """In two columns, or one under the other in a narrow terminal."""
    def asked(name, *arguments):
        out = tmp_path / f"{name}.jsonl"
        command = ["collect.py", "--model", ROOT / "starter", "--data", world / "world", "--temperature", 0.1,
                   "--max-new-tokens", 9, "--ask", "Who?", *arguments, "--out", out]
        monkeypatch.setattr(sys, "argv", list(map(str, command)))
        collect_py.main()
        return [json.loads(line) for line in open(out)], capsys.readouterr().out

    monkeypatch.setenv("COLUMNS", str(columns))
    hints = ["--hints", "combined", "--kinds", "tools"]
    both, shown = asked("both", *hints, "--beside", "--hints none")
    alone = [asked("hints", *hints), asked("none")]
    for n, (together, ([single], _)) in enumerate(zip(both, alone)):
        together["usage"]["seconds"] = single["usage"]["seconds"] = 0
        assert together == single | {"id": f"ask-0#{n}"}
    assert both[0]["hints"] and not both[1]["hints"]
    lines, names = shown.splitlines(), [f"{ROOT / 'starter'}, hints: {kind}" for kind in ("combined", "none")]
    if columns == 100:
        assert all("│" in line or "┼" in line for line in lines) and max(map(len, lines)) <= columns
        assert any(line.count("--- 1") == 2 for line in lines)
    else:
        assert [line for line in lines if line.startswith("===")] == [f"=== {name}" for name in names]
        assert "".join(text for _, text in alone).splitlines() == [
            line for line in lines if line and not line.startswith("===")]


@pytest.mark.parametrize("arguments, says", [
    (["--ask", "Who?", "--tasks", "t.jsonl"], "--ask needs --model, and takes no --tasks"),
    (["--group", "coffee", "--tasks", "t.jsonl", "--out", "o.jsonl"], "--group, --template and --beside need --ask"),
    (["--beside", "--seed 1", "--tasks", "t.jsonl", "--out", "o.jsonl"], "--group, --template and --beside need --ask"),
    (["--ask", "Who?", "--beside", "--no-such-option 1"], "unrecognized arguments: --no-such-option"),
    (["--ask", "Who?", "--beside", "--adapter '"], "--beside: No closing quotation")])
def test_what_does_not_go_together_is_refused(arguments, says, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["collect.py", "--model", str(ROOT / "starter"), *arguments])
    with pytest.raises(SystemExit) as refused:
        collect_py.main()
    assert refused.value.code == 2 and says in capsys.readouterr().err


@pytest.mark.parametrize("text, shown", [
    ("a < b", "a < b"), ("a <", "a "), ("a </pyth", "a "), ("a </python> b", "a "), ("</p> x", "</p> x")])
def test_the_closing_tag_is_never_shown(text, shown):
    assert before_stop(text, ["</python>"])[0] == shown
