"""ToolQA's rehearsal: each answer is computed a second time, from the CSV files and the words of the question alone."""

import collections
import csv
import datetime
import itertools
import json
import re
import statistics
import string

import pytest

from formats import records
from tools import import_toolqa, rehearse_toolqa, toolqa
from tools.rehearsal import Template, coffee, flights, only_largest, rounded, timetable

SEED, SCALE = 3, 0.002
TEMPLATES = {f"{group}: {template.name}": template
             for group, module in (("coffee", coffee), ("flights", flights)) for template in module.TEMPLATES}
CODE, NUMBER = "IATA_Code_Marketing_Airline", "Flight_Number_Marketing_Airline"
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def read_tasks(folder):
    return {split: records.read_records(folder / f"{split}.jsonl", records.TASK) for split in import_toolqa.SPLITS}


def read_corpora(folder):
    """{group: its raw rows, dicts of texts}."""
    return {file.parent.name: list(csv.DictReader(file.read_text().splitlines()))
            for file in folder.glob("external_corpus/*/*.csv")}


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory):
    """The folder, its tasks and its raw rows."""
    folder = tmp_path_factory.mktemp("rehearsal")
    rehearse_toolqa.rehearse(folder, SEED, scale=SCALE)
    return folder, read_tasks(folder), read_corpora(folder)


def arguments_of(question):
    """What a question is about, {column: value}; of coffee questions "Date" is the list of one day or two."""
    if "coffee" in question.lower():
        return {"Date": re.findall(r"\d{4}-\d\d-\d\d", question)}
    found, airlines = {}, [name for name, *_ in timetable.AIRLINES if name in question]
    if airlines:
        found["Airline"] = airlines[0]
        question = question.replace(airlines[0], "")   # one of them has three capitals, too
    found |= zip(("Origin", "Dest"), (word for word in re.findall(r"\b[A-Z]{3}\b", question) if word != "CRS"))
    if day := re.search(r"\d{4}-\d\d-\d\d", question):
        found["FlightDate"] = day[0]
    if flight := re.search(r"\b([A-Z][A-Z\d])(\d{1,4})\b", question):
        found |= {CODE: flight[1], NUMBER: flight[2]}
    if day := [n for n, name in enumerate(WEEKDAYS, 1) if name in question]:
        found["DayOfWeek"] = str(day[0])
    return found


def rows_of(rows, about):
    """The rows that a question is about; of coffee questions with the row before them."""
    if "Date" in about:
        inside = [n for n, row in enumerate(rows) if about["Date"][0] <= row["Date"] <= about["Date"][-1]]
        assert [rows[n]["Date"] for n in (inside[0], inside[-1])] == [about["Date"][0], about["Date"][-1]]
        return rows[inside[0] - 1:inside[-1] + 1]
    return [row for row in rows if all(row[column] == value for column, value in about.items())]


