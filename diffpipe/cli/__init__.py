"""The commands: one small file each, with `add_arguments(parser)` and `run(args)`."""
