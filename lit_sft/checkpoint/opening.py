"""A model folder on disk: opening it, recognizing its family, loading and saving what it holds."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_sft.checkpoint.exported import check_files, exported_names
from lit_sft.checkpoint.files import GENERATION, GRAPH, is_exported, refuse_pointer, weight_files
from lit_sft.conversation import PromptFormat, TextInterface
from lit_sft.errors import CheckpointError, ConfigError, UserError, accepted
from lit_sft.families._base import Family
from lit_sft.families.shared.settings import read_object, setting
from lit_sft.plugins import members

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ADDED_TOKENS = "added_tokens.json"
"""A file of the tokenizer that folders without added tokens do not have."""

PROBE = "你好"
"""A text to try a tokenizer on."""


SAMPLE = 1 << 20
"""Bytes of the beginning and of the end of a weight file that a fingerprint reads."""


@dataclass(frozen=True)
class Checkpoint(TextInterface):
    """A model folder on disk. Opening reads config.json only; weights and tokenizer load when asked for."""

    path: Path
    config: dict[str, Any]
    family: Family

    @property
    def prompt_format(self) -> PromptFormat:
        """The family's way to write a conversation."""
        return self.family.prompt_format

    @property
    def context_length(self) -> int:
        """Tokens the network can read at once."""
        return self.family.context_length

    @property
    def tokenizer_files(self) -> list[Path]:
        """Files that define the tokenizer."""
        files = (self.path / name for name in self.family.tokenizer_file_names)
        return [file for file in files if file.is_file()]

    @property
    def deciding_classes(self) -> tuple[type, ...]:
        """The family, which chooses prompt format and tokenizer."""
        return (type(self.family),)

    @property
    def weight_files(self) -> list[Path]:
        """Files that hold the weights; safetensors where there are both. Of an exported model, its graph and its data.

        Raises:
            CheckpointError: If there are none, or one that the index lists is missing.
        """
        if is_exported(self.path):
            return sorted(self.path.glob(f"{GRAPH}*"))
        return weight_files(self.path)

    def fingerprint(self) -> str:
        """SHA-256 that tells its weights from those of another checkpoint, without reading gigabytes.

        Of config.json, and of each weight file its size, its beginning with the names and shapes, and its end.
        """
        found = hashlib.sha256((self.path / "config.json").read_bytes())
        for file in self.weight_files:
            size = file.stat().st_size
            with file.open("rb") as opened:
                found.update(size.to_bytes(8, "little") + opened.read(SAMPLE))
                opened.seek(max(0, size - SAMPLE))
                found.update(opened.read())
        return found.hexdigest()

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """The checkpoint's tokenizer, a transformers one.

        Raises:
            CheckpointError: If its files are missing, unreadable or belong to another model.
        """
        names = self.family.tokenizer_file_names
        if not self.tokenizer_files:
            raise CheckpointError(
                f"{self.path} holds no tokenizer (expected {', '.join(names)}); is the download complete?"
            )
        for file in self.tokenizer_files:
            refuse_pointer(file)
        try:
            tokenizer = self.family.load_tokenizer()
            self._try_out(tokenizer)
        except UserError:
            raise
        except Exception as error:  # every library has its own: OSError, RuntimeError, DecodeError, KeyError ...
            absent = [name for name in names if name != ADDED_TOKENS and not (self.path / name).is_file()]
            hint = f"{', '.join(absent)} not in the folder" if absent else "download its files again"
            present = ", ".join(file.name for file in self.tokenizer_files)
            said = f"{type(error).__name__}: {error}".partition("\n")[0]
            raise CheckpointError(
                f"{self.path}: {present} cannot be read as a {self.family.name} tokenizer ({said}); {hint}"
            ) from error
        rows = self.family.num_embeddings
        if rows is not None and len(tokenizer) > rows:
            with_added = " with added_tokens.json" if (self.path / "added_tokens.json").is_file() else ""
            raise CheckpointError(
                f"{self.tokenizer_files[0]}{with_added} has {len(tokenizer)} tokens, but config.json gives the "
                f"embedding {rows} rows: it belongs to another model, or to one whose embedding was resized after it "
                "was saved"
            )
        return tokenizer

    def _try_out(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Use it once in each way: some settings only make trouble then."""
        rows = tokenizer([PROBE, PROBE * 2], padding=tokenizer.pad_token is not None)["input_ids"]
        tokenizer.decode(rows[0], skip_special_tokens=True)
        tokenizer.encode_text(PROBE)  # all of ours have it
        self.prompt_format.stop_token_ids(tokenizer)

    def load_model(self, dtype: torch.dtype | None = None, quantization: Any = None) -> PreTrainedModel:
        """The network with `generate()`, in evaluation mode.

        Args:
            dtype: Type the weights are converted to while they load; float32 if not given.
            quantization: A transformers quantization config, or None.

        Raises:
            CheckpointError: If weights are missing, damaged, of another model, or would run code.
        """
        import torch

        from lit_sft.checkpoint.foreign import refuse_dropped_lora, settle_quantization
        from lit_sft.checkpoint.onnx_session import GraphSession
        from lit_sft.checkpoint.weights import load_network, open_weights

        self.family.check_sizes()
        if is_exported(self.path):
            from lit_sft.checkpoint.onnx_network import OnnxForCausalLM

            if quantization is not None:
                raise ConfigError(f"{self.path} is an exported graph: QLoRA needs the checkpoint that it was made of")
            check_files(self.path)
            return OnnxForCausalLM(self.family.network_config, GraphSession(self.path))
        tensors = open_weights(self.path)
        settle_quantization(self.path, self.family.network_config, tensors)
        self._check_generation_config()
        network = load_network(self.path, tensors, lambda: self.family.load_model(dtype or torch.float32, quantization))
        network.register_load_state_dict_pre_hook(refuse_dropped_lora)
        return network

    def _check_generation_config(self) -> None:
        """A file that it cannot read transformers would leave out, and with it where answers end."""
        from transformers import GenerationConfig

        from lit_sft.families.shared.network_config import said_by

        file = self.path / "generation_config.json"
        try:
            content = read_object(file)
            GenerationConfig.from_dict(content)
            for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
                if not isinstance(content.get(key), list):
                    setting(file, content, key, int, 0)
        except UserError:
            raise
        except Exception as error:  # transformers computes with what it finds
            raise CheckpointError(f"{file} cannot be used: {said_by(error)}; correct it, or remove it") from error

    def save_model(
        self, model: PreTrainedModel, folder: str | Path, weights: dict[str, torch.Tensor] | None = None
    ) -> None:
        """Write a network loaded from here as a checkpoint of its own, in the original layout with the tokenizer.

        Args:
            model: The network.
            folder: Where to.
            weights: Its weights by name, where it holds a part of them only.

        Raises:
            ConfigError: If adapters are still attached to it.
        """
        from lit_sft.checkpoint.saving import save_model

        save_model(self.family, self.tokenizer_files, model, Path(folder), weights)

    def save_native(
        self, model: PreTrainedModel, folder: str | Path, check: Callable[[Path], None] | None = None
    ) -> None:
        """Write a network loaded from here so that plain `AutoModelForCausalLM.from_pretrained` loads it without us.

        Args:
            model: The network.
            folder: Where to; must not exist, and does not until it is complete.
            check: Looks at the folder before it has its name; what it raises leaves nothing behind.

        Raises:
            ConfigError: If no class of transformers computes it, it is quantized, or `folder` exists.
        """
        from lit_sft.checkpoint.saving import save_native

        save_native(self.family, model, Path(folder), check)


def families() -> dict[str, type[Family]]:
    """Every family, by name."""
    return {cls.name: cls for cls in members("lit_sft.families", Family).values()}  # type: ignore[type-abstract]


def released_family(folder: str) -> type[Family] | None:
    """The family that released a model under this name of a folder, `Baichuan-7B` for example."""
    return next((family for family in families().values() if folder in family.released), None)


def find_family(name: str) -> type[Family]:
    """The family called `name`.

    Raises:
        CheckpointError: If there is none, naming those there are.
    """
    known = families()
    if name not in known:
        raise CheckpointError(f"unknown family {name!r}. {accepted(name, ['auto', *known])}")
    return known[name]


def open_checkpoint(path: str | Path, family: str = "auto", prompt_format: str | None = None) -> Checkpoint:
    """Open a model folder in its original layout, unmodified and without remote code.

    Args:
        path: Folder with config.json, tokenizer files and weights, or with an exported graph.
        family: Name of the family, or `auto` to recognize it from config.json.
        prompt_format: Name of one of the family's prompt formats; if not given its default, or of a graph that with
            which it was exported.

    Raises:
        CheckpointError: If the folder or its config.json is missing or unreadable, or the family unknown or ambiguous.
        ConfigError: If the family has no such prompt format.
    """
    folder = Path(path)
    if not folder.is_dir():
        # models/ and runs/ are folders of ours, not owners on the Hub.
        is_hub_name = re.fullmatch(r"(?!models/|runs/)[\w-][\w.-]*/[\w.-]+", str(path))
        remedy = (
            f"Download the repository and give that folder: hf download {path} --local-dir models/{folder.name}, or "
            f"modelscope download --model {path} --local_dir models/{folder.name}"
            if is_hub_name
            else f"Give a folder that holds config.json and weights; {folder.absolute()} is not one. "
            "docs/models.md says where to get them"
        )
        raise CheckpointError(f"checkpoint folder not found: {folder}. {remedy}")
    _refuse_devices(folder)
    config_file = folder / "config.json"
    config = read_object(config_file)
    if not config:
        raise CheckpointError(f"{folder} holds no config.json, or an empty one, so it is not a model folder")
    stated = config.get("quantization_config")
    if not isinstance(stated, dict | None):
        raise CheckpointError(
            f"{config_file}: quantization_config is {stated!r:.40}, not an object; remove it if the weights are not "
            "quantized"
        )
    if is_exported(folder):
        family, prompt_format = _as_exported(folder, config, family, prompt_format)
    chosen = find_family(family) if family != "auto" else _recognize(folder, config)
    return Checkpoint(folder, config, chosen(folder, config, prompt_format))


def _as_exported(folder: Path, config: dict[str, Any], family: str, prompt_format: str | None) -> tuple[str, str]:
    """What a graph was exported with, where nothing else is asked for.

    Raises:
        CheckpointError: If generation.json names another family than that of config.json, or no format of its own.
    """
    file = folder / GENERATION
    said = exported_names(folder)
    cls = families().get(said.family)
    matching = _matching(folder, config)
    if cls is None or (matching and cls not in matching):
        names = accepted(said.family, (each.name for each in matching or families().values()))
        raise CheckpointError(f"{file}: family is {said.family!r}, and not that of config.json. {names}")
    formats = cls(folder, config).prompt_formats()
    if said.prompt_format not in formats:
        raise CheckpointError(
            f"{file}: prompt_format is {said.prompt_format!r}. {accepted(said.prompt_format, formats)}"
        )
    return (said.family if family == "auto" else family), prompt_format or said.prompt_format


def _refuse_devices(folder: Path) -> None:
    """Whoever opens a pipe waits for somebody to write into it."""
    try:
        strange = next(
            (path for path in folder.iterdir() if path.exists() and not (path.is_file() or path.is_dir())), None
        )
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read: {error.strerror}") from None
    if strange:
        raise CheckpointError(f"{strange} is neither a file nor a folder, but a pipe or a device; remove it")


def _recognize(folder: Path, config: dict[str, Any]) -> type[Family]:
    matching = _matching(folder, config)
    matching = [cls for cls in matching if not cls.is_fallback] or matching
    if len(matching) == 1:
        return matching[0]
    said = f"model_type {config.get('model_type')!r}, architectures {config.get('architectures')}"
    problem = "could be several families" if matching else "is of no known family"
    candidates = ", ".join(sorted(cls.name for cls in matching) or sorted(families()))
    raise CheckpointError(f"{folder} {problem} ({said}). Name it with `family:`, one of: {candidates}")


def _matching(folder: Path, config: dict[str, Any]) -> list[type[Family]]:
    return [cls for cls in families().values() if cls.matches_folder(folder, config)]
