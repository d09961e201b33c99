"""The checks before a job starts: what would break it or make it slow, each with its remedy. Nothing is written."""
