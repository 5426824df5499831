"""Memory that runs out: what torch and the system say of it becomes one message with what to lower."""

from collections.abc import Iterator
from contextlib import contextmanager

from seam.errors import SeamError

# Of torch on a CPU and a GPU, of numpy and of the system.
_SIGNS = ("can't allocate memory", "not enough memory", "out of memory", "Cannot allocate memory", "Unable to allocate")


def exhausted(error: BaseException) -> str:
    """What ran out, if an error says that memory did; else "". A loader's process that was killed counts: the system
    kills the largest process first."""
    text = " ".join(str(error).split())
    if "DataLoader worker" in text or isinstance(error, ConnectionError | EOFError):  # the pipe from it was cut
        return "a process that reads images was killed, most often because memory ran out"
    if isinstance(error, MemoryError) or any(sign in text for sign in _SIGNS):
        return "out of memory"
    return ""


@contextmanager
def enough_memory(label: str, key: str, batch_size: int) -> Iterator[None]:
    """Within the context an error that says that memory ran out becomes a SeamError that says which `key` to lower."""
    try:
        yield
    except (RuntimeError, MemoryError, ConnectionError, EOFError) as error:
        if not (what := exhausted(error)):
            raise
        raise SeamError(
            f"{label}: {what}; lower {key} (now {batch_size}), e.g. to {max(batch_size // 2, 1)}"
        ) from error
