"""Whether the gradient matrix predicts what happens: predicted and measured changes of loss, and facts taken out.

    python -m experiments.benchmarks.interference_validity            # SmolLM2-135M; minutes on 2 cores
    python -m experiments.benchmarks.interference_validity --smoke    # a tiny random model, to see whether it runs

1. Spearman correlation over facts between the first-order effect −(η/n) Σ_j w_j K_ij and the measured change of each
   fact's loss: after one small step of SGD, and after an epoch of AdamW in micro-batches.
2. The facts that most harm the victims (the quarter with the lowest net transfer in the middle of training) are taken
   out of training, and, for comparison, as many random facts that are no victims, several times.
"""

import argparse
import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from experiments.benchmarks.measured import keep
from experiments.benchmarks.subject import batches_of, real, tiny
from lit_semantic_peft.interference import gradient_matrix, net_transfer, predicted_change
from lit_semantic_peft.models import fact_nll
from lit_semantic_peft.tokens import EncodedFact
from scipy.stats import spearmanr

BATCH = 16


def main() -> None:
    """Measures, prints and keeps."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--facts", type=int, default=48)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--draws", type=int, default=4, help="of random facts to take out")
    parser.add_argument("--set", default="counterfactual", help="built-in facts")
    parser.add_argument("--learning-rate", type=float, default=5e-3, help="of AdamW")
    parser.add_argument("--smoke", action="store_true", help="a tiny random model and few facts")
    parser.add_argument("--results", type=Path, help="folder for the JSON file; experiments/results if not set")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.facts, arguments.epochs, arguments.draws = 24, 2, 2
    model, facts, pad_id = tiny(arguments.facts) if arguments.smoke else real(arguments.facts, arguments.set)
    study = Study(model, facts, pad_id, arguments.learning_rate)
    result = {
        "model": "tiny" if arguments.smoke else "smollm2-135m",
        "adapter": "LoRA r=8 all-linear",
        "facts": len(facts),
        "set": "random" if arguments.smoke else arguments.set,
        "epochs": arguments.epochs,
        "learning_rate": arguments.learning_rate,
        "correlation": study.correlations(),
        "removal": study.removal(arguments.epochs, arguments.draws),
    }
    print(f"Written: {keep('interference_validity', result, arguments.results)}")


class Study:
    """Trains one adapter again and again from the same start.

    Args:
        model: With its adapter at the start.
        facts: What is learned.
        pad_id: For padding.
        learning_rate: AdamW's.
    """

    def __init__(self, model: torch.nn.Module, facts: Sequence[EncodedFact], pad_id: int, learning_rate: float) -> None:
        self.model, self.facts, self.pad_id, self.learning_rate = model, facts, pad_id, learning_rate
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.start = copy.deepcopy([parameter.data for parameter in self.parameters])

    def restart(self) -> None:
        """Puts the adapter back to the start."""
        for parameter, value in zip(self.parameters, self.start, strict=True):
            parameter.data.copy_(value)

    def losses(self) -> torch.Tensor:
        """ℓ of every fact."""
        with torch.no_grad():
            batches = batches_of(self.facts, BATCH, self.pad_id)
            return torch.cat([fact_nll(self.model, batch) for batch in batches]).double()

    def train(self, rows: Sequence[int], epochs: int, seed: int = 0) -> None:
        """AdamW over some of the facts; each of them is seen once an epoch."""
        optimizer = torch.optim.AdamW(self.parameters, lr=self.learning_rate, weight_decay=0.0)
        generator = torch.Generator().manual_seed(seed)
        for _ in range(epochs):
            # The order of all facts, so that those that are left meet in the same order whichever are out.
            order = [row for row in torch.randperm(len(self.facts), generator=generator).tolist() if row in rows]
            for batch in batches_of([self.facts[row] for row in order], BATCH, self.pad_id):
                optimizer.zero_grad()
                fact_nll(self.model, batch).mean().backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        optimizer.zero_grad()  # or the next gradient would be added to the last one

    def matrix(self) -> torch.Tensor:
        """The gradient matrix of all facts."""
        return gradient_matrix(self.model, batches_of(self.facts, BATCH, self.pad_id))

    def correlations(self) -> dict[str, float]:
        """Predicted against measured changes of loss, after a first epoch, when facts interfere."""
        size, rows = len(self.facts), range(len(self.facts))
        self.restart()
        self.train(rows, epochs=1)
        matrix, before = self.matrix(), self.losses()
        prediction = predicted_change(matrix, torch.ones(size), 1.0, size)
        kept = [parameter.data.clone() for parameter in self.parameters]
        found = {}
        for rate in (1e-3, 1e-2, 1e-1):
            for batch in batches_of(self.facts, BATCH, self.pad_id):
                (fact_nll(self.model, batch).sum() / size).backward()  # type: ignore[no-untyped-call]
            for parameter in self.parameters:
                assert parameter.grad is not None
                parameter.data -= rate * parameter.grad
                parameter.grad = None
            found[f"one_sgd_step_{rate:g}"] = _correlation(prediction, self.losses() - before)
            for parameter, value in zip(self.parameters, kept, strict=True):
                parameter.data.copy_(value)
        self.train(rows, epochs=1, seed=1)
        found["an_epoch_of_adamw"] = _correlation(prediction, self.losses() - before)
        print("Spearman correlation of predicted and measured change:", found, flush=True)
        return found

    def removal(self, epochs: int, draws: int) -> dict[str, Any]:
        """The victims' loss after training without their aggressors, and without random facts."""
        size = len(self.facts)
        everyone = range(size)
        self.restart()
        self.train(everyone, max(epochs // 2, 1))
        matrix = self.matrix()
        transfer = net_transfer(matrix, torch.ones(size), size)
        victims = transfer.argsort()[: size // 4].tolist()
        harm = (-matrix[victims]).clamp(min=0).sum(dim=0)
        harm[victims] = -1
        aggressors = harm.argsort(descending=True)[: size // 4].tolist()
        bystanders = [row for row in everyone if row not in victims]
        found: dict[str, Any] = {
            "victims": len(victims),
            "taken_out": len(aggressors),
            "nothing": self._victims_loss([], victims, epochs),
            "aggressors": self._victims_loss(aggressors, victims, epochs),
            "random": [],
        }
        generator = torch.Generator().manual_seed(0)
        for _ in range(draws):
            drawn = [bystanders[at] for at in torch.randperm(len(bystanders), generator=generator).tolist()]
            found["random"].append(self._victims_loss(drawn[: len(aggressors)], victims, epochs))
        print("Mean loss of the victims, by what was taken out:", found, flush=True)
        return found

    def _victims_loss(self, out: Sequence[int], victims: Sequence[int], epochs: int) -> float:
        self.restart()
        self.train([row for row in range(len(self.facts)) if row not in out], epochs)
        return float(self.losses()[victims].mean())


def _correlation(prediction: torch.Tensor, measured: torch.Tensor) -> float:
    return float(spearmanr(prediction.numpy(), measured.numpy()).statistic)


if __name__ == "__main__":
    main()
