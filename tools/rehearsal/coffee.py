"""The coffee group: the price on each trading day from 2000 to 2022, and questions on a day or a period.

A price is a multiple of 5 cents, as at the exchange. Over the years it returns to about 125, as the real one does, and
for months on end the days lean one way while the nights lean the other.
"""

import csv
import datetime
import math
import random
from pathlib import Path

from tools.rehearsal import Template, mean, only_largest, rounded, with_unit

FIRST, LAST = datetime.date(2000, 1, 3), datetime.date(2022, 9, 16)
PRICES = ("Open", "High", "Low", "Close")


def write_corpus(folder: Path, rng: random.Random, scale: float) -> None:
    """folder/coffee_price.csv, 5,700 rows. The scale has no effect: ToolQA's table is no larger."""
    with open(folder / "coffee_price.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("Date", *PRICES, "Volume", "Currency"))
        tick = lambda price: round(round(price * 20) / 20, 2)
        close, lean, day = 120.0, 0.0, FIRST
        while day <= LAST:
            if day.weekday() < 5 and (day == FIRST or rng.random() > 0.035):           # the others are holidays
                if rng.random() < 0.01:
                    lean = rng.uniform(-0.004, 0.004)
                opened = tick(close * math.exp(rng.gauss(-lean, 0.006) + 0.002 * math.log(125 / close)))
                close = tick(opened * math.exp(rng.gauss(lean, 0.018)))
                high = tick(max(opened, close) + rng.expovariate(1.2))
                low = tick(min(opened, close) - rng.expovariate(1.2))
                volume = int(rng.lognormvariate(9, 0.9)) + 1 if rng.random() < 0.8 else rng.randint(1, 200)
                writer.writerow((day, opened, high, low, close, volume, "USD"))
            day += datetime.timedelta(1)


def draw_tasks(folder: Path, rng: random.Random) -> dict[str, list[tuple[dict, str]]]:
    """{template's name: [(arguments, answer), …]}, as many as it needs, no arguments twice."""
    with open(folder / "coffee_price.csv", newline="") as file:
        rows = [row | {name: float(row[name]) for name in PRICES} for row in csv.DictReader(file)]
    drawn = {}
    for template in TEMPLATES:
        tasks = {}
        while len(tasks) < template.size:
            first, last = template.arguments(rng, len(rows))
            answer = template.answer(rows[first:last + 1], rows[first - 1])
            if answer is not None:
                tasks[first, last] = {"first": rows[first]["Date"], "last": rows[last]["Date"]}, answer
        drawn[template.name] = list(tasks.values())
    return drawn


def a_day(rng, days):
    return (rng.randrange(1, days),) * 2


def a_period(rng, days):
    """A period of a month to twenty years."""
    length = int(math.exp(rng.uniform(math.log(20), math.log(days - 1))))
    first = rng.randrange(1, days - length + 1)
    return first, first + length - 1


def change(new, old):
    """The change in percent."""
    return (new - old) / old * 100


def of_day(day):
    return change(day["Close"], day["Open"])


def highest(rows):
    return max(day["High"] for day in rows)


def lowest(rows):
    return min(day["Low"] for day in rows)


def bull_or_bear(day):
    return None if day["Open"] == day["Close"] else "bullish" if day["Close"] > day["Open"] else "bearish"


def widest_day(rows):
    return only_largest([(round(day["High"] - day["Low"], 2), day["Date"]) for day in rows])


def rises(rows):
    """(percent, dollars, date) of each Close against the Close before, from the second row on."""
    return [(change(day["Close"], eve["Close"]), round(day["Close"] - eve["Close"], 2), day["Date"])
            for eve, day in zip(rows, rows[1:])]


def steepest_day(rows, eve):
    """The date of the largest rise. None if it matters whether percents or dollars count, or whether the first day is
    compared with its eve."""
    ways = {only_largest([(rise[unit], rise[2]) for rise in rises(days)])
            for unit in (0, 1) for days in (rows, [eve, *rows])}
    return ways.pop() if len(ways) == 1 else None


def rising_days(rows, eve):
    """How many days rose; None if it matters whether the period's first day is compared with its eve."""
    return None if rows[0]["Close"] > eve["Close"] else str(sum(percent > 0 for percent, _, _ in rises(rows)))


OF_DAY = (8, 1, 4)
TEMPLATES = [
    Template("opening price", OF_DAY, (0, 0, 13), (
        "At what price did coffee open on {first}?",
        "Give the price of coffee at the opening of trading on {first}.",
        "Coffee was traded on {first}. What was the price at the open?",
        "What did coffee cost when the market opened on {first}?"), a_day, lambda rows, eve: str(rows[0]["Open"])),
    Template("lowest price", OF_DAY, (0, 0, 13), (
        "How low did the coffee price fall on {first}?",
        "What was the lowest that coffee cost on {first}?",
        "Give the lowest price at which coffee was traded on {first}.",
        "Which price was the day's low for coffee on {first}?"), a_day, lambda rows, eve: str(rows[0]["Low"])),
    Template("highest price", OF_DAY, (12, 1, 0), (
        "How high did the coffee price climb on {first}?",
        "What was the most that coffee cost on {first}?",
        "Give the highest price at which coffee was traded on {first}.",
        "Which price was the day's high for coffee on {first}?"), a_day, lambda rows, eve: str(rows[0]["High"])),
    Template("closing price", OF_DAY, (12, 1, 0), (
        "At what price did coffee close on {first}?",
        "Give the price of coffee at the end of trading on {first}.",
        "Coffee was traded on {first}. What was the price at the close?",
        "What did coffee cost when the market closed on {first}?"), a_day, lambda rows, eve: str(rows[0]["Close"])),
    Template("volume", (7, 1, 4), (0, 0, 12), (
        "How much coffee was traded on {first}, by volume?",
        "Give the trading volume of coffee for {first}.",
        "Which volume of coffee changed hands on {first}?"), a_day, lambda rows, eve: rows[0]["Volume"]),
    Template("percentage change", (7, 1, 4), (11, 1, 0), (
        "By what percentage did coffee move from its opening to its closing price on {first}?",
        "Taking the opening and the closing price of {first}, how large was the change in the coffee price in percent?",
        "Express the difference between the opening and closing prices of coffee on {first} as a percentage change."),
        a_day, lambda rows, eve: with_unit(rounded(of_day(rows[0]), 2), "%")),
    Template("A or B", (7, 1, 4), (11, 1, 0), (
        "Would you call {first} bullish or bearish for coffee?",
        "Was the coffee market bearish or bullish on {first}?",
        "Bullish or bearish: which kind of day was {first} for the price of coffee?"),
        a_day, lambda rows, eve: bull_or_bear(rows[0])),
    Template("range of coffee price", (7, 1, 4), (11, 1, 0), (
        "How far apart were the high and the low price of coffee on {first}?",
        "Subtract the low from the high price of coffee on {first}: what was the day's range?",
        "How wide was the range of the coffee price on {first}, from its low to its high?"),
        a_day, lambda rows, eve: f"{rows[0]['High'] - rows[0]['Low']:.2f}"),
    Template("highest coffee price", (6, 1, 3), (0, 0, 10), (
        "In the time from {first} to {last}, what was the highest price that coffee reached?",
        "What was the peak of the coffee price from {first} through {last}?",
        "Find the highest price of coffee in the period from {first} to {last}."),
        a_period, lambda rows, eve: f"{highest(rows)} USD"),
    Template("lowest coffee price", (6, 1, 3), (9, 1, 0), (
        "In the time from {first} to {last}, what was the lowest price that coffee fell to?",
        "What was the bottom of the coffee price from {first} through {last}?",
        "Find the lowest price of coffee in the period from {first} to {last}."),
        a_period, lambda rows, eve: f"{lowest(rows)} USD"),
    Template("average coffee price", (6, 1, 3), (10, 0, 0), (
        "What did coffee cost on average between {first} and {last}?",
        "Give the mean price of coffee in the period from {first} to {last}.",
        "From {first} through {last}, what was the average price of coffee?"),
        a_period, lambda rows, eve: with_unit(rounded(mean([day["Close"] for day in rows]), 1), " USD")),
    Template("coffee price change", (6, 1, 3), (9, 1, 0), (
        "By how much did the price of coffee move between the start of {first} and the end of {last}?",
        "What was the change in the coffee price from the beginning of {first} to the end of {last}?",
        "Coffee had one price at the start of {first} and another at the end of {last}. How much did it change?"),
        a_period, lambda rows, eve: with_unit(rounded(rows[-1]["Close"] - rows[0]["Open"], 1), " USD")),
    Template("percentage change comparison", (7, 0, 3), (0, 0, 10), (
        "Compared to the day before, by what percentage did the coffee price change on {first}?",
        "How large was the percentage change in the price of coffee on {first} against the previous day?",
        "Set the coffee price of {first} against that of the previous day: what was the change in percent?"),
        a_day, lambda rows, eve: with_unit(rounded(change(rows[0]["Close"], eve["Close"]), 1), "%")),
    Template("day with the greatest price change", (6, 1, 3), (9, 1, 0), (
        "In the time from {first} to {last}, on which date were the highest and lowest coffee price furthest apart?",
        "Which date from {first} to {last} saw the greatest gap between the day's highest and lowest coffee prices?",
        "From {first} to {last}, on which date did the highest and the lowest coffee price of a day differ most?"),
        a_period, lambda rows, eve: widest_day(rows)),
    Template("average daily volume", (6, 1, 3), (9, 1, 0), (
        "How much coffee was traded a day on average between {first} and {last}, by volume?",
        "Give the mean of the daily trading volume of coffee from {first} to {last}.",
        "From {first} through {last}, which volume of coffee was traded on an average day?"),
        a_period, lambda rows, eve: rounded(mean([int(day["Volume"]) for day in rows]), 1)),
    Template("day with the highest increase", (6, 1, 3), (9, 1, 0), (
        "In the time from {first} to {last}, on which date did coffee rise the most against the previous day?",
        "Which date from {first} to {last} brought the largest increase in the coffee price over the day before?",
        "Find the date from {first} to {last} when the price of coffee increased most compared to the day before."),
        a_period, steepest_day),
    Template("times of coffee price", (6, 1, 3), (0, 0, 10), (
        "In the time from {first} to {last}, how many times was the coffee price up on the previous day?",
        "How often did coffee rise compared to the day before in the period from {first} to {last}?",
        "Count the days from {first} to {last} on which the price of coffee increased over the previous day."),
        a_period, rising_days),
    Template("percentage increase", (6, 1, 3), (9, 1, 0), (
        "By what percentage did the coffee price increase between the start of {first} and the end of {last}?",
        "From the beginning of {first} to the end of {last}, how large was the increase of coffee in percent?",
        "Give the percentage by which coffee became more expensive from the start of {first} until the end of {last}."),
        a_period, lambda rows, eve: with_unit(rounded(change(rows[-1]["Close"], rows[0]["Open"]), 1), "%")),
    Template("coffee price range", (6, 1, 3), (9, 1, 0), (
        "How far apart were the highest and the lowest price of coffee in the period from {first} to {last}?",
        "In the time from {first} to {last}, by how much did the highest coffee price exceed the lowest?",
        "Take the highest and the lowest coffee price from {first} through {last}. What is the difference?"),
        a_period, lambda rows, eve: with_unit(rounded(highest(rows) - lowest(rows), 1), " USD")),
    Template("day with the higher close price", (6, 1, 3), (9, 1, 0), (
        "In the time from {first} to {last}, on how many days was the closing price of coffee above the opening price?",
        "How many days from {first} to {last} ended with coffee at a higher price than at the open?",
        "Count the days in the period from {first} to {last} on which coffee closed above its opening price."),
        a_period, lambda rows, eve: str(sum(day["Close"] > day["Open"] for day in rows))),
    Template("average percentage change", (6, 1, 3), (9, 1, 0), (
        "What percentage change did coffee show on average between the start of {first} and the end of {last}?",
        "From the beginning of {first} to the end of {last}, by what percentage did coffee change on average?",
        "Give the mean percentage change of the coffee price from the start of {first} until the end of {last}."),
        a_period, lambda rows, eve: with_unit(rounded(mean([of_day(day) for day in rows]), 1), "%")),
]
