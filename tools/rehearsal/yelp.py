"""The yelp group: businesses of North America, and questions on one of them, a town or what lies around.

The table has the real one's flaws: chains, businesses that come twice with other cells, and empty cells.
"""

import json
import random
from pathlib import Path

from tools.rehearsal import Template, all_best, draw, mean, miles, rounded, settled, the_only

FULL, FEWEST = 150_346, 5_000                          # rows of ToolQA's table, and what the questions need
# town, state, latitude, longitude, postal codes
TOWNS = [(town.replace("_", " "), state, float(north), -float(west), codes.replace("_", " ").split(","))
         for town, state, north, west, codes in zip(*[iter("""
Philadelphia PA 39.95 75.16 19103,19107,19148   Phoenixville PA 40.13 75.51 19460
West_Chester PA 39.96 75.61 19380   Wayne PA 40.04 75.39 19087   Media PA 39.92 75.39 19063
Camden NJ 39.94 75.12 08103,08105   Trenton NJ 40.22 74.76 08608   Palmyra NJ 40.00 75.03 08065
Lumberton NJ 39.97 74.80 08048   Lawnside NJ 39.87 75.03 08045   Tampa FL 27.95 82.46 33602,33611
Clearwater FL 27.97 82.80 33755,33759   Dunedin FL 28.02 82.77 34698   Lutz FL 28.15 82.46 33548
Nashville TN 36.16 86.78 37203,37211   Franklin TN 35.93 86.87 37064   Hendersonville TN 36.30 86.62 37075
Tucson AZ 32.22 110.97 85701,85719   Reno NV 39.53 119.81 89501,89523   Sparks NV 39.54 119.75 89431
Boise ID 43.62 116.20 83702,83704   Meridian ID 43.61 116.39 83642   Edmonton AB 53.55 113.49 T5N_1R1,T6K_3L6
Sherwood_Park AB 53.54 113.30 T8A_4L3,T8H_2A2   St._Albert AB 53.63 113.63 T8N_3Z7
Saint_Louis MO 38.63 90.20 63103,63116   Florissant MO 38.79 90.32 63031   Ladue MO 38.64 90.38 63124
Troy IL 38.73 89.88 62294   O'Fallon IL 38.59 89.91 62269   Swansea IL 38.53 89.99 62226
Indianapolis IN 39.77 86.16 46204,46220   Fishers IN 39.96 86.01 46038   Carmel IN 39.98 86.12 46032
New_Orleans LA 29.95 90.07 70112,70130   Metairie LA 29.98 90.15 70002   Belle_Chasse LA 29.85 89.99 70037
Santa_Barbara CA 34.42 119.70 93101,93105   Carpinteria CA 34.40 119.52 93013   Goleta CA 34.44 119.83 93117
""".split())] * 5)]
# a kind of business as its first category | what else it may be | the last word of its name
KINDS = [(kind, other.split(","), word.split(",")) for kind, other, word in (line.split("|") for line in """\
Restaurants|Mexican,Italian,French,Sushi Bars,Asian Fusion,Breakfast & Brunch,American (Traditional)|Kitchen,Table,Grill
Food|Bakeries,Coffee & Tea,Brewpubs,Specialty Food,Desserts|Bakery,Tea House,Market
Shopping|Bookstores,Videos & Video Game Rental,Home Decor,Sporting Goods,Jewelry|Outfitters,Books,Emporium
Automotive|Auto Repair,Body Shops,Tires,Auto Glass Services,Oil Change Stations|Motors,Garage,Auto Glass
Beauty & Spas|Hair Salons,Nail Salons,Day Spas,Barbers,Massage|Salon,Barbers,Spa
Health & Medical|Dentists,Optometrists,Orthopedists,Physical Therapy|Dental,Eye Care,Clinic
Pets|Pet Stores,Veterinarians,Pet Groomers,Pet Training|Paws,Pet Supply
Home Services|Contractors,Home Organization,Plumbing,Flooring,Movers|Flooring,Plumbing,& Sons
Arts & Entertainment|Museums,Music Venues,Tours,Festivals,Art Galleries|Gallery,Theatre,Hall
Education|Cooking Classes,Preschools,Music Lessons,Driving Schools|School,Academy
Nightlife|Bars,Pubs,Lounges,Wine Bars,Dance Clubs|Tavern,Taproom,Lounge""".splitlines())]
WORDS = ("Amber Ashwood Bellflower Birch Bluebird Brickyard Cinder Copperline Crooked_Oak Dockside Dovetail Eastgate "
         "Elm_Street Fernhill Fiddler's Foxglove Gingham Goldfinch Granny's Halfmoon Harborview Ironwood Juniper_& "
         "Kestrel Kingfisher Ladder_51 Lantern Larkspur Marigold Mill_Creek Moonrise Northstar Nutmeg Old_Mill Orchard "
         "Paper_Crane Pepper_Tree Quarry Quincy's Redbud Riverbend Rosie's Saltbox Silver_Maple Sparrow Stonebridge "
         "Sunflower Thimble Third_Coast Tumbleweed Umbra Velvet Wagon_Wheel Walnut Whistler's Wildrose Yellow_Door"
         ).split()
