"""What two runs are said to have been told differently."""

from pathlib import Path

import yaml
from lit_semantic_peft.cli.setting_differences import setting_differences

ONE = {
    "seed_everything": 0,
    "model": {"optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.002}}, "retain": None},
    "data": {"selection": {"filters": [{"class_path": "KnownFilter"}]}},
    "trainer": {"default_root_dir": "runs/a", "max_steps": 100},
}
OTHER = {
    "seed_everything": 1,
    "model": {
        "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}},
        "retain": None,
        "compile": True,
    },
    "data": {"selection": {"filters": None}},
    "trainer": {"default_root_dir": "runs/b", "max_steps": 100},
}


def written(**configs):
    paths = [Path(f"{name}.yaml") for name in configs]
    for path, config in zip(paths, configs.values(), strict=True):
        path.write_text(yaml.safe_dump(config))
    return paths


def test_each_setting_that_differs_has_a_line():
    assert setting_differences(*written(one=ONE, other=OTHER)) == [
        "data.selection.filters: [{class_path: KnownFilter}] -> null",
        "model.compile: (not set) -> true",
        "model.optimizer.init_args.lr: 0.002 -> 0.01",
        "seed_everything: 0 -> 1",
    ]


def test_runs_that_were_told_the_same_differ_in_their_place_alone():
    assert (
        setting_differences(*written(one=ONE, same=ONE | {"trainer": {**ONE["trainer"], "default_root_dir": "x"}}))
        == []
    )


def test_without_a_configuration_nothing_is_said():
    (path,) = written(one=ONE)
    Path("broken.yaml").write_text("{")
    assert setting_differences(path, Path("nowhere.yaml")) == setting_differences(Path("broken.yaml"), path) == []
