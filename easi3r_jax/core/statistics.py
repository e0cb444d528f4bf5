"""Statistics of the decoder's cross-attention of pairs, from the network to the motion stage; axes as in `types`."""

from __future__ import annotations

from easi3r_jax.core.arrays import Array, Float, pytree_dataclass


@pytree_dataclass
class GramStats:
    """Mean and deviation, over the other frame's tokens, of a token's products with them (as VGGT4D's Gram maps).

    Queries and keys are those of the cross-attention between the frames, after rotary embedding; products are not
    scaled. Channel `s * A + head` is statistic s of `GRAM_STATISTICS`.

    Attributes:
      src: (..., L, 6 A, N) float32, of the tokens of frame j.
      ref: (..., L, 6 A, N) float32, of the tokens of frame i.
    """

    src: Float[Array, "*batch L six_A N"]
    ref: Float[Array, "*batch L six_A N"]


@pytree_dataclass
class AttentionStats:
    """Mean over all query tokens of the pre-softmax cross-attention logits, by key token (Easi3R, eq. 3-4).

    For a directed pair (i, j), branch 1 queries from i into j, branch 2 from j into i.

    Attributes:
      src: (..., L, A, N) float32, branch 1: indexed by the tokens of frame j, which acts as *source* view.
      ref: (..., L, A, N) float32, branch 2: indexed by the tokens of frame i, which acts as *reference* view.
      gram: similarities of queries and keys between the frames; None unless they were asked for.
    """

    src: Float[Array, "*batch L A N"]
    ref: Float[Array, "*batch L A N"]
    gram: GramStats | None = None
