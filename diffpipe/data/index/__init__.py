"""Index: what lies where in the tars, and the shard sets that are made of it."""
