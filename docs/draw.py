"""Draws the figures of docs/results.md and the README from result files, as SVG.

    python docs/draw.py                                              docs/results/NAME.jsonl → docs/images/NAME.svg
    python docs/draw.py --add NAME runs/demo/test/*.jsonl --machine "two cores, AVX2" --commit 467f891

The second command turns results of evaluate.py into docs/results/NAME.jsonl, then draws. Each line describes one agent:

    {"agent": "after round 1", "round": 1, "hints": "none", "success": 91.3, "error": 0.5, "trials": 3,
     "input_tokens": 636, "command": "…", "machine": "…", "commit": "…"}

`round` counts the rounds of coaching the agent has had, `success` is in percent, `error` is its standard error over the
trials (null for a single trial) and `input_tokens` is the mean per task. Agents without hints are joined
by one line over the rounds; each agent with hints is a dashed line at its level.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import command_line

import json
import math
from html import escape

from desk.tables import by_trial, mean_usage, percent
from formats.records import mismatch, read_lines, read_trajectories

DOCS = Path(__file__).resolve().parent
FIELDS = {"agent": str, "round": int, "hints": str, "success": (int, float), "input_tokens": (int, float)}
WIDTH, HEIGHT = 380, 260                                         # of one panel, in pixels
LEFT, RIGHT, TOP, BOTTOM = 52, 16, 34, 40                        # margins around its plot
STYLE = """
  text { font: 12px system-ui, sans-serif; fill: #1c2126; }
  .ground { fill: #ffffff; }
  .axis { stroke: #d9dee3; }
  .line { stroke: #1d5fa8; fill: none; stroke-width: 2; }
  .dot { fill: #1d5fa8; }
  .level { stroke: #5d6872; stroke-dasharray: 5 4; }
"""


def read_results(file):
    """The agents of a result file. Raises ValueError naming file, line and field of what is wrong."""
    agents = []
    for n, agent in read_lines(Path(file).read_bytes(), file):
        if wrong := mismatch(agent, FIELDS):
            raise ValueError(f"{file}, line {n}, field {wrong[0]!r}: {wrong[1]}")
        agents.append(agent)
    if not agents:
        raise ValueError(f"{file}: empty; it should hold one agent per line")
    return agents


def summarize(file, machine, commit):
    """The line of a result file for one file of evaluate.py."""
    records = read_trajectories(file)
    success, error = percent(records)
    return {"agent": Path(file).stem, "round": len(records[0]["adapters"]),
            "hints": "some" if any(record["hints"] for record in records) else "none",
            "success": round(success, 1), "error": None if math.isnan(error) else round(error, 1),
            "trials": len(by_trial(records)),
            "input_tokens": round(mean_usage(records, "input_tokens")),
            "command": f"evaluate.py --table {file}", "machine": machine, "commit": commit}


def ceiling(value):
    """The next round number: 1, 2 or 5 times a power of ten."""
    power = 10 ** math.floor(math.log10(max(value, 1)))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= value)


def panel(title, agents, field, top, x0):
    """One plot of `field` over rounds, from 0 to `top`, as SVG elements; x0 is its left edge."""
    rounds = sorted({agent["round"] for agent in agents})
    span = max(rounds[-1], 1)

    def x(number):
        return x0 + LEFT + 20 + (WIDTH - LEFT - RIGHT - 40) * number / span

    def y(value):
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / top

    left, right = x0 + LEFT, x0 + WIDTH - RIGHT
    parts = [f'<text x="{left}" y="18" font-weight="bold">{escape(title)}</text>']
    for tick in range(5):
        value = top * tick / 4
        parts.append(f'<line class="axis" x1="{left}" x2="{right}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>')
        parts.append(f'<text x="{left - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:,.0f}</text>')
    for number in rounds:
        label = "not coached" if number == 0 else f"round {number}"
        parts.append(f'<text x="{x(number):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{label}</text>')
    for agent in agents:
        if agent["hints"] != "none":
            level = y(agent[field])
            parts.append(f'<line class="level" x1="{left}" x2="{right}" y1="{level:.1f}" y2="{level:.1f}"/>')
            height = level + (16 if agent[field] > top / 2 else -6)
            parts.append(f'<text x="{right}" y="{height:.1f}" text-anchor="end">hints: {escape(agent["hints"])}</text>')
    line = sorted((agent for agent in agents if agent["hints"] == "none"), key=lambda agent: agent["round"])
    points = " ".join(f'{x(agent["round"]):.1f},{y(agent[field]):.1f}' for agent in line)
    parts.append(f'<polyline class="line" points="{points}"/>')
    for agent in line:
        error = agent.get("error") or 0 if field == "success" else 0
        low, high = y(max(agent[field] - error, 0)), y(min(agent[field] + error, top))
        at = f'{x(agent["round"]):.1f}'
        value = f'{agent[field]:.1f} %' if field == "success" else f'{agent[field]:,.0f}'
        parts.append(f'<line class="line" x1="{at}" x2="{at}" y1="{low:.1f}" y2="{high:.1f}"/>')
        parts.append(f'<circle class="dot" cx="{at}" cy="{y(agent[field]):.1f}" r="3.5"/>')
        parts.append(f'<text x="{at}" y="{high - 8:.1f}" text-anchor="middle">{value}</text>')
    return "\n".join(parts)


def draw(agents):
    """Two plots side by side, as one SVG text: success with error bars, and input tokens, both by round."""
    tokens = ceiling(max(agent["input_tokens"] for agent in agents))
    success = panel("Success, %", agents, "success", 100, 0)
    reading = panel("Input tokens per task", agents, "input_tokens", tokens, WIDTH)
    size = f'width="{2 * WIDTH}" height="{HEIGHT}" viewBox="0 0 {2 * WIDTH} {HEIGHT}"'
    ground = '<rect class="ground" width="100%" height="100%"/>'
    return (f'<svg xmlns="http://www.w3.org/2000/svg" {size}>\n<style>{STYLE}</style>\n{ground}\n'
            f'{success}\n{reading}\n</svg>\n')


def main():
    parser = command_line.Parser(__doc__)
    parser.add_argument("--add", metavar="NAME", help="write docs/results/NAME.jsonl from these results of evaluate.py")
    parser.add_argument("files", nargs="*", help="with --add: one file per agent")
    parser.add_argument("--machine", default="", help="with --add: the machine that ran it")
    parser.add_argument("--commit", default="", help="with --add: the commit whose code ran")
    args = parser.parse_args()
    if bool(args.add) != bool(args.files) or args.add and not (args.machine and args.commit):
        parser.error("--add NAME needs result files, --machine and --commit")
    if args.add:
        lines = [json.dumps(summarize(file, args.machine, args.commit), ensure_ascii=False) for file in args.files]
        (DOCS / "results" / f"{args.add}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for file in sorted((DOCS / "results").glob("*.jsonl")):
        image = DOCS / "images" / f"{file.stem}.svg"
        image.write_text(draw(read_results(file)), encoding="utf-8")
        print(f"{image.relative_to(DOCS.parent)}: drawn")


if __name__ == "__main__":
    command_line.run_stage(main)
