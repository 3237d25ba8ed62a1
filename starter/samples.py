"""What the starter is trained on: made-up worlds, drawn from a seed.

Most samples (see ROWS) are such worlds: random tools, recipes and questions, put into the prompt by the agent's own
code, with the actions that follow the recipe. All words are random: pieces of the vocabulary, syllables or letters. No
name of a tool, table or column of the evaluated world, no wording of its questions and no line of its recipes may
occur; a sample that contains one by chance is drawn again.
"""

from common import ROOT

import functools
import inspect
import random
import re
from typing import NamedTuple

import numpy as np

from agent.chat import Chat
from tools import starter_world, toolqa

VALUES = (("date", "month", "time", "number", "code", "capitals", "address", "name", "list", "phrase"),
          (16, 6, 6, 14, 15, 8, 5, 18, 2, 16))         # kinds of values and their weights
ONSETS = ("b bl br c ch cl cr d dr f fl fr g gl gr h j k l m n p ph pl pr qu r s sc sh sl sp st str t th tr v w wh y z"
          .split() + [""] * 5)
VOWELS = "a a a e e e e i i i o o o u u y ai ea ee ie io oa oo ou ue".split()
CODAS = "b ck d f g k l ll m n n n nd ng nt p r r rd rs s s ss st t t th tt w x y".split() + [""] * 16
SIGNS = list("0123456789=()[]{}.,:;+-*/<>!?\"'_&|#@%$^~") + ["==", ">=", "<=", "->", "()", "[0]", "**", " = "]
ROWS = {                                               # the kinds of rows and their shares
    "hints": 0.60,                                     # with hints; the others have none
    "bare": 0.08,              # only what fills a slot is learned; the slot's name tells what it is
    "shown": 0.14,             # a question comes again with other values and needs the same steps
    "known": 0.18,             # questions about recipes that recur throughout the training, to be learned by heart
}
KNOWN = 100                                            # the number of such recipes
RECIPES = {128: (1, 55), 256: (3, 100), 512: (5, 200), 768: (6, 300)}    # row length: (lines per step, tokens) at most


class Forbidden(NamedTuple):
    """What must never occur: the evaluated world's names of tools, tables, columns; lower-case wordings and lines."""
    names: frozenset = frozenset()
    texts: tuple = ()

    def within(self, text):
        """Does `text` contain any of the texts?"""
        text = text.lower()
        return any(t in text for t in self.texts)


def evaluated() -> Forbidden:
    """The names and texts of the starter world, to be kept out of the training."""
    functions = {name for name, f in inspect.getmembers(toolqa, inspect.isfunction) if f.__module__ == toolqa.__name__}
    tables = starter_world.World(0).tables
    columns = {column for rows in tables.values() for column in rows[0]}
    wordings = {" ".join(part.split()) for group in starter_world.GROUPS.values() for template in group
                for line in inspect.getdoc(template).splitlines() for part in re.split(r"\{.*?\}|[?\"]", line)}
    hints = sorted((ROOT / "hints" / "starter").rglob("*.md"))
    lines = {re.sub(r"^(Step \d|for): ", "", line.strip()) for file in hints for line in file.read_text().splitlines()}
    recipes = {line for line in lines if re.search(r"\w{3}", line) and not re.fullmatch(r'\w+ = "\.\.\."', line)}
    texts = {t.lower() for t in wordings | recipes if len(re.findall(r"\w+", t)) > 1}
    names = functions | {"complete_task", "AuthorNet", "PaperNet"} | set(tables) | columns
    return Forbidden(frozenset(names), tuple(sorted(texts)))


