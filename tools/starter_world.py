"""The starter world: invented data for the tools of toolqa.py, and tasks with answers.

    python tools/starter_world.py --out data/starter [--seed 0]

writes world/world.sqlite and seven files of tasks, in which no question occurs twice:

    train.jsonl  val.jsonl  test.jsonl        10, 1 or 2, and 5 tasks of each of the 36 templates
    train2.jsonl  train3.jsonl                12 and 10 more per template: new tasks bring new mistakes to light
    train-unseen.jsonl  test-unseen.jsonl     15 tasks per template; two templates of each group are only in test-unseen

A template is one function: its docstring holds its three wordings, and it draws a question's values and computes the
answer from the Python data, not through the tools. It returns None where the draw has no unique answer.
Values in a question can be told from its other words: they have digits or capitals or stand in quotes.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import command_line, files

import datetime
import random
from itertools import combinations

from tools.toolqa import _write_world

# tasks per template; every third template has 1 in val
SPLITS = {"train": 10, "val": 2, "test": 5, "unseen": 15, "train2": 12, "train3": 10}
DRAWS = 20_000  # tries to find a template's tasks

# The words of the world. None of them is a slot of a recipe in hints/starter.
HEADS = "Alder Bram Corby Dun Elm Fenn Glen Harrow Iver Kel Lang Mort Nor Oster Penn Rud Sel Thorn Ulver Wex".split()
TAILS = "bury dale field ford ham mouth port stead ton wick".split()
FIRST = ("Abel Agnes Alma Anton Astrid Beata Boris Carla Cedric Celia Clara Conrad Dario Delia Dora Edgar Elsa Emil "
         "Erik Esther Fabian Felix Fiona Flora Gideon Greta Gustav Hanna Hector Helga Ida Igor Ingrid Irma Ivan Jana "
         "Jasper Julia Karl Kira Lara Leo Linus Lucia Magda Marco Mila Milo Nadia Nils Nora Olaf Olga Otto Paula Petra "
         "Quentin Ralf Rita Rosa Rufus Sasha Selma Silas Sonja Stella Sven Tessa Theo Tilda Ursula Vera Viktor Wanda "
         "Wilma Xenia Yannis Yvonne Zita Zoran").split()
LAST = ("Ackroyd Barlow Castell Dorsey Ebner Farrow Gantz Hollis Ingram Jessop Kramer Lomax Mercer Novak Ostrow Pruitt "
        "Quill Renner Sorley Tamm Upton Vance Wolcott Yarrow").split()
COLOURS = "Amber Azure Copper Crimson Golden Ivory Jade Ochre Scarlet Silver Teal Violet".split()
LANDMARKS = "Bridge Court Garden Hill Meadow Mill Quay Square Terrace Yard".split()
AIRLINES = {"KV": "Condor Sky", "LN": "Lantern Air", "MQ": "Meridian Wings", "PX": "Pelican Jet", "RT": "Redwood Air",
            "SB": "Starling Blue", "TW": "Tundra West", "ZG": "Zephyr Gulf"}
ROOM_TYPES = ["entire home", "hotel room", "private room", "shared room"]
CATEGORIES = ("Bakery Barbershop Bookstore Brewery Butcher Dentist Florist Gallery Gym Laundry Pharmacy "
              "Pizzeria Plumber Tailor Teahouse Watchmaker").split()
STREETS = "Acorn Birch Cedar Dogwood Hazel Juniper Laurel Maple Poplar Rowan Spruce Walnut".split()
STATES = "AV BN CQ DL EX FR GM HP".split()
LISTING = [["Airy", "Bright", "Calm", "Charming", "Cosy", "Elegant", "Modern", "Quiet", "Rustic", "Snug", "Spacious",
            "Sunny"], ["attic", "cabin", "cottage", "flat", "house", "loft", "studio", "suite"],
           ["beside the river", "facing the harbour", "over the bakery", "with balcony", "with fireplace",
            "with garden", "with parking", "with terrace"]]
SHOP = [["Bella", "Busy", "Corner", "Daily", "Friendly", "Grand", "Happy", "Honest", "Little", "Lucky", "Old", "Royal"],
        ["Anchor", "Badger", "Crown", "Falcon", "Heron", "Lion", "Maple", "Otter", "Pearl", "Raven", "Swan", "Tulip"]]
PAPER = [["Adaptive", "Bayesian", "Causal", "Convex", "Deep", "Fair", "Fast", "Lazy", "Neural", "Online", "Private",
          "Robust", "Sparse", "Stable"],
         ["clustering", "decoding", "hashing", "indexing", "inference", "learning", "parsing", "planning", "pruning",
          "ranking", "sampling", "tracking"],
         ["of graphs", "of images", "of markets", "of networks", "of proteins", "of sensors", "of speech", "of streams",
          "of tables", "of traffic"]]
EVENT = [["autumn", "ballet", "chess", "choir", "cycling", "dance", "drawing", "judo", "jazz", "opera", "poetry",
          "pottery", "rowing", "tennis", "theatre", "yoga"],
         ["class", "contest", "dinner", "evening", "lesson", "meeting", "rehearsal", "show", "tour", "workshop"]]
ENTRIES = ['Entry titled "{titled}" by {by} on {on} at {at}, starting {starting} until {until}, guest {guest}.',
           'Booked by {by} on {on}, starting {starting} until {until} at {at} with guest {guest}, titled "{titled}".',
           'Plan starting {starting} until {until} on {on} at {at}, titled "{titled}", guest {guest}, made by {by}.']


class World:
    """All data of one seed, as lists of rows and two graphs."""

    def __init__(self, seed):
        rng = random.Random(f"world {seed}")
        self.cities = [head + tail for head in HEADS for tail in TAILS]
        rng.shuffle(self.cities)
        self.coffee = make_coffee(rng)
        self.airports, self.flights = make_flights(rng, self.cities[:30])
        self.listings = make_listings(rng)
        self.businesses = make_businesses(rng, self.cities[30:90])
        self.authors, self.together, self.papers, self.citations = make_papers(rng, self.cities[90:120])
        self.entries = make_entries(rng)
        self.agenda = [rng.choice(ENTRIES).format(**entry) for entry in self.entries]
        self.tables = {"coffee": self.coffee, "flights": self.flights, "airports": self.airports,
                       "listings": self.listings, "businesses": self.businesses}

    def write(self, file):
        """Writes the data as toolqa.py reads it."""
        in_order = lambda edges: dict(sorted(edges.items(), key=lambda edge: sorted(edge[0])))
        graphs = {"AuthorNet": (self.authors, in_order(self.together)),              # neighbours in alphabetical order
                  "PaperNet": (self.papers, in_order(self.citations))}
        _write_world(file, self.tables, graphs, self.agenda)


def make_coffee(rng):
    """Ten years of weekdays; the price walks."""
    rows, price, day = [], 95.0, datetime.date(2012, 1, 2)
    while day.year < 2022:
        if day.weekday() < 5:
            start = max(price + rng.gauss(0, 0.8), 20)
            price = max(start + rng.gauss(0, 1.6), 20)
            rows.append({"Date": str(day), "Open": round(start, 2),
                         "High": round(max(start, price) + rng.random() * 2, 2),
                         "Low": round(min(start, price) - rng.random() * 2, 2), "Close": round(price, 2),
                         "Volume": rng.randint(4_000, 40_000)})
        day += datetime.timedelta(1)
    return rows


def make_flights(rng, cities):
    """80 days of flights; a flight number has one route and flies on a day at most once."""
    codes = rng.sample([a + b + c for a in "BCDLMPST" for b in "AEIOU" for c in "BDGLNRS"], len(cities))
    airports = [{"Code": code, "City": city, "State": rng.choice(STATES), "Elevation": rng.randint(1, 1900)}
                for code, city in zip(codes, cities)]
    distance = {frozenset(pair): rng.randint(150, 2600) for pair in combinations(codes, 2)}
    numbers = rng.sample(range(1000, 10_000), 160)
    flights = []
    for number in numbers:
        airline = rng.choice(list(AIRLINES))
        origin, dest = rng.sample(codes, 2)
        miles = distance[frozenset((origin, dest))]
        leaves = rng.randint(300, 1200)  # minutes after midnight
        for day in rng.sample(range(80), 25):
            cancelled = rng.random() < 0.12
            departs, air = leaves + rng.randint(-20, 20), round(miles / 7.5) + rng.randint(15, 35)
            date = datetime.date(2022, 3, 1) + datetime.timedelta(day)
            flights.append({"Flight": f"{airline}{number}", "Airline": AIRLINES[airline], "Origin": origin,
                            "Dest": dest, "Date": str(date), "Departs": clock(departs),
                            "Arrives": clock((departs + air + 25) % 1440), "AirTime": air, "Distance": miles,
                            "Delay": 0 if cancelled else max(0, rng.randint(-30, 90)),
                            "Cancelled": "Yes" if cancelled else "No"})
    flights.sort(key=lambda flight: (flight["Date"], flight["Departs"], flight["Flight"]))
    return airports, flights


def make_listings(rng):
    hosts = rng.sample([f"{first} {last}" for first in FIRST for last in LAST], 180)
    areas = rng.sample([f"{colour} {landmark}" for colour in COLOURS for landmark in LANDMARKS], 30)
    return [{"Id": key, "Name": name, "Host": rng.choice(hosts), "Area": rng.choice(areas),
             "Type": rng.choice(ROOM_TYPES), "Price": rng.randint(30, 420), "Reviews": rng.randint(0, 400),
             "Rating": round(rng.uniform(2.5, 5), 2)}
            for key, name in zip(rng.sample(range(100_000, 1_000_000), 600), titles(rng, LISTING, 600))]


def make_businesses(rng, cities):
    """A city has two postal codes. A name may occur in several of them, never twice in one."""
    state = {city: rng.choice(STATES) for city in cities}
    places = list(zip(cities * 2, rng.sample(range(10_000, 100_000), 2 * len(cities))))
    names = [f"{a} {b} {c}" for a in SHOP[0] for b in SHOP[1] for c in ("House", "Market", "Supply", "Works")]
    chosen = set()
    while len(chosen) < 1000:
        city, postal = rng.choice(places)
        chosen.add((rng.choice(names), city, postal))
    return [{"Name": name, "Street": f"{rng.randint(2, 990)} {rng.choice(STREETS)} Street", "City": city,
             "State": state[city], "Postal": postal, "Category": rng.choice(CATEGORIES),
             "Stars": rng.randint(2, 10) / 2, "Reviews": rng.randint(3, 900), "Open": rng.choice(["Yes", "Yes", "No"])}
            for name, city, postal in sorted(chosen)]


def make_papers(rng, cities):
    """Authors who write with a few others, and papers that cite older ones."""
    names = rng.sample([f"{first} {last}" for first in FIRST for last in LAST], 240)
    authors = {name: {"organization": f"{rng.choice(cities)} {rng.choice(['College', 'Institute', 'University'])}",
                      "papers": 0} for name in names}
    together, papers, citations = {}, {}, {}
    for title in titles(rng, PAPER, 480):
        circle = rng.randrange(0, 230, 8)
        group = rng.sample(names[circle : circle + 10], rng.randint(1, 4))
        older = rng.sample(list(papers), min(len(papers), rng.randint(1, 4)))
        papers[title] = {"authors": group, "year": 2000 + len(papers) // 20, "pages": rng.randint(4, 40)}
        for name in group:
            authors[name]["papers"] += 1
        for pair in combinations(sorted(group), 2):
            edge = together.setdefault(pair, {"papers": 0, "since": papers[title]["year"]})
            edge["papers"] += 1
        for cited in older:
            citations[title, cited] = {"cited": cited, "times": rng.randint(1, 9)}
    return authors, together, papers, citations


def make_entries(rng):
    """Agenda entries; owners and guests have no name in common, so a search for an owner finds no guest."""
    people = rng.sample(FIRST, len(FIRST))
    owners, guests = people[:48], people[48:]
    places = [f"{colour} {landmark}" for colour in COLOURS for landmark in LANDMARKS][::2]
    dates = [str(datetime.date(2023, 1, 1) + datetime.timedelta(day)) for day in range(151)]
    entries, taken = [], set()
    while len(entries) < 700:
        by, at, on = rng.choice(owners), rng.choice(places), rng.choice(dates)
        titled = f"{rng.choice(EVENT[0])} {rng.choice(EVENT[1])}"
        starting = rng.randrange(8 * 60, 20 * 60, 15)
        if not taken & {(at, on), (by, titled)}:  # one entry a place and day, each title once an owner
            taken |= {(at, on), (by, titled)}
            entries.append({"titled": titled, "by": by, "on": on, "at": at, "starting": clock(starting),
                            "until": clock(starting + rng.randrange(30, 225, 15)), "guest": rng.choice(guests)})
    return entries


def titles(rng, words, count):
    return rng.sample([f"{a} {b} {c}" for a in words[0] for b in words[1] for c in words[2]], count)


def clock(time):
    return f"{time // 60:02}:{time % 60:02}"


def minutes(time):
    return int(time[:2]) * 60 + int(time[3:])


def days(world, rng, least, most):
    """The first and the last of least to most neighbouring coffee days, and all of them."""
    start, count = rng.randrange(len(world.coffee) - most), rng.randint(least, most)
    span = world.coffee[start : start + count]
    return span[0]["Date"], span[-1]["Date"], span


def only(rows):
    """The single row, or None."""
    return rows[0] if len(rows) == 1 else None


def best(rows, column):
    """The only row with the column's maximum, or None."""
    return only([row for row in rows if row[column] == max(other[column] for other in rows)])