CHAINS = ("Barrel & Bun|Restaurants", "Happy Wash|Automotive", "Corner Cup|Food", "Trim Time|Beauty & Spas",
          "Pet Planet|Pets")
STREETS = "Main St|Broadway|Oak Ave|Mill Rd|Market St|Station Rd|Lake Dr|Schoolhouse Ln|Ridge Pike|2nd Ave".split("|")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def write_corpus(folder: Path, rng: random.Random, scale: float) -> None:
    """folder/yelp.json, one business a line; 150,346 lines at scale 1 and 5,000 at least.

    At most 30 are twins of others: with more, no city would be left in which counting is unambiguous."""
    rows, twins = [], 0
    while len(rows) < max(FEWEST, FULL * scale):
        if len(rows) > 100 and twins < 30 and rng.random() < 0.01:     # the same business, with some cells of its own
            twins += 1
            again = {"business_id": an_id(rng), "stars": rng.randint(2, 10) / 2, "is_open": rng.randint(0, 1)}
            rows.append(rng.choice(rows) | again)
        else:
            rows.append(a_business(rng))
    with open(folder / "yelp.json", "w") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def an_id(rng):
    return "".join(rng.choices("abcdefghijkmnopqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ0123456789-_", k=22))


def a_business(rng):
    town, state, north, east, codes = rng.choice(TOWNS)
    kind, others, endings = rng.choice(KINDS)
    name = f"{' '.join(rng.sample(WORDS, rng.choice((1, 2, 2))))} {rng.choice(endings)}".replace("_", " ")
    if rng.random() < 0.06:
        name, kind = rng.choice(CHAINS).split("|")
        others = next(more for known, more, _ in KINDS if known == kind)
    categories = [kind, *rng.sample(others, rng.randint(1, 2))]
    rng.shuffle(categories)
    attributes = {"BusinessAcceptsCreditCards": "True"}
    if rng.random() < 0.5:
        attributes["ByAppointmentOnly"] = rng.choice(("True", "False"))
    begin, end = rng.randint(6, 11), rng.randint(15, 23)
    hours = {day: f"{begin}:{rng.choice((0, 0, 30))}-{end}:0" for day in DAYS if rng.random() < 0.85}
    or_none = lambda value: None if rng.random() < 0.05 else value
    return {"business_id": an_id(rng), "name": name,
            "address": f"{rng.randint(1, 9999)} {rng.choice(STREETS)}" if rng.random() > 0.04 else "",
            "city": town, "state": state, "postal_code": rng.choice(codes),
            "latitude": round(north + rng.gauss(0, 0.03), 7), "longitude": round(east + rng.gauss(0, 0.03), 7),
            "stars": rng.randint(2, 10) / 2, "review_count": 5 + int(rng.expovariate(1 / 40)),
            "is_open": int(rng.random() < 0.8), "attributes": or_none(attributes),
            "categories": or_none(", ".join(categories)), "hours": or_none(hours or None)}


def draw_tasks(folder: Path, rng: random.Random) -> dict[str, list[tuple[dict, str]]]:
    with open(folder / "yelp.json") as file:
        return draw(rng, TEMPLATES, list(map(json.loads, file)))


def cells(*columns):
    """How a template draws such cells of a business; "category" is one of its categories."""
    def arguments(rng, shops):
        shop = rng.choice(shops)
        if "category" in columns and not shop["categories"]:
            return None
        found = {column: rng.choice(shop["categories"].split(", ")) if column == "category" else shop[column]
                 for column in columns}
        return found if all(found.values()) else None
    return arguments


def a_category_elsewhere(rng, shops):
    """A business's name and the category of another."""
    (one, other), category = rng.sample(shops, 2), cells("category")
    return (category(rng, [other]) or {"category": "Bars"}) | {"name": one["name"]}


def such(shops, category=None, **wanted):
    return [shop for shop in shops if all(shop[column] == value for column, value in wanted.items())
            and (category is None or category in (shop["categories"] or ""))]      # as in ToolQA, "Bars" has Wine Bars


