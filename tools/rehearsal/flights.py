"""The flights group: questions on a flight, an airport, an airline or a day. The corpus is timetable.py's."""

import csv
import itertools
import math
import random
from pathlib import Path

from tools.rehearsal import Template, mean, only_largest, rounded, with_unit
from tools.rehearsal.timetable import write_corpus  # noqa: F401 (one of the three names that a group has)

WEEKDAYS = dict(zip("1234567", ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")))
COLUMNS = (                                            # that a question needs
    "FlightDate", "Airline", "IATA_Code_Marketing_Airline", "Flight_Number_Marketing_Airline", "Origin", "Dest",
    "DayOfWeek", "Cancelled", "Diverted", "CRSDepTime", "DepTime", "DepDelay", "DepDelayMinutes", "CRSArrTime",
    "ArrTime", "ArrDelayMinutes", "AirTime", "CRSElapsedTime", "ActualElapsedTime", "Distance", "TaxiIn")
SAMPLE = 4000                                          # rows to draw arguments from, and as many of cancelled flights


def draw_tasks(folder: Path, rng: random.Random) -> dict[str, list[tuple[dict, str]]]:
    """{template's name: [(arguments, answer), …]}, no arguments twice.

    The file is read twice: once for a sample of rows, whose cells are the arguments, and once for all rows with such
    cells. The rows of a day are freed when the day has been read.
    """
    file = folder / "Combined_Flights_2022.csv"
    sample = [row for cancelled in ("False", "True")
              for row in reservoir(rng, (row for row in read_rows(file) if row["Cancelled"] == cancelled))]
    found, drawn = {}, {template.name: [] for template in TEMPLATES}                # found: {name: {cells: their rows}}
    for template in TEMPLATES:
        columns, such = template.arguments
        rows = [row for row in sample if such(row)]
        found[template.name] = {tuple(row[c] for c in columns): []
                                for row in rng.sample(rows, min(len(rows), 4 * template.size))}
    for day, rows in itertools.groupby(read_rows(file), key=lambda row: row["FlightDate"]):
        for row in rows:
            for template in TEMPLATES:
                if (such := found[template.name].get(tuple(row[c] for c in template.arguments[0]))) is not None:
                    such.append(row)
        answer_those_of(day, found, drawn)
    answer_those_of(None, found, drawn)
    return drawn


def answer_those_of(day, found, drawn):
    """Moves what was found of a day, or of no day in particular (None), to what is drawn, if it has an answer."""
    for template in TEMPLATES:
        for key in list(found[template.name]):
            cells = dict(zip(template.arguments[0], key))
            if cells.get("FlightDate") == day:
                rows = found[template.name].pop(key)
                answer = template.answer(rows)
                if answer is not None:
                    cells["flight"] = flight_name(rows[0])
                    cells["weekday"] = WEEKDAYS[rows[0]["DayOfWeek"]]
                    drawn[template.name].append((cells, answer))


def reservoir(rng, rows):
    """SAMPLE of the rows at random: the n-th is kept with probability SAMPLE / n, in the place of any other."""
    kept = []
    for n, row in enumerate(rows):
        if n < SAMPLE:
            kept.append(row)
        elif (at := rng.randrange(n + 1)) < SAMPLE:
            kept[at] = row
    return kept


def read_rows(file):
    """The cells of each row that a question needs, as texts."""
    with open(file, newline="") as f:
        rows = csv.reader(f)
        header = next(rows)
        needed = [(column, header.index(column)) for column in COLUMNS]
        for row in rows:
            yield {column: row[at] for column, at in needed}


def flight_name(row):
    return row["IATA_Code_Marketing_Airline"] + row["Flight_Number_Marketing_Airline"]


def flight_number(row):
    return int(row["Flight_Number_Marketing_Airline"])


def only(rows, column):
    """The cell of the single row; None if there are several, or if it is empty."""
    return rows[0][column] or None if len(rows) == 1 else None


def numbers(rows, column):
    return [float(row[column]) for row in rows if row[column]]


def time_of_day(cell):
    """7:05 for "705.0"; none for midnight, which the table writes as 2400."""
    return None if cell is None or float(cell) >= 2400 else "{}:{:02}".format(*divmod(int(float(cell)), 100))


def whole(cell):
    return None if cell is None else str(int(float(cell)))


def off_timetable(rows):
    """Minutes between the two times of departure; None if midnight lies between them."""
    if only(rows, "DepTime") is None:
        return None
    planned, real = (divmod(int(float(rows[0][column])), 100) for column in ("CRSDepTime", "DepTime"))
    apart = abs(float(rows[0]["DepDelay"]))
    return whole(apart) if abs(60 * (real[0] - planned[0]) + real[1] - planned[1]) == apart else None


def extra_minutes(rows):
    taken = only(rows, "ActualElapsedTime")
    return None if taken is None else str(float(taken) - float(rows[0]["CRSElapsedTime"]))


def flight_numbers(rows):
    """The flight numbers in the order of the table; None if that is not their ascending order."""
    found = list(map(flight_number, rows))
    return ", ".join(map(str, found)) if found == sorted(set(found)) else None


def different_numbers(rows):
    """How many different flights. None if it matters whether cancelled flights count, or whether one number under two
    codes is two flights."""
    went = [row for row in rows if row["Cancelled"] == "False"]
    ways = {len(set(map(name, some))) for some in (rows, went) for name in (flight_name, flight_number)}
    return str(ways.pop()) if len(ways) == 1 else None


def cancelled_share(rows):
    cancelled = sum(row["Cancelled"] == "True" for row in rows)
    return with_unit(rounded(cancelled / len(rows) * 100, 1), "%") if 0 < cancelled < len(rows) else None


def count(rows):
    return str(len(rows)) if rows else None


def fastest(rows):
    """Of the different flights the one with the smallest AirTime; None if two share it."""
    best = {}
    for row in rows:
        if row["AirTime"]:
            flight = flight_name(row)
            best[flight] = min(best.get(flight, math.inf), float(row["AirTime"]))
    return only_largest([(-minutes, flight) for flight, minutes in best.items()])


def average_speed(rows):
    """The mean of the flights' speeds; None unless all miles by all minutes gives the same."""
    rows = [row for row in rows if row["AirTime"]]
    if not rows:
        return None
    one_by_one = rounded(mean([float(row["Distance"]) / float(row["AirTime"]) for row in rows]), 1)
    all_in_all = rounded(sum(numbers(rows, "Distance")) / sum(numbers(rows, "AirTime")), 1)
    return one_by_one if one_by_one == all_in_all else None


def having(column):
    return lambda row: row[column] != ""


NUMBER = ("IATA_Code_Marketing_Airline", "Flight_Number_Marketing_Airline")
LEG = (*NUMBER, "Origin", "Dest", "FlightDate")
ANY, SEEN, UNSEEN = (lambda row: True), (9, 1, 0), (0, 0, 10)
TEMPLATES = [
    Template("flight departure time", (6, 1, 3), UNSEEN, (
        "When did the flight {flight} from {Origin} depart for {Dest} on {FlightDate}?",
        "On {FlightDate}, flight {flight} flew from {Origin} to {Dest}. At what time did it depart?",
        "Give the departure time on {FlightDate} of {flight}, {Origin} to {Dest}."),
        (LEG, having("DepTime")), lambda rows: time_of_day(only(rows, "DepTime"))),
    Template("yes or no", (6, 1, 3), SEEN, (
        "Did they cancel flight {flight} from {Origin} to {Dest} on {FlightDate}?",
        "Flight {flight} was to go from {Origin} to {Dest} on {FlightDate}. Was it cancelled?",
        "On {FlightDate}, was {flight} from {Origin} to {Dest} a cancelled flight?"),
        (LEG, ANY), lambda rows: {"True": "Yes", "False": "No"}.get(only(rows, "Cancelled"))),
    Template("flight number", (6, 1, 3), SEEN, (
        "Which flight number does the flight of {Airline} from {Origin} to {Dest} on {FlightDate} have?",
        "{Airline} has a flight from {Origin} to {Dest} on {FlightDate}. What is the flight number?",
        "Under what flight number is the flight of {Airline} from {Origin} to {Dest} on {FlightDate} listed?"),
        (("Airline", "Origin", "Dest", "FlightDate"), ANY), flight_numbers),
    Template("time difference", (6, 1, 3), SEEN, (
        "{flight} left {Origin} for {Dest} on {FlightDate}. How far was its actual from its CRS recorded departure?",
        "By how much do the CRS recorded and actual departure of {flight}, {Origin} to {Dest}, on {FlightDate} differ?",
        "On {FlightDate}, how long lay between the CRS recorded and actual departure of {flight}, {Origin} to {Dest}?"),
        (LEG, having("DepTime")), off_timetable),
    Template("delay of arrival time", (6, 1, 3), SEEN, (
        "By how much was {flight} delayed at its arrival on {FlightDate}? Add up the delays if there are several.",
        "How late did flight {flight} arrive on {FlightDate}? In case of more than one delay, give their sum.",
        "What was the arrival delay of {flight} on {FlightDate}? Of several delays give the total."),
        ((*NUMBER, "FlightDate"), lambda row: row["ArrDelayMinutes"] not in ("", "0.0")),
        lambda rows: str(sum(numbers(rows, "ArrDelayMinutes")))),
    Template("extra minutes", (6, 1, 3), SEEN, (
        "How many minutes more than planned did {flight} need from {Origin} to {Dest} on {FlightDate}?",
        "On {FlightDate}, flight {flight} went from {Origin} to {Dest}. How many extra minutes did it take?",
        "Flight {flight} from {Origin} to {Dest} on {FlightDate}: how many additional minutes did it take?"),
        (LEG, having("ActualElapsedTime")), extra_minutes),
    Template("local arrival time", (6, 1, 3), SEEN, (
        "At what local time did {flight} from {Origin} arrive in {Dest} on {FlightDate}?",
        "On {FlightDate}, flight {flight} flew from {Origin} to {Dest}. When did it arrive, in local time?",
        "Give the local time of arrival of flight {flight}, {Origin} to {Dest}, on {FlightDate}."),
        (LEG, having("ArrTime")), lambda rows: time_of_day(only(rows, "ArrTime"))),
    Template("CRS-recorded arrival time", (6, 1, 3), SEEN, (
        "Which arrival time did the CRS record for {flight} from {Origin} to {Dest} on {FlightDate}?",
        "On {FlightDate}, flight {flight} flew from {Origin} to {Dest}. When was it to arrive as the CRS recorded it?",
        "Give the arrival time of flight {flight}, {Origin} to {Dest}, on {FlightDate} according to the CRS."),
        (LEG, ANY), lambda rows: time_of_day(only(rows, "CRSArrTime"))),
    Template("flight duration", (6, 1, 3), UNSEEN, (
        "How long did the flight {flight} from {Origin} to {Dest} last on {FlightDate}?",
        "On {FlightDate}, {flight} flew from {Origin} to {Dest}. How long was that flight?",
        "What was the duration of flight {flight} from {Origin} to {Dest} on {FlightDate}?"),
        (LEG, having("AirTime")), lambda rows: whole(only(rows, "AirTime"))),
    Template("minutes taking to taxi in", (6, 1, 3), UNSEEN, (
        "For how many minutes did flight {flight} taxi in on {FlightDate}?",
        "On {FlightDate}, how many minutes of taxiing in did {flight} need?",
        "Flight {flight} landed on {FlightDate}. How many minutes did taxiing in take?"),
        ((*NUMBER, "FlightDate"), having("TaxiIn")), lambda rows: whole(only(rows, "TaxiIn"))),
    Template("percentage", (6, 1, 3), SEEN, (
        "On {FlightDate}, what share of the flights from {Origin} was canceled, in percent?",
        "Of all flights that were to leave {Origin} on {FlightDate}, what percentage was canceled?",
        "How many percent of the flights out of {Origin} were canceled on {FlightDate}?"),
        (("Origin", "FlightDate"), lambda row: row["Cancelled"] == "True"), cancelled_share),
    Template("average delay time", (6, 1, 3), SEEN, (
        "How long was the average delay of the flights that departed from {Origin} on {FlightDate}?",
        "On {FlightDate}, by how much were all the flights departing from {Origin} delayed on average?",
        "Take all the flights that left {Origin} on {FlightDate}. What is their average delay?"),
        (("Origin", "FlightDate"), having("DepDelayMinutes")),
        lambda rows: rounded(mean(numbers(rows, "DepDelayMinutes")), 1)),
    Template("diverted flights", (6, 1, 3), SEEN, (
        "What is the number of flights that were diverted on {FlightDate}?",
        "On {FlightDate}, how many flights did not keep to their destination but were diverted?",
        "Count the diverted flights of {FlightDate}."),
        (("FlightDate",), ANY), lambda rows: count([row for row in rows if row["Diverted"] == "True"])),
    Template("flights with long distance", (6, 1, 3), UNSEEN, (
        "What is the number of flights on {FlightDate} over more than 300 miles, cancelled ones included?",
        "On {FlightDate}, how many flights, even cancelled ones, were longer than 300 miles in distance?",
        "Count the flights of {FlightDate}, also cancelled ones, whose distance was greater than 300 miles."),
        (("FlightDate",), ANY), lambda rows: count([row for row in rows if float(row["Distance"]) > 300])),
    Template("average airtime", (6, 1, 3), UNSEEN, (
        "How long is the airtime of a flight of {Airline} from {Origin} to {Dest} on average?",
        "Take all flights that {Airline} operates from {Origin} to {Dest}. What is their average airtime?",
        "Give the mean airtime of the {Airline} flights from {Origin} to {Dest}."),
        (("Airline", "Origin", "Dest"), having("AirTime")), lambda rows: rounded(mean(numbers(rows, "AirTime")), 1)),
    Template("flights from A to B", (6, 1, 3), UNSEEN, (
        "How many different flights does {Airline} have from {Origin} to {Dest}?",
        "What is the number of unique flights of {Airline} that go from {Origin} to {Dest}?",
        "Count the unique flights from {Origin} to {Dest} that {Airline} operates."),
        (("Airline", "Origin", "Dest"), ANY), different_numbers),
    Template("average flight time", (6, 1, 3), SEEN, (
        "How long does the flight {flight} take on average?",
        "Give the mean flight time of {flight}.",
        "On average, what is the flight time of {flight}?"),
        (NUMBER, having("AirTime")), lambda rows: rounded(mean(numbers(rows, "AirTime")), 1)),
    Template("fastest flight", (6, 1, 3), SEEN, (
        "Which flight from {Origin} to {Dest} is the fastest on {weekday}?",
        "On {weekday}, which is the fastest of the flights from {Origin} to {Dest}?",
        "Of the {weekday} flights from {Origin} to {Dest}, which one is fastest?"),
        (("Origin", "Dest", "DayOfWeek"), having("AirTime")), fastest),
    Template("average speed", (6, 1, 3), SEEN, (
        "How fast is {flight} from {Origin} to {Dest} on average, in miles per minute?",
        "Give the mean speed of flight {flight} from {Origin} to {Dest} (miles per minute).",
        "On average, at how many miles per minute does {flight} fly from {Origin} to {Dest}?"),
        ((*NUMBER, "Origin", "Dest"), having("AirTime")), average_speed),
    Template("total number", (6, 1, 3), SEEN, (
        "How many flights does {Airline} have on {FlightDate} in all, cancelled ones included?",
        "Count all flights of {Airline} on {FlightDate}, also cancelled ones.",
        "On {FlightDate}, what was the total of flights, even cancelled ones, of {Airline}?"),
        (("Airline", "FlightDate"), ANY), count),
]