def select(rows, **columns):
    return [row for row in rows if all(row[column] == value for column, value in columns.items())]


# ---- coffee ----

def opening_price(world, rng):
    """What did the first trade in coffee cost on {on}?
    At which price did coffee begin trading on {on}?
    Tell me what coffee cost when the market opened on {on}."""
    row = rng.choice(world.coffee)
    return {"on": row["Date"]}, row["Open"]


def daily_price_range(world, rng):
    """How far apart were the high and the low of coffee on {on}?
    By how much did the coffee price vary on {on}?
    What was the gap between the highest and the lowest price of coffee on {on}?"""
    row = rng.choice(world.coffee)
    return {"on": row["Date"]}, round(row["High"] - row["Low"], 2)


def busiest_coffee_day(world, rng):
    """When was most coffee traded after {after} and before {before}?
    When, after {after} and before {before}, did the trade in coffee reach its largest volume?
    Looking before {before} but after {after}, when was the volume of coffee highest?"""
    after, before, span = days(world, rng, 10, 80)
    row = best(span[1:-1], "Volume")
    return row and ({"after": after, "before": before}, row["Date"])


def rising_coffee_days(world, rng):
    """On how many days since {since} and until {until} did coffee close above its opening?
    How often, since {since} and until {until}, did coffee end the day higher than it began?
    Count the days since {since} and until {until} on which the price of coffee rose between open and close."""
    first, last, span = days(world, rng, 8, 80)
    return {"since": first, "until": last}, sum(row["Close"] > row["Open"] for row in span)


