"""The folder of an exported model: whole or not there, what goes into it, and what is refused."""

import errno
import json
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from graphs import traced_once
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, BloomConfig, GraniteConfig, MixtralConfig

from lit_sft import open_checkpoint
from lit_sft.__main__ import main
from lit_sft.chat.network import Network
from lit_sft.chat.network import Source as ChatSource
from lit_sft.chat.session import Session
from lit_sft.checkpoint.onnx_session import GraphSession
from lit_sft.checkpoint.opening import Checkpoint
from lit_sft.cli._source import open_source
from lit_sft.errors import CheckpointError, ConfigError, UserError
from lit_sft.export import check, reference
from lit_sft.export.check import Sample
from lit_sft.export.folder import Form, Source, check_request, export_onnx
from lit_sft.export.weights import DataFile
from lit_sft.generation.strategies import Greedy
from lit_sft.rewards.trained import HEAD_FILE, REWARD_FILE
from lit_sft.tuning._adapter_loading import place_adapter
from lit_sft.tuning._heads import ScalarHead

pytestmark = pytest.mark.slow  # as a whole

ROW = list(range(20, 44))
SAMPLES = [Sample(ROW, [-100] * 12 + ROW[12:]), Sample(ROW[:9], [-100] * 9)]


@pytest.fixture(autouse=True, scope="module")
def memory() -> Iterator[None]:
    with traced_once():
        yield


@pytest.fixture(scope="module")
def checkpoint(tiny: Callable[[str], Path]) -> Checkpoint:
    return open_checkpoint(tiny("baichuan-7b"))


