"""FID of a run on all processes: `diffpipe eval` with the metric that papers report.

    accelerate launch --config_file launch/ddp.yaml eval/fid.py RUN --reference SHARDS --n 50000

Takes every option of `diffpipe eval`. The Inception weights are downloaded once, unless --inception names their file.
"""

from __future__ import annotations

import sys

from diffpipe.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["eval", "--metrics", "fid", *sys.argv[1:]]))