def average_volume(world, rng):
    """What was the average daily volume of coffee in the month {month}?
    How much coffee was traded per day on average during the month {month}?
    For the month {month}, give the mean volume of a trading day of coffee."""
    month = rng.choice(world.coffee)["Date"][:7]
    volumes = [row["Volume"] for row in world.coffee if row["Date"].startswith(month)]
    return {"month": month}, round(sum(volumes) / len(volumes), 1)


def close_at_the_lowest(world, rng):
    """At what price did coffee close on the day of its lowest price between start {start} and end {end}?
    On the day when coffee was cheapest between start {start} and end {end}, what was its close?
    Find the coffee day with the lowest low between start {start} and end {end}: how did it close?"""
    start, end, span = days(world, rng, 8, 60)
    low = min(row["Low"] for row in span)
    row = only(select(span, Low=low))
    return row and ({"start": start, "end": end}, row["Close"])


# ---- flights ----

def departure_time(world, rng):
    """When did flight {flight} leave on {on}?
    At what time did the plane of flight {flight} take off on {on}?
    What was the departure time on {on} of flight {flight}?"""
    row = rng.choice(select(world.flights, Cancelled="No"))
    return {"flight": row["Flight"], "on": row["Date"]}, row["Departs"]


def average_delay(world, rng):
    """What was the average delay of the planes leaving {leaving} on {on}?
    How many minutes late were the planes leaving {leaving} on {on}, taken together?
    For all planes leaving {leaving} on {on}, what was the mean delay?"""
    row = rng.choice(world.flights)
    rows = select(world.flights, Origin=row["Origin"], Date=row["Date"])
    if len(rows) > 1 and not select(rows, Cancelled="Yes"):
        return {"leaving": row["Origin"], "on": row["Date"]}, round(sum(r["Delay"] for r in rows) / len(rows), 1)


