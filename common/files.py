"""Files that survive interruptions: whole or absent, one line per finished record, resumed by the same arguments."""

from common import ROOT

import fcntl
import glob
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import IO
from zlib import crc32

from safetensors import SafetensorError

# ---- reading

def read_json(file: str | Path) -> dict:
    """A file that holds one JSON object. Raises ValueError, naming the file, if it does not."""
    try:
        content = json.loads(read_text(file))
    except OSError as e:
        raise ValueError(f"{file}: cannot be read ({e.strerror})") from None
    except (json.JSONDecodeError, RecursionError) as e:
        line, what = getattr(e, "lineno", 1), getattr(e, "msg", "nested too deep")
        raise ValueError(f"{file}, line {line}: not JSON ({what})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file}: not an object")
    return content


def read_text(file: str | Path) -> str:
    """A file of UTF-8 text. Raises ValueError, naming the file, if it is not."""
    try:
        return Path(file).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{file}: not UTF-8 text") from None


def whole_lines(file: Path) -> list[dict]:
    """The records of a file that may still be growing. Raises ValueError, naming file and line, if one is broken."""
    content, found = file.read_bytes(), []
    for n, line in enumerate(content[:content.rfind(b"\n") + 1].splitlines(), 1):
        if line.strip():
            try:
                found.append(json.loads(line))
                if not isinstance(found[-1]["id"], str):
                    raise ValueError
            except (ValueError, LookupError, TypeError, RecursionError):
                raise ValueError(f"{file}, line {n}: not a record; repair it, or give another --out") from None
    return found


# ---- writing whole files

def refuse_overwriting(out: str | Path | None, inputs: Iterable[str | Path | None]) -> None:
    """Raises ValueError if the output is one of the files that are read."""
    if out and Path(out).resolve() in [Path(file).resolve() for file in inputs if file]:
        raise ValueError(f"{out}: is also an input, so it cannot be written to; give another name")


def lock(opened: IO | int, name: str | Path) -> None:
    """Keeps other runs from writing to an open file or directory until it is closed. Raises ValueError if one does, or
    if the file system has no locks."""
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(f"{name}: another run is writing to it; wait for it or give another --out") from None
    except OSError as e:                                        # say Lustre that is mounted without locks
        raise ValueError(f"{name}: its file system locks no files ({e.strerror}); write elsewhere") from None


def write_part(file: str | Path, content: str | Callable[[Path], None]) -> Path:
    """Writes <file>.part to the disk and returns its path. `content` is a text, or a function that writes to a path.
    Raises ValueError if it cannot be written, or if another run is writing it."""
    file = Path(file)
    part = file.with_name(file.name + ".part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "ab") as held:
            lock(held, file)
            part.write_text(content, encoding="utf-8") if isinstance(content, str) else content(part)
            with open(part, "rb") as written:                   # safetensors puts a new file there, for its owner only
                os.fchmod(written.fileno(), os.fstat(held.fileno()).st_mode & 0o777)
                os.fsync(written)
    except KeyboardInterrupt:
        part.unlink(missing_ok=True)
        raise
    except (OSError, RuntimeError, SafetensorError) as e:       # a full disk: PyTorch's and safetensors' own errors
        part.unlink(missing_ok=True)
        raise ValueError(f"{file}: cannot be written ({str(e).splitlines()[0]}); "
                         "once it can be, the same command resumes") from None
    return part


def write_whole(contents: dict | Iterable[tuple]) -> None:
    """Writes several files, {path: content as in `write_part`} or pairs of these. All are on the disk before the first
    one takes its place, so an error leaves the earlier files as they were. The last one to appear marks the end."""
    parts = {}
    try:
        for file, content in contents.items() if isinstance(contents, dict) else contents:
            parts[file] = write_part(file, content)
        for file, part in parts.items():
            part.replace(file)
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)


def as_lines(records: Iterable[dict]) -> str:
    """Records as JSONL."""
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


# ---- the arguments that made a file

# Arguments that are compared only if both runs have noted them.
WHERE_KNOWN = "hint_dir", "content of hint_dir", "content of data", "content of model", "content of judge"
MODEL = ".safetensors", ".json", ".jinja"                       # a model's files
END = 2 ** 20                                                   # bytes


def checksum(argument: str | Path) -> int | None:
    """CRC-32 of what an argument names: a file, or a folder's hints (Markdown) or adapter. None if it is neither."""
    if os.path.isfile(argument):
        named = [Path(argument)]
    else:
        named = sorted(Path(argument).glob("adapter_*")) or sorted(Path(argument).glob("*.md"))
    crc = 0
    for file in named:
        with open(file, "rb") as content:
            while block := content.read(2 ** 24):
                crc = crc32(block, crc)
    return crc if named else None


