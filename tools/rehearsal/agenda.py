"""The agenda group: what people plan for 2022, told in prose, and questions on an event or a day.

The texts have the real ones' flaws: a text that comes twice, and events of which no time is told.
"""

import datetime
import json
import random
from pathlib import Path

from tools.rehearsal import Template, draw, the_only

FULL, FEWEST = 10_000, 2_500                           # texts at scale 1, and what the questions need
PEOPLE = ("Abigail Benedict Cordelia Desmond Eloise Fergus Greta Hamish Isadora Jasper Katrin Leander Minerva "
          "Nathaniel Octavia Percival Rosalind Sebastian Tabitha Ulysses Verity Winifred Xanthe Yolanda Zachary "
          "Beatrix Casimir Dorothea Ephraim Florian Gwendolyn Horatio Ingrid Julius Keziah Lysander Magnolia "
          "Nehemiah Ottilie Philippa Quincy Rupert Seraphina Thaddeus Ursula Valentin Wilhelmina Ambrose Clementine "
          "Evander").split()
# an event's name | where such an event is held
EVENTS = [(event, places.split(",")) for event, places in (line.split("|") for line in """\
Pottery workshop|Clay Corner Studio,Kiln & Wheel
Chess tournament|Rook Street Club,City Library Hall
Choir practice|St. Brendan Chapel,Conservatory Room B
Beekeeping course|Meadow Lane Apiary,Hillside Farm
Salsa evening|Casa Rhythm,The Tin Ballroom
Job interview|Northgate Tower,Lakeside Offices
Dentist appointment|Bright Smile Practice,Corner Dental
Kayak tour|Otter Bay Pier,Willow River Dock
Book club|The Reading Nook,Maple Street Books
Robotics lecture|Engineering Hall,Tech Pavilion
Farmers market|Old Station Square,Harbor Green
Film screening|Orpheum Cinema,Garden Theatre
Marathon training|Riverside Track,Summit Stadium
Wine tasting|Cellar Number Nine,Vineyard Terrace
Language exchange|Cafe Babel,Globe House
Birthday party|Rooftop Garden,Pine Tree Inn
Yoga class|Lotus Loft,Stillwater Studio
Board meeting|Granite Plaza,Meridian Center
Photography walk|Botanical Garden,Lighthouse Point
Poetry reading|Inkwell Bar,Attic Stage""".splitlines())]
TOLD = (
    "On {day}, {person} is going to {event} at {place}. It begins at {begin} and ends at {end}.",
    "{event}: {person} will be at {place} from {begin} until {end} on {day}. Everything is prepared.",
    "{person} has put down {event} for {day}. The place is {place}, the time is {begin} to {end}.",
    "At {place}, {event} takes place on {day}, starting at {begin}. {person} takes part and leaves at {end}.",
    "Between {begin} and {end} on {day}, {person} attends {event}. One gets together at {place}.",
)
TOLD_WITHOUT_TIME = (
    "On {day}, {person} would like to go to {event} at {place}. The time is yet to be announced.",
    "{person} has been invited to {event} at {place} on {day}. Nobody has said when it begins.",
)


def write_corpus(folder: Path, rng: random.Random, scale: float) -> None:
    """folder/agenda_events.jsonl, one text a line; 10,000 lines at scale 1 and 2,500 at least.

    folder/entries.json tells in figures what the texts tell in words: ToolQA's answers do not come from its texts.
    """
    entries, texts = [], []
    for _ in range(max(FEWEST, int(FULL * scale))):
        if texts and rng.random() < 0.01:
            texts.append(rng.choice(texts))
            continue
        event, places = rng.choice(EVENTS)
        begin = 30 * rng.randint(14, 40)
        entry = {"person": rng.choice(PEOPLE), "event": event, "place": rng.choice(places), "begin": begin,
                 "end": begin + rng.choice((30, 60, 90, 120, 180)), "date": str(
                     datetime.date(2022, 1, 1) + datetime.timedelta(rng.randrange(365)))}
        if rng.random() < 0.05:
            entry["begin"] = entry["end"] = None
        entries.append(entry)
        forms = TOLD if entry["end"] else TOLD_WITHOUT_TIME
        texts.append(rng.choice(forms).format(**entry | {
            "day": in_words(entry["date"]), "begin": clock(entry["begin"]), "end": clock(entry["end"])}))
    with open(folder / "agenda_events.jsonl", "w") as file:
        file.writelines(json.dumps({"id": n, "event": text}) + "\n" for n, text in enumerate(texts))
    (folder / "entries.json").write_text(json.dumps(entries))


def in_words(date):
    """March 8, 2022 for "2022-03-08"."""
    day = datetime.date.fromisoformat(date)
    return f"{day:%B} {day.day}, {day.year}"


def clock(minutes):
    """9:30 AM for 570."""
    return minutes and f"{(minutes // 60 - 1) % 12 + 1}:{minutes % 60:02} {'AM' if minutes < 720 else 'PM'}"


