"""Draws a world from a seed, with its own tools, data, hints and tasks, to test if an agent follows unseen hints.

    python starter/made_up_world.py --seed 7 --out data/made-up-7

writes tools.py (the tools), world/data.json (their data), hints/<group>.md (documentation and recipes), and train.jsonl
and test.jsonl (10 and 5 tasks of each of 12 templates, in three groups). The stages run on it as on any other world:

    python collect.py --model starter --tools data/made-up-7/tools.py --data data/made-up-7/world \\
        --hint-dir data/made-up-7/hints --tasks data/made-up-7/test.jsonl --hints task --out runs/made-up-7.jsonl

A kind of template is one function. Its docstring holds the title, the phrases that questions are made of, and the
recipe in an abstract Python; `//` separates alternatives, `;` lines. `find(a=A)` stands for the rows whose column a
has the value A, `x.n` is a cell, `linked(K)` and `note(K)` are tools of some groups, `number` is int or float, and
`round(…, 2)` rounds to the column's places. Columns: k the key, a and c labels with many values, b a label with few,
d a date, n and m numbers. Capitals are a step's slots, whose values follow their names: those of the first step in the
question, P and Q in what the step before printed, W, U, V and T in a note. The body computes the answer from the data,
without any tool; `one` is the row that the question is about.

For each group the seed decides what the tools are called, what they take and return, and what every name is; the
abstract recipe is written down in these words.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import command_line

import inspect
import json
import random
import re
from types import SimpleNamespace

TRAIN, TEST = 10, 5     # tasks per template
ROWS = 150              # per group
MOST = 5                # tasks of a template with the same answer

# place: item, its person, labels, numbers
DOMAINS = """\
harbour: vessel captain flag cargo pier crew tonnage draught
seed bank: sample collector region soil drawer moisture shoots mass
museum: exhibit donor hall epoch culture height worth width
workshop: repair mechanic maker part bench bolts charge effort
clinic: visit nurse ward symptom remedy pulse dose wait
observatory: exposure observer lens star dome seconds noise glow
post office: parcel sender district wrapping route grams stamps postage
library: volume lender shelf genre printer pages loans fine
orchard: tree grower variety plot slope apples girth roots
theatre: costume tailor scene fabric play buttons inches outlay
quarry: block mason pit stone buyer load cracks depth
brewery: cask brewer malt cellar yeast litres bitterness foam
zoo: animal warden house diet origin meals ounces teeth
railway yard: wagon driver depot freight siding axles payload mileage
bee farm: hive beekeeper meadow blossom queen frames honey stings
mint: coin engraver metal ruler motif edge silver diameter
pottery: vase potter glaze clay kiln firings rim weight
airfield: glider pilot hangar model club flights wingspan altitude
lighthouse: signal keeper coast colour lamp flashes range fuel
choir: song conductor voice tongue composer verses breaths tempo"""
NOTE_WORDS = ["witness porter clerk visitor auditor rescuer".split(), "deposit echo surplus ration score tally".split(),
              "heir twin double rival spare".split()]                            # a person, numbers, another key
LINK_WORDS = "partner relative companion follower sibling counterpart".split()
VERBS = ("seek pull draw lift gather open ask scan spot trace hunt browse dig glean learn hear view reach choose "
         "peek").split()
STORES = ("ledger drawer roll file deck stack sheet chart tray chest folder rack ring panel board archive almanac "
          "docket logbook cabinet scroll journal inventory roster").split()
METHODS = ["where keep having only matching restrict".split(), "read cell tell show entry part_of".split()]

HEADS = ("Ash Birk Cald Drum Ever Frost Grim Hind Iron King Lock March Nether Oak Pine Quarn Raven Stan Thistle Under "
         "Wood").split()
ENDS = "combe dene fell gate holm law mere ness ridge stow thwaite vale worth".split()
FIRST = ("Ada Bruno Clive Daphne Enid Frank Gemma Hugo Iris Joan Keith Lorna Maud Ned Opal Percy Ruth Sybil Trevor "
         "Una").split()
WHICH = "bold brisk dusty eager faint gentle hollow keen lonely mellow narrow plain rapid silent tall vast".split()
WHAT = ("arrow beacon candle drum ember feather goblet hammer kettle lantern mirror needle pebble ribbon saddle "
        "thimble").split()

# What a recipe's names become. No name of a slot is a word of any data.
SLOTS = ("asked sought given picked wanted stated meant seen known heard typed chosen subject entry item quest matter "
         "topic").split()
LOCALS = "b c d f g h j p q r s t w hits kept batch bunch lot pile span basis res out tmp got outcome".split()
EACH = "x y z e i o u v".split()

FRAMES = ["What is {}?", "Give {}.", "Tell me {}.", "Find {}, please.", "Please work out {}.", "We need {}.",
          "Can you say what {} is?", "Could you determine {}?", "Report {}.", "What would you say is {}?",
          "Let us know {}.", "Look for {}."]
CLOSINGS = ["the {} is printed", "read the printed {}", "now take the {}", "the {} stands there", "this shows the {}"]
REPORTS = ["the {}", "{} found", "got the {}", "{} as asked", "here is the {}", "that is the {}"]


# ---- the kinds of templates of any group ----

def look_up(one, rows, rng):
    """{c}
    the {c} of the {item} {K} // the {c} that belongs to the {item} {K}
    Step: look up the {c} of one {item} // see which {c} it has
    rows = find(k=K)
    print(rows[0].c)"""
    return {"K": one.k}, one.c


def look_up_by_two(one, rows, rng):
    """{n}
    the {n} of the {item} {A} {D} // the {n} of the {item} {D} {A}
    Step: find the {item} of a day and its {n} // go by {a} and day
    rows = find(a=A, d=D)
    print(rows[0].n) // best = rows[0]; print(best.n)"""
    if sum((x.a, x.d) == (one.a, one.d) for x in rows) == 1:
        return {"A": one.a, "D": one.d}, one.n


