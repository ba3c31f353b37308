"""A family is picked up from its file, with no other edit."""

from pathlib import Path

import pytest

import lit_sft.families
from lit_sft import open_checkpoint
from lit_sft.checkpoint.opening import families
from lit_sft.errors import CheckpointError, ConfigError

DROPPED = '''
from lit_sft.families.baichuan.rotary import Baichuan7B


class Dropped(Baichuan7B):
    """A family somebody added."""

    name = "dropped"

    @classmethod
    def matches(cls, config):
        return config.get("model_type") == "dropped"

    matches_folder = classmethod(lambda cls, folder, config: cls.matches(config))
'''


def test_a_file_dropped_into_the_folder_is_a_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dropped.py").write_text(DROPPED)
    monkeypatch.setattr(lit_sft.families, "__path__", [*lit_sft.families.__path__, str(tmp_path)])
    (tmp_path / "config.json").write_text('{"model_type": "dropped", "max_position_embeddings": 8}')
    assert "dropped" in families()
    assert open_checkpoint(tmp_path).family.name == "dropped"


def test_an_unknown_folder_is_answered_with_the_families(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "unheard-of", "architectures": ["X"]}')
    message = r"no known family \(model_type 'unheard-of'.*`family:`, one of: baichuan-13b"
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]"])
def test_an_unreadable_config_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        open_checkpoint(tmp_path)


def test_an_unknown_prompt_format_is_answered_with_those_of_the_family(tiny_folder: Path) -> None:
    with pytest.raises(ConfigError, match="no prompt format 'chat'. Accepted: .*human-assistant"):
        open_checkpoint(tiny_folder, prompt_format="chat")


def test_the_name_of_a_repository_is_answered_with_how_to_download_it() -> None:
    with pytest.raises(
        CheckpointError,
        match=r"hf download baichuan-inc/Baichuan-7B --local-dir models/Baichuan-7B, or modelscope download",
    ):
        open_checkpoint("baichuan-inc/Baichuan-7B")
    with pytest.raises(CheckpointError, match="Give a folder") as error:
        open_checkpoint("/nowhere/at/all")
    assert "hf download" not in str(error.value)


def test_a_folder_of_ours_that_is_missing_is_no_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=rf"{tmp_path}/models/tiny is not one. docs/models.md says where"):
        open_checkpoint("models/tiny")
