"""The files that the stages read and write: JSONL, one record a line, and how a stage ends.

Whatever happens, a file holds whole records only, and a stage that is started again with the same arguments goes on where it stopped.
"""

import argparse
import fcntl
import glob
import json
import math
import os
import re
import signal
import sys
import time
from pathlib import Path
from zlib import crc32

from safetensors import SafetensorError

from tools.sandbox import SandboxError

ROOT = Path(__file__).resolve().parent

# What a record holds. A tuple: one of these; [x]: a list of x; a name with "?" may be missing.
TASK = {"id": str, "group": str, "template": str, "question": str, "answer": (str, [str])}
HINT = {"name": str, "text": str}
STEP = {"monologue": str, "code": str, "observation": str, "hint": (None, HINT), "token_ids": {"monologue?": [int], "code?": [int]}}
TRAJECTORY = {"id": str, "task": TASK, "seed": int, "hints": [HINT], "steps": [STEP], "answer": str, "success": bool, "stop": str,
              "usage": {"input_tokens?": int, "output_tokens?": int, "seconds?": (int, float)}, "targets?": [int], "model?": str, "adapters?": [str]}
FLAGGED = TRAJECTORY | {"hint": HINT}
NAMES = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", dict: "an object", list: "a list", None: "null"}


def mismatch(value, schema, field=""):
    """The first field of `value` that is not as the schema says, and what is wrong with it; or None."""
    if isinstance(schema, tuple):
        wrong = [mismatch(value, s, field) for s in schema]
        if None in wrong:
            return None
        deeper = [w for w in wrong if w[0] != field]                    # the right kind, but something in it is wrong
        return deeper[0] if deeper else (field, "not " + " or ".join(w[1].removeprefix("not ") for w in wrong))
    kind = type(schema) if isinstance(schema, (dict, list)) else schema
    if (value is not None) if kind is None else type(value) is not kind:
        return field, f"not {NAMES[kind]}"
    if isinstance(schema, list):
        if all(type(x) is schema[0] for x in value):                    # as of tokens, which are many
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


def read_records(file, schema):
    """The lines of a JSONL file as dicts. Raises ValueError naming file, line and field of what is wrong; ids must be unique."""
    file = Path(file)
    if not file.is_file():
        raise ValueError(f"{file}: {'a directory, not a file of records' if file.is_dir() else 'no such file'}")
    records, lines = [], {}
    for n, line in enumerate(file.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line.decode())
            if b"\\ud" in line.lower():                                 # JSON can write what no file and no tokenizer takes
                json.dumps(record, ensure_ascii=False).encode()
        except UnicodeDecodeError:
            raise ValueError(f"{file}, line {n}: not UTF-8 text") from None
        except UnicodeEncodeError as e:
            raise ValueError(f"{file}, line {n}: {ascii(e.object[e.start])} is half a character") from None
        except ValueError as e:                                         # not JSON, or a number of thousands of digits
            raise ValueError(f"{file}, line {n}: not JSON ({str(e).split(':')[0]})") from None
        except RecursionError:
            raise ValueError(f"{file}, line {n}: nested too deep") from None
        if not isinstance(record, dict):
            raise ValueError(f"{file}, line {n}: not an object but {NAMES.get(type(record), 'null')}")
        if wrong := mismatch(record, schema):
            raise ValueError(f"{file}, line {n}, field {wrong[0]!r}: {wrong[1]}")
        if record["id"] in lines:
            raise ValueError(f"{file}, line {n}, field 'id': {record['id']!r} is on line {lines[record['id']]} already")
        outside = [t for t in record.get("targets", []) if not 0 <= t < len(record["steps"])]
        if outside:
            raise ValueError(f"{file}, line {n}, field 'targets': there is no step {outside[0]}, there are {len(record['steps'])}")
        if len(set(record.get("targets", []))) < len(record.get("targets", [])):
            raise ValueError(f"{file}, line {n}, field 'targets': a step comes twice")
        lines[record["id"]] = n
        records.append(record)
    if not records:
        raise ValueError(f"{file}: empty; it should hold one JSON object a line")
    return records


def read_json(file):
    """A file that holds one JSON object. Raises ValueError, naming the file, if it does not."""
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
    except OSError as e:
        raise ValueError(f"{file}: cannot be read ({e.strerror})") from None
    except UnicodeDecodeError:
        raise ValueError(f"{file}: not UTF-8 text") from None
    except (json.JSONDecodeError, RecursionError) as e:
        raise ValueError(f"{file}, line {getattr(e, 'lineno', 1)}: not JSON ({getattr(e, 'msg', 'nested too deep')})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file}: not an object")
    return content