def count_above(one, rows, rng):
    """number of high {n}
    the number of {items} {A} and {N} // the count of {items} {N} and {A}
    Step: count the {items} with much {n} // which {items} exceed the {n}
    rows = find(a=A)
    more = [x for x in rows if x.n > number(N)]
    print(len(more))"""
    limit = rng.choice(rows).n
    return {"A": one.a, "N": limit}, sum(x.a == one.a and x.n > limit for x in rows)


def count_both(one, rows, rng):
    """number of both
    the number of {items} {A} and {B} // the count of {items} {B} and {A}
    Step: count by {a} and {b} // how often do {a} and {b} meet
    rows = find(a=A, b=B)
    print(len(rows))"""
    return {"A": one.a, "B": one.b}, sum((x.a, x.b) == (one.a, one.b) for x in rows)


def total(one, rows, rng):
    """total {n}
    the total {n} of all {items} {A} // the {n} of the {items} {A} taken together
    Step: add up the {n} of a {a} // sum over one {a}
    rows = find(a=A)
    print(round(sum(x.n for x in rows), 2)) // some = 0; for x in rows: some += x.n; print(round(some, 2))"""
    return {"A": one.a}, round(sum(x.n for x in rows if x.a == one.a), 2)


def average(one, rows, rng):
    """average {n}
    the average {n} of the {items} {B} and {A} // the mean {n} over the {items} {B} and {A}
    Step: average the {n} of some {items} // take the mean of their {n}
    rows = find(b=B, a=A)
    values = [x.n for x in rows] // values = list(x.n for x in rows)
    print(round(sum(values) / len(values), 1))"""
    some = [x.n for x in rows if (x.a, x.b) == (one.a, one.b)]
    return {"B": one.b, "A": one.a}, round(sum(some) / len(some), 1)


def largest(one, rows, rng):
    """{k} of most {n}
    the {k} of the {item} with the most {n} {among} those {A} // the {k} of the one {item} {A} that has the most {n}
    Step: find the {item} with most {n} // sort them by {n}
    rows = find(a=A)
    best = max(rows, key=lambda x: x.n); print(best.k) // best = sorted(rows, key=lambda x: x.n)[-1]; print(best.k)"""
    same = sorted((x for x in rows if x.a == one.a), key=lambda x: x.n)
    if len(same) > 1 and same[-2].n < same[-1].n:
        return {"A": one.a}, same[-1].k


def spread(one, rows, rng):
    """spread of {n}
    the gap between the highest and the lowest {n} of the {items} {A} // how far the {n} of the {items} {A} is spread
    Step: subtract the lowest {n} from the highest // see how wide their {n} ranges
    rows = find(a=A)
    values = [x.n for x in rows] // values = sorted([x.n for x in rows])
    print(round(max(values) - min(values), 2))"""
    some = [x.n for x in rows if x.a == one.a]
    return {"A": one.a}, round(max(some) - min(some), 2)


def difference(one, rows, rng):
    """difference in {n}
    the difference in {n} between the {items} {K} and {L} // how much the {n} differs between the {items} {K} and {L}
    Step: compare the {n} of two {items} // take two {items} and subtract
    rows = find(k=K)
    other = find(k=L)
    total = rows[0].n - other[0].n // best = rows[0].n; more = other[0].n; total = best - more
    print(round(abs(total), 2))"""
    other = rng.choice(rows)
    if other.n != one.n:
        return {"K": one.k, "L": other.k}, round(abs(one.n - other.n), 2)


