"""Settings: numbers out of range, names that are nearly right, and configuration files that cannot be read."""

import pytest

from fixtures.bad_inputs import GOOD, BadInput

DIGITS = "9" * 5_000
"""A number that Python does not convert to text and back."""


CASES = [
    *(
        BadInput(
            f"a learning rate of {rate}",
            f"fit --model.optimizer=torch.optim.AdamW --model.optimizer.lr={rate}",
            ["optimizer", rate],
        )
        for rate in ("-1", "nan", "inf", "0")
    ),
    BadInput(
        "an optimizer's number that is not finite",
        "fit --model.optimizer=torch.optim.AdamW --model.optimizer.weight_decay=.inf",
        ["`optimizer.weight_decay` must be a finite number, got inf"],
    ),
    *(
        BadInput(
            f"gradients clipped at {norm}",
            f"fit --trainer.gradient_clip_val={norm}",
            ["`trainer.gradient_clip_val` must be at least 0, got"],
        )
        for norm in (".nan", "-1")
    ),
    BadInput("an optimizer's own limit", "fit --model.optimizer.weight_decay=-1", ["weight_decay"]),
    BadInput("a negative seed", "fit --seed_everything=-1", ["seed", "-1"]),
    BadInput("a negative seed of the data", "fit --data.seed=-1", ["`seed`", "-1"]),
    BadInput("a seed of many digits", f"fit --data.seed={DIGITS}", ["data.seed"]),
    BadInput("a number of many digits", f"fit --trainer.max_epochs={DIGITS}", ["trainer.max_epochs"]),
    BadInput(
        "a number of many digits in a file",
        "fit --config=long.yaml",
        ["long.yaml"],
        {"long.yaml": f"trainer: {{max_epochs: {DIGITS}}}"},
    ),
    BadInput(
        "a number of many digits in JSON facts",
        "fit --data.facts=bad.jsonl",
        ["bad.jsonl", "line 1"],
        {"bad.jsonl": f'{{"prompt": "x", "target": {DIGITS}}}\n'},
    ),
    *(
        BadInput(
            f"a bad number in a file beside a run: {line}",
            "fit --config=bad.yaml --trainer.default_root_dir=runs/b",
            [said],
            {"bad.yaml": line, "runs/a/manifest.json": "{}"},
        )
        for line, said in (
            ("data: {batches: {micro_batch_size: 0}}", "micro_batch_size"),
            ("model: {warmup_ratio: 2}", "warmup_ratio"),
            ("data: {max_new_tokens: 0}", "max_new_tokens"),
        )
    ),
    BadInput(
        "a misspelled class",
        ["fit", "--data.selection.weighting={class_path: lit_semantic_peft.semantics.Proximty}"],
        ["Proximity"],
    ),
    BadInput(
        "a misspelled class in a list",
        ["fit", "--data.selection.filters=[{class_path: lit_semantic_peft.semantics.BandFiltr}]"],
        ["BandFilter"],
    ),
    BadInput(
        "a misspelled optimizer",
        ["fit", "--model.optimizer.class_path=torch.optim.AdanW"],
        ["Did you mean `torch.optim.AdamW`?"],
    ),
    BadInput(
        "a misspelled class in a file",
        "fit --config=bad.yaml",
        ["peft.LoraConfig"],
        {"bad.yaml": "model: {peft_config: {class_path: peft.LoraConfg, init_args: {r: 2}}}"},
    ),
    *(
        BadInput(f"a misspelled {what}", ["fit", argument], [f"Did you mean `{meant}`?"])
        for what, argument, meant in (
            (
                "callback",
                "--trainer.callbacks=[{class_path: EarlyStoping}]",
                "lightning.pytorch.callbacks.EarlyStopping",
            ),
            ("logger", "--trainer.logger={class_path: WandbLoger}", "lightning.pytorch.loggers.WandbLogger"),
            (
                "source of held text",
                "--model.retain=[{class_path: KnownFact}]",
                "lit_semantic_peft.training.KnownFacts",
            ),
        )
    ),
    BadInput(
        "a misspelled module",
        ["fit", "--model.peft_config={class_path: pefft.LoraConfig}"],
        ["pefft"],
    ),
    BadInput("a class of another kind", ["fit", "--model.peft_config={class_path: torch.nn.Linear}"], ["peft_config"]),
    BadInput(
        "an argument that a class lacks",
        ["fit", "--model.peft_config={class_path: peft.LoraConfig, init_args: {rank: 2}}"],
        ["rank"],
    ),
    BadInput("a configuration file that is not there", "fit --config=nowhere.yaml", ["nowhere.yaml", "does not exist"]),
    BadInput("a configuration that is a folder", "fit --config=there", ["there", "not a file"], {"there/x": ""}),
    BadInput(
        "a configuration in Latin-1",
        "fit --config=bad.yaml",
        ["bad.yaml", "UTF-8"],
        {"bad.yaml": "# é".encode("latin-1")},
    ),
    BadInput(
        "a configuration in UTF-16",
        "fit --config=bad.yaml",
        ["bad.yaml", "UTF-8"],
        {"bad.yaml": "data: {}".encode("utf-16")},
    ),
    *(
        BadInput(
            f"a configuration of {what}", "fit --config=bad.yaml", ["bad.yaml holds no settings"], {"bad.yaml": text}
        )
        for what, text in (("nothing", ""), ("blanks", " \n\n"), ("remarks", "# later\n  # more\n"))
    ),
    BadInput("a binary configuration", "fit --config=bad.yaml", ["bad.yaml"], {"bad.yaml": bytes(range(256))}),
    BadInput("broken YAML", "fit --config=bad.yaml", ["bad.yaml", "line 2"], {"bad.yaml": "data:\n\tseed: 1\n"}),
    BadInput("a configuration that is a list", "fit --config=bad.yaml", ["bad.yaml"], {"bad.yaml": "[1, 2]\n"}),
    BadInput("a configuration that is a text", "fit --config=bad.yaml", ["bad.yaml"], {"bad.yaml": "words\n"}),
    BadInput("control characters in a key", ["fit", "--data.\x1b[2Jseed=1"], ["\\x1b[2J"]),
    BadInput("control characters in a path", ["fit", "--data.facts=\x1b[2J\r.jsonl"], ["\\x1b[2J\\r.jsonl"]),
    BadInput("a path with a NUL", ["fit", "--data.facts=a\x00b"], ["`facts`"]),
    BadInput("an endless value", ["fit", f"--data.encoding.template={'x' * 100_000}"], ["template", "left out"]),
    BadInput(
        "an endless id",
        "fit --data.facts=bad.jsonl",
        ["line 1", "line 2"],
        {"bad.jsonl": [{**GOOD, "id": "x" * 50_000}, {**GOOD, "id": "x" * 50_000, "prompt": "y"}]},
    ),
    BadInput("an unknown command", "fitt", ["did you mean 'fit'"]),
    BadInput("an unknown option of export", "export a b --bset", ["--bset"]),
    BadInput("a missing argument of compare", "compare a", ["RUN_B"]),
    BadInput("no number to show", "compare a b --show x", ["--show"]),
    BadInput("a negative number to show", "compare a b --show -1", ["`--show`"]),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_settings(case, refused):
    message = refused(case)
    assert "print_config" not in message
    assert len(message.splitlines()) <= 8
