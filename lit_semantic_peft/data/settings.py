"""The settings of the data module, read from the one place that has them."""

from typing import TYPE_CHECKING

from lightning.pytorch import LightningDataModule

from lit_semantic_peft.data.plans import BatchPlan, EncodingPlan, FormsPlan, SelectionPlan
from lit_semantic_peft.data.prepare import Preparation
from lit_semantic_peft.data.second_pass import SecondPass
from lit_semantic_peft.evaluation.plan import EvaluationPlan
from lit_semantic_peft.semantics import Distance, Weighting

if TYPE_CHECKING:
    from lit_semantic_peft.facts import GivenFacts

    FactsSetting = GivenFacts
else:
    FactsSetting = str  # a YAML file and the command line name facts; jsonargparse reads this type


class ConfiguredDataModule(LightningDataModule):
    """A data module whose settings are those of its `preparation`; they are read-only here.

    Attributes:
        preparation: The settings, see `Preparation`.
        second_pass: The last optimizer steps of a training, where facts that resist are taught again; None for none.
            The callback `Refine` sets it; the `setup` of a training forgets it.
    """

    preparation: Preparation
    second_pass: SecondPass | None = None

    @property
    def encoding(self) -> EncodingPlan:
        """How facts become tokens."""
        return self.preparation.encoding

    @property
    def forms(self) -> FormsPlan:
        """In which forms a fact is taught beside its own prompt."""
        return self.preparation.forms

    @property
    def selection(self) -> SelectionPlan:
        """Which facts are trained, and what each of them weighs."""
        return self.preparation.selection

    @property
    def batches(self) -> BatchPlan:
        """Which facts run together."""
        return self.preparation.batches

    @property
    def evaluation(self) -> EvaluationPlan:
        """What the final evaluation asks beside the facts themselves."""
        return self.preparation.evaluation

    @property
    def seed(self) -> int:
        """Of the choice of facts and of their order."""
        return self.preparation.seed

    @property
    def distances(self) -> list[Distance]:
        """Every distance that is measured; the first one is that of filters and weighting."""
        return self.preparation.distances

    @property
    def weighting(self) -> Weighting:
        """The weighting of the trained facts."""
        return self.preparation.weighting
