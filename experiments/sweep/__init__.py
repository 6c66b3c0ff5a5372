"""Every model family that transformers has, with adapters of peft: what holds, what is refused, what is wrong."""
