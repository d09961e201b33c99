"""Remote: shards and indexes over HTTP and object stores, through a cache that is checked."""