def distinct(one, rows, rng):
    """number of distinct {c}
    the number of different values of {c} {among} the {items} {A} // how many values of {c} the {items} {A} have
    Step: collect the different values of {c} // which {c} occurs there
    rows = find(a=A)
    names = set([x.c for x in rows]); print(len(names)) // print(len(set(x.c for x in rows)))"""
    return {"A": one.a}, len({x.c for x in rows if x.a == one.a})


def same_label(one, rows, rng):
    """number with the same {a}
    the number of {items} that have the {a} of the {item} {K} // the count of {items} of the same {a} as the {item} {K}
    Step: first get the {a} of it // which {a} is it
    rows = find(k=K)
    print(rows[0].a)
    Step: count the {items} of this {a} // how many have this {a}
    other = find(a=P)
    print(len(other))"""
    return {"K": one.k}, sum(x.a == one.a for x in rows)


def smallest_then(one, rows, rng):
    """{c} of least {n}
    the {c} of the {item} with the least {n} {among} those {A} // the {c} of the one {item} {A} that has the least {n}
    Step: find the {item} with least {n} // search for the smallest {n}
    rows = find(a=A)
    best = min(rows, key=lambda x: x.n); print(best.k) // best = sorted(rows, key=lambda x: x.n)[0]; print(best.k)
    Step: look up the {c} of this {item} // get its {c} by the {k}
    other = find(k=P)
    print(other[0].c)"""
    same = sorted((x for x in rows if x.a == one.a), key=lambda x: x.n)
    if len(same) > 1 and same[0].n < same[1].n:
        return {"A": one.a}, same[0].c


def two_cells(one, rows, rng):
    """sum of {n} and {m}
    the sum of {n} and {m} of the {item} {K} // what {n} and {m} of the {item} {K} add up to
    Step: print {n} and {m} of one {item} // get both numbers of this {item}
    rows = find(k=K)
    print(rows[0].n)
    print(rows[0].m)
    Step: add the two printed numbers // both lines make the sum
    total = number(P) + number(Q) // best = number(P); total = best + number(Q)
    complete_task("both", str(round(total, 2)))"""
    return {"K": one.k}, round(one.n + one.m, 2)


# ---- of groups with links ----

def link_count(one, rows, rng):
    """number of {links}
    the number of {links} of the {item} {K} // how many {links} the {item} {K} has
    Step: count the {links} of one {item} // how many {links} are there
    names = linked(K)
    print(len(names))"""
    return {"K": one.k}, len(one.links)


def link_shared(one, rows, rng):
    """number of shared {links}
    the number of {links} that the {items} {K} and {L} share // how many {links} the {items} {K} and {L} have in common
    Step: see which {links} two {items} share // take those that occur twice
    names = linked(K)
    both = [x for x in linked(L) if x in names] // both = set(names) & set(linked(L))
    print(len(both))"""
    other = rng.choice(rows)
    shared = set(one.links) & set(other.links)
    if other is not one and shared:
        return {"K": one.k, "L": other.k}, len(shared)


def link_list(one, rows, rng):
    """list of {links}
    the sorted list of all {links} of the {item} {K} // all {links} of the {item} {K}, in order
    Step: sort the {links} into one line // list the {links} by alphabet
    names = sorted(linked(K))
    text = ", ".join(names)
    print(text)
    Step: the list is there already // all {links} are joined
    complete_task("all {links}", text)"""
    return {"K": one.k}, ", ".join(sorted(one.links))


def link_then(one, rows, rng):
    """{c} of a {link}
    the {c} of the {link} that is first {among} those of the {item} {K} // the {c} of the first {link} of the {item} {K}
    Step: get the first of the {links} // sort the {links} and take one
    names = sorted(linked(K)); print(names[0]) // print(min(linked(K)))
    Step: look up the {c} of this {link} // now search for its {c}
    rows = find(k=P)
    print(rows[0].c)"""
    return {"K": one.k}, next(x.c for x in rows if x.k == min(one.links))


# ---- of groups with notes ----

def note_word(one, rows, rng):
    """{w}
    the {w} in the note about the {item} {K} // the {w} whom the note names that is about the {item} {K}
    Step: read the note about one {item} // print what the note says
    text = note(K); print(text) // print(note(K))
    Step: the note names the {w} // look for the {w} in it
    complete_task("the {w}", W)"""
    return {"K": one.k}, one.w


