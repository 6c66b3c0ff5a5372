"""Sets of facts that come with the package. Sources and licences: `LICENSES.md` in this folder."""

import gzip
import json
import random
from collections.abc import Sequence
from importlib import resources

from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts.builtin.fictional import fictional_facts
from lit_semantic_peft.facts.schema import Fact

BUILTIN: dict[str, str] = {
    "world": "real geography facts, with paraphrases, neighbours and two-hop questions",
    "counterfactual": "the prompts of `world` with another target of the same relation",
    "fictional": "generated facts about names that do not exist; any number",
}
"""Name and description of each built-in set."""

DEFAULT_NUM_FICTIONAL = 500


def builtin_facts(name: str, num_facts: int | None = None, seed: int = 0) -> list[Fact]:
    """Reads or generates a built-in set.

    Args:
        name: A key of `BUILTIN`.
        num_facts: For `fictional`, how many to generate (None: 500); else the size of a random subset (None: all).
        seed: Seed of the generator or of the subset.

    Returns:
        The facts, with `location` set. A subset keeps the order of the set.

    Raises:
        InputError: If there is no such set, or it holds fewer facts than asked for.

    Example:
        >>> [fact.id for fact in builtin_facts("fictional", 2)]
        ['fictional-0-00000', 'fictional-0-00001']
    """
    if name not in BUILTIN:
        raise InputError(f"`name`: expected one of {', '.join(f'`{known}`' for known in BUILTIN)}, got {name!r}")
    if name == "fictional":
        return fictional_facts(DEFAULT_NUM_FICTIONAL if num_facts is None else num_facts, seed)
    packed = resources.files(__package__).joinpath(f"{name}.jsonl.gz").read_bytes()
    lines = gzip.decompress(packed).decode("utf-8").splitlines()
    facts = [Fact.from_json(json.loads(line), f"{name}:{number}") for number, line in enumerate(lines, start=1)]
    return facts if num_facts is None else choose(facts, num_facts, seed, name)


def choose(facts: Sequence[Fact], num_facts: int, seed: int, source: str) -> list[Fact]:
    """Draws a random subset that keeps the order of the set.

    Args:
        facts: All facts.
        num_facts: Size of the subset.
        seed: Seed of the draw.
        source: What the facts were read from, for the message.

    Returns:
        The subset; the same one for the same seed and number of facts on every machine.

    Raises:
        InputError: If more facts are asked for than there are.
    """
    if num_facts > len(facts):
        raise InputError(f"`num_facts`: {num_facts} facts were asked for, but {source} holds only {len(facts)}")
    return [facts[index] for index in sorted(random.Random(seed).sample(range(len(facts)), num_facts))]
