"""What online weights add to a training step of ours; `training_speed --online` measures it."""

import time
from typing import Any

import torch
from experiments.benchmarks.measured import rotated, spread
from experiments.benchmarks.training_contenders import LEARNING_RATE, Contender, Settings, peft_model, token_mean_facts


def online_cost(settings: Settings, repetitions: int) -> dict[str, Any]:
    """Processor seconds of the same training steps with given and with online weights, each micro-batch in turn.

    One adapter learns throughout, so that both ways meet the same weights but for the steps in between.
    """
    from lit_semantic_peft.models import fact_nll
    from lit_semantic_peft.semantics import ExpectedEmbeddingDistance, Online, Proximity
    from lit_semantic_peft.semantics.step_losses import losses_and_online_weights

    data = token_mean_facts(settings)
    model = peft_model(Contender("ours"), settings).train()
    parameters = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0)
    weighting, distance = Online(Proximity()), ExpectedEmbeddingDistance()

    def step(batch: Any, is_online: bool) -> None:
        if is_online:
            nll, weight = losses_and_online_weights(model, batch, weighting, None, distance, has_end=True)
        else:
            nll, weight = fact_nll(model, batch), batch.loss_weight
        assert weight is not None
        ((weight * nll).sum() / weight.sum()).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    batches = data.training_batches(data.prepared.kept_index, settings.micro_batch_size)
    seconds: dict[str, list[float]] = {"given": [], "online": []}
    for repetition in range(repetitions + 1):  # the first warms up
        spent = dict.fromkeys(seconds, 0.0)
        for batch in batches:
            for way in rotated(list(seconds), repetition):
                begun = time.process_time()
                step(batch, way == "online")
                spent[way] += time.process_time() - begun
        if repetition:
            for way, value in spent.items():
                seconds[way].append(value)
    added = [online / given - 1 for given, online in zip(*seconds.values(), strict=True)]
    return {
        "num_facts": len(data.prepared.kept_index),
        "processor_seconds": seconds,
        "added_by_online": spread(added),
    }
