"""The coach's pages in a real browser (Chromium, if there is one): what they show, filters, links, keys, hostile text.

The scripts in the strings run in the page; `wait()` in them lets it react.
"""

import html
import json
import math
import re
import shutil
import subprocess

import pytest

from desk import report, tables
from desk.effects import hint_effects, interval, rate
from desk.mistakes import load_mistakes
from desk.run_report import run_page

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOSTILE = ("<script>document.title = 'run'</script><img src=x onerror=\"document.title='run'\"></script>"
           "<!-- {{title}} \u2028 & &lt;b&gt;")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
         "--disable-sync", "--no-first-run", "--window-size=1300,1000", "--enable-logging=stderr",
         "--virtual-time-budget=5000", "--dump-dom"]


def trajectory(n, success=False, group="coffee", template="opening price", code='t = load("x")\nprint(t[0])',
               observation="42", text="think"):
    step = {"monologue": text, "code": code, "observation": observation, "hint": None, "token_ids": {}}
    task = {"id": f"{group}-{n}", "group": group, "template": template, "question": f"What about {n}?", "answer": "1"}
    return {"id": f"{group}-{n}#0", "task": task, "seed": 0, "adapters": [],
            "hints": [{"name": "coffee/tools", "kind": "tools", "text": "## tools: coffee"}],
            "steps": [step, step | {"code": f"done({n})  # {text}"}],
            "answer": "1" if success else f"wrong {n}", "success": success, "stop": "complete",
            "usage": {"input_tokens": 100, "output_tokens": 5, "seconds": 0.5}}


