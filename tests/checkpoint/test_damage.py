"""Whatever is wrong with a model folder is one line that names the file, and nothing in it ever runs."""

import io
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_sft import open_checkpoint
from lit_sft.__main__ import main
from lit_sft.checkpoint.opening import Checkpoint, families
from lit_sft.errors import UserError

WRONG: tuple[Any, ...] = ("x", -1, 0, 10**12, 0.5, True, None, [], {}, ["x"], {"a": -1})
NAMES = sorted(families())


@pytest.fixture(scope="module", params=NAMES)
def own(request: pytest.FixtureRequest, tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of each family, whose files a test leaves as it found them."""
    return Path(shutil.copytree(tiny(request.param), tmp_path_factory.mktemp("damaged") / request.param))


def objects(folder: Path, *left_out: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    for file in sorted(folder.glob("*.json")):
        if file.name not in left_out:
            yield file, json.loads(file.read_text(encoding="utf-8"))


def in_one_line(action: Callable[[], object], what: str) -> str:
    """What the error says; nothing if there is none, for some wrong values do no harm."""
    said = ""
    try:
        action()
    except UserError as error:
        said = str(error)
    except Exception as error:
        raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
    assert "\n" not in said, what
    return said


def some(number: int) -> tuple[Any, ...]:
    """Two wrong values for the key of that number: over all keys each value has its turn."""
    return WRONG[2 * number % len(WRONG)], WRONG[(2 * number + 1) % len(WRONG)]


def used(folder: Path) -> None:
    open_checkpoint(folder, folder.name).family.skeleton()


def with_tokenizer(folder: Path) -> None:
    open_checkpoint(folder, folder.name).load_tokenizer()


@pytest.mark.slow
def test_every_key_of_config_json_may_be_wrong_or_missing(own: Path) -> None:
    file = own / "config.json"
    content = file.read_text(encoding="utf-8")
    try:
        for number, key in enumerate(json.loads(content)):
            for value in some(number):
                file.write_text(json.dumps({**json.loads(content), key: value}))
                in_one_line(lambda: used(own), f"{key} = {value}")
            in_one_line(lambda: open_checkpoint(own), f"{key} = {value}, recognized")
            file.write_text(json.dumps({k: v for k, v in json.loads(content).items() if k != key}))
            in_one_line(lambda: used(own), f"no {key}")
    finally:
        file.write_text(content, encoding="utf-8")


@pytest.mark.slow
def test_every_setting_of_the_tokenizer_may_be_wrong_or_missing(own: Path) -> None:
    for file, content in objects(own, "config.json", "vocab.json", "added_tokens.json", "tokenizer.json"):
        if file.name.endswith(".index.json"):
            continue
        before = file.read_bytes()
        for number, key in enumerate(content):
            for value in some(number):
                file.write_text(json.dumps({**content, key: value}))
                in_one_line(lambda: with_tokenizer(own), f"{file.name}: {key} = {value}")
            file.write_text(json.dumps({k: v for k, v in content.items() if k != key}))
            in_one_line(lambda: with_tokenizer(own), f"{file.name}: no {key}")
        file.write_bytes(before)


def loaded(folder: Path) -> None:
    checkpoint = open_checkpoint(folder, folder.name)
    checkpoint.load_tokenizer()
    checkpoint.load_model()


@pytest.mark.slow
def test_every_file_may_be_cut_off_empty_another_or_no_file(own: Path) -> None:
    for file in sorted(own.iterdir()):
        content = file.read_bytes()
        for damaged in (b"", content[: len(content) // 2], b"null", b"[" * 100_000, b"\xff\xfe{}", b"{}", b'{"a": 1}'):
            file.write_bytes(damaged)
            in_one_line(lambda: loaded(own), f"{file.name}: {damaged[:10]!r}")
        file.unlink()
        in_one_line(lambda: loaded(own), f"no {file.name}")
        file.mkdir()
        in_one_line(lambda: loaded(own), f"folder {file.name}")
        file.rmdir()
        file.symlink_to(file.name)
        in_one_line(lambda: loaded(own), f"loop {file.name}")
        file.unlink()
        os.mkfifo(file)
        in_one_line(lambda: loaded(own), f"pipe {file.name}")
        file.unlink()
        file.write_bytes(content)
    loaded(own)


@pytest.mark.slow
@pytest.mark.parametrize("factor", [0, -1, 10**7])
def test_no_size_of_a_network_is_believed_without_its_weights(own: Path, factor: int) -> None:
    """Refused at once, not after the memory for it is gone."""
    config = json.loads((own / "config.json").read_text(encoding="utf-8"))
    family = open_checkpoint(own, own.name).family
    for key in family.size_keys or ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"):
        (own / "config.json").write_text(json.dumps({**config, key: config[key] * factor}))
        said = in_one_line(lambda: loaded(own), key)
        (own / "config.json").write_text(json.dumps(config))
        assert "config.json" in said, key
        if family.size_keys or factor < 1:  # a model type of transformers may say it of what follows from the size
            assert key in said


def test_a_size_that_the_files_do_not_hold_is_refused_before_memory_is_taken(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 200}))
    made: list[int] = []
    monkeypatch.setattr(
        torch.nn.init, "normal_", lambda tensor, **_: made.extend([tensor.numel()] * (not tensor.is_meta))
    )
    with pytest.raises(UserError, match=r"lacks tensor model\.layers\.10\..*config\.json asks for"):
        open_checkpoint(folder).load_model()
    assert not made


def test_a_key_that_decides_about_the_network_is_not_made_up(checkpoint: Checkpoint) -> None:
    file = checkpoint.path / "config.json"
    for key in checkpoint.family.size_keys:
        file.write_text(json.dumps({k: v for k, v in checkpoint.config.items() if k != key}))
        with pytest.raises(UserError, match=rf"config\.json has no .*{key}"):
            open_checkpoint(checkpoint.path, checkpoint.family.name).load_model()


def test_a_wrong_family_is_told_from_what_config_json_lacks(tiny: Callable[[str], Path]) -> None:
    for name in NAMES:
        for family in NAMES:
            if name == "native" and family.startswith("baichuan"):
                continue  # it may be a Llama that was one
            kinds = {which.partition("-")[0].rstrip("23") for which in (name, family)}
            if len(kinds) == 2 and family != "native":
                load = partial(lambda n, f: open_checkpoint(tiny(n), f).load_model(), name, family)
                assert in_one_line(load, f"{name} as {family}"), f"{name} as {family}"


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("tokenizer_config.json", "add_bos_token", "false"),
        ("tokenizer_config.json", "eos_token", 2),
        ("tokenizer_config.json", "padding_side", "middle"),
        ("generation_config.json", "eos_token_id", "</s>"),
        ("generation_config.json", "max_new_tokens", "many"),
        ("config.json", "hidden_size", "64"),
        ("config.json", "vocab_size", -5),
        ("config.json", "hidden_act", "nothing"),
        ("config.json", "pad_token_id", 10**6),
    ],
)
def test_the_line_names_file_and_key(folder: Path, file: str, key: str, value: Any) -> None:
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**content, key: value}))

    def everything() -> None:
        checkpoint = open_checkpoint(folder, "baichuan-7b")
        checkpoint.load_tokenizer()
        checkpoint.load_model()

    said = in_one_line(everything, key)
    assert file in said


def test_the_command_line_says_it_in_one_line_with_exit_code_2(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_attention_heads": "four"}))
    assert main(["chat", "--checkpoint", str(folder)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
