"""Every worked example in hints/toolqa runs in the sandbox and gives the answer that plain Python finds in raw rows.

Those of coffee and flights are adapted to tasks of the rehearsal, whose answers test_rehearsal.py checks.
"""

from common import ROOT

import csv
import datetime
import itertools
import json
import math
import pickle
import random
import re
import sqlite3
import statistics
import textwrap

import networkx
import pytest

import review
from agent.hints import load_hints
from test_rehearsal import CODE, NUMBER, TEMPLATES, arguments_of
from tools import import_toolqa, rehearse_toolqa
from tools.sandbox import World

HINTS = load_hints(ROOT / "hints" / "toolqa" / "round1")
EXAMPLES = {s["name"]: s for s in HINTS if s["kind"] == "example"}
MISTAKES = [m for folder in ("round2", "round3") for m in review.load_mistakes(ROOT / "hints" / "toolqa" / folder)
            if not m.judge]


def make_airbnb(rng):
    """Twenty homes in each neighbourhood that an example asks about, and the single ones; some cells are empty."""
    places = ["Fort Greene", "Van Nest", "Glen Oaks", "Bay Terrace", "Howard Beach", "Gerritsen Beach", "Breezy Point",
              "Greenpoint"]
    asked = {0: 71234567, 1: 15163413, 2: 43284872, 3: 40452125}
    rows = []
    for n in range(20 * len(places)):
        price = f"${rng.randint(50, 1200):,} "
        rows.append({
            "id": str(asked.get(n, 5000000 + n)), "host id": "80014485718", "host name": f"Host {n % 9}",
            "NAME": "Brooklyn's heart, Ft Greene!" if n == 8 else f'Home {n}, "nice" & quiet',
            "neighbourhood": places[n % len(places)],
            "lat": round(40.58 + rng.uniform(-0.4, 0.4), 5), "long": round(-73.8 + rng.uniform(-0.4, 0.4), 5),
            "cancellation_policy": rng.choice(("strict", "moderate", "flexible")),
            "room type": rng.choice(("Private room", "Entire home/apt", "Shared room", "Hotel room")),
            "Construction year": rng.randint(2003, 2022), "price": "" if n % 17 == 9 else price,
            "service fee": "$193 ", "minimum nights": rng.randint(1, 30), "number of reviews": rng.randint(0, 200),
            "last review": "10/19/2021", "reviews per month": round(rng.random() * 3, 2),
            "review rate number": rng.randint(1, 5), "availability 365": rng.randint(0, 365),
            "house_rules": "No.\nReally, no.", "license": ""})
    return rows


def make_yelp(rng):
    """The businesses that the examples ask about, and forty others of their kinds around them."""
    asked = [("Paper Lantern Bakery", "12 Bridge St", "Phoenixville", "PA", "19460"),
             ("Knapp's Cyclery", "1 River Rd", "Camden", "NJ", "08101"),
             ("Knapp's Cyclery", "2 Lake Rd", "Trenton", "NJ", "08601"),
             ("Knapp's Cyclery", "3 Lake Rd", "Trenton", "NJ", "08602"),
             ("Copper Kettle Tea House", "4 Mall", "Tucson", "AZ", "85701"),
             ("The Farmacy NJ", "5 Main St", "Palmyra", "NJ", "08065"),
             ("Mi Jalapeno", "6 Main St", "O'Fallon", "IL", "62269"),
             ("Briggs Auction", "7 Main St", "Garnet Valley", "PA", "19060"),
             ("Nora's Blue Door Framing", "8 Main St", "Philadelphia", "PA", "19148"),
             ("Maple & Sons Upholstery", "9 Main St", "Philadelphia", "PA", "19100"),
             ("5-Star Staffing Solutions", "10 Main St", "Reno", "NV", "89501"),
             ("Offices", "75 Queensway Dr", "Belle Chasse", "LA", "70037")]
    towns = [("Lumberton", "NJ", "08048"), ("Sherwood Park", "AB", "T8A 4L3"), ("Indian Rocks Beach", "FL", "33785"),
             ("Lawnside", "NJ", "08045"), ("Franklin", "TN", "37027")]
    kinds = ["Brewpubs", "French", "Automotive", "Cooking Classes", "Bookstores"]
    asked += [(f"Shop {n}", f"{n} Elm St", *towns[n % len(towns)]) for n in range(120)]
    return [{"business_id": f"b{n}", "name": name, "address": address, "city": city, "state": state,
             "postal_code": code, "latitude": round(40 + rng.uniform(-0.12, 0.12), 6),
             "longitude": round(-75 + rng.uniform(-0.12, 0.12), 6), "stars": rng.randint(2, 10) / 2,
             "review_count": rng.randint(1, 300), "is_open": rng.randint(0, 1),
             "attributes": rng.choice((None, {"ByAppointmentOnly": "True"},
                                       {"WiFi": "u'no'", "ByAppointmentOnly": "False"})),
             "categories": ", ".join(rng.sample(kinds, 2)) if n % 13 != 12 else None,
             "hours": {"Monday": "11:0-15:0", "Sunday": "0:0-0:0"}}
            for n, (name, address, city, state, code) in enumerate(asked)]


