"""What a model sees of the code it writes, observation by observation.

    python -m pytest tests/test_observations.py
"""
import pytest

from tools.sandbox import World

LIBRARY = '''
books = {}

def _open(data):
    books.update({"Ada Lind": ["Ice", "Snow"]})

def books_by(author):
    """The titles of an author's books."""
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


def test_a_tool_file_named_like_a_standard_module_does_not_hide_it(tmp_path):
    (tmp_path / "json.py").write_text("def tool():\n    return 7\n")
    with World(tmp_path / "json.py") as world, world.start() as box:
        assert box.run("import json, tools\nprint(json.dumps([1]), tools.tool())").text == "[1] 7\n"


def test_without_a_tool_file_there_is_still_complete_task_to_import():
    with World(None) as world, world.start() as box:
        assert box.run("import tools\ntools.complete_task('r', 1)").completed == ("r", "1")