def note_sum(one, rows, rng):
    """{u} and {v}
    the {u} plus the {v} in the note about the {item} {K} // {u} and {v} together in the note about the {item} {K}
    Step: print the note with both numbers // get a note with {u} and {v}
    print(note(K)) // text = note(K); print(text)
    Step: add {u} and {v} of the note // the note tells {u} and {v}
    complete_task("{u} and {v}", str(int(U) + int(V))) // some = int(U) + int(V); complete_task("both", str(some))"""
    return {"K": one.k}, one.u + one.v


def note_then(one, rows, rng):
    """{n} of the {t}
    the {n} of the {t} that a note gives for the {item} {K} // the {n} of the {t} noted for the {item} {K}
    Step: a note tells the {t} // read which {t} is named
    print(note(K))
    Step: look up the {n} of the {t} // get the {n} from the {items}
    rows = find(k=T)
    print(rows[0].n)"""
    return {"K": one.k}, next(x.n for x in rows if x.k == one.t)


TABLE = [look_up, look_up_by_two, count_above, count_both, total, average, largest, spread, difference, distinct,
         same_label, smallest_then, two_cells]
LINKS = [link_count, link_shared, link_list, link_then]
NOTES = [note_word, note_sum, note_then]


# ---- the forms of tools: code of tools.py, how a recipe writes it, how the hints describe it ----

FINDS = {   # parameters, the columns and values they ask for, the documentation
    "pair": ("column, value", "{{column: value}}", "gives the {items} with that value in the column"),
    "keywords": ("**columns", "columns", "gives the {items} with these values, say {a}=x"),
    "text": ("condition", '_conditions(condition, "{joins}", "{equals}")',
             'gives the {items} that fit, say "{a}{equals}x"'),
    "all": ("", "{{}}", "gives all {items}"),
    "methods": ("", "{{}}", "gives all {items}, .{keep}(column, value) keeps some"),
}
CELLS = {   # what a row is made into, a cell of it, the documentation
    "dict": ("row", '{x}["{label}"]', "each {item} is a dict: {labels}"),
    "attributes": ("SimpleNamespace(**row)", "{x}.{label}", "each {item} has the attributes {labels}"),
    "method": ("_Row(row)", '{x}.{cell}("{label}")', ".{cell}(column) of one {item} gives a value; columns: {labels}"),
    "text": ('"{between}".join(map(str, row.values()))', '{x}.split("{between}")[{index}]',
             "each {item} is a line: {labels}"),
    "tuple": ("tuple(row.values())", "{x}[{index}]", "each {item} is a tuple: {labels}"),
    "tool": ('row["{k}"]', '{cell_tool}({x}, "{label}")',
             "{cell_tool}({item}, column) gives a value; columns: {labels}"),
}
LINKED = {"list": ("names", "{link_tool}({K})", "lists the {links} of that {k}"),
          "text": ('"; ".join(names)', '{link_tool}({K}).split("; ")', "is a text of the {links}, with ; between"),
          "dicts": ('[{{"{link}": name}} for name in names]', '[{x}["{link}"] for {x} in {link_tool}({K})]',
                    "gives a dict for each {link}")}
NOTED = {"plain": ("text", "{note_tool}({K})", "is the note about that {k}"),
         "keyword": ("text", "{note_tool}(about={K})", "is the note about that {k}"),
         "attribute": ("SimpleNamespace(text=text)", "{note_tool}({K}).text", "has the note on that {k} as its .text")}

MODULE = '''"""The tools of a made-up world."""

import json
from pathlib import Path
from types import SimpleNamespace


def _open(directory):
    """Reads the data; called once."""
    global _data
    _data = json.loads((Path(directory) / "data.json").read_text())


def _rows(group, wanted):
    """The rows of a group with the wanted values."""
    rows = _data[group]["rows"]
    for column in wanted:
        if column not in rows[0]:
            raise ValueError(f"there is no column {column}; there are: {', '.join(rows[0])}")
    return [row for row in rows if all(str(row[column]) == str(value) for column, value in wanted.items())]


def _conditions(text, joins, equals):
    """The columns and values that a text asks for."""
    pairs = [part.partition(equals) for part in text.split(joins)]
    if not all(sign for _, sign, _ in pairs):
        raise ValueError(f"cannot read {text!r}; write column{equals}value")
    return {column: value for column, _, value in pairs}


def _value(group, key, about, column):
    """A cell of the row with this key."""
    rows = _rows(group, {key: about})
    if not rows or column not in rows[0]:
        raise ValueError(f"nothing is known about {column!r} of {about!r}")
    return rows[0][column]


def _entry(group, what, key):
    if key not in _data[group][what]:
        raise ValueError(f"nothing is known about {key!r}")
    return _data[group][what][key]


class _Row:
    """A row whose cells are read by a method."""

    def __init__(self, row):
        self._row = row

    def _cell(self, column):
        return self._row[column]


class _Table(list):
    """Rows of which a method keeps some."""

    def __init__(self, group, shape, wanted):
        super().__init__(shape(row) for row in _rows(group, wanted))
        self._made_of = group, shape, wanted

    def _keep(self, column, value):
        group, shape, wanted = self._made_of
        return type(self)(group, shape, wanted | {column: value})
'''
TOOL = '''

def {name}({parameters}):
    """{documentation}"""
    {code}
'''


