"""The SuperGLUE tasks (arXiv 1905.00537) and SST-2 (GLUE, arXiv 1804.07461) by likelihood of label words.

Templates and label words are data (`SUPERGLUE`). They are corebatch's own, made for zero-shot completion; scores of
other papers with other prompts are not comparable. Rows may have the fields of the hub's `super_glue` and `glue`
configurations or of the benchmark's own files.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

from corebatch.errors import ConfigError, DataError
from corebatch.evaluation.choices import joined, placed, template_fields, text_of
from corebatch.evaluation.likelihood import ChoiceItem, LikelihoodTask, check_normalise, f1, macro_f1
from corebatch.evaluation.result import Count
from corebatch.evaluation.rows import Row, read_rows


@dataclass(frozen=True, kw_only=True)
class GlueSpec:
    """One task as data.

    Attributes:
        template: the prompt, with the row's fields in braces.
        fields: every field that a template may name, each with other names that it has elsewhere.
        labels: names in the order of the hub's label numbers.
        words: the completion for each label, in the same order; none: the row's own `choice1` and `choice2`.
    """

    template: str
    fields: Mapping[str, tuple[str, ...]]
    labels: tuple[str, ...]
    words: tuple[str, ...] = ()


COPA_LINKS = {"cause": "because", "effect": "so"}
"""What stands between a premise and its alternative, by what is asked for."""

SUPERGLUE: dict[str, GlueSpec] = {
    "boolq": GlueSpec(
        template="{passage}\nQuestion: {question}?\nAnswer with yes or no:",
        fields={"passage": (), "question": ()},
        labels=("false", "true"),
        words=(" no", " yes"),
    ),
    "cb": GlueSpec(
        template="{premise}\nStatement: {hypothesis}\nIs the statement true? Answer with yes, no or unclear:",
        fields={"premise": (), "hypothesis": ()},
        labels=("entailment", "contradiction", "neutral"),
        words=(" yes", " no", " unclear"),
    ),
    "copa": GlueSpec(template="{premise} {link}", fields={"premise": (), "link": ()}, labels=("choice1", "choice2")),
    "multirc": GlueSpec(
        template="{paragraph}\nQuestion: {question}\nProposed answer: {answer}\nIs it right? Answer with yes or no:",
        fields={"paragraph": (), "question": (), "answer": ()},
        labels=("false", "true"),
        words=(" no", " yes"),
    ),
    "rte": GlueSpec(
        template="{premise}\nStatement: {hypothesis}\nDoes the statement follow? Answer with yes or no:",
        fields={"premise": ("sentence1",), "hypothesis": ("sentence2",)},
        labels=("entailment", "not_entailment"),
        words=(" yes", " no"),
    ),
    "sst2": GlueSpec(
        template="Review: {sentence}\nSentiment:",
        fields={"sentence": ()},
        labels=("negative", "positive"),
        words=(" negative", " positive"),
    ),
    "wic": GlueSpec(
        template="1. {sentence1}\n2. {sentence2}\nDoes '{word}' mean the same in both? Answer with yes or no:",
        fields={"sentence1": (), "sentence2": (), "word": ()},
        labels=("false", "true"),
        words=(" no", " yes"),
    ),
    "wsc": GlueSpec(
        template="{text}\nHere, does '{span2_text}' stand for '{span1_text}'? Answer with yes or no:",
        fields={"text": (), "span1_text": (), "span2_text": ()},
        labels=("false", "true"),
        words=(" no", " yes"),
    ),
}


class SuperGlueTask(LikelihoodTask):
    """One of `SUPERGLUE`. Beside accuracy CB has `f1_macro`, and MultiRC `f1_answers` (F1 over all answers, the
    benchmark's F1a) and `exact_match` (questions with every answer judged right)."""

    def __init__(
        self,
        glue_task: str,
        path: str | PathLike[str],
        *,
        config: str | None = None,
        split: str | None = None,
        template: str | None = None,
        words: Sequence[str] | None = None,
        normalise: str = "none",
        name: str | None = None,
    ) -> None:
        """Reads all rows.

        Args:
            path, split: as in `read_rows`: a file, the benchmark's folder, or a hub id such as `aps/super_glue`.
            config: `glue_task` by default.
            template, words: in place of those in `SUPERGLUE`; words in the order of its labels.
            normalise: as in `LikelihoodTask`.

        Raises:
            ConfigError: no such task, or template or words that do not suit it.
            DataError: a row that cannot be used, named by file and line.
        """
        if glue_task not in SUPERGLUE:
            raise ConfigError(f"The task should be one of {', '.join(SUPERGLUE)}. Found {glue_task!r}.")
        self.glue_task, self.spec = glue_task, SUPERGLUE[glue_task]
        self.name = name or glue_task
        self.normalise = check_normalise(normalise)
        self._template = template if template is not None else self.spec.template
        unknown = [key for key in template_fields(self._template) if key not in self.spec.fields]
        if unknown:
            raise ConfigError(
                f"`template` of {glue_task} may name {', '.join(self.spec.fields)}. Found {unknown[0]!r}."
            )
        if words is not None and (isinstance(words, str) or len(words) != len(self.spec.words)):
            raise ConfigError(
                f"`words` of {glue_task} should be {len(self.spec.words)}, for {', '.join(self.spec.labels)}. "
                f"Found {words!r}."
            )
        self._words = tuple(joined(str(word), " ") for word in words or self.spec.words)
        rows = read_rows(path, config=config or glue_task, split=split)
        self._items = tuple(item for row in rows for item in placed(row, lambda row: list(self._of_row(row))))

    def items(self) -> Sequence[ChoiceItem]:
        return self._items

    def metrics(self, items: Sequence[ChoiceItem], chosen: Sequence[int]) -> Mapping[str, float | Count]:
        expected = [item.answer for item in items]
        if self.glue_task == "cb":
            return {"f1_macro": macro_f1(expected, chosen)}
        if self.glue_task != "multirc":
            return {}
        right: dict[Hashable, bool] = defaultdict(lambda: True)
        for item, choice in zip(items, chosen, strict=True):
            right[item.group] &= choice == item.answer
        whole = Count(correct=sum(right.values()), total=len(right))
        return {"f1_answers": f1(expected, chosen), "exact_match": whole}

    def _of_row(self, row: Row) -> Iterator[ChoiceItem]:
        if self.glue_task == "multirc" and "passage" in row.values:
            for part, group in _answers(row):
                yield self._item(part, group)
        else:
            yield self._item(row, _group(row) if self.glue_task == "multirc" else None)

    def _item(self, row: Row, group: Hashable | None = None) -> ChoiceItem:
        row = _flat(row)
        options, more = self._words, {}
        if self.glue_task == "copa":
            options = tuple(" " + _inside(text_of(row, key)) for key in self.spec.labels)
            more = {"premise": text_of(row, "premise").strip().rstrip("."), "link": _link(row)}
        values = {
            key: more[key] if key in more else text_of(row, key, self.spec.fields[key])
            for key in template_fields(self._template)
        }
        if self.glue_task == "boolq" and "question" in values:
            values["question"] = values["question"].strip().rstrip("?")
        return ChoiceItem(
            prompt=self._template.format(**values),
            options=options,
            answer=self._label(row),
            source=self.name,
            names=self.spec.labels,
            group=group,
        )

    def _label(self, row: Row) -> int:
        label = row.values.get("label")
        labels = self.spec.labels
        known: dict[Any, int] = {name: n for n, name in enumerate(labels)} | {str(n): n for n in range(len(labels))}
        if isinstance(label, bool):  # as published; only where a label says yes or no
            known = {False: 0, True: 1} if labels == ("false", "true") else {}
        elif isinstance(label, int):
            known = {n: n for n in range(len(labels))}
        if not isinstance(label, bool | int | str) or label not in known:
            hint = " Test splits of the benchmark have no labels." if label in (None, -1) else ""
            raise DataError(
                f"{row.where}: `label` should be {' or '.join(labels)}, or its number. Found {label!r}.{hint}"
            )
        return known[label]


def _answers(row: Row) -> Iterator[tuple[Row, Hashable]]:
    """MultiRC as published: a passage in a row, with its questions and their answers."""
    passage, number = row.values["passage"], row.values.get("idx")
    if not isinstance(passage, Mapping) or not isinstance(passage.get("questions"), list):
        raise DataError(f"{row.where}: `passage` should hold a text and questions. Found {passage!r}.")
    for n, question in enumerate(passage["questions"]):
        answers = question.get("answers") if isinstance(question, Mapping) else None
        if not isinstance(answers, list) or not all(isinstance(answer, Mapping) for answer in answers):
            raise DataError(f"{row.where}: question {n} should have a list of answers. Found {question!r}.")
        group = (row.where if number is None else number, question.get("idx", n))
        for answer in answers:
            values = {"paragraph": passage.get("text"), "question": question.get("question")}
            yield Row(row.where, {**values, "answer": answer.get("text"), "label": answer.get("label")}), group


def _group(row: Row) -> Hashable:
    """Which question an answer of MultiRC belongs to, in the hub's rows."""
    index = row.values.get("idx")
    if isinstance(index, Mapping) and {"paragraph", "question"} <= index.keys():
        return (index["paragraph"], index["question"])
    return (row.values.get("paragraph"), row.values.get("question"))


def _flat(row: Row) -> Row:
    """WSC as published has its spans in `target`."""
    target = row.values.get("target")
    return Row(row.where, {**row.values, **target}) if isinstance(target, Mapping) else row


def _link(row: Row) -> str:
    asked = row.values.get("question")
    if asked not in COPA_LINKS:
        raise DataError(f"{row.where}: `question` should be {' or '.join(COPA_LINKS)}. Found {asked!r}.")
    return COPA_LINKS[asked]


def _inside(sentence: str) -> str:
    """A sentence as it goes on after a link: it begins small, unless with `I`."""
    text = sentence.strip()
    return text if text.split()[0].split("'")[0] == "I" else text[:1].lower() + text[1:]
