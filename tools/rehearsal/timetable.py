"""The corpus of the flights group: flights in the USA from January to July 2022, one row per flight.

It first draws a timetable: lines with a number and one or two legs, on some days of the week in some months. Then it
draws, day by day, what became of each leg. Columns, order and form are those of ToolQA's table: the local time 7:05 is
705 where it is planned and 705.0 where it is measured; a cancelled or diverted flight has empty cells.
"""

import csv
import datetime
import itertools
import random
from functools import cache
from pathlib import Path

from tools import rehearsal

FIRST, LAST = datetime.date(2022, 1, 1), datetime.date(2022, 7, 31)
DAYS = (LAST - FIRST).days + 1
FULL = 4_078_318                                       # rows of ToolQA's table

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
HUBS = {"WN": "DAL MDW BWI DEN LAS PHX HOU OAK", "DL": "ATL MSP DTW SLC SEA LAX JFK BOS",
        "AA": "DFW CLT MIA ORD PHL PHX DCA", "UA": "ORD DEN IAH EWR SFO IAD", "B6": "JFK BOS FLL MCO",
        "NK": "FLL MCO LAS DTW", "AS": "SEA PDX ANC",
        "F9": "DEN MCO LAS", "G4": "LAS PIE AVL", "HA": "HNL OGG"}

