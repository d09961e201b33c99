"""Train image generators from WebDataset shards on one CPU or many GPU nodes, and measure what they make."""

__version__ = "0.1.0"
