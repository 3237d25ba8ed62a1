"""Every worked example in hints/toolqa and toolqa-qwen solves tasks of its kind, with their arguments in the place of
its own.

The tasks are the rehearsal's, whose answers test_rehearsal.py checks.
"""

from common import ROOT

import re
import textwrap

import pytest

import review
from agent.hints import load_hints
from test_rehearsal import CODE, NUMBER, TEMPLATES, agenda_answer, alternatives, arguments_of, fitted, told_in
from tools import import_toolqa, rehearse_toolqa
from tools.rehearsal import agenda
from tools.sandbox import World

FOLDERS = "toolqa", "toolqa-qwen"                       # the paper's hints, and a small model's, in one step
EXAMPLES = {folder: {template: s for s in load_hints(ROOT / "hints" / folder / "round1") if s["kind"] == "example"
                     for template in s["templates"]} for folder in FOLDERS}
MISTAKES = {folder: [m for round in ("round2", "round3") for m in review.load_mistakes(ROOT / "hints" / folder / round)
                     if not m.judge] for folder in FOLDERS}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The rehearsal's tasks, and the sandbox with the tools over its corpora."""
    folder = tmp_path_factory.mktemp("toolqa")
    tasks = rehearse_toolqa.rehearse(folder / "rehearsal", seed=1, scale=0.002)
    with World(ROOT / "tools" / "toolqa.py", folder / "rehearsal" / "world") as sandbox:
        yield tasks["train"], sandbox


def steps_of(example):
    """The code of a worked example, step by step: in the agent's tags, or indented below "Step 1: …"."""
    text = example["text"]
    steps = re.findall(r"<python>(.*?)</python>", text, flags=re.S) or re.split(r"^Step \d+: .*$", text, flags=re.M)[1:]
    return [textwrap.dedent(step.strip("\n")) for step in steps]


def play(sandbox, steps):
    """The steps as they ran, and the answer, which the last one gives; each of the others prints something."""
    played = []
    with sandbox.start() as box:
        for n, code in enumerate(steps):
            observation = box.run(code)
            assert (observation.completed is None) == (n + 1 < len(steps)), observation.text
            assert observation.completed or observation.text.strip(), "a step shows nothing"
            assert "Error" not in observation.text
            played.append({"code": code, "observation": observation.text})
    return played, observation.completed[1]


def mistakes(folder, task, played, answer):
    trajectory = {"id": task["template"], "task": task, "steps": played, "answer": answer, "stop": "complete"}
    return [m.name for m in MISTAKES[folder] if m.first_step(trajectory) is not None]


def adapted(code, example, task):
    """A step of an example with another task's arguments."""
    if task["group"] in ("coffee", "flights"):
        return adapted_by_column(code, example, task)
    ours, theirs = (fitted(TEMPLATES[task["template"]].wordings, question)
                    for question in (question_of(example), task["question"]))
    if task["group"] == "agenda":
        ours["day"], theirs["day"] = (agenda.in_words(some["day"].replace("/", "-")) for some in (ours, theirs))
    new = {value: theirs[name] for name, value in ours.items()}
    longest_first = "|".join(map(re.escape, sorted(new, key=len, reverse=True)))
    return re.sub(rf"(?<!\w)({longest_first})(?!\w)", lambda found: new[found[0]], code)


def adapted_by_column(code, example, task):
    """The same without conditions on columns that the task does not name."""
    about = arguments_of(task["question"])
    dates = zip(sorted(set(re.findall(r"\d{4}-\d\d-\d\d", "".join(steps_of(example))))), about.pop("Date", []))
    code = re.sub(r"\d{4}-\d\d-\d\d", lambda date, new=dict(dates): new.get(date[0], date[0]), code)
    if CODE in about:                                  # toolqa-qwen splits a flight into both in its code
        flight = about[CODE] + about[NUMBER]
        values = ", ".join(f'"{about.get(column)}"' for column in ("Origin", "Dest", "FlightDate"))
        code = re.sub(r"^flight = .*", f'flight = "{flight}"', code, flags=re.M)
        code = re.sub(r"^flight, origin, dest, day = .*", f'flight, origin, dest, day = "{flight}", {values}', code)
    if "Airline" in about:
        code = re.sub(r"^airline = .*", f'airline = "{about["Airline"]}"', code, flags=re.M)
    for column in (CODE, NUMBER, "Origin", "Dest", "FlightDate", "Airline", "DayOfWeek"):
        condition = rf"(?<![\w]){column}=(?!{{(?:flight|origin|dest|day|airline)\b).*?(?=, [A-Z]\w+[=<>]|\")"
        if column in about:
            code = re.sub(condition, f"{column}={about[column]}", code)
        else:
            code = re.sub(condition + "(, )?", "", code)
    if task["template"] != example["templates"][0]:    # the example is for several kinds, with the first one's column
        code = code.replace(*OTHER_COLUMN[task["template"]])
    return code


OTHER_COLUMN = {"coffee: lowest price": ("Open", "Low"), "coffee: highest price": ("Open", "High"),
                "coffee: closing price": ("Open", "Close"), "coffee: volume": ("Open", "Volume"),
                "flights: local arrival time": ("DepTime", "ArrTime"),
                "flights: CRS-recorded arrival time": ("DepTime", "CRSArrTime"),
                "flights: minutes taking to taxi in": ("AirTime", "TaxiIn")}


def question_of(example):
    return example["text"].partition("\n")[2].split("\n<")[0].strip()     # below the heading


@pytest.mark.parametrize("folder, template", [(folder, name) for folder in FOLDERS for name in EXAMPLES[folder]])
def test_a_worked_example_solves_tasks_of_its_kind(folder, template, world):
    tasks, sandbox = world
    tasks, example = [task for task in tasks if task["template"] == template], EXAMPLES[folder][template]
    assert len(tasks) >= (4 if template.startswith(("coffee", "flights")) else 2), template
    for task in tasks[:4 if folder == "toolqa" else 2]:             # the code of both is nearly the same
        steps = [adapted(code, example, task) for code in steps_of(example)]
        assert len(steps) == 1 if folder == "toolqa-qwen" and task["group"] != "agenda" else len(steps) >= 2
        played, answer = play(sandbox, steps)
        if task["group"] == "agenda":                  # an answer that is read follows from what was printed
            entries = told_in(played[0]["observation"])
            answer = agenda_answer(template.split(": ")[1], entries, fitted(TEMPLATES[template].wordings,
                                                                            task["question"]))
            answer = ", ".join(answer) if isinstance(answer, list) else answer
        assert answer in alternatives(task["answer"]), task["question"]
        assert not mistakes(folder, task, played, answer), "what a hint teaches is no mistake"


@pytest.mark.parametrize("folder", FOLDERS)
def test_there_is_an_example_for_every_template(folder):
    """All hundred of the paper's, group by group."""
    covered = [template.split(": ")[0] for template in EXAMPLES[folder]]
    assert {group: covered.count(group) for group in covered} == {
        "coffee": 21, "flights": 20, "airbnb": 17, "yelp": 20, "dblp": 15, "agenda": 7}
    assert EXAMPLES[folder].keys() == TEMPLATES.keys()
    dblp = {name for name in TEMPLATES if name.startswith("dblp: ")}
    assert dblp == {f"dblp: {name}" for name in import_toolqa.DBLP.values()}
