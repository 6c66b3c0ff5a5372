"""`COMMAND --help` of the commands that Lightning's parser reads: what matters, on two screens, at once.

Defaults come from the file beside `options`; a key that no line describes is named at the end of its group. The parser,
which `--help_all` builds, explains every key.
"""

import textwrap
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from lit_semantic_peft.cli.options import KnownOptions

_LEFT, _WIDTH = 39, 110


class Group(NamedTuple):
    """Options that belong together.

    Attributes:
        title: Said above them.
        lines: For an option its value in a word, and what it does.
        sections: Sections of the configuration whose other keys are named below; those of a section in it are not.
    """

    title: str
    lines: Mapping[str, tuple[str, str]]
    sections: tuple[str, ...] = ()


_COMMON = Group(
    "Where settings come from",
    {
        "config": ("FILE", "YAML with the keys below: `data: {num_facts: 64}`; what stands after it wins"),
        "print_config": ("", "show what differs from the defaults, and stop; --print_config=full shows every key"),
        "help_all": ("", "every key, Lightning's too, with type and meaning; arguments of a class: --KEY.help CLASS"),
    },
)
_CHOOSING = Group(
    "What is chosen for you",
    {
        "recipe": ("NAME", "auto chooses steps, rate, forms and what is held still, where not given; gated; plain"),
        "refine": ("STEPS", "steps at the end that teach once more the facts that resist"),
        "extrapolate": ("FACTOR", "scale the adapter up at the end by so much, 1 or more"),
        "scale_back": ("BOOL", "scale the adapter down at the end, as far as its facts stay recalled"),
        "seed_everything": ("N", "seed of the adapter's start and of all that is random"),
        "self_check": ("BOOL", "check first that the fast ways to run a model are exact for it"),
    },
)
_FACTS = Group(
    "Facts",
    {
        "data.facts": ("FACTS", "world, counterfactual, fictional, or your .jsonl, .csv, .parquet, folder or Hub name"),
        "data.num_facts": ("N", "how many of them, a seeded choice; null: all"),
        "data.contradictions": ("error|keep", "the same prompt with two targets"),
        "data.encoding.template": ("none|chat", "chat: prompts are turns in the tokenizer's chat template"),
        "data.forms.sources": (
            "CLASSES",
            "other words to teach: Templates, Question, Reversed, Cloze, Given, InContext",
        ),
        "data.forms.from_paraphrases": ("N", "how many of a fact's paraphrases are taught instead of asked"),
    },
    ("data", "data.encoding", "data.forms"),
)
_SELECTION = Group(
    "Distance, filters, weights",
    {
        "data.selection.distance": (
            "CLASS",
            "ExpectedEmbeddingDistance, Surprisal, HiddenStateDistance, ResponseDistance, SentenceDistance",
        ),
        "data.selection.filters": (
            "CLASSES",
            "KnownFilter, MeanVarianceFilter, BandFilter, DispersionFilter, RedundancyFilter",
        ),
        "data.selection.weighting": ("CLASS", "Uniform, Proximity, Remoteness, Band, Focal, Online, Scheduled"),
    },
    ("data.selection",),
)
_MODEL = Group(
    "Base model and adapter",
    {
        "model.base_model": ("NAME", "smollm2-135m (no network), a Hub name, a folder, or a GGUF file"),
        "model.base_model.dtype": ("TYPE", "float32, bfloat16, float16; nf4 and int8 quantise the base (QLoRA)"),
        "model.peft_config": (
            "CLASS",
            "of peft: peft.LoraConfig, peft.IA3Config, …; its arguments: --model.peft_config.r 16",
        ),
        "model.adapter": ("FOLDER", "an exported adapter to use, for test and predict"),
        "model.gate": ("CLASS", "prompts that the adapter acts on: SubjectGate; null: all"),
        "model.retain": (
            "CLASSES",
            "held still: OwnSamples, KnownFacts, SubjectSamples, Text, RetainSplit, InputDirections",
        ),
    },
    ("model", "model.base_model"),
)
_TRAINING = Group(
    "Training",
    {
        "trainer.default_root_dir": ("FOLDER", "the run folder; must not hold a run"),
        "trainer.max_steps": ("N", "optimizer steps; -1: the recipe's, or what max_epochs says"),
        "trainer.max_epochs": ("N", "passes over the facts"),
        "model.optimizer": ("CLASS", "torch.optim.AdamW, …; with --model.optimizer.lr 0.001"),
        "model.schedule": ("NAME", "learning rate after warm-up: constant, linear, cosine"),
        "model.warmup_ratio": ("SHARE", "of the steps, over which the learning rate rises"),
        "data.batches.micro_batch_size": ("N", "facts per forward pass"),
        "trainer.accumulate_grad_batches": ("N", "forward passes per optimizer step"),
        "trainer.gradient_clip_val": ("NORM", "largest norm of a step's gradient"),
        "trainer.precision": ("NAME", "bf16-mixed on a GPU that has it"),
        "trainer.devices": ("N", "processes or GPUs; `trainer.strategy` says how they share the work"),
        "trainer.logger": ("CLASS", "WandbLogger, with --trainer.logger.project; else a CSV file in the run folder"),
        "trainer.callbacks": ("CLASSES", "such as lit_semantic_peft.callbacks.StopWhenRecalled"),
        "ckpt_path": ("last|FILE", "go on with the run folder, or with a checkpoint"),
    },
    ("data.batches", "checkpoint"),
)
_MEASURING = Group(
    "What is measured and written",
    {
        "data.evaluation.probes": ("KINDS", "what is asked at the end beside the facts"),
        "data.evaluation.retention": ("BOOL", "unrelated text and known facts, before and after"),
        "data.evaluation.texts": ("FILE", "your own unrelated text; null: 16 passages that come with the package"),
        "interference.num_facts": ("N|auto|all", "facts whose gradients are compared in training; 0: none"),
        "interference.every_n_epochs": ("N", "epochs between two comparisons"),
        "interference.final_facts": ("N", "most facts in the matrix after training"),
        "report.log_fact_text": ("BOOL", "whether W&B gets texts and answers"),
    },
    ("data.evaluation", "interference", "export", "report"),
)
_ANSWERS = Group(
    "What to ask",
    {
        "ckpt_path": ("last|FILE", "the adapter of the run folder's newest checkpoint, or of a file"),
        "model.adapter": ("FOLDER", "or an exported adapter"),
        "chat": ("", "a conversation in the terminal, the base model's answers beside; nothing is written"),
        "data.prompts": ("PROMPTS", "free prompts, such as '[The capital of France is]'; null: the facts"),
        "data.max_new_tokens": ("N", "longest answer to a free prompt"),
    },
)
_CHECKPOINT = Group(
    "Which adapter",
    {
        "ckpt_path": ("last|FILE", "of the run folder's newest checkpoint, or of a file"),
        "model.adapter": ("FOLDER", "or an exported adapter"),
    },
)
_SCORING = Group(
    "Scoring",
    {
        "output": ("FOLDER", "where table and report go; null: `score` in the run folder"),
        "warmup_steps": (
            "N",
            "train a throw-away adapter for N steps and measure which facts conflict; 0: no conflicts",
        ),
        "warmup_learning_rate": ("RATE", "of that adapter; null: that of its type"),
        "num_conflict_facts": ("N", "how many kept facts are measured then"),
        "run": ("FOLDER", "a finished run: which distance predicts what it learned"),
    },
)
_FOLDER = Group("Run folder", {"trainer.default_root_dir": ("FOLDER", "a run's, by --config RUN/config.yaml")})
_ASKED = Group(_FACTS.title, {key: _FACTS.lines[key] for key in list(_FACTS.lines)[:4]})
_OF_COMMAND = {
    "fit": (_COMMON, _CHOOSING, _FACTS, _SELECTION, _MODEL, _TRAINING, _MEASURING),
    "validate": (_COMMON, _CHECKPOINT, _FOLDER, _ASKED),
    "test": (_COMMON, _CHECKPOINT, _FOLDER, _ASKED, _MEASURING),
    "predict": (_COMMON, _ANSWERS, _FOLDER, _ASKED),
    "score": (_COMMON, _SCORING, _ASKED, _SELECTION, Group(_MODEL.title, dict(list(_MODEL.lines.items())[:3]))),
}
_EXAMPLES = {
    "fit": (
        "fit --data.facts facts.jsonl --trainer.default_root_dir runs/mine",
        "fit --config experiments/quickstart.yaml --data.num_facts 64 --trainer.max_steps 60",
        "fit --config runs/mine/config.yaml --ckpt_path last",
    ),
    "validate": ("validate --config runs/mine/config.yaml --ckpt_path last",),
    "test": ("test --config runs/mine/config.yaml --ckpt_path last",),
    "predict": (
        "predict --config runs/mine/config.yaml --ckpt_path last",
        "predict --config runs/mine/config.yaml --ckpt_path last --data.prompts '[Zorvex is in]'",
        "predict --config runs/mine/config.yaml --model.adapter runs/mine/adapter --chat",
    ),
    "score": (
        "score --data.facts facts.jsonl",
        "score --config experiments/quickstart.yaml --warmup_steps 30",
    ),
}


