"""What a source of retained text works with: the base model, the tokenizer, the facts, the cache."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from peft import PeftModel
from tqdm.auto import tqdm

from lit_semantic_peft.cache import ContentCache
from lit_semantic_peft.data import PreparedFacts
from lit_semantic_peft.facts import Fact
from lit_semantic_peft.facts.schema import Form
from lit_semantic_peft.files import content_key
from lit_semantic_peft.models.generation import greedy_answers
from lit_semantic_peft.models.sampling import Sampling, sampled_answers
from lit_semantic_peft.models.undisturbed import undisturbed
from lit_semantic_peft.tokens import Batch, EncodedFact, FactEncoder, collate

_MOST_LOGITS = 2**24
"""Of a batch, 64 MiB in float32, of which a few copies are needed: every token of a sample may be a target."""


@dataclass(frozen=True, slots=True)
class TaughtText:
    """A text in which a fact is taught: its own prompt, or one of its forms.

    Attributes:
        fact: The fact.
        form: The prompt and what follows.
        encoded: Their tokens.
        in_chat: Whether they stand in the chat template, whatever the facts stand in.
    """

    fact: Fact
    form: Form
    encoded: EncodedFact
    in_chat: bool = False


@dataclass(frozen=True)
class RetainContext:
    """The base model and what belongs to it.

    Attributes:
        model: The model with its adapter.
        prepared: The facts, and which are trained.
        encoder: How facts become tokens.
        cache: Where drawn texts and the teacher's predictions are kept.
        identity: Everything about base model, tokenizer and arithmetic that these depend on, as plain data.
        data_seed: Of the data module.
        batch_size: Rows of a forward pass.
        precision: Opens the context of a forward pass, for autocast.
    """

    model: PeftModel
    prepared: PreparedFacts
    encoder: FactEncoder
    cache: ContentCache
    identity: dict[str, Any]
    data_seed: int
    batch_size: int
    precision: Callable[[], AbstractContextManager[None]]

    @cached_property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = next(self.model.parameters()).device
        return device

    @cached_property
    def taught(self) -> list[TaughtText]:
        """The texts of the trained facts, in all their forms."""
        prepared, taught = self.prepared, []
        for row in np.flatnonzero(prepared.is_trained).tolist():
            fact, texts = prepared.facts[row], prepared.forms.texts
            taught.append(TaughtText(fact, Form(fact.prompt, fact.target, fact.joiner), texts[row]))
            forms, places = prepared.forms.of_facts[row].taught, prepared.forms.texts_of(row)[1:]
            taught += [
                TaughtText(fact, one.form, texts[place], one.in_chat) for one, place in zip(forms, places, strict=True)
            ]
        return taught

    @contextmanager
    def base_model(self) -> Iterator[PeftModel]:
        """Within the block the model is the base model: adapter off, evaluation mode, no gradients."""
        with undisturbed(self.model), torch.no_grad(), self.model.disable_adapter(), self.precision():
            yield self.model

    def batches(self, rows: Sequence[EncodedFact], said: str) -> Iterator[tuple[list[int], Batch]]:
        """Batches of rows of similar length, on the model's device, with a bar of progress.

        They are smaller where their targets' logits would need more memory than `_MOST_LOGITS` of them.

        Args:
            rows: Token ids.
            said: What the bar says.

        Yields:
            The places of some rows, and their batch.
        """
        order = sorted(range(len(rows)), key=lambda place: -len(rows[place]))
        most_targets = _MOST_LOGITS // self.model.config.get_text_config().vocab_size
        split: list[list[int]] = []
        room = 0
        for place in order:
            room -= rows[place].num_target_tokens
            if not split or room < 0 or len(split[-1]) == self.batch_size:
                split.append([])
                room = most_targets - rows[place].num_target_tokens
            split[-1].append(place)
        for places in tqdm(split, said, unit="batch", delay=2, disable=None):
            chosen = [rows[place] for place in places]
            yield places, collate(chosen, places, self.encoder.pad_id, with_end=False).to(self.device)

    def continuations(
        self, prompts: Sequence[Sequence[int]], length: int, sampling: Sampling | None = None
    ) -> list[tuple[int, ...]]:
        """What the base model writes after prompts, from the cache where it was asked before.

        Args:
            prompts: Token ids.
            length: Most tokens of a continuation.
            sampling: How one continuation of each is drawn; None for the greedy one.

        Returns:
            The continuations, without end token; maybe empty.
        """
        what = {
            "what": "continuations", "prompts": content_key([list(ids) for ids in prompts]), "length": length,
            "sampling": None if sampling is None else asdict(sampling),
        }  # fmt: skip
        how: dict[str, Any] = {"pad_id": self.encoder.pad_id, "stop_ids": self.encoder.stop_ids}

        def draw() -> list[list[int]]:
            lengths = [length] * len(prompts)
            with self.base_model() as model:
                if sampling is None:
                    return greedy_answers(model, prompts, lengths, **how)
                return [answers[0] for answers in sampled_answers(model, prompts, lengths, sampling, **how)]

        return [tuple(ids) for ids in self.cached_ids(what, draw)]

    def cached_ids(self, what: dict[str, Any], draw: Callable[[], list[list[int]]]) -> list[list[int]]:
        """Token ids from the cache, or drawn and stored.

        Args:
            what: What they depend on beside the base model, as plain data.
            draw: Gives them.
        """
        manifest = {**self.identity, **what}
        found: list[list[int]] | None = self.cache.load_table(manifest, lambda table: table["ids"].to_pylist())
        if found is None:
            found = draw()
            self.cache.store_table(manifest, pa.table({"ids": pa.array(found, pa.list_(pa.int32()))}))
        return found