def write_jsonl(file, lines):
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def look(tmp_path, page, script="", fragment="", width=1200, theme="light"):
    """Opens a page in a frame of this width and runs `script` in it a moment later → (what `script` returned, errors in
    the console)."""
    harness = f"""<script>setTimeout(async () => {{
        const wait = () => new Promise(r => setTimeout(r, 60));
        parent.postMessage(await (async () => {{ {script} }})(), '*');
    }}, 100)</script>"""
    (tmp_path / "page.html").write_text(page.replace("</body>", harness + "</body>"), encoding="utf-8")
    (tmp_path / "frame.html").write_text(
        "<script>onmessage = e => document.body.dataset.result = JSON.stringify(e.data ?? null)</script>"
        f"<body><iframe style='width: {width}px; height: 900px; border: 0' src='page.html{fragment}'></iframe>")
    command = [BROWSER, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}",
               f"--blink-settings=preferredColorScheme={['dark', 'light'].index(theme)}",
               f"file://{tmp_path / 'frame.html'}"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    result = re.search(r'data-result="(.*?)"', run.stdout)
    assert result, run.stderr[-1000:]
    return json.loads(html.unescape(result[1])), [line for line in run.stderr.splitlines() if "CONSOLE" in line]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A review of 30 trajectories with one mistake and one correction of it."""
    folder = tmp_path_factory.mktemp("mistakes")
    (folder / "say-it.md").write_text("+++\nregex = 'done.[0-4][)]'\n+++\nSay it <b>first</b>.\n")
    m, = load_mistakes(folder)
    trajectories = [trajectory(n, success=n % 3 == 0) for n in range(20)]
    trajectories += [trajectory(n, group="flights", template=HOSTILE, text=HOSTILE, observation=HOSTILE, code=HOSTILE)
                     for n in range(10)]
    found = [(t, m, n) for t in trajectories if (n := m.first_step(t)) is not None]
    corrected = {}
    for t, _, n in found:
        better = t["steps"][n] | {"code": "done_better()"}
        corrected[t["id"], m.name] = [
            t | {"id": t["id"] + "~0", "success": True, "steps": [*t["steps"][:n], better]}]
    rows = hint_effects([m], found, corrected, {})
    flags = [(t, m.name, n) for t, m, n in found]
    return report.review_page("seen <2>", trajectories, flags, {m.name: m.hint}, rows)


HEADING = "return document.querySelector('#reading h2').textContent"
needs_browser = pytest.mark.skipif(not BROWSER, reason="no Chromium here")


@needs_browser
def test_the_page_opens_at_the_first_failure_without_an_error(page, tmp_path):
    seen, errors = look(tmp_path, page, """return [
        document.querySelector('#count').textContent,
        document.querySelector('#reading h2').textContent,
        [...document.querySelectorAll('.bar')].map(b => b.title).length,
        document.querySelectorAll('.cluster').length,
        document.querySelector('#reading pre .string').textContent,
        [...document.querySelectorAll('#overview td')].slice(0, 4).map(cell => cell.innerText)]""")
    assert not errors
    assert seen[:2] == ["30 of 30 trajectories", "coffee-1#0 wrong"]
    assert seen[2] == 5                                                        # all, two groups, a template each
    assert seen[3] == 2 and seen[4] == '"x"'
    assert seen[5] == ["10", "2", "20 %\n6 to 51\nn = 10", "100 %\n72 to 100\nn = 10"]


@needs_browser
def test_filters_search_keys_and_links(page, tmp_path):
    seen, errors = look(tmp_path, page, """
        const out = [], find = what => document.querySelector(what);
        const at = () => find('#reading h2').textContent;
        const count = () => out.push(find('#count').textContent.split(' ')[0]);
        const key = async k => {
            document.body.dispatchEvent(new KeyboardEvent('keydown', { key: k, bubbles: true }));
            await wait();
            out.push(at());
        };
        const choose = (what, value, event) => {
            find('#clear').click();
            find(what).value = value;
            find(what).dispatchEvent(new Event(event));
            count();
        };
        await key('n'); await key('n'); await key('p'); await key('j');
        find('.bar[title=flights]').click(); count();
        await key('n');
        find('#clear').click(); count();
        choose('#outcome', 'right', 'change');
        choose('#mistake', 'say-it', 'change');
        choose('#search', 'ABOUT 7?', 'input');
        out.push(location.hash);
        return out;""")
    assert not errors
    assert seen == ["coffee-2#0 wrong", "coffee-4#0 wrong", "coffee-2#0 wrong", "coffee-3#0 right", "10",
                    "flights-0#0 wrong", "30", "7", "10", "2", "#id=flights-0%230"]
    seen, errors = look(tmp_path, page, HEADING, fragment="#id=flights-4%230")
    assert seen == "flights-4#0 wrong" and not errors


@needs_browser
def test_mistake_hint_and_corrected_action_stand_side_by_side(page, tmp_path):
    (text, pairs), _ = look(tmp_path, page, """return [
        document.querySelector('.step.flagged').textContent,
        document.querySelectorAll('.pair').length]""", fragment="#id=coffee-2%230")
    assert "flagged: say-it" in text and "Say it <b>first</b>." in text
    assert "done_better()" in text and "→ right" in text and pairs == 1


@needs_browser
def test_the_way_back_is_the_way_one_came_and_ends_at_the_beginning(page, tmp_path):
    seen, errors = look(tmp_path, page, """
        const out = [], find = what => document.querySelector(what);
        const key = async k => {
            const focused = document.activeElement ?? document.body;
            focused.dispatchEvent(new KeyboardEvent('keydown', { key: k, bubbles: true }));
            await wait();
            out.push(find('#reading h2').textContent);
        };
        find('#overview [type=checkbox]').focus();
        find('#overview [type=checkbox]').click();                    // a box just ticked swallows no keys
        if (document.activeElement !== document.body) out.push('the focus stays in the box');
        find('#outcome').focus();
        find('#outcome').dispatchEvent(new Event('change'));          // neither does a filter just chosen
        for (const k of 'njbbb') await key(k);
        document.querySelectorAll('.row')[5].click(); await wait(); await key('b');
        return out;""")
    assert not errors
    assert seen == ["coffee-2#0 wrong", "coffee-3#0 right", "coffee-2#0 wrong", *["coffee-1#0 wrong"] * 3]


@needs_browser
@pytest.mark.parametrize("fragment", ["#id=gone%230", "#id=%zz", "#id="])
def test_a_link_to_nothing_says_so(page, tmp_path, fragment):
    seen, errors = look(tmp_path, page, "return document.querySelector('#reading').textContent", fragment=fragment)
    assert not errors and seen.startswith("There is no trajectory ")


@needs_browser
def test_the_same_error_in_two_templates_is_one_cluster_with_both(tmp_path):
    trajectories = [
        *(trajectory(n, template=f"price {n % 3}", observation=f"KeyError: \"there is no column '{n}' here\"")
          for n in range(10)),
        *(trajectory(n, group="all right", success=True) for n in range(5))]
    seen, errors = look(tmp_path, report.review_page("one", trajectories, [], {}, {}), """
        const clusters = () => [...document.querySelectorAll('.cluster')];
        const shown = () => clusters().filter(c => c.offsetHeight).map(c => c.innerText.replace(/\\s+/g, ' '));
        const out = [shown()];
        clusters()[0].click(); out.push(shown());
        clusters()[1].click();
        out.push(document.querySelector('#count').textContent, document.querySelector('#clear').textContent);
        return out;""")
    one = '10 × KeyError: there is no column "…" here in 3 templates'
    assert not errors
    assert seen == [[one], [one, "4 × coffee · price 0", "3 × coffee · price 1", "3 × coffee · price 2"],
                    "4 of 15 trajectories", '× coffee · price 0 · KeyError: there is no column "…" here']


@needs_browser
def test_two_hint_sections_of_one_name_are_both_shown(tmp_path):
    hints = [{"name": "coffee/coffee", "kind": kind, "text": f"## {kind}: coffee"} for kind in ("tools", "practice")]
    two = report.review_page("two", [trajectory(0) | {"hints": hints}], [], {}, {})
    seen, errors = look(tmp_path, two, "return document.querySelector('#reading details').textContent")
    assert not errors
    assert seen == ("hint sections in the prompt: 2"
                    "coffee/coffee (tools)## tools: coffeecoffee/coffee (practice)## practice: coffee")


@needs_browser
@pytest.mark.parametrize("only", [
    trajectory(0, success=True),
    trajectory(0) | {"steps": [], "answer": "", "stop": "length"},
    trajectory(0, text="half of \ud83d")])
def test_pages_with_next_to_nothing_open(tmp_path, only):
    seen, errors = look(tmp_path, report.review_page("few", [only], [], {}, {}), HEADING)
    assert not errors and seen.startswith("coffee-0#0")


@needs_browser
@pytest.mark.parametrize("width", [1200, 390])
def test_what_an_agent_wrote_is_text_and_nothing_runs(page, tmp_path, width):
    seen, errors = look(tmp_path, page, """return [
        document.title,
        document.querySelectorAll('img').length,
        document.querySelector('#reading').textContent.includes('onerror='),
        document.documentElement.scrollWidth]""", fragment="#id=flights-7%230", width=width)
    assert not errors and seen[0] == "seen <2>" and seen[1] == 0 and seen[2] and "default-src 'none'" in page
    assert seen[3] <= width                                                    # nothing sticks out


# → [the lowest contrast of a text with its ground and where it is, the page's brightness], as WCAG 2 defines both
CONTRAST = """
    const rgb = color => color.match(/[0-9.]+/g).map(Number);
    const linear = v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
    const behind = e => {
        for (; e; e = e.parentElement) {
            const c = rgb(getComputedStyle(e).backgroundColor);
            if (c.length < 4 || c[3] > 0.5) return light(c);
        }
        return 1;
    };
    const hasText = e => [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    const contrasts = [...document.querySelectorAll('body *')].filter(e => e.offsetWidth && hasText(e)).map(e => {
        const [a, b] = [light(rgb(getComputedStyle(e).color)), behind(e)].sort((x, y) => y - x);
        return [(a + 0.05) / (b + 0.05), e.tagName + '.' + e.className];
    });
    const worst = contrasts.sort((x, y) => x[0] - y[0])[0];
    return [worst, light(rgb(getComputedStyle(document.body).backgroundColor))];"""


@needs_browser
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_in_both_themes_all_text_can_be_read(page, tmp_path, theme):
    for html_ in (page, run_of_three_trials(tmp_path)):
        (worst, ground), errors = look(tmp_path, html_, CONTRAST, theme=theme)
        assert not errors and (ground > 0.8 if theme == "light" else ground < 0.1), (theme, ground)
        assert worst[0] >= 4.5, worst                                          # as WCAG 2 asks of text, level AA


def run_of_three_trials(tmp_path):
    """The page of one agent: of ten tasks 4, 6 and 8 are right in three trials."""
    file = tmp_path / "3-round1.jsonl"
    write_jsonl(file, [trajectory(n, n < 4 + 2 * trial) | {"hints": [], "id": f"coffee-{n}#{trial}"}
                       for n in range(10) for trial in range(3)])
    return run_page([file])


@needs_browser
def test_the_bar_of_an_error_is_as_long_as_the_standard_error_over_the_trials(tmp_path):
    seen, errors = look(tmp_path, run_of_three_trials(tmp_path), """
        const lines = [...document.querySelectorAll('path.line')].map(p => p.getAttribute('d'));
        const bar = lines.find(d => d.includes('V'));
        const scale = document.querySelector('svg').querySelectorAll('line.axis');
        return [bar.match(/M[0-9.]+ ([0-9.]+)V([0-9.]+)/).slice(1).map(Number),
                scale[0].getAttribute('y1') - scale[1].getAttribute('y1'),
                [...document.querySelectorAll('title')].map(t => t.textContent)]""")
    (high, low), quarter, titles = seen
    error = (20 ** 2 / 3) ** 0.5                                               # of 40, 60 and 80 %
    assert not errors and f"3-round1: 60% ± {error:.1f}".replace("60%", "60 %") in titles
    assert (low - high) / quarter * 25 == pytest.approx(2 * error, rel=1e-3)


@needs_browser
def test_ten_thousand_trajectories_need_few_rows(tmp_path):
    page = report.review_page("many", [trajectory(n) for n in range(10_000)], [], {}, {})
    seen, errors = look(tmp_path, page, """
        const list = document.querySelector('#list');
        list.scrollTop = 28 * 9000;
        list.dispatchEvent(new Event("scroll"));
        await wait();
        const rows = [...document.querySelectorAll('.row')];
        return [rows.length, rows.some(r => r.textContent.includes('coffee-9001#0'))]""")
    assert not errors and seen[0] < 60 and seen[1]


@needs_browser
def test_the_page_of_a_run_has_a_chart_a_group(tmp_path, monkeypatch):
    runs, adapter = tmp_path / "runs", tmp_path / "runs" / "round1"
    adapter.mkdir(parents=True)
    write_jsonl(adapter / "log.jsonl", [{"update": n, "loss": 1 / (n + 1) if n else math.nan} for n in range(20)])
    write_jsonl(runs / "hinted.jsonl", [trajectory(0)])
    (adapter / "arguments.json").write_text(json.dumps({"data": ["runs/hinted.jsonl"]}))
    results = {"0-none": (0, {"hints": []}), "1-task": (18, {}),
               "3-round1": (15, {"hints": [], "adapters": ["runs/round1"]})}
    for name, (right, more) in results.items():
        write_jsonl(runs / f"{name}.jsonl", [
            trajectory(n, n < right, group=("coffee", "flights")[n % 2]) | more for n in range(20)])
    monkeypatch.chdir(report.PAGES)                                   # paths are as they were where the stages ran
    page = run_page([runs / f"{name}.jsonl" for name in results])
    seen, errors = look(runs, page, """
        const texts = what => [...document.querySelectorAll(what)].map(e => e.textContent);
        return [texts('figcaption'), texts('title'), document.querySelector('details').textContent,
                document.querySelectorAll('.hinted').length,
                document.querySelector('.line').getAttribute('d').match(/[ML]/g).join('')]""")
    assert not errors
    captions, titles, hints, hinted, line = seen
    assert captions == ["all", "coffee", "flights", "summed over a task's prompts", "round1"]
    assert "3-round1: 75 %" in titles and hints == "coffee/tools (tools)## tools: coffee"
    assert hinted == 3 and line == "ML"                               # the agent with hints stands beside the line


def test_failures_that_look_alike_are_told_by_their_end():
    assert report.what_failed(trajectory(3)) == report.what_failed(trajectory(5)) == "complete: done(0)  # think"
    assert report.what_failed(trajectory(3, observation="Traceback\n  x\nKeyError: 'price 3'")) == "KeyError: \"…\""
    wrong_column = trajectory(3, observation="KeyError: \"no column 'Opening'; Open, Close\"")
    assert report.what_failed(trajectory(4, observation="world.NoBook: 3\njson.JSONDecodeError: 4")).startswith("json.")
    assert report.what_failed(wrong_column) == 'KeyError: no column "…"; Open, Close'


def test_results_of_one_name_are_told_apart_by_their_folders():
    assert tables.names(["a/test.jsonl", "b/test.jsonl", "b/other.jsonl"]) == ["a/test.jsonl", "b/test.jsonl", "other"]


def test_wilsons_interval_is_that_of_the_textbook():
    assert interval(8, 10) == pytest.approx((49.0, 94.3), abs=0.1)
    assert interval(0, 10) == pytest.approx((0, 27.8), abs=0.1)


def test_tries_of_one_task_that_end_alike_count_once():
    apart, alike = [[n < 8] for n in range(10)], [[n < 8] * 5 for n in range(10)]
    assert rate(apart) == "80 % (49 to 94, n = 10)" and rate(alike) == "80 % (49 to 94, n = 50)"
    no_task_easier = [[True, True, True, True, False]] * 10                    # than another: all attempts count
    assert rate(no_task_easier) == "80 % (67 to 89, n = 50)"
    assert rate([]) == "–"
