"""The settings of `KnowledgeDataModule`, in groups: how facts are tokenized, which are trained, and in what batches."""

from dataclasses import dataclass
from typing import Any

from lit_semantic_peft.arguments import require_instance, require_instances, require_whole_number
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts.forms import FormSource, Given
from lit_semantic_peft.semantics import Distance, FactFilter, Strata, TokenWeighting, Weighting
from lit_semantic_peft.tokens import Template


@dataclass(frozen=True)
class EncodingPlan:
    """How facts become tokens.

    Args:
        template: `none`, or `chat` for the tokenizer's chat template.
        append_eos: Whether training also teaches the end token after an answer.
        max_length: Longest fact in tokens; a longer one is an error. None for what the model takes.
        chat_template_kwargs: Arguments of the chat template besides the turns, such as `enable_thinking: false`, or
            `date_string` where it prints the day's date.
    """

    template: Template = "none"
    append_eos: bool = True
    max_length: int | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.max_length is not None and self.max_length < 2:
            raise InputError(f"`encoding.max_length` must be at least 2, a prompt and a target, got {self.max_length}")


@dataclass(frozen=True)
class FormsPlan:
    """In which forms a fact is taught. In every epoch each fact is trained once, in one of them, chosen by `data.seed`.

    Args:
        sources: Where the forms come from, each with its share of a fact's epochs; a fact's own prompt has the rest.
            None to teach each fact by its own prompt only.
        from_paraphrases: How many of a fact's paraphrases, the first ones, become `Given` forms. The others, at least
            one, are asked.
        num_per_fact: In how many forms each fact is taught at most beside its own prompt, a choice by `data.seed`. The
            chosen ones take over the epochs of the others. None for all.

    Raises:
        InputError: If a setting is of another type, the shares are more than 1 together, `from_paraphrases` is below 0
            or needs a `Given` source, or `num_per_fact` is below 1.
    """

    sources: list[FormSource] | None = None
    from_paraphrases: int = 0
    num_per_fact: int | None = None

    def __post_init__(self) -> None:
        require_instances("forms.sources", self.sources, FormSource, "Given(share=0.3)")
        if self.num_per_fact is not None and self.num_per_fact < 1:
            raise InputError(
                f"`forms.num_per_fact` must be at least 1, got {self.num_per_fact}. For own prompts only leave "
                "`forms.sources` empty."
            )
        total = sum(source.share for source in self.sources or [])
        if total > 1 + 1e-9:
            raise InputError(f"`forms.sources` have shares of {total:g} together; expected at most 1")
        require_whole_number("forms.from_paraphrases", self.from_paraphrases, 0)
        if self.from_paraphrases and not any(isinstance(source, Given) for source in self.sources or []):
            raise InputError(
                f"`forms.from_paraphrases` is {self.from_paraphrases}, but no source teaches paraphrases. Add "
                "`Given` to `forms.sources`."
            )


@dataclass(frozen=True)
class SelectionPlan:
    """Which facts are trained, and what each of them weighs.

    Args:
        distance: The distance that filters and weightings use; `ExpectedEmbeddingDistance` where None.
        more_distances: Further distances to measure and report. `Surprisal` is always measured.
        filters: Applied in order, each to what the one before left; nothing is dropped where None.
        weighting: From distance to loss weight; `Uniform` where None.
        token_weighting: Which of a fact's target tokens count, and how; all alike where None.
        strata: How the strata of the facts are found, a column of the fact table; None to find them (with the settings
            of `Strata()`) only if a filter or `batches.mix_strata` needs them.
        deferred_from_epoch: Epoch (from 0) from which the dropped facts are trained too, each once an epoch, weighted
            among all facts of the epoch; None for never. Facts that were dropped as known already, as near-duplicates
            or as contradictions stay dropped.

    Raises:
        InputError: If a setting is of another type, or `deferred_from_epoch` is below 1.
    """

    distance: Distance | None = None
    more_distances: list[Distance] | None = None
    filters: list[FactFilter] | None = None
    weighting: Weighting | None = None
    token_weighting: TokenWeighting | None = None
    strata: Strata | None = None
    deferred_from_epoch: int | None = None

    def __post_init__(self) -> None:
        require_instance("selection.distance", self.distance, Distance | None, "Surprisal()")
        require_instances("selection.more_distances", self.more_distances, Distance, "Surprisal()")
        require_instances("selection.filters", self.filters, FactFilter, "KnownFilter()")
        require_instance("selection.weighting", self.weighting, Weighting | None, "Proximity()")
        require_instance("selection.token_weighting", self.token_weighting, TokenWeighting | None, "ConfidenceGate()")
        require_instance("selection.strata", self.strata, Strata | None, "Strata()")
        if self.deferred_from_epoch is not None and self.deferred_from_epoch < 1:
            raise InputError(
                f"`selection.deferred_from_epoch` must be at least 1, got {self.deferred_from_epoch}. Epochs count "
                "from 0; facts that are to be trained from the first one on need no filter."
            )


@dataclass(frozen=True)
class BatchPlan:
    """Which facts run together.

    Args:
        micro_batch_size: Facts per forward pass of one process. Facts per optimizer step are this times
            `trainer.accumulate_grad_batches` times the number of processes.
        bucket_steps: Optimizer steps whose facts are sorted by length together, which saves padding.
        mix_strata: Whether every optimizer step gets each stratum's share of facts, instead of facts of like length.
        eval_batch_size: Facts per forward pass of scoring and evaluation.
        max_val_facts: How many facts, chosen by `data.seed`, are measured after each epoch, at least half of them kept
            ones where there are so many; all are measured in the end.

    Raises:
        InputError: If a number is no whole one, or below 1.
    """

    micro_batch_size: int = 16
    bucket_steps: int = 8
    mix_strata: bool = False
    eval_batch_size: int = 64
    max_val_facts: int = 1000

    def __post_init__(self) -> None:
        for name in ("micro_batch_size", "bucket_steps", "eval_batch_size", "max_val_facts"):
            require_whole_number(f"batches.{name}", getattr(self, name), 1)
