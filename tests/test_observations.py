"""What a model sees of the code it writes, observation by observation.

    python -m pytest tests/test_observations.py
"""

import importlib.util
import re
from pathlib import Path

import pytest

from tools import toolqa
from tools.sandbox import Limits, World

NOTHING = "(nothing was printed: print(x) shows a value, x alone on the last line does not)\n"
GIVEN = ("Note: complete_task and the tools are given and need no definition. "
         "The next step has the given {} again.\n")
GOES_ON = "The task goes on. Only complete_task(report, answer) ends it.\n"
# What a model writes in a world of toolqa's, and what it then sees.
CASES = [
    ("from tools import load_db\nprint(len(load_db('coffee')))", "2\n"),
    ("import tools\nt = tools.load_db('coffee')\nprint(len(t))", "2\n"),
    ("import toolqa\nprint(len(toolqa.load_db('coffee')))", "2\n"),
    ("x = 6 * 7\nx", NOTHING),
    ("exit()", GOES_ON),
    ("!pip install pandas", "SyntaxError: !pip install pandas: there is no shell and no network here, only Python\n"),
    ("def complete_task(report, answer):\n    print(answer)\ncomplete_task('x', '1')",
     "1\n" + GIVEN.format("complete_task")),
    ("t = load_db('coffee')\nrows = data_filter(t, 'Prize>3')\nprint(rows)", """\
Traceback (most recent call last):
  File "<python>", line 2, in <module>
    rows = data_filter(t, 'Prize>3')
ValueError: there is no column of coffee "Prize"; did you mean "Price"? There are: Date, Price
"""),
    ("print(data_filter(load_db('coffee'), \"Date='2020-01-02'\")[0]['Price'])", "3.5\n"),
]
LIBRARY = '''
books = {}

def _open(data):
    books.update({"Ada Lind": ["Ice", "Snow"]})

def books_by(author):
    """The titles of an author's books."""
    if author not in books:
        raise ValueError(f"there is no author {author}; there are: {', '.join(books)}")
    return books[author]

def shelves():
    """All authors."""
    return list(books)
'''


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    place = tmp_path_factory.mktemp("place")
    (place / "library.py").write_text(LIBRARY)
    with World(place / "library.py", place) as world:
        yield world


@pytest.fixture
def box(world):
    with world.start() as box:
        yield box


@pytest.fixture(scope="module")
def coffee(tmp_path_factory):
    place = tmp_path_factory.mktemp("coffee")
    rows = [{"Date": "2020-01-02", "Price": 3.5}, {"Date": "2020-01-03", "Price": 4}]
    toolqa._write_world(place / "world.sqlite", {"coffee": rows}, {}, [])
    with World(Path(toolqa.__file__), place) as world:
        yield world


@pytest.mark.parametrize("code, text", CASES)
def test_what_a_model_writes_and_what_it_sees(coffee, code, text):
    with coffee.start() as box:
        assert box.run(code) == (text, None, False)
        assert box.run("complete_task('', len(load_db('coffee')))").completed == ("", "2")


# ---- the tools can be imported, though they need not be ----

@pytest.mark.parametrize("code", [
    "from library import books_by\nprint(books_by('Ada Lind'))",
    "from tools import books_by\nprint(books_by('Ada Lind'))",
    "from tools import *\nprint(books_by('Ada Lind'))",
    "from tools.library import books_by\nprint(books_by('Ada Lind'))",
    "import library\nprint(library.books_by('Ada Lind'))",
    "import tools\nprint(tools.books_by('Ada Lind'))",
    "import tools as t\nprint(t.books_by('Ada Lind'))",
    "import tools.library\nprint(tools.library.books_by('Ada Lind'))",
])
def test_an_imported_tool_is_the_worlds_own_with_its_data(box, code):
    assert box.run(code).text == "['Ice', 'Snow']\n"


def test_complete_task_can_be_imported_too(box):
    assert box.run("from tools import complete_task, books_by\ncomplete_task('r', 1)").completed == ("r", "1")


def test_what_a_step_changes_in_the_tools_module_is_restored(box):
    box.run("import tools\ntools.complete_task = print\ndel tools.books_by")
    assert box.run("print(tools.books_by('Ada Lind'))").text == "['Ice', 'Snow']\n"
    assert box.run("tools.complete_task('r', 'a')").completed == ("r", "a")


def test_nothing_of_this_project_is_imported_by_the_name_of_tools(box):
    assert "cannot import name 'sandbox'" in box.run("from tools import sandbox").text \
        or "tools has no sandbox" in box.run("from tools import sandbox").text


