"""The errors that a user can act on."""

from __future__ import annotations


class UserError(ValueError):
    """Something that the user can mend: the message is one sentence or two on what is wrong, where, and what to do.

    The command line prints the message alone and exits with `status`.
    """

    status = 2


class BadSampleError(UserError):
    """The bytes of one sample are not what they should be, whoever reads them and whenever."""


class RankError(UserError):
    """What this rank alone has met: it says so itself and leaves, and the launcher ends the others."""


class LostPeerError(RankError):
    """Another process of the job has died or hangs: nothing that needs all of them can be done any more."""

    status = 1
