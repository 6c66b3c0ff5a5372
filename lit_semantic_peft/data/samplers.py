"""Which facts run together: a plan of optimizer steps that does not depend on how a step is split.

An epoch is first divided into optimizer steps and only then into micro-batches and ranks, so that 8 × 1, 4 × 2 and two
processes with 4 × 1 see the same facts in the same step.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

import torch
from torch.utils.data import DistributedSampler
from typing_extensions import override

from lit_semantic_peft.data.second_pass import SecondPass


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Rows that run together in one forward pass of one rank.

    Attributes:
        rows: Fact indices.
        num_fillers: How many of the last rows only fill up, so that every rank runs equally often. Their loss weight
            is 0.
        progress: Share of training that is done before the optimizer step, [0, 1].
        epoch: The epoch of a training, from 0, which decides in which form each fact stands; every optimizer step of a
            second pass counts as one. None outside of a training.
        own_prompts: Fact indices that stand in their own prompt in every epoch.
    """

    rows: tuple[int, ...]
    num_fillers: int = 0
    progress: float = 0.0
    epoch: int | None = None
    own_prompts: frozenset[int] = frozenset()


# By the base class Lightning knows that the sampler shards by rank itself; only `set_epoch` of it is used.
class StepPlan(DistributedSampler[MicroBatch]):
    """Plans each epoch's optimizer steps, seeded, with facts of similar length together.

    Facts are shuffled; windows of `bucket_steps` steps are sorted by length and split into steps; steps are shuffled;
    within a step facts are sorted by length and dealt out to micro-batches and ranks.

    Attributes:
        arrange: Where set, decides in place of the lengths which facts share a step: takes the shuffled rows and the
            facts per step, gives steps of that size; only the last may be smaller. Must be the same on all ranks.

    Args:
        rows: Fact indices to train on.
        lengths: Tokens of each of them; a function of row and epoch where a fact's text differs between epochs, of its
            own prompt where the epoch is None.
        micro_batch_size: Facts per forward pass of one rank.
        accumulate_grad_batches: Micro-batches per optimizer step and rank.
        world_size: Number of ranks.
        rank: This rank.
        seed: Of the shuffle; the epoch is added to it.
        bucket_steps: Optimizer steps whose facts are sorted by length together; 1 leaves the composition of steps to
            chance alone.
        max_epochs: Epochs after which training ends, to compute its progress; None or -1 for no limit.
        max_steps: Optimizer steps after which it ends; -1 for no limit.
        mix: A label for each fact, such as its stratum, for steps that each hold every label's share of the facts, to
            within one; lengths then do not matter. None for steps by length.
        deferred: Those of `rows` that are left out of the first epochs.
        deferred_from_epoch: The first epoch that has them, from 0.
        second_pass: The last optimizer steps, an epoch of their own. The epoch before them is cut short where it would
            be longer.
    """

    def __init__(
        self,
        rows: Sequence[int],
        lengths: Sequence[int] | Callable[[int, int | None], int],
        *,
        micro_batch_size: int,
        accumulate_grad_batches: int = 1,
        world_size: int = 1,
        rank: int = 0,
        seed: int = 0,
        bucket_steps: int = 8,
        max_epochs: int | None = None,
        max_steps: int = -1,
        mix: Sequence[str] | None = None,
        deferred: Collection[int] = (),
        deferred_from_epoch: int = 0,
        second_pass: SecondPass | None = None,
    ) -> None:
        self._all_rows = list(rows)
        later = set(deferred)
        self._first_rows = [row for row in rows if row not in later]
        self.deferred_from_epoch = deferred_from_epoch
        if callable(lengths):
            self._length = lengths
        else:
            length_of = dict(zip(rows, lengths, strict=True))
            self._length = lambda row, epoch: length_of[row]
        self.micro_batch_size = micro_batch_size
        self.accumulate_grad_batches = accumulate_grad_batches
        self.world_size = world_size
        self.rank = rank
        self.seed = seed
        self.bucket_steps = bucket_steps
        self.max_epochs = max_epochs
        self.max_steps = max_steps
        self.label_of = None if mix is None else dict(zip(rows, mix, strict=True))
        self.arrange: Callable[[list[int], int], list[list[int]]] | None = None
        self.second_pass = second_pass
        self.epoch = 0
        self._resumed = (-1, 0)

    def resume(self, epoch: int, num_done: int) -> None:
        """Skips the micro-batches that an interrupted epoch has done already.

        Args:
            epoch: The interrupted epoch; all others are whole.
            num_done: Micro-batches of it that each rank has done, whole optimizer steps.
        """
        self._resumed = (epoch, num_done)

    def rows(self, epoch: int) -> list[int]:
        """The facts that an epoch trains, in file order.

        Args:
            epoch: Number of the epoch.
        """
        return self._all_rows if epoch >= self.deferred_from_epoch else self._first_rows

    def steps_before(self, epoch: int) -> int:
        """Optimizer steps of all epochs before this one.

        Args:
            epoch: Number of the epoch; of a training of n epochs there are `steps_before(n)` steps.
        """
        num_first = min(epoch, self.deferred_from_epoch)
        size = self.facts_per_step
        whole = num_first * -(-len(self._first_rows) // size) + (epoch - num_first) * -(-len(self._all_rows) // size)
        return whole if self.second_pass is None else min(whole, self.second_pass.first_step)

    @property
    def facts_per_step(self) -> int:
        """Facts of one optimizer step over all ranks."""
        return self.micro_batch_size * self.accumulate_grad_batches * self.world_size

    def steps(self, epoch: int) -> list[list[int]]:
        """The fact indices of each optimizer step of an epoch; only the last step may be smaller.

        In a second pass all steps are of one size, which is smaller where there are not so many facts.

        Args:
            epoch: Number of the epoch.
        """
        second = self.second_pass
        if second is None:
            return self._ordinary_steps(epoch)
        if self._is_second_pass(epoch):
            steps, own_prompts = second.steps(self.rows(epoch), self.facts_per_step, self.seed), second.own_prompts

            def by_length(row: int, number: int) -> tuple[int, int]:
                return self._length(row, None if row in own_prompts else epoch + number), row

            return [sorted(step, key=partial(by_length, number=number)) for number, step in enumerate(steps)]
        return self._ordinary_steps(epoch)[: second.first_step - self.steps_before(epoch)]

    def taught(self, epoch: int, num_steps: int) -> dict[int, list[int | None]]:
        """What the first optimizer steps of an epoch teach: a fact once for each of them that it is in.

        Args:
            epoch: Number of the epoch.
            num_steps: How many of its steps.

        Returns:
            By fact index, the epochs in whose forms the fact stands, step by step; None for its own prompt.
        """
        is_second_pass, own_prompts = self._is_second_pass(epoch), self._own_prompts(epoch)
        found: dict[int, list[int | None]] = {}
        for number, step in enumerate(self.steps(epoch)[:num_steps]):
            for row in step:
                in_forms_of = None if row in own_prompts else epoch + number * is_second_pass
                found.setdefault(row, []).append(in_forms_of)
        return found

    def _is_second_pass(self, epoch: int) -> bool:
        return self.second_pass is not None and self.steps_before(epoch) == self.second_pass.first_step

    def _own_prompts(self, epoch: int) -> frozenset[int]:
        second = self.second_pass
        return second.own_prompts if second is not None and self._is_second_pass(epoch) else frozenset()

    def _ordinary_steps(self, epoch: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        size = self.facts_per_step
        rows = self.rows(epoch)

        def by_length(row: int) -> tuple[int, int]:
            return self._length(row, epoch), row

        shuffled = [rows[i] for i in torch.randperm(len(rows), generator=generator).tolist()]
        if self.arrange is not None:
            arranged = [sorted(step, key=by_length) for step in self.arrange(shuffled, size)]
            num_whole = len(shuffled) // size
            order = torch.randperm(num_whole, generator=generator).tolist()
            return [arranged[i] for i in order] + arranged[num_whole:]
        if self.label_of is not None:
            mixed = _mixed([self.label_of[row] for row in shuffled])
            order = [shuffled[at] for at in mixed]
            return [sorted(order[at : at + size], key=by_length) for at in range(0, len(order), size)]
        # The partial step is drawn first: sorting must not make it the step of the longest facts.
        whole = len(shuffled) // size * size
        partial = [sorted(shuffled[whole:], key=by_length)] if shuffled[whole:] else []
        steps: list[list[int]] = []
        window = size * self.bucket_steps
        for start in range(0, whole, window):
            bucket = sorted(shuffled[start : min(start + window, whole)], key=by_length)
            steps += [bucket[at : at + size] for at in range(0, len(bucket), size)]
        order = torch.randperm(len(steps), generator=generator).tolist()
        return [steps[i] for i in order] + partial

    @override
    def __iter__(self) -> Iterator[MicroBatch]:
        # A generator: Lightning asks for the iterator first and sets the epoch then.
        epoch, num_done = self._resumed
        yield from islice(self._micro_batches(), num_done if epoch == self.epoch else 0, None)

    def _micro_batches(self) -> Iterator[MicroBatch]:
        steps = self.steps(self.epoch)
        stride = self.micro_batch_size * self.world_size
        is_second_pass, own_prompts = self._is_second_pass(self.epoch), self._own_prompts(self.epoch)
        for number, step in enumerate(steps):
            progress = self.progress_at(self.steps_before(self.epoch) + number)
            # Lightning counts micro-batches, so that only the last step of an epoch may have fewer of them.
            for start in range(0, self.facts_per_step if is_second_pass else len(step), stride):
                # Interleaved, so that ranks get equally long rows and equally many of them.
                mine = step[start : start + stride][self.rank :: self.world_size]
                # A rank without a fact still takes part in the step's collectives.
                rows, num_fillers = (tuple(mine), 0) if mine else ((step[0],), 1)
                in_forms_of = self.epoch + number if is_second_pass else self.epoch
                yield MicroBatch(rows, num_fillers, progress, in_forms_of, own_prompts)

    @override
    def __len__(self) -> int:
        """Micro-batches of the epoch on each rank."""
        second = self.second_pass
        if second is not None and self._is_second_pass(self.epoch):
            return second.num_steps * self.accumulate_grad_batches
        whole, rest = divmod(len(self.rows(self.epoch)), self.facts_per_step)
        stride = self.micro_batch_size * self.world_size
        num_all = whole * self.accumulate_grad_batches + -(-rest // stride)
        if second is None:
            return num_all
        return min(num_all, (second.first_step - self.steps_before(self.epoch)) * self.accumulate_grad_batches)

    def progress_at(self, step: int) -> float:
        """How far training is, from 0 at its first optimizer step to 1 at its last; 0 where its length is not known.

        Args:
            step: Optimizer steps that are done.
        """
        limits = [] if self.max_steps < 0 else [self.max_steps]
        if self.max_epochs is not None and self.max_epochs >= 0:
            limits.append(self.steps_before(self.max_epochs))
        last = min(limits, default=0) - 1
        return min(1.0, step / last) if last > 0 else 0.0


def _mixed(labels: Sequence[str]) -> list[int]:
    """Positions in an order in which every stretch holds about each label's share of the whole.

    The j-th of m positions of a label goes to (j + 1/2)/m of the way.
    """
    size = Counter(labels)
    seen: Counter[str] = Counter()
    place: list[tuple[float, int]] = []
    for position, label in enumerate(labels):
        place.append(((seen[label] + 0.5) / size[label], position))
        seen[label] += 1
    return [position for _, position in sorted(place)]


class RankShard(DistributedSampler[MicroBatch]):
    """Deals batches of rows out to ranks for evaluation, each row once but for repeats that even out the ranks.

    Metrics drop the repeats by fact index.

    Args:
        rows: Row numbers.
        lengths: Tokens of each of them.
        batch_size: Rows per forward pass.
        world_size: Number of ranks.
        rank: This rank.
    """

    def __init__(
        self, rows: Sequence[int], lengths: Sequence[int], *, batch_size: int, world_size: int = 1, rank: int = 0
    ) -> None:
        # Longest first: if memory is short, it fails at once.
        order = [row for row, _ in sorted(zip(rows, lengths, strict=True), key=lambda pair: (-pair[1], pair[0]))]
        batches = [tuple(order[start : start + batch_size]) for start in range(0, len(order), batch_size)]
        batches += batches[:1] * (-len(batches) % world_size)
        self.batches = batches[rank::world_size]
        self.epoch = 0

    @override
    def __iter__(self) -> Iterator[MicroBatch]:
        return (MicroBatch(batch) for batch in self.batches)

    @override
    def __len__(self) -> int:
        return len(self.batches)
