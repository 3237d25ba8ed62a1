"""The coach's pages: self-contained HTML from records. `review_page` is what review.py --html writes.

A page holds its data as JSON and a script that shows it (pages/): no server, no network. What an agent wrote is shown
as text and never run.
"""

import json
import re
from collections import Counter
from html import escape
from pathlib import Path

from desk.effects import gain, rate

PAGES = Path(__file__).resolve().parent / "pages"
CLUSTERS = 40                                     # kinds of failures listed, the most frequent ones


def review_page(title: str, trajectories: list[dict], found: list[tuple[dict, str, int]], hints: dict[str, str],
                rows: dict[str, dict]) -> str:
    """The page of a review. found: (trajectory, mistake's name, step); hints: {mistake's name: text}; rows: what each
    hint did, {mistake's name: row} as effects.hint_effects has them."""
    flags = {}                                                        # trajectory's id → the mistakes in it
    for t, name, n in found:
        corrected = [{k: r["steps"][n][k] for k in ("monologue", "code", "observation")}
                     | {"success": r["success"], "stop": r["stop"]} for r in rows[name]["corrected"].get(t["id"], [])]
        flags.setdefault(t["id"], []).append({"name": name, "step": n, "corrected": corrected})
    clusters = clusters_of([t for t in trajectories if not t["success"]])
    cluster_number = {cluster["what"]: n for n, cluster in enumerate(clusters)}
    sections, shown = {}, []                                          # sections: (name, text) → number
    for t in trajectories:
        answer = t["task"]["answer"]
        shown.append({
            "id": t["id"], "group": t["task"]["group"], "template": t["task"]["template"],
            "question": t["task"]["question"], "answer": t["answer"],
            "expected": answer if isinstance(answer, str) else " or ".join(answer),
            "success": t["success"], "stop": t["stop"],
            "hints": [sections.setdefault((section_name(h), h["text"]), len(sections)) for h in t["hints"]],
            "flags": flags.get(t["id"], []),
            "cluster": -1 if t["success"] else cluster_number.get(what_failed(t), -1),
            "steps": [{k: s[k] for k in ("monologue", "code", "observation", "hint")} for s in t["steps"]]})
    data = {"trajectories": shown, "hints": list(sections), "clusters": clusters} | mistakes_table(hints, rows)
    return page("review", title, data)


def mistakes_table(hints: dict[str, str], rows: dict[str, dict]) -> dict:
    """The page's table: a line for each mistake, those whose hint helps least first, and one for all of them."""
    ways = [way for way in ("without", "with") if any(row[way] for row in rows.values())]

    def cells(row):
        return [sum(map(len, row["flagged"])), sum(map(sum, row["flagged"])),
                *(rate(row[key]) for key in ("before", *ways))]

    gains = {name: gained for name, row in rows.items() if (gained := gain(row)) is not None}
    lines = [{"name": name, "text": hints[name], "cells": cells(rows[name]), "useless": gains.get(name, 1) <= 0}
             for name in sorted(rows, key=lambda name: gains.get(name, 2))]   # a gain is at most 1; untried ones last
    total = {key: [outcomes for row in rows.values() for outcomes in row[key]]
             for key in ("flagged", "before", "without", "with")}
    return {"mistakes": lines, "total": cells(total), "control": "without" in ways, "verified": "with" in ways}


def clusters_of(failures: list[dict]) -> list[dict]:
    """Failures that look alike, the most frequent first, and how many of them each template has."""
    templates = {}
    for t in failures:
        templates.setdefault(what_failed(t), Counter())[t["task"]["group"], t["task"]["template"]] += 1
    common = sorted(templates.items(), key=lambda cluster: -cluster[1].total())[:CLUSTERS]
    return [{"what": what, "count": counts.total(),
             "templates": [[*group_and_template, n] for group_and_template, n in counts.most_common()]}
            for what, counts in common]


def what_failed(trajectory: dict) -> str:
    """The end of a failure without its particulars, so that similar failures have the same text: the last error, or
    how the trajectory stopped and its last line of code."""
    steps = trajectory["steps"]
    code = [line for line in steps[-1]["code"].splitlines() if line.strip()] if steps else []
    printed = [line for step in steps for line in step["observation"].splitlines()]
    errors = [line for line in printed if re.match(r"[\w.]*(Error|Exception|Iteration)\b", line)]
    what = errors[-1] if errors else f"{trajectory['stop']}: {code[-1].strip() if code else 'no code'}"
    what = re.sub(r"^(\w+: )([\"'])(.*['\"].*)\2$", r"\1\3", what)    # KeyError puts quotes around its whole message
    return re.sub(r"\d+", "0", re.sub(r'"[^"\n]*"|\'[^\'\n]*\'', '"…"', what))[:200]


def section_name(hint: dict) -> str:
    """A hint's name with its kind: a group's documentation and its advice may have the same name."""
    return hint["name"] + (f" ({hint['kind']})" if "kind" in hint else "")


def page(name: str, title: str, data: dict) -> str:
    """pages/<name>.html, .css and .js in one file with the data. Its Content-Security-Policy lets the browser load
    nothing else."""
    def read(file):
        return (PAGES / file).read_text(encoding="utf-8")

    policy = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'"
    body = read(f"{name}.html").replace("{{title}}", escape(title, quote=False))
    content = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")                # no text may end the script
    html = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{escape(title, quote=False)}</title>
<style>
{read("style.css")}{read(f"{name}.css")}</style>
</head>
<body>
{body}<script type="application/json" id="data">{content}</script>
<script>
{read(f"{name}.js")}</script>
</body>
</html>
"""
    return html.encode(errors="replace").decode()                     # JSON can hold half a character, UTF-8 cannot