def test_a_tool_file_named_like_a_standard_module_does_not_hide_it(tmp_path):
    (tmp_path / "json.py").write_text("def tool():\n    return 7\n")
    with World(tmp_path / "json.py") as world, world.start() as box:
        assert box.run("import json, tools\nprint(json.dumps([1]), tools.tool())").text == "[1] 7\n"


def test_without_a_tool_file_there_is_still_complete_task_to_import():
    with World(None) as world, world.start() as box:
        assert box.run("import tools\ntools.complete_task('r', 1)").completed == ("r", "1")


def test_a_tool_that_is_not_there_is_answered_with_those_that_are(box):
    for name in "tools", "library":
        assert box.run(f"from {name} import lend").text == (
            "ImportError: tools has no lend; the tools are books_by, shelves, complete_task\n")


@pytest.mark.parametrize("name", ["nowhere", "books_by", "tools.books_by"])
def test_a_missing_package_is_one_line_that_says_what_there_is(box, name):
    packages = "the standard library" + " and numpy" * bool(importlib.util.find_spec("numpy"))
    text = box.run(f"x = 1\nimport {name} as n").text
    assert text.startswith(f"ModuleNotFoundError: there is no {name} here, only {packages}") and text.count("\n") == 1
    assert text.endswith("; complete_task and the tools are defined already and need no import\n")


# ---- what shows nothing, and what does not end the task ----

@pytest.mark.parametrize("code", ["x = 6 * 7\nx", "x = 1", "", "# a comment", "def f():\n    print(1)", "6 * 7"])
def test_a_step_that_prints_nothing_is_told_how_to_print(box, code):
    assert box.run(code).text == NOTHING


def test_a_step_that_prints_is_shown_what_it_printed_and_no_more(box):
    for code, text in ("print(1)", "1\n"), ("print(1, end='')", "1"), ("print()", "\n"), ("print(1)\n2", "1\n"):
        assert box.run(code).text == text
    assert box.run("complete_task('r', 'a')") == ("", ("r", "a"), False)


@pytest.mark.parametrize("leave, text", [
    ("exit()", GOES_ON), ("quit()", GOES_ON), ("import sys; sys.exit(1)", GOES_ON), ("raise SystemExit", GOES_ON),
    ("print(1); exit()", "1\n" + GOES_ON), ("import sys; sys.exit('no such day')", "no such day\n" + GOES_ON),
])
def test_leaving_python_does_not_end_the_task(box, leave, text):
    assert box.run("x = 5\n" + leave) == (text, None, False)
    assert box.run("print(x)").text == "5\n"


def test_a_step_that_prints_too_much_keeps_its_variables_and_both_ends_of_what_it_printed(tmp_path):
    with World(None, limits=Limits(printed=100_000, output=100)) as world, world.start() as box:
        text = box.run("x = 5\nprint('é' * 10**6, end='')\nprint('b' * 10**6)").text
        assert text == "é" * 50 + "\n[… 1,999,901 characters left out …]\n" + "b" * 49 + "\n"
        assert box.run("print(x)").text == "5\n"


# ---- no shell, no network ----

@pytest.mark.parametrize("code", [
    "!pip install pandas", "x = 1\n!ls", "%pip install pandas\nimport pandas", "pip install x",
    "python -m pip install x", "  !ls", "%%bash\nls",
])
def test_a_line_for_the_shell_is_one_line(box, code):
    line, = [line for line in code.split("\n") if "pip i" in line or line.strip()[0] in "!%"]
    assert box.run(code).text == f"SyntaxError: {line.strip()}: there is no shell and no network here, only Python\n"


@pytest.mark.parametrize("code", [
    "import asyncio\nasyncio.run(asyncio.sleep(0))",
    "import asyncio\nasync def main():\n    print(1)\nasyncio.run(main())",
    "import subprocess\nsubprocess.run(['ls'])",
    "import urllib.request\nurllib.request.urlopen('http://example.com')",
])
def test_what_needs_a_socket_or_a_process_is_a_short_error(box, world, code):
    if world.missing:
        pytest.skip(f"this system does not keep the code from: {', '.join(world.missing)}")
    lines = box.run(code).text.splitlines()
    last = code.splitlines()[-1]
    assert lines[:3] == ["Traceback (most recent call last):",
                         f'  File "<python>", line {code.count(chr(10)) + 1}, in <module>', f"    {last}"]
    assert len(lines) == 4 and lines[3].endswith("; there is no shell, no network and no asyncio here")


