"""The flights group: flights in the USA from January to July 2022, a row a flight, and questions on a flight, an airport, an airline or a day.

First a timetable: lines, each with a number and one to three legs, on some days of the week in some months. Then day after day what became of each
leg. The columns, their order and their forms are those of the table that ToolQA took, among them local times such as 705.0 for 7:05.
"""

import csv
import datetime
import itertools
import math
from functools import cache

from tools.rehearsal import Template, mean, only_largest, rounded, with_unit

FIRST, LAST = datetime.date(2022, 1, 1), datetime.date(2022, 7, 31)
FULL = 4_078_318                                       # rows of ToolQA's table
WEEKDAYS = dict(zip("1234567", ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")))
COLUMNS = ("FlightDate,Airline,Origin,Dest,Cancelled,Diverted,CRSDepTime,DepTime,DepDelayMinutes,DepDelay,ArrTime,ArrDelayMinutes,AirTime,CRSElapsedTime,"
           "ActualElapsedTime,Distance,Year,Quarter,Month,DayofMonth,DayOfWeek,Marketing_Airline_Network,Operated_or_Branded_Code_Share_Partners,"
           "DOT_ID_Marketing_Airline,IATA_Code_Marketing_Airline,Flight_Number_Marketing_Airline,Operating_Airline,DOT_ID_Operating_Airline,"
           "IATA_Code_Operating_Airline,Tail_Number,Flight_Number_Operating_Airline,OriginAirportID,OriginAirportSeqID,OriginCityMarketID,OriginCityName,"
           "OriginState,OriginStateFips,OriginStateName,OriginWac,DestAirportID,DestAirportSeqID,DestCityMarketID,DestCityName,DestState,DestStateFips,"
           "DestStateName,DestWac,DepDel15,DepartureDelayGroups,DepTimeBlk,TaxiOut,WheelsOff,WheelsOn,TaxiIn,CRSArrTime,ArrDelay,ArrDel15,"
           "ArrivalDelayGroups,ArrTimeBlk,DistanceGroup,DivAirportLandings").split(",")

# name | its own code | codes it flies for | share of all lines | longest leg in miles
AIRLINES = [line.split("|") for line in """\
Southwest Airlines Co.|WN|WN|190|2400
Delta Air Lines Inc.|DL|DL|130|2900
American Airlines Inc.|AA|AA|130|2900
United Air Lines Inc.|UA|UA|95|2900
SkyWest Airlines Inc.|OO|UA DL AA AS|110|800
Republic Airlines|YX|AA DL UA|50|800
JetBlue Airways|B6|B6|40|2700
Spirit Air Lines|NK|NK|38|2200
Alaska Airlines Inc.|AS|AS|34|2900
Envoy Air|MQ|AA|34|700
Endeavor Air Inc.|9E|DL|32|800
Comair Inc.|OH|AA|30|600
Frontier Airlines Inc.|F9|F9|24|2200
Mesa Airlines Inc.|YV|AA UA|19|900
Allegiant Air|G4|G4|18|1400
Hawaiian Airlines Inc.|HA|HA|14|2700
Capital Cargo International|PT|AA|14|600
Commutair Aka Champlain Enterprises, Inc.|C5|UA|12|500
Air Wisconsin Airlines Corp|ZW|UA|12|600
GoJet Airlines, LLC d/b/a United Express|G7|UA|11|700
Horizon Air|QX|AS|14|900""".splitlines()]
HUBS = {"WN": "DAL MDW BWI DEN LAS PHX HOU OAK", "DL": "ATL MSP DTW SLC SEA LAX JFK BOS", "AA": "DFW CLT MIA ORD PHL PHX DCA", "UA": "ORD DEN IAH EWR SFO IAD",
        "B6": "JFK BOS FLL MCO", "NK": "FLL MCO LAS DTW", "AS": "SEA PDX ANC", "F9": "DEN MCO LAS", "G4": "LAS PIE AVL", "HA": "HNL OGG"}

# code, city, state, latitude, longitude, hours behind Greenwich, weight among destinations
AIRPORTS = """
ATL Atlanta GA 33.64 84.43 5 9    ORD Chicago IL 41.98 87.90 6 9    DFW Dallas/Fort_Worth TX 32.90 97.04 6 9    DEN Denver CO 39.86 104.67 7 9
CLT Charlotte NC 35.21 80.94 5 8    LAX Los_Angeles CA 33.94 118.41 8 9    LAS Las_Vegas NV 36.08 115.15 8 8    PHX Phoenix AZ 33.43 112.01 7 8
MCO Orlando FL 28.43 81.31 5 8    SEA Seattle WA 47.45 122.31 8 8    MIA Miami FL 25.79 80.29 5 7    IAH Houston TX 29.98 95.34 6 7
JFK New_York NY 40.64 73.78 5 7    EWR Newark NJ 40.69 74.17 5 7    SFO San_Francisco CA 37.62 122.38 8 7    BOS Boston MA 42.36 71.01 5 7
MSP Minneapolis MN 44.88 93.22 6 7    DTW Detroit MI 42.21 83.35 5 7    FLL Fort_Lauderdale FL 26.07 80.15 5 6    LGA New_York NY 40.78 73.87 5 6
PHL Philadelphia PA 39.87 75.24 5 6    BWI Baltimore MD 39.18 76.67 5 6    SLC Salt_Lake_City UT 40.79 111.98 7 6    DCA Washington VA 38.85 77.04 5 6
SAN San_Diego CA 32.73 117.19 8 6    IAD Washington VA 38.94 77.46 5 5    TPA Tampa FL 27.98 82.53 5 6    MDW Chicago IL 41.79 87.75 6 5
BNA Nashville TN 36.12 86.68 6 6    AUS Austin TX 30.19 97.67 6 5    HNL Honolulu HI 21.32 157.92 10 5    DAL Dallas TX 32.85 96.85 6 5
PDX Portland OR 45.59 122.60 8 5    STL St._Louis MO 38.75 90.37 6 4    HOU Houston TX 29.65 95.28 6 4    RDU Raleigh/Durham NC 35.88 78.79 5 4
SMF Sacramento CA 38.70 121.59 8 4    MSY New_Orleans LA 29.99 90.26 6 4    SJC San_Jose CA 37.36 121.93 8 3    OAK Oakland CA 37.72 122.22 8 4
MCI Kansas_City MO 39.30 94.71 6 4    CLE Cleveland OH 41.41 81.85 5 3    IND Indianapolis IN 39.72 86.29 5 4    PIT Pittsburgh PA 40.49 80.23 5 3
CVG Cincinnati OH 39.05 84.66 5 3    SAT San_Antonio TX 29.53 98.47 6 3    CMH Columbus OH 40.00 82.89 5 3    OGG Kahului HI 20.90 156.43 10 3
MKE Milwaukee WI 42.95 87.90 6 2    ANC Anchorage AK 61.17 150.00 9 3    ABQ Albuquerque NM 35.04 106.61 7 2    BUF Buffalo NY 42.94 78.73 5 2
OMA Omaha NE 41.30 95.89 6 2    BDL Hartford CT 41.94 72.68 5 2    PBI West_Palm_Beach FL 26.68 80.10 5 2    ONT Ontario CA 34.06 117.60 8 2
CHS Charleston SC 32.90 80.04 5 2    MEM Memphis TN 35.04 89.98 6 2    BOI Boise ID 43.56 116.22 7 2    JAX Jacksonville FL 30.49 81.69 5 2
RIC Richmond VA 37.51 77.32 5 2    SDF Louisville KY 38.17 85.74 5 2    OKC Oklahoma_City OK 35.39 97.60 6 2    TUL Tulsa OK 36.20 95.89 6 2
PVD Providence RI 41.73 71.43 5 2    ORF Norfolk VA 36.90 76.20 5 2    LIH Lihue HI 21.98 159.34 10 2    KOA Kona HI 19.74 156.05 10 2
GRR Grand_Rapids MI 42.88 85.52 5 1    DSM Des_Moines IA 41.53 93.66 6 1    XNA Fayetteville AR 36.28 94.31 6 1    BHM Birmingham AL 33.56 86.75 6 1
SYR Syracuse NY 43.11 76.11 5 1    HPN White_Plains NY 41.07 73.71 5 1    PWM Portland ME 43.65 70.31 5 1    TYS Knoxville TN 35.81 83.99 5 1
LEX Lexington KY 38.04 84.61 5 1    CHO Charlottesville VA 38.14 78.45 5 1    AVL Asheville NC 35.44 82.54 5 1    PIE St._Petersburg FL 27.91 82.69 5 1
GPT Gulfport MS 30.41 89.07 6 1    TVC Traverse_City MI 44.74 85.58 5 1    BZN Bozeman MT 45.78 111.15 7 1    FAR Fargo ND 46.92 96.82 6 1
FSD Sioux_Falls SD 43.58 96.74 6 1    ICT Wichita KS 37.65 97.43 6 1    JAC Jackson WY 43.61 110.74 7 1    LBB Lubbock TX 33.66 101.82 6 1
AMA Amarillo TX 35.22 101.71 6 1    FAT Fresno CA 36.78 119.72 8 1    SBN South_Bend IN 41.71 86.32 5 1    MYR Myrtle_Beach SC 33.68 78.93 5 1
CRW Charleston WV 38.37 81.59 5 1    BTV Burlington VT 44.47 73.15 5 1    MHT Manchester NH 42.93 71.44 5 1    JNU Juneau AK 58.35 134.58 9 1
FAI Fairbanks AK 64.82 147.86 9 1    SIT Sitka AK 57.05 135.36 9 1    KTN Ketchikan AK 55.36 131.71 9 1    ACV Eureka CA 40.98 124.11 8 1
""".split()
AIRPORTS = {code: (city.replace("_", " "), state, float(north), -float(west), -int(zone), int(weight))
            for code, city, state, north, west, zone, weight in zip(*[iter(AIRPORTS)] * 7)}

# code, name, number and world area code
STATES = """
AK Alaska 2 1  AL Alabama 1 51  AR Arkansas 5 71  AZ Arizona 4 81  CA California 6 91  CO Colorado 8 82  CT Connecticut 9 11  FL Florida 12 33
GA Georgia 13 34  HI Hawaii 15 2  IA Iowa 19 61  ID Idaho 16 83  IL Illinois 17 41  IN Indiana 18 42  KS Kansas 20 62  KY Kentucky 21 52
LA Louisiana 22 72  MA Massachusetts 25 13  MD Maryland 24 35  ME Maine 23 12  MI Michigan 26 43  MN Minnesota 27 63  MO Missouri 29 64
MS Mississippi 28 53  MT Montana 30 84  NC North_Carolina 37 36  ND North_Dakota 38 66  NE Nebraska 31 65  NH New_Hampshire 33 14  NJ New_Jersey 34 21
NM New_Mexico 35 86  NV Nevada 32 85  NY New_York 36 22  OH Ohio 39 44  OK Oklahoma 40 73  OR Oregon 41 92  PA Pennsylvania 42 23  RI Rhode_Island 44 15
SC South_Carolina 45 37  SD South_Dakota 46 67  TN Tennessee 47 54  TX Texas 48 74  UT Utah 49 87  VA Virginia 51 38  VT Vermont 50 16
WA Washington 53 93  WI Wisconsin 55 45  WV West_Virginia 54 39  WY Wyoming 56 88
""".split()
STATES = {code: (name.replace("_", " "), int(fips), int(area)) for code, name, fips, area in zip(*[iter(STATES)] * 4)}


# ---------------------------------------------------------------------------------------------------- the corpus

@cache
def miles(a, b):
    (_, _, north_a, east_a, _, _), (_, _, north_b, east_b, _, _) = AIRPORTS[a], AIRPORTS[b]
    north_a, north_b, apart = map(math.radians, (north_a, north_b, east_b - east_a))
    return round(3959 * math.acos(min(1, math.sin(north_a) * math.sin(north_b) + math.cos(north_a) * math.cos(north_b) * math.cos(apart))))


def timetable(rng, daily):
    """Legs for about so many flights a day, in the order of code and number. A leg: its airline's and its own fields, and when it flies."""
    weights, legs, per_day = [int(airline[3]) for airline in AIRLINES], [], 0.0
    near = {}                                          # (hub, longest leg) → the airports in reach and their weights
    while per_day < daily:
        name, own, codes, _, reach = rng.choices(AIRLINES, weights)[0]
        code = rng.choice(codes.split())
        hub = rng.choice(HUBS[code].split())
        if (hub, reach) not in near:
            there = [other for other in AIRPORTS if 60 < miles(hub, other) <= int(reach)]
            near[hub, reach] = there, [AIRPORTS[other][-1] for other in there]
        spoke = rng.choices(*near[hub, reach])[0]
        for _ in range(rng.choice((1, 1, 2, 3, 4))):   # lines between these two
            number = rng.randint(1, 3000) if own == code else rng.randint(3000, 6400)
            stops = rng.choice(([hub, spoke], [spoke, hub], [hub, spoke, hub])[:3 if code == "WN" else 2])
            days = rng.choice(("1234567", "1234567", "1234567", "12345", "67", "135", "2467"))
            begin = FIRST if rng.random() < 0.6 else FIRST + datetime.timedelta(rng.randrange(120))
            end = LAST if rng.random() < 0.6 else begin + datetime.timedelta(rng.randrange(30, 100))
            departs = 5 * rng.randrange(60, 150 if len(stops) > 2 else 270)
            for origin, dest in itertools.pairwise(stops):
                if departs >= 1440:                    # it would be the next day's
                    break
                in_air = round(miles(origin, dest) / 7.6 + 16 + (AIRPORTS[origin][3] - AIRPORTS[dest][3]) / 6)  # against the wind westwards
                takes = in_air + rng.randint(20, 40)
                legs.append((code, number, departs, name, own, origin, dest, takes, in_air, days, begin, end))
                departs += takes + 45 + zones(origin, dest)
                per_day += len(days) / 7 * ((min(end, LAST) - begin).days + 1) / ((LAST - FIRST).days + 1)
    return sorted(legs)


def zones(origin, dest):
    """Minutes by which the clocks of the destination are ahead."""
    return 60 * (AIRPORTS[dest][4] - AIRPORTS[origin][4])


def clock(minutes):
    """705 for 7:05; midnight is 2400."""
    minutes %= 1440
    return minutes // 60 * 100 + minutes % 60 or 2400


def hour(minutes):
    """The hour's block, as in "0700-0759"."""
    hour = minutes // 60 % 24
    return "0001-0559" if hour < 6 else f"{hour:02}00-{hour:02}59"


@cache
def place(code):
    """An airport's eight columns but its code."""
    city, state, *_ = AIRPORTS[code]
    name, fips, area = STATES[state]
    number = 10135 + 53 * list(AIRPORTS).index(code)
    return number, number * 100 + 2, 30000 + number % 5000, f"{city}, {state}", state, fips, name, area


def write_corpus(folder, rng, scale):
    """folder/Combined_Flights_2022.csv, day after day: 4,078,318 rows at scale 1. Of all rows only the timetable is in memory."""
    days = [FIRST + datetime.timedelta(n) for n in range((LAST - FIRST).days + 1)]
    legs = timetable(rng, FULL * scale / len(days))
    with open(folder / "Combined_Flights_2022.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for day in days:
            weekday, bad = str(day.isoweekday()), {code: rng.choice((1, 1, 1, 1, 2, 6)) for code in AIRPORTS}      # the weather at each airport
            writer.writerows(flown(rng, day, leg, bad[leg[5]]) for leg in legs if leg[-2] <= day <= leg[-1] and weekday in leg[-3])


def flown(rng, day, leg, bad):
    """The row of one leg on one day. bad: how bad the weather is, 1 for good."""
    code, number, departs, name, own, origin, dest, takes, in_air, *_ = leg
    arrives, apart = departs + takes, zones(origin, dest)
    fate = rng.random() / bad
    cancelled, diverted = fate < 0.015, 0.015 <= fate < 0.02
    late = rng.randint(-9, 2) if rng.random() > 0.25 + 0.05 * bad else int(rng.expovariate(1 / 30))
    out, taken, taxi = 9 + int(rng.expovariate(1 / 8)), max(15, in_air + round(rng.gauss(0, 5))), 3 + int(rng.expovariate(1 / 4))
    off, on = departs + late + out, departs + late + out + taken
    behind = on + taxi - arrives
    departure = ["", "", "", "", "", "", ""] if cancelled else [
        float(clock(departs + late)), float(max(late, 0)), float(late), float(late >= 15), float(min(max(late // 15, -2), 12)), float(out), float(clock(off))]
    arrival = ["", "", "", "", "", "", "", "", ""] if cancelled or diverted else [
        float(clock(on + taxi + apart)), float(max(behind, 0)), float(taken), float(out + taken + taxi), float(clock(on + apart)), float(taxi),
        float(behind), float(behind >= 15), float(min(max(behind // 15, -2), 12))]
    (left, left_minutes, left_delay, left_15, left_group, out, off), (came, came_minutes, taken, elapsed, on, taxi, came_delay, came_15, came_group) = departure, arrival
    network = code if own == code else f"{code}_CODESHARE"
    tail = f"N{(number * 37 + day.day) % 900 + 100}{own}"
    return (day, name, origin, dest, cancelled, diverted, clock(departs), left, left_minutes, left_delay, came, came_minutes, taken, float(takes),
            elapsed, float(miles(origin, dest)), day.year, (day.month + 2) // 3, day.month, day.day, day.isoweekday(), code, network,
            dot_number(code), code, number, own, dot_number(own), own, tail, number, *place(origin), *place(dest),
            left_15, left_group, hour(departs), out, off, on, taxi, clock(arrives + apart), came_delay, came_15,
            came_group, hour(arrives + apart), min(miles(origin, dest) // 250 + 1, 11), float(diverted))


@cache
def dot_number(code):
    return 19393 + 7 * [airline[1] for airline in AIRLINES].index(code)


# ---------------------------------------------------------------------------------------------------- the tasks

SAMPLE = 4000                                          # rows that arguments are drawn from; of cancelled flights as many again


def draw_tasks(folder, rng):
    """{template's name: [(arguments, answer), …]}, no arguments twice.

    The file is read twice: once for a sample of rows, whose cells are the arguments, and once for all rows that have such cells. A day's rows are let
    go when the day has been read.
    """
    file = folder / "Combined_Flights_2022.csv"
    some, read = {"False": [], "True": []}, {"False": 0, "True": 0}                # by Cancelled
    for row in read_rows(file):
        kind, at = some[row["Cancelled"]], rng.randrange(read[row["Cancelled"]] + 1)   # the n-th is kept with probability SAMPLE/n, instead of any other
        read[row["Cancelled"]] += 1
        if len(kind) < SAMPLE:
            kind.append(row)
        elif at < SAMPLE:
            kind[at] = row
    wanted, drawn = {}, {template.name: [] for template in TEMPLATES}
    for template in TEMPLATES:
        columns, such = template.arguments
        rows = [row for row in rng.sample(some["True"], len(some["True"])) + rng.sample(some["False"], len(some["False"])) if such(row)]
        wanted[template.name] = {tuple(row[c] for c in columns): [] for row in rng.sample(rows, min(len(rows), 4 * template.size))}
    for day, rows in itertools.groupby(read_rows(file), key=lambda row: row["FlightDate"]):
        for row in rows:
            for template in TEMPLATES:
                found = wanted[template.name].get(tuple(row[c] for c in template.arguments[0]))
                if found is not None:
                    found.append(row)
        answer_those_of(day, wanted, drawn)
    answer_those_of(None, wanted, drawn)
    return drawn


def answer_those_of(day, wanted, drawn):
    """Moves what is wanted of a day, or of no day in particular (None), to what is drawn, if it has an answer."""
    for template in TEMPLATES:
        for key in list(wanted[template.name]):
            cells = dict(zip(template.arguments[0], key))
            if cells.get("FlightDate") == day:
                rows = wanted[template.name].pop(key)
                answer = template.answer(rows)
                if answer is not None:
                    flight = "{IATA_Code_Marketing_Airline}{Flight_Number_Marketing_Airline}".format(**rows[0])
                    drawn[template.name].append((cells | {"flight": flight, "weekday": WEEKDAYS[rows[0]["DayOfWeek"]]}, answer))


def read_rows(file):
    """The columns that a question needs, as the texts of the file."""
    needed = [(name, COLUMNS.index(name)) for name in (
        "FlightDate", "Airline", "IATA_Code_Marketing_Airline", "Flight_Number_Marketing_Airline", "Origin", "Dest", "DayOfWeek", "Cancelled", "Diverted", "CRSDepTime",
        "DepTime", "DepDelay", "DepDelayMinutes", "CRSArrTime", "ArrTime", "ArrDelayMinutes", "AirTime", "CRSElapsedTime", "ActualElapsedTime", "Distance", "TaxiIn")]
    with open(file, newline="") as f:
        rows = csv.reader(f)
        next(rows)
        for row in rows:
            yield {name: row[at] for name, at in needed}


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
    (planned, real), apart = (divmod(int(float(rows[0][column])), 100) for column in ("CRSDepTime", "DepTime")), abs(float(rows[0]["DepDelay"]))
    return whole(apart) if abs(60 * (real[0] - planned[0]) + real[1] - planned[1]) == apart else None


def extra_minutes(rows):
    return None if only(rows, "ActualElapsedTime") is None else str(float(rows[0]["ActualElapsedTime"]) - float(rows[0]["CRSElapsedTime"]))


def flight_numbers(rows):
    """In the order of the table; None if that is not their own order, too."""
    found = [int(row["Flight_Number_Marketing_Airline"]) for row in rows]
    return ", ".join(map(str, found)) if found == sorted(set(found)) else None


def different_numbers(rows):
    """None if it matters whether cancelled flights count, or whether one number under two codes is two flights."""
    ways = {len({(row["Flight_Number_Marketing_Airline"], row["IATA_Code_Marketing_Airline"] * with_code) for row in rows if row["Cancelled"] in kinds})
            for with_code in (0, 1) for kinds in (("False",), ("False", "True"))}
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
            flight = row["IATA_Code_Marketing_Airline"] + row["Flight_Number_Marketing_Airline"]
            best[flight] = min(best.get(flight, math.inf), float(row["AirTime"]))
    return only_largest([(-minutes, flight) for flight, minutes in best.items()])


def average_speed(rows):
    """None if the mean of the flights' speeds is not all miles by all minutes, too."""
    rows = [row for row in rows if row["AirTime"]]
    one_by_one = rounded(mean([float(row["Distance"]) / float(row["AirTime"]) for row in rows]), 1)
    return one_by_one if rows and one_by_one == rounded(sum(numbers(rows, "Distance")) / sum(numbers(rows, "AirTime")), 1) else None


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
        "{Airline} flew from {Origin} to {Dest} on {FlightDate}. What was the flight number?",
        "Under what flight number did {Airline} go from {Origin} to {Dest} on {FlightDate}?"),
        (("Airline", "Origin", "Dest", "FlightDate"), ANY), flight_numbers),
    Template("time difference", (6, 1, 3), SEEN, (
        "How far was the actual departure time of {flight} from {Origin} to {Dest} on {FlightDate} from the CRS recorded one?",
        "On {FlightDate}, flight {flight} left {Origin} for {Dest}. How much time lay between its CRS recorded and its actual departure?",
        "Compare the actual departure time of flight {flight}, {Origin} to {Dest}, on {FlightDate} with the CRS recorded one: how long is the difference?"),
        (LEG, having("DepTime")), off_timetable),
    Template("delay of arrival time", (6, 1, 3), SEEN, (
        "By how much was {flight} delayed at its arrival on {FlightDate}? Add up the delays if there are several.",
        "How late did flight {flight} arrive on {FlightDate}? In case of more than one delay, give their sum.",
        "What was the arrival delay of {flight} on {FlightDate}, or the total of its arrival delays if there are several?"),
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
        (("Origin", "FlightDate"), having("DepDelayMinutes")), lambda rows: rounded(mean(numbers(rows, "DepDelayMinutes")), 1)),
    Template("diverted flights", (6, 1, 3), SEEN, (
        "What is the number of flights that were diverted on {FlightDate}?",
        "On {FlightDate}, how many flights did not keep to their destination but were diverted?",
        "Count the diverted flights of {FlightDate}."),
        (("FlightDate",), ANY), lambda rows: count([row for row in rows if row["Diverted"] == "True"])),
    Template("flights with long distance", (6, 1, 3), UNSEEN, (
        "What is the number of flights on {FlightDate} that covered a distance of more than 300 miles?",
        "On {FlightDate}, how many flights were longer than 300 miles in distance?",
        "Count the flights of {FlightDate} whose distance was greater than 300 miles."),
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
        "How many flights did {Airline} operate on {FlightDate} in all?",
        "Count all flights that {Airline} operated on {FlightDate}.",
        "On {FlightDate}, what was the total of flights operated by {Airline}?"),
        (("Airline", "FlightDate"), ANY), count),
]