def farthest_destination(world, rng):
    """To which airport does the airline {airline} fly farthest when leaving {leaving}?
    What is the most distant airport that the airline {airline} serves leaving {leaving}?
    Flying with the airline {airline} and leaving {leaving}, which airport is the farthest without a stop?"""
    row = rng.choice(world.flights)
    rows = select(world.flights, Airline=row["Airline"], Origin=row["Origin"])
    far = {r["Dest"] for r in rows if r["Distance"] == max(r["Distance"] for r in rows)}
    if len(far) == 1:
        return {"airline": row["Airline"], "leaving": row["Origin"]}, far.pop()


def cancelled_flights(world, rng):
    """How many flights to {to} were cancelled after {after}?
    Of the planes scheduled after {after} to {to}, how many never left?
    Count the cancellations of service to {to} after {after}."""
    row, after = rng.choice(world.flights), rng.choice(world.flights)["Date"]
    count = sum(r["Date"] > after for r in select(world.flights, Dest=row["Dest"], Cancelled="Yes"))
    if count:
        return {"to": row["Dest"], "after": after}, count


def arrival_city(world, rng):
    """In which city did flight {flight} land on {on}?
    To what city did flight {flight} carry its passengers on {on}?
    Name the city where flight {flight} touched down on {on}."""
    row = rng.choice(select(world.flights, Cancelled="No"))
    return ({"flight": row["Flight"], "on": row["Date"]},
            only(select(world.airports, Code=row["Dest"]))["City"])


