"""What happened, in plain sentences. They describe one run; none of them says that a setting helped."""

from collections import Counter

import pyarrow as pa

from lit_semantic_peft.evaluation.scores import label_of
from lit_semantic_peft.reports.phrases import cut, mean_percent, percent, reason_phrase
from lit_semantic_peft.reports.records import GateRecord, Sides, Summary


def summary_sentences(summary: Summary, facts: pa.Table) -> list[str]:
    """The run in sentences, the most important one first; what was not measured is left out or named so.

    Args:
        summary: The run's numbers.
        facts: The fact table.

    Returns:
        Sentences of plain text; fact text in them is not escaped.
    """
    used = summary.as_used
    sentences = [_filtering(summary), *_deferral(summary, facts), *_recall(used), *_interference(summary, facts)]
    if summary.pushed_away is not None:
        pushed = round(summary.pushed_away * summary.num_kept)
        sentences.append(
            "No kept fact is farther from the model than before training."
            if not pushed
            else f"Training pushed the model away from {_count(pushed, 'kept fact')}: "
            f"{'its' if pushed == 1 else 'their'} distance grew."
        )
    return sentences + _yes_no(used) + _locality(used) + _retention(used) + _gate(summary) + _routing(summary)


def known_facts_were_dropped(summary: Summary, config: str = "") -> bool:
    """Whether the run dropped the facts that the base model knew before it trained the rest."""
    return (
        "already_known" in summary.dropped_by_reason or "KnownFilter" in config or "KnownFilter" in str(summary.config)
    )


def _filtering(summary: Summary) -> str:
    if not summary.num_dropped:
        return f"All {summary.num_facts} facts were kept; no filter dropped any."
    reasons = list(summary.dropped_by_reason.items())
    if len(reasons) == 1:
        reason = f" ({reason_phrase(reasons[0][0])})"
    else:
        reason = " (" + ", ".join(f"{count} {reason_phrase(name)}" for name, count in reasons) + ")" if reasons else ""
    verb = "was" if summary.num_dropped == 1 else "were"
    return f"{summary.num_dropped} of {summary.num_facts} facts {verb} dropped{reason}; {summary.num_kept} were kept."


def _deferral(summary: Summary, facts: pa.Table) -> list[str]:
    first_epoch = facts.column("trained_from_epoch").drop_null().to_pylist()
    deferred = [epoch for epoch in first_epoch if epoch > 0]
    if not deferred or not summary.epochs:
        return []
    verb = "was" if len(deferred) == 1 else "were"
    number = _count(len(deferred), "dropped fact")
    if not any(record.epoch >= deferred[0] for record in summary.epochs):
        return [f"Training ended before epoch {deferred[0]}, in which {number} {verb} to come back."]
    return [f"{number} {verb} brought back and trained from epoch {deferred[0]} on (epochs count from 0)."]


def _locality(summary: Summary) -> list[str]:
    locality = summary.score("locality").kept.after
    if locality is None:
        return ["Neighbouring questions were not measured."]
    changed = 1 - locality.mean
    questions = f", {_count(summary.num_neighbors, 'question')}" if summary.num_neighbors is not None else ""
    return [
        f"Beside a kept fact, {percent(locality.mean)} of the neighbouring questions kept their answer (mean over "
        f"{_count(locality.num_facts, 'fact')}{questions}); {percent(changed) if changed else 'none'} changed, whether "
        "the answer was right before or not."
    ]


def _retention(summary: Summary) -> list[str]:
    retention = summary.retention
    if retention is None or retention.nll_before is None or retention.nll_after is None:
        return []
    if retention.nll_after == retention.nll_before:
        return ["Unrelated text is as likely as before."]
    verb = "less" if retention.nll_after > retention.nll_before else "more"
    return [
        f"Unrelated text became {verb} likely: its loss went from {retention.nll_before:.2f} to "
        f"{retention.nll_after:.2f} nats per token."
    ]


def _gate(summary: Summary) -> list[str]:
    gate = summary.gate
    if gate is None:
        return []
    without = summary.score("efficacy").kept.after
    recall = "" if without is None else f"; without it {mean_percent(without)} of the kept facts are generated"
    opened, asked = sum(gate.num_opened.values()), sum(gate.num_asked.values())
    return [
        f"The gate opened for {opened} of {asked} questions. What is said here is through it{recall}.",
        *_lost_to_the_gate(gate),
    ]


def _routing(summary: Summary) -> list[str]:
    routing = summary.routing
    if routing is None:
        return []
    opened, asked = sum(routing.num_opened.values()), sum(routing.num_asked.values())
    sentences = [
        f"The adapter acted on {opened} of {asked} questions, those that name what was taught; all others were the "
        "base model's."
    ]
    if routing.effective_experts is not None:
        sentences.append(f"{routing.effective_experts:.1f} experts of a layer were equally busy, in effect.")
    same, other = routing.same_experts, routing.other_experts
    if same is not None and other is not None and same.num_pairs and other.num_pairs:
        sentences.append(
            f"Of {_count(same.num_pairs, 'pair')} of facts with the same experts {percent(same.conflict_rate)} are in "
            f"conflict, of {_count(other.num_pairs, 'pair')} with different ones {percent(other.conflict_rate)}."
        )
    return sentences


