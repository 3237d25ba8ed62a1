"""What an unfinished training keeps in its adapter's folder, in unfinished/.

checkpoint<seed>/<n> is what it resumes from, on any number of processes. teacher/ holds the teacher's hidden states,
which are computed once and used in every epoch. seed<seed>/ holds the adapter of one
training: of one of several seeds, or as it is before --weight.
"""

from common.files import write_whole

import logging
import shutil
import warnings
from pathlib import Path

import torch

from scaling import parallel

UNFINISHED = "unfinished"


def save(state: dict, folder: Path) -> None:
    """Writes a tree of tensors to `folder`/<n> and then removes the checkpoints before it. Each process writes its own
    parts. A checkpoint that is not complete counts as absent. Raises ValueError if it cannot be written."""
    n = parallel.broadcast(max(_complete(folder), default=0) + 1)
    try:
        _checkpoint("save", state, folder / str(n))
    except (OSError, RuntimeError) as e:                        # PyTorch raises the latter on a full disk
        raise ValueError(f"{folder}: cannot be written ({str(e).splitlines()[0]}); "
                         "once it can be, the same command resumes") from None
    if parallel.RANK == 0:
        for old in folder.iterdir():
            if old.name != str(n):
                shutil.rmtree(old, ignore_errors=True)


def restore(state: dict, folder: Path) -> dict | None:
    """Fills a tree of tensors with the last checkpoint, whatever the number of processes that wrote it. Returns the
    tree, or None if there is no checkpoint. Raises ValueError if it is damaged, OSError if it cannot be read."""
    n = parallel.broadcast(max(_complete(folder), default=0))
    if not n:
        return None
    try:
        _checkpoint("load", state, folder / str(n))
    except Exception as e:                                      # PyTorch raises many kinds on a broken file
        if isinstance(e, (OSError, MemoryError)) and not isinstance(e, FileNotFoundError):
            raise                                               # the checkpoint was not read, and may be whole
        raise ValueError(f"{folder / str(n)}: damaged ({type(e).__name__}: {' '.join(str(e).split())[:100]}); run the "
                         f"same command again; if that fails too, remove {folder} to start over") from None
    return state


def _complete(folder):
    return [int(file.parent.name) for file in folder.glob("[0-9]*/.metadata")]         # which is written last


def _checkpoint(act, state, folder):
    """Saves or loads without PyTorch's warnings. Raises the first failure of any process."""
    import torch.distributed.checkpoint as dcp  # here, since it takes a second
    logging.disable()
    try:
        with warnings.catch_warnings(action="ignore"):
            getattr(dcp, act)(state, checkpoint_id=folder)
    except dcp.CheckpointException as e:
        raise next(iter(e.failures.values()))[0] from None
    finally:
        logging.disable(logging.NOTSET)


def save_tensor(tensor: torch.Tensor, file: Path) -> None:
    """torch.save, after which the file is complete or absent."""
    write_whole({file: lambda part: torch.save(tensor, part)})


def load_tensor(file: Path) -> torch.Tensor:
    """What `save_tensor` wrote, memory-mapped. Raises ValueError, naming the file, if it is damaged."""
    try:
        return torch.load(file, map_location="cpu", mmap=True)
    except Exception as e:                                      # PyTorch raises many kinds on a broken file
        raise ValueError(f"{file}: damaged ({type(e).__name__}); "
                         "remove it, and the same command makes it again") from None


def tidy(folder: Path) -> None:
    """Removes what only an unfinished training needs."""
    shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