def cell(column, form=str):
    """The answer is one business's cell. None if there are several such businesses, or if it is empty."""
    def answer(shops, **wanted):
        found = such(shops, **wanted)
        return None if len(found) != 1 or found[0][column] in ("", None) else form(found[0][column])
    return answer


def where(column):
    """The town or state of a business, even if it has several branches there."""
    return lambda shops, **wanted: the_only(shop[column] for shop in such(shops, **wanted))


def by_appointment(attributes):
    return "Yes" if attributes.get("ByAppointmentOnly") == "True" else "No"


def opening_hours(hours):
    return ", ".join(f"{day}: {time}" for day, time in hours.items())


def coordinates(shops, **wanted):
    found = such(shops, **wanted)
    return f"{found[0]['latitude']}, {found[0]['longitude']}" if len(found) == 1 else None


def name_and_place(shop):
    """The key for `settled`: some businesses have a second row."""
    return shop["name"], shop["latitude"]


def how_many(shops, these):
    """None if it matters whether the second row of a business counts."""
    twins = len(set(map(name_and_place, shops))) < len(shops)
    return None if twins or not shops else str(len(these))


def count(shops, **wanted):
    found = such(shops, **wanted)
    return how_many(found, found)


def closed(shops, city):
    return how_many(such(shops, city=city), such(shops, city=city, is_open=0))


def best(column):
    """The name of the business with the largest number; a list if several share it."""
    return lambda shops, **wanted: all_best((shop[column], shop["name"]) for shop in such(shops, **wanted))


def place(shop):
    return shop["latitude"], shop["longitude"]


def around(shops, **centre):
    """The businesses within five miles. None if the centre is not unique, or if one is nearly five miles away."""
    centre = such(shops, **centre)
    if len(centre) != 1:
        return None
    away = [(miles(place(centre[0]), place(shop)), shop) for shop in shops]
    return [shop for far, shop in away if far < 5] if all(abs(far - 5) > 0.01 for far, _ in away) else None


def average_review_count(shops, name):
    return rounded(mean([shop["review_count"] for shop in around(shops, name=name) or []]), 2)


def recommended(shops, category, address):
    return best("stars")(around(shops, address=address) or [], category=category)


def nearest(shops, category, name):
    """The name of the nearest other business of the category."""
    here = such(shops, name=name)
    if len(here) != 1:
        return None
    away = sorted((miles(place(here[0]), place(shop)), shop["name"]) for shop in such(shops, category)
                  if shop is not here[0])
    return away[0][1] if len(away) > 1 and away[1][0] - away[0][0] > 0.01 else None


def average_stars(shops, category, city):
    return rounded(mean([shop["stars"] for shop in such(shops, category, city=city)]), 1)


