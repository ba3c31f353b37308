"""A family: the models that share a network, an on-disk layout, a tokenizer and a prompt format."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from lit_sft.conversation import PromptFormat
from lit_sft.errors import CheckpointError, ConfigError, UserError, accepted
from lit_sft.families.shared.settings import setting

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from lit_sft.families.shared.tokenizer_data import TokenizerData


@dataclass(frozen=True)
class TinySize:
    """Sizes of a tiny checkpoint; the defaults make one of about four million parameters.

    Args:
        hidden_size: Width of the residual stream.
        intermediate_size: Width of the feed-forward layer.
        num_layers: Number of blocks.
        num_heads: Attention heads; must divide `hidden_size`.
        vocab_size: Rows of the embedding and pieces of the tokenizer.
        context_length: Tokens the network can read at once.
    """

    hidden_size: int = 256
    intermediate_size: int = 704
    num_layers: int = 4
    num_heads: int = 8
    vocab_size: int = 2000
    context_length: int = 512


class Behavior(NamedTuple):
    """What training must know of a network.

    `head` makes of the network what maps hidden states [N, H] to logits [N, V]; `mixing` is the share by which the
    hidden states of a packed example differ from those it has alone: 0 if the examples of a row do not see each other.
    """

    head: Callable[[PreTrainedModel], torch.nn.Module] = lambda network: network.get_output_embeddings()
    mixing: float = 0.0


class Family(ABC):
    """Everything that differs between model families; one file in this folder is one or more of them.

    An instance belongs to one checkpoint folder, for limits and token ids stand in its files.

    Args:
        folder: The checkpoint folder.
        config: Its config.json.
        prompt_format: Name of a prompt format; the first of `prompt_formats` if not given.
    """

    name: ClassVar[str]
    tokenizer_file_names: ClassVar[tuple[str, ...]]
    released: ClassVar[dict[str, dict[str, Any]]] = {}
    """Released models by the name of their folder, each with what of its config.json decides about its size."""

    config_class: ClassVar[type[PreTrainedConfig]]
    """What reads config.json."""

    size_keys: ClassVar[tuple[str, ...]] = ()
    """Keys of config.json without which the network is not known: their defaults are those of a released model."""

    prefix_input: ClassVar[Literal["hidden", "states"] | None] = None
    """What a projected prefix of the original embeds its tokens into: as wide as the residual stream, or as all keys
    and values of a token; None where the original has no prefix (P-tuning v2)."""

    is_fallback: ClassVar[bool] = False
    """Whether it takes what any other family that matches would take, too."""

    postprocess_lookback: ClassVar[int] = 0
    """Characters at the end of an unfinished answer that `postprocess_answer` may still change."""

    polish: ClassVar[dict[str, dict[str, str]]] = {}
    """What `postprocess_answer` does beside removing blanks at the ends, as data: `replace` and then `beside_han`,
    which replaces beside a Chinese character only."""

    def __init__(self, folder: Path, config: dict[str, Any], prompt_format: str | None = None) -> None:
        self.folder = folder
        self.config = config
        self.network_config  # noqa: B018 - all that follows relies on what it checks
        formats = self.prompt_formats()
        name = prompt_format or next(iter(formats))
        if name not in formats:
            raise ConfigError(f"family {self.name} has no prompt format {name!r}. {accepted(name, formats)}")
        self.prompt_format = formats[name]
        self.prompt_format_name = name

    @classmethod
    @abstractmethod
    def matches(cls, config: dict[str, Any]) -> bool:
        """Whether a checkpoint with this config.json is of this family."""

    @classmethod
    def matches_folder(cls, folder: Path, config: dict[str, Any]) -> bool:
        """Whether the folder is of this family, for families that config.json alone does not tell apart."""
        return cls.matches(config)

    @cached_property
    def network_config(self) -> PreTrainedConfig:
        """config.json as transformers reads it, its types and sizes checked; networks are built of copies.

        Raises:
            CheckpointError: If one of its values cannot be.
        """
        from lit_sft.families.shared.network_config import LARGEST, checked_config

        file = self.folder / "config.json"
        if nothing := next((key for key in self.size_keys or LARGEST if self.config.get(key) == 0), None):
            raise CheckpointError(f"{file}: {nothing} is 0; expected a whole number from 1")
        return checked_config(file, self.read_config)

    def read_config(self) -> PreTrainedConfig:
        """config.json as transformers reads it, each value of the type that its default has."""
        file = self.folder / "config.json"
        for field in fields(self.config_class):
            # Ids of tokens may be lists, and transformers checks them.
            if type(field.default) in {bool, int, float, str} and not field.name.endswith("token_id"):
                default: Any = field.default
                setting(file, self.config, field.name, type(default), default)
        return self.config_class.from_dict(dict(self.config))

    def check_sizes(self) -> None:
        """Refuse a config.json that says too little.

        Raises:
            CheckpointError: If one of `size_keys` is missing.
        """
        if missing := [key for key in self.size_keys if self.config.get(key) is None]:
            raise CheckpointError(
                f"{self.folder / 'config.json'} has no {', '.join(missing)}, so it is not of family {self.name}. "
                "Correct `family:`, or download it again"
            )

    def skeleton(self) -> PreTrainedModel:
        """The network on "meta", where a weight is a shape and takes no memory.

        Raises:
            CheckpointError: If config.json describes none.
        """
        import torch

        from lit_sft.families.shared.network_config import said_by

        self.check_sizes()
        try:
            with torch.device("meta"):
                return self.build()
        except UserError:
            raise
        except Exception as error:  # whatever wrong numbers lead to
            raise CheckpointError(
                f"{self.folder / 'config.json'} describes no network that can be built: {said_by(error)}"
            ) from error

    @property
    @abstractmethod
    def lora_targets(self) -> tuple[str, ...]:
        """Names of the linear layers that LoRA adapts unless told otherwise; a constant in most families."""

    @property
    @abstractmethod
    def context_length(self) -> int:
        """Tokens the network was built to read at once."""

    @abstractmethod
    def prompt_formats(self) -> dict[str, PromptFormat]:
        """The ways to write a conversation for this checkpoint, by name, the default first."""

    @abstractmethod
    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the folder, equal to the original one."""

    @abstractmethod
    def load_model(self, dtype: torch.dtype, quantization: Any = None) -> PreTrainedModel:
        """The network with its weights, converted while they stream in."""

    @abstractmethod
    def build(self) -> PreTrainedModel:
        """The network of config.json with random weights, where one is wanted on "meta" only: see `skeleton`."""

    @property
    def num_embeddings(self) -> int | None:
        """Rows of the embedding, as config.json gives them."""
        rows = self.config.get("padded_vocab_size") or self.config.get("vocab_size")
        return rows if isinstance(rows, int) else None

    def behavior(self, network: PreTrainedModel) -> Behavior:
        """What a loaded network does; families that are written here are plain heads on decoders that tell rows apart.

        Raises:
            CheckpointError: If the network cannot be trained.
        """
        return Behavior()

    def tokenizer_data(self, tokenizer: Any) -> TokenizerData:
        """What the tokenizer of the folder needs to give the same ids and texts in another language.

        Raises:
            ConfigError: With the reason, if there it cannot.
        """
        if not hasattr(tokenizer, "data"):
            raise ConfigError(
                f"{type(tokenizer).__name__} does not describe itself as data, so an exported model takes ids only"
            )
        data: TokenizerData = tokenizer.data()
        return data

    @property
    def prefix_end_id(self) -> int | None:
        """The token before which a sequence sees itself in both directions; None where all of it is causal."""
        return None

    def traced_hidden_states(
        self, network: Any, input_ids: torch.Tensor, position_ids: torch.Tensor, prefix_length: torch.Tensor | None
    ) -> torch.Tensor:
        """What an exported graph computes before the head: hidden states [B, S, H] after the last norm.

        The attention function of `network` keeps cache and mask, so there is neither here, and no step may depend on
        values of tensors.

        Args:
            network: The whole network.
            input_ids: [B, S].
            position_ids: [B, S], counted from the first token of each row.
            prefix_length: [B], where `prefix_end_id` first stands in each row, -1 where it does not; None if the
                family has no such token.
        """
        hidden: torch.Tensor = network.get_decoder()(
            input_ids=input_ids, position_ids=position_ids, use_cache=False
        ).last_hidden_state
        return hidden

    def plain_head(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows [N, H] of the head's weight, as a plain linear layer with the same logits has them."""
        return rows

    @property
    def z_loss_weight(self) -> float:
        """How many times the square of its largest logit the original adds to the loss of a position in training."""
        return 0.0

    def postprocess_answer(self, answer: str) -> str:
        """What a chat shows of an answer, where the original cleans it up."""
        return answer.strip()

    def native_config(self, config: Any) -> PreTrainedConfig | None:
        """The configuration of a plain transformers class that computes the same network under the same tensor names.

        Args:
            config: That of the loaded network.

        Returns:
            None where there is no such class.
        """
        return None

    def native_tokenizer(self) -> PreTrainedTokenizerBase | None:
        """A tokenizer of a plain transformers class with the same ids, to stand beside `native_config`."""
        return None

    @classmethod
    @abstractmethod
    def write_tiny(cls, folder: Path, texts: Sequence[str], size: TinySize) -> None:
        """A small random checkpoint in the original on-disk layout, its tokenizer trained on `texts`."""
