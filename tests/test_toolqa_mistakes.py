"""Every mistake in hints/toolqa/round2 and round3: a trajectory that has it is flagged at that step, and the same done
right is not."""

from common import ROOT

import re

import pytest

from agent.hints import load_hints
from desk import judge
from desk.mistakes import flag, load_mistakes

HINTS = ROOT / "hints" / "toolqa"
MISTAKES = {f"{folder}/{m.name}": m for folder in ("round2", "round3") for m in load_mistakes(HINTS / folder)}
ERROR = 'Traceback (most recent call last):\n  File "<python>", line 1, in <module>\nValueError: '


def played(template, *steps, question="", answer=None):
    """A trajectory of steps (code, what it printed); with an answer, its last step completes the task."""
    steps = [{"monologue": "", "code": code, "observation": printed, "hint": None, "token_ids": {}}
             for code, printed in steps]
    task = {"id": "t", "group": template.split(":")[0], "template": template, "question": question, "answer": ""}
    return {"id": "t#0", "task": task, "hints": [], "steps": steps, "report": "", "answer": answer or "",
            "success": False, "stop": "complete" if answer is not None else "max_steps"}


def answered(template, wrong, right):
    """A case of an answer's form: printed, then given as `wrong` or as `right`."""
    return [(1, played(template, ("print(x)", "4.25 1060 705.0"), ("complete_task('', x)", ""), answer=answer))
            for answer in (wrong, right)]


def written(template, wrong, right, **more):
    """A case of code alone: a step before that is all right, then the `wrong` or the `right` one."""
    return [(1, played(template, ("print(1)", "1"), (code, "2"), **more)) for code in (wrong, right)]


