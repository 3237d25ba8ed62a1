"""The tools of ToolQA: tables, graphs and an agenda, read from one SQLite file.

    python collect.py … --tools tools/toolqa.py --data data/starter/world

The public functions are what the agent can call, and their docstrings are its tool documentation (complete_task comes
from the sandbox). The data directory holds world.sqlite, which `_write_world` makes:

    db/NAME       a table for load_db; numbers are stored as numbers, everything else as text
    nodes/NAME    a graph for load_graph: node, attributes (JSON), neighbours (a JSON list, in the graph's order)
    edges/NAME    its undirected edges: node1, node2, attributes (JSON)
    agenda        FTS5, one text a row, for retrieve_agenda

Nothing here knows what a world is about: every name comes from its file.
"""

import difflib
import json
import os
import re
import sqlite3
from pathlib import Path

_file = None  # world.sqlite, once _open has been called
NUMBER = re.compile(r"[-+]?\d+(\.\d+)?")
_connections = {}  # process id → connection: SQLite's must not be carried over a fork


class Row(dict):
    """A row of a table, by its columns."""

    def __missing__(self, column):
        _known("column", column, list(self))


class Table:
    """A table or its filtered rows: len(table), for row in table (dicts), table[0], table[:5], table["Column"]."""

    def __init__(self, name, columns, conditions=()):
        self.name, self.columns, self.conditions = name, columns, tuple(conditions)  # (column, comparison, value)

    def _select(self, what, tail=""):
        where, values = _where(self.conditions)
        return _db().execute(f"SELECT {what} FROM {_quote('db/' + self.name)} WHERE {where} {tail}", values)

    def __len__(self):
        return self._select("count(*)").fetchone()[0]

    def __iter__(self):
        return (Row(zip(self.columns, row)) for row in self._select("*", "ORDER BY rowid"))

    def __getitem__(self, key):
        if isinstance(key, str):
            return [row[0] for row in self._select(_column(self, key), "ORDER BY rowid")]
        if isinstance(key, bool):
            raise TypeError("a comparison in brackets does not filter a table; "
                            f'write data_filter(table, "{_example(self)}")')
        if not isinstance(key, (int, slice)):
            raise TypeError("a table takes one column's name, a row's number or a slice in its brackets, "
                            f"not {type(key).__name__}")
        size = len(self)
        if isinstance(key, int) and not -size <= key < size:
            raise IndexError(f"there is no row {key}: the table has {size} rows")
        start, stop, step = key.indices(size) if isinstance(key, slice) else (key % size, key % size + 1, 1)
        if step != 1:
            return list(self)[key]
        rows = self._select("*", f"ORDER BY rowid LIMIT {max(stop - start, 0)} OFFSET {start}")
        rows = [Row(zip(self.columns, row)) for row in rows]
        return rows if isinstance(key, slice) else rows[0]

    def __getattr__(self, name):
        if name.startswith("_"):                        # what copy and pickle ask for
            raise AttributeError(name)
        raise AttributeError(f'a table has no .{name}; len(table) counts its rows, table[:5] gives the first five, '
                             f'table["{self.columns[0]}"] a column, data_filter(table, "{_example(self)}") what fits')

    def __repr__(self):
        return f"<table {self.name}: {len(self)} rows, columns {', '.join(self.columns)}>"


class Graph:
    """A graph, to be asked with check_neighbours, check_nodes and check_edges."""

    def __init__(self, name):
        self.name, self.nodes, self.edges = name, _quote("nodes/" + name), _quote("edges/" + name)

    def __repr__(self):
        return f"<graph {self.name}>"


def load_db(name):
    """Opens a table of the database.

    name: the table's name.
    Returns the table, all of its rows. len(table) counts its rows, a loop over it gives each row as a dict,
    table["Column"] is the list of a column's values, table[0] the first row, table[:5] the first five.
    Example: table = load_db("items")
    """
    _known("table", name, _names("db/"))
    columns = [row[1] for row in _db().execute(f"PRAGMA table_info({_quote('db/' + name)})")]
    return Table(name, columns)


def data_filter(table, conditions):
    """Keeps the rows of a table that meet all conditions.

    table: what load_db or data_filter returned.
    conditions: a text "Column=value", several with commas between; the comparisons are = != < <= > >=.
        Numbers are compared as numbers, dates (2014-03-05) and times (09:30) in their order.
    Returns a table with the rows that are left; none left is no error.
    Example: rows = data_filter(table, "Colour=red, Size>=3")
    """
    _expect("data_filter", Table, table)
    return Table(table.name, table.columns, table.conditions + tuple(_conditions(table, conditions)))