class World:
    """One made-up world: its words, tools and recipes. Everything is drawn from `rng`.

    alike: how often a slot gets the name of the column in which its value is looked up. Above 0, some lines also look
    up two values in the same way. Never change what a seed draws at 0: these are the recipes to be learned by heart.
    """

    def __init__(self, rng, pieces, forbidden, alike=0):
        self.rng, self.pieces, self.forbidden, self.alike = rng, pieces, forbidden, alike
        self.plain = rng.random() < 0.65                      # recipes of short plain lines, as a coach writes them
        self.free = rng.choice((0, 0, 0.15, 0.4, 0.9))        # the fraction of lines that have no form at all
        self.whole = rng.choice((0.4, 0.4, 0.8, 0.95))        # the fraction of words made of the vocabulary's pieces
        self.few = rng.sample(pieces, rng.randint(5, 12))     # … `dense` of these words are made of these few pieces
        self.dense = rng.choice((0, 0.2, 0.6))
        self.kind, self.drawn = None, {}                      # the last value's kind; the last value of each kind
        self.common, self.slots = [], set()                   # words that recur; the slots' names
        self.tools = [self.name(2) for _ in range(rng.randint(2, 5))]
        self.finish = self.name(2)
        forms = (str, str, str, str.capitalize, str.capitalize, str.upper)
        self.keys = [self.name(rng.choice((1, 1, 2)), rng.choice(forms)) for _ in range(rng.randint(3, 7))]
        self.common = [self.word() for _ in range(rng.randint(4, 12))]
        self.row, self.look_up = rng.randrange(8), rng.randrange(8)              # how this world's code reads rows
        self.between, self.equals = rng.choice(("; ", " / ", ", ", " ", ":")), rng.choice((" is ", "=", ": ", ">"))
        self.joins, self.method = rng.choice((" and ", "; ", ", ")), [self.word() for _ in range(2)]
        self.pairs = [f"{rng.randint(0, 99):02d}" for _ in range(rng.randint(2, 4))]
        self.years, self.months, self.days = (
            [rng.randint(*span) for _ in range(rng.randint(1, 3))] for span in ((1950, 2030), (1, 12), (1, 31)))

    def word(self, form=str):
        """A word of the vocabulary's pieces, of syllables or of letters: real names are many short tokens."""
        r = self.rng
        while True:
            if r.random() < self.whole:
                dense = r.random() < self.dense
                pieces, counts = (self.few, (2, 2, 3)) if dense else (self.pieces, (1, 1, 1, 1, 2, 2, 3))
                w = "".join(r.choices(pieces, k=r.choice(counts))).lower()
            elif r.random() < 0.85:
                w = "".join(r.choice(ONSETS) + r.choice(VOWELS) + r.choice(CODAS)
                            for _ in range(r.choice((1, 1, 2, 2, 3))))
            else:
                w = "".join(r.choices("abcdefghijklmnopqrstuvwxyz", k=r.randint(2, 5)))
            w = form(w)
            if 2 <= len(w) <= 11 and w not in self.forbidden.names:
                return w

    def again(self, form=str):
        """A word, often one that this world has used before, or one that begins or ends like such a word or a slot.
        So the model must tell what it looks for from what resembles it."""
        r, how = self.rng, self.rng.random()
        if how < 0.25 and (word := form(r.choice(self.common))) not in self.forbidden.names:
            return word
        if how < 0.45:
            like, new = r.choice([*self.common, *sorted(self.slots), *sorted(self.slots)]), self.word()
            part = r.randint(1, len(like))
            word = form(r.choice((like[:part] + new, new + like[-part:], new + like[-part:])))
            if len(word) <= 14 and word not in self.slots and word not in self.forbidden.names:
                return word
        return self.word(form)

    def words(self, low, high):
        return " ".join(self.again() for _ in range(self.rng.randint(low, high)))

    def name(self, parts, form=str):
        while True:
            name = form("_".join(self.word() for _ in range(parts)))
            if name not in self.forbidden.names:
                return name

    def variable(self):
        while True:
            name = self.word() if self.rng.random() < 0.75 else self.rng.choice("abcdghijklmnpqrstuvxyz")
            if name not in self.common:
                return name

    def slot(self):
        """A slot's name."""
        if self.alike and self.rng.random() < self.alike:
            name = self.rng.choice(self.keys).lower()
            if name not in self.common and name not in self.forbidden.names:
                return name
        return self.variable()

    # values of questions and observations

    def number(self):
        r = self.rng
        if r.random() < 0.4:
            digits = "".join(r.choices(self.pairs, k=r.choice((1, 2, 2, 3)))).lstrip("0") + str(r.randint(0, 9))
            return digits + r.choice(("", "", "", ".0", f".{r.randint(0, 9)}", f".{r.choice(self.pairs)}"))
        return r.choice((
            str(r.randint(0, 9)), str(r.randint(0, 99)), str(r.randint(100, 999)), str(r.randint(100, 999)),
            str(r.randint(1, 99) * 10), str(r.randint(1000, 99999)), f"{r.randint(0, 99)}.{r.randint(0, 9)}",
            f"{r.randint(0, 999)}.0", f"{r.randint(0, 9)}.{r.randint(0, 99)}",
            f"{r.randint(10, 9999)}.{r.randint(0, 99)}", f"{r.random():.3f}", str(-r.randint(1, 60))))

    def capitals(self, n):
        if self.rng.random() < 0.7:
            return "".join(self.rng.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ", k=n))
        return self.word()[:n].upper()

    def names(self, low, high):
        r = self.rng
        words = [self.again(str.capitalize) for _ in range(r.randint(low, high))]
        if len(words) > 1 and r.random() < 0.2:                        # begins like the one before
            words[-1] = words[-2][:r.randint(1, 3)] + words[-1].lower()
        if len(words) > 1 and r.random() < 0.1:
            words[0] = words[0][0] + "."
        return r.choice((" ",) * 12 + ("-", " & ")).join(words)

    def value(self):
        """(text, whether a question quotes it). Often it resembles the one before; the model must tell them apart."""
        r = self.rng
        kind, self.kind = self.kind if self.kind and r.random() < 0.75 else r.choices(*VALUES)[0], None
        text = self.draw(kind)
        if kind in self.drawn and r.random() < 0.75:
            parts, others = (re.findall(r"[A-Za-z]+|\d\d?|\W", t) for t in (text, self.drawn[kind]))
            cut = r.randint(1, len(others))
            begins_alike, ends_alike = others[:cut] + parts[cut:], parts[:cut] + others[cut:]
            alternating = list(map(r.choice, zip(parts, others)))
            mixed = "".join(r.choice((begins_alike, begins_alike, ends_alike, alternating)))
            if len(parts) == len(others) and mixed != self.drawn[kind]:
                text = mixed
        self.drawn[kind], self.kind = text, kind
        return text, kind == "phrase"

    def draw(self, kind):
        r = self.rng
        year, month, day = (
            r.choice(known) if r.random() < 0.75 else r.randint(*span)
            for known, span in ((self.years, (1950, 2030)), (self.months, (1, 12)), (self.days, (1, 31))))
        day = f"{year}-{month:02d}-{day:02d}"
        if kind == "date":
            return day if r.random() < 0.85 else day.replace("-", "/")
        if kind == "month":
            return day[:7]
        if kind == "time":
            return f"{r.randint(0, 23):02d}:{r.choice((r.randint(0, 59), r.randrange(0, 60, 15))):02d}"
        if kind == "number":
            return self.number()
        if kind == "code":
            letters = self.capitals(r.randint(1, 3)) + r.choice(("", "", "-"))
            return letters + str(r.choice((r.randint(1, 99), r.randint(100, 999), r.randint(1000, 9999),
                                           "".join(r.choices(self.pairs, k=2)))))
        if kind == "capitals":
            return self.capitals(r.randint(2, 4))
        if kind == "address":
            return f"{r.choice((r.randint(1, 99), r.randint(100, 999), r.randint(1000, 9999)))} {self.names(1, 2)}"
        if kind == "name":
            return self.names(1, 4)
        if kind == "list":
            return ", ".join(self.names(2, 2) for _ in range(r.randint(2, 4)))
        style = r.random()
        words = []
        for i in range(r.randint(1, 7)):
            capital = (style < 0.3 and r.random() < 0.5) or (0.3 < style < 0.6 and i == 0)
            words.append(self.again(str.capitalize if capital else str))
        if len(words) > 2 and r.random() < 0.2:
            words[r.randrange(len(words) - 1)] += r.choice((":", ",", " -", "-", " " + str(r.randint(1, 99))))
        return " ".join(words)

    def text(self, slots, phrase="", end="?", others=(0, 0, 1, 2)):
        """Prose with each slot's value right after the slot's name, in any order, between other pairs; and `phrase`."""
        r = self.rng
        slots = r.sample(slots, len(slots))
        for _ in range(r.choice(others)):
            slots.insert(r.randint(0, len(slots)), (self.variable(), self.value()))
        out, between = [], ("",) * 12 + (",", ",", ":", "'s")
        for name, (value, quoted) in slots:
            value = f'"{value}"' if quoted else value
            out += [self.words(1, r.choice((1, 2, 4, 6))), f"{name} {value}{r.choice(between)}"]
        out.append(self.words(1, 5) if r.random() < 0.5 or not slots else "")
        if phrase:
            out.insert(2 * r.randint(0, len(slots)), phrase)
        s = " ".join(c for c in out if c).rstrip(",:")
        begun = s[0].upper() + s[1:]
        return (begun if r.random() < 0.9 and re.match(r"\w+", begun)[0] not in self.forbidden.names else s) + end

    # code

    def constant(self):
        r = self.rng
        return r.choice((f'"{r.choice(self.keys)}"', f'"{self.word()}"', f'"{self.words(1, 3)}"',
                         str(r.randint(0, 100)), f'"{self.word(str.capitalize)}"'))

    def condition(self, x):
        r = self.rng
        keys = f'["{r.choice(self.keys)}"]', f'["{r.choice(self.keys)}"]'
        part = r.choice((*keys, f"[{r.randint(0, 9)}]", f".{self.word()}", ""))
        sign = r.choice(("==", "==", ">", "<", ">=", "!=", "in"))
        return f"{x}{part} {sign} {r.choice((self.constant(), str(r.randint(0, 50)), self.variable()))}"

    def argument(self, env):
        r = self.rng
        v = r.choice(env) if env else self.constant()
        return r.choice((v, v, v, self.constant(), f'"{r.choice(self.keys)}"', f'"{r.choice(self.keys)}=" + {v}',
                         f'"{r.choice(self.keys)}{r.choice((">", "<", ">=", "="))}{self.number()}"',
                         self.conditions(env or [v])))

    def conditions(self, env):
        """A text put together from keys, signs and variables: "a=" + x + ", b>" + y."""
        r, parts = self.rng, []
        for i in range(r.choice((1, 2, 2, 3))):
            key, sign = r.choice(self.keys), r.choice(("=", "=", ">", "<", ">=", "<="))
            parts += [f'"{", " if i else ""}{key}{sign}"', r.choice(env)]
        if r.random() < 0.2:
            parts.append(f'"-{r.randint(1, 31)}"')
        if r.random() < 0.3:
            parts[0] = f'"{r.choice(self.keys)}={self.word(str.capitalize)}, ' + parts[0][1:]
        return " + ".join(parts)

    def call(self, env):
        tool = self.rng.choice(self.tools)
        return f"{tool}({', '.join(self.argument(env) for _ in range(self.rng.choice((1, 1, 2, 2, 2, 3))))})"

    def expression(self, env, depth=0):
        r, k = self.rng, self.rng.choice(self.keys)
        if not env or r.random() < 0.4:
            return self.call(env)
        v, w = r.choice(env), r.choice(env)
        x = r.choice("xyzcpe")
        inner = self.expression(env, depth + 1) if depth == 0 and r.random() < 0.35 else v
        return r.choice((
            lambda: self.conditions(env), lambda: f'{self.call(env)}["{k}"]', lambda: f"{v}[0] - {w}[0]",
            lambda: f'{v}[0]["{k}"] - {w}[0]["{r.choice(self.keys)}"]', lambda: f"{v} + \" \" + {w}",
            lambda: f"{r.choice(self.tools)}({v} + \" \" + {w})",
            lambda: f"int({v}[:2]) - int({w}[{r.choice((':2', '3:'))}])",
            lambda: f"{r.choice('len sum max min sorted set float int str list abs'.split())}({inner})",
            lambda: f"round({inner}, {r.randint(0, 4)})", lambda: f'{v}["{k}"]',
            lambda: f'{v}[{r.choice(("0", "-1", "1", ":3"))}]["{k}"]',
            lambda: f'{inner}[{r.choice(("0", "-1", "1", ":3"))}]',
            lambda: f"{v}.{r.choice(('strip()', 'lower()', 'split()', 'upper()', 'title()'))}",
            lambda: f'{inner}.split("{r.choice((", ", " ", ":", "-"))}")[{r.randint(0, 2)}]',
            lambda: f"{v} {r.choice('+-*/')} {w}", lambda: f"float({v}) - float({w})",
            lambda: f"({v} - {w}) / {w} * 100", lambda: f"len({v}) - {r.randint(1, 9)}",
            lambda: f"{inner} {r.choice('+-*/')} {r.choice((1, 2, 10, 60, 100, r.randint(3, 999)))}",
            lambda: f"sum({v}) / len({v})", lambda: f'[{x}["{k}"] for {x} in {inner}]',
            lambda: f"[{x} for {x} in {inner} if {self.condition(x)}]",
            lambda: f'sum(float({x}["{k}"]) for {x} in {v})', lambda: f"[float({x}) for {x} in {v}]",
            lambda: f"[{x} for {x} in {v} if {x} in {w}]", lambda: f"[{x} for {x} in {v} if {x} != {w}]",
            lambda: f"len([{x} for {x} in {inner} if {self.condition(x)}])",
            lambda: f'{r.choice(("max", "min", "sorted"))}({v}, key=lambda {x}: {x}["{k}"])',
            lambda: f'"{r.choice((", ", " ", "; "))}".join({v})', lambda: f'"{self.word()} " + {v}',
            lambda: f"{v}.{self.word()}", lambda: f"{v}.{self.word()}({w})",
            lambda: f"{v} if {w} else {self.constant()}",
            lambda: f"{v} {r.choice(('&', '|', '%', '//', '**', '@', '^', '<<'))} {w}",
            lambda: f"{v}[{r.choice(('', '1', '2', '3'))}:{r.choice(('2', '5', '-1', ''))}]",
            lambda: f"{{{self.constant()}: {v}}}", lambda: f"not {v} and {w}", lambda: f"'{self.word()}!' + {v}",
            lambda: f"{v}  # {self.words(1, 3)}; ~{self.word()} ${r.randint(1, 99)}?"))()

    def nested(self, env):
        """An expression with up to three more calls around it, as in print(len(set(…)))."""
        r, e = self.rng, self.expression(env, 1)
        for _ in range(r.choice((0, 0, 1, 1, 2))):
            e = r.choice((
                f"{r.choice(('len', 'sum', 'max', 'sorted', 'set', 'int', 'str', 'abs'))}({e})",
                f"round({e}, {r.randint(0, 3)})", f"{r.choice(self.tools)}({e}, {self.argument(env)})",
                f"{r.choice(self.tools)}({r.choice(env) if env else self.constant()}, {e})",
                f'{e}["{r.choice(self.keys)}"]'))
        return e

    def statements(self, env, n):
        """n lines of code that use and extend the variables in env."""
        r, lines = self.rng, []
        for _ in range(n):
            if r.random() < self.free:
                lines.append(self.anything())
            elif self.plain and env:
                lines += self.plain_lines(env)
            elif env and r.random() < 0.08:
                x, v = r.choice("xyzc"), r.choice(env)
                body = r.choice((f"print({self.expression([x, *env], 1)})", f"{v}.append({x})",
                                 f"{r.choice(env)} = {self.expression([x, *env], 1)}"))
                head = f"for {x} in {v}" if r.random() < 0.7 else f"if {self.condition(v)}"
                lines.append(f"{head}:\n    {body}")
            elif r.random() < 0.06:
                lines.append(f"print({self.nested(env)})")
            elif env and r.random() < 0.12:
                lines += self.narrowed(env)
            else:
                name = r.choice(env) if env and r.random() < 0.1 else self.variable()
                lines.append(f"{name} = {self.expression(env)}")
                env.append(name)
                if len(env) > 2 and r.random() < 0.25:
                    lines.append(self.sibling(lines[-1], env))
        return lines

    def anything(self):
        """A line without any form: nothing but copying gets it right."""
        r = self.rng
        while True:
            if r.random() < 0.3:
                line = self.words(3, 8)
            else:
                signs = (r.choice(self.pieces if r.random() < 0.6 else SIGNS) for _ in range(r.randint(4, 16)))
                line = "".join(sign + r.choice(("", "", " ")) for sign in signs).strip()
            if re.search("[A-Za-z]", line) and not self.forbidden.names & set(re.findall(r"\w+", line)):
                return line

    def cell(self, x):
        """A part of the row `x`, in this world's way."""
        k, n = self.rng.choice(self.keys), self.rng.randint(0, 6)
        return (f'{x}["{k}"]', f'{x}["{k}"]', f'{x}["{k}"]', f"{x}.{k}", f"{x}[{n}]",
                f'{x}.split("{self.between}")[{n}]', f'{self.tools[0]}({x}, "{k}")',
                f'{x}.{self.method[0]}("{k}")')[self.row]

    def pair(self, env):
        """A column and the variable that it is compared with: often of the same name, if there is one."""
        key, value = self.rng.choice(self.keys), self.rng.choice(env)
        same = [k for k in self.keys if k.lower() == value]
        return (same[0] if self.alike and same and self.rng.random() < 0.9 else key), value

    def narrowed(self, env):
        """Lines that look up rows by several values, in this world's way."""
        r, tool, name, lines = self.rng, self.rng.choice(self.tools), self.variable(), []
        asked = [self.pair(env) for _ in range(r.randint(1, 3))]
        x, (key, value) = r.choice("xyzcpeiouv"), asked[0]
        if self.look_up < 3:                                                # one condition after the other
            lines.append(f'{name} = {r.choice(self.tools)}("{self.word()}")')
            for key, value in asked:
                sign = r.choice(("=", "=", "=", ">", "<", ">=", "<="))
                what = f'"{key}{sign}" + {value}' if r.random() < 0.8 else f'"{key}{sign}{self.word(str.capitalize)}"'
                lines.append(f"{name} = {tool}({name}, {what})")
                if r.random() < 0.4:
                    name = self.variable()
                    lines[-1] = name + lines[-1][lines[-1].index(" = "):]
        elif self.look_up == 3:
            call = f'{tool}({", ".join(f"{r.choice((key, value))}={value}" for key, value in asked)})'
            lines.append(f"{name} = {r.choice((call, call, f'len({call})'))}")
        elif self.look_up == 4:
            texts = [f'{key}{self.equals}" + {value}' for key, value in asked]
            if len(texts) == 1:
                lines.append(f'{name} = {tool}("{texts[0]})')
            else:
                lines += [f'{name} = "{texts[0]}', f'{name} = {tool}({name} + "{self.joins}{texts[1]})']
        elif self.look_up == 5:
            lines.append(f'{name} = {tool}().{self.method[1]}("{key}", {value})')
            lines += [f'{name} = {name}.{self.method[1]}("{key}", {value})' for key, value in asked[1:]]
        else:
            lines.append(f'{name} = {tool}("{key}", {value})' if self.look_up == 6 else f"{name} = {tool}()")
            for _, value in asked:
                cell, sign = self.cell(x), r.choice(("==", "==", "==", ">", "<"))
                right = r.choice((value, value, f"int({value})", f"float({value})"))
                lines.append(f"{name} = [{x} for {x} in {name} if {cell} {sign} {right}]")
        env.append(name)
        return lines

    def twins(self, env):
        """Two variables looked up in the same way, and a line that combines what was found."""
        r, (v, w) = self.rng, self.rng.sample(env, 2)
        first = self.narrowed(known := [v])
        names = {v: w} | {line.split(" = ")[0]: self.variable() for line in first}
        renamed = lambda word: names.get(word[0], word[0])
        second = [re.sub(r'"[^"]*"|(?<!\.)\b[a-z_]+\b(?!=\w)', renamed, line) for line in first]
        a, b, name = known[-1], names[known[-1]], self.variable()
        x, y = (self.cell(f"{n}[0]") for n in (a, b))
        kind = r.choice(("int", "float"))
        other = x.replace(a, b, 1)
        together = r.choice((
            [f"{name} = {x} - {other}"], [f"{name} = {kind}({x}) - {kind}({other})"], [f"{name} = {x} + {y}"],
            [f"{name} = len({a}) - len({b})"], [f"{name} = set({a}) & set({b})"],
            [f"{name} = [x for x in {a} if x in {b}]"],
            [f"{v} = {kind}({x})", f"{w} = {kind}({other})", f"{name} = abs({v} - {w})"]))
        env += [a, b, name]
        alternating = [line for lines in zip(first, second) for line in lines]
        return r.choice((first + second, first + second, alternating)) + together

    def plain_lines(self, env):
        """One or more lines of the kind that recipes for looking something up are made of."""
        r, v, w = self.rng, self.rng.choice(env), self.rng.choice(env)
        x, name = r.choice("xyzcpeiou"), self.variable()
        if self.alike and len(env) > 1 and r.random() < 0.2:
            return self.twins(env)
        if r.random() < 0.4:
            lines = self.narrowed(env)
            return lines + [self.sibling(lines[-1], env)] if r.random() < 0.25 else lines
        tool, k, cell = r.choice(self.tools), r.choice(self.keys), self.cell
        number, kind = r.randint(0, 3), r.choice(("int", "float"))
        one = f"{kind}({cell(v + '[0]')})"
        line = r.choice((
            f"{name} = {tool}({v})", f"{name} = {tool}({v}, {w})", f"{name} = {tool}({v}, {w})",
            f'{name} = {tool}({v} + " " + {w})', f'{name} = {tool}("{self.word()}")', f"{name} = sorted({tool}({v}))",
            f"{name} = {tool}({k}={v})", f"{name} = sorted({tool}({v}, {w}))", f"{name} = {v}[0]",
            f"{name} = {cell(v)}", f"{name} = {cell(v + '[0]')}", f"{name} = {cell(v + '[0]')}",
            f"{name} = {cell(v + '[0]')} - {cell(w + '[0]')}", f"{name} = sum({v}) / len({v})",
            f'{name} = sum({v}["{k}"]) / len({v})', f"{name} = max({v}, key=lambda {x}: {cell(x)})",
            f"{name} = min({v}, key=lambda {x}: {cell(x)})",
            f"{name} = sorted({v}, key=lambda {x}: {cell(x)})[{r.choice((0, -1))}]",
            f"{name} = [{x} for {x} in {v} if {cell(x)} {r.choice('<>')} {cell(x)}]",
            f"{name} = [{x} for {x} in {v} if {cell(x)} {r.choice('<>')} {kind}({w})]",
            f"{name} = [{cell(x)} for {x} in {v}]", f"{name} = set([{cell(x)} for {x} in {v}])",
            f"{name} = [{x} for {x} in {v} if {x} in {w}]", f"{name} = [{x} for {x} in {tool}({v}) if {x} in {w}]",
            f"{name} = set({v}) & set({tool}({w}))", f"{name} = [{x} for {x} in {v} if {self.condition(x)}]",
            f'{name} = set({v}["{k}"])', f'{name} = ", ".join({v})', f'{name} = {v}[0]["{k}"] * int({w})',
            f'{name} = [{tool}({w}, {x})["{k}"] for {x} in {v}]', f"{name} = {v}.{self.word()}()",
            f"{name} = int({v}[:2]) - int({w}[:2])", f"{name} = int({v}[3:]) - int({w}[3:])", f"{name} = {v} - {w}",
            f"{name} = {v} * {r.choice((7, 10, 24, 60, 100))} + {w}", f"{name} = {kind}({v}) + {kind}({w})",
            f"{name} = {kind}({cell(v)})", f"{name} = abs({v} - {w})", f"{name} = {one} - {one.replace(v, w, 1)}",
            f"{name} = sorted({v}, key=lambda {x}: {kind}({cell(x)}))[{r.choice((0, -1))}]",
            f"{name} = round(sum({v}) / len({v}), {number})", f"{name} = sum({cell(x)} for {x} in {v})",
            f"for {x} in {v}: {w} += {cell(x)}", f"{name} = 0"))
        if line.startswith(name):
            env.append(name)
        return [line, self.sibling(line, env)] if r.random() < 0.2 else [line]

    def shown(self, env):
        """What a step prints."""
        r, v, x, number = self.rng, self.rng.choice(env[-3:]), self.rng.choice("xyzcpeiou"), self.rng.randint(0, 3)
        if not self.plain:
            return self.nested(env) if r.random() < 0.6 else r.choice(env)
        return r.choice((
            v, v, v, self.cell(v + "[0]"), self.cell(v + "[0]"), self.cell(v), f"len({v})", f"len({v})",
            f"round({v}, {number})", f"round(sum({v}) / len({v}), {number})",
            f"len(set({self.cell(x)} for {x} in {v}))", f"max({v}) - min({v})", f"round(abs({v}), {number})",
            f"sum({self.cell(x)} for {x} in {v})", f"min({r.choice(self.tools)}({v}))",
            f'{v}["{r.choice(self.keys)}"][0]'))

    def sibling(self, line, env):
        """A line that differs from `line` in a name or a constant or two, as two look-ups with the same tool do."""
        r = self.rng
        for _ in range(r.choice((1, 2, 2))):
            word = r.choice(re.findall("[A-Za-z]+", line))
            if word in env:
                new = r.choice(env)
            elif word in self.keys:
                new = r.choice(self.keys)
            else:
                new = self.variable() if r.random() < 0.5 else word
            line = re.sub(f"(?<![A-Za-z]){word}(?![A-Za-z])", new, line, count=1)
        name = line.split(" = ")[0]
        if re.fullmatch("[a-z]+", name) and name not in env:
            env.append(name)
        return line

    # recipes and what follows from them

    def recurring(self, steps, env):
        """Lines of an earlier step again, some with another name or constant."""
        r, lines = self.rng, [line for step in steps for line in step["code"] if not line.startswith("print")]
        start = r.randrange(len(lines)) if lines else 0
        return [line if r.random() < 0.4 else self.sibling(line, env) for line in lines[start:start + r.randint(1, 3)]]

    def thought(self, steps, size, head):
        """What a step begins with: words after the recipe's `head`, if it has one, often as in an earlier step."""
        r, words = self.rng, self.words(1, 3) if size == 1 else self.words(2, 7)
        if steps and r.random() < 0.25:
            before = r.choice(steps)["thought"].split(": ")[-1].split()
            words = " ".join(before[:r.randint(1, 2)]) + " " + words
        return f"{head}: {words}" if head and r.random() < 0.8 else words

    def step(self, env, slots, following, size, before, head):
        """{"thought", "slots": names, "labels", "code": lines after the slots}; `env` grows.

        following: the next step's slots, printed after their names ("labels") or found in a text; None in the last
        step. before: the steps before this one.
        """
        r, first, labels = self.rng, not env, self.rng.random() < 0.7
        env += slots
        lines = self.recurring(before, env) if r.random() < 0.5 else []
        n = r.randint(min(size, 2) - 1, size) if first else r.choice((0, 0, 1, 2, 3)[:size + 1])
        lines += self.statements(env, n)
        if following is None:
            last = env[-1]
            value = r.choice((last, last, last, f"str({last})", f"str(round({last}, {r.randint(0, 3)}))",
                              f"str(int({last}) + int({r.choice(env)}))")
                             if self.plain else (last, self.expression(env, 1)))
            lines.append(f'{self.finish}("{self.words(1, 4)}", {value})')
        elif following and labels:
            lines += [f'print("{name}", {self.shown(env)})' for name in following]
        else:
            lines.append(f"print({self.shown(env)})")
        return {"thought": self.thought(before, size, head), "slots": slots, "labels": labels, "code": lines}

    def recipe(self, size):
        r, env = self.rng, []
        n = r.choice((1, 1, 2) if size == 1 else (1, 2, 2, 2, 2, 3))
        size = r.choice((1, r.randint(1, size)))                       # short ones are dense in values to copy
        names = iter(dict.fromkeys(self.slot() for _ in range(60)))
        counts = [r.choice((1, 2, 2) if size == 1 else (1, 1, 2, 2, 2, 3, 4))]
        counts += [r.choice((0, 1, 1, 1, 2)) for _ in range(n - 1)]
        slots = [[next(names) for _ in range(count)] for count in counts]
        self.slots = {name for names in slots for name in names}
        head, steps = r.choice(("", self.word())), []
        for i in range(n):
            steps.append(self.step(env, slots[i], slots[i + 1] if i + 1 < n else None, size, steps, head))
        return steps

    @staticmethod
    def write_step(i, step):
        lines = [f"Step {i + 1}: {step['thought']}", *(f'{name} = "..."' for name in step["slots"]), *step["code"]]
        return "\n".join(lines)

    def practice(self, title, recipe):
        return f"## practice: {title}\n" + "\n".join(self.write_step(i, s) for i, s in enumerate(recipe))

    def documentation(self):
        r = self.rng
        lines = [f"## tools: {self.words(1, 3)}"]
        for tool in r.sample(self.tools, len(self.tools)):
            names = [self.word() for _ in range(r.randint(1, 3))]
            call = r.choice((f"{tool}({', '.join(names)})", f"{tool}({', '.join(names)})",
                             f'{tool}({names[0]}, "{r.choice(self.keys)}")', f'{tool}("{self.word()}")',
                             self.call(names)))
            lines.append(f"{call}{r.choice((': ', ': ', ' '))}{self.words(2, 8)}")
        if r.random() < 0.6:
            lines.append(f"{self.words(1, 2)}{r.choice((': ', ' '))}{', '.join(self.keys)}")
        return "\n".join(lines)

    def changed(self, step):
        """What a corrective hint makes of `step`: it changes a name, a constant, a line or everything."""
        r, lines = self.rng, list(step["code"])
        if r.random() < 0.3:
            thought, variables = self.words(2, 8), [*step["slots"], self.variable()]
            return step | {"thought": thought, "code": self.statements(variables, r.randint(1, 4)) + lines[-1:]}
        for _ in range(r.choice((1, 1, 2))):
            i = r.randrange(len(lines))
            action = r.random()
            if action < 0.3:
                lines.insert(i, self.statements(step["slots"] + ["r"], 1)[0])
            elif action < 0.45 and len(lines) > 1:
                del lines[i]
            else:
                words = re.findall("[A-Za-z]{2,}", lines[i])
                if words:
                    lines[i] = re.sub(f"(?<![A-Za-z]){r.choice(words)}(?![A-Za-z])", self.word(), lines[i], count=1)
        return step | {"code": lines} | ({"thought": self.words(2, 8)} if r.random() < 0.5 else {})

    def trajectory(self, recipe, phrase, corrective, wording=None, asker=None):
        """A question for the recipe, and the steps that follow it, as in the agent's record but without token ids.

        Questions of the same `wording`, in the words of the same world `asker` (default: this one), differ only in
        their values. corrective: "none", "some" (a hint before a step overrides the recipe) or "all" (there is no
        recipe, only these hints; a step without a hint is shown but not learned).
        """
        r, steps = self.rng, []
        for i, step in enumerate(recipe):
            hint = None
            if r.random() < {"none": 0, "some": 0.6, "all": 0.75}[corrective]:
                step = self.changed(step) if corrective == "some" else step
                hint = {"name": "", "text": self.write_step(i, step)}
            value = lambda: self.value() if i == 0 or r.random() < 0.9 else (self.words(1, 4), True)
            slots = [(name, value()) for name in step["slots"]]
            if i == 0:
                asker = asker or self
                asker.rng = random.Random(wording) if wording else r
                others = (0,) if wording else (0, 0, 1, 2)
                question = asker.text(slots, phrase, asker.rng.choice("???.."), others=others)
                asker.rng = r
            elif slots and recipe[i - 1]["labels"]:
                steps[-1]["observation"] = "\n".join(f"{name} {value}" for name, (value, _) in slots)
            elif slots:
                steps[-1]["observation"] = self.text(slots, end=r.choice((".", "")), others=(0, 1, 2, 4, 6))
            else:
                steps[-1]["observation"] = r.choice((
                    self.number(), self.value()[0], repr([self.word() for _ in range(r.randint(1, 4))]), ""))
            code = [f'{name} = "{value}"' for name, (value, _) in slots] + step["code"]
            steps.append({"monologue": step["thought"], "code": "\n".join(code), "observation": "", "hint": hint})
        return question, steps


def hint_block(world, chat, length):
    """The hints of a row or of one of its tasks: (recipes with titles, texts of the hint sections, corrective)."""
    r, (size, room) = world.rng, RECIPES[length]
    corrective = r.choices(("none", "some", "all"), (0.72, 0.13, 0.15))[0]
    n = 1 if length < 512 or r.random() < 0.75 else r.randint(2, 3)
    while True:
        recipes = [(world.words(1, 3), world.recipe(size)) for _ in range(n)]
        hints = [world.practice(title, recipe) for title, recipe in recipes]
        tokens = sum(len(chat.encode_text(h)) for h in hints)
        if tokens <= room:
            break
        size, n = max(1, size - 1), max(1, n - 1)
    if corrective == "all":
        hints = []
    elif length > 256 and r.random() < 0.6:
        lines = world.documentation().split("\n")
        while tokens + len(chat.encode_text("\n".join(lines))) > room + 100:
            lines.pop()
        hints.insert(0, "\n".join(lines))
    return recipes, hints, corrective


def sample(world: World, chat: Chat, length: int, row: str | None = None) -> tuple[list[int], list[bool]]:
    """One row of a kind of ROWS: ids (length,), and which of them are learned.

    A row of "hints" holds tasks until it is full: either all with the first task's hints, or each with its own hints
    from another world. Its actions are learned. In the other rows, only what can be known is learned: the values, and
    the whole action where the same question came before or belongs to a known recipe.
    """
    r, ids, mask, asked = world.rng, [], [], set()
    row = row or r.choices(list(ROWS), ROWS.values())[0]
    each = row in ("bare", "known") or row == "hints" and r.random() < 0.6
    while len(ids) < length:
        asker = None
        if begins := each or not ids:
            world = World(r, world.pieces, world.forbidden, r.choice((0, 0.3, 0.8)))
            if row == "hints":
                recipes, hints, corrective = hint_block(world, chat, length)
            elif row == "known":
                asker = World(random.Random(n := f"known {r.randrange(KNOWN)}"), world.pieces, world.forbidden)
                recipes, hints, corrective = [(n, asker.recipe(asker.rng.randint(1, 5)))], [], "none"
            else:
                n = r.randint(1, 3) if row == "shown" else 1
                recipes, hints, corrective = [("", world.recipe(2)) for _ in range(n)], [], "none"
        title, recipe = r.choice(recipes)
        wording = None
        if row in ("shown", "known"):
            wording = f"{r.choice('abc' if row == 'known' else 'ab')} {title} {recipe}"
        phrase = title if row != "known" and (len(recipes) > 1 or r.random() < 0.4) else ""
        question, steps = world.trajectory(recipe, phrase, corrective, wording, asker)
        known = row in ("hints", "known") or wording in asked
        if wording:
            asked.add(wording)
        for step in steps:
            step["token_ids"] = {
                name: chat.encode_text(step[name] + "\n") + [chat.tokenizer.token_to_id(f"</{tag}>")]
                for name, tag in (("monologue", "inner_monologue"), ("code", "python"))}
        new, spans = chat.prompt(question, hints if begins else [], steps)
        action = np.zeros(len(new), dtype=bool)
        for (n, name), (start, end) in spans.items():
            if known:
                action[start:end] = corrective != "all" or steps[n]["hint"] is not None
            elif name == "code":
                for line in steps[n]["code"].split("\n")[:len(recipe[n]["slots"])]:
                    value = start + len(chat.encode_text(line[:line.index('"') + 1]))
                    start += len(chat.encode_text(line + "\n"))
                    action[value:start] = True
        ids += new
        mask += action.tolist()
    return ids[:length], mask[:length]


def repeated(rng, tokens, length):
    """Random tokens in which stretches recur: copying is learned on these first."""
    ids, mask = rng.choices(tokens, k=length // 4), [False] * (length // 4)
    while len(ids) < length:
        start, n = rng.randrange(len(ids) - 8), rng.randint(8, 40)
        ids += (new := ids[start:start + n])
        mask += [False, False] + [True] * (len(new) - 2)
    return ids[:length], mask[:length]


@functools.cache
def vocabulary_pieces(chat: Chat) -> list[str]:
    return sorted(t for t in chat.tokenizer.get_vocab() if re.fullmatch("[A-Za-z]{1,8}", t))


def batch(chat: Chat, seed: str, length: int, n: int, forbidden: Forbidden,
          kind: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """n rows of `length` tokens, of one kind or of all: ids, targets (rows, length) int64; -100 marks no target."""
    rng, rows = random.Random(seed), []
    tokens = [i for t, i in sorted(chat.tokenizer.get_vocab().items()) if t not in forbidden.names]
    while len(rows) < n:
        if length == 128 and rng.random() < 0.5:
            rows.append(repeated(rng, tokens, length))
            continue
        row = sample(World(rng, vocabulary_pieces(chat), forbidden), chat, length, kind)
        if not forbidden.within(chat.decode(row[0])):
            rows.append(row)
    ids = np.array([ids for ids, _ in rows])
    targets = np.where([mask for _, mask in rows], ids, -100)
    return ids, np.pad(targets[:, 1:], ((0, 0), (0, 1)), constant_values=-100)
