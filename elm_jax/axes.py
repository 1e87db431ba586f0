"""Axis letters and array types of the whole package.

B examples in a batch    C answer choices     T answer tokens
S prompt tokens          V vocabulary         D embedding width
N rows of the index      Q retrieval queries  E experts
L layers of a stack      H heads              R bottleneck width
G segments of a packed row
I items of one shape, N nodes and M edges of a trie of answers (`scoring.tries`)

Token id 0 is padding everywhere, so there are no masks beside token arrays: a token is real if its id is not
0.
"""

import jax
import numpy as np
from jaxtyping import Float, Int, UInt32

# JAX's on devices, NumPy's on the host; functions take both.
Array = jax.Array | np.ndarray

Prompts = Int[Array, "B S"]  # token ids, 0 = padding
Answers = Int[Array, "B C T"]  # token ids of every answer choice, end-of-sequence included
Targets = Int[Array, "B T"]  # token ids of the one answer to learn
ExpertOfRow = Int[Array, " B"]  # index of the stacked expert that a row uses
ExpertOfSegment = Int[Array, "B G"]  # the same for the segments 1 to G of a packed row
Seeds = UInt32[Array, "B *G"]  # of dropout, for a row or for each of its segments
Encoded = Float[Array, "B S D"]  # the encoder's output
Embeddings = Float[Array, "N D"]  # rows of the index, or of the queries

PAD = 0
"""The token id of padding."""