# ---- drawing ----

class Group:
    """One kind of thing in one place: its columns, data and tools. `names` holds the words it is described with."""

    def __init__(self, rng, domain, extra):
        item, person, *others = domain.partition(": ")[2].split()
        self.rng, self.extra, self.name = rng, extra, item + "s"
        labels, numbers = others[:3], rng.sample(others[3:], 2)
        rng.shuffle(labels)
        wide = [person, labels[0]]
        rng.shuffle(wide)
        key = rng.choice("code tag mark serial label name title".split())
        self.columns = dict(zip("kacbdnm", [key, *wide, labels[1], rng.choice(["date", "day"]), *numbers]))
        self.case = rng.choice([str.lower, str.lower, str.capitalize, str.upper])
        self.order = rng.sample("kacbdnm", 7)
        self.kind, self.places = rng.choice([(int, 0), (int, 0), (float, 1), (float, 2)])
        self.draw_rows(person, key in ("name", "title"))

        forms = FINDS, CELLS, LINKED, NOTED
        self.find, self.cell, self.link, self.note = (rng.choice(list(choices)) for choices in forms)
        u, v = rng.sample(NOTE_WORDS[1], 2)
        tools = set()
        while len(tools) < 4:
            tools.add("_".join([rng.choice(VERBS), rng.choice([item, rng.choice(STORES)]), rng.choice(STORES)]))
        find_tool, cell_tool, link_tool, note_tool = rng.sample(sorted(tools), 4)
        link = rng.choice(LINK_WORDS)
        self.names = self.columns | {
            "item": item, "items": item + "s", "link": link, "links": link + "s", "u": u, "v": v,
            "w": rng.choice(NOTE_WORDS[0]), "t": rng.choice(NOTE_WORDS[2]), "among": rng.choice(["among", "of all"]),
            "find_tool": find_tool, "cell_tool": cell_tool, "link_tool": link_tool, "note_tool": note_tool,
            "keep": rng.choice(METHODS[0]), "cell": rng.choice(METHODS[1]), "between": rng.choice(["; ", " / ", ", "]),
            "equals": rng.choice([" is ", "=", ": "]), "joins": rng.choice([" and ", "; ", ", "]),
            "labels": ", ".join(self.label(role) for role in self.order)}
        self.draw_notes()

    def label(self, role):
        return self.case(self.columns[role])

    def draw_rows(self, person, by_name):
        rng = self.rng
        towns = rng.sample([head + end for head in HEADS for end in ENDS], 60)
        things = rng.sample([f"{which} {what}" for which in WHICH for what in WHAT], 200)
        letters = "".join(rng.sample("BCDFGHJKLMNPQRSTVWXZ", 20))
        sorts = {"town": towns[:20], "phrase": things[:20], "capitals": [letters[i : i + 3] for i in range(0, 18)],
                 "code": [f"{letters[i]}{rng.randint(10, 99)}" for i in range(20)]}
        a, c, b = (rng.sample(sorts[sort], count) for sort, count in zip(rng.sample(sorted(sorts), 3), (18, 18, 4)))
        persons = [f"{first} {last}" for first, last in zip(rng.sample(FIRST, 18), towns[20:])]
        a, c = (persons if self.columns[role] == person else values for role, values in (("a", a), ("c", c)))
        keys = [thing.title() for thing in things[20:]] if rng.random() < 0.5 else things[20:]
        if not by_name:
            prefix, dash = letters[3 : rng.randint(4, 5)], rng.choice(["", "-"])
            keys = [f"{prefix}{dash}{number}" for number in rng.sample(range(100, 10_000), ROWS)]
        year, dash = rng.randint(1900, 2020), rng.choice("--/")
        low, high = sorted(rng.sample(range(2, 2000), 2))
        self.rows = [SimpleNamespace(
            k=key, a=rng.choice(a), c=rng.choice(c), b=rng.choice(b),
            d=f"{year + rng.randint(0, 1)}{dash}{rng.randint(1, 12):02}{dash}{rng.randint(1, 28):02}",
            n=self.number(low, high + 100), m=self.number(3, 90)) for key in keys[:ROWS]]

    def number(self, low, high):
        return self.rng.randint(low, high) if self.kind is int else round(self.rng.uniform(low, high), self.places)

    def draw_notes(self):
        """Links and a note for each row. A cue occurs once in a note, followed by its value."""
        rng, linked = self.rng, [row.k for row in self.rows[:40]]
        for row in self.rows:
            row.links = rng.sample([key for key in linked if key != row.k], rng.randint(2, 14))
            row.w, row.t = f"{rng.choice(FIRST)} {rng.choice(HEADS)}{rng.choice(ENDS)}", rng.choice(self.rows).k
            row.u, row.v = rng.randint(2, 400), rng.randint(2, 400)
            parts = [f"{self.names[cue]} {shown(getattr(row, cue))}" for cue in rng.sample("wuvt", 4)]
            fillers = rng.sample(["with", "there was a", "they had the", "along with", "noted the", "also"], 4)
            start = rng.choice(["Remark: ", "We saw this: ", "On paper "])
            row.note = start + ", ".join(map(" ".join, zip(fillers, parts)))
            row.note += rng.choice([".", "", ", no more"])

    def data(self):
        """The group's part of data.json."""
        return {"rows": [{self.label(role): getattr(row, role) for role in self.order} for row in self.rows],
                "links": {row.k: row.links for row in self.rows}, "notes": {row.k: row.note for row in self.rows}}

    def tools(self):
        """The group's part of tools.py, and the lines that document it in the hints."""
        names = self.names | {role: self.label(role) for role in self.columns}
        parameters, wanted, found = FINDS[self.find]
        shape, _, cells = CELLS[self.cell]
        wanted, found, shape, cells = (text.format(**names) for text in (wanted, found, shape, cells))
        source, find, cell_tool = "", names["find_tool"], names["cell_tool"]
        if self.cell == "method":
            shape = f"_{self.name}_row(row)"
            source += f"\n\nclass _{self.name}_row(_Row):\n    {names['cell']} = _Row._cell\n"
        code = f'return [{shape} for row in _rows("{self.name}", {wanted})]'
        if self.find == "methods":
            source += f"\n\nclass _{self.name}(_Table):\n    {names['keep']} = _Table._keep\n"
            code = f'return _{self.name}("{self.name}", lambda row: {shape}, {{}})'
        documentation = f"{found}; {cells}".replace('"', "'")
        source += TOOL.format(name=find, parameters=parameters, documentation=documentation, code=code)
        lines = [f"{find}({parameters}) {found}", cells]
        if self.cell == "tool":
            code = f'return _value("{self.name}", "{names["k"]}", {names["item"]}, column)'
            source += TOOL.format(name=cell_tool, parameters=f"{names['item']}, column", documentation=cells, code=code)
        for form, forms, name, local in (self.link, LINKED, "links", "names"), (self.note, NOTED, "notes", "text"):
            if self.extra == name:
                tool, (result, _, told) = names[name[:-1] + "_tool"], forms[form]
                told = told.format(**names)
                code = f'{local} = _entry("{self.name}", "{name}", about)\n    return {result.format(**names)}'
                source += TOOL.format(name=tool, parameters="about", documentation=told, code=code)
                lines.append(f"{tool}({names['k']}) {told}")
        return source, lines + ["complete_task(report, answer) ends the task"]

    def write_find(self, name, wanted, each):
        """`name` = the rows with these values, [(role, variable)], in code lines."""
        pairs = [(self.label(role), variable) for role, variable in wanted]
        names, tool = self.names, self.names["find_tool"]
        tests = [f"{name} = [{each} for {each} in {name} if {self.write_cell(each, role)} == {variable}]"
                 for role, variable in wanted]
        if self.find == "pair":
            return [f'{name} = {tool}("{pairs[0][0]}", {pairs[0][1]})', *tests[1:]]
        if self.find == "all":
            return [f"{name} = {tool}()", *tests]
        if self.find == "methods":
            kept = [f'.{names["keep"]}("{label}", {variable})' for label, variable in pairs]
            return [f"{name} = {tool}(){kept[0]}", *(f"{name} = {name}{more}" for more in kept[1:])]
        if self.find == "keywords":
            return [f"{name} = {tool}({', '.join(f'{label}={variable}' for label, variable in pairs)})"]
        first, *more = [f'{label}{names["equals"]}" + {variable}' for label, variable in pairs]
        if not more:
            return [f'{name} = {tool}("{first})']
        return [f'{name} = "{first}', f'{name} = {tool}({name} + "{names["joins"]}{more[0]})']

    def write_cell(self, row, role):
        text = CELLS[self.cell][1].format(x=row, label=self.label(role), index=self.order.index(role), **self.names)
        return f"{self.kind.__name__}({text})" if self.cell == "text" and role in "nm" else text

    def write(self, line, each):
        """A line of the abstract recipe, with its names renamed already, in the words of this group's tools."""
        if match := re.fullmatch(r"(\w+) = find\((.*)\)", line):
            return self.write_find(match[1], re.findall(r"(\w)=(\w+)", match[2]), each)
        for call, form in ("linked", LINKED[self.link]), ("note", NOTED[self.note]):
            line = re.sub(rf"\b{call}\((\w+)\)", lambda m: form[1].format(x=each, K=m[1], **self.names), line)
        line = re.sub(r"(\w+(?:\[-?\d\])?)\.([kacbdnm])\b", lambda m: self.write_cell(m[1], m[2]), line)
        return [line.replace("number(", self.kind.__name__ + "(")]


