"""Data beside the checkout, which the tests marked shared_data read; $ELM_JAX_SHARED names another place."""

import os
from pathlib import Path

SHARED = Path(os.environ.get("ELM_JAX_SHARED", Path(__file__).parents[1].parent / "shared"))
DATA = SHARED / "data"
TEMPLATES = DATA / "promptsource" / "templates"
