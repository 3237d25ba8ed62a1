"""The page of a whole run: success by agent and group, and what each adapter was trained on. evaluate.py --table --html
writes it."""

from common import files

import json
import math
from collections.abc import Sequence
from pathlib import Path

from desk import report
from desk.tables import by_group, mean_usage, names, percent
from formats import records
from formats.chats import read_training


def run_page(paths: Sequence[str | Path]) -> str:
    """Results files, in the order of the run → HTML. The adapters are those that the records name."""
    agents, folders = [], {}                                          # folders: adapter as records name it → folder
    for agent, file in zip(names(paths), paths):
        trajectories = records.read_trajectories(file)
        for path in dict.fromkeys(path for t in trajectories for path in t.get("adapters", [])):
            folders.setdefault(path, near(path, file))
        rates = {}
        for name, ts in [*by_group(trajectories).items(), ("all", trajectories)]:
            mean, error = percent(ts)
            rates[name] = [mean, error if math.isfinite(error) else 0]
        agents.append({"name": agent, "hinted": any(t["hints"] for t in trajectories), "rates": rates,
                       "tokens": mean_usage(trajectories, "input_tokens")})
    adapters, known = [], set()
    for path, folder in folders.items():
        if not ((folder / "log.jsonl").exists() and (folder / "arguments.json").exists()):
            adapters.append({"name": path, "losses": [], "hints": []})
            continue
        hints = learned_hints(folder)
        adapters.append({"name": folder.name, "losses": losses(folder), "hints": sorted(hints - known),
                         "earlier": len(hints & known)})
        known |= hints
    return report.page("run", "Coaching, round by round", {"agents": agents, "adapters": adapters})


def near(path: str, file: str | Path) -> Path:
    """Resolves a path that was an argument of the stage that wrote `file`. It is relative to the folder in which that
    stage ran: one of the folders above the file, or else the current one."""
    return next((p for folder in Path(file).resolve().parents if (p := folder / path).exists()), Path(path))


def learned_hints(folder: Path) -> set[tuple[str, str]]:
    """(name, text) of the hints in an adapter's training data, as far as the data are still there."""
    file = folder / "arguments.json"
    trained = files.read_json(file)
    if wrong := records.mismatch(trained, {"data": [str]}):
        raise ValueError(f"{file}, field {wrong[0]!r}: {wrong[1]}")
    hints = set()
    for data in (near(path, folder) for path in trained["data"]):
        for r in read_training(data) if data.exists() else ():
            shown = [r["steps"][n]["hint"] for n in r["targets"]] if "targets" in r else r["hints"]
            texts = ((hint, hint["text"] if "text" in hint else json.dumps(hint["tool"])) for hint in shown if hint)
            hints.update((report.section_name(hint), text) for hint, text in texts)
    return hints


def losses(folder: Path) -> list[float]:
    """The loss of each update, without those that are infinite or NaN."""
    file = folder / "log.jsonl"
    try:
        logged = [json.loads(line)["loss"] for line in files.read_text(file).splitlines()]
        return [loss for loss in logged if math.isfinite(loss)]
    except (LookupError, TypeError, json.JSONDecodeError) as e:
        raise ValueError(f"{file}: not a training log ({e})") from None