def get_value(table, column):
    """Reads a column of a table as text.

    table: what load_db or data_filter returned, or one of its rows.
    column: the column's name.
    Returns one text: the values of all rows, with ", " between. It is an error if the table has no rows.
    Example: print(get_value(rows, "Price"))
    """
    if isinstance(table, Row):
        return _text(table[column])
    _expect("get_value", Table, table)
    _column(table, column)
    values = table[column]
    if not values:
        raise ValueError(f"no row of {table.name} has {_nearest(table)}")
    return ", ".join(map(_text, values))


def load_graph(name):
    """Opens a graph.

    name: the graph's name.
    Returns the graph, for check_neighbours, check_nodes and check_edges.
    Example: graph = load_graph("Friends")
    """
    _known("graph", name, _names("nodes/"))
    return Graph(name)


def check_neighbours(graph, node):
    """Lists the neighbours of a node.

    graph: what load_graph returned.
    node: the node's name.
    Returns the list of the names of all nodes with an edge to it, in the graph's order.
    Example: print(len(check_neighbours(graph, "Ann")))
    """
    _attributes("check_neighbours", graph, node := str(node))
    (names,) = _db().execute(f"SELECT neighbours FROM {graph.nodes} WHERE node = ?", (node,)).fetchone()
    return json.loads(names)


def check_nodes(graph, node):
    """Reads the attributes of a node.

    graph: what load_graph returned.
    node: the node's name.
    Returns a dict with the node's attributes.
    Example: print(check_nodes(graph, "Ann")["city"])
    """
    return _attributes("check_nodes", graph, node)


def check_edges(graph, node1, node2):
    """Reads the attributes of the edge between two nodes, in either order.

    graph: what load_graph returned.
    node1, node2: the nodes' names.
    Returns a dict with the edge's attributes. It is an error if there is no such edge.
    Example: print(check_edges(graph, "Ann", "Bob")["since"])
    """
    _attributes("check_edges", graph, node1 := str(node1))
    _attributes("check_edges", graph, node2 := str(node2))
    row = _db().execute(f"SELECT attributes FROM {graph.edges} WHERE (node1 = ? AND node2 = ?) "
                        f"OR (node1 = ? AND node2 = ?)", (node1, node2, node2, node1)).fetchone()
    if row is None:
        raise ValueError(f'there is no edge between "{node1}" and "{node2}"; '
                         f'check_neighbours(graph, "{node1}") lists the nodes that have one')
    return json.loads(row[0])


def retrieve_agenda(query):
    """Searches the texts of the agenda.

    query: the words to look for: names, dates, titles.
    Returns the texts with all these words, the best first, one a line, at most ten; if no text has them all,
    the three that come closest.
    Example: print(retrieve_agenda("Ann December 24, 2020"))
    """
    if not isinstance(query, str):
        raise TypeError(f"retrieve_agenda needs a text, not {type(query).__name__}")
    words = ['"' + word.replace('"', "") + '"' for word in query.split() if re.search(r"\w", word)]
    if not words:
        raise ValueError("the query has no words; give names, dates or titles to look for")
    if not _db().execute("SELECT 1 FROM sqlite_master WHERE name = 'agenda'").fetchone():
        raise ValueError("this world has no agenda")
    search = "SELECT text FROM agenda WHERE agenda MATCH ? ORDER BY rank, rowid LIMIT ?"
    texts = (_db().execute(search, (" AND ".join(words), 10)).fetchall()
             or _db().execute(search, (" OR ".join(words), 3)).fetchall())
    if not texts:
        raise ValueError(f"no text of the agenda has any of the words {', '.join(words)}; try others")
    return "\n".join(row[0] for row in texts)


def _open(directory):
    """Names the directory with world.sqlite; called once, before the functions above. Safe to fork afterwards."""
    global _file
    if directory is None:
        raise ValueError("these tools read a world; name its directory with --data")
    _file = Path(directory).resolve() / "world.sqlite"
    _connections.clear()
    if not _file.is_file():
        raise FileNotFoundError(f"{_file}: no such file; build the world first, or name its directory with --data")
    try:
        _names("db/")
        for name in _names("nodes/"):
            _db().execute(f"SELECT neighbours FROM {_quote('nodes/' + name)} LIMIT 1")
    except sqlite3.DatabaseError as error:
        raise ValueError(f"{_file}: not a world, or of an earlier version ({error}); build it again") from None