def sketch(folder: str | Path, suffixes: Sequence[str] = ()) -> int | None:
    """CRC-32 of the names, sizes, beginnings and ends of all files in a folder, or of those directly in it with one of
    these suffixes. None if there is no such folder."""
    if not os.path.isdir(folder):
        return None
    crc = 0
    for file in sorted(Path(folder).glob("*" if suffixes else "**/*")):
        if file.is_file() and (not suffixes or file.suffix in suffixes):
            size = file.stat().st_size
            with open(file, "rb") as content:
                begins = content.read(END)
                content.seek(max(size - END, 0))
                crc = crc32(f"{file.relative_to(folder)} {size} ".encode() + begins + content.read(), crc)
    return crc


def same_arguments(note: Path, arguments: dict, made: bool) -> None:
    """Writes a stage's arguments, with checksums of what they name, to the file `note` beside the stage's output.
    Raises ValueError if the output was `made` already, with other arguments. Paths below ROOT are noted from there."""
    def portable(arguments):
        matter = {name: value for name, value in arguments.items() if name != "out"}
        text = json.dumps(matter, default=str, sort_keys=True, ensure_ascii=False)
        return json.loads(text.replace(f'"{ROOT}/', '"'))

    sums = {}
    for name, value in arguments.items():
        values = [str(x) for x in (value if isinstance(value, list) else [value]) if isinstance(x, (str, Path))]
        if name in ("model", "judge"):
            sums[name] = [sketch(x, MODEL) for x in values]
        elif name == "data" and not isinstance(value, list):    # the tools' folder; distill.py has files of this name
            sums[name] = [sketch(x) for x in values]
        elif name != "out":
            sums[name] = [checksum(x) for x in values]
    arguments = portable(arguments | {f"content of {name}": s for name, s in sums.items() if any(s)})
    before = arguments if not made else portable(read_json(note)) if note.exists() else {}
    changed = [k for k in arguments | before if before.get(k) != arguments.get(k)
               and (k not in WHERE_KNOWN or k in before and k in arguments)]
    if changed or not before:
        changed = changed if before else [f"unknown ones: {note.name} is missing"]
        output = note.parent if note.name == "arguments.json" else note.with_suffix("")
        parts = "".join(f" and {p.name}" for p in sorted(output.parent.glob(f"{output.name}.rank[0-9]*")))
        raise ValueError(f"{output}: made with other arguments ({', '.join(changed)}); remove it{parts} or give "
                         "another --out")
    if not made:
        write_whole({note: json.dumps(arguments)})


# ---- JSONL that grows

class Output:
    """A JSONL file to which a stage appends one whole line per finished unit. Opened again with the same arguments it
    resumes: `done` holds the ids that are there, and a half-written last line is dropped. <file>.args beside it holds
    the arguments.

    Under torchrun each process but the first writes to its own <file>.rank1 …, until `gather` merges them.

    Raises ValueError if the file was made with other arguments, or if another run is writing to it."""

    def __init__(self, file: str | Path, arguments: dict, replica: int = 0, replicas: int = 1):
        self.replica, self.replicas = replica, replicas
        self.path = Path(file)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        own = self.path.with_name(f"{self.path.name}.rank{replica}") if replica else self.path
        self.file = open(own, "a+b", buffering=0)
        lock(self.file, file)
        self.file.seek(0)
        content = self.file.read()
        if replica == 0:
            matter = {k: v for k, v in arguments.items() if k not in ("tp", "batch", "require_sandbox", "patience")}
            made = any(part.stat().st_size for part in (self.path, *self.parts()))
            same_arguments(self.path.with_name(f"{self.path.name}.args"), matter, made)
        end = content.rfind(b"\n") + 1
        if end < len(content):
            self.file.truncate(end)
        self.done = {r["id"] for part in (self.path, *self.parts()) if part.exists() for r in whole_lines(part)}
        self.synced = time.monotonic()

    def parts(self) -> list[Path]:
        """The other processes' parts."""
        return sorted(self.path.parent.glob(f"{glob.escape(self.path.name)}.rank*"))

    def write(self, record: dict) -> None:
        """Appends a record. Raises ValueError on a full disk, with all records before it kept."""
        line, end = json.dumps(record, ensure_ascii=False).encode() + b"\n", self.file.seek(0, os.SEEK_END)
        try:
            while line:
                line = line[self.file.write(line):]
            if time.monotonic() - self.synced > 1:              # a power cut may cost this many seconds of work
                self.sync()
        except OSError as e:
            self.file.truncate(end)
            raise ValueError(f"{self.path}: {e.strerror}; the {len(self.done)} records written before are kept; "
                             "the same command resumes from there") from None
        self.done.add(record["id"])

    def sync(self) -> None:
        """Makes sure that what was written is on the disk, where other nodes' processes find it too."""
        os.fsync(self.file)
        self.synced = time.monotonic()

    def gather(self) -> None:
        """Once all processes are done, the first one takes over what the others have written."""
        if self.replica == 0:
            mine = {r["id"] for r in whole_lines(self.path)}
            for part in self.parts():
                for record in whole_lines(part):
                    if record["id"] not in mine:
                        self.write(record)
                self.sync()
                part.unlink()
