"""Text that has nothing to do with facts about names, to see what an adapter does to everything else.

Written for this project, under its licence. Everyday prose, a dialogue, instructions, arithmetic, code: no place,
person, product or organisation is named.
"""

from lit_semantic_peft.errors import InputError
from lit_semantic_peft.files import read_text

NEUTRAL_TEXTS: tuple[str, ...] = (
    "In the morning the kitchen was cold, so she put on a thick jumper, lit the stove and waited for the "
    "kettle to sing before she opened the window.",
    "To bake bread you need flour, water, salt and yeast. Mix them, let the dough rest until it has doubled in"
    " size, and bake it until the crust sounds hollow.",
    "The dog had learned to open the gate by itself. It pushed the latch up with its nose, looked around to "
    "see whether anyone was watching, and ran down to the river.",
    "If a train leaves at nine and the journey takes two and a half hours, it arrives at half past eleven, "
    "provided that nothing holds it up on the way.",
    'def add(left, right):\n    """Returns the sum of two numbers."""\n    return left + right\n\n\nprint(add(2, 3))',
    '"Did you remember to water the plants?" he asked. "Twice," she said, "and the tall one by the door has a '
    'new leaf."',
    "A good chair supports the back and lets the feet rest flat on the floor. Sit upright, keep the screen at "
    "eye level, and stand up once an hour.",
    "Water boils sooner on a high mountain, because the air there is thinner and presses less on its surface.",
    "First they counted the apples, then the pears. There were twelve of one and seven of the other, nineteen "
    "pieces of fruit in all.",
    "The meeting was short. Everyone agreed that the roof had to be repaired before winter, and that the money"
    " for it would have to come from somewhere else.",
    "When you feel angry, it can help to breathe slowly, count to ten and go for a walk before you answer the letter.",
    "Dear neighbour, thank you for taking in the parcel. I will come by tomorrow evening after work to pick it"
    " up, if that suits you.",
    "Leaves are green because they take in red and blue light and send the green back. In autumn the green "
    "fades, and yellow and red come to light.",
    "He was not sure whether the noise came from the attic or from outside, but it stopped as soon as he put "
    "his foot on the stairs.",
    "Save your work often. If the program closes without warning, open it again and look for a copy that was "
    "kept on its own.",
    "The children built a bridge out of cardboard and string. It held three books, a cup and, for a short "
    "while, the cat.",
)


def read_passages(file: str, setting: str) -> list[str]:
    """The passages of a text file, which are separated by empty lines.

    Args:
        file: A UTF-8 text file.
        setting: Where the user named it, for messages.

    Returns:
        At least one, each with single spaces between its words.

    Raises:
        InputError: If the file cannot be read or holds no text.
    """
    text = read_text(file, f"`{setting}`")
    lines = "\n".join(line.strip() for line in text.splitlines())
    found = [" ".join(passage.split()) for passage in lines.split("\n\n") if passage.strip()]
    if not found:
        raise InputError(f"{file}: expected passages of text, separated by empty lines, got none")
    return found
