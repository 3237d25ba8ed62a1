"""Turns the real ToolQA (Zhuang et al., 2023) into a world and tasks for collect.py.

    python tools/import_toolqa.py corpora ToolQA/data/external_corpus --out data/toolqa/world
    python tools/import_toolqa.py questions toolqa/questions --out data/toolqa

The first command reads the release's corpora: flights/*.csv (four million rows), coffee/*.csv, airbnb/*.csv,
yelp/*.json (JSON lines), dblp/*.pkl (networkx graphs and dictionaries) and agenda/*.jsonl. It writes the SQLite file
that tools/toolqa.py reads. It streams, so it needs little memory except for the graphs, since a pickle is read as a
whole. It does not repeat a part that is done. cleaning.log lists what was cleaned (the paper's Appendix C) and why.

The second command reads the questions as the paper's authors corrected and split them: train, val and test, and
train-unseen, val-unseen and test-unseen, whose test templates do not occur in training.

Pickles can run code when they are read; tools/plain_pickle.py reads only data from them.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import command_line, files

import csv
import json
import os
import re
import sqlite3
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from tqdm import tqdm

from formats.records import read_lines
from tools import toolqa
from tools.plain_pickle import read_pickle

GROUPS = ("flights", "coffee", "airbnb", "yelp", "dblp", "agenda")
INDEXES = {
    "flights": [("FlightDate", "Origin", "Dest"), ("Origin", "Dest"),
                ("IATA_Code_Marketing_Airline", "Flight_Number_Marketing_Airline"), ("Dest",), ("Airline",)],
    "coffee": [("Date",)],
    "airbnb": [("id",), ("neighbourhood",), ("NAME",)],
    "yelp": [("name",), ("postal_code",), ("city",)],
}
TEXT = {"airbnb": {"id", "host id"}, "yelp": {"postal_code", "business_id"}}    # codes, even if they look like numbers
ALIKE = {"airbnb": ("id",), "yelp": ("name", "address", "postal_code")}         # what two rows should not share

# DBLP questions do not name their template. The first of these patterns that matches names it, in the others' style.
DBLP = {
    r"^Who are the authors of": "author",
    r"^How many papers .* cited \"": "how many papers",
    r"^How many collaborators does": "how many collaborators",
    r" write together ": "papers write together",
    r"^How many papers did .* write in": "number of papers written by A",
    r"common collaborators": "common collaborators",
    r"most cited paper": "most cited paper",
    r"accumulated citations": "accumulated citations",
    r"collaborators plus those": "papers by collaborators and others",
    r"^What institutions": "institution",
    r"^What organization": "organization",
    r"^How many pages": "pages",
    r"^What papers did": "papers written by A",
    r"^Which co-author": "co-author with the highest citation",
    r"^Who collaborated with": "collaborate most",
}
SPLITS = {"train": "train", "val": "val", "test": "test", "train-unseen": "train-seen-questions",
          "val-unseen": "val-seen-questions", "test-unseen": "test-unseen-questions"}


# ---------------------------------------------------------------------------------------------------- questions

def read_questions(folder, split):
    """The tasks of one split, from <folder>/<split's folder>/<group>-*.jsonl. ValueError names file and line."""
    tasks = []
    for group in GROUPS:
        paths = sorted((Path(folder) / SPLITS[split]).glob(f"{group}-*.jsonl"))
        if len(paths) != 1:
            raise ValueError(f"{Path(folder) / SPLITS[split]}: {len(paths)} files {group}-*.jsonl; one is needed")
        for n, given in read_lines(paths[0].read_bytes(), paths[0]):
            where = f"{paths[0]}, line {n}"
            if not isinstance(given.get("question"), str) or "answer" not in given:
                raise ValueError(f"{where}: no question or no answer")
            question = given["question"].strip()
            template = given.get("type")
            if not template and group == "dblp":
                template = next((name for pattern, name in DBLP.items() if re.search(pattern, question)), None)
            if not template:
                raise ValueError(f"{where}: the question has no type, and no known pattern matches it: {question[:80]}")
            answers = [a.strip() for a in str(given["answer"]).split("//")]
            tasks.append({"id": f"{group}-{split}-{n:03}", "group": group, "template": f"{group}: {template}",
                          "question": question, "answer": answers[0] if len(answers) == 1 else answers})
    return tasks


