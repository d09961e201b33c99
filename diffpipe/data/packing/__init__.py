"""From what people have (folders, archives, other formats) to shards: sources, one file each, and what writes them."""
