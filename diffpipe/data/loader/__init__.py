"""Loader: the order of the stream, and the batches at its positions."""
