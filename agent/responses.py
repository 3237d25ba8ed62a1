"""What a response says: the monologue and the code in it.

Models forget or repeat the tags, fence the code, indent it, talk around it, think before it, import their tools, and
go on with observations that they made up. Here the code is found wherever it stands; the record keeps what was sampled.
"""

import ast
import re
import textwrap
import warnings

from agent.protocol import TAG, THOUGHT_TAG

CODE_BEGINS = re.compile(r"^[ \t]*<python>|<python>[ \t]*$", re.M)      # not "between <python> and </python>"


def monologue_in(text: str) -> tuple[str, str]:
    """A response to the request for a monologue → (the monologue, the code that the model went on to write).

    The code is "" if the monologue's tag was closed before it, as it should be."""
    text = (_after_thoughts(text) or _last(THOUGHT_TAG.split(text))).partition("<observation>")[0]
    text, closed, _ = text.partition("</inner_monologue>")
    text = re.split(r"(?:<inner_monologue>\s*)+", text, maxsplit=1)[-1]
    opened = not closed and CODE_BEGINS.search(text)
    code = code_in(text[opened.start():]) if opened else ""
    return (text[:opened.start()] if code else text).strip(), code


def code_in(text: str) -> str:
    """The first code in a response to the request for code; "" if there is none."""
    body = re.sub(r"\A(?:\s*<python>)+", "", text).partition("</python>")[0]
    if "<python>" not in body and _is_code(body):       # the expected form; any other tag or fence is inside a string
        return _dedented(body)
    parts = ["", *TAG.split(_after_thoughts(text)), ""]
    pieces = list(zip(parts[::2], parts[1::2], parts[2::2]))            # (the tag before it, text, the tag after it)
    tagged = [piece for before, piece, after in pieces
              if before == "<python>" or after in ("</python>", "<observation>")]
    untagged = [piece for before, piece, after in pieces if not before[1:2].isalpha() and after[1:2] != "/"]
    return next(filter(None, map(_unfenced, [*tagged, *untagged, pieces[0][1]])), "")


def before_stop(text: str, stops: list[str], ended: bool = False) -> tuple[str, str | None]:
    """What a text says before the first of the `stops`, and which one that was. Unless it has ended, without what may
    yet become one."""
    found = [(text.index(one), one) for one in stops if one in text]
    if found:
        at, one = min(found)
        return text[:at], one
    begun = (n for one in stops if not ended for n in range(1, len(one)) if text.endswith(one[:n]))
    return text[:len(text) - max(begun, default=0)], None


def _after_thoughts(text):
    """What a reasoning model says after its thoughts."""
    *thoughts, rest = re.split("</think(?:ing)?>", text)
    return re.split("<think(?:ing)?>", rest if rest.strip() else _last(thoughts))[0].strip("\n")


def _last(pieces):
    """The last piece that is not blank. Pieces are never joined: the record's text must occur in what was sampled."""
    return next((piece for piece in reversed(pieces) if piece.strip()), "")


def _unfenced(text):
    """The code in Markdown fences; without fences, the text itself."""
    before, *blocks = [text] if _is_code(text) else re.split("`{3,}", text)
    blocks = sorted(map(_block, blocks[::2]), key=lambda block: block[0])
    codes = [before, *(code for _, code in blocks)]
    if blocks and (blocks[0][0] != 1 or _is_code(blocks[0][1]) or not _is_code(before)):
        codes.append(codes.pop(0))                      # otherwise the first fence closes one that was never opened
    return next(filter(None, map(_dedented, codes)), "")


def _block(text):
    """The content of a fence → (its language: 0 Python, 1 not named, 2 another one; its code)."""
    line, newline, rest = text.partition("\n")
    word, _, attributes = line.strip().partition(" ")
    if re.fullmatch(r"i?py(thon)?[\d.]*", word, re.I):
        return 0, rest if newline else attributes
    return (2 if word else 1, rest) if newline and re.fullmatch(r"[\w.+#-]*", line.strip()) else (1, text)


def _is_code(text):
    with warnings.catch_warnings(action="ignore"):
        try:
            return bool(ast.parse(_dedented(text)).body)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return False


def _dedented(text):
    text = re.sub(r"\A(?:[^\S\n]*\n)+", "", text).rstrip()
    return textwrap.dedent(text).strip() if text[:1].isspace() else text