# How an answer follows from such rows. d: the day or days; e: the same with the day before; f: flights.
price = lambda day, name: float(day[name])
highs = lambda days: [price(day, "High") for day in days]
lows = lambda days: [price(day, "Low") for day in days]
closes = lambda days: [price(day, "Close") for day in days]
moves = lambda days: [(price(day, "Close") / price(day, "Open") - 1) * 100 for day in days]
steps = lambda days: {day["Date"]: price(day, "Close") / price(eve, "Close") - 1 for eve, day in zip(days, days[1:])}
spans = lambda days: {day["Date"]: price(day, "High") - price(day, "Low") for day in days}
the = lambda rows, column: rows[0][column] if len(rows) == 1 else f"{len(rows)} rows"
at = lambda cell: re.sub(r"^0?(\d+)(\d\d)$", r"\1:\2", f"{float(cell):04.0f}")
known = lambda rows, column: [float(row[column]) for row in rows if row[column]]
average = lambda numbers: f"{statistics.fmean(numbers):.1f}"
COFFEE = {
    "opening price": lambda d, e: d[0]["Open"],
    "lowest price": lambda d, e: d[0]["Low"],
    "highest price": lambda d, e: d[0]["High"],
    "closing price": lambda d, e: d[0]["Close"],
    "volume": lambda d, e: d[0]["Volume"],
    "percentage change": lambda d, e: f"{moves(d)[0]:.2f}%",
    "A or B": lambda d, e: "bullish" if moves(d)[0] > 0 else "bearish",
    "range of coffee price": lambda d, e: f"{spans(d)[d[0]['Date']]:.2f}",
    "highest coffee price": lambda d, e: f"{max(highs(d))} USD",
    "lowest coffee price": lambda d, e: f"{min(lows(d))} USD",
    "average coffee price": lambda d, e: average(closes(d)) + " USD",
    "coffee price change": lambda d, e: f"{price(d[-1], 'Close') - price(d[0], 'Open'):.1f} USD",
    "percentage change comparison": lambda d, e: f"{steps(e)[d[0]['Date']] * 100:.1f}%",
    "day with the greatest price change": lambda d, e: max(spans(d), key=spans(d).get),
    "average daily volume": lambda d, e: average([int(day["Volume"]) for day in d]),
    "day with the highest increase": lambda d, e: max(steps(d), key=steps(d).get),
    "times of coffee price": lambda d, e: str(sum(step > 0 for step in steps(d).values())),
    "percentage increase": lambda d, e: f"{(price(d[-1], 'Close') / price(d[0], 'Open') - 1) * 100:.1f}%",
    "coffee price range": lambda d, e: f"{max(highs(d)) - min(lows(d)):.1f} USD",
    "day with the higher close price": lambda d, e: str(sum(move > 0 for move in moves(d))),
    "average percentage change": lambda d, e: average(moves(d)) + "%",
}
FLIGHTS = {
    "flight departure time": lambda f: at(the(f, "DepTime")),
    "yes or no": lambda f: {"False": "No", "True": "Yes"}[the(f, "Cancelled")],
    "flight number": lambda f: ", ".join(row[NUMBER] for row in f),
    "time difference": lambda f: str(abs(int(float(the(f, "DepDelay"))))),
    "delay of arrival time": lambda f: str(sum(known(f, "ArrDelayMinutes"))),
    "extra minutes": lambda f: str(float(the(f, "ActualElapsedTime")) - float(the(f, "CRSElapsedTime"))),
    "local arrival time": lambda f: at(the(f, "ArrTime")),
    "CRS-recorded arrival time": lambda f: at(the(f, "CRSArrTime")),
    "flight duration": lambda f: the(f, "AirTime").removesuffix(".0"),
    "minutes taking to taxi in": lambda f: the(f, "TaxiIn").removesuffix(".0"),
    "percentage": lambda f: average([100 * (row["Cancelled"] == "True") for row in f]) + "%",
    "average delay time": lambda f: average(known(f, "DepDelayMinutes")),
    "diverted flights": lambda f: str(collections.Counter(row["Diverted"] for row in f)["True"]),
    "flights with long distance": lambda f: str(sum(miles > 300 for miles in known(f, "Distance"))),
    "average airtime": lambda f: average(known(f, "AirTime")),
    "flights from A to B": lambda f: str(len({row[NUMBER] for row in f})),
    "average flight time": lambda f: average(known(f, "AirTime")),
    "fastest flight": lambda f: min((float(row["AirTime"]), row[CODE] + row[NUMBER]) for row in f if row["AirTime"])[1],
    "average speed": lambda f: average([float(row["Distance"]) / float(row["AirTime"]) for row in f if row["AirTime"]]),
    "total number": lambda f: str(len(f)),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_answers_are_right(name, rehearsal):
    _, tasks, raw = rehearsal
    tasks = [task for task in itertools.chain(*tasks.values()) if task["template"] == name]
    group, kind = name.split(": ")
    for task in tasks:
        rows = rows_of(raw[group], arguments_of(task["question"]))
        answer = COFFEE[kind](rows[1:], rows) if group == "coffee" else FLIGHTS[kind](rows)
        assert task["answer"] == answer, task["question"]
    assert len(tasks) >= 20


def test_the_splits_have_the_paper_s_sizes(rehearsal):
    """Those of coffee and flights among the paper's 655, 99 and 342 tasks, and 665, 67 and 364 for unseen templates."""
    _, tasks, _ = rehearsal
    sizes = {split: collections.Counter(task["group"] for task in some) for split, some in tasks.items()}
    assert sizes == {"train": {"coffee": 139, "flights": 120}, "train-unseen": {"coffee": 148, "flights": 126},
                     "val": {"coffee": 20, "flights": 20}, "val-unseen": {"coffee": 14, "flights": 14},
                     "test": {"coffee": 71, "flights": 60}, "test-unseen": {"coffee": 68, "flights": 60}}
    templates = {split: {task["template"] for task in some} for split, some in tasks.items()}
    assert templates["train"] == templates["test"] == TEMPLATES.keys()
    assert templates["train-unseen"] | templates["test-unseen"] == TEMPLATES.keys()
    assert not templates["train-unseen"] & templates["test-unseen"]
    assert tasks["train"][0]["id"] == "flights-train-001" and tasks["val-unseen"][-1]["id"] == "coffee-val-unseen-014"


@pytest.mark.parametrize("splits", [("train", "val", "test"), ("train-unseen", "val-unseen", "test-unseen")])
def test_no_task_comes_twice(splits, rehearsal):
    tasks = [task for split in splits for task in rehearsal[1][split]]
    assert len({task["id"] for task in tasks}) == len({task["question"] for task in tasks}) == len(tasks)
    assert len({(task["template"], str(arguments_of(task["question"]))) for task in tasks}) == len(tasks)


def test_a_seed_gives_the_same_files_and_another_seed_others(rehearsal, tmp_path, monkeypatch):
    monkeypatch.setattr(import_toolqa, "import_corpora", lambda *_: None)
    rehearse_toolqa.rehearse(tmp_path / "same", SEED, scale=SCALE)
    rehearse_toolqa.rehearse(tmp_path / "other", SEED + 1, scale=SCALE)
    rehearse_toolqa.rehearse(tmp_path / "coffee", SEED, ["coffee"], SCALE)
    folder, tasks, _ = rehearsal
    files = [file.relative_to(folder) for file in folder.rglob("*") if file.suffix in (".csv", ".jsonl")]
    assert len(files) == 8
    for file in files:
        ours, same, other = (place / file for place in (folder, tmp_path / "same", tmp_path / "other"))
        assert ours.read_bytes() == same.read_bytes() != other.read_bytes()
    assert read_tasks(tmp_path / "coffee") == {
        split: [task for task in some if task["group"] == "coffee"] for split, some in tasks.items()}


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_wording_says_what_the_others_say(name):
    template = TEMPLATES[name]
    fields = [{field for _, field, _, _ in string.Formatter().parse(wording) if field} for wording in template.wordings]
    assert len(set(template.wordings)) >= 3 and all(some == fields[0] for some in fields)


def test_the_world_holds_every_cell_of_the_corpora(rehearsal):
    folder, _, raw = rehearsal
    toolqa._open(folder / "world")
    for group, rows in raw.items():
        table = toolqa.load_db(group)
        assert len(table) == len(rows)
        for row, cells in zip(table, rows):
            assert {name: "" if value is None else str(value) for name, value in row.items()} == cells


def test_a_flight_is_consistent(rehearsal):
    rows = rehearsal[2]["flights"]
    assert len(rows) == pytest.approx(SCALE * 4_078_318, rel=0.1) and len(rows[0]) == 61
    minutes = lambda clock: int(float(clock)) // 100 * 60 + int(float(clock)) % 100
    for row in rows:
        day = datetime.date.fromisoformat(row["FlightDate"])
        assert row["DayOfWeek"] == str(day.isoweekday()) and row["DayofMonth"] == str(day.day)
        assert (row["DepTime"] == "") == (row["Cancelled"] == "True")
        assert (row["AirTime"] == "") == ("True" in (row["Cancelled"], row["Diverted"]))
        if row["DepTime"]:
            late, out = float(row["DepDelay"]), float(row["TaxiOut"])
            assert (minutes(row["DepTime"]) - minutes(row["CRSDepTime"]) - late) % 1440 == 0
            assert float(row["DepDelayMinutes"]) == max(late, 0)
            assert (minutes(row["WheelsOff"]) - minutes(row["DepTime"]) - out) % 1440 == 0
        if row["AirTime"]:
            planned, taken, behind = (float(row[name]) for name in ("CRSElapsedTime", "ActualElapsedTime", "ArrDelay"))
            assert taken == out + float(row["AirTime"]) + float(row["TaxiIn"]) and behind == late + taken - planned
            assert (minutes(row["ArrTime"]) - minutes(row["CRSArrTime"]) - behind) % 1440 == 0
            assert (minutes(row["CRSArrTime"]) - minutes(row["CRSDepTime"]) - planned) % 60 == 0, "time zones"
            assert float(row["ArrDelayMinutes"]) == max(behind, 0)
    share = lambda column: sum(row[column] == "True" for row in rows) / len(rows)
    assert 0.02 < share("Cancelled") < 0.06 and 0.004 < share("Diverted") < 0.02


def test_a_coffee_day_is_consistent(rehearsal):
    rows = rehearsal[2]["coffee"]
    assert rows[0]["Date"] == "2000-01-03" and 5500 < len(rows) < 5900
    for row in rows:
        opened, high, low, closed = (float(row[name]) for name in ("Open", "High", "Low", "Close"))
        assert 0 < low <= min(opened, closed) <= max(opened, closed) <= high
        assert datetime.date.fromisoformat(row["Date"]).weekday() < 5


def test_a_number_whose_last_decimal_is_in_doubt_is_no_answer():
    assert rounded(12.3499, 1) == "12.3" and rounded(12.25, 1) is None
    assert rounded(-0.06, 1) == "-0.1" and rounded(-0.04, 1) is None
    assert rounded(None, 1) is None


def test_a_tie_is_no_answer():
    assert only_largest([(1, "a"), (2, "b")]) == "b"
    assert only_largest([(1.0, "a"), (1.0 + 1e-12, "b")]) is None and only_largest([]) is None
    assert coffee.bull_or_bear({"Open": 5.0, "Close": 5.0}) is None


def test_a_period_s_first_day_must_not_matter():
    days = [{"Date": str(n), "Close": close} for n, close in enumerate((10.0, 11.0, 12.5, 13.9))]
    assert coffee.rising_days(days[1:], days[1]) == "2" and coffee.rising_days(days[1:], days[0]) is None
    assert coffee.steepest_day(days[:3], days[0]) == "2"
    assert coffee.steepest_day(days[1:], {"Date": "0", "Close": 5.0}) is None
    two_ways = [days[0], {"Date": "1", "Close": 12.0}, {"Date": "2", "Close": 14.1}]          # by 20 % and by 2.10
    assert coffee.steepest_day(two_ways, days[0]) is None


def test_a_flight_that_can_be_read_in_two_ways_is_no_answer():
    def flight(number, air_time="60.0", cancelled="False", code="UA"):
        return {CODE: code, NUMBER: number, "AirTime": air_time, "Cancelled": cancelled, "Distance": "400.0"}
    three, seven = flight("3"), flight("7")
    assert flights.flight_numbers([three, seven]) == "3, 7" and flights.flight_numbers([seven, three]) is None
    assert flights.different_numbers([three, seven, three]) == "2"
    assert flights.different_numbers([three, flight("7", cancelled="True")]) is None, "if cancelled flights count"
    assert flights.different_numbers([three, flight("3", code="DL")]) is None, "if codes count"
    assert flights.fastest([three, flight("7", "61.0")]) == "UA3" and flights.fastest([three, seven]) is None
    assert flights.average_speed([three, three]) == "6.7"
    assert flights.average_speed([three, flight("3", "240.0")]) is None, "4.2 or 2.7"
    assert flights.only([three], "AirTime") == "60.0" and flights.only([three, three], "AirTime") is None
    assert flights.only([flight("3", "")], "AirTime") is None and flights.average_speed([flight("3", "")]) is None
    assert [flights.time_of_day(cell) for cell in ("705.0", "5", "2400.0", None)] == ["7:05", "0:05", None, None]
    row = {"CRSDepTime": "2355", "DepTime": "2359.0", "DepDelay": "4.0"}
    assert flights.off_timetable([row]) == "4"
    assert flights.off_timetable([row | {"DepTime": "5.0", "DepDelay": "10.0"}]) is None, "past midnight"


def test_what_cannot_be_made_is_said(tmp_path):
    template = Template("price", (2, 1, 1), (0, 0, 4), ("{x}?",), None, None)
    with pytest.raises(ValueError, match="coffee: price: 1 unambiguous tasks, but 4 are needed; raise --scale"):
        rehearse_toolqa.split_tasks("coffee", [template], {"price": [({"x": 1}, "1")]}, None)
    with pytest.raises(ValueError, match="--scale 2 is not between 0 and 1"):
        rehearse_toolqa.rehearse(tmp_path / "new", scale=2)
    (tmp_path / "train.jsonl").write_text(json.dumps({}))
    with pytest.raises(ValueError, match="not empty; remove it or take another --out"):
        rehearse_toolqa.rehearse(tmp_path)