@pytest.fixture(scope="module")
def exported(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("exported") / "model"
    export_onnx(Source(checkpoint, SAMPLES), output)
    return output


@pytest.fixture
def adapter(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    targets = [*checkpoint.family.lora_targets]
    model = get_peft_model(checkpoint.load_model(), LoraConfig(r=4, target_modules=targets, use_dora=True))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
        elif "magnitude" in name:
            parameter.data *= 1.1
    model.save_pretrained(str(tmp_path / "adapter"))
    return tmp_path / "adapter"


def outputs_of(path: Path) -> torch.Tensor:
    session = GraphSession(path, threads=1)
    return torch.from_numpy(session.forward([ROW], session.new_cache(1), keep=len(ROW))[0])


def test_the_manifest_says_where_a_model_came_from_and_what_was_checked(exported: Path, checkpoint: Checkpoint) -> None:
    manifest = json.loads((exported / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["source"]["fingerprint"] == checkpoint.fingerprint()
    assert manifest["parity"]["num_positions"] == 33
    assert manifest["parity"]["max_logit_difference"] < 1e-4
    assert manifest["quality"]["num_tokens"] == 12
    assert manifest["quality"]["kl_divergence"] < 1e-6
    files = {path.name for path in exported.iterdir()} - {"manifest.json"}
    assert set(manifest["files"]) == files >= {"model.onnx", "model.onnx.data", "generation.json", "config.json"}


def test_an_adapter_is_merged_while_the_weights_stream(checkpoint: Checkpoint, adapter: Path, tmp_path: Path) -> None:
    export_onnx(Source(checkpoint, SAMPLES, adapter=adapter), tmp_path / "out")
    adapted = place_adapter(adapter, checkpoint).attach(checkpoint.load_model(), is_trainable=False).eval()
    with torch.no_grad():
        expected = adapted(input_ids=torch.tensor([ROW])).logits[0]
    torch.testing.assert_close(outputs_of(tmp_path / "out"), expected, atol=1e-4, rtol=0)


def test_a_reward_model_is_exported_with_its_head(checkpoint: Checkpoint, adapter: Path, tmp_path: Path) -> None:
    head = ScalarHead(64)
    ScalarHead.save(head.weight, adapter / HEAD_FILE)
    about = {"family": "baichuan-7b", "prompt_format": "human-assistant", "base": "", "quantization": None}
    (adapter / REWARD_FILE).write_text(json.dumps(about | {"mean": 0.5, "std": 2.0}), encoding="utf-8")
    export_onnx(Source(checkpoint, SAMPLES, adapter=adapter, reward=adapter), tmp_path / "out")
    adapted: Any = place_adapter(adapter, checkpoint).attach(checkpoint.load_model(), is_trainable=False).eval()
    with torch.no_grad():
        hidden = adapted.base_model.model.get_decoder()(input_ids=torch.tensor([ROW])).last_hidden_state[0]
        expected = head(hidden)
    torch.testing.assert_close(outputs_of(tmp_path / "out"), expected, atol=1e-4, rtol=0)
    generation = json.loads((tmp_path / "out" / "generation.json").read_text(encoding="utf-8"))
    assert generation["scores"] == {"mean": 0.5, "std": 2.0}
    with pytest.raises(ConfigError, match="scores answers and writes none"):
        open_checkpoint(tmp_path / "out").load_model()


def test_nothing_is_left_when_the_disk_is_full(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = DataFile.write

    def full(self: DataFile, *arguments: Any) -> Any:
        if self.file.tell() > 100_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, *arguments)

    monkeypatch.setattr(DataFile, "write", full)
    with pytest.raises(ConfigError, match="out cannot be written: No space left on device"):
        export_onnx(Source(checkpoint, SAMPLES), tmp_path / "out")
    assert not [*tmp_path.iterdir()]


def test_a_graph_that_computes_something_else_is_not_exported(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_torch = reference.outputs_of
    monkeypatch.setattr(check, "outputs_of", lambda *given: [each + 0.01 for each in of_torch(*given)])
    with pytest.raises(ConfigError, match=r"logits differ by 0\.01, .* nothing is exported"):
        export_onnx(Source(checkpoint, SAMPLES), tmp_path / "out")
    assert not [*tmp_path.iterdir()]


def test_a_network_whose_attention_is_special_is_refused(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(tiny("native"), tmp_path / "mistral")
    file = tmp_path / "mistral" / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config |= {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 16}
    file.write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ConfigError, match="ask for sliding_window, which no exported graph computes"):
        export_onnx(Source(open_checkpoint(tmp_path / "mistral"), SAMPLES), tmp_path / "out")
    assert not (tmp_path / "out").exists()


SIZES: dict[str, Any] = {"vocab_size": 1400, "hidden_size": 32, "max_position_embeddings": 256}
PLAIN = SIZES | {"intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (BloomConfig(**SIZES, n_layer=1, n_head=4), "this network cannot be exported"),
        (MixtralConfig(**PLAIN, num_local_experts=2, num_experts_per_tok=1), "this network cannot be exported"),
        (GraniteConfig(**PLAIN, logits_scaling=8.0), "the graph does not compute what the network does"),
    ],
    ids=["attention of its own", "experts", "scaled logits"],
)
def test_a_network_that_computes_otherwise_than_a_graph_is_refused(
    config: Any, said: str, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    shutil.copytree(tiny("native"), tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    with pytest.raises(ConfigError, match=said) as refused:
        export_onnx(Source(open_checkpoint(tmp_path / "model"), SAMPLES), tmp_path / "out")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_options_that_cannot_work_are_refused_before_anything_is_read(
    checkpoint: Checkpoint, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Source(checkpoint, SAMPLES)
    for form, said in (
        (Form("int4", is_portable=True, is_exact=True), "--exact says how"),
        (Form(block=100), "--block is 100"),
    ):
        with pytest.raises(ConfigError, match=said):
            export_onnx(source, tmp_path / "out", form)
    with pytest.raises(ConfigError, match="exists; give a folder that does not"):
        export_onnx(source, exported)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxscript" else "there")
    with pytest.raises(ConfigError, match=r"pip install 'lit_sft\[export\]' \(missing: onnxscript\)"):
        check_request(tmp_path / "out", Form())


def test_integers_in_a_portable_graph_are_those_of_the_fused_one_and_need_the_standard_alone(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    for bits in (8, 4):
        fused, portable = (tmp_path / f"{bits}-{form}" for form in ("fused", "portable"))
        export_onnx(Source(checkpoint, SAMPLES), fused, Form(f"int{bits}", block=32, is_exact=True))
        export_onnx(Source(checkpoint, SAMPLES), portable, Form(f"int{bits}", block=32, is_portable=True))
        session = GraphSession(portable, threads=1, is_packed=False)
        found = torch.from_numpy(session.forward([ROW], session.new_cache(1), keep=len(ROW))[0])
        torch.testing.assert_close(found, outputs_of(fused), atol=1e-4, rtol=0)
        model = onnx.load(portable / "model.onnx", load_external_data=False)
        assert {node.domain for node in model.graph.node} == {""}
        onnx.checker.check_model(portable / "model.onnx")


def test_a_graph_is_not_opened_without_onnxruntime(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=r"onnxruntime is missing: pip install 'lit_sft\[export\]'"):
        open_checkpoint(exported).load_model()


def test_an_export_that_is_told_to_stop_leaves_nothing(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(DataFile, "write", lambda *_: signal.raise_signal(signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    words = ["export", "--checkpoint", str(checkpoint.path), "--output", str(tmp_path / "out")]
    assert main(words) == 128 + signal.SIGTERM
    assert capsys.readouterr().err.endswith("stopped by SIGTERM\n")
    assert not [*tmp_path.iterdir()]
    assert signal.getsignal(signal.SIGTERM) == before


def test_the_verb_says_in_one_line_what_it_lacks(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--output", str(tmp_path / "out")]
    for words, said in (
        ([], "give either --run or --checkpoint"),
        (["--run", str(tmp_path)], "is not a run folder"),
        (["--run", str(tmp_path), "--adapter", "x"], "leave them out"),
        (["--checkpoint", str(exported)], "is exported already"),
    ):
        assert main(["export", *out, *words]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1


def test_a_run_is_exported_with_its_adapter_and_its_strategy(
    write_config: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", "--config", write_config(trainer={"max_epochs": 1, "limit_train_batches": 2})]) == 0
    (run,) = [path for path in (tmp_path / "runs").iterdir() if (path / "adapter").is_dir()]
    capsys.readouterr()
    assert main(["export", "--run", str(run), "--output", str(tmp_path / "out"), "--dtype", "int8"]) == 0
    said = capsys.readouterr().out
    assert "logits differ by" in said
    assert "KL divergence" in said
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["source"]["adapter"] == str((run / "adapter").resolve())
    assert manifest["quality"]["num_tokens"] > 0
    generation = json.loads((tmp_path / "out" / "generation.json").read_text(encoding="utf-8"))
    assert generation["strategy"]["init_args"]["max_new_tokens"] == 8


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("graph", "other", "graph is 'other'; expected fused or portable"),
        ("vocab_size", -1, "vocab_size is -1"),
        ("context_length", 1e30, "context_length is 1e"),
        ("prefix_end_id", 10**9, "prefix_end_id is 1000000000"),
        ("layers", [], "layers is"),
        ("layers", [{"num_heads": 1 << 40, "key_dim": 16, "value_dim": 16}], "layers is"),
        ("layers", [{"num_heads": 2, "key_dim": 16, "value_dim": 16}], "does not take past.0.key of 2 heads"),
        ("cache_dtype", "int3", "cache_dtype is 'int3'"),
        ("cache_dtype", "float16", "is not the graph that generation.json describes"),
        ("prefix_end_id", 5, "is not the graph that generation.json describes"),
    ],
)
def test_a_folder_that_contradicts_itself_is_refused(
    exported: Path, tmp_path: Path, key: str, value: Any, said: str
) -> None:
    shutil.copytree(exported, tmp_path / "broken")
    file = tmp_path / "broken" / "generation.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | {key: value}), encoding="utf-8")
    with pytest.raises(UserError, match=said) as refused:
        open_checkpoint(tmp_path / "broken").load_model()
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data", "generation.json"])
def test_a_file_that_is_cut_off_is_refused(exported: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(exported, tmp_path / "broken")
    file = tmp_path / "broken" / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(CheckpointError) as refused:
        open_checkpoint(tmp_path / "broken").load_model()
    assert "\n" not in str(refused.value)


def test_weights_in_another_folder_are_not_read(exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported, tmp_path / "broken")
    shutil.move(tmp_path / "broken" / "model.onnx.data", tmp_path / "elsewhere")
    graph = onnx.load(tmp_path / "broken" / "model.onnx", load_external_data=False)
    for entry in (entry for tensor in graph.graph.initializer for entry in tensor.external_data):
        if entry.key == "location":
            entry.value = "../elsewhere"
    (tmp_path / "broken" / "model.onnx").write_bytes(graph.SerializeToString())
    with pytest.raises(CheckpointError, match="cannot be loaded") as refused:
        GraphSession(tmp_path / "broken")
    assert "\n" not in str(refused.value)


def test_a_run_that_fails_is_one_line(exported: Path) -> None:
    session = GraphSession(exported, threads=1)
    with pytest.raises(CheckpointError, match=r"model\.onnx cannot be run") as refused:
        session.forward([[10**6]], session.new_cache(1))
    assert "\n" not in str(refused.value)


def test_a_chat_with_a_graph_is_that_with_its_network(exported: Path, checkpoint: Checkpoint) -> None:
    said: list[str] = []
    for path in (checkpoint.path, exported):
        pieces: list[str] = []
        talk = Session(Network(ChatSource(open_checkpoint(path), strategy=Greedy(max_new_tokens=6))), pieces.append)
        for question in ("你好", "1+1=?"):
            assert talk.answer(question)
        said.append("".join(pieces))
    assert said[0] == said[1] != ""


def test_what_needs_a_network_in_torch_says_so_of_a_graph(
    exported: Path, adapter: Path, write_config: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["validate", "--config", write_config(model={"checkpoint": str(exported)})]) == 2
    assert "no layers for an adapter of LoRA: set model.tuning to Full" in capsys.readouterr().err
    assert main(["serve", "--checkpoint", str(exported)]) == 2
    assert "serve joins requests in networks of torch only" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="takes no adapter: export the checkpoint"):
        place_adapter(adapter, open_checkpoint(exported))
    with pytest.raises(ConfigError, match="leave out --dtype and --quantization"):
        open_source(str(exported), None, None, "bfloat16", None, "auto", None)


def test_a_graph_answers_in_predict_and_compare_as_its_network_and_fit_refuses_it(
    exported: Path,
    checkpoint: Checkpoint,
    write_config: Callable[..., str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    answers = []
    for path in (checkpoint.path, exported):
        model: dict[str, Any] = {"checkpoint": str(path), "tuning": {"class_path": "Full"}}
        model["generation"] = [{"class_path": "Greedy", "init_args": {"max_new_tokens": 4}},
                               {"class_path": "TopP", "init_args": {"max_new_tokens": 4}}]  # fmt: skip
        config = write_config(model=model)
        assert main(["predict", "--config", config, "--runs", str(tmp_path / path.name)]) == 0
        (file,) = (tmp_path / path.name).rglob("predictions*.jsonl")
        answers.append([json.loads(line)["answer"] for line in file.read_text(encoding="utf-8").splitlines()])
    assert answers[0] == answers[1]
    words = ["compare", "--config", config, "--before", str(checkpoint.path), "--after", str(exported)]
    assert main([*words, "--output", str(tmp_path / "comparison")]) == 0
    measured = json.loads((tmp_path / "comparison" / "metrics.json").read_text(encoding="utf-8"))
    assert "perplexity" in json.dumps(measured)
    rows = (tmp_path / "comparison" / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 2 * len(answers[0]) / 2
    capsys.readouterr()
    assert main(["fit", "--config", config]) == 2
    assert "is an exported graph, which answers and does not train" in capsys.readouterr().err
