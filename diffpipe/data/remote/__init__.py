"""Remote: shards and indices over HTTP and from object stores, read through a verified cache."""