def _db():
    if os.getpid() not in _connections:
        if _file is None:
            raise RuntimeError("the world is not open: call _open(directory) first")
        connection = sqlite3.connect(_file.as_uri() + "?mode=ro&immutable=1", uri=True, check_same_thread=False)
        connection.execute("PRAGMA temp_store = memory")
        _connections[os.getpid()] = connection
    return _connections[os.getpid()]


def _names(prefix):
    rows = _db().execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY rowid")
    return [name[len(prefix):] for name, in rows if name.startswith(prefix)]


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _column(table, column):
    _known(f"column of {table.name}", column, table.columns)
    return _quote(column)


def _text(cell):
    return "" if cell is None else str(cell)


def _expect(function, kind, value):
    if not isinstance(value, kind):
        source = "load_db or data_filter" if kind is Table else "load_graph"
        first, prefix = ("table = load_db", "db/") if kind is Table else ("graph = load_graph", "nodes/")
        raise TypeError(f"{function} needs what {source} returned as its first argument, not {type(value).__name__}; "
                        f'write first {first}(name) with one of the names {", ".join(_names(prefix))}')


def _example(table):
    """A condition that fits the table's first row."""
    row = _db().execute(f"SELECT {_quote(table.columns[0])} FROM {_quote('db/' + table.name)} LIMIT 1").fetchone()
    return f"{table.columns[0]}={_text(row[0]) if row else 'value'}"


def _known(kind, name, names):
    """Raises an error if `name` is not among the names; the error lists what there is."""
    if name not in names:
        near, there = _close(name, names), f"there are: {', '.join(names[:40])}"
        raise ValueError(f'there is no {kind} "{name}"; ' + (f"did you mean {near}? T{there[1:]}" if near else there))


def _close(name, names):
    lower = {known.lower(): known for known in names}
    near = difflib.get_close_matches(str(name).lower(), lower, n=3, cutoff=0.6)
    return " or ".join(f'"{lower[known]}"' for known in near)


def _similar(value, table, column):
    """Near matches among a column's values, of those that share the beginning of a word: there may be millions."""
    starts = [word[:3] for word in re.findall(r"[^\W_]+", value)][:8] or [value[:3]]
    likes = " OR ".join(f"{column} LIKE ?" for _ in starts)
    rows = _db().execute(f"SELECT DISTINCT {column} FROM {table} WHERE {likes} LIMIT 5000", [f"%{s}%" for s in starts])
    return _close(value, [str(row[0]) for row in rows])


def _nearest(table):
    """For a table without rows: its conditions, or the one value that does not occur at all and the nearest that do."""
    for column, comparison, value in table.conditions:
        if comparison == "=" and not len(Table(table.name, table.columns, [(column, comparison, value)])):
            near = _similar(value, _quote("db/" + table.name), _quote(column))
            return f"{column}={value}" + (f"; did you mean {near}?" if near else "")
    return ", ".join(map("".join, table.conditions))


def _attributes(function, graph, node):
    _expect(function, Graph, graph)
    row = _db().execute(f"SELECT attributes FROM {graph.nodes} WHERE node = ?", (str(node),)).fetchone()
    if row is None:
        near = _similar(str(node), graph.nodes, "node")
        raise ValueError(f'there is no node "{node}" in {graph.name}; '
                         + (f"did you mean {near}?" if near else "nodes are named by their full name or title"))
    return json.loads(row[0])


