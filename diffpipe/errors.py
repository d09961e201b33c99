"""Errors that a user can act on."""

from __future__ import annotations

import errno
import shlex
from collections.abc import Callable, Sequence
from typing import Any

MOST_FAULTS = 10
"""Independent faults that are looked for. One cause, such as an old index, may have thousands."""


class UserError(ValueError):
    """An error that the user can fix. Its message says in a sentence or two what is wrong, where, and what to do.

    The command line prints only the message and exits with `status`. faults: the messages of the independent faults
    that it stands for, itself included; empty where it stands for itself alone.
    """

    status = 2
    faults: Sequence[str] = ()


def shell_command(*words: object) -> str:
    """A command in a message, to be pasted: a path of somebody else's may hold `$(…)`."""
    return shlex.join(map(str, words))


_REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space, or have the quota raised",
    errno.EFBIG: "the system lets files grow no further: raise `ulimit -f`, or give another place",
    errno.EROFS: "give a place that can be written",
    errno.EACCES: "change the rights, or give another place",
    errno.EPERM: "change the rights, or give another place",
    errno.EMFILE: "raise `ulimit -n`",
    errno.ENOMEM: "free some memory",
    errno.EIO: "look at the disk",
    errno.ESTALE: "look at the file server, and run the same command again",
}


def os_error(error: OSError) -> UserError:
    """An error of the operating system, as a full disk, in a sentence: where, what, and what to do."""
    where = f"{error.filename}: " if error.filename is not None else ""
    remedy = _REMEDIES.get(error.errno or 0)
    if "temporary directory" in str(error.strerror):  # as tempfile says where each is full
        remedy = "free some space there, or set TMPDIR to a folder that can be written"
    return UserError(f"{where}{error.strerror or error}" + (f"; {remedy}" if remedy else ""))


def as_user_error(error: Exception) -> UserError | None:
    """The error as one that the user can act on: of the operating system, or out of memory. None where it is a bug."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, OSError) and error.errno is not None:
        return os_error(error)
    # torch has an error of its own for a GPU, and a RuntimeError for a CPU.
    out = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if out or "can't allocate memory" in str(error):
        first = " ".join(str(error).split())[:200]
        return UserError(f"out of memory{first and f' ({first})'}; lower the batch size, or the number of workers")
    return None


class BadSampleError(UserError):
    """One sample is bad: reading it again, or elsewhere, gives the same error."""


class RankError(UserError):
    """An error of this rank alone: it prints the message and exits, and the launcher ends the other ranks."""


class LostPeerError(RankError):
    """Another process of the job has died or hangs, so collective operations are no longer possible."""

    status = 1


class NoAnswerError(UserError):
    """A server does not answer, although it was asked several times."""


def all_of(*actions: Callable[[], Any]) -> list[Any]:
    """The results of actions that do not depend on one another.

    Where some raise a UserError, the others run all the same, up to ten errors, or until a server does not answer. Then
    the first error is raised: its `faults` are the messages of all.
    """
    results: list[Any] = []
    errors: list[UserError] = []
    for action in actions:
        try:
            results.append(action())
        except RankError:
            raise
        except UserError as error:
            errors.append(error)
            if len(errors) == MOST_FAULTS or isinstance(error, NoAnswerError):
                break
    raise_first(errors)
    return results


def raise_first(errors: Sequence[UserError]) -> None:
    """Raise the first of several independent errors, if there is one. Its `faults` are the messages of all."""
    if errors:
        faults = dict.fromkeys(fault for error in errors for fault in error.faults or (str(error),))
        errors[0].faults = [*faults][:MOST_FAULTS]
        raise errors[0]
