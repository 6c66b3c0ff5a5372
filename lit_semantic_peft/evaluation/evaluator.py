"""Asks base model and trained model the same questions, freely and teacher-forced."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor

from lit_semantic_peft.evaluation.answers import Answer
from lit_semantic_peft.evaluation.questions import Question, dialogue_encoders, doubted
from lit_semantic_peft.metrics import is_exact_match, kl_from_likeliest, likeliest_tokens, starts_with_answer
from lit_semantic_peft.models import greedy_answers, prompt_cache
from lit_semantic_peft.models.forced_answers import answers_from_targets
from lit_semantic_peft.semantics import Distance, TargetPass, score_pass, target_pass, with_answers
from lit_semantic_peft.tokens import FactEncoder, cheaper_tree, collate

EVALUATION_VERSION = 2
"""Part of the key of cached answers; raised whenever a change of this package changes an answer."""

KEPT_TOKENS = 64
"""Likeliest tokens of the base model that the divergence of a neighbour is measured over."""

_TARGET_TOKENS_AT_ONCE = 512  # logits of 50,000 tokens at 512 positions are 100 MB
_DIALOGUES = ("doubt_plain", "doubt_chat")


@dataclass(frozen=True, slots=True)
class Comparison:
    """A question with the answers of the base model and of the trained model.

    In a dialogue each model is shown its own earlier answers; `question` is what the trained model was asked.
    """

    question: Question
    before: Answer
    after: Answer

    @property
    def is_unchanged(self) -> bool:
        """Whether the trained model still gives the base model's answer.

        A trained model stops after its answer, a base model often does not. So the shorter answer must be a prefix of
        the longer one, in whole words after normalisation. An empty answer is a change unless both are empty.
        """
        before, after = self.before.text, self.after.text
        return before == after or starts_with_answer(before, [after]) or starts_with_answer(after, [before])

    @property
    def was_known(self) -> bool:
        """Whether the base model's answer begins with an accepted one; it may go on after that."""
        return starts_with_answer(self.before.text, self.question.accepted)

    @property
    def is_still_known(self) -> bool:
        """Whether the trained model's answer begins with an accepted one."""
        return starts_with_answer(self.after.text, self.question.accepted)


class Evaluator:
    """Asks a model with an adapter, and the same model without it, batch by batch.

    The teacher-forced pass that measures the targets also gives the beginning of the free answers
    (`answers_from_targets`).

    Args:
        encoder: How the facts are tokenized.
        distances: What is measured of the facts' own prompts.
        doubt_turns: How often an answer of a dialogue is doubted.
        joiners: Text between prompt and answer of each fact, by fact index.
        base_answers: Known answers of the base model, by question number; the model answers the others.
        has_trees: Whether the teacher-forced passes run as prefix trees, which must be exact for both sides.
    """

    def __init__(
        self,
        encoder: FactEncoder,
        distances: Sequence[Distance],
        doubt_turns: int = 0,
        joiners: Sequence[str] = (),
        base_answers: Mapping[int, Answer] | None = None,
        *,
        has_trees: bool = False,
    ) -> None:
        self.encoder = encoder
        self.distances = distances
        self.doubt_turns = doubt_turns
        self.joiners = joiners
        self.base_answers = base_answers
        self.has_trees = has_trees
        self._dialogue_encoders = dialogue_encoders(encoder) if doubt_turns else {}

    def compare(self, model: PeftModel, questions: Sequence[Question]) -> list[Comparison]:
        """Asks both sides.

        Args:
            model: The model with its adapter.
            questions: What to ask; dialogues go on for `doubt_turns`.
        """
        before = self.base_answers
        if before is None:
            with model.disable_adapter():
                before = {question.number: answer for question, answer in self.ask(model, questions)}
        after = self.ask(model, questions, before)
        return [Comparison(question, before[question.number], answer) for question, answer in after]

    @torch.no_grad()
    def ask(
        self, model: PeftModel, questions: Sequence[Question], reference: Mapping[int, Answer] | None = None
    ) -> list[tuple[Question, Answer]]:
        """Asks one side.

        Args:
            model: The model, with its adapter on or off as the caller has set it.
            questions: What to ask.
            reference: The base model's answers, to measure the divergence from; None for the base model itself.

        Returns:
            The questions with their answers, in order, then the further turns of the dialogues.
        """
        answered = self._ask_turn(model, questions, reference)
        dialogues = [(one, [(one.prompt, answer.text)]) for one, answer in answered if one.kind in _DIALOGUES]
        for _ in range(self.doubt_turns if dialogues else 0):
            asked = [
                doubted(first, history, self.joiners[first.fact_index], self._dialogue_encoders[first.kind])
                for first, history in dialogues
            ]
            turn = self._ask_turn(model, asked, reference)
            for (_, history), (question, answer) in zip(dialogues, turn, strict=True):
                history.append((question.prompt, answer.text))
            answered += turn
        return answered

    def free_answers(self, model: PeftModel, questions: Sequence[Question]) -> list[str]:
        """Free greedy answers to prompts that have no target.

        Args:
            model: The model, with its adapter on or off as the caller has set it.
            questions: What to ask.
        """
        ids = greedy_answers(
            model,
            [one.prompt_ids for one in questions],
            [one.max_new_tokens for one in questions],
            pad_id=self.encoder.pad_id,
            stop_ids=self.encoder.stop_ids,
            batch_size=max(1, len(questions)),
        )
        return [self.encoder.decode_answer(answer) for answer in ids]

    def _ask_turn(
        self, model: PeftModel, questions: Sequence[Question], reference: Mapping[int, Answer] | None
    ) -> list[tuple[Question, Answer]]:
        """Asks every question; what differs only in its facts (a neighbour of several) is asked once."""
        first: dict[Question, Question] = {}
        same = [
            first.setdefault(replace(question, number=0, fact_index=0, needs=()), question) for question in questions
        ]
        answers = {
            question.number: answer
            for chunk in _chunks(list(first.values()))
            for question, answer in self._ask_chunk(model, chunk, reference)
        }
        return [(question, answers[asked.number]) for question, asked in zip(questions, same, strict=True)]

    def _ask_chunk(
        self, model: PeftModel, questions: Sequence[Question], reference: Mapping[int, Answer] | None
    ) -> Iterator[tuple[Question, Answer]]:
        end = self.encoder.stop_ids[:1]  # fills the position after the target; any stop id does
        rows = []
        for question in questions:
            assert question.encoded is not None
            rows.append(replace(question.encoded, end_ids=end if question.max_new_tokens > 0 else ()))
        batch = collate(rows, [one.fact_index for one in questions], self.encoder.pad_id)
        batch = batch.to(next(model.parameters()).device)
        tree = cheaper_tree(batch) if self.has_trees else None
        cache = prompt_cache(model) if any(one.max_new_tokens for one in questions) else None
        outputs = target_pass(model, batch, cache, tree)
        # Positions of each row: those of its target, then that of the end.
        sizes = [len(row.target_ids) + len(row.end_ids) for row in rows]
        winners = [part.tolist() for part in torch.split(outputs.logits.argmax(dim=-1), sizes)]
        ids = answers_from_targets(
            model,
            rows,
            winners,
            [one.max_new_tokens for one in questions],
            cache=cache,
            tree=tree,
            pad_id=self.encoder.pad_id,
            stop_ids=self.encoder.stop_ids,
        )
        is_target = torch.tensor(
            [place < len(row.target_ids) for row, size in zip(rows, sizes, strict=True) for place in range(size)]
        )
        targets = _restricted(outputs, is_target, range(len(rows)))
        scores = score_pass(targets)
        distances = self._distances(model, targets, questions, ids)
        divergence = _divergence(targets, questions, reference)
        for place, question in enumerate(questions):
            text = self.encoder.decode_answer(ids[place])
            yield (
                question,
                Answer(
                    text=text,
                    is_correct=is_exact_match(text, question.accepted),
                    is_recalled=bool(scores.is_recalled[place]),
                    nll=float(scores.nll[place]),
                    distances=distances.get(place, {}),
                    **divergence.get(place, {}),
                ),
            )

    def _distances(
        self, model: PeftModel, targets: TargetPass, questions: Sequence[Question], ids: Sequence[list[int]]
    ) -> dict[int, dict[str, float]]:
        """Distances of the facts' own prompts, by row."""
        rows = [place for place, question in enumerate(questions) if question.kind == "fact"]
        if not rows:
            return {}
        is_fact = torch.isin(targets.row, torch.tensor(rows, device=targets.row.device))
        prompts, greedy = [questions[row].prompt_ids for row in rows], [ids[row] for row in rows]
        own = _restricted(targets, is_fact, rows)
        own = with_answers(own, model, self.encoder, prompts, greedy, self.distances)
        measured = {name: values.tolist() for name, values in score_pass(own, self.distances).distances.items()}
        return {row: {name: values[at] for name, values in measured.items()} for at, row in enumerate(rows)}