def draw_tasks(folder: Path, rng: random.Random) -> dict[str, list[tuple[dict, str]]]:
    return draw(rng, TEMPLATES, json.loads((folder / "entries.json").read_text()))


def told(*columns):
    """How a template draws such cells of an entry. An event of which no time is told is not asked about."""
    def arguments(rng, entries):
        entry = rng.choice(entries)
        if entry["begin"] is None:
            return None
        entry = entry | {"day": entry["date"].replace("-", "/"), "begin": clock(entry["begin"]),
                         "end": clock(entry["end"])}
        return {column: entry[column] for column in columns}
    return arguments


def a_day_of_somebody(rng, entries):
    """Three days in four hold something."""
    day = datetime.date(2022, 1, 1) + datetime.timedelta(rng.randrange(365))
    return (told("person", "day")(rng, entries) if rng.random() < 0.75
            else {"person": rng.choice(PEOPLE), "day": str(day).replace("-", "/")})


def such(entries, day, begin=None, end=None, **wanted):
    return [entry for entry in entries if entry["date"] == day.replace("/", "-")
            and begin in (None, clock(entry["begin"])) and end in (None, clock(entry["end"]))
            and all(entry[column] == value for column, value in wanted.items())]


def of_one(answer):
    """An answer on the single such entry; None if there are several, or if no time is told."""
    def only(entries, **wanted):
        found = such(entries, **wanted)
        return answer(found[0]) if len(found) == 1 and found[0]["begin"] else None
    return only


def what(entries, person, day, begin, end):
    """The event; None if the person has anything else on that day."""
    same_day = such(entries, day, person=person)
    return the_only(entry["event"] for entry in such(entries, day, begin, end, person=person)
                    ) if len(same_day) == 1 else None


def free(entries, person, day):
    """What is left of 9 AM to 6 PM. None if two events overlap, or if a time is not told."""
    busy = such(entries, day, person=person)
    if any(entry["begin"] is None for entry in busy):
        return None
    spans, now = [], 540
    for begin, end in [*sorted((entry["begin"], entry["end"]) for entry in busy), (1080, 1080)]:
        if begin < now and now > 540:
            return None
        if min(begin, 1080) > now:
            spans.append(f"{clock(now)}-{clock(min(begin, 1080))}")
        now = min(max(now, end), 1080)
    return ", ".join(spans) or None


def events(entries, person, day):
    """The events; a list of both orders if there are two, None if there are none or more."""
    found = sorted(entry["event"] for entry in such(entries, day, person=person))
    if len(set(found)) != len(found) or not 0 < len(found) <= 2:
        return None
    return found[0] if len(found) == 1 else [", ".join(found), ", ".join(reversed(found))]


TEMPLATES = [
    Template("where", (10, 1, 4), (0, 0, 15), (
        "In which place was {event} on {day}, which {person} attended?",
        "{person} went to {event} on {day}. Where was it held?",
        "At what place did {person} attend {event} on {day}?"),
        told("person", "event", "day"), of_one(lambda entry: entry["place"])),
    Template("how", (11, 1, 9), (20, 1, 0), (
        "For how long was {person} at {event} on {day}?",
        "{person} attended {event} on {day}. How long did it take?",
        "What was the duration of {event} on {day} for {person}?"),
        told("person", "event", "day"),
        of_one(lambda entry: str(datetime.timedelta(minutes=entry["end"] - entry["begin"])))),
    Template("who", (9, 1, 3), (12, 1, 0), (
        "Who was at {event} in {place} from {begin} to {end} on {day}?",
        "On {day} from {begin} to {end}, who attended {event} in {place}?",
        "Name the person at {event} in {place} on {day} between {begin} and {end}."),
        told("event", "place", "begin", "end", "day"), of_one(lambda entry: entry["person"])),
    Template("when", (20, 1, 8), (0, 0, 29), (
        "At what time did {event} begin for {person} on {day}?",
        "{person} attended {event} on {day}. When did it start?",
        "When on {day} did {person} go to {event}?"),
        told("person", "event", "day"), of_one(lambda entry: clock(entry["begin"]))),
    Template("what", (15, 1, 6), (21, 1, 0), (
        "From {begin} to {end} on {day}, what did {person} attend?",
        "On {day}, {person} was busy between {begin} and {end}. With what?",
        "What was on for {person} on {day} from {begin} to {end}?"),
        told("person", "begin", "end", "day"), what),
    Template("schedule", (13, 1, 6), (19, 1, 0), (
        "Between 9:00 AM and 6:00 PM on {day}, when is {person} free for a meeting, by the agenda?",
        "A meeting with {person} is to be on {day} from 9:00 AM to 6:00 PM. Which times does the agenda leave free?",
        "According to the agenda, which times from 9:00 AM to 6:00 PM on {day} has {person} got for a meeting?"),
        a_day_of_somebody, free),
    Template("all events", (13, 1, 6), (0, 0, 20), (
        "Which events are in the agenda of {person} for {day}?",
        "List everything that {person} attends on {day} according to the agenda.",
        "What does the agenda say about {day}: which events does {person} have?"),
        told("person", "day"), events),
]