def shown(value):
    """A value as it stands in a text: in quotes if it could not be told from other words."""
    return f'"{value}"' if str(value)[0].islower() else str(value)


def make_template(kind, group):
    """(title, wordings with {slots}, [(thought, code lines)]) of a kind in the group's words.

    None if a line is too long.
    """
    rng, names = group.rng, group.names
    title, phrases, *lines = inspect.getdoc(kind).splitlines()
    slots = list(dict.fromkeys(re.findall(r"{([A-Z])}", phrases)))

    cues = {"K": rng.choice(["with {k}", "with {k}", "marked", "called"]), "A": "with {a}", "B": "with {b}",
            "D": rng.choice(["on", "dated"]), "L": rng.choice(["beside", "against", "versus"]),
            "N": rng.choice(["with {n} above", "with {n} over", "with {n} beyond"])}
    cues = {slot: cues[slot].format(**names) for slot in slots}
    slotted = {slot: f"{cue} {{{slot}}}" for slot, cue in cues.items()}
    phrases = [p.format(**names, **slotted) for p in phrases.split(" // ")]
    wordings = [frame.format(phrases[i % len(phrases)]) for i, frame in enumerate(rng.sample(FRAMES, 3))]
    words = [re.findall("[a-z]+", wording.lower()) for wording in wordings]
    if not all(said.count(cue.split()[-1]) == 1 for said in words for cue in cues.values()):
        return None                             # a value is found after its cue, which must occur once

    free = [name for name in rng.sample(SLOTS, len(SLOTS)) if not any(name in said for said in words)]
    each, local = rng.choice(EACH), rng.sample(LOCALS, len(LOCALS))
    renamed = {slot: cues[slot].split()[-1] for slot in slots}
    renamed |= {"P": free.pop(), "Q": free.pop(), "x": each} | {cue.upper(): names[cue] for cue in "wuvt"}
    renamed |= dict(zip("rows other more best values names text some total both result".split(), local))
    steps, filled = [], []
    for line in lines:
        if line.startswith("Step: "):
            steps.append((rng.choice(line[6:].split(" // ")).format(**names), []))
        else:
            steps[-1][1].extend(rng.choice(line.split(" // ")).split("; "))
    for number, (_, code) in enumerate(steps):
        new = dict.fromkeys(re.findall(r"\b[A-Z]\b", " ".join(code))) if number else slots
        abstract, code[:] = code[:], [f'{renamed[slot]} = "..."' for slot in new if slot not in filled]
        filled += new
        for line in abstract:
            line = re.sub(r"round\((.*), 2\)", rf"round(\1, {group.places})" if group.places else r"\1", line)
            if line.startswith("print(") and not line[6:-1].isidentifier() and rng.random() < 0.35:
                code += group.write(rename(f"result = {line[6:-1]}", renamed), each)
                line = "print(result)"
            code += group.write(rename(line, renamed).format(**names), each)
    for (_, code), (_, following) in zip(steps, steps[1:]):     # what the next step reads is printed after its name
        read = [renamed[slot] for slot in "PQ" if f'{renamed[slot]} = "..."' in following]
        for i, name in zip([i for i, line in enumerate(code) if line.startswith("print(")], read):
            code[i] = f'print("{name}", {code[i][6:]}'
    title = title.format(**names)
    last = steps[-1][1][-1]
    if "complete_task" not in last:
        report, printed, name = rng.choice(REPORTS).format(title), last[6:-1], rng.choice(free)
        if printed.isidentifier() and rng.random() < 0.3:
            steps.append((f"the {title.split()[0]} is kept in {printed}",
                          [f'complete_task("{report}", str({printed}))']))
        else:
            steps[-1][1][-1] = f'print("{name}", {printed})'
            steps.append((rng.choice(CLOSINGS).format(title),
                          [f'{name} = "..."', f'complete_task("{report}", {name})']))
    for _, code in steps:
        join_lines(code, "\n".join(line for _, code in steps for line in code), rng)
    if all(len(code) <= 8 and max(map(len, code)) <= 70 and len(thought.split()) <= 8 for thought, code in steps):
        return f"{title} of {group.name}", wordings, steps


