"""Which sets of words are nearly the same: every one that is, found without comparing each with each."""

import math
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_NUM_BITS = 256


def similar_earlier(sets: Sequence[frozenset[str]], threshold: float) -> Iterator[tuple[int, int, float]]:
    """For each set the first of those before it that has nearly the same words.

    Only sets that share one of their rarest words are looked at (prefix filtering, Bayardo et al. 2007; its shorter
    prefix for what is compared with larger sets only, Xiao et al. 2008). Of these, only sets whose marks of 256 bits
    differ in few bits are compared word by word: each word turns one bit of its set's mark, so that two marks differ in
    no more bits than the sets do in words (our variant of the bitmap filter of Sandes et al. 2020).

    Args:
        sets: Distinct sets, none empty, from few words to many.
        threshold: Least Jaccard index, in `(0, 1]`.

    Yields:
        Place of the set, place of the earlier one, and their Jaccard index, in the order of the sets.
    """
    import numpy as np

    spread = Counter(word for words in sets for word in words)
    rank = {word: place for place, word in enumerate(sorted(spread, key=lambda word: (spread[word], word)))}
    rarest_first = [sorted(rank[word] for word in words) for words in sets]
    marks = _marks(rarest_first, len(rank))
    sizes = np.array([len(words) for words in sets], dtype=np.int64)
    holders: dict[int, array[int]] = defaultdict(lambda: array("q"))
    for place, words in enumerate(rarest_first):
        # A set that is no larger shares at least t·|x| words with x, and so one of these.
        candidates = _holding(holders, _prefix(words, threshold), place)
        # Sets that reach t differ in at most (1 - t)/(1 + t) of their words, taken together.
        most = (sizes[candidates] + len(words)) * ((1 - threshold) / (1 + threshold)) + 1e-9
        differ = np.bitwise_count(marks[candidates] ^ marks[place]).sum(axis=1)
        for earlier in candidates[differ <= most].tolist():
            common = len(sets[place] & sets[earlier])
            similarity = common / (len(sets[place]) + len(sets[earlier]) - common)
            if similarity >= threshold:
                yield place, earlier, similarity
                break
        # A set that is no smaller shares at least 2t/(1 + t)·|x| words with x.
        for word in _prefix(words, 2 * threshold / (1 + threshold)):
            holders[word].append(place)


def _marks(sets: Sequence[Sequence[int]], num_words: int) -> "NDArray[np.uint64]":
    """A mark for each set, `(N, 4)`: a bit is on where an odd number of its words falls on it.

    The commonest words, which most sets differ in, fall on bits of their own.
    """
    import numpy as np

    marks = np.empty((len(sets), _NUM_BITS // 64), dtype=np.uint64)
    for mark, words in zip(marks, sets, strict=True):
        odd = np.bincount((num_words - 1 - np.array(words)) % _NUM_BITS, minlength=_NUM_BITS) & 1
        mark[:] = np.packbits(odd.astype(np.uint8)).view(np.uint64)
    return marks


def _holding(holders: "Mapping[int, array[int]]", words: Sequence[int], num_places: int) -> "NDArray[np.int64]":
    """Places of the sets that are listed under one of the words, in order."""
    import numpy as np

    listed = [np.frombuffer(holders[word], dtype=np.int64) for word in words if word in holders]
    if sum(map(len, listed)) < num_places // 8:  # few: sorted; many: marked
        return np.unique(np.concatenate(listed)) if listed else np.empty(0, dtype=np.int64)
    holds = np.zeros(num_places, dtype=bool)
    for places in listed:
        holds[places] = True
    return np.flatnonzero(holds)


def _prefix(rarest_first: Sequence[int], share: float) -> Sequence[int]:
    """The rarest words of a set, of which every set has one that has this share of its words."""
    # Subtracting 1e-9 keeps 0.9 · 10 = 9.000000000000002 from being rounded up to 10.
    return rarest_first[: len(rarest_first) - math.ceil(share * len(rarest_first) - 1e-9) + 1]
