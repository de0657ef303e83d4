"""The choice of the source that the next query comes from."""

import random
from collections.abc import Iterator, Sequence
from itertools import count


def weighted_round_robin(weights: Sequence[float], seed: int) -> Iterator[int]:
    """Indices of `weights` for ever: after n of them, index i has come within one of n times
    its share, for every n. `seed` decides between equals.

    Each index is due as soon as it is behind its share; of those, the one that would first be
    a whole turn behind goes next (earliest deadline first).
    """
    shares = [weight / sum(weights) for weight in weights]
    order = random.Random(seed).sample(range(len(shares)), len(shares))
    dealt = [0] * len(shares)
    for turn in count(1):
        due = [i for i in order if dealt[i] < shares[i] * turn]
        chosen = min(due, key=lambda i: (dealt[i] + 1) / shares[i])
        dealt[chosen] += 1
        yield chosen