def read_text(file):
    """A file of UTF-8 text. Raises ValueError, naming the file, if it is none."""
    try:
        return Path(file).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{file}: not UTF-8 text") from None


def read_tasks(file):
    """A file of tasks."""
    return read_records(file, TASK)


def read_trajectories(file):
    """A file of trajectories or corrected actions."""
    return read_records(file, TRAJECTORY)


def read_flagged(file):
    """A file of flagged states."""
    return read_records(file, FLAGGED)


def apart(out, files):
    """Raises ValueError if what is to be written is one of the files that are read."""
    if out and Path(out).resolve() in [Path(file).resolve() for file in files if file]:
        raise ValueError(f"{out}: is read, so it cannot be written to; give another name")


def lock(opened, name):
    """Keeps other runs from writing to what is opened, until it is closed. Raises ValueError if one does already."""
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(f"{name}: another run is writing to it; wait for it or give another --out") from None


class Output:
    """A JSONL file that a stage appends to, one whole line a finished unit. Opened again with the same arguments it goes on:
    `done` holds the ids that are there; a half-written last line is dropped. Beside it, <file>.args holds the arguments.

    Of several processes (torchrun) each but the first writes to a file of its own, <file>.rank1 …, until `gather` puts all in one.

    Raises ValueError if the file was made with other arguments, or if another run is writing to it."""

    def __init__(self, file, arguments, rank=0, world=1):
        self.rank, self.world = rank, world
        self.path = Path(file)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.file = open(self.part(rank), "a+b", buffering=0)
        lock(self.file, file)
        self.file.seek(0)
        content = self.file.read()
        if rank == 0:
            matter = {k: v for k, v in arguments.items() if k not in ("tp", "batch", "require_sandbox")}
            same_arguments(self.part("args"), matter, any(b"\n" in part.read_bytes() for part in (self.path, *self.parts())))
        end = content.rfind(b"\n") + 1
        if end < len(content):
            self.file.truncate(end)
        self.done = {r["id"] for part in (self.path, *self.parts()) if part.exists() for r in whole_lines(part)}
        self.synced = time.monotonic()

    def part(self, name):
        return self.path.with_name(f"{self.path.name}.{f'rank{name}' if isinstance(name, int) else name}") if name else self.path

    def parts(self):
        return sorted(self.path.parent.glob(f"{glob.escape(self.path.name)}.rank*"))

    def write(self, record):
        line, end = json.dumps(record, ensure_ascii=False).encode() + b"\n", self.file.seek(0, os.SEEK_END)
        try:
            while line:
                line = line[self.file.write(line):]
            if time.monotonic() - self.synced > 1:                      # so much work may be lost in a power cut
                self.sync()
        except OSError as e:                                            # a full disk, most of all
            self.file.truncate(end)
            raise ValueError(f"{self.path}: {e.strerror}; the {len(self.done)} records before are whole, the same command goes on from there") from None
        self.done.add(record["id"])

    def sync(self):
        """Sees to it that what was written is on the disk, where other nodes' processes find it too."""
        os.fsync(self.file)
        self.synced = time.monotonic()

    def gather(self):
        """Once all processes are done: the first takes over what the others have written."""
        if self.rank == 0:
            mine = {r["id"] for r in whole_lines(self.path)}
            for part in self.parts():
                for record in whole_lines(part):
                    if record["id"] not in mine:
                        self.write(record)
                self.sync()
                part.unlink()


def write_part(file, content):
    """Writes <file>.part, to the disk, and returns its path. content: a text, or a function that writes to the path it is given.
    Raises ValueError if it cannot be written, or if another run is writing it."""
    file = Path(file)
    part = file.with_name(file.name + ".part")
    try:
        with open(part, "ab") as held:
            lock(held, file)
            part.write_text(content, encoding="utf-8") if isinstance(content, str) else content(part)
            os.fsync(held)
    except (OSError, RuntimeError, SafetensorError) as e:               # the last two: what PyTorch and safetensors say of a full disk
        part.unlink(missing_ok=True)
        raise ValueError(f"{file}: cannot be written ({str(e).splitlines()[0]}); once it can be, the same command goes on") from None
    return part


def write_whole(files):
    """Writes files, {path: content as in `write_part`} or such pairs, that all appear or none, also when the power fails; what was there before stays
    until then."""
    parts = {}
    try:
        for file, content in files.items() if isinstance(files, dict) else files:
            parts[file] = write_part(file, content)
        for file, part in parts.items():
            part.replace(file)
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)


def whole_lines(file):
    """The records of a file that may be still growing."""
    content, found = file.read_bytes(), []
    for n, line in enumerate(content[:content.rfind(b"\n") + 1].splitlines(), 1):
        try:
            if line.strip() and isinstance(json.loads(line)["id"], str):
                found.append(json.loads(line))
            elif line.strip():
                raise ValueError
        except (ValueError, LookupError, TypeError, RecursionError):
            raise ValueError(f"{file}, line {n}: not a record; mend it, or give another --out") from None
    return found