def air_time_difference(world, rng):
    """How many minutes longer was flight {flight} in the air than {than} on {on}?
    By how many minutes more than {than} was flight {flight} in the air on {on}?
    Longer in the air than {than} was flight {flight} on {on}: by how many minutes?"""
    row = rng.choice(world.flights)
    other = rng.choice(select(world.flights, Date=row["Date"], Cancelled="No"))
    if row["Cancelled"] == "No" and row["AirTime"] > other["AirTime"]:
        values = {"flight": row["Flight"], "than": other["Flight"], "on": row["Date"]}
        return values, row["AirTime"] - other["AirTime"]


# ---- airbnb ----

def listing_host(world, rng):
    """Who is the host of the listing called "{called}"?
    Which host lets the place called "{called}"?
    Name the person who rents out the home called "{called}"."""
    row = rng.choice(world.listings)
    return {"called": row["Name"]}, row["Host"]


def price_of_a_stay(world, rng):
    """What does listing {listing} cost over {over} nights?
    How much is listing {listing} for a guest over {over} nights?
    For people in listing {listing} over {over} nights, what is there to pay in all?"""
    row, count = rng.choice(world.listings), rng.randint(2, 21)
    return {"over": count, "listing": row["Id"]}, row["Price"] * count


def cheap_listings(world, rng):
    """How many listings in the area {area} cost under {under} a night?
    In the area {area}, how many places to stay are to be had under {under}?
    Count the homes in the area {area} that have a nightly price under {under}."""
    area, limit = rng.choice(world.listings)["Area"], rng.randrange(80, 420, 5)
    count = sum(row["Price"] < limit for row in select(world.listings, Area=area))
    return count and ({"area": area, "under": limit}, count)