# For each mistake: (the step that has it, a trajectory), then the same with a trajectory that does it right.
TABLE, FILTER = ("print(t)", "<table>"), "row = data_filter(t, 'Date=2013-12-26')"
ADDRESS, NO_ADDRESS = "print(get_value(rows, 'address'))", ERROR + "no row of yelp has name=Snip"
MISSPELLED = ("print(rows['adress'])", ERROR + "there is no column")
AIRTIME = ("print(rows['AirTime'])", "[70.0, None]")
CASES = {
    "round2/nothing-printed": [
        (1, played("coffee: volume", TABLE, (FILTER, ""), ("print(row['Volume'])", "[7]"))),
        (1, played("coffee: volume", TABLE, (FILTER + "\nprint(row['Volume'])", "[7]"), ("complete_task('', '7')", ""),
                   answer="7"))],
    "round2/looked-up-and-completed": [
        (0, played("coffee: volume", (FILTER + "\ncomplete_task('', get_value(row, 'Volume'))", ""), answer="715")),
        (0, played("coffee: volume", (FILTER + "\nprint(row['Volume'])", "[715]"),
                   ("complete_task('', get_value(row, 'Volume'))", ""), answer="715"))],
    "round2/completed-on-an-error": [
        (1, played("yelp: address", (ADDRESS, NO_ADDRESS), ("complete_task('', 'unknown')", ""), answer="unknown")),
        (1, played("yelp: address", (ADDRESS, "1 Main St"), ("complete_task('', '1 Main St')", ""),
                   answer="1 Main St"))],
    "round2/same-call-again": [
        (1, played("yelp: address", MISSPELLED, MISSPELLED)),
        (1, played("yelp: address", MISSPELLED, ("print(rows['address'])", "['1 Main St']")))],
    "round2/date-in-another-form": written(
        "coffee: volume",
        'print(data_filter(t, "Date=2013/12/26")[0])',
        'print(data_filter(t, "Date=2013-12-26")[0])'),
    "round2/conditions-joined-by-and": written(
        "airbnb: host's name",
        'print(data_filter(t, "NAME=Bed and Bath AND neighbourhood=Bushwick")[0])',
        'print(data_filter(t, "NAME=Bed and Bath, neighbourhood=Bushwick")[0])'),
    "round2/arguments-swapped": written(
        "dblp: organization", 'print(check_nodes("A B", graph))', 'print(check_nodes(graph, "A B"))'),
    "round2/column-guessed": [
        (1, played("airbnb: price", TABLE,
                   ("print(t['Price'])", ERROR + 'there is no column of airbnb "Price"; did you mean "price"?'))),
        (1, played("airbnb: price", TABLE, ("print(t['price'])", "['$95 ']")))],
    "round2/flight-code-as-number": written(
        "flights: average flight time",
        'print(data_filter(t, "Flight_Number_Marketing_Airline=G41931"))',
        'print(data_filter(t, "IATA_Code_Marketing_Airline=G4, Flight_Number_Marketing_Airline=1931"))'),
    "round2/agenda-day-in-figures": written(
        "agenda: when",
        'print(retrieve_agenda("Ann 2022/05/21"))',
        'print(retrieve_agenda("Ann May 21, 2022 9:00 AM"))'),
    "round2/agenda-parsed": written(
        "agenda: when",
        "texts = retrieve_agenda('Ann opera')\nprint(re.search('from (.*) to', texts)[1])",
        "texts = retrieve_agenda('Ann opera')\nprint(texts)"),
    "round2/duplicates-kept": written(
        "dblp: papers write together",
        'print(len(check_edges(graph, "A B", "C D")["papers"]))',
        'print(len(set(check_edges(graph, "A B", "C D")["papers"])))'),
    "round2/percent-sign-missing": answered("flights: percentage", "0.0425", "4.2%"),
    "round3/name-never-printed": [
        (1, played("yelp: nearest business", ("print(len(others))", "31"),
                   ("complete_task('', min(others, key=far)['name'])", ""), answer="Elm Cafe")),
        (1, played("yelp: nearest business", ("nearest = min(others, key=far)\nprint(nearest['name'])", "Elm Cafe"),
                   ("complete_task('', nearest['name'])", ""), answer="Elm Cafe"))],
    "round3/money-in-another-form": answered("airbnb: price", "$1,060", "$1060"),
    "round3/not-one-decimal": answered("coffee: average coffee price", "4.25 USD", "4.2 USD"),
    "round3/not-two-decimals": answered("coffee: percentage change", "4.2%", "4.25%"),
    "round3/time-of-day": answered("flights: flight departure time", "07:05", "7:05"),
    "round3/prices-compared-as-texts": written(
        "airbnb: room with the lowest price",
        'print(min(homes, key=lambda row: row["price"])["NAME"])',
        'print(min(homes, key=lambda row: float(row["price"].strip(" $").replace(",", "")))["NAME"])'),
    "round3/empty-cells-in-a-sum": [
        (1, played("flights: average airtime", AIRTIME,
                   ("print(sum(rows['AirTime']))",
                    ERROR + "unsupported operand type(s) for +: 'float' and 'NoneType'"))),
        (1, played("flights: average airtime", AIRTIME,
                   ("print(sum(x for x in rows['AirTime'] if x is not None))", "70.0")))],
    "round3/period-without-its-ends": written(
        "coffee: average coffee price",
        'print(data_filter(t, "Date>2002-02-20, Date<2005-09-08"))',
        'print(data_filter(t, "Date>=2002-02-20, Date<=2005-09-08"))'),
    "round3/calendar-day-before": written(
        "coffee: percentage change comparison",
        'print(data_filter(t, "Date=2018-07-08")["Close"])',
        'print(data_filter(t, "Date<=2018-07-09")[-2:])', question="… on 2018-07-09?"),
    "round3/timetable-for-real-time": written(
        "flights: flight departure time", 'print(rows["CRSDepTime"])', 'print(rows["DepTime"])'),
    "round3/early-counted-as-delay": written(
        "flights: average delay time", 'print(rows["DepDelay"])', 'print(rows["DepDelayMinutes"])'),
    "round3/elapsed-for-airtime": written(
        "flights: flight duration", 'print(rows["ActualElapsedTime"])', 'print(rows["AirTime"])'),
    "round3/period-from-its-first-close": written(
        "coffee: coffee price change",
        'print(rows[-1]["Close"] - rows[0]["Close"])',
        'print(rows[-1]["Close"] - rows[0]["Open"])'),
    "round3/neighbours-for-citations": written(
        "dblp: how many papers",
        'print(len(check_neighbours(papers, "Title")))',
        'print(check_nodes(papers, "Title")["n_citation"])'),
    "round3/pages-one-too-few": written(
        "dblp: pages",
        'print(int(p["page_end"]) - int(p["page_start"]))',
        'print(int(p["page_end"]) - int(p["page_start"]) + 1)'),
    "round3/name-changed": written(
        "dblp: organization",
        'print(check_nodes(authors, "Jose M. Perez"))',
        'print(check_nodes(authors, "José M Perez"))', question="What organization is José M Perez from?"),
    "round3/agenda-in-other-words": [
        (1, played("agenda: where",
                   ("print(retrieve_agenda('Ann opera'))", "Ann is at the opera in the Old Met at 7:00 PM."),
                   ("complete_task('', answer)", ""), answer=answer))
        for answer in ("the Metropolitan Opera", "Old Met")],
}


