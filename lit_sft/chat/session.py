"""A conversation in progress: what was said, what is asked of the network, and the commands."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path

import yaml

from lit_sft.chat.network import Network
from lit_sft.chat.stream import AnswerStream
from lit_sft.configuration import build, expanded
from lit_sft.conversation import Conversation, Message
from lit_sft.display import harmless
from lit_sft.errors import BadRecord, ConfigError, accepted
from lit_sft.generation.generate import generate_answers
from lit_sft.generation.strategies import BeamSearch, Greedy, Strategy

HELP = """\
/base, /tuned            answer without, or with, the adapter
/strategy [NAME k=v ...] show or set how tokens are chosen: /strategy TopP top_p=0.8 temperature=0.7
/system [TEXT]           set the system message (none without TEXT) and begin anew
/reset                   forget the conversation
/save FILE               write the conversation as a line of JSON that the corpus JsonlChat reads
/help, /exit             this text; leave (or Ctrl-D). Ctrl-C stops an answer"""


class Session:
    """Answers lines; a line that begins with `/` is a command.

    Args:
        network: Who answers.
        write: Receives answers in pieces.
    """

    def __init__(self, network: Network, write: Callable[[str], None]) -> None:
        self.network = network
        self.write = write
        self.strategy: Strategy = network.source.strategy or Greedy()
        self.is_tuned = True
        self.system = ""
        self.messages: list[Message] = []
        """Question and answer in turns."""
        self._num_dropped = 0

    def answer(self, question: str) -> bool:
        """Write an answer, and keep both; False if Ctrl-C stopped it, which is then kept as far as it was shown.

        Raises:
            ConfigError: If the question alone is longer than the context, or cannot be written in the prompt format.
        """
        asked = [*self.messages, Message("user", question)]
        ids = self._ids(asked)
        room = self.network.checkpoint.context_length - len(ids)
        if room < 1:
            raise ConfigError(f"the question fills the context of {self.network.checkpoint.context_length} tokens")
        self._tell_dropped(asked, ids)
        strategy = copy.copy(self.strategy)
        strategy.max_new_tokens = min(room, strategy.max_new_tokens)
        family, tokenizer = self.network.checkpoint.family, self.network.tokenizer
        stop = self.network.checkpoint.prompt_format.stop_token_ids(tokenizer)
        stream = AnswerStream(tokenizer, stop, family.postprocess_answer, family.postprocess_lookback, self.write)
        is_beam = isinstance(strategy, BeamSearch)  # it knows its answer at the end only
        is_whole = True
        try:
            with self.network.adapter(self.is_tuned):
                (answer,) = generate_answers(
                    self.network.model,
                    tokenizer,
                    [ids],
                    strategy,
                    stop_token_ids=stop,
                    context_length=self.network.checkpoint.context_length,
                    streamer=None if is_beam else stream,
                )
            if is_beam:
                stream.show_text(answer.text)
            if answer.finish_reason == "length":
                notice(f"cut after {answer.num_tokens} tokens")
        except KeyboardInterrupt:
            is_whole = False
            notice("stopped")
        finally:
            self.write("\n")
        if stream.text:
            self.messages = [*asked, Message("assistant", stream.text.strip())]
        return is_whole

    def command(self, line: str) -> bool:
        """Obey a command; False if it is the last.

        Raises:
            ConfigError: For one that is unknown or cannot be obeyed.
        """
        name, _, rest = line[1:].partition(" ")
        commands: dict[str, Callable[[str], None]] = {
            "base": self._use_base,
            "tuned": self._use_tuned,
            "strategy": self._set_strategy,
            "system": self._set_system,
            "reset": self._reset,
            "save": self._save,
            "help": self._help,
        }
        if name == "exit":
            return False
        if name not in commands:
            raise ConfigError(f"unknown command /{name}. {accepted(name, [*commands, 'exit'])}")
        commands[name](rest.strip())
        return True

    def _ids(self, messages: list[Message], system: str | None = None) -> list[int]:
        text = self.system if system is None else system
        first = [Message("system", text)] if text else []
        prompt_format = self.network.checkpoint.prompt_format
        try:
            return prompt_format.encode_prompt(Conversation([*first, *messages]), self.network.tokenizer)
        except BadRecord as bad:
            raise ConfigError(f"the model's prompt format cannot write this: {bad.reason}") from None

    def _tell_dropped(self, asked: list[Message], ids: list[int]) -> None:
        """The prompt format drops the oldest rounds: without them the ids are the same."""
        dropped = 0
        while (later := asked[2 * dropped + 2 :]) and self._ids(later) == ids:
            dropped += 1
        if dropped > self._num_dropped:
            notice(f"the conversation is longer than the context: the model does not read its first {dropped} rounds")
        self._num_dropped = dropped

    def _help(self, _: str) -> None:
        notice(HELP)

    def _use_base(self, _: str) -> None:
        source = self.network.source
        if source.untuned:
            raise ConfigError(f"all weights were tuned; the base is not in memory. chat --checkpoint {source.untuned}")
        self.is_tuned = False
        notice("the base answers")

    def _use_tuned(self, _: str) -> None:
        if self.network.source.is_base:
            raise ConfigError("there is no adapter: this is the base. Give one with --adapter or --run")
        self.is_tuned = True
        notice("the tuned model answers")

    def _set_strategy(self, rest: str) -> None:
        if rest:
            name, *pairs = rest.split()
            if wrong := [pair for pair in pairs if "=" not in pair]:
                raise ConfigError(f"/strategy {wrong[0]}: give options as name=value")
            try:
                options = {key: yaml.safe_load(value) for key, _, value in (pair.partition("=") for pair in pairs)}
            except yaml.YAMLError:
                raise ConfigError(f"/strategy {rest}: a value cannot be read") from None
            self.strategy = build("generation", Strategy, {"class_path": name, "init_args": options})
        described = " ".join(f"{key}={value}" for key, value in self.strategy.parameters().items())
        notice(f"{type(self.strategy).__name__} {described}")

    def _set_system(self, rest: str) -> None:
        self._ids([Message("user", "?")], rest)
        self.system = rest
        self._reset("")

    def _reset(self, _: str) -> None:
        self.messages = []
        self._num_dropped = 0
        notice("a new conversation")

    def _save(self, rest: str) -> None:
        if not rest or not self.messages:
            raise ConfigError("/save: nothing was said yet" if rest else "/save: give the name of a file")
        first = [Message("system", self.system)] if self.system else []
        record = {"messages": [{"role": m.role, "content": m.content} for m in [*first, *self.messages]]}
        try:
            with Path(expanded(rest)).open("a", encoding="utf-8") as file:
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
        except OSError as error:
            raise ConfigError(f"/save {rest}: {error.strerror}") from None
        notice(f"added to {rest}")


def notice(text: str) -> None:
    """What is not an answer goes to stderr."""
    sys.stderr.write(f"{harmless(text)}\n")
    sys.stderr.flush()
