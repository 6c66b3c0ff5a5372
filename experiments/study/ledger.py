"""The plan as a table: how many runs, and how long they are expected to take."""

from itertools import groupby

from experiments.study.plan import Setting, load_arm, runs_of


def ledger(setting: Setting) -> str:
    """Markdown: runs × seconds by block, and in all.

    Args:
        setting: The setting.
    """
    cost = setting.seconds
    blocks = setting.blocks.values()
    arms = dict.fromkeys(name for block in blocks for name in block.arms if load_arm(name).added_later)
    later = ", ".join(f"`{name}`" for name in [*(block.name for block in blocks if block.added_later), *arms])
    but = f", but for those of {later}, planned when results of others were known" if later else ""
    lines = [
        f"# Ledger of the setting `{setting.name}`",
        "",
        f"The list of runs was made before the first one{but}. Seconds are those of one process, as expected: "
        f"{cost['start']:g} s to start, {cost['fact']:g} s for a fact in training, {cost['evaluation']:g} s for a fact "
        f"in an evaluation. {setting.processes} processes of {setting.threads} thread(s) run side by side.",
        "",
        "| block | facts | epochs | method | arms | seeds | learning rates | runs to choose | runs to report | hours |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    runs = [*runs_of(setting, "tune"), *runs_of(setting, "report")]
    for name, block in setting.blocks.items():
        mine = [run for run in runs if run.block.name == name]
        chosen = sum(run.role == "tune" for run in mine)
        rates = f"of `{block.tuned_in}`" if block.tuned_in else ", ".join(f"{rate:g}" for rate in block.learning_rates)
        hours = sum(run.seconds(setting) for run in mine) / 3600
        lines.append(
            f"| {name} | {block.num_facts} {block.facts} | {block.epochs} | {block.method} | {len(block.arms)} | "
            f"{len(block.seeds)} | {rates} | {chosen} | {len(mine) - chosen} | {hours:.2f} |"
        )
    total = sum(run.seconds(setting) for run in runs)
    lines += [
        "",
        f"In all {len(runs)} runs, {total / 3600:.1f} hours of one process, {total / 3600 / setting.processes:.1f} "
        f"hours with {setting.processes}.",
        "",
        "| stage | arms, chosen for and run before those of the next stage | runs | hours |",
        "| --- | --- | --- | --- |",
    ]
    for place, stage in enumerate(setting.stages, 1):
        mine = [run for run in runs if run.arm.name in stage]
        hours = sum(run.seconds(setting) for run in mine) / 3600
        lines.append(f"| {place} | {', '.join(stage)} | {len(mine)} | {hours:.2f} |")
    lines += [
        "",
        "| runs of one arm | runs | seconds each |",
        "| --- | --- | --- |",
    ]
    kinds = sorted(
        (run.block.name, run.arm.name, run.role, run.pace, run.is_control, run.seconds(setting)) for run in runs
    )
    for (block_name, arm, role, pace, is_control, seconds), group in groupby(kinds):
        what = "choice" if role == "tune" else f"at equal {pace}" + (", random control" if is_control else "")
        lines.append(f"| {block_name}, {arm}, {what} | {len(list(group))} | {seconds:.0f} |")
    return "\n".join(lines) + "\n"