def _conditions(table, text):
    """Yields (column, comparison, value). A value may hold commas: a condition ends where the next column begins."""
    if not isinstance(text, str) or not text.strip():
        raise ValueError("data_filter needs its conditions as a text, one or several with commas between; "
                         f'write data_filter(table, "{_example(table)}")')
    comparison = r"\s*(==|>=|<=|!=|=|<|>)\s*"
    columns = "|".join(re.escape(column) for column in sorted(table.columns, key=len, reverse=True))
    starts = list(re.finditer(rf"(?:^|,)\s*({columns}){comparison}", text))
    if not starts or text[: starts[0].start()].strip():
        piece = text.split(",")[0]
        if not re.search(comparison, piece):
            raise ValueError(f'cannot read the condition "{piece}"; write Column=value, with one of = != < <= > >=, '
                             f'such as "{_example(table)}"')
        _known(f"column of {table.name}", re.split(comparison, piece)[0].strip(), table.columns)
    for start, end in zip(starts, [*(s.start() for s in starts[1:]), len(text)]):
        value = text[start.end() : end].strip().rstrip(",")
        unknown = re.search(rf",\s*(\w+){comparison}", value)
        if unknown:
            _known(f"column of {table.name}", unknown[1], table.columns)
        if re.fullmatch(r"\{\w+\}", value):
            raise ValueError(f'"{start[1]}={value}" is meant as an f-string; '
                             f'write f"{start[1]}={value}", with an f before it')
        value = _unquoted(table, start[1], value)
        if start[2][0] in "<>" and NUMBER.fullmatch(value):
            _has_numbers(table, start[1], value)
        yield start[1], start[2].replace("==", "="), value


def _unquoted(table, column, value):
    """The value without quotes around it, if no cell has it with them."""
    quoted = len(value) > 2 and value[0] in "\"'" and value[-1] == value[0]
    return value[1:-1] if quoted and not len(Table(table.name, table.columns, [(column, "=", value)])) else value


def _has_numbers(table, column, value):
    """Fails if the column's first cells are all texts: no number is larger or smaller than a text."""
    found = Table(table.name, table.columns)._select(_quote(column), f"AND {_quote(column)} IS NOT NULL LIMIT 100")
    cells = [cell for cell, in found]
    if cells and all(isinstance(cell, str) for cell in cells):
        raise ValueError(f'cannot compare {column} with {value}; its values are texts such as "{cells[0]}"')


def _where(conditions):
    """The SQL condition and its values."""
    where, values = ["1"], []
    for column, comparison, value in conditions:
        column, negate = _quote(column), "NOT" if comparison == "!=" else ""
        number = float(value) if NUMBER.fullmatch(value) else None
        if comparison in ("=", "!="):  # a code such as 04103 is a text that looks like a number
            where.append(f"{negate} ({column} IS ? OR {column} IS ?)")
            values += [value, value if number is None else number]
        else:  # SQLite puts every number before every text: compare like with like
            where.append(f"typeof({column}) {'=' if number is None else '!='} 'text' AND {column} {comparison} ?")
            values.append(value if number is None else number)
    return " AND ".join(where), values


def _write_world(file: str | Path, tables: dict[str, list[dict]], graphs: dict[str, tuple], texts: list) -> None:
    """Makes a new world.sqlite for the functions above.

    tables: {name: rows as dicts with the same keys}; graphs: {name: (nodes, edges)} with nodes {node: attributes}
    and edges {(node1, node2): attributes}; texts: the agenda.
    """
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(file.name + ".part")
    part.unlink(missing_ok=True)
    db = sqlite3.connect(part)
    for name, rows in tables.items():
        columns = list(rows[0])
        db.execute(f"CREATE TABLE {_quote('db/' + name)} ({', '.join(map(_quote, columns))})")
        db.executemany(f"INSERT INTO {_quote('db/' + name)} VALUES ({', '.join('?' * len(columns))})",
                       (tuple(row[column] for column in columns) for row in rows))
    for name, (nodes, edges) in graphs.items():
        neighbours = {node: {} for node in nodes}               # dicts as ordered sets
        for one, other in edges:
            neighbours[one][other] = neighbours[other][one] = None
        db.execute(f"CREATE TABLE {_quote('nodes/' + name)} (node PRIMARY KEY, attributes, neighbours)")
        db.execute(f"CREATE TABLE {_quote('edges/' + name)} (node1, node2, attributes, PRIMARY KEY (node1, node2))")
        db.executemany(f"INSERT INTO {_quote('nodes/' + name)} VALUES (?, ?, ?)",
                       ((node, json.dumps(attributes), json.dumps([*neighbours[node]]))
                        for node, attributes in nodes.items()))
        db.executemany(f"INSERT INTO {_quote('edges/' + name)} VALUES (?, ?, ?)",
                       ((*pair, json.dumps(attributes)) for pair, attributes in edges.items()))
    if texts:
        db.execute("CREATE VIRTUAL TABLE agenda USING fts5(text)")
        db.executemany("INSERT INTO agenda VALUES (?)", ((text,) for text in texts))
    db.commit()
    db.close()
    os.replace(part, file)
