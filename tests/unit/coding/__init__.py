"""Tests of diffpipe.coding."""