THERE = cells("name", "postal_code", "city", "state")
FIVE, SIX, SEEN, UNSEEN = (5, 1, 3), (6, 1, 3), (8, 1, 0), (0, 0, 9)
TEMPLATES = [
    Template("address", SIX, (0, 0, 10), (
        "At which address does one find {name} in the area with postal code {postal_code}?",
        "Give the address of {name}, postal code {postal_code}.",
        "The postal code of {name} is {postal_code}. What is the address?"),
        cells("name", "postal_code"), cell("address")),
    Template("city", FIVE, SEEN, (
        "In which city of {state} is {name}?",
        "{name} is a business in {state}. In which city?",
        "Name the city in {state} that has {name}."), cells("name", "state"), where("city")),
    Template("state", FIVE, SEEN, (
        "In which state is {name}?",
        "{name} is a business in which state?",
        "Name the state that has {name}."), cells("name"), where("state")),
    Template("postal code", FIVE, SEEN, (
        "Which postal code does {name} in {city}, {state} have?",
        "Give the postal code of {name}, located in {city}, {state}.",
        "Under which postal code is {name} in {city}, {state} listed?"),
        cells("name", "city", "state"), cell("postal_code")),
    Template("star rating", FIVE, UNSEEN, (
        "How many stars does {name} have, in the area with postal code {postal_code}, {city}, {state}?",
        "Give the star rating of {name}, postal code {postal_code}, in {city}, {state}.",
        "With how many stars is {name} rated (postal code {postal_code}, {city}, {state})?"), THERE, cell("stars")),
    Template("how many reviews", FIVE, SEEN, (
        "What is the number of reviews of {name}, in the area with postal code {postal_code}, {city}, {state}?",
        "How many times was {name} reviewed, {postal_code} {city}, {state}?",
        "How many reviews has {name} got (postal code {postal_code}, {city}, {state})?"), THERE, cell("review_count")),
    Template("yes or no - openning", FIVE, SEEN, (
        "Has {name} remained open, in the area with postal code {postal_code}, {city}, {state}?",
        "Is {name} still in business, {postal_code} {city}, {state}?",
        "Is {name} still open (postal code {postal_code}, {city}, {state})?"),
        THERE, cell("is_open", lambda is_open: "Yes" if is_open else "No")),
    Template("yes or no - appointment", FIVE, SEEN, (
        "Must one make an appointment at {name}, in the area with postal code {postal_code}, {city}, {state}?",
        "Is an appointment needed at {name}, postal code {postal_code}, in {city}, {state}?",
        "Is {name} open by appointment only (postal code {postal_code}, {city}, {state})?"),
        THERE, cell("attributes", by_appointment)),
    Template("hours of operation", FIVE, SEEN, (
        "At what times is {name} open each day, in the area with postal code {postal_code}, {city}, {state}?",
        "Give the hours of operation of {name}, postal code {postal_code}, in {city}, {state}.",
        "What are the opening hours of {name} (postal code {postal_code}, {city}, {state})?"),
        THERE, cell("hours", opening_hours)),
    Template("categories", FIVE, SEEN, (
        "In which categories is {name}, in the area with postal code {postal_code}, {city}, {state}?",
        "List the categories of {name}, postal code {postal_code}, in {city}, {state}.",
        "What categories has {name} been given (postal code {postal_code}, {city}, {state})?"),
        THERE, cell("categories")),
    Template("coordinates", FIVE, UNSEEN, (
        "At which latitude and longitude is {name}, in the area with postal code {postal_code}, {city}, {state}?",
        "Give the coordinates of {name}, postal code {postal_code}, in {city}, {state}.",
        "Where on the map, in coordinates, is {name} (postal code {postal_code}, {city}, {state})?"),
        THERE, coordinates),
    Template("how many business", SIX, (9, 1, 0), (
        "Count the {category} businesses in {city}, {state}.",
        "What is the number of businesses of the category {category} in {city}, {state}?",
        "In {city}, {state}, how many {category} businesses does one find?"),
        cells("category", "city", "state"), count),
    Template("business in total", SIX, (0, 0, 10), (
        "Count the businesses in the {postal_code} area of {city}, {state}.",
        "What is the number of businesses with the postal code {postal_code} in {city}, {state}?",
        "In {city}, {state}, how many businesses are in the area {postal_code}?"),
        cells("postal_code", "city", "state"), count),
    Template("highest star rating", SIX, (9, 1, 0), (
        "Of the {category} businesses in {city}, {state}, which has the most stars?",
        "Name the {category} business with the highest star rating in {city}, {state}.",
        "In {city}, {state}, which {category} business is rated highest, by stars?"),
        cells("category", "city", "state"), settled(best("stars"), name_and_place)),
    Template("highest review count", SIX, (9, 1, 0), (
        "Of the {category} businesses in {city}, {state}, which has the most reviews?",
        "Name the {category} business with the highest review count in {city}, {state}.",
        "In {city}, {state}, which {category} business was reviewed most often?"),
        cells("category", "city", "state"), settled(best("review_count"), name_and_place)),
    Template("average review counts", (3, 1, 3), (0, 0, 7), (
        "How many reviews do businesses within 5 miles of {name} have on average?",
        "Give the mean review count of the businesses in a 5-mile radius around {name}.",
        "Within a radius of 5 miles from {name}, what is the average review count of a business?"),
        cells("name"), settled(average_review_count, name_and_place)),
    Template("nearest business", (4, 1, 3), (7, 1, 0), (
        "Which {category} business is closest to {name}?",
        "Name the {category} business at the smallest distance from {name}.",
        "Starting from {name}, what is the nearest {category} business called?"), a_category_elsewhere, nearest),
    Template("business recommendation", (2, 1, 2), (4, 1, 0), (
        "Which {category} business within 5 miles of {address} has the highest star rating?",
        "Recommend the {category} business with the most stars in a 5-mile radius around {address}.",
        "Within a radius of 5 miles from {address}, which {category} business is rated highest?"),
        cells("category", "address"), settled(recommended, name_and_place)),
    Template("business not open", SIX, (9, 1, 0), (
        "What is the number of businesses in {city} that are not open any more?",
        "Count the businesses in {city} that are closed at present.",
        "In {city}, how many businesses are currently not open?"), cells("city"), closed),
    Template("average star rating", SIX, (0, 0, 10), (
        "How many stars do {category} businesses in {city} have on average?",
        "Give the mean star rating of the {category} businesses in {city}.",
        "In {city}, what is the average number of stars of a {category} business?"),
        cells("category", "city"), settled(average_stars, name_and_place)),
]
