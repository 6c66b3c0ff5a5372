"""The teacher's predictions: of the base model, computed once for each text, in memory and on disk."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from lit_semantic_peft.files import content_key
from lit_semantic_peft.models import target_logits
from lit_semantic_peft.training.retain.context import RetainContext
from lit_semantic_peft.training.retain.divergence import TopTokens, top_tokens, without_tokens
from lit_semantic_peft.training.retain.source import RetainedText

_TEACHER_VERSION = 1


@dataclass(frozen=True)
class StoredTeacher:
    """What a teacher predicts at the held positions of some texts.

    Attributes:
        top: Its predictions, text after text.
        ends: int64 `(n,)`, end of each text's positions among them.
    """

    top: TopTokens
    ends: np.ndarray

    def of(self, text: int) -> TopTokens:
        """The predictions for one text.

        Args:
            text: Its place.
        """
        return self.top[slice(int(self.ends[text - 1]) if text else 0, int(self.ends[text]))]


def store_teacher(context: RetainContext, texts: Sequence[RetainedText], k: int, *, drops_target: bool) -> TopTokens:
    """Predictions of the base model from the cache, or computed and stored. Runs on the first rank alone.

    Cost: one forward pass over the texts.

    Args:
        context: The base model.
        texts: The texts.
        k: Most likely tokens that are kept.
        drops_target: Whether the target token is left out of the distribution.

    Returns:
        Text after text.
    """
    read = [text.teacher for text in texts]
    manifest = {
        **context.identity,
        "what": "teacher of retained text",
        "version": _TEACHER_VERSION,
        "texts": content_key([asdict(one) for one in read]),
        "k": k,
        "drops_target": drops_target,
    }
    top = context.cache.load_table(manifest, _from_table)
    if top is None:
        parts: list[TopTokens] = [TopTokens(*[torch.empty(0)] * 3)] * len(texts)
        with context.base_model() as model:
            for places, batch in context.batches(read, "Predictions of the base model"):
                logits, targets, _ = target_logits(model, batch)
                found = top_tokens(without_tokens(logits, targets) if drops_target else logits, k)
                cpu, start = found.to(torch.device("cpu")), 0
                for place in places:
                    end = start + read[place].num_target_tokens
                    parts[place] = cpu[start:end]
                    start = end
        top = TopTokens.cat(parts)
        context.cache.store_table(manifest, _to_table(top))
    return top


def _to_table(top: TopTokens) -> pa.Table:
    k = top.ids.shape[1]

    def column(values: Tensor, kind: pa.DataType) -> pa.Array:
        return pa.FixedSizeListArray.from_arrays(pa.array(values.flatten().numpy()).cast(kind), k)

    return pa.table(
        {
            "ids": column(top.ids, pa.int32()),
            "log_probs": column(top.log_probs, pa.float32()),
            "log_rest": pa.array(top.log_rest.numpy()),
        }
    )


def _from_table(table: pa.Table) -> TopTokens:
    def rows(name: str) -> Tensor:
        column = table[name].combine_chunks()
        values = column.flatten().to_numpy(zero_copy_only=False) if pa.types.is_fixed_size_list(column.type) else column
        return torch.from_numpy(np.array(values)).reshape(len(table), -1)

    return TopTokens(rows("ids"), rows("log_probs"), rows("log_rest")[:, 0])
