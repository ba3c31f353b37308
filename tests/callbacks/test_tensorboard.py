"""What TensorBoard shows of a run: read back from its event files."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from lit_sft.__main__ import main


def events_of(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    events.Reload()
    return events


def hparams_of(events: EventAccumulator, kind: str) -> plugin_data_pb2.HParamsPluginData:
    content = events.summary_metadata[f"_hparams_/{kind}"].plugin_data.content
    return plugin_data_pb2.HParamsPluginData.FromString(content)


@pytest.mark.slow
def test_it_shows_hyperparameters_results_and_samples_of_each_strategy(
    write_config: Callable[..., str], tmp_path: Path
) -> None:
    strategies = [
        {"class_path": "Greedy", "init_args": {"max_new_tokens": 4}},
        {"class_path": "TopP", "init_args": {"max_new_tokens": 4, "name": "nucleus <p>"}},
    ]
    config = write_config(model={"generation": strategies}, trainer={"max_epochs": 3})
    assert main(["fit", "--config", config, "--samples.count", "1"]) == 0
    (run,) = (tmp_path / "runs").iterdir()
    events = events_of(run)

    chosen = dict(hparams_of(events, "session_start_info").session_start_info.hparams.items())
    assert chosen["family"].string_value == "baichuan-7b"
    assert chosen["tuning"].string_value == "LoRA"
    assert (chosen["tuning_rank"].number_value, chosen["tuning_alpha"].number_value) == (4, 8)
    assert chosen["lr"].number_value == 0.01
    assert chosen["precision"].string_value == "32-true"
    assert chosen["batch_rows"].number_value == 1

    # The tab shows the latest point of each curve that is named here.
    named = {info.name.tag for info in hparams_of(events, "experiment").experiment.metric_infos}
    assert {"val/loss", "val/perplexity", "val_before/loss", "val_before/perplexity"} <= named
    assert named <= set(events.Tags()["scalars"])
    summary = json.loads((run / "summary.json").read_text())
    assert events.Scalars("val/loss")[-1].value == pytest.approx(summary["after"]["val/loss"])
    (before,) = events.Scalars("val_before/loss")
    assert before.value == pytest.approx(summary["before"]["val/loss"])

    assert min(events.Tags()["scalars"]).startswith("loss/")  # TensorBoard opens on the first
    for split in ("train", "val"):
        assert events.Scalars(f"loss/{split}")[-1].value == events.Scalars(f"{split}/loss")[-1].value
    assert not list(run.glob("hparams.yaml"))

    texts = [event.tensor_proto.string_val[0].decode() for event in events.Tensors("samples/text_summary")]
    assert len(texts) == 4  # before, and after each epoch
    head, _, *lines = texts[-1].split("\n")
    assert head == "| prompt | strategy | before | after | reference |"
    assert [line.split(" | ")[1] for line in lines] == [
        "greedy(max_new_tokens=4)",
        "nucleus &#60;p&#62;",
    ]
    was = [line.split(" | ")[2:4] for line in texts[0].split("\n")[2:]]
    now = [line.split(" | ")[2:4] for line in lines]
    assert [before for before, _ in now] == [before for before, _ in was] == [after for _, after in was]
    assert [after for _, after in now] != [before for before, _ in now]