# code, city, state, latitude, longitude (west), hours behind Greenwich, weight among destinations
AIRPORTS = """
ATL Atlanta GA 33.64 84.43 5 9    ORD Chicago IL 41.98 87.90 6 9    DFW Dallas/Fort_Worth TX 32.90 97.04 6 9
DEN Denver CO 39.86 104.67 7 9    CLT Charlotte NC 35.21 80.94 5 8    LAX Los_Angeles CA 33.94 118.41 8 9
LAS Las_Vegas NV 36.08 115.15 8 8    PHX Phoenix AZ 33.43 112.01 7 8    MCO Orlando FL 28.43 81.31 5 8
SEA Seattle WA 47.45 122.31 8 8    MIA Miami FL 25.79 80.29 5 7    IAH Houston TX 29.98 95.34 6 7
JFK New_York NY 40.64 73.78 5 7    EWR Newark NJ 40.69 74.17 5 7    SFO San_Francisco CA 37.62 122.38 8 7
BOS Boston MA 42.36 71.01 5 7    MSP Minneapolis MN 44.88 93.22 6 7    DTW Detroit MI 42.21 83.35 5 7
FLL Fort_Lauderdale FL 26.07 80.15 5 6    LGA New_York NY 40.78 73.87 5 6    PHL Philadelphia PA 39.87 75.24 5 6
BWI Baltimore MD 39.18 76.67 5 6    SLC Salt_Lake_City UT 40.79 111.98 7 6    DCA Washington VA 38.85 77.04 5 6
SAN San_Diego CA 32.73 117.19 8 6    IAD Washington VA 38.94 77.46 5 5    TPA Tampa FL 27.98 82.53 5 6
MDW Chicago IL 41.79 87.75 6 5    BNA Nashville TN 36.12 86.68 6 6    AUS Austin TX 30.19 97.67 6 5
HNL Honolulu HI 21.32 157.92 10 5    DAL Dallas TX 32.85 96.85 6 5    PDX Portland OR 45.59 122.60 8 5
STL St._Louis MO 38.75 90.37 6 4    HOU Houston TX 29.65 95.28 6 4    RDU Raleigh/Durham NC 35.88 78.79 5 4
SMF Sacramento CA 38.70 121.59 8 4    MSY New_Orleans LA 29.99 90.26 6 4    SJC San_Jose CA 37.36 121.93 8 3
OAK Oakland CA 37.72 122.22 8 4    MCI Kansas_City MO 39.30 94.71 6 4    CLE Cleveland OH 41.41 81.85 5 3
IND Indianapolis IN 39.72 86.29 5 4    PIT Pittsburgh PA 40.49 80.23 5 3    CVG Cincinnati OH 39.05 84.66 5 3
SAT San_Antonio TX 29.53 98.47 6 3    CMH Columbus OH 40.00 82.89 5 3    OGG Kahului HI 20.90 156.43 10 3
MKE Milwaukee WI 42.95 87.90 6 2    ANC Anchorage AK 61.17 150.00 9 3    ABQ Albuquerque NM 35.04 106.61 7 2
BUF Buffalo NY 42.94 78.73 5 2    OMA Omaha NE 41.30 95.89 6 2    BDL Hartford CT 41.94 72.68 5 2
PBI West_Palm_Beach FL 26.68 80.10 5 2    ONT Ontario CA 34.06 117.60 8 2    CHS Charleston SC 32.90 80.04 5 2
MEM Memphis TN 35.04 89.98 6 2    BOI Boise ID 43.56 116.22 7 2    JAX Jacksonville FL 30.49 81.69 5 2
RIC Richmond VA 37.51 77.32 5 2    SDF Louisville KY 38.17 85.74 5 2    OKC Oklahoma_City OK 35.39 97.60 6 2
TUL Tulsa OK 36.20 95.89 6 2    PVD Providence RI 41.73 71.43 5 2    ORF Norfolk VA 36.90 76.20 5 2
LIH Lihue HI 21.98 159.34 10 2    KOA Kona HI 19.74 156.05 10 2    GRR Grand_Rapids MI 42.88 85.52 5 1
DSM Des_Moines IA 41.53 93.66 6 1    XNA Fayetteville AR 36.28 94.31 6 1    BHM Birmingham AL 33.56 86.75 6 1
SYR Syracuse NY 43.11 76.11 5 1    HPN White_Plains NY 41.07 73.71 5 1    PWM Portland ME 43.65 70.31 5 1
TYS Knoxville TN 35.81 83.99 5 1    LEX Lexington KY 38.04 84.61 5 1    CHO Charlottesville VA 38.14 78.45 5 1
AVL Asheville NC 35.44 82.54 5 1    PIE St._Petersburg FL 27.91 82.69 5 1    GPT Gulfport MS 30.41 89.07 6 1
TVC Traverse_City MI 44.74 85.58 5 1    BZN Bozeman MT 45.78 111.15 7 1    FAR Fargo ND 46.92 96.82 6 1
FSD Sioux_Falls SD 43.58 96.74 6 1    ICT Wichita KS 37.65 97.43 6 1    JAC Jackson WY 43.61 110.74 7 1
LBB Lubbock TX 33.66 101.82 6 1    AMA Amarillo TX 35.22 101.71 6 1    FAT Fresno CA 36.78 119.72 8 1
SBN South_Bend IN 41.71 86.32 5 1    MYR Myrtle_Beach SC 33.68 78.93 5 1    CRW Charleston WV 38.37 81.59 5 1
BTV Burlington VT 44.47 73.15 5 1    MHT Manchester NH 42.93 71.44 5 1    JNU Juneau AK 58.35 134.58 9 1
FAI Fairbanks AK 64.82 147.86 9 1    SIT Sitka AK 57.05 135.36 9 1    KTN Ketchikan AK 55.36 131.71 9 1
ACV Eureka CA 40.98 124.11 8 1
""".split()
AIRPORTS = {code: (city.replace("_", " "), state, float(north), -float(west), -int(zone), int(weight))
            for code, city, state, north, west, zone, weight in zip(*[iter(AIRPORTS)] * 7)}

# code, name, number, world area code
STATES = """
AK Alaska 2 1    AL Alabama 1 51    AR Arkansas 5 71    AZ Arizona 4 81    CA California 6 91    CO Colorado 8 82
CT Connecticut 9 11    FL Florida 12 33    GA Georgia 13 34    HI Hawaii 15 2    IA Iowa 19 61    ID Idaho 16 83
IL Illinois 17 41    IN Indiana 18 42    KS Kansas 20 62    KY Kentucky 21 52    LA Louisiana 22 72
MA Massachusetts 25 13    MD Maryland 24 35    ME Maine 23 12    MI Michigan 26 43    MN Minnesota 27 63
MO Missouri 29 64    MS Mississippi 28 53    MT Montana 30 84    NC North_Carolina 37 36    ND North_Dakota 38 66
NE Nebraska 31 65    NH New_Hampshire 33 14    NJ New_Jersey 34 21    NM New_Mexico 35 86    NV Nevada 32 85
NY New_York 36 22    OH Ohio 39 44    OK Oklahoma 40 73    OR Oregon 41 92    PA Pennsylvania 42 23
RI Rhode_Island 44 15    SC South_Carolina 45 37    SD South_Dakota 46 67    TN Tennessee 47 54    TX Texas 48 74
UT Utah 49 87    VA Virginia 51 38    VT Vermont 50 16    WA Washington 53 93    WI Wisconsin 55 45
WV West_Virginia 54 39    WY Wyoming 56 88
""".split()
STATES = {code: (name.replace("_", " "), int(fips), int(area)) for code, name, fips, area in zip(*[iter(STATES)] * 4)}