def test_there_are_as_many_as_in_the_paper():
    assert [sum(name.startswith(folder) for name in MISTAKES) for folder in ("round2", "round3")] == [14, 18]
    assert MISTAKES.keys() == CASES.keys() | {name for name, m in MISTAKES.items() if m.judge}


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_flagged_at_its_step_and_the_right_way_is_not(name):
    (n, bad), (_, good) = CASES[name]
    assert MISTAKES[name].first_step(bad) == n
    assert MISTAKES[name].first_step(good) is None
    assert flag(bad, MISTAKES[name], n)["hint"]["text"] == MISTAKES[name].hint


@pytest.mark.parametrize("name, code", [
    ("round3/name-changed", 'print(data_filter(t, "name==Snip, city=\'Reno\'"))'),
    ("round3/prices-compared-as-texts", "print(max(dollars(home['price']) for home in homes))"),
    ("round3/prices-compared-as-texts", "print(min(float(price.strip(' $')) for price in homes['price'] if price))"),
    ("round3/prices-compared-as-texts", "print(sum(float(h['price'].strip(' $')) for h in homes if h['price']))"),
    ("round3/pages-one-too-few", 'print(1 + int(p["page_end"]) - int(p["page_start"]))'),
    ("round3/pages-one-too-few", 'n = int(p["page_end"]) - int(p["page_start"])\nprint(n + 1)'),
    ("round2/flight-code-as-number", "print([r for r in t if r['Flight_Number_Marketing_Airline'] == number])"),
    ("round2/agenda-parsed", "for text in retrieve_agenda('Ann').splitlines():\n    print(text)"),
])
def test_other_right_ways_are_not_flagged_either(name, code):
    group = MISTAKES[name].groups[0] if MISTAKES[name].groups else MISTAKES[name].templates[0].split(":")[0]
    template = MISTAKES[name].templates[0] if MISTAKES[name].templates else f"{group}: any"
    assert MISTAKES[name].first_step(played(template, (code, "x"), question="Is Snip in Reno open?")) is None


@pytest.mark.parametrize("name, code, printed", [
    ("round3/prices-compared-as-texts", 'print(sorted(homes, key=lambda h: h["price"].strip())[0])', "x"),
    ("round3/prices-compared-as-texts", "print(max(h['price'] for h in t if int(h['review rate number']) > 3))", "x"),
    ("round2/column-guessed", "print(t[0]['Price'])", ERROR + 'there is no column "Price"; did you mean "price"?'),
])
def test_other_forms_of_a_mistake_are_flagged_too(name, code, printed):
    assert MISTAKES[name].first_step(played("airbnb: any", (code, printed))) == 0