def average_room_price(world, rng):
    """What is the average price of the type "{type}" in the area {area}?
    How much does the type "{type}" cost on average in the area {area}?
    For listings of the type "{type}" in the area {area}, what is the mean price of a night?"""
    row = rng.choice(world.listings)
    prices = [r["Price"] for r in select(world.listings, Area=row["Area"], Type=row["Type"])]
    if len(prices) > 1:
        return {"type": row["Type"], "area": row["Area"]}, round(sum(prices) / len(prices), 2)


def best_rated_listing(world, rng):
    """Which listing near {near} under {under} a night has the best rating?
    For a price under {under}, which place near {near} is rated highest?
    Recommend the best rated stay near {near} that is priced under {under}."""
    near, under = rng.choice(world.listings)["Area"], rng.randrange(150, 420, 5)
    rows = [row for row in select(world.listings, Area=near) if row["Price"] < under]
    row = best(rows, "Rating") if len(rows) > 2 else None
    return row and ({"near": near, "under": under}, row["Name"])


def listings_of_the_host(world, rng):
    """How many listings does the host of the one called "{called}" have?
    The host of the place called "{called}" offers how many listings altogether?
    Count all listings that belong to the host of the home called "{called}"."""
    row = rng.choice(world.listings)
    return {"called": row["Name"]}, len(select(world.listings, Host=row["Host"]))


# ---- yelp ----

def street_address(world, rng):
    """What address does the business called "{called}" have in postal code {code}?
    Where is the shop called "{called}" with postal code {code}?
    Give the address of the place called "{called}" within postal code {code}."""
    row = rng.choice(world.businesses)
    return {"called": row["Name"], "code": row["Postal"]}, row["Street"]


def most_reviewed_business(world, rng):
    """Which business of the kind {kind} in the city {city} has the most reviews?
    In all reviews, which one of the kind {kind} in the city {city} comes up most often?
    Name the place of the kind {kind} in the city {city} that people reviewed most."""
    row = rng.choice(world.businesses)
    rows = select(world.businesses, Category=row["Category"], City=row["City"])
    row = best(rows, "Reviews") if len(rows) > 1 else None
    return row and ({"kind": row["Category"], "city": row["City"]}, row["Name"])


def open_businesses(world, rng):
    """How many businesses with postal code {code} are still open?
    Count the businesses in postal code {code} that have not closed for good.
    In postal code {code}, how many businesses are in operation?"""
    postal = rng.choice(world.businesses)["Postal"]
    return {"code": postal}, len(select(world.businesses, Postal=postal, Open="Yes"))


def average_stars(world, rng):
    """How many stars does a business of the kind {kind} in the state {state} get on average?
    What is the mean rating of all of the kind {kind} in the state {state}?
    Averaged over the kind {kind} in the state {state}, what is the rating?"""
    row = rng.choice(world.businesses)
    stars = [r["Stars"] for r in select(world.businesses, Category=row["Category"], State=row["State"])]
    if len(stars) > 1:
        return {"kind": row["Category"], "state": row["State"]}, round(sum(stars) / len(stars), 2)


def neighbourhood_favourite(world, rng):
    """Which business has the most reviews in the postal code of the one called "{called}"?
    Within the postal code of the shop called "{called}", which business is reviewed most?
    Take the postal code of the place called "{called}": which business there has the most reviews?"""
    shop = rng.choice(world.businesses)
    row = best(select(world.businesses, Postal=shop["Postal"]), "Reviews")
    if row and only(select(world.businesses, Name=shop["Name"])):
        return {"called": shop["Name"]}, row["Name"]


def cities_with_a_category(world, rng):
    """In how many cities of the state {state} is there a business of the kind {kind}?
    How many different cities of the state {state} have at least one of the kind {kind}?
    Count the cities of the state {state} where one can find the kind {kind}."""
    row = rng.choice(world.businesses)
    rows = select(world.businesses, State=row["State"], Category=row["Category"])
    return {"state": row["State"], "kind": row["Category"]}, len({r["City"] for r in rows})


