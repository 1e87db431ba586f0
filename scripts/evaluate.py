"""Evaluates methods on unseen tasks:

`python scripts/evaluate.py --gin_file=gin/recipes/NAME.gin [--gin.MACRO=VALUE ...]`
"""

import sys

from elm_jax.cli import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