@pytest.mark.parametrize("code, answer, flagged", [
    ("print(shop['is_open'])", "No", False),              # is_open is 1 or 0
    ("print(shop['is_open'])", "0", False),               # the answer was printed
    ("print(len(shops))", "1 Main St", True)])            # no shop was found
def test_a_printed_0_is_a_value_if_the_answer_is_yes_or_no(code, answer, flagged):
    t = played("yelp: is open", (code, "0\n"), (f"complete_task('', '{answer}')", ""), answer=answer)
    assert MISTAKES["round2/completed-on-an-error"].first_step(t) == (1 if flagged else None)


@pytest.mark.parametrize("name", [name for name, m in MISTAKES.items() if m.judge])
def test_a_judged_mistake_describes_one_step(name):
    """The judge is asked about one step. The description says that this step calls complete_task, so only one can have
    the mistake."""
    answer = "9:00 AM-6:00 PM"
    t = played("agenda: schedule", ("print(retrieve_agenda('Ann May 21, 2022'))", "…"),
               (f"complete_task('', '{answer}')", ""), answer=answer)
    m, prompt = MISTAKES[name], judge.question(t, MISTAKES[name], 1)
    assert m.concerns(t["task"]) and m.judge.strip().startswith("The step calls complete_task")
    assert m.judge.strip() in prompt and m.hint not in prompt


def test_a_hint_is_short_and_its_templates_are_the_questions_own():
    """Each template that a mistake names has a worked example in round 1."""
    examples = {t for s in load_hints(HINTS / "round1") if s["templates"] for t in s["templates"]}
    for name, m in MISTAKES.items():
        assert len(m.hint) < 350 and set(m.templates or ()) <= examples, name


QWEN = {f"{folder}/{m.name}": m for folder in ("round2", "round3")
        for m in load_mistakes(ROOT / "hints" / "toolqa-qwen" / folder)}


WITHOUT_CODE = {f"round3/{name}" for name in ("name-cut-short", "name-made-longer", "route-for-an-airline",
                                              "airport-for-an-airline", "agenda-day-not-searched")}
WITHOUT_CODE.add("round2/agenda-not-searched")


@pytest.mark.parametrize("name", [name for name, m in QWEN.items() if m.templates])
def test_what_a_hint_for_qwen_shows_is_right_and_other_code_is_flagged(name):
    hints = load_hints(ROOT / "hints" / "toolqa-qwen" / "round1")
    mistake, examples = QWEN[name], {t: s for s in hints for t in s["templates"] or ()}
    template, = mistake.templates
    example = examples[template]["text"]
    step = re.search(r"<python>\n(.*?)</python>", example, flags=re.S)[1]
    # The hint shows some of the example's lines, with "" for a value, or other code that avoids the mistake, or none.
    tagged = re.search(r"<python>\n(.*?)</python>", mistake.hint, flags=re.S)
    shown = tagged[1].splitlines() if tagged else re.findall(r"^\w+ = .*", mistake.hint, flags=re.M)
    assert bool(shown) == (name not in WITHOUT_CODE)
    if not all(re.search(re.escape(line).replace('""', '".*"'), step) for line in shown):
        step = "\n".join(shown)
    other = 'answer = int(load_db("coffee")[0]["Close"])\nprint(answer)'
    for code, flagged in ((step, None), (other, 0)):
        steps = (code, "1"), ("complete_task('', answer)", "")
        played_so = played(template, *steps, question=example, answer="1")
        assert mistake.first_step(played_so) == flagged


def test_an_import_of_the_tools_is_flagged():
    mistake = QWEN["round2/tools-imported"]
    assert mistake.first_step(played("coffee: volume", ("x = 1", ""), ("from coffee import load_db", ERROR))) == 1
    assert mistake.first_step(played("coffee: volume", ("from datetime import date", ""))) is None
