"""The airbnb group: homes to rent in New York, and questions on one of them or on a neighbourhood.

The table has the real one's flaws: rows that come twice, rows with the same id that differ, and empty cells.
"""

import csv
import random
from pathlib import Path

from tools.rehearsal import Template, all_best, draw, mean, miles, rounded, settled, the_only

FULL, FEWEST = 102_599, 4_000                          # rows of ToolQA's table, and what the questions need
TYPES = ("Private room", "Entire home/apt", "Shared room", "Hotel room")
# latitude and longitude of each borough, and its neighbourhoods
PLACES = {
    "Manhattan": (40.78, -73.96, "Harlem|Chelsea|Midtown|SoHo|Tribeca|Inwood|East Village|West Village|Chinatown|"
                  "Hell's Kitchen|Washington Heights|Murray Hill|Upper East Side|Gramercy"),
    "Brooklyn": (40.65, -73.95, "Bushwick|Greenpoint|Williamsburg|Fort Greene|Clinton Hill|Park Slope|Red Hook|"
                 "Bedford-Stuyvesant|Crown Heights|Gerritsen Beach|Brownsville|DUMBO|Sunset Park|Bay Ridge"),
    "Queens": (40.71, -73.82, "Astoria|Long Island City|Flushing|Rosedale|Whitestone|Glen Oaks|Howard Beach|Jamaica|"
               "Breezy Point|Bayside|Elmhurst|Forest Hills|Ridgewood|St. Albans"),
    "Bronx": (40.85, -73.87, "Van Nest|Belmont|Melrose|Fordham|City Island|Throgs Neck|Mott Haven|Pelham Bay|"
              "Schuylerville|Kingsbridge"),
    "Staten Island": (40.58, -74.12, "Eltingville|Concord|Clifton|St. George|Tompkinsville|Fort Wadsworth|Great Kills"),
}
NEIGHBOURHOODS = [name for *_, names in PLACES.values() for name in names.split("|")]
KINDS = ("Studio|Loft|Apartment|Bedroom|Garden Flat|Brownstone Floor|Duplex|Guest Suite|1BR|2 BR home|Hideaway|"
         "Penthouse|Townhouse").split("|")
MOODS = ("Sunny|Cozy|Quiet|Bright & airy|Spacious|Charming|Modern|Artist's|Newly painted|*Lovely*|Huge|Calm|Stylish|"
         "Affordable|Vintage").split("|")
EXTRAS = ("with a roof deck|near the subway|, piano included|for 2 guests!|w/ backyard|by the park|- long stays|"
          "with a view|, no stairs|(self check-in)|close to everything|and free parking|under old trees").split("|")
HOSTS = ("Ada Bao Carmen Dmitri Elif Farah Gus Hana Ivo June Kofi Lena Mateo Nadia Omar Priya Quentin Rosa Sami Tess "
         "Uma Vera Wren Ximena Yusuf Zoe").split()


