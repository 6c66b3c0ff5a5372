"""The prompt | target boundary: the only place that decides which token ids a fact becomes.

At inference a causal model receives the prompt tokenized alone. So in training, too, the ids before the boundary are
those of the prompt tokenized alone, and the target's ids continue them. Where the tokenizer would merge characters
across the boundary (no joiner, as in Chinese), the target is tokenized behind an anchor text instead of the prompt.
Training and inference then see the same prompt ids.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts import Fact
from lit_semantic_peft.tokens.chat import chat_form, render

Template = Literal["none", "chat"]

# Texts behind which a target is tokenized. The second is for targets that begin with a line break, which would merge
# with the first.
_ANCHORS = ("\n", "a")
_MAX_PROBLEMS = 20
_OWN_TEMPLATE_ARGUMENTS = {"conversation", "messages", "add_generation_prompt", "tokenize", "return_dict"}


@dataclass(frozen=True, slots=True)
class EncodedFact:
    """Token ids of one prompt and its target.

    Attributes:
        prompt_ids: Ids of the prompt, with the tokenizer's own start tokens.
        target_ids: Ids of the target, at least one; never the end token.
        end_ids: The end token if the model is trained to end the answer, else empty. Part of the training loss, never
            of a distance or of recall.
    """

    prompt_ids: tuple[int, ...]
    target_ids: tuple[int, ...]
    end_ids: tuple[int, ...] = ()

    @property
    def num_target_tokens(self) -> int:
        """Number of target tokens, without the end token."""
        return len(self.target_ids)

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.target_ids) + len(self.end_ids)


class FactEncoder:
    """Tokenizes prompts and targets, in the same way for training, scoring and generation.

    Args:
        tokenizer: Any Hugging Face tokenizer. It is not changed.
        template: `none` for prompt, joiner, target as they are; `chat` to put the prompt into the user's turn and the
            target into the assistant's turn of the tokenizer's chat template.
        append_eos: Whether the end token follows the target, so that the model learns to end the answer.
        max_length: Longest prompt + target + end, in tokens; None for no limit. Nothing is truncated: a longer fact is
            an error that names it.
        stop_ids: Ids with which the model ends an answer, besides the tokenizer's end token.
        num_positions: Longest prompt + target + end that the model takes, in tokens; None for no limit. A longer fact
            is an error that names it.
        chat_template_kwargs: Arguments of the chat template besides the turns, such as `enable_thinking` or
            `date_string`; plain data.
        num_tokens: Tokens that the model has embeddings for; None where that is not known. A text with another is an
            error that names it.

    Attributes:
        stop_ids: All ids at which an answer ends, ascending: those given, the tokenizer's end token, and in a chat
            template the token that ends the assistant's turn (Gemma: `<end_of_turn>`).

    Raises:
        InputError: If `template` is `chat` and the tokenizer has no chat template, or `append_eos` is set and it has
            no end token, or `chat_template_kwargs` has an argument that the package itself sets, or the
            chat template raises.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: Template = "none",
        append_eos: bool = True,
        max_length: int | None = None,
        stop_ids: Collection[int] = (),
        num_positions: int | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        num_tokens: int | None = None,
    ) -> None:
        if template == "chat" and not tokenizer.chat_template:
            raise InputError(
                "`template` is `chat`, but the tokenizer of the base model has no chat template. "
                "Use `template: none`, or an instruct model."
            )
        self.chat_template_kwargs = dict(chat_template_kwargs or {})
        if taken := sorted(_OWN_TEMPLATE_ARGUMENTS & self.chat_template_kwargs.keys()):
            raise InputError(
                f"`chat_template_kwargs` has {', '.join(taken)}, which cannot be set; expected what the chat template "
                "itself reads, such as `enable_thinking` or `date_string`."
            )
        self.tokenizer = tokenizer
        self.num_tokens = num_tokens
        self.template: Template = template
        self.max_length = max_length
        self.num_positions = num_positions
        self._chat = chat_form(tokenizer, self.chat_template_kwargs) if template == "chat" else None
        end = self._end()
        self._require_known(end or 0)
        if append_eos and end is None:
            raise InputError(
                "`append_eos` is true, but the tokenizer has no end token. Set `append_eos: false`; "
                "the model then does not learn to end its answers."
            )
        own = () if tokenizer.eos_token_id is None else (int(tokenizer.eos_token_id),)
        self.stop_ids = tuple(sorted({*stop_ids, *own, *(() if end is None else (end,))}))
        self._has_further_stop_ids = self.stop_ids != own
        self._end_ids: tuple[int, ...] = (end,) if append_eos and end is not None else ()
        self._start_ids = _start_ids(tokenizer)

    @property
    def append_eos(self) -> bool:
        """Whether the model is trained to end its answers."""
        return bool(self._end_ids)

    @property
    def identity(self) -> dict[str, Any]:
        """What scores and answers depend on besides tokenizer and facts, for cache keys."""
        identity: dict[str, Any] = {"template": self.template}
        if self._has_further_stop_ids:
            identity["stop_ids"] = list(self.stop_ids)
        if self.chat_template_kwargs:
            identity["chat_template_kwargs"] = self.chat_template_kwargs
        if self._chat is not None and (self._chat.header or self._chat.joiner):
            identity["before_answer"] = [self._chat.header, self._chat.joiner]
        return identity

    @property
    def opening_ids(self) -> tuple[int, ...]:
        """Ids with which a text of no content begins: the tokenizer's own, else its BOS or end token; maybe none."""
        lone = (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id)
        return self._start_ids or tuple(int(token) for token in lone if token is not None)[:1]

    @property
    def depends_on_the_day(self) -> bool:
        """Whether prompts contain the current date, so that they change from day to day."""
        text = str(self.tokenizer.chat_template) if self.template == "chat" else ""
        is_pinned = "date_string" in self.chat_template_kwargs and "date_string" in text
        return "strftime_now" in text and not is_pinned

    @property
    def pad_id(self) -> int:
        """Id for padding: 0. Padding is masked but still embedded, and a pad token may have no embedding."""
        return 0

    def encode_prompt(self, prompt: str) -> tuple[int, ...]:
        """Token ids of a prompt alone, as the model receives it at inference.

        Args:
            prompt: Text without trailing space.

        Returns:
            Token ids, with the tokenizer's own start tokens.

        Raises:
            InputError: If the model has no position for an answer after it.
        """
        start_ids, text = ((), self._in_chat(prompt)) if self.template == "chat" else (self._start_ids, prompt)
        ids = (*start_ids, *self._ids(text))
        self._require_positions(len(ids) + 1, "the prompt and a token of an answer are")
        return ids

    def encode(
        self, prompt: str, target: str, joiner: str = " ", history: Sequence[tuple[str, str]] = ()
    ) -> EncodedFact:
        """Token ids of a prompt and the target that follows it.

        Args:
            prompt: Text without trailing space.
            target: The answer.
            joiner: Text between the two; not used in a chat template, which separates them itself.
            history: Earlier prompts and answers: turns of a chat, or lines of text without a template.

        Returns:
            The ids on both sides of the boundary.

        Raises:
            InputError: If the target becomes no token, or cannot be tokenized after this prompt, or the whole is
                longer than `max_length` or than the model takes.
        """
        if self.template == "chat":
            context, continuation = self._in_chat(prompt, history), self._joined(target, joiner)
            start_ids: tuple[int, ...] = ()
        else:
            lines = [f"{asked}{joiner}{answered}\n" for asked, answered in history]
            context, continuation = "".join(lines) + prompt, self._joined(target, joiner)
            start_ids = self._start_ids
        context_ids = self._ids(context)
        whole_ids = self._ids(context + continuation)
        if whole_ids[: len(context_ids)] == context_ids:
            target_ids = whole_ids[len(context_ids) :]
        else:
            target_ids = self._behind_anchor(target, continuation)
            decoded, expected = self._text(context_ids + target_ids), self._text(whole_ids)
            if decoded != expected:
                raise InputError(
                    f"`target` {target!r} cannot be tokenized after this prompt: the ids decode to {decoded!r}. "
                    "Let the prompt end at the end of a word, or set another `joiner`."
                )
        if not target_ids:
            raise InputError(f"`target` {target!r} becomes no token in this tokenizer")
        if self.tokenizer.unk_token_id is not None and self.tokenizer.unk_token_id in target_ids:
            raise InputError(
                f"`target` {target!r} has characters that this tokenizer does not know; "
                f"the model could only be trained to generate {self.tokenizer.unk_token!r}"
            )
        encoded = EncodedFact((*start_ids, *context_ids), tuple(target_ids), self._end_ids)
        if self.max_length is not None and len(encoded) > self.max_length:
            raise InputError(
                f"prompt, target and end are {len(encoded)} tokens, `max_length` is {self.max_length}. "
                "A target is never truncated: raise `max_length` or shorten the prompt."
            )
        self._require_positions(len(encoded.prompt_ids) + len(target_ids) + 1, "prompt, target and end are")
        return encoded

    def encode_text(self, text: str) -> EncodedFact:
        """Token ids of a plain text, without template and end token. Every token but the first is a target.

        Args:
            text: At least two tokens long.

        Raises:
            InputError: If it is longer than the model takes.
        """
        ids = (*self._start_ids, *self._ids(text))
        self._require_positions(len(ids), "the text is")
        return EncodedFact(ids[:1], ids[1:])

    def encode_ids(self, text: str) -> tuple[int, ...]:
        """Token ids of a text of any length, without the tokenizer's start tokens.

        Args:
            text: The text.
        """
        return tuple(self._ids(text))

    def without_limit(self, template: Template | None = None) -> "FactEncoder":
        """The same encoder without `max_length`, for texts of any length that the model takes.

        Args:
            template: Another template; None keeps this one.
        """
        return FactEncoder(
            self.tokenizer,
            template or self.template,
            append_eos=bool(self._end_ids),
            stop_ids=self.stop_ids,
            num_positions=self.num_positions,
            chat_template_kwargs=self.chat_template_kwargs,
            num_tokens=self.num_tokens,
        )

    def count_answer_tokens(self, answer: str, joiner: str = " ") -> int:
        """Number of tokens of an accepted answer, to limit the length of generated answers. Raises nothing.

        Args:
            answer: The answer.
            joiner: Text before it; not used in a chat template.
        """
        return len(self.tokenizer(self._joined(answer, joiner), add_special_tokens=False)["input_ids"])

    def encode_name(self, name: str) -> tuple[int, ...]:
        """Token ids of a name as it stands within a text.

        Args:
            name: The name.
        """
        return tuple(self._ids(f" {name}"))

    def encode_facts(self, facts: Iterable[Fact]) -> list[EncodedFact]:
        """Encodes each fact's prompt and target.

        Args:
            facts: The facts.

        Returns:
            One `EncodedFact` for each fact, in order.

        Raises:
            InputError: If facts cannot be tokenized. The message names the first 20, with file and line.
        """
        encoded: list[EncodedFact] = []
        problems: list[str] = []
        for fact in facts:
            try:
                encoded.append(self.encode(fact.prompt, fact.target, fact.joiner))
            except InputError as error:
                problems.append(f"{fact.location or 'fact'}: fact {fact.id!r}: {error}")
        if problems:
            shown = problems[:_MAX_PROBLEMS]
            more = [f"... and {len(problems) - len(shown)} more"] if len(problems) > len(shown) else []
            raise InputError("\n".join(["Facts that cannot be tokenized:", *shown, *more]))
        return encoded

    def decode_answer(self, ids: Sequence[int]) -> str:
        """Text of generated ids: up to the first of `stop_ids`, without special tokens, stripped.

        Args:
            ids: Generated token ids, without the prompt.
        """
        kept = list(takewhile(lambda token: token not in self.stop_ids, ids))
        return str(self.tokenizer.decode(kept, skip_special_tokens=True)).strip()

    def _in_chat(self, prompt: str, history: Sequence[tuple[str, str]] = ()) -> str:
        messages = [
            {"role": role, "content": text}
            for turn in history
            for role, text in zip(("user", "assistant"), turn, strict=True)
        ]
        messages.append({"role": "user", "content": prompt})
        assert self._chat is not None
        text = render(self.tokenizer, messages, self.chat_template_kwargs, add_generation_prompt=True)
        return text + self._chat.header

    def _joined(self, answer: str, joiner: str) -> str:
        """An answer with what stands between it and the prompt."""
        return (joiner if self._chat is None else self._chat.joiner) + answer

    def _require_positions(self, length: int, what: str) -> None:
        if self.num_positions is not None and length > self.num_positions:
            raise InputError(
                f"{what} {length} tokens, the base model takes {self.num_positions} "
                "(`max_position_embeddings`, less the virtual tokens of an adapter). Shorten the prompt."
            )

    def _end(self) -> int | None:
        """The token that ends an answer: the one after the assistant's turn in the template, else the end token."""
        if self._chat is not None:
            behind = self._ids(self._chat.tail.lstrip())
            added = self.tokenizer.added_tokens_decoder
            if behind and behind[0] in added and added[behind[0]].special:
                return behind[0]
        end = self.tokenizer.eos_token_id
        return None if end is None else int(end)

    def _behind_anchor(self, target: str, continuation: str) -> list[int]:
        """Ids of a continuation, tokenized behind an anchor with which it does not merge."""
        for anchor in _ANCHORS:
            anchor_ids = self._ids(anchor)
            anchored = self._ids(anchor + continuation)
            if anchored[: len(anchor_ids)] == anchor_ids:
                return anchored[len(anchor_ids) :]
        raise InputError(f"`target` {target!r} cannot be tokenized apart from the text before it by this tokenizer")

    def _ids(self, text: str) -> list[int]:
        ids = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        self._require_known(max(ids, default=0))
        return ids

    def _require_known(self, token: int) -> None:
        if self.num_tokens is not None and token >= self.num_tokens:
            raise InputError(
                f"the tokenizer has added {self.tokenizer.convert_ids_to_tokens(token)!r} as token {token:,}, the base "
                f"model knows {self.num_tokens:,} (`vocab_size`). Copy both from one model, or resize its embeddings."
            )

    def _text(self, ids: Sequence[int]) -> str:
        return " ".join(str(self.tokenizer.decode(list(ids))).split())


def _start_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The ids that a tokenizer puts before every text (Llama: BOS; BERT: [CLS]; SmolLM2: none)."""
    bare = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    dressed = list(tokenizer("a", add_special_tokens=True)["input_ids"])
    for start in range(len(dressed) - len(bare) + 1):
        if dressed[start : start + len(bare)] == bare:
            return tuple(dressed[:start])
    return ()