def _chunks(questions: Sequence[Question]) -> Iterator[list[Question]]:
    """Questions split into parts whose logits fit into memory, in order."""
    chunk: list[Question] = []
    total = 0
    for question in questions:
        assert question.encoded is not None
        size = len(question.encoded.target_ids) + 1
        if chunk and total + size > _TARGET_TOKENS_AT_ONCE:
            yield chunk
            chunk, total = [], 0
        chunk.append(question)
        total += size
    if chunk:
        yield chunk


def _restricted(outputs: TargetPass, positions: Tensor, rows: Sequence[int]) -> TargetPass:
    """A pass restricted to some of its positions, all of which belong to the given rows."""
    positions = positions.to(outputs.row.device)
    number = torch.full((outputs.num_facts,), -1, device=outputs.row.device)
    number[torch.tensor(list(rows), device=number.device)] = torch.arange(len(rows), device=number.device)
    return replace(
        outputs,
        logits=outputs.logits[positions],
        hidden=None if outputs.hidden is None else outputs.hidden[positions],
        targets=outputs.targets[positions],
        row=number[outputs.row[positions]],
        num_facts=len(rows),
    )


def _divergence(
    targets: TargetPass, questions: Sequence[Question], reference: Mapping[int, Answer] | None
) -> dict[int, dict[str, Any]]:
    """Of neighbours, by row: the base model's likeliest tokens, or the trained model's divergence from them."""
    found: dict[int, dict[str, Any]] = {}
    for place, question in enumerate(questions):
        if question.kind != "neighborhood":
            continue
        logits = targets.logits[targets.row == place]
        found[place] = {"winners": tuple(logits.argmax(dim=-1).tolist())}
        if reference is None:
            ids, log_prob = likeliest_tokens(logits, KEPT_TOKENS)
            found[place]["likeliest_ids"] = ids.cpu().numpy().astype(np.int32)
            found[place]["likeliest_log_prob"] = log_prob.cpu().numpy()
        else:
            base = reference[question.number]
            assert base.likeliest_ids is not None
            assert base.likeliest_log_prob is not None
            ids = torch.as_tensor(base.likeliest_ids, dtype=torch.long, device=logits.device)
            log_prob = torch.as_tensor(base.likeliest_log_prob, device=logits.device)
            found[place]["kl"] = float(kl_from_likeliest(ids, log_prob, logits).mean())
    return found
