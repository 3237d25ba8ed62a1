"""The hint files of round 1: reading them, choosing a task's sections, and printing a section of tool documentation.

A file hints/<world>/round1/<group>.md, or common.md for every group, consists of sections:

    ## practice: print the value
    for: opening price, closing price
    …
"""

from common import files

import re
from pathlib import Path

from tools.sandbox import Limits, World

KINDS = ("tools", "practice", "example")
SECTION = re.compile(rf"^## ({'|'.join(KINDS)}): *(.+)$", re.M)
HOW_TO_START = "start one with '## tools: …', '## practice: …' or '## example: …'"


def load_hints(directory: str | Path) -> list[dict]:
    """The sections of all files of a directory: [{"name", "kind", "text", "group", "templates"}].

    "templates" are those named by a first line `for: a, b`; None means all templates of the group."""
    paths = sorted(Path(directory).glob("*.md"))
    if not paths:
        raise ValueError(f"{directory}: no *.md file with hints there; name the folder with --hint-dir")
    return [section for file in paths for section in read_sections(file)]


def read_sections(file: Path) -> list[dict]:
    """The sections of one file. Raises ValueError, naming file and line."""
    text = files.read_text(file)
    for n, line in enumerate(text.splitlines(), 1):
        if line.startswith("## ") and not SECTION.match(line):
            raise ValueError(f"{file}, line {n}: {line!r} does not start a section; {HOW_TO_START}")
    heads = list(SECTION.finditer(text))
    before = text[:heads[0].start() if heads else None]
    if before.strip():
        line = before[:len(before) - len(before.lstrip())].count("\n") + 1
        raise ValueError(f"{file}, line {line}: text outside a section; {HOW_TO_START}")
    sections = []
    for head, after in zip(heads, [*heads[1:], None]):
        kind, title = head[1], head[2].strip()
        body, templates = text[head.end():after.start() if after else None].strip(), None
        if body[:4].lower() == "for:":
            first, _, body = body[4:].partition("\n")
            templates = [name.strip() for name in first.split(",") if name.strip()]
        if not body.strip() or templates == []:
            line = text[:head.start()].count("\n") + 1
            raise ValueError(f"{file}, line {line}: the section {title!r} is empty"
                             + (", or names no template after 'for:'" if templates == [] else ""))
        sections.append({"name": f"{file.stem}/{title}", "kind": kind, "text": f"{head[0].strip()}\n{body}",
                         "group": file.stem, "templates": templates})
    return sections


def hints_for(task: dict, sections: list[dict], which: str, kinds: list[str] | None = None) -> list[dict]:
    """The sections in a task's prompt, as the record keeps them.

    which: "none"; "task", the sections of common.md and of the task's group, except those for other templates; or
    "combined", all sections of every group. kinds: keep only these kinds."""
    if which == "none":
        return []
    chosen = [s for s in sections if which == "combined" or s["group"] in ("common", task["group"])
              and (s["templates"] is None or task["template"] in s["templates"])]
    return [{k: s[k] for k in ("name", "kind", "text")} for s in chosen if not kinds or s["kind"] in kinds]


# Runs in the sandbox, where the tool module is loaded, and prints a section of tool documentation.
DOCUMENTATION = """
def _print(names):                                      # its variables hide no tool
    import inspect
    for name, tool in names:
        if inspect.isroutine(tool) and not name.startswith("_"):
            print(f"{name}{inspect.signature(tool)}: {' '.join((inspect.getdoc(tool) or '').split())}")
_print(list(globals().items()))
"""


def documentation(tools: Path, data: Path | None = None) -> str:
    """A section to begin a hint file with: the signature and docstring of each public function of a tool module.

    Raises SandboxError, naming the file, if the module cannot be loaded."""
    with World(tools, data, Limits(output=1 << 20)) as world, world.start() as box:
        return f"## tools: functions that are there already\n{box.run(DOCUMENTATION).text.strip()}"