def rename(line, renamed):
    """The line with these names for the abstract ones; neither texts nor roles change."""
    return re.sub(r'(?<![.\w"])[A-Za-z]+\b', lambda m: renamed.get(m[0], m[0]), line)


def join_lines(code, recipe, rng):
    """Sometimes writes a call in place of the variable that only the next line uses."""
    for i in range(len(code) - 1, 0, -1):
        match = re.fullmatch(r"(\w+) = (\w+\(.*\)|\[.*\])", code[i - 1])
        name = match and re.compile(rf'\b{match[1]}\b(?!")')
        if match and len(name.findall(recipe)) == 2 and "lambda" not in code[i] and rng.random() < 0.4:
            joined = name.sub(lambda _: match[2], code[i])
            if joined != code[i] and len(joined) <= 70:
                code[i - 1 : i + 1] = [joined]


def make_tasks(kind, group, title, wordings):
    """TRAIN + TEST tasks, no two of which ask for the same values; None if the data do not have as many."""
    tasks, answers = {}, []
    for _ in range(600):
        values, answer = kind(group.rng.choice(group.rows), group.rows, group.rng) or ({}, "")
        asked = {slot: shown(value) for slot, value in values.items()}
        key, answer = tuple(sorted(asked.values())), str(answer)
        question = wordings[len(tasks) % 3].format(**asked) if asked else ""
        if asked and key not in tasks and answers.count(answer) < MOST and len(question) <= 110:
            tasks[key] = {"id": f"{group.name}-{title.replace(' ', '-')}-{len(tasks):04}", "group": group.name,
                          "template": title, "question": question, "answer": answer}
            answers.append(answer)
        if len(tasks) == TRAIN + TEST:
            return list(tasks.values())