# ---- dblp ----

def neighbours(edges, node):
    return sorted(b if a == node else a for a, b in edges if node in (a, b))


def coauthor_count(world, rng):
    """How many coauthors does the author {author} have?
    With how many other people did the author {author} write papers?
    Count the people who published together with the author {author}."""
    name = rng.choice(list(world.authors))
    return {"author": name}, len(neighbours(world.together, name))


def coauthor_list(world, rng):
    """Who are the coauthors of the author {author}, in alphabetical order with commas between?
    List everyone who wrote with the author {author}, alphabetically and separated by commas.
    Which people published with the author {author}, in alphabetical order and separated by commas?"""
    name = rng.choice(list(world.authors))
    return {"author": name}, ", ".join(neighbours(world.together, name))


def common_coauthors(world, rng):
    """How many coauthors do the author {author} and the colleague {colleague} have in common?
    How many people wrote papers with the author {author} and also with the colleague {colleague}?
    Count the coauthors that the author {author} shares with the colleague {colleague}."""
    one, two = rng.choice(list(world.together))
    common = set(neighbours(world.together, one)) & set(neighbours(world.together, two))
    return common and ({"author": one, "colleague": two}, len(common))


def first_joint_year(world, rng):
    """In what year did the author {author} and the colleague {colleague} first publish together?
    Of which year is the earliest joint paper of the author {author} and the colleague {colleague}?
    Since which year have the author {author} and the colleague {colleague} written papers together?"""
    (one, two), edge = rng.choice(list(world.together.items()))
    if rng.random() < 0.5:
        one, two = two, one
    return {"author": one, "colleague": two}, edge["since"]


def first_author_organization(world, rng):
    """At which organization is the first author of the paper "{paper}"?
    Which organization employs the first author of the paper "{paper}"?
    Name the institution where the first author of the paper "{paper}" works."""
    title = rng.choice(list(world.papers))
    return {"paper": title}, world.authors[world.papers[title]["authors"][0]]["organization"]


def longest_linked_paper(world, rng):
    """Of all that cite or are cited by the paper "{paper}", which has the most pages?
    What is the longest work linked by a citation to the paper "{paper}"?
    Name the longest of all works with a citation link to the paper "{paper}"."""
    title = rng.choice(list(world.papers))
    linked = [{"title": t, "pages": world.papers[t]["pages"]} for t in neighbours(world.citations, title)]
    row = best(linked, "pages") if len(linked) > 1 else None
    return row and ({"paper": title}, row["title"])


# ---- agenda ----

def event_place(world, rng):
    """Where is the member {member} booked on {on}?
    To which place does the member {member} go on {on}?
    Name the location of the appointment that the member {member} has on {on}."""
    row = single_entry(world, rng)
    return row and ({"member": row["by"], "on": row["on"]}, row["at"])


def event_start(world, rng):
    """At what time does the member {member} begin the event "{event}"?
    When should the member {member} be there for the event "{event}"?
    The agenda of the member {member} has the event "{event}": at what time does it start?"""
    row = rng.choice(world.entries)
    return {"member": row["by"], "event": row["titled"]}, row["starting"]


def event_length(world, rng):
    """How many minutes does the appointment of the member {member} on {on} last?
    For how many minutes is the member {member} occupied on {on}?
    How long, in minutes, is what the member {member} has planned on {on}?"""
    row = single_entry(world, rng)
    return row and ({"member": row["by"], "on": row["on"]}, minutes(row["until"]) - minutes(row["starting"]))


def entries_of_a_month(world, rng):
    """How many agenda entries does the member {member} have in the month {month}?
    Count the entries in the agenda of the member {member} for the month {month}.
    How many different things has the member {member} booked during the month {month}?"""
    row = rng.choice(world.entries)
    count = sum(entry["on"][:7] == row["on"][:7] for entry in select(world.entries, by=row["by"]))
    if count <= 10:  # retrieve_agenda shows no more
        return {"member": row["by"], "month": row["on"][:7]}, count