@cache
def miles(a, b):
    """The distance between two airports in whole miles."""
    return round(rehearsal.miles(AIRPORTS[a][2:4], AIRPORTS[b][2:4]))


def zones(origin, dest):
    """Minutes by which the clocks of the destination are ahead."""
    return 60 * (AIRPORTS[dest][4] - AIRPORTS[origin][4])


@cache
def reachable(hub, limit):
    """The airports in reach, and their weights."""
    there = [other for other in AIRPORTS if 60 < miles(hub, other) <= limit]
    return there, [AIRPORTS[other][-1] for other in there]


def make_timetable(rng, daily):
    """Legs for about `daily` flights a day, sorted by airline code and number."""
    weights, legs, per_day = [int(airline[3]) for airline in AIRLINES], [], 0.0
    while per_day < daily:
        name, own, codes, _, limit = rng.choices(AIRLINES, weights)[0]
        code = rng.choice(codes.split())
        hub = rng.choice(HUBS[code].split())
        spoke = rng.choices(*reachable(hub, int(limit)))[0]
        for _ in range(rng.choice((1, 1, 2, 3, 4))):   # lines between these two
            number = rng.randint(1, 3000) if own == code else rng.randint(3000, 6400)
            stops = rng.choice(([hub, spoke], [spoke, hub], [hub, spoke, hub])[:3 if code == "WN" else 2])
            days = rng.choice(("1234567", "1234567", "1234567", "12345", "67", "135", "2467"))
            begin = FIRST if rng.random() < 0.6 else FIRST + datetime.timedelta(rng.randrange(120))
            end = LAST if rng.random() < 0.6 else min(LAST, begin + datetime.timedelta(rng.randrange(30, 100)))
            departs = 5 * rng.randrange(60, 150 if len(stops) > 2 else 270)
            for origin, dest in itertools.pairwise(stops):
                if departs >= 1440:                    # it would be the next day's
                    break
                wind = (AIRPORTS[origin][3] - AIRPORTS[dest][3]) / 6                       # from the west
                in_air = round(miles(origin, dest) / 7.6 + 16 + wind)
                takes = in_air + rng.randint(20, 40)
                legs.append((code, number, departs, name, own, origin, dest, takes, in_air, days, begin, end))
                departs += takes + 45 + zones(origin, dest)
                per_day += len(days) / 7 * ((end - begin).days + 1) / DAYS
    return sorted(legs)


def write_corpus(folder: Path, rng: random.Random, scale: float) -> None:
    """folder/Combined_Flights_2022.csv, day after day; 4,078,318 rows at scale 1. Only the timetable is in memory."""
    legs = make_timetable(rng, FULL * scale / DAYS)
    with open(folder / "Combined_Flights_2022.csv", "w", newline="") as file:
        writer, header = csv.writer(file), None
        for day in (FIRST + datetime.timedelta(n) for n in range(DAYS)):
            weather = {code: rng.choice((1, 1, 1, 1, 2, 6)) for code in AIRPORTS}
            for *leg, days, begin, end in legs:
                if begin <= day <= end and str(day.isoweekday()) in days:
                    row = fly(rng, day, *leg, weather[leg[5]])
                    if header is None:
                        writer.writerow(header := list(row))
                    writer.writerow(row.values())


