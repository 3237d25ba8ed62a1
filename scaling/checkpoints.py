"""What an unfinished training keeps in its folder: checkpoint/<n>, which it goes on from, on any number of processes, and teacher/, the
teacher's hidden states from one epoch to the next."""

from common import files

import logging
import shutil
import warnings

import torch

from scaling import parallel


def save(state, folder):
    """Writes a tree of tensors to `folder`/<n>, n above those that are there, and removes those; each process writes its own parts. What is not
    whole counts as not there. Raises ValueError if it cannot be written."""
    n = parallel.agree(max(_saved(folder), default=0) + 1)
    try:
        _checkpoint("save", state, folder / str(n))
    except (OSError, RuntimeError) as e:                              # the last: what PyTorch says of a full disk
        raise ValueError(f"{folder}: cannot be written ({str(e).splitlines()[0]}); once it can be, the same command goes on") from None
    if parallel.RANK == 0:
        for old in folder.iterdir():
            if old.name != str(n):
                shutil.rmtree(old, ignore_errors=True)


def restore(state, folder):
    """Fills a tree of tensors with what was saved last, by however many processes → the tree, or None if nothing is there.
    Raises ValueError if it is damaged."""
    if n := parallel.agree(max(_saved(folder), default=0)):
        try:
            _checkpoint("load", state, folder / str(n))
        except Exception as e:                                        # of a broken file PyTorch says many things
            raise ValueError(f"{folder / str(n)}: damaged ({type(e).__name__}: {' '.join(str(e).split())[:100]}); remove {folder}, the same command begins anew") from None
        return state


def _saved(folder):
    return [int(file.parent.name) for file in folder.glob("[0-9]*/.metadata")]          # which is written last


def _checkpoint(act, state, folder):
    """Without what PyTorch says on the way; of several processes' failures the first."""
    import torch.distributed.checkpoint as engine  # here, as it takes a second
    logging.disable()
    try:
        with warnings.catch_warnings(action="ignore"):
            getattr(engine, act)(state, checkpoint_id=folder)
    except engine.CheckpointException as e:
        raise next(iter(e.failures.values()))[0] from None
    finally:
        logging.disable(logging.NOTSET)


def store(what, file):
    """torch.save, of which the whole file appears or none."""
    files.write_whole({file: lambda part: torch.save(what, part)})


def fetch(file):
    """What `store` wrote there. Raises ValueError, naming the file, if it is damaged."""
    try:
        return torch.load(file, map_location="cpu", mmap=True)
    except Exception as e:                                            # of a broken file PyTorch says many things
        raise ValueError(f"{file}: damaged ({type(e).__name__}); remove it, and the same command makes it again") from None


def tidy(folder):
    """Removes what only an unfinished training needs."""
    for leftover in ("checkpoint", "teacher"):
        shutil.rmtree(folder / leftover, ignore_errors=True)