def checksum(argument):
    """Of what an argument names: a file, or a folder's hints (Markdown files) or adapter; None if it names nothing of that kind."""
    crc, files = 0, [Path(argument)] if os.path.isfile(argument) else sorted(file for kind in ("*.md", "adapter_*") for file in Path(argument).glob(kind))
    for file in files:
        with open(file, "rb") as content:
            while block := content.read(2 ** 24):
                crc = crc32(block, crc)
    return crc if files else None


def same_arguments(note, arguments, made):
    """Writes the arguments of a stage, and checksums of the files and hints that they name, to the file `note`, beside its output.
    Raises ValueError if the output is `made` already, by others."""
    named = {k: [str(x) for x in (v if isinstance(v, list) else [v]) if isinstance(x, (str, Path))] for k, v in arguments.items() if k not in ("model", "out")}
    arguments = arguments | {f"content of {k}": sums for k, v in named.items() if any(sums := [checksum(x) for x in v])}
    arguments = json.loads(json.dumps(arguments, default=str, sort_keys=True))
    try:
        before = json.loads(note.read_text()) if made and note.exists() else {} if made else arguments
        before.get("")
    except (ValueError, AttributeError, RecursionError):
        raise ValueError(f"{note}: not JSON of arguments; give another --out, or remove it and what it belongs to") from None
    if before != arguments:
        changed = [k for k in arguments if before.get(k, "") != arguments[k]] if before else ["unknown ones"]
        raise ValueError(f"{note.parent if note.name == 'arguments.json' else note.with_suffix('')}: made with other arguments "
                         f"({', '.join(changed)}); remove it or give another --out")
    if not made:
        note.parent.mkdir(parents=True, exist_ok=True)
        write_whole({note: json.dumps(arguments)})


def number(kind, low, high=math.inf):
    """What argparse turns a text into: an int or a float from `low` to `high`."""
    def parse(text):
        try:
            if low <= (x := kind(text)) <= high and abs(x) < 2 ** 63 and math.isfinite(x):     # what PyTorch can count
                return x
        except (ValueError, OverflowError):
            pass
        what = "a whole number" if kind is int else "a number"
        raise argparse.ArgumentTypeError(f"{text!r} is not {what} {f'from {low} to {high}' if high < math.inf else f'of at least {low}'}")
    return parse


class Parser(argparse.ArgumentParser):
    """argparse, but a wrong command line is one line, too, and descriptions stay as they were written."""

    def __init__(self, description=None, **others):
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, **others)

    def add_argument(self, *names, **options):
        """An option's help ends with its default."""
        if options.get("default") not in (None, "", [], argparse.SUPPRESS):
            default = options["default"]
            shown = " ".join(default) if isinstance(default, (list, tuple)) else str(default).removeprefix(f"{ROOT}/")
            options["help"] = f"{options.get('help', '')} [{shown}]".strip()
        return super().add_argument(*names, **options)

    def error(self, message):
        self.exit(2, f"{self.prog}: {message}; see --help\n")


def run_stage(main):
    """Calls a stage's main: bad input ends in one line and exit status 2, Ctrl-C in one line and 130."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        main()
    except (ValueError, OSError, SandboxError) as error:
        if os.environ.get("DEBUG"):
            raise
        message = " ".join(str(error).split("\n"))
        print(f"{Path(sys.argv[0]).name}: {message}", file=sys.stderr)
        sys.exit(2)
    except (MemoryError, RuntimeError) as error:                            # the second: what PyTorch says
        if os.environ.get("DEBUG") or not (isinstance(error, MemoryError) or re.search("out of memory|not enough memory|allocate memory|overflow", str(error))):
            raise
        print(f"{Path(sys.argv[0]).name}: out of memory ({' '.join(str(error).split())[:150]}); a smaller --batch, --row or --max-length needs less, "
              "--plan tells how much; what is finished is kept", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as stopped:
        print(f"\nstopped; {str(stopped) or 'what is finished is kept'}, the same command goes on from there", file=sys.stderr, flush=True)
        os._exit(130)                                                   # without waiting for threads that wait for an endpoint


def _interrupted(*_):
    print("\nstopped before anything was done", file=sys.stderr, flush=True)
    os._exit(130)


# Ctrl-C while one of our scripts is still importing modules. They import this one first.
if Path(getattr(sys.modules["__main__"], "__file__", None) or "/").resolve().parent in (ROOT, ROOT / "starter", ROOT / "tools"):
    signal.signal(signal.SIGINT, _interrupted)
