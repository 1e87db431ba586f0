"""Evaluates methods on unseen tasks, with the flags of `elm evaluate`; on a pod on each of its hosts:

`python scripts/evaluate.py --multiprocess --gin_file=gin/runs/evaluate.gin [--gin.MACRO=VALUE ...]`
"""

import sys

from elm_jax.cli import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
