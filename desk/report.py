"""The coach's pages: self-contained HTML from records. What review.py and evaluate.py --html write.

A page holds its data as JSON and a script that shows it (pages/): no server, no network. What an agent wrote is shown as text, never run.
"""

import json
import math
import re
from collections import Counter
from pathlib import Path

PAGES = Path(__file__).resolve().parent / "pages"


def interval(successes, n):
    """Wilson's 95 % interval of a success rate, (low, high) in percent."""
    z, p = 1.96, successes / n
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0, 100 * (middle - half) / (1 + z * z / n)), min(100, 100 * (middle + half) / (1 + z * z / n))


def rate(outcomes):
    """Outcomes, a list of booleans for each task, in words: percent, its interval, how many. Tries of one task often end alike: the interval is
    that of as many independent tries as would vary as much as the tasks do, at least one a task and at most all."""
    if not outcomes:
        return "–"
    n, tasks = sum(map(len, outcomes)), len(outcomes)
    p = sum(map(sum, outcomes)) / n
    variance = sum((sum(o) - p * len(o)) ** 2 for o in outcomes) / n ** 2 * tasks / max(tasks - 1, 1)
    independent = min(max(p * (1 - p) / variance, tasks), n) if variance else n if 0 < p < 1 and tasks > 1 else tasks
    low, high = interval(p * independent, independent)
    return f"{100 * p:.0f} % ({low:.0f} to {high:.0f}, n = {n})"


def gain(row):
    """By how much more of the tasks were solved with a hint than without it, or if that was not tried, than before (a row of review.effects); None: not tried."""
    mean = lambda outcomes: sum(map(sum, outcomes)) / sum(map(len, outcomes))
    return mean(row["with"]) - mean(row["without"] or row["before"]) if row["with"] else None


def what_failed(trajectory):
    """The end of a failure without its particulars: the last error, or how it stopped and its last line of code. Failures with the same look alike."""
    steps = trajectory["steps"]
    code = [line for line in steps[-1]["code"].splitlines() if line.strip()] if steps else []
    errors = [line for s in steps for line in s["observation"].splitlines() if re.match(r"\w+(Error|Exception)\b", line)]
    what = errors[-1] if errors else f"{trajectory['stop']}: {code[-1].strip() if code else 'no code'}"
    what = re.sub(r"^(\w+: )([\"'])(.*['\"].*)\2$", r"\1\3", what)         # a KeyError's message stands in quotes as a whole
    return re.sub(r"\d+", "0", re.sub(r'"[^"\n]*"|\'[^\'\n]*\'', '"…"', what))[:200]


def section_name(hint):
    """A hint's name and kind: a group's documentation and advice may have the same name."""
    return hint["name"] + (f" ({hint['kind']})" if "kind" in hint else "")


def review_page(title, trajectories, found, hints, table):
    """The page of review.py. found: [(trajectory, mistake's name, step)]; hints: {mistake's name: text}; table: {name: {"flagged", "before",
    "without", "with": outcomes by task, "corrected": {trajectory's id: [corrected records]}}} (see review.effects)."""
    flags, sections, rows = {}, {}, []
    for t, name, n in found:
        corrected = [{k: r["steps"][n][k] for k in ("monologue", "code", "observation")} | {"success": r["success"], "stop": r["stop"]}
                     for r in table[name]["corrected"].get(t["id"], [])]
        flags.setdefault(t["id"], []).append({"name": name, "step": n, "corrected": corrected})
    places = {}                                                       # what failed → how often in each template
    for t in trajectories:
        if not t["success"]:
            places.setdefault(what_failed(t), Counter())[t["task"]["group"], t["task"]["template"]] += 1
    common = sorted(places, key=lambda what: -places[what].total())[:40]
    clusters = [{"what": what, "count": places[what].total(), "templates": [[*place, n] for place, n in places[what].most_common()]} for what in common]
    number = {what: n for n, what in enumerate(common)}
    for t in trajectories:
        given = [sections.setdefault((section_name(h), h["text"]), len(sections)) for h in t["hints"]]
        answer = t["task"]["answer"]
        rows.append({"id": t["id"], "group": t["task"]["group"], "template": t["task"]["template"], "question": t["task"]["question"], "answer": t["answer"],
                     "expected": answer if isinstance(answer, str) else " or ".join(answer), "success": t["success"], "stop": t["stop"],
                     "hints": given, "flags": flags.get(t["id"], []), "cluster": -1 if t["success"] else number.get(what_failed(t), -1),
                     "steps": [{k: s[k] for k in ("monologue", "code", "observation", "hint")} for s in t["steps"]]})
    shown = [key for key in ("without", "with") if any(table[name][key] for name in table)]
    cells = lambda row: [sum(map(len, row["flagged"])), sum(map(sum, row["flagged"])), *(rate(row[key]) for key in ("before", *shown))]
    gains = {name: g for name, row in table.items() if (g := gain(row)) is not None}
    mistakes = [{"name": name, "text": hints[name], "cells": cells(table[name]), "useless": gains.get(name, 1) <= 0}
                for name in sorted(table, key=lambda name: gains.get(name, 2))]                          # those that help least first
    total = cells({key: sum((row[key] for row in table.values()), []) for key in ("flagged", "before", "without", "with")})
    return page("review", title, {"trajectories": rows, "hints": list(sections), "mistakes": mistakes, "total": total, "clusters": clusters,
                                  "control": "without" in shown, "verified": "with" in shown})


def run_page(title, agents, adapters):
    """The page of evaluate.py --table. agents: [{"name", "hinted", "rates": {group or "all": (percent, standard error)}, "tokens"}];
    adapters: [{"name", "losses": [...], "hints": [(name, text)], "earlier": how many more it shares with those before}], without losses where there is no log."""
    return page("run", title, {"agents": agents, "adapters": adapters})


def page(name, title, data):
    """pages/<name>.html, .css and .js in one file with the data. The browser is told to load nothing else (Content-Security-Policy)."""
    read = lambda file: (PAGES / file).read_text(encoding="utf-8")
    escape = lambda text: text.replace("&", "&amp;").replace("<", "&lt;")
    text = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    body = read(f"{name}.html").replace("{{title}}", escape(title))
    html = (f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f'<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; script-src \'unsafe-inline\'; style-src \'unsafe-inline\'">\n'
            f"<title>{escape(title)}</title>\n<style>\n{read('style.css')}{read(f'{name}.css')}</style>\n</head>\n<body>\n{body}"
            f'<script type="application/json" id="data">{text}</script>\n<script>\n{read(f"{name}.js")}</script>\n</body>\n</html>\n')
    return html.encode(errors="replace").decode()                     # JSON can hold half a character, UTF-8 cannot
