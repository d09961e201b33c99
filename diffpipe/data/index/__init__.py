"""Index: the locations of the members in tars, and the shard sets that are built from them."""
