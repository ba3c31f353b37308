"""The help of `fit` shows every option, and each with words."""

import re

import pytest
from jsonargparse import ArgumentParser

from lit_sft.__main__ import main
from lit_sft.callbacks.prediction_writer import PredictionWriter
from lit_sft.callbacks.samples import Samples
from lit_sft.cli.parser import EPILOG
from lit_sft.configuration import BASE_CLASSES
from lit_sft.data.sft import SFTData
from lit_sft.plugins import discover

pytestmark = pytest.mark.slow  # as a whole


def test_help_of_fit_documents_its_options(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as done:
        main(["fit", "--help"])
    assert done.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: python -m lit_sft")
    assert len(text.splitlines()) < 300
    assert "<lambda>" not in text
    assert "sync_batchnorm" not in text
    for option in (
        "--samples.count",
        "--predictions.path",
        "--name",
        "--runs",
        "--trainer.max_epochs",
        "--model.help=SFT",
    ):
        assert option in text


@pytest.mark.parametrize("words", re.findall(r"(?:--\w+=\w+ )?--[\w.]+help=[\w.]*\w", EPILOG))
def test_what_the_help_of_fit_points_to_is_there(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["fit", *words.split()])
    assert done.value.code == 0
    assert f".{words.rpartition('=')[2].rpartition('.')[2]}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    "cls",
    [
        *(Samples, PredictionWriter),
        *(cls for bases in dict.fromkeys(BASE_CLASSES.values()) for cls in discover(*bases).values()),
    ],
    ids=lambda cls: cls.__name__,
)
def test_every_parameter_that_a_configuration_can_set_is_documented(cls: type) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, skip={"text"} if cls is SFTData else None)
    undocumented = [action.dest for action in parser._actions if not action.help]
    assert undocumented == []
