"""What an evaluation has answered so far, on disk."""

from pathlib import Path

import pytest

from lit_sft.benchmarks.store import Store
from lit_sft.errors import ConfigError


@pytest.mark.parametrize("name", ["settings.json", "answers.jsonl"])
@pytest.mark.parametrize("content", [b"{\n", b"[1]\n", b"\xff\n"])
def test_damage_is_named_with_the_file(tmp_path: Path, name: str, content: bytes) -> None:
    Store(tmp_path, {"shots": 5}).add([{"subject": "law", "id": "1"}])
    assert (tmp_path / name).is_file()
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=rf"{name}(:1)? is damaged"):
        Store(tmp_path, {"shots": 5})