def _lost_to_the_gate(gate: GateRecord) -> list[str]:
    asked, opened = gate.num_asked.get("reversed", 0), gate.num_opened.get("reversed", 0)
    if opened == asked or gate.match != "subjects":
        return []
    return [
        f"{asked - opened} of {_count(asked, 'reversed question')} name the target and not the subject: the base model "
        "answers them through the gate. `match: subjects_and_targets` opens it for them too."
    ]


def _recall(summary: Summary) -> list[str]:
    sentences = []
    generated, forced = summary.score("efficacy").kept, summary.score("efficacy_teacher_forced").kept
    if generated.after is not None:
        before = f" ({mean_percent(generated.before)} before)" if generated.before is not None else ""
        sentences.append(
            f"The trained model generates {mean_percent(generated.after)} of the kept facts exactly{before}."
        )
    else:
        sentences.append(f"Not measured: {label_of('efficacy')}.")
    if forced.after is not None:
        before = f" ({mean_percent(forced.before)} before)" if forced.before is not None else ""
        sentences.append(
            f"Shown the true beginning of the answer, it picks every token of {mean_percent(forced.after)} of "
            f"them{before}."
        )
    begun = summary.begins_right
    if begun.before is not None and begun.after is not None:
        sentences.append(
            f"Its answer begins with the target, whatever follows, for {mean_percent(begun.after)} of them "
            f"({mean_percent(begun.before)} before, by the same judge: a base model goes on after an answer)."
        )
    sentences += _repetition(summary)
    dropped = summary.score("efficacy").dropped
    if summary.num_dropped and dropped.after is not None and dropped.before is not None:
        sentences.append(
            f"Of the dropped facts it generates {mean_percent(dropped.after)} ({mean_percent(dropped.before)} before)."
        )
    return sentences


def _repetition(summary: Summary) -> list[str]:
    """One answer or one word that is said again and again."""
    found = summary.repetition
    if found is None or found.num_given < 2:
        return []
    sentences = [
        f"Its most frequent answer, “{cut(found.answer, 60)}”, is given to {found.num_given} of {found.num_answers} "
        f"kept facts and makes {found.num_given_right} of the {_count(found.num_right, 'right answer')}; "
        f"given to all facts it would be right for {found.num_targets}."
    ]
    if found.word and found.word_share > found.word_share_of_targets:
        sentences.append(
            f"The word “{cut(found.word, 60)}” is in {percent(found.word_share)} of its answers and in "
            f"{percent(found.word_share_of_targets)} of the targets."
        )
    return sentences


def _yes_no(summary: Summary) -> list[str]:
    yes, no = (summary.score(f"yes_no_{answer}").kept for answer in ("yes", "no"))
    if yes.after is None and no.after is None:
        return []

    def text(sides: Sides) -> str:
        return f"{mean_percent(sides.after)} ({mean_percent(sides.before)} before)"

    return [f"Of the yes/no questions it gets right {text(yes)} where yes is right and {text(no)} where no is."]


def _interference(summary: Summary, facts: pa.Table) -> list[str]:
    sentences = []
    columns = facts.select(["net_transfer", "worst_aggressor", "fact_id", "prompt", "target"]).to_pydict()
    measured = [value for value in columns["net_transfer"] if value is not None]
    if not measured:
        return ["Interference between facts was not measured."]
    victims = [row for row, value in enumerate(columns["net_transfer"]) if value is not None and value < -1]
    of = f"of {len(measured)} measured facts" if len(measured) < len(facts) else f"of {len(measured)} facts"
    if victims:
        aggressors = Counter(
            columns["worst_aggressor"][row] for row in victims if columns["worst_aggressor"][row] is not None
        )
        row_of = {fact_id: row for row, fact_id in enumerate(columns["fact_id"])}
        blame = ""
        if aggressors:
            worst, count = aggressors.most_common(1)[0]
            if worst in row_of:
                row = row_of[worst]
                text = f"“{columns['prompt'][row]} {columns['target'][row]}”"
                blame = f", most often to {text}" if count > 1 else f", for example to {text}"
        one = len(victims) == 1
        loses = "loses" if one else "lose"
        gains = "it gains from its" if one else "they gain from their"
        sentences.append(
            f"{len(victims)} {of} {loses} more to the others than {gains} own gradient{blame} (first-order estimate)."
        )
    else:
        sentences.append(f"None {of} loses more to the others than it gains from its own gradient.")
    history = [record for record in summary.interference if record.conflict_rate is not None]
    if len(history) > 1:
        first, last = history[0], history[-1]
        worst = max(history, key=lambda record: record.conflict_rate or 0.0)
        between = (
            f", with a maximum of {percent(worst.conflict_rate)} after epoch {worst.epoch}"
            if (worst.conflict_rate or 0.0) > max(first.conflict_rate or 0.0, last.conflict_rate or 0.0)
            else ""
        )
        sentences.append(
            f"Pairs of facts whose gradients conflict went from {percent(first.conflict_rate)} to "
            f"{percent(last.conflict_rate)} of the measured pairs{between}."
        )
    return sentences


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
