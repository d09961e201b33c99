"""Data: tar → index → order → read → decode → uint8 batches. Each module imports only earlier ones.

`load` finds the shards, `batches` streams them for training, `images` and `labels` read them in order for evaluation.
"""

from diffpipe.data.config import DataConfig
from diffpipe.data.index.shard_set import ShardSet, load, number_of_classes
from diffpipe.data.loader.dataset import check
from diffpipe.data.loader.sequential_reader import images, labels
from diffpipe.data.loader.stream import batches

__all__ = ["DataConfig", "ShardSet", "batches", "check", "images", "labels", "load", "number_of_classes"]