def write_corpus(folder: Path, rng: random.Random, scale: float) -> None:
    """folder/airbnb.csv, 102,599 rows at scale 1 and 4,000 at least.

    At most 60 rows have another one's id and other cells: with more, nothing could be counted without ambiguity."""
    rows, twins, places = [], 0, [(group, north, east, name) for group, (north, east, names) in PLACES.items()
                        for name in names.split("|")]
    while len(rows) < max(FEWEST, FULL * scale):
        if len(rows) > 100 and rng.random() < 0.03:    # the same home again, unchanged or with other cells
            again = dict(rng.choice(rows))
            if twins < 60 and rng.random() < 0.5:
                twins += 1
                again |= {"price": money(rng), "availability 365": rng.randint(0, 365), "host name": rng.choice(HOSTS)}
            rows.append(again)
        else:
            rows.append(a_home(rng, 1_001_254 + 552 * len(rows), *rng.choice(places)))
    with open(folder / "airbnb.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def a_home(rng, key, group, north, east, neighbourhood):
    reviews = rng.choice((0, rng.randint(1, 20), rng.randint(1, 400)))
    or_empty = lambda value, share=0.04: "" if rng.random() < share else value
    return {
        "id": key, "NAME": f"{rng.choice(MOODS)} {rng.choice(KINDS)} {rng.choice(EXTRAS)}".replace(" ,", ","),
        "host id": rng.randrange(10 ** 9, 10 ** 11), "host_identity_verified": rng.choice(("verified", "unconfirmed")),
        "host name": rng.choice(HOSTS), "neighbourhood group": group, "neighbourhood": neighbourhood,
        "lat": round(north + rng.gauss(0, 0.03), 5), "long": round(east + rng.gauss(0, 0.03), 5),
        "country": "United States", "country code": "US", "instant_bookable": or_empty(rng.choice(("TRUE", "FALSE"))),
        "cancellation_policy": or_empty(rng.choice(("strict", "moderate", "flexible"))),
        "room type": rng.choices(TYPES, (40, 45, 7, 8))[0], "Construction year": or_empty(rng.randint(2003, 2022)),
        "price": or_empty(money(rng)), "service fee": or_empty(f"${rng.randint(10, 240)} "),
        "minimum nights": or_empty(rng.choice((1, 2, 3, 5, 7, 10, 30))), "number of reviews": reviews,
        "last review": f"{rng.randint(1, 12)}/{rng.randint(1, 28)}/{rng.randint(2012, 2022)}" if reviews else "",
        "reviews per month": round(reviews / rng.uniform(10, 60), 2) if reviews else "",
        "review rate number": or_empty(rng.randint(1, 5)), "calculated host listings count": rng.randint(1, 9),
        "availability 365": or_empty(rng.randint(0, 365)), "license": "",
        "house_rules": or_empty(rng.choice(("No smoking.", "Shoes off, please.\nQuiet after 10 PM.", "#NAME?")), 0.5)}


def money(rng):
    return f"${rng.randint(50, 1200):,} "


def draw_tasks(folder: Path, rng: random.Random) -> dict[str, list[tuple[dict, str]]]:
    with open(folder / "airbnb.csv", newline="") as file:
        rows = csv.reader(file)
        header = next(rows)
        return draw(rng, TEMPLATES, [dict(zip(header, row)) for row in dict.fromkeys(map(tuple, rows))])


def a_home_with_id(rng, homes):
    home = rng.choice(homes)
    return {column: home[column] for column in ("NAME", "id", "neighbourhood")}


def a_home_without_id(rng, homes):
    home = rng.choice(homes)
    return {column: home[column] for column in ("NAME", "neighbourhood")}


def a_neighbourhood(rng, homes):
    return {"neighbourhood": rng.choice(NEIGHBOURHOODS)}


def a_place(rng, homes):
    return {"long": -73.9 + rng.uniform(-0.25, 0.15), "lat": 40.72 + rng.uniform(-0.15, 0.2)}


def such(homes, **wanted):
    return [home for home in homes if all(home[column] == value for column, value in wanted.items())]


def dollars(home):
    return int(home["price"].strip(" $").replace(",", ""))


def cell(column, form=str, empty=None):
    """The answer is one home's cell. None if several homes are meant; `empty` if there is nothing in it."""
    def answer(homes, id, **_):
        home = such(homes, id=id)
        return None if len(home) != 1 else form(home[0][column]) if home[0][column] else empty
    return answer


def host_of(homes, NAME, neighbourhood):
    return the_only(home["host name"] for home in such(homes, NAME=NAME, neighbourhood=neighbourhood))


def by_id(home):
    """The key for `settled`: some homes have a second row."""
    return home["id"]


def how_many(homes, neighbourhood):
    """None if it matters whether an id's second row counts."""
    there = such(homes, neighbourhood=neighbourhood)
    return str(len(there)) if there and len({home["id"] for home in there}) == len(there) else None


def average_price(homes, neighbourhood):
    price = rounded(mean([dollars(home) for home in such(homes, neighbourhood=neighbourhood) if home["price"]]), 1)
    return price and f"${price}"


def flexible_share(homes, neighbourhood):
    """None if it matters whether homes without a policy count."""
    policies = [home["cancellation_policy"] for home in such(homes, neighbourhood=neighbourhood)]
    return the_only(rounded(mean([policy == "flexible" for policy in some]), 1)
                    for some in (policies, list(filter(None, policies))))


def highest_price(homes, neighbourhood):
    prices = [dollars(home) for home in such(homes, neighbourhood=neighbourhood, **{"room type": "Entire home/apt"})
              if home["price"]]
    return f"${max(prices)}" if prices else None


def high_rates(homes, neighbourhood):
    rates = [home["review rate number"] for home in such(homes, neighbourhood=neighbourhood)]
    return str(sum(rate in ("4", "5") for rate in rates)) if rates else None


def cheapest(homes):
    """The name; a list if several homes are as cheap."""
    return all_best((-dollars(home), home["NAME"]) for home in homes if home["price"])


def cheapest_there(homes, neighbourhood):
    return cheapest(such(homes, neighbourhood=neighbourhood))


def cheapest_around(homes, long, lat):
    """None if it depends on how one computes the distance."""
    away = [(miles((lat, long), (float(home["lat"]), float(home["long"]))), home)
            for home in such(homes, **{"room type": "Shared room"})]
    inner, outer = (cheapest([home for distance, home in away if distance < limit]) for limit in (9.98, 10.02))
    return inner if inner == outer else None


def one_decimal(text):
    return f"{float(text):.1f}"


BY_ID, SEEN, UNSEEN = (6, 1, 3), (9, 1, 0), (0, 0, 10)
TEMPLATES = [
    Template("host's name", BY_ID, SEEN, (
        "Who is the host of {NAME} in {neighbourhood}?",
        "What is the host of the {neighbourhood} home named {NAME} called?",
        "Give the name of the person who lets {NAME} in {neighbourhood}."), a_home_without_id, host_of),
    Template("days available", BY_ID, SEEN, (
        "On how many of the year's 365 days can one book {NAME} (id: {id}) in {neighbourhood}?",
        "For how many days a year is {NAME} (id: {id}) in {neighbourhood} available?",
        "How many of 365 days is the home {NAME} (id: {id}) in {neighbourhood} available?"),
        a_home_with_id, cell("availability 365")),
    Template("room type", BY_ID, UNSEEN, (
        "What type of room is {NAME} (id: {id}) in {neighbourhood}?",
        "Which room type does {NAME} (id: {id}) in {neighbourhood} have?",
        "Name the type of room of the home {NAME} (id: {id}) in {neighbourhood}."),
        a_home_with_id, cell("room type")),
    Template("price", BY_ID, SEEN, (
        "How much is {NAME} (id: {id}) in {neighbourhood}?",
        "What does it cost to rent {NAME} (id: {id}) in {neighbourhood}?",
        "Give the price of the home {NAME} (id: {id}) in {neighbourhood}."),
        a_home_with_id, cell("price", lambda price: price.strip().replace(",", ""))),
    Template("minimum number of nights", BY_ID, SEEN, (
        "How many nights must one stay at least in {NAME} (id: {id}) in {neighbourhood}?",
        "What is the smallest number of nights for which {NAME} (id: {id}) in {neighbourhood} is let?",
        "At least how many nights does one book at the home {NAME} (id: {id}) in {neighbourhood}?"),
        a_home_with_id, cell("minimum nights")),
    Template("when constructed", BY_ID, UNSEEN, (
        "In which year was {NAME} (id: {id}) in {neighbourhood} built?",
        "What is the construction year of {NAME} (id: {id}) in {neighbourhood}?",
        "Since which year has the home {NAME} (id: {id}) in {neighbourhood} been standing?"),
        a_home_with_id, cell("Construction year")),
    Template("how many reviews", BY_ID, UNSEEN, (
        "What is the number of reviews of {NAME} (id: {id}) in {neighbourhood}?",
        "How many times was {NAME} (id: {id}) in {neighbourhood} reviewed?",
        "How many reviews did guests write about the home {NAME} (id: {id}) in {neighbourhood}?"),
        a_home_with_id, cell("number of reviews")),
    Template("last review date", BY_ID, SEEN, (
        "When was {NAME} (id: {id}) in {neighbourhood} reviewed last?",
        "What is the date of the latest review of {NAME} (id: {id}) in {neighbourhood}?",
        "On which day did a guest last review the home {NAME} (id: {id}) in {neighbourhood}?"),
        a_home_with_id, cell("last review", empty="null")),
    Template("review rate number", BY_ID, SEEN, (
        "Which review rate number does {NAME} (id: {id}) in {neighbourhood} have?",
        "How is {NAME} (id: {id}) in {neighbourhood} rated, by its review rate number?",
        "Give the review rate number of the home {NAME} (id: {id}) in {neighbourhood}."),
        a_home_with_id, cell("review rate number", one_decimal)),
    Template("average reviews per month", BY_ID, SEEN, (
        "How many reviews a month does {NAME} (id: {id}) in {neighbourhood} get on average?",
        "What is the mean number of monthly reviews of {NAME} (id: {id}) in {neighbourhood}?",
        "Give the reviews per month, on average, of the home {NAME} (id: {id}) in {neighbourhood}."),
        a_home_with_id, cell("reviews per month", lambda text: str(float(text)), "null")),
    Template("how many airbnbs", BY_ID, SEEN, (
        "What is the number of airbnbs in {neighbourhood}?",
        "Count the airbnbs in {neighbourhood}.",
        "In {neighbourhood}, how many homes does airbnb list?"), a_neighbourhood, how_many),
    Template("average price", BY_ID, SEEN, (
        "What do airbnbs in {neighbourhood} cost on average?",
        "Give the mean price of the airbnbs in {neighbourhood}.",
        "In {neighbourhood}, what is the average that an airbnb costs?"),
        a_neighbourhood, settled(average_price, by_id)),
    Template("proporion of airbnbs", BY_ID, UNSEEN, (
        "What proportion of the airbnbs in {neighbourhood} can be cancelled under a flexible policy?",
        "Which share of the airbnbs in {neighbourhood} has the cancellation policy flexible?",
        "In {neighbourhood}, what is the proportion of airbnbs with a flexible cancellation policy?"),
        a_neighbourhood, settled(flexible_share, by_id)),
    Template("cost per night", (5, 1, 3), (8, 1, 0), (
        "What does a night at the most expensive Entire home/apt in {neighbourhood} cost?",
        "Of all Entire home/apt offers in {neighbourhood}, what is the highest cost of a night?",
        "In {neighbourhood}, how much is a night at the dearest Entire home/apt?"),
        a_neighbourhood, settled(highest_price, by_id)),
    Template("airbnb with high rate", BY_ID, UNSEEN, (
        "How many airbnbs in {neighbourhood} have a review rate of 4 or more?",
        "Count the airbnbs in {neighbourhood} whose review rate is at least 4.",
        "In {neighbourhood}, how many airbnbs are there with a review rate of no less than 4?"),
        a_neighbourhood, settled(high_rates, by_id)),
    Template("room with the lowest price", (5, 1, 3), (0, 0, 9), (
        "Which room in {neighbourhood} has the lowest price?",
        "Name the cheapest room in {neighbourhood}.",
        "In {neighbourhood}, which room would you recommend for its lowest price?"),
        a_neighbourhood, settled(cheapest_there, by_id)),
    Template("shared room with the lowest price", BY_ID, SEEN, (
        "Which Shared room within 10 miles of longitude {long} and latitude {lat} has the lowest price?",
        "Name the cheapest Shared room in a radius of 10 miles around {long} longitude and {lat} latitude.",
        "At longitude {long} and latitude {lat}, which Shared room less than 10 miles away is the cheapest?"),
        a_place, settled(cheapest_around, by_id)),
]
