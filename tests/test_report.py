"""The coach's pages in a real browser (Chromium, if there is one): what they show, filters, links, keys, hostile text."""
import html
import json
import re
import shutil
import subprocess

import pytest

import evaluate
import report
import review

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOSTILE = "<script>document.title = 'run'</script><img src=x onerror=\"document.title='run'\"></script><!-- {{title}} \u2028 & &lt;b&gt;"


def trajectory(n, success=False, group="coffee", template="opening price", code='t = load("x")\nprint(t[0])', observation="42", text="think"):
    step = {"monologue": text, "code": code, "observation": observation, "hint": None, "token_ids": {}}
    return {"id": f"{group}-{n}#0", "task": {"id": f"{group}-{n}", "group": group, "template": template, "question": f"What about {n}?", "answer": "1"}, "seed": 0,
            "adapters": [], "hints": [{"name": "coffee/tools", "kind": "tools", "text": "## tools: coffee"}], "steps": [step, step | {"code": f"done({n})  # {text}"}],
            "answer": "1" if success else f"wrong {n}", "success": success, "stop": "complete", "usage": {"input_tokens": 100, "output_tokens": 5, "seconds": 0.5}}


def look(tmp_path, page, script="", fragment="", width=1200):
    """Opens a page, runs `script` in it a moment later → (what `script` returned, the page's text, errors in the console)."""
    file = tmp_path / "page.html"
    harness = f"<script>setTimeout(async () => {{ const wait = () => new Promise(r => setTimeout(r, 60)); const result = await (async () => {{ {script} }})(); document.body.dataset.result = JSON.stringify(result ?? null); }}, 100)</script>"
    file.write_text(page.replace("</body>", harness + "</body>"), encoding="utf-8")
    run = subprocess.run([BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run",
                          f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900", "--enable-logging=stderr", "--virtual-time-budget=5000", "--dump-dom", f"file://{file}{fragment}"],
                         capture_output=True, text=True, timeout=120)
    result = re.search(r'data-result="(.*?)"', run.stdout)
    assert result, run.stderr[-1000:]
    return json.loads(html.unescape(result[1])), run.stdout, [line for line in run.stderr.splitlines() if "CONSOLE" in line]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A review of 30 trajectories with one mistake and one correction of it."""
    folder = tmp_path_factory.mktemp("mistakes")
    (folder / "say-it.md").write_text("+++\nregex = 'done.[0-4][)]'\n+++\nSay it <b>first</b>.\n")
    mistakes = review.load_mistakes(folder)
    trajectories = [trajectory(n, success=n % 3 == 0) for n in range(20)] + [trajectory(n, group="flights", template=HOSTILE, text=HOSTILE, observation=HOSTILE, code=HOSTILE) for n in range(10)]
    found = [(t, m, n) for t in trajectories for m in mistakes if (n := m.first_step(t)) is not None]
    corrected = {(t["id"], m.name): [t | {"id": t["id"] + "~0", "success": True, "steps": t["steps"][:n] + [t["steps"][n] | {"code": "done_better()"}]}] for t, m, n in found}
    table = review.effects(mistakes, found, corrected, {})
    return report.review_page("seen <2>", trajectories, [(t, m.name, n) for t, m, n in found], {m.name: m.hint for m in mistakes}, table)


needs_browser = pytest.mark.skipif(not BROWSER, reason="no Chromium here")


@needs_browser
def test_the_page_opens_at_the_first_failure_without_an_error(page, tmp_path):
    seen, _, errors = look(tmp_path, page, """return [document.querySelector('#count').textContent, document.querySelector('#reading h2').textContent,
        [...document.querySelectorAll('.bar')].map(b => b.title).length, document.querySelectorAll('.cluster').length, document.querySelector('#reading pre .string').textContent,
        document.querySelector('#overview td:nth-child(2)').textContent, document.querySelector('#overview td:nth-child(4)').textContent]""")
    assert not errors
    assert seen[:2] == ["30 of 30 trajectories", "coffee-1#0 wrong"] and seen[2] == 4                 # two groups, a template each
    assert seen[3] == 2 and seen[4] == '"x"' and seen[5] == "10" and seen[6].startswith("100 % (72 to 100, n = 10)")


@needs_browser
def test_filters_search_keys_and_links(page, tmp_path):
    seen, _, errors = look(tmp_path, page, """
        const count = () => document.querySelector('#count').textContent.split(' ')[0], at = () => document.querySelector('#reading h2').textContent, out = [];
        const key = async k => { document.body.dispatchEvent(new KeyboardEvent('keydown', { key: k, bubbles: true })); await wait(); out.push(at()); };
        await key('n'); await key('n'); await key('p'); await key('j');
        document.querySelector('[data-group=flights]').click(); out.push(count());
        await key('n');
        document.querySelector('#clear').click(); out.push(count());
        document.querySelector('#outcome').value = 'right'; document.querySelector('#outcome').dispatchEvent(new Event('change')); out.push(count());
        document.querySelector('#clear').click(); document.querySelector('#mistake').value = 'say-it'; document.querySelector('#mistake').dispatchEvent(new Event('change')); out.push(count());
        document.querySelector('#clear').click(); document.querySelector('#search').value = 'ABOUT 7?'; document.querySelector('#search').dispatchEvent(new Event('input')); out.push(count());
        out.push(location.hash);
        return out;""")
    assert not errors
    assert seen == ["coffee-2#0 wrong", "coffee-4#0 wrong", "coffee-2#0 wrong", "coffee-3#0 right", "10", "flights-0#0 wrong", "30", "7", "10", "2", "#id=flights-0%230"]
    seen, _, errors = look(tmp_path, page, "return document.querySelector('#reading h2').textContent", fragment="#id=flights-4%230")
    assert seen == "flights-4#0 wrong" and not errors


@needs_browser
def test_mistake_hint_and_corrected_action_stand_side_by_side(page, tmp_path):
    seen, _, _ = look(tmp_path, page, "return [document.querySelector('.step.flagged').textContent, document.querySelectorAll('.pair').length]", fragment="#id=coffee-2%230")
    assert "flagged: say-it" in seen[0] and "Say it <b>first</b>." in seen[0] and "done_better()" in seen[0] and "→ right" in seen[0] and seen[1] == 1


@needs_browser
@pytest.mark.parametrize("width", [1200, 400])
def test_what_an_agent_wrote_is_text_and_nothing_runs(page, tmp_path, width):
    seen, dom, errors = look(tmp_path, page, "return [document.title, document.querySelectorAll('img, b.x').length, document.querySelector('#reading').textContent.includes('onerror='), document.documentElement.scrollWidth]",
                             fragment="#id=flights-7%230", width=width)
    assert not errors and seen[0] == "seen <2>" and seen[1] == 0 and seen[2]
    assert seen[3] <= max(width, 500)                                          # nothing sticks out (a window is at least 500 wide)


@needs_browser
def test_ten_thousand_trajectories_need_few_rows(tmp_path):
    page = report.review_page("many", [trajectory(n) for n in range(10_000)], [], {}, {})
    seen, _, errors = look(tmp_path, page, """const list = document.querySelector('#list'); list.scrollTop = 28 * 9000; list.dispatchEvent(new Event("scroll")); await wait();
        return [document.querySelectorAll('.row').length, [...document.querySelectorAll('.row')].some(r => r.textContent.includes('coffee-9001#0'))]""")
    assert not errors and seen[0] < 60 and seen[1]


@needs_browser
def test_the_page_of_a_run_has_a_chart_a_group(tmp_path):
    adapter = tmp_path / "round1"
    adapter.mkdir()
    (adapter / "log.jsonl").write_text("".join(json.dumps({"update": n, "loss": 1 / (n + 1)}) + "\n" for n in range(20)))
    (tmp_path / "hinted.jsonl").write_text(json.dumps(trajectory(0)) + "\n")
    (adapter / "arguments.json").write_text(json.dumps({"data": [str(tmp_path / "hinted.jsonl")]}))
    for name, right in (("0-none", 0), ("3-round1", 15)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(trajectory(n, n < right) | {"adapters": [str(adapter)] * bool(right)}) + "\n" for n in range(20)))
    page = evaluate.run_page([tmp_path / "0-none.jsonl", tmp_path / "3-round1.jsonl"])
    seen, _, errors = look(tmp_path, page, """return [[...document.querySelectorAll('figcaption')].map(f => f.textContent), [...document.querySelectorAll('title')].map(t => t.textContent),
        document.querySelector('details').textContent]""")
    assert not errors
    assert seen[0] == ["all", "coffee", "summed over a task's prompts", "round1"] and "3-round1: 75 %" in seen[1] and seen[2] == "coffee/tools## tools: coffee"


def test_failures_that_look_alike_are_told_by_their_end():
    assert report.what_failed(trajectory(3)) == report.what_failed(trajectory(5)) == "complete: done(0)  # think"
    assert report.what_failed(trajectory(3, observation="Traceback\n  x\nKeyError: 'price 3'")) == "KeyError: \"…\""


def test_wilsons_interval_is_that_of_the_textbook():
    assert report.interval(8, 10) == pytest.approx((49.0, 94.3), abs=0.1) and report.interval(0, 10) == pytest.approx((0, 27.8), abs=0.1)