def make_group(rng, domain, extra, kinds):
    """(group, hints as Markdown, [tasks of each template]); None if names or data do not fit one of the kinds."""
    group, drawn = Group(rng, domain, extra), []
    group.source, documentation = group.tools()
    hints = f"## tools: {group.name}\n" + "\n".join(documentation) + "\n"
    for kind in kinds:
        for _ in range(40):
            template = make_template(kind, group)
            tasks = template and make_tasks(kind, group, *template[:2])
            if tasks:
                break
        else:
            return None
        title, _, steps = template
        hints += f"\n## practice: {title}\nfor: {title}\n"
        for number, (thought, code) in enumerate(steps, 1):
            hints += "\n".join([f"Step {number}: {thought}", *code, ""])
        drawn.append(tasks)
    return group, hints, drawn


def make_world(seed):
    """All of one seed's world → {file name: text}."""
    rng = random.Random(f"made-up world {seed}")
    table, source, files, data, splits = rng.sample(TABLE, 8), MODULE, {}, {}, {"train": [], "test": []}
    for domain, extra in zip(rng.sample(DOMAINS.splitlines(), 3), rng.sample(["", "links", "notes"], 3)):
        kinds = rng.sample({"": [], "links": LINKS, "notes": NOTES}[extra], 2 if extra else 0)
        kinds += [table.pop() for _ in range(4 - len(kinds))]
        group, hints, drawn = next(filter(None, (make_group(rng, domain, extra, kinds) for _ in range(1000))))
        files[f"hints/{group.name}.md"] = hints
        data[group.name], source = group.data(), source + group.source
        for tasks in drawn:
            splits["train"] += tasks[:TRAIN]
            splits["test"] += tasks[TRAIN:]
    for name, tasks in splits.items():
        files[f"{name}.jsonl"] = "".join(json.dumps(task) + "\n" for task in tasks)
    return files | {"tools.py": source, "world/data.json": json.dumps(data, indent=0)}


def main():
    parser = command_line.Parser(__doc__)
    parser.add_argument("--out", type=Path, required=True, help="directory for all files")
    parser.add_argument("--seed", type=int, required=True, help="another seed, another world")
    args = parser.parse_args()
    files = make_world(args.seed)
    if others := [file for file in (args.out / "hints").glob("*.md") if f"hints/{file.name}" not in files]:
        raise ValueError(f"{others[0]}: belongs to another world; remove it or give another --out")
    for name, text in files.items():
        (args.out / name).parent.mkdir(parents=True, exist_ok=True)
        (args.out / name).write_text(text)
    print(f"{args.out}: {', '.join(files)}")


if __name__ == "__main__":
    command_line.run_stage(main)
