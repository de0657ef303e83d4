"""The rows of a statistics tensor (8, N), for torch and Triton alike."""

from enum import IntEnum


class Row(IntEnum):
    """fp32 rows, a column per token. The first four are results, the rest is kept for the gradient."""

    LOGP = 0
    REF_LOGP = 1
    KL = 2
    ENTROPY = 3
    MAX = 4  # of the scaled logits
    LOG_SUM = 5  # log of the sum of exp above that maximum
    REF_MAX = 6
    REF_LOG_SUM = 7


ROWS = len(Row)
RESULTS = slice(0, 4)
