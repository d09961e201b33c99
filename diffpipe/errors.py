"""Errors that a user can act on."""

from __future__ import annotations


class UserError(ValueError):
    """An error that the user can fix. Its message says in a sentence or two what is wrong, where, and what to do.

    The command line prints only the message and exits with `status`.
    """

    status = 2


class BadSampleError(UserError):
    """One sample is bad: reading it again, or elsewhere, gives the same error."""


class RankError(UserError):
    """An error of this rank alone: it prints the message and exits, and the launcher ends the other ranks."""


class LostPeerError(RankError):
    """Another process of the job has died or hangs, so collective operations are no longer possible."""

    status = 1
