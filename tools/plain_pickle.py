"""Reads ToolQA's pickles without running code: dictionaries, lists, texts, numbers and networkx graphs.

A pickle names functions, which the reader calls, so a hostile one can run anything. Here every other name is refused.
"""

import pickle
import re
from pathlib import Path

import numpy as np


def read_pickle(file: str | Path):
    """The data in a pickle. Raises ValueError, naming the file, for anything that `Careful` refuses."""
    try:
        with open(file, "rb") as f:
            return Careful(f).load()
    except (pickle.UnpicklingError, EOFError, AttributeError, LookupError, TypeError, ValueError, ImportError) as e:
        raise ValueError(f"{file}: cannot be read safely ({e})") from None
    except OSError as e:
        raise ValueError(f"{file}: {e.strerror}; it belongs to ToolQA's release") from None


class Careful(pickle.Unpickler):
    """Reads dictionaries, lists, texts, numbers and networkx graphs. Graphs become `Plain`; networkx is not needed."""

    def find_class(self, module, name):
        if module.startswith("networkx.classes.") and name in ("Graph", "DiGraph", "MultiGraph", "MultiDiGraph"):
            return Plain
        if (module, name) == ("numpy", "dtype"):                       # a cell of a pandas table is a numpy number
            return NumberType
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "scalar":
            return lambda kind, raw: np.frombuffer(raw, kind.code)[0].item()
        if module == "builtins" and name in ("dict", "list", "set"):
            return {"dict": dict, "list": list, "set": set}[name]
        if module == "collections" and name in ("OrderedDict", "defaultdict"):
            return {"OrderedDict": dict, "defaultdict": lambda *_: {}}[name]
        if module.startswith("networkx."):                             # factories and views that newer versions keep
            return Plain
        raise pickle.UnpicklingError(f"it holds a {module}.{name}, which is not read")


class NumberType:
    """A numpy.dtype of numbers."""

    def __init__(self, code, *_):
        if not re.fullmatch("[biuf][1248]", code):
            raise pickle.UnpicklingError(f"it holds numpy's {code}, which is not a number")
        self.code = code

    def __setstate__(self, state):
        self.code = state[1].replace("|", "") + self.code.lstrip("<>")


class Plain:
    """A networkx object without networkx: its attributes are what was pickled."""

    def __init__(self, *_):
        pass

    def __setstate__(self, state):
        self.__dict__.update(state if isinstance(state, dict) else {})
