"""How the starter reads recipes: a second implementation of the rules that hints are written by."""

import json
import re


def find_values(text):
    """The tokens, and (index of its first token, value) for all that is quoted, has a digit or a capital."""
    tokens = re.findall(r'"[^"]*"|[^\s"]+', text)
    found, i = [], 0
    while i < len(tokens):
        start, word = i, tokens[i].strip(",.;:?!")
        if tokens[i].startswith('"'):
            found.append((start, tokens[i][1:-1]))
        elif any(c.isdigit() for c in word):
            found.append((start, word))
        elif i and word[:1].isupper():
            while tokens[i][-1].isalpha() and i + 1 < len(tokens) and tokens[i + 1].isascii() and (
                    tokens[i + 1][0].isupper() and not any(c.isdigit() for c in tokens[i + 1])):
                i += 1
                word += " " + tokens[i].strip(",.;:?!")
            found.append((start, word))
        i += 1
    return tokens, found


def fill(code, text):
    """Fills the lines name = "..." with the values in `text`: the rest of a line that begins with the name, or what
    stands behind the name elsewhere."""
    names = re.findall(r'^(\w+) = "\.\.\."$', code, re.M)
    tokens, found = find_values(text)
    words = [token.strip(",.;:?!") for token in tokens]
    for name in names:
        line = re.search(rf"^{name} (.+)$", text, re.M)
        assert words.count(name) == 1, f"{name} is not once in: {text}"
        value = line[1] if line else dict(found)[words.index(name) + 1]
        assert 1 <= len(value.split()) <= 6 and not re.search(r'["\\]|[^\w]$', value), value
        code = code.replace('"..."', json.dumps(value), 1)
    return code


def read_hints(directory):
    """Returns {group: {heading: lines}}."""
    groups = {}
    for file in sorted(directory.glob("*.md")):
        sections = re.split(r"^## ", file.read_text(), flags=re.M)[1:]
        groups[file.stem] = {s.splitlines()[0]: [line for line in s.splitlines()[1:] if line] for s in sections}
    return groups


def read_recipes(directory):
    """Returns {template: [(thought, code), …]}."""
    recipes = {}
    for sections in read_hints(directory).values():
        for heading, (target, *lines) in sections.items():
            if heading.startswith("practice: "):
                steps = re.split(r"^Step \d+: ", "\n".join(lines), flags=re.M)[1:]
                recipes[target.removeprefix("for: ")] = [s.rstrip("\n").split("\n", 1) for s in steps]
    return recipes


def follow(recipe, question, run):
    """Fills and runs a recipe's steps; returns what complete_task was called with."""
    text = question
    for number, (_, code) in enumerate(recipe):
        observation = run(fill(code, text))
        if observation.completed is not None:
            assert number == len(recipe) - 1
            return observation.completed
        assert not observation.died and "Error" not in observation.text, observation.text
        text = observation.text.rstrip("\n")