def event_title(world, rng):
    """What is planned at {at} on {on}?
    Which event takes place on {on} at {at}?
    Which entry does the agenda have at {at} on {on}?"""
    row = rng.choice(world.entries)
    return {"at": row["at"], "on": row["on"]}, row["titled"]


def guest_at_the_same_place(world, rng):
    """At the place where the member {member} is on {on}, who is the guest of the date {date}?
    Where the member {member} is booked on {on}, who is the guest of the date {date}?
    Find the place of the member {member} on {on}: who is its guest of the date {date}?"""
    row = single_entry(world, rng)
    other = row and rng.choice(select(world.entries, at=row["at"]))
    if row and other is not row:
        return {"member": row["by"], "on": row["on"], "date": other["on"]}, other["guest"]


def single_entry(world, rng):
    """An entry whose owner has no other on that day, or None."""
    row = rng.choice(world.entries)
    return only(select(world.entries, by=row["by"], on=row["on"]))


# The third and the sixth template of each group are those of test-unseen.
GROUPS = {
    "flights": [departure_time, average_delay, farthest_destination, cancelled_flights, arrival_city,
                air_time_difference],
    "coffee": [opening_price, daily_price_range, busiest_coffee_day, rising_coffee_days, average_volume,
               close_at_the_lowest],
    "airbnb": [listing_host, price_of_a_stay, cheap_listings, average_room_price, best_rated_listing,
               listings_of_the_host],
    "yelp": [street_address, most_reviewed_business, open_businesses, average_stars, neighbourhood_favourite,
             cities_with_a_category],
    "dblp": [coauthor_count, coauthor_list, common_coauthors, first_joint_year, first_author_organization,
             longest_linked_paper],
    "agenda": [event_place, event_start, event_length, entries_of_a_month, event_title, guest_at_the_same_place],
}


def make_tasks(world, seed):
    """Returns {split: tasks}. Within a template no two tasks, in whichever splits, ask for the same values."""
    tasks = {name: [] for name in ("train", "val", "test", "train-unseen", "test-unseen", "train2", "train3")}
    for group, templates in GROUPS.items():
        for index, template in enumerate(templates):
            name = template.__name__.replace("_", " ")
            wordings = [line.strip() for line in template.__doc__.splitlines()]
            unseen = index % 3 == 2
            sizes = SPLITS | {"val": 1 if unseen else SPLITS["val"]}
            rng, drawn = random.Random(f"{name} {seed}"), {}
            for _ in range(DRAWS):
                values, answer = template(world, rng) or ({}, "")
                if values and str(answer):
                    drawn.setdefault(tuple(values.values()), (values, str(answer)))
                if len(drawn) == sum(sizes.values()):
                    break
            else:
                raise ValueError(f"seed {seed} gives only {len(drawn)} different questions for the template {name}")
            number, drawn = 0, iter(drawn.values())
            for split, size in sizes.items():
                split = f"{'test' if unseen else 'train'}-unseen" if split == "unseen" else split
                for _ in range(size):
                    values, answer = next(drawn)
                    question = wordings[number % len(wordings)].format(**values)
                    tasks[split].append({"id": f"{group}-{name.replace(' ', '-')}-{number:04}", "group": group,
                                         "template": name, "question": question, "answer": answer})
                    number += 1
    return tasks


def main():
    parser = command_line.Parser(__doc__)
    parser.add_argument("--out", type=Path, required=True, help="directory for world/world.sqlite and the tasks")
    parser.add_argument("--seed", type=int, default=0, help="another seed, another world")
    args = parser.parse_args()
    world = World(args.seed)
    tasks = make_tasks(world, args.seed)
    world.write(args.out / "world" / "world.sqlite")
    files.write_whole({args.out / f"{split}.jsonl": files.as_lines(some) for split, some in tasks.items()})
    print(f"{args.out}: world/world.sqlite, " + ", ".join(f"{k}.jsonl ({len(v)} tasks)" for k, v in tasks.items()))


if __name__ == "__main__":
    command_line.run_stage(main)
