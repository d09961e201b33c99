"""Sources of samples: the numbers of labels, and the protocol that each kind of source keeps."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffpipe.data import load
from diffpipe.data.packing.folder import FolderSource
from diffpipe.data.packing.pack import pack
from diffpipe.data.packing.shards import ShardSource
from diffpipe.data.packing.source import PackItem, Source, numbered
from diffpipe.errors import UserError
from tests.support.archives import idx_source


def test_numbers_stay_and_names_are_numbered_alphabetically_or_as_given() -> None:
    assert numbered(["7", "2", "07"], None, "x") == ([7, 2, 7], None)
    assert numbered(["1", "0"], ["a", "b"], "x") == ([1, 0], ["a", "b"])
    assert numbered(["dog", "ant", "dog"], None, "x") == ([1, 0, 1], ["ant", "dog"])
    assert numbered(["dog", "ant"], ["dog", "cat", "ant"], "x") == ([0, 2], ["dog", "cat", "ant"])
    assert numbered(["10", "9", "x"], None, "x") == ([0, 1, 2], ["10", "9", "x"])  # one word makes all of them names
    assert numbered([], None, "x") == ([], None)


def test_a_label_that_the_classes_do_not_cover_is_refused() -> None:
    with pytest.raises(UserError, match=r"^labels\.csv: a label is 2, but there are only 2 class names"):
        numbered(["0", "2"], ["a", "b"], "labels.csv")
    with pytest.raises(UserError, match=r"^labels\.csv: a label is 'cat', which --classes does not name"):
        numbered(["dog", "cat"], ["dog"], "labels.csv")


def test_folders_shards_and_idx_files_are_sources(folder: Path, digits: Path, tmp_path: Path) -> None:
    pack(FolderSource(folder), tmp_path / "out")
    sources = [FolderSource(folder), idx_source(digits), ShardSource(load(str(tmp_path / "out")))]
    for source in sources:
        assert isinstance(source, Source)
        assert source.labels is not None
        assert len(source.labels) == len(source)
        assert isinstance(source.item(len(source) - 1), PackItem)


def test_a_label_of_more_digits_than_the_loader_reads_is_refused() -> None:
    assert numbered(["202401011200", "0"], None, "x") == ([202401011200, 0], None)
    with pytest.raises(UserError, match=r"^x: a label is 9{40}…; number the classes"):
        numbered(["1", "9" * 5000], None, "x")