def import_questions(folder, out):
    splits = {split: read_questions(folder, split) for split in SPLITS}
    out.mkdir(parents=True, exist_ok=True)
    files.write_whole({out / f"{split}.jsonl": files.as_lines(tasks) for split, tasks in splits.items()})
    for split, tasks in splits.items():
        print(f"{out}/{split}.jsonl: {len(tasks)} tasks of {len({t['template'] for t in tasks})} templates")


# ---------------------------------------------------------------------------------------------------- corpora

class Log:
    """cleaning.log: what was changed or left out, and why.

    It holds the first hundred cases of each kind and their number, and is written when a group is done.
    """

    def __init__(self, file):
        self.file, self.cases, self.counts = file, [], Counter()

    def __call__(self, reason, what):
        self.counts[reason] += 1
        if self.counts[reason] <= 100:
            self.cases.append(f"{reason}: {what}\n")

    def write(self):
        with open(self.file, "a", encoding="utf-8") as file:
            file.writelines([*self.cases, *(f"in all {n}: {reason}\n" for reason, n in self.counts.items())])
        self.cases, self.counts = [], Counter()


def value_of(text):
    """A cell as the table holds it: a number if the text is one and loses nothing, None if it is empty, else the text.

    Blanks around the text are removed (airbnb's prices have some).
    """
    text = text.strip() if isinstance(text, str) else text
    if text in ("", None):
        return None
    if isinstance(text, (dict, list)) or isinstance(text, int) and abs(text) >= 2 ** 63:
        return json.dumps(text, ensure_ascii=False)
    if not isinstance(text, str):
        return int(text) if isinstance(text, bool) else text
    if re.fullmatch(r"-?(0|[1-9]\d{0,14})", text):
        return int(text)
    return float(text) if re.fullmatch(r"-?(0|[1-9]\d{0,14})\.\d{1,15}", text) else text


def csv_rows(file):
    """Yields a CSV file's header, then its rows of text. Raises ValueError, naming the line of a broken row."""
    with open(file, newline="", encoding="utf-8-sig", errors="replace") as f:
        reader = csv.reader(f)
        try:
            header = next(reader, [])
            names = [name for name in header if name.strip()]
            if not names or len(names) > len(set(names)):
                twice = f"the column {Counter(names).most_common(1)[0][0]!r} comes twice" if names else ""
                raise ValueError(f"{file}, line 1: {twice or 'no header; a CSV file needs one'}")
            yield header
            for row in reader:
                if len(row) != len(header):
                    raise ValueError(f"{file}, line {reader.line_num}: {len(row)} cells, the header has {len(header)}")
                yield row
        except csv.Error as e:
            raise ValueError(f"{file}, line {reader.line_num}: {e}") from None


