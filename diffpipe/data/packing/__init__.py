"""Packing: folders, archives and other formats to shards. Each kind of source has a file of its own."""
