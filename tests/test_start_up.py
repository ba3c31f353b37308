"""Help and import cost nothing."""

import subprocess
import sys

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
    for verb in ("fit", "validate", "test", "predict", "tiny", "summary"):
        assert verb in done.stdout


def test_summary_of_a_run_loads_no_torch() -> None:
    code = f"import sys, lit_sft.summary; assert not [name for name in {HEAVY} if name in sys.modules]"
    assert run("-c", code).returncode == 0


def test_an_unknown_verb_is_answered_with_the_verbs() -> None:
    done = run("-m", "lit_sft", "train")
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown verb 'train'")
    assert "Traceback" not in done.stderr


def test_the_public_names_are_complete() -> None:
    import lit_sft

    for name in lit_sft.__all__:
        assert getattr(lit_sft, name).__name__ == name