def make_dblp(rng):
    """Records of papers. The first are those that the examples ask about.

    Every fifth repeats the one before with another number of citations. Some lack pages, some authors an institution.
    """
    titles = ["Hyperparameter Free Mee-Fp Based Localization",
              "PupilMeter: Modeling User Preference with Time-Series Features of Pupillary Response",
              "A Made-up Title on Page Numbers",
              "On Lossy Compression of Directed Graphs"]
    pairs = [("Enrique Corona", "Armin Parchami"), ("Tengchan Zeng", "Omid Semiari"), ("Yaqian Dun", "Kefei Tu")]
    names = ["Amara Lindqvist-Oyelaran", "Guosheng Lin", "Volker Pohl", "Teodor Wrightson-Ibe", "Kevin Lano",
             "Marco Robol", *itertools.chain(*pairs), *(f"Author {n}" for n in range(20))]
    papers = []
    for n in range(90):
        title = titles[n] if n < len(titles) else f"Paper {n}"
        authors = pairs[n % 30 // 10] if n % 10 == 9 else rng.sample(names, 4 if n < 4 else rng.randint(1, 4))
        if n > 4 and n % 5 == 0:
            title, authors = papers[-1]["title"], [a["name"] for a in papers[-1]["authors"]]
        institution = lambda name: f"Univ {len(name) % 4}, Dept {n % 2}" if names.index(name) % 7 != 6 else ""
        authors = [{"id": f"a{names.index(name)}", "name": name, "org": institution(name)} for name in authors]
        first, last = (str(7 * n + 1), str(7 * n + 9)) if n % 5 != 4 else ("", "")
        papers.append({"id": f"p{n}", "title": title, "authors": authors, "year": 2021, "venue": {"raw": "GAMES"},
                       "n_citation": rng.randint(0, 5), "keywords": [], "doc_type": "Journal", "page_start": first,
                       "page_end": last})
    return papers


def write_dblp(folder, papers):
    """Both graphs and the dictionaries as ToolQA makes them from such records. The last paper with a title owns it."""
    cites, people, names = networkx.DiGraph(), networkx.Graph(), {}
    for n, paper in enumerate(papers):
        cites.add_node(paper["id"], **{k: v for k, v in paper.items() if k != "id"})
        cites.add_edges_from((paper["id"], other["id"]) for other in papers[max(0, n - 3):n])
        for author in paper["authors"]:
            names[author["id"]] = author["name"]
            if author["id"] not in people:
                people.add_node(author["id"], org=author["org"])
        for a, b in itertools.combinations((author["id"] for author in paper["authors"]), 2):
            old = people.get_edge_data(a, b, {"weight": 0, "papers": [], "n_citation": []})
            people.add_edge(a, b, weight=old["weight"] + 1, papers=[*old["papers"], paper["id"]],
                            n_citation=[*old["n_citation"], paper["n_citation"]])
    folder.mkdir()
    for name, data in {"paper_net": cites, "author_net": people, "id2title_dict": {p["id"]: p["title"] for p in papers},
                       "title2id_dict": {p["title"]: p["id"] for p in papers},
                       "id2author_dict": names, "author2id_dict": {v: k for k, v in names.items()}}.items():
        (folder / f"{name}.pkl").write_bytes(pickle.dumps(data))


def make_agenda(rng):
    """What the examples ask about; then the same people, events and places at other times. There are three wordings."""
    asked = [("Andrew", "community service activity", "the Riverside Library", "2022-03-08", 540, 720),
             ("Marguerite", "Beekeeping course", "Meadow Farm", "2022-05-21", 840, 960),
             ("Marguerite", "Lantern parade", "Old Harbour Square", "2022-11-11", 1080, 1200),
             ("George", "Coffee tasting", "Cafe Grumpy", "2022-12-08", 600, 660),
             ("Joshua", "Horseback riding", "Hill Stables", "2022-09-11", 540, 690),
             ("Victoria", "Pottery class", "Clay Studio", "2022-08-05", 840, 960),
             ("Marguerite", "Rowing lesson", "Lake House", "2022-06-18", 540, 600),
             ("Marguerite", "Street market", "Station Road", "2022-06-18", 780, 900)]
    days, entries = sorted({date for *_, date, _, _ in asked}), list(asked)
    for n in range(400):
        person, event, place = (rng.choice([entry[i] for entry in asked]) for i in range(3))
        other = lambda: str(datetime.date(2022, 1, 1) + datetime.timedelta(rng.randrange(365)))
        date = rng.choice(days) if n % 4 == 0 else other()
        if not any(date == entry[3] and (person == entry[0] or event == entry[1]) for entry in asked):
            begin = 30 * rng.randrange(16, 40)
            entries.append((person, event, place, date, begin, begin + 30 * rng.randint(1, 6)))
    told = ["On {day}, {person} is to attend {event} at {place}, from {begin} to {end}. All is prepared.",
            "{person} goes to {event} at {place} on {day}; it starts at {begin} and is over at {end}.",
            "{event} will take place on {day} at {place}. It begins at {begin} and ends at {end}, "
            "and {person} will be there."]
    texts = [rng.choice(told).format(person=person, event=event, place=place,
                                     day=f"{datetime.date.fromisoformat(date):%B} {int(date[-2:])}, 2022",
                                     begin=am_pm(begin), end=am_pm(end))
             for person, event, place, date, begin, end in entries]
    return [{"text": text, **dict(zip(("person", "event", "place", "date", "begin", "end"), entry))}
            for text, entry in zip(texts, entries)]


def am_pm(minutes):
    return f"{(minutes // 60 - 1) % 12 + 1}:{minutes % 60:02} {'AM' if minutes < 720 else 'PM'}"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The raw rows of four groups, the rehearsal's tasks of two, and the sandbox with the tools over all six."""
    folder, rng = tmp_path_factory.mktemp("toolqa"), random.Random(2)
    tasks = rehearse_toolqa.rehearse(folder / "rehearsal", seed=1, scale=0.002)
    raw = {"airbnb": make_airbnb(rng), "yelp": make_yelp(rng)}
    db = sqlite3.connect(folder / "rehearsal" / "world" / "world.sqlite")
    for group, rows in raw.items():
        file = folder / f"{group}.{'json' if group == 'yelp' else 'csv'}"
        with open(file, "w", newline="") as f:
            if group == "yelp":
                f.writelines(json.dumps(row) + "\n" for row in rows)
            else:
                writer = csv.DictWriter(f, rows[0])
                writer.writeheader()
                writer.writerows(rows)
        import_toolqa.import_table(db, group, file, None)
    raw |= {"dblp": make_dblp(rng), "agenda": make_agenda(rng)}
    write_dblp(folder / "dblp", raw["dblp"])
    import_toolqa.import_dblp(db, folder / "dblp", lambda *_: None)
    events = [json.dumps({"event": entry["text"]}) + "\n" for entry in raw["agenda"]]
    (folder / "agenda.jsonl").write_text("".join(events))
    import_toolqa.import_agenda(db, folder / "agenda.jsonl")
    db.commit()
    db.close()
    with World(ROOT / "tools" / "toolqa.py", folder / "rehearsal" / "world") as sandbox:
        yield raw, tasks["train"], sandbox


def mean(numbers):
    numbers = [x for x in numbers if x != ""]
    return str(round(sum(numbers) / len(numbers), 1))


def homes(rows, **wanted):
    return [r for r in rows if all(r[k.replace("_", " ")] == v for k, v in wanted.items())]


def dollars(row):
    return int(row["price"].replace("$", "").replace(",", ""))


def cheapest(rows):
    """The name of the cheapest home."""
    return sorted((dollars(r), n, r["NAME"]) for n, r in enumerate(rows) if r["price"])[0][2]


def best(rows):
    """The name of the business with the most stars."""
    return sorted((-r["stars"], n, r["name"]) for n, r in enumerate(rows))[0][2]


def shops(rows, kind=None, **wanted):
    return [r for r in rows if all(r[k] == v for k, v in wanted.items())
            and (kind is None or kind in (r["categories"] or "").split(", "))]


def miles(a, b):
    """By the angle between two unit vectors; the hints have the haversine formula."""
    def vector(place):
        latitude, longitude = map(math.radians, place)
        return math.cos(latitude) * math.cos(longitude), math.cos(latitude) * math.sin(longitude), math.sin(latitude)
    return 3959 * math.acos(min(1, sum(x * y for x, y in zip(vector(a), vector(b)))))


def near(rows, here, limit):
    return [r for r in rows if miles(coordinates(here), coordinates(r)) <= limit]


def coordinates(row):
    return row["latitude"], row["longitude"]


def nearest(rows, here):
    """The name of the nearest other business."""
    return sorted((miles(coordinates(here), coordinates(r)), r["name"]) for r in rows if r is not here)[0][1]


def paper(papers, title):
    return [p for p in papers if p["title"] == title][-1]


def papers_by(papers, *names):
    """The papers that the graph knows: a paper with one author is on no edge."""
    return [p for p in papers if len(p["authors"]) > 1 and set(names) <= {a["name"] for a in p["authors"]}]


def collaborators(papers, name):
    return {a["name"] for p in papers_by(papers, name) for a in p["authors"]} - {name}


def citations(papers, chosen):
    return {p["title"]: paper(papers, p["title"])["n_citation"] for p in chosen}


def all_best(scores):
    return "; ".join(sorted(key for key, score in scores.items() if score == max(scores.values())))


def entries(agenda, **wanted):
    return [e for e in agenda if all(e[k] == v for k, v in wanted.items())]


def free(busy):
    """The free time between 9 AM and 6 PM, counted by the minute."""
    minutes = [m for m in range(540, 1080) if not any(e["begin"] <= m < e["end"] for e in busy)]
    spans = [[m for _, m in run] for _, run in itertools.groupby(enumerate(minutes), lambda pair: pair[1] - pair[0])]
    return ", ".join(f"{am_pm(span[0])}-{am_pm(span[-1] + 1)}" for span in spans)


# A second way from the raw rows to each answer, without our tools.
RIGHT = {
    "airbnb/a home's text": lambda a: homes(a, id="71234567")[0]["room type"],
    "airbnb/a home's number": lambda a: str(homes(a, id="15163413")[0]["availability 365"]),
    "airbnb/review rate number": lambda a: f"{homes(a, id='43284872')[0]['review rate number']}.0",
    "airbnb/host's name": lambda a: homes(a, NAME="Brooklyn's heart, Ft Greene!")[0]["host name"],
    "airbnb/price": lambda a: f"${dollars(homes(a, id='40452125')[0])}",
    "airbnb/how many airbnbs": lambda a: str(len(homes(a, neighbourhood="Van Nest"))),
    "airbnb/average price": lambda a: "$" + mean(
        [dollars(r) for r in homes(a, neighbourhood="Glen Oaks") if r["price"]]),
    "airbnb/proporion of airbnbs": lambda a: str(round(
        sum(r["cancellation_policy"] == "flexible" for r in homes(a, neighbourhood="Bay Terrace")) / 20, 1)),
    "airbnb/cost per night": lambda a: "${}".format(max(
        dollars(r) for r in a if (r["neighbourhood"], r["room type"]) == ("Howard Beach", "Entire home/apt")
        and r["price"])),
    "airbnb/airbnb with high rate": lambda a: str(len(
        [r for r in homes(a, neighbourhood="Gerritsen Beach") if r["review rate number"] in (4, 5)])),
    "airbnb/room with the lowest price": lambda a: cheapest(
        homes(a, neighbourhood="Breezy Point", room_type="Hotel room")),
    "airbnb/shared room with the lowest price": lambda a: cheapest(
        [r for r in homes(a, room_type="Shared room")
         if miles((40.581286157201006, -73.79998226317166), (r["lat"], r["long"])) <= 10]),
    "yelp/a business's text": lambda y: shops(y, name="Paper Lantern Bakery")[0]["address"],
    "yelp/city and state": lambda y: "Camden, Trenton",
    "yelp/a business's number": lambda y: str(shops(y, name="Copper Kettle Tea House")[0]["stars"]),
    "yelp/yes or no - openning": lambda y: ["No", "Yes"][shops(y, name="The Farmacy NJ")[0]["is_open"]],
    "yelp/yes or no - appointment": lambda y: ["No", "Yes"][
        (shops(y, name="Mi Jalapeno")[0]["attributes"] or {}).get("ByAppointmentOnly") == "True"],
    "yelp/hours of operation": lambda y: "Monday: 11:0-15:0, Sunday: 0:0-0:0",
    "yelp/coordinates": lambda y: "{latitude}, {longitude}".format(**shops(y, name="Nora's Blue Door Framing")[0]),
    "yelp/how many business": lambda y: str(len(shops(y, "Brewpubs", city="Lumberton"))),
    "yelp/business in total": lambda y: str(len(shops(y, postal_code="T8A 4L3"))),
    "yelp/best of a category": lambda y: best(shops(y, "French", city="Indian Rocks Beach")),
    "yelp/average review counts": lambda y: "{:.2f}".format(statistics.mean(
        r["review_count"] for r in near(y, shops(y, name="Maple & Sons Upholstery")[0], 5))),
    "yelp/nearest business": lambda y: nearest(
        shops(y, "Cooking Classes"), shops(y, name="5-Star Staffing Solutions")[0]),
    "yelp/business recommendation": lambda y: best(
        shops(near(y, shops(y, address="75 Queensway Dr")[0], 5), "Automotive")),
    "yelp/business not open": lambda y: str(len(shops(y, city="Lawnside", is_open=0))),
    "yelp/average star rating": lambda y: mean([r["stars"] for r in shops(y, "Bookstores", city="Franklin")]),
    "dblp/author": lambda d: ", ".join(a["name"] for a in d[0]["authors"]),
    "dblp/institution": lambda d: "; ".join(
        sorted({a["org"] for a in d[1]["authors"]} - {""}, key=[a["org"] for a in d[1]["authors"]].index)),
    "dblp/pages": lambda d: str(len(range(int(d[2]["page_start"]), int(d[2]["page_end"]) + 1))),
    "dblp/how many papers": lambda d: str(d[3]["n_citation"]),
    "dblp/organization": lambda d: next(
        a["org"] for p in d for a in p["authors"] if a["name"] == "Amara Lindqvist-Oyelaran"),
    "dblp/how many collaborators": lambda d: str(len(collaborators(d, "Guosheng Lin"))),
    "dblp/common collaborators": lambda d: str(len(
        collaborators(d, "Enrique Corona") & collaborators(d, "Armin Parchami"))),
    "dblp/papers write together": lambda d: str(len(citations(d, papers_by(d, "Tengchan Zeng", "Omid Semiari")))),
    "dblp/accumulated citations": lambda d: str(sum(citations(d, papers_by(d, "Yaqian Dun", "Kefei Tu")).values())),
    "dblp/number of papers written by A": lambda d: str(len(citations(d, papers_by(d, "Volker Pohl")))),
    "dblp/papers written by A": lambda d: "; ".join(sorted(citations(d, papers_by(d, "Teodor Wrightson-Ibe")))),
    "dblp/most cited paper": lambda d: all_best(citations(d, papers_by(d, "Kevin Lano"))),
    "dblp/co-author with the highest citation": lambda d: all_best({
        name: sum(citations(d, papers_by(d, "Teodor Wrightson-Ibe", name)).values())
        for name in collaborators(d, "Teodor Wrightson-Ibe")}),
    "dblp/collaborate most": lambda d: all_best({
        name: len(citations(d, papers_by(d, "Amara Lindqvist-Oyelaran", name)))
        for name in collaborators(d, "Amara Lindqvist-Oyelaran")}),
    "dblp/papers by collaborators and others": lambda d: str(len(
        {p["title"] for name in collaborators(d, "Marco Robol") for p in papers_by(d, name)})),
    "agenda/what": lambda a: ", ".join(
        e["event"] for e in entries(a, person="Andrew", date="2022-03-08", begin=540, end=720)),
    "agenda/when": lambda a: ", ".join(
        am_pm(e["begin"]) for e in entries(a, person="Marguerite", event="Beekeeping course", date="2022-05-21")),
    "agenda/where": lambda a: ", ".join(
        e["place"] for e in entries(a, person="Marguerite", event="Lantern parade", date="2022-11-11")),
    "agenda/who": lambda a: ", ".join(
        e["person"] for e in entries(a, event="Coffee tasting", place="Cafe Grumpy", date="2022-12-08", begin=600,
                                     end=660)),
    "agenda/how": lambda a: ", ".join(
        str(datetime.timedelta(minutes=e["end"] - e["begin"]))
        for e in entries(a, person="Joshua", event="Horseback riding", date="2022-09-11")),
    "agenda/schedule": lambda a: free(entries(a, person="Victoria", date="2022-08-05")),
    "agenda/all events": lambda a: ", ".join(sorted(
        e["event"] for e in entries(a, person="Marguerite", date="2022-06-18"))),
}


def steps_of(example):
    """The code of a worked example, step by step: in the agent's tags, or indented below "Step 1: …"."""
    text = example["text"]
    steps = re.findall(r"<python>(.*?)</python>", text, flags=re.S) or re.split(r"^Step \d+: .*$", text, flags=re.M)[1:]
    return [textwrap.dedent(step.strip("\n")) for step in steps]


def play(sandbox, steps):
    """The steps as they ran, and the answer, which the last one gives; each of the others prints something."""
    played = []
    assert len(steps) >= 2
    with sandbox.start() as box:
        for n, code in enumerate(steps):
            observation = box.run(code)
            assert (observation.completed is None) == (n + 1 < len(steps)), observation.text
            assert observation.completed or observation.text.strip(), "a step shows nothing"
            assert "Error" not in observation.text
            played.append({"code": code, "observation": observation.text})
    return played, observation.completed[1]


def mistakes(task, played, answer):
    trajectory = {"id": task["template"], "task": task, "steps": played, "answer": answer, "stop": "complete"}
    return [m.name for m in MISTAKES if m.first_step(trajectory) is not None]


def adapted(code, example, task):
    """A step of an example with another task's arguments, without conditions on columns that the task does not name."""
    about = arguments_of(task["question"])
    dates = zip(sorted(set(re.findall(r"\d{4}-\d\d-\d\d", "".join(steps_of(example))))), about.pop("Date", []))
    code = re.sub(r"\d{4}-\d\d-\d\d", lambda date, new=dict(dates): new.get(date[0], date[0]), code)
    for column in (CODE, NUMBER, "Origin", "Dest", "FlightDate", "Airline", "DayOfWeek"):
        condition = rf"(?<![\w]){column}=.*?(?=, [A-Z]\w+[=<>]|\")"
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
REHEARSED = {template: example for example in EXAMPLES.values() for template in example["templates"]
             if example["group"] in ("coffee", "flights")}


@pytest.mark.parametrize("template", REHEARSED)
def test_a_worked_example_solves_tasks_of_its_kind(template, world):
    _, tasks, sandbox = world
    tasks, example = [task for task in tasks if task["template"] == template], REHEARSED[template]
    assert len(tasks) >= 4, template
    for task in tasks[:4]:
        played, answer = play(sandbox, [adapted(code, example, task) for code in steps_of(example)])
        assert answer == task["answer"], task["question"]
        assert not mistakes(task, played, answer), "what a hint teaches is no mistake"


def test_there_is_an_example_for_every_template():
    """All hundred of the paper's, group by group."""
    covered = [t.split(": ")[0] for t in {t for s in EXAMPLES.values() for t in s["templates"]}]
    assert {group: covered.count(group) for group in covered} == {
        "coffee": 21, "flights": 20, "airbnb": 17, "yelp": 20, "dblp": 15, "agenda": 7}
    dblp = {name for example in EXAMPLES.values() for name in example["templates"] if name.startswith("dblp: ")}
    assert dblp == {f"dblp: {name}" for name in import_toolqa.DBLP.values()}
    assert REHEARSED.keys() == TEMPLATES.keys()
    assert RIGHT.keys() == {name for name, example in EXAMPLES.items() if example not in REHEARSED.values()}


@pytest.mark.parametrize("name", RIGHT)
def test_a_worked_example_gives_the_right_answer(name, world):
    raw, _, sandbox = world
    example, group = EXAMPLES[name], EXAMPLES[name]["group"]
    played, answer = play(sandbox, steps_of(example))
    assert answer == RIGHT[name](raw[group])
    # an answer that was read: from what had been printed it follows, too
    if group == "agenda":
        assert answer == RIGHT[name]([entry for entry in raw[group]
                                      if any(entry["text"] in step["observation"].splitlines() for step in played)])
    question = re.split(r"\n<|\nStep 1: ", example["text"])[0]
    task = {"group": group, "template": example["templates"][0], "question": question}
    assert not mistakes(task, played, answer), "what a hint teaches is no mistake"
