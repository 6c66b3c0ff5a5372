"""What is refused before anything heavy is imported."""

import subprocess
import sys
from pathlib import Path

import pytest
from lit_semantic_peft.cli.early import refuse_early
from lit_semantic_peft.errors import InputError

HEAVY = ("torch", "transformers", "lightning", "pyarrow", "numpy")
CALLS = {
    "help": (["--help"], 0, "usage: lit-semantic-peft"),
    "no such command": (["fitt"], 2, "did you mean 'fit'?"),
    "no such configuration": (["fit", "--config", "nowhere.yaml"], 2, "`--config`: nowhere.yaml does not exist in "),
    "a run that exists": (
        ["fit", "--trainer.default_root_dir=runs/a", "--data.facts", "facts.jsonl"],
        2,
        "The run folder runs/a exists already. Go on with it by `--ckpt_path last`",
    ),
}


@pytest.fixture(autouse=True)
def _a_run():
    Path("runs/a").mkdir(parents=True)
    Path("runs/a/manifest.json").write_text("{}")
    Path("fit.yaml").write_text("{}")


@pytest.mark.parametrize(("arguments", "status", "said"), CALLS.values(), ids=CALLS)
def test_what_needs_no_library_imports_none(arguments, status, said):
    program = (
        "import sys; from lit_semantic_peft.__main__ import main; status = main(sys.argv[1:]); "
        f"print('imported:', [name for name in {HEAVY} if name in sys.modules]); sys.exit(status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == status
    assert said in done.stdout + done.stderr
    assert "imported: []" in done.stdout


@pytest.mark.parametrize(
    "options",
    [
        ["--config", "fit.yaml"],
        ["--config={trainer: {max_epochs: 1}}"],
        ["--config", "nowhere.yaml", "--help"],
        ["--trainer.default_root_dir", "runs/new"],
        ["--trainer.default_root_dir", "runs/a", "--trainer.default_root_dir", "runs/b"],
        ["--trainer.default_root_dir=runs/a", "--ckpt_path=last"],
        ["--trainer.default_root_dir=runs/a", "--trainer.fast_dev_run", "true"],
        [],
    ],
    ids=" ".join,
)
def test_what_may_be_usable_is_left_to_the_parser(options):
    refuse_early(["fit", *options])


def test_other_commands_write_into_a_run():
    refuse_early(["test", "--trainer.default_root_dir=runs/a"])
    with pytest.raises(InputError, match=r"nowhere.yaml does not exist"):
        refuse_early(["test", "-c", "nowhere.yaml"])