def json_rows(file):
    """The same for a file of JSON objects, one per line; the first one's keys are the columns."""
    header = None
    with open(file, encoding="utf-8", errors="replace") as f:
        for n, line in enumerate(f, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError as e:
                raise ValueError(f"{file}, line {n}: not JSON ({e.msg})") from None
            if not isinstance(record, dict) or not record:
                raise ValueError(f"{file}, line {n}: not an object with fields")
            if header is None:
                header = list(record)
                yield header
            if unknown := record.keys() - set(header):
                raise ValueError(f"{file}, line {n}, field {min(unknown)!r}: line 1 has no such field")
            yield [record.get(name) for name in header]
    if header is None:
        raise ValueError(f"{file}: empty; it should hold one JSON object a line")


def one_file(folder, pattern):
    paths = sorted(folder.glob(pattern))
    if len(paths) != 1:
        raise ValueError(f"{folder}: {len(paths)} files {pattern}; one is needed, as in ToolQA's release")
    return paths[0]


def import_table(db, group, file, log):
    """db/<group>: rows streamed from a CSV or JSON-lines file, then its indexes."""
    rows = csv_rows(file) if file.suffix == ".csv" else json_rows(file)
    header = next(rows)
    keep = [i for i, name in enumerate(header) if name.strip()]        # pandas writes its index without a name
    names, text = [header[i] for i in keep], TEXT.get(group, set())
    value = lru_cache(100_000)(value_of) if file.suffix == ".csv" else value_of      # most cells occur many times
    quoted = [toolqa._quote(name) for name in names]
    alike = [header.index(name) for name in ALIKE.get(group, ()) if name in header]
    table, seen, known = toolqa._quote(f"db/{group}"), set(), set()
    db.execute(f"DROP TABLE IF EXISTS {table}")
    db.execute(f"CREATE TABLE {table} ({', '.join(quoted)})")

    def cleaned():
        for row in tqdm(rows, desc=group, unit=" rows", unit_scale=True, mininterval=1):
            if group == "airbnb":                                      # the file repeats some homes
                key = hash(tuple(row))
                if key in seen:
                    log("airbnb, a repeated row", row[0])
                    continue
                seen.add(key)
            if group in ALIKE:                                         # rows that differ stay, but they are reported
                key = tuple(row[i] for i in alike)
                if key in known:
                    log(f"{group}, another row with the same {', '.join(ALIKE[group])}", ", ".join(map(str, key)))
                known.add(key)
                log.counts.update(f"{group}, no {header[i]}" for i in keep if row[i] in ("", None))
            yield [row[i] if header[i] in text and row[i] != "" else value(row[i]) for i in keep]

    db.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * len(names))})", cleaned())
    for columns in INDEXES[group]:
        if set(columns) <= set(names):
            index = toolqa._quote(f"index/{group}/{'+'.join(columns)}")
            db.execute(f"CREATE INDEX {index} ON {table} ({', '.join(map(toolqa._quote, columns))})")


def import_dblp(db, folder, log):
    """Both graphs, one after the other: a pickle is read as a whole, so one graph at a time is in memory."""
    papers = import_graph(db, folder, "PaperNet", "paper_net.pkl", "title2id_dict", "id2title_dict", None, log)
    import_graph(db, folder, "AuthorNet", "author_net.pkl", "author2id_dict", "id2author_dict", papers, log)


def import_graph(db, folder, graph, file, there, back, papers, log):
    """Writes a graph's nodes and edges by title and name, not by id: Appendix C's first kind of cleaning.

    papers: {id: title}, for the lists of papers in its attributes; None: the graph's own names. Returns {id: name}. A
    node without a name gets its title: of several papers that share a title, only one has a name.
    """
    net = read_pickle(folder / file)
    to_id, to_name = (read_pickle(folder / f"{name}.pkl") for name in (there, back))
    if not all(isinstance(x, dict) for x in (getattr(net, "_node", None), to_id, to_name)):
        raise ValueError(f"{folder}: {graph}'s files are not a graph and two dictionaries")
    name_of = {}
    for name, key in to_id.items():
        if to_name.get(key) != name:
            log(f"dblp, {there} and {back} do not agree", f"{name!r} is {key!r}, that is {to_name.get(key)!r}")
        elif key not in net._node:
            log(f"dblp, in {there} but not in {graph}", repr(name))
        else:
            name_of[key] = name
    for key in net._node:
        if key not in name_of:
            known = f", {to_name[key]!r}" if key in to_name else ""
            log(f"dblp, a node of {graph} that no name in {there} leads to", f"{key!r}{known}")
    to_name = {key: node["title"] for key, node in net._node.items() if node.get("title")} | to_name
    papers = papers or to_name
    spoken = lambda attributes: {k: [papers.get(x, x) for x in v] if k == "papers" and isinstance(v, list) else v
                                 for k, v in attributes.items()}
    directed = hasattr(net, "_pred")

    def neighbours(key):                                               # in the order that answers with several have
        others = dict.fromkeys([*net._adj[key], *(net._pred[key] if directed else ())])
        return [name_of[other] for other in others if other in name_of]

    nodes = ((name, *(json.dumps(value, ensure_ascii=False) for value in (spoken(net._node[key]), neighbours(key))))
             for key, name in name_of.items())

    def named():
        for a, others in net._adj.items():
            for b, attributes in others.items():
                if directed or str(a) <= str(b):
                    if a in name_of and b in name_of:
                        yield name_of[a], name_of[b], json.dumps(spoken(attributes), ensure_ascii=False)
                    else:
                        log(f"dblp, an edge of {graph} with such a node", f"{a!r}, {b!r}")

    for kind, columns, rows in (("nodes", "node PRIMARY KEY, attributes, neighbours", nodes),
                                ("edges", "node1, node2, attributes, PRIMARY KEY (node1, node2)", named())):
        table = toolqa._quote(f"{kind}/{graph}")
        db.execute(f"DROP TABLE IF EXISTS {table}")
        db.execute(f"CREATE TABLE {table} ({columns})")
        db.executemany(f"INSERT OR REPLACE INTO {table} VALUES (?, ?, ?)",
                       tqdm(rows, desc=f"{graph}, {kind}", unit=" rows", unit_scale=True, mininterval=1))
    return to_name


