"""The records of the loop, one JSON object a line: tasks, trajectories, flagged states, corrected actions.

A schema is a type, a tuple of alternatives, a list with the schema of its items, or an object {field: schema}, where a
field that ends in "?" may be missing. Nothing is read that does not match its schema.
"""

import codecs
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

TASK = {"id": str, "group": str, "template": str, "question": str, "answer": (str, [str])}
HINT = {"name": str, "text": str}
STEP = {"monologue": str, "code": str, "observation": str, "hint": (None, HINT),
        "token_ids": {"monologue?": [int], "code?": [int]}}
USAGE = {"input_tokens?": int, "output_tokens?": int, "seconds?": (int, float)}
TRAJECTORY = {"id": str, "task": TASK, "seed": int, "hints": [HINT], "steps": [STEP], "answer": str, "success": bool,
              "stop": str, "usage": USAGE, "targets?": [int], "model?": str, "adapters?": [str],
              "rejected_parameters?": {}, "replayed?": str}
FLAGGED = TRAJECTORY | {"hint": HINT}
NAMES = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", dict: "an object",
         list: "a list", None: "null"}


def mismatch(value: object, schema: object, field: str = "") -> tuple[str, str] | None:
    """The first field of `value` that does not match the schema, and what is wrong with it, or None."""
    if isinstance(schema, tuple):
        wrong = [mismatch(value, s, field) for s in schema]
        if None in wrong:
            return None
        deeper = [w for w in wrong if w[0] != field]                    # the right kind with something wrong inside
        return deeper[0] if deeper else (field, "not " + " or ".join(w[1].removeprefix("not ") for w in wrong))
    kind = type(schema) if isinstance(schema, (dict, list)) else schema
    if (value is not None) if kind is None else type(value) is not kind:
        return field, f"not {NAMES[kind]}"
    if isinstance(schema, list):
        if all(type(x) is schema[0] for x in value):                    # a fast path for long lists of tokens
            return None
        return next((w for i, x in enumerate(value) if (w := mismatch(x, schema[0], f"{field}[{i}]"))), None)
    if isinstance(schema, dict):
        for name, inner in schema.items():
            path = f"{field}.{name}".lstrip(".").rstrip("?")
            if name.rstrip("?") in value:
                if wrong := mismatch(value[name.rstrip("?")], inner, path):
                    return wrong
            elif not name.endswith("?"):
                return path, "missing"
    return None


def read_records(file: str | Path, schema: dict, check: Callable | None = None) -> list[dict]:
    """The lines of a JSONL file, whose ids are unique. Raises ValueError, naming file, line and field.

    check(record), if given, replaces mismatch(record, schema) and returns the same."""
    file = Path(file)
    if not file.is_file():
        raise ValueError(f"{file}: {'a directory, not a file of records' if file.is_dir() else 'no such file'}")
    found, lines = [], {}
    for n, record in read_lines(file.read_bytes(), file):
        where = f"{file}, line {n}"
        if wrong := check(record) if check else mismatch(record, schema):
            number = type(record.get(wrong[0])) in (int, float) and "a text" in wrong[1]
            advice = f'; write "{record[wrong[0]]}"' if number else ""
            raise ValueError(f"{where}, field {wrong[0]!r}: {wrong[1]}{advice}")
        if record.get("answer") == []:
            raise ValueError(f"{where}, field 'answer': an empty list; give at least one right answer")
        if record["id"] in lines:
            raise ValueError(f"{where}, field 'id': {record['id']!r} is on line {lines[record['id']]} already")
        targets = record.get("targets", []) if "targets?" in schema else []
        if outside := [t for t in targets if not 0 <= t < len(record["steps"])]:
            raise ValueError(f"{where}, field 'targets': there is no step {outside[0]}, counted from 0, "
                             f"there are {len(record['steps'])}")
        if len(set(targets)) < len(targets):
            raise ValueError(f"{where}, field 'targets': a step is named twice")
        lines[record["id"]] = n
        found.append(record)
    if not found:
        raise ValueError(f"{file}: empty; it should hold one JSON object a line")
    return found


def read_lines(content: bytes, file: str | Path) -> Iterator[tuple[int, dict]]:
    """(number, object) of each line of JSONL that is not blank. Raises ValueError, naming file and line."""
    for n, line in enumerate(content.removeprefix(codecs.BOM_UTF8).splitlines(), 1):
        if line.strip():
            yield n, read_line(line, f"{file}, line {n}")


def read_line(line: bytes, where: str) -> dict:
    """One line as an object. Raises ValueError, with `where` in front."""
    try:
        record = json.loads(line.decode())
        if b"\\ud" in line.lower():                             # half a character, which only JSON can spell
            json.dumps(record, ensure_ascii=False).encode()
    except UnicodeDecodeError:
        raise ValueError(f"{where}: not UTF-8 text") from None
    except UnicodeEncodeError as e:
        raise ValueError(f"{where}: {ascii(e.object[e.start])} is half a character; take it out") from None
    except ValueError as e:
        if line.strip() in (b"[", b"{"):        # a list or an object over several lines
            raise ValueError(f"{where}: write one object a line (JSONL)") from None
        # not JSON, or a number of thousands of digits
        raise ValueError(f"{where}: not JSON ({str(e).split(':')[0]})") from None
    except RecursionError:
        raise ValueError(f"{where}: nested too deep") from None
    if not isinstance(record, dict):
        raise ValueError(f"{where}: not an object but {NAMES.get(type(record), 'null')}")
    return record


def read_tasks(file: str | Path) -> list[dict]:
    """A file of tasks. Warns of answers that begin or end with white space."""
    tasks = read_records(file, TASK)
    stray = [t["id"] for t in tasks if any(a != a.strip() for a in ([t["answer"]] if isinstance(t["answer"], str)
                                                                    else t["answer"]))]
    if stray and os.environ.get("RANK", "0") == "0":            # under torchrun, say it once
        print(f"WARNING: {file}: the answer of {stray[0]!r} begins or ends with white space, which no agent will match"
              + (f"; so do {len(stray) - 1} others" if len(stray) > 1 else ""), file=sys.stderr)
    return tasks


def read_trajectories(file: str | Path) -> list[dict]:
    """A file of trajectories or corrected actions."""
    return read_records(file, TRAJECTORY)


def read_flagged(file: str | Path) -> list[dict]:
    """A file of flagged states."""
    return read_records(file, FLAGGED)
