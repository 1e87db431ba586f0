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

import sys
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int, UInt32

if TYPE_CHECKING:
    from jax import Array as JaxArray
else:

    class _JaxArrayType(type):
        def __instancecheck__(cls, value: object) -> bool:
            jax = sys.modules.get("jax")
            return jax is not None and isinstance(value, jax.Array)

    class JaxArray(metaclass=_JaxArrayType):
        """JAX's arrays, for whose sake JAX is not imported: what only reads records starts much sooner."""


# JAX's on devices, NumPy's on the host; functions take both.
Array = JaxArray | np.ndarray

Prompts = Int[Array, "B S"]  # token ids, 0 = padding
Answers = Int[Array, "B C T"]  # token ids of every answer choice, end-of-sequence included
Targets = Int[Array, "B T"]  # token ids of the one answer to learn
ExpertOfRow = Int[Array, " B"]  # index of the stacked expert that a row uses
ExpertOfSegment = Int[Array, "B G"]  # the same for the segments 1 to G of a packed row
Seeds = UInt32[Array, "B *G"]  # of dropout, for a row or for each of its segments
Encoded = Float[Array, "B _ D"]  # the encoder's output; experts may have put soft tokens before prompts
Embeddings = Float[Array, "N D"]  # rows of the index, or of the queries

PAD = 0
"""The token id of padding."""
