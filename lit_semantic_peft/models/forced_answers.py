"""Free answers from a teacher-forced pass: what it already shows of them is not generated."""

from collections.abc import Collection, Sequence

from peft import PeftModel
from transformers import DynamicCache, PreTrainedModel

from lit_semantic_peft.models.generation import greedy_answers, greedy_continuations
from lit_semantic_peft.tokens import EncodedFact, PrefixTree


def answers_from_targets(
    model: PreTrainedModel | PeftModel,
    texts: Sequence[EncodedFact],
    winners: Sequence[Sequence[int]],
    max_new_tokens: Sequence[int],
    *,
    cache: DynamicCache | None,
    tree: PrefixTree | None,
    pad_id: int,
    stop_ids: Collection[int],
) -> list[list[int]]:
    """Greedy answers to prompts whose targets have run.

    As long as the argmax under the true prefix is the target's token, greedy generation gives the same token. So the
    pass over the targets also gives the beginning of each answer, often all of it. Only the rest is generated, from the
    keys and values of that pass where they were kept.

    Args:
        model: The causal language model that ran. Its training or evaluation mode is not changed.
        texts: Prompts and targets, the rows of the pass.
        winners: The argmax at each text's target positions, and at that of the end where the pass has it.
        max_new_tokens: Longest answer to each prompt, in tokens; 0 for none.
        cache: Keys and values of the pass, which are changed; None where they were not kept.
        tree: The tree that ran in place of the rows.
        pad_id: Token id for padding; masked.
        stop_ids: Ids that end an answer.

    Returns:
        The ids of each answer, equal to those of `greedy_answers`.
    """
    ids: list[list[int]] = []
    open_rows = []
    for place, (text, won, most) in enumerate(zip(texts, winners, max_new_tokens, strict=True)):
        target = text.target_ids
        agreed = 0
        while agreed < min(len(target), len(won)) and won[agreed] == target[agreed]:
            agreed += 1
        said = [*target[:agreed], *won[agreed : agreed + 1]]  # and the first token that differs
        stop = next((at for at, token in enumerate(said) if token in stop_ids), None)
        ids.append(said[:most] if stop is None else said[:stop][:most])
        if stop is None and len(said) < most:
            open_rows.append(place)
    beginnings = [(*texts[place].prompt_ids, *ids[place]) for place in open_rows]
    most_more = [max_new_tokens[place] - len(ids[place]) for place in open_rows]
    sizes = [len(texts[place].prompt_ids) for place in open_rows]
    if cache is None or not open_rows:
        continued = greedy_answers(
            model,
            beginnings,
            most_more,
            pad_id=pad_id,
            stop_ids=stop_ids,
            batch_size=max(1, len(beginnings)),
            num_prompt_tokens=sizes,
        )
    else:
        continued = greedy_continuations(
            model, cache, open_rows, beginnings, most_more, stop_ids=stop_ids, num_prompt_tokens=sizes, tree=tree
        )
    for place, more in zip(open_rows, continued, strict=True):
        ids[place] += more
    return ids
