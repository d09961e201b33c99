"""A library of an extra that is absent: one line with the command that installs it."""

from __future__ import annotations

import pytest

from diffpipe.errors import UserError
from diffpipe.extras import from_extra


def test_an_absent_library_names_the_extra_that_brings_it() -> None:
    message = r"^nowhere is not installed; install it with: pip install 'diffpipe\[eval\]'$"
    with pytest.raises(UserError, match=message), from_extra("eval"):
        import nowhere.inside  # noqa: F401  # pyright: ignore[reportMissingImports]


def test_a_library_that_fails_to_import_raises_its_own_error() -> None:
    with pytest.raises(ImportError, match="nothing_of_this_name"), from_extra("eval"):
        from math import nothing_of_this_name  # noqa: F401  # pyright: ignore[reportAttributeAccessIssue]