def import_agenda(db, file, log):
    """The agenda as a full-text index; a repeated text is stored once."""
    rows = json_rows(file)
    header = next(rows)
    if "event" not in header:
        raise ValueError(f"{file}, line 1, field 'event': missing; it holds the text of an entry")
    db.execute("DROP TABLE IF EXISTS agenda")
    db.execute("CREATE VIRTUAL TABLE agenda USING fts5(text)")
    at = header.index("event")
    seen = set()
    for row in tqdm(rows, desc="agenda", unit=" rows", unit_scale=True, mininterval=1):
        text = str(row[at] or "").strip()
        if text in seen:
            log("agenda, a repeated text", text)
            continue
        seen.add(text)
        db.execute("INSERT INTO agenda VALUES (?)", (text,))


def import_corpora(folder: Path, out: Path, groups: Sequence[str] = GROUPS) -> None:
    """Writes world.sqlite to `out`. Each group is one transaction; the same command resumes with the next group."""
    out.mkdir(parents=True, exist_ok=True)
    file, part = out / "world.sqlite", out / "world.sqlite.part"
    if file.exists():
        print(f"{file}: already there")
        return
    db, log = sqlite3.connect(part, isolation_level=None), Log(out / "cleaning.log")
    try:
        db.execute("PRAGMA cache_size = -200000")                      # 200 MB
        db.execute("CREATE TABLE IF NOT EXISTS imported (part PRIMARY KEY, folder)")
        for other, in db.execute("SELECT folder FROM imported WHERE folder != ?", (str(folder.resolve()),)):
            raise ValueError(f"{part}: begun with {other}; remove it to import {folder}")
        for group in groups:
            if db.execute("SELECT 1 FROM imported WHERE part = ?", (group,)).fetchone():
                continue
            db.execute("BEGIN")
            if group == "dblp":
                import_dblp(db, folder / group, log)
            elif group == "agenda":
                import_agenda(db, one_file(folder / group, "*.jsonl"), log)
            else:
                import_table(db, group, one_file(folder / group, "*.json" if group == "yelp" else "*.csv"), log)
            db.execute("INSERT INTO imported VALUES (?, ?)", (group, str(folder.resolve())))
            db.execute("COMMIT")
            log.write()
        db.execute("DROP TABLE imported")
        db.execute("ANALYZE")
    except sqlite3.DatabaseError as e:
        raise ValueError(f"{part}: {e}; remove it, and the same command starts again") from None
    finally:
        db.close()
    os.replace(part, file)
    print(f"{file}: {file.stat().st_size / 2 ** 20:,.0f} MiB; {out / 'cleaning.log'} lists what was cleaned")


def main():
    parser = command_line.Parser(__doc__)
    parser.add_argument("what", choices=("corpora", "questions"), help="ToolQA's corpora, or the paper's questions")
    parser.add_argument("folder", type=Path, help="the release's external_corpus, or the corrected questions")
    parser.add_argument("--out", type=Path, required=True, help="the folder that is written")
    args = parser.parse_args()
    (import_corpora if args.what == "corpora" else import_questions)(args.folder, args.out)


if __name__ == "__main__":
    command_line.run_stage(main)
