"""Help and import cost nothing."""

import gc
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import lit_sft.__main__ as program
from lit_sft import open_checkpoint
from lit_sft.__main__ import main
from lit_sft.errors import UserError

HEAVY = ("torch", "lightning", "transformers", "peft", "datasets")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)


def test_import_and_help_load_no_torch() -> None:
    code = (
        "import sys, lit_sft, lit_sft.__main__ as m; lit_sft.Conversation; m.main(['--help'])\n"
        f"loaded = [name for name in {HEAVY} if name in sys.modules]\n"
        "assert not loaded, loaded"
    )
    done = run("-c", code)
    assert done.returncode == 0, done.stderr
    for verb in ("preview", "fit", "validate", "test", "predict", "tiny", "chat", "merge", "runs", "summary"):
        assert verb in done.stdout
    assert [line for line in done.stdout.splitlines() if len(line) > 80] == []


def test_summary_of_a_run_loads_no_torch() -> None:
    code = f"import sys, lit_sft.cli.summary; assert not [name for name in {HEAVY} if name in sys.modules]"
    assert run("-c", code).returncode == 0


def test_memory_of_full_tuning_is_estimated_without_peft(tiny_folder: Path) -> None:
    code = (
        "import sys; from lit_sft import open_checkpoint; from lit_sft.preflight.network import measure_network; "
        "from lit_sft.preflight.plan import footprint_of; from lit_sft.tuning.full import Full; "
        "family = open_checkpoint(sys.argv[1]).family; footprint_of(Full(), family); measure_network(family); "
        "assert 'peft' not in sys.modules"
    )
    done = run("-c", code, str(tiny_folder))
    assert done.returncode == 0, done.stderr


def test_a_missing_kernel_for_4_bits_on_a_cpu_is_not_told() -> None:
    code = "import logging, lit_sft; logging.getLogger('bitsandbytes.backends.cpu.ops').warning('no such kernel')"
    assert run("-c", code).stderr == ""
    assert "no such kernel" in run("-c", code.replace(", lit_sft", "")).stderr


@pytest.mark.parametrize("verb", ["fit", "summary"])
def test_nothing_is_collected_while_a_verb_is_imported(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    collected: list[bool] = []

    def imported(name: str) -> None:
        collected.append(gc.isenabled())
        raise UserError("enough seen")

    monkeypatch.setattr(program, "import_module", imported)
    assert main([verb]) == 2
    assert collected == [False]
    assert gc.isenabled()


def test_an_unknown_verb_is_answered_with_the_verbs() -> None:
    done = run("-m", "lit_sft", "train")
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown verb 'train'. Did you mean 'fit'? Accepted: ")
    assert "Traceback" not in done.stderr


def test_the_public_names_are_complete() -> None:
    import lit_sft

    for name in lit_sft.__all__:
        assert getattr(lit_sft, name).__name__ == name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--famly", "moss"], "option 'famly' is not accepted. Did you mean 'family'? Accepted: "),
        ([], "required and not given: output"),
        (["--output", "x", "--hidden-size", "wide"], "hidden_size expects int, not wide"),
        (["--output", "x", "--num-heads", "7"], "hidden_size 256 must be a multiple of twice num_heads 7"),
        (["--output", "x", "--family", "mos"], "unknown family 'mos'. Did you mean 'moss'? Accepted: "),
        (["--output", "x", "--text", "none.txt"], "text to train the tokenizer on not found: none.txt"),
    ],
)
def test_mistakes_of_tiny_give_one_line(
    options: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["tiny", *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1


def test_tiny_writes_a_checkpoint_that_opens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "tiny"
    options = [
        "--family",
        "chatglm2-6b",
        "--output",
        str(folder),
        "--hidden-size",
        "32",
        "--num-layers",
        "1",
        "--num-heads=2",
    ]
    assert main(["tiny", *options]) == 0
    assert "chatglm2-6b" in capsys.readouterr().out
    checkpoint = open_checkpoint(folder)
    assert checkpoint.family.name == "chatglm2-6b"
    assert checkpoint.load_model().config.hidden_size == 32


def test_debug_shows_where_a_mistake_was_found_and_a_plain_run_does_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["summary", "--run", str(tmp_path / "nope")]
    assert main(words) == 2
    plain = capsys.readouterr().err
    assert plain.startswith("error: ")
    assert plain.count("\n") == 1
    assert main([*words, "--debug"]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("Traceback (most recent call last):")
    assert shown.endswith(plain)


@pytest.mark.slow
def test_classes_that_a_configuration_names_are_found_without_what_only_loading_needs() -> None:
    code = (
        "import sys, lit_sft.cli.fit; from lit_sft.configuration import BASE_CLASSES; "
        "from lit_sft.plugins import discover; [discover(*bases) for bases in BASE_CLASSES.values()]; "
        "assert not {'peft', 'bitsandbytes'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_flag_needs_no_value(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[bool, bool, str]] = []

    def verb(exact: bool = False, portable: bool = False, output: str = "") -> None:
        given.append((exact, portable, output))

    monkeypatch.setattr(program, "FUNCTION_VERBS", {"verb": ("here:verb", "")})
    monkeypatch.setattr(program, "import_module", lambda name: SimpleNamespace(verb=verb))
    for words in (
        ["--portable", "--output", "x"],
        ["--output", "x", "--portable"],
        ["--portable", "true", "--output", "x"],
    ):
        assert main(["verb", *words]) == 0
    assert main(["verb", "--portable", "false", "--exact"]) == 0
    assert given == [*[(False, True, "x")] * 3, (True, False, "")]