def fly(rng, day, code, number, departs, name, own, origin, dest, takes, in_air, weather):
    """The row of a leg on a day. departs, takes, in_air: planned minutes; weather: 1 where it is good, else more."""
    fate = rng.random() / weather
    cancelled, diverted = fate < 0.015, 0.015 <= fate < 0.02
    late = rng.randint(-9, 2) if rng.random() > 0.25 + 0.05 * weather else int(rng.expovariate(1 / 30))
    taxi_out, taxi_in = 9 + int(rng.expovariate(1 / 8)), 3 + int(rng.expovariate(1 / 4))
    air_time = max(15, in_air + round(rng.gauss(0, 5)))
    left, off = departs + late, departs + late + taxi_out
    ahead, distance = zones(origin, dest), miles(origin, dest)
    on = off + air_time + ahead                        # in local time of the destination, as all that follows
    came, due = on + taxi_in, departs + takes + ahead
    if_left = lambda value: "" if cancelled else float(value)
    if_came = lambda value: "" if cancelled or diverted else float(value)
    return {
        "FlightDate": day, "Airline": name, "Origin": origin, "Dest": dest, "Cancelled": cancelled,
        "Diverted": diverted, "CRSDepTime": clock(departs), "DepTime": if_left(clock(left)),
        "DepDelayMinutes": if_left(max(late, 0)), "DepDelay": if_left(late),
        "ArrTime": if_came(clock(came)), "ArrDelayMinutes": if_came(max(came - due, 0)),
        "AirTime": if_came(air_time), "CRSElapsedTime": float(takes),
        "ActualElapsedTime": if_came(taxi_out + air_time + taxi_in), "Distance": float(distance),
        "Year": day.year, "Quarter": (day.month + 2) // 3, "Month": day.month, "DayofMonth": day.day,
        "DayOfWeek": day.isoweekday(), "Marketing_Airline_Network": code,
        "Operated_or_Branded_Code_Share_Partners": code if own == code else f"{code}_CODESHARE",
        "DOT_ID_Marketing_Airline": dot_number(code), "IATA_Code_Marketing_Airline": code,
        "Flight_Number_Marketing_Airline": number, "Operating_Airline": own,
        "DOT_ID_Operating_Airline": dot_number(own), "IATA_Code_Operating_Airline": own,
        "Tail_Number": f"N{(number * 37 + day.day) % 900 + 100}{own}",
        "Flight_Number_Operating_Airline": number, **place("Origin", origin), **place("Dest", dest),
        "DepDel15": if_left(late >= 15), "DepartureDelayGroups": if_left(quarters(late)), "DepTimeBlk": block(departs),
        "TaxiOut": if_left(taxi_out), "WheelsOff": if_left(clock(off)), "WheelsOn": if_came(clock(on)),
        "TaxiIn": if_came(taxi_in), "CRSArrTime": clock(due), "ArrDelay": if_came(came - due),
        "ArrDel15": if_came(came - due >= 15), "ArrivalDelayGroups": if_came(quarters(came - due)),
        "ArrTimeBlk": block(due), "DistanceGroup": min(distance // 250 + 1, 11), "DivAirportLandings": float(diverted)}


def clock(minutes):
    """705 for 7:05; midnight is 2400."""
    return minutes // 60 % 24 * 100 + minutes % 60 or 2400


def block(minutes):
    """The hour, as in "0700-0759"; the night is one block."""
    hour = minutes // 60 % 24
    return "0001-0559" if hour < 6 else f"{hour:02}00-{hour:02}59"


def quarters(delay):
    """A delay in quarters of an hour, from -2 to 12."""
    return min(max(delay // 15, -2), 12)


@cache
def dot_number(code):
    return 19393 + 7 * [airline[1] for airline in AIRLINES].index(code)


@cache
def place(end, code):
    """What the table holds about an airport besides its code; end: "Origin" or "Dest"."""
    city, state, *_ = AIRPORTS[code]
    name, number, area = STATES[state]
    airport = 10135 + 53 * list(AIRPORTS).index(code)
    return {f"{end}AirportID": airport, f"{end}AirportSeqID": 100 * airport + 2, f"{end}CityMarketID": 20000 + airport,
            f"{end}CityName": f"{city}, {state}", f"{end}State": state, f"{end}StateFips": number,
            f"{end}StateName": name, f"{end}Wac": area}