# ---- errors: the agent's own line and the message ----

ERRORS = {
    "the line": ("x = 1\nprint(1 / 0)", """\
Traceback (most recent call last):
  File "<python>", line 2, in <module>
    print(1 / 0)
ZeroDivisionError: division by zero
"""),
    "this step's line and the one that failed": (
        "def a():\n    b()\ndef b():\n    c()\ndef c():\n    books['x']\na()", """\
  File "<python>", line 7, in <module>
    a()
  File "<python>", line 6, in c
    books['x']
NameError: name 'books' is not defined
"""),
    "in a tool": ("print(\n    books_by('Bo'))", """\
Traceback (most recent call last):
  File "<python>", line 2, in <module>
    books_by('Bo'))
ValueError: there is no author Bo; there are: Ada Lind
"""),
    "a tool called wrongly": ("books_by()", """\
Traceback (most recent call last):
  File "<python>", line 1, in <module>
    books_by()
TypeError: books_by() missing 1 required positional argument: 'author'; it is called as books_by(author)
"""),
    "the task completed wrongly": ("complete_task('42', 'x', 3)", """\
Traceback (most recent call last):
  File "<python>", line 1, in <module>
    complete_task('42', 'x', 3)
TypeError: complete_task() takes 2 positional arguments but 3 were given; it is called as complete_task(report, answer)
"""),
    "a syntax error": ("x = 1\nfor i in range(3)\n    print(i)", """\
  File "<python>", line 2
    for i in range(3)
                     ^
SyntaxError: expected ':'
"""),
    "a syntax error that the compiler finds late": ("x = 1\nreturn x", """\
  File "<python>", line 2
    return x
    ^^^^^^^^
SyntaxError: 'return' outside function
"""),
    "a syntax error in a text": ("eval('1 +')", """\
Traceback (most recent call last):
  File "<python>", line 1, in <module>
    eval('1 +')
SyntaxError: invalid syntax
"""),
    "a message of many lines": ("raise ValueError('\\n'.join('abcdef'))", """\
  File "<python>", line 1, in <module>
    raise ValueError('\\n'.join('abcdef'))
ValueError: a
b
c
"""),
    "in a thread": ("import threading\nt = threading.Thread(target=lambda: 1 / 0); t.start(); t.join()", """\
Traceback (most recent call last):
  File "<python>", line 2, in <lambda>
    t = threading.Thread(target=lambda: 1 / 0); t.start(); t.join()
ZeroDivisionError: division by zero
"""),
}


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_is_the_agents_own_line_and_the_message(box, name):
    code, text = ERRORS[name]
    assert box.run(code).text == text and text.count("\n") <= 5


@pytest.mark.parametrize("code", [
    "import tools\ntools.lend", "import library\nlibrary.x", "from library import x", "from json import x",
    "import json.x",
    "import json; json.loads('{')", "import re; re.compile('(')", "from statistics import mean; mean('abc')",
    "import warnings\ndef f(): warnings.warn('old', stacklevel=1)\nf()\nimport ast; ast.literal_eval('1 + x')",
    "class A:\n    def __del__(self): 1 / 0\nA()\nprint('x')", "import decimal; decimal.Decimal('x')",
    "import warnings; warnings.warn_explicit('old', RuntimeWarning, '/usr/lib/python3/x.py', 3)",
])
def test_no_observation_names_a_path_of_ours(box, code):
    text = box.run(code).text
    assert text and not re.search(r"(^|[\s'\"(])/\w|site-packages|world", text)


# ---- the tools stay the world's own ----

@pytest.mark.parametrize("code, printed, names", [
    ("def complete_task(report, answer):\n    print(answer)\ncomplete_task('x', '1')", "1\n", "complete_task"),
    ("class books_by: pass", "", "books_by"),
    ("books_by = books_by('Ada Lind')\nprint(books_by)", "['Ice', 'Snow']\n", "books_by"),
    ("del books_by, complete_task", "", "books_by, complete_task"),
    ("from os import *\nfrom tools import *", None, None),
])
def test_a_redefined_tool_is_the_worlds_own_again_in_the_next_step(box, code, printed, names):
    assert box.run(code).text == (NOTHING if names is None else printed + GIVEN.format(names))
    assert box.run("print(books_by('Ada Lind'))").text == "['Ice', 'Snow']\n"
    assert box.run("complete_task('x', 1)").completed == ("x", "1")