def help_text(command: str, description: str) -> str:
    """The help of one command.

    Args:
        command: One of `options.COMMANDS`.
        description: What it does.
    """
    known = KnownOptions()
    defaults = known.defaults | known.of_command(command)
    lines = [f"usage: lit-semantic-peft {command} [--config FILE] [--OPTION VALUE ...]", ""]
    lines += [*textwrap.wrap(description, _WIDTH), "", "examples:"]
    lines += [f"  lit-semantic-peft {example}" for example in _EXAMPLES[command]]
    for group in _OF_COMMAND[command]:
        lines += ["", f"{group.title}:", *_shown(group, defaults)]
    if command != "fit":
        lines += ["", "Every key of `fit` may be given too: lit-semantic-peft fit --help"]
    return "\n".join(lines) + "\n"


def described(command: str) -> set[str]:
    """The options that a line of a command's help explains.

    Args:
        command: One of `options.COMMANDS`.
    """
    return {key for group in _OF_COMMAND[command] for key in group.lines}


def _shown(group: Group, defaults: Mapping[str, str]) -> Iterator[str]:
    for key, (value, text) in group.lines.items():
        default = defaults.get("model.base_model.name" if key == "model.base_model" else key, "null")
        shown = f"{text} ({default})" if default not in ("null", "-1", "false") and len(default) < 20 else text
        option = f"  --{key} {value}".rstrip()
        yield from textwrap.wrap(
            shown, _WIDTH, initial_indent=f"{option:{_LEFT}} ", subsequent_indent=" " * (_LEFT + 1)
        )
    every = {key for groups in _OF_COMMAND.values() for one in groups for key in one.lines}
    others = [key for key in defaults if key not in every and key.rpartition(".")[0] in group.sections]
    if others:
        yield from textwrap.wrap(f"also: {', '.join(others)}", _WIDTH, initial_indent="  ", subsequent_indent="    ")
