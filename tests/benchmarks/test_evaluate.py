"""C-Eval, CMMLU and ADGEN on small files of their layout."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_sft.__main__ import main
from lit_sft.benchmarks.ceval import CEval
from lit_sft.benchmarks.cmmlu import CMMLU
from lit_sft.benchmarks.multiple_choice import LETTERS, MultipleChoice
from lit_sft.benchmarks.published import PUBLISHED
from lit_sft.benchmarks.scores import accuracies
from lit_sft.benchmarks.text_scores import bleu_4, rouge
from lit_sft.checkpoint.opening import families, open_checkpoint
from lit_sft.conversation import Conversation, Message

ANSWERS = {"logic": "ABA", "law": "CA", "advanced_mathematics": "D"}
"""Of the questions in the small C-Eval."""


def write(file: Path, header: list[str], rows: list[list[str]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8", newline="") as opened:
        csv.writer(opened).writerows([header, *rows])


@pytest.fixture(scope="module")
def ceval(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ceval")
    header = ["id", "question", *LETTERS]
    for subject, answers in ANSWERS.items():
        rows = [[str(i), f"{i}, 问题？", "甲", "乙", "丙", "丁", answer] for i, answer in enumerate(answers)]
        write(folder / "val" / f"{subject}_val.csv", [*header, "answer"], rows)
        write(folder / "test" / f"{subject}_test.csv", header, [row[:-1] for row in rows])
        shots = [[str(i), f"例{i}", "一", "二", "三", "四", "B", "因为"] for i in range(5)]
        write(folder / "dev" / f"{subject}_dev.csv", [*header, "answer", "explanation"], shots)
    return folder


@pytest.fixture(scope="module")
def cmmlu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cmmlu")
    for split in ("dev", "test"):
        rows = [[str(i), f"问题{i}", "甲", "乙", "丙", "丁", answer] for i, answer in enumerate("ABCDA")]
        write(folder / split / "agronomy.csv", ["", "Question", *LETTERS, "Answer"], rows)
    return folder


@pytest.fixture(scope="module")
def undecided(tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that holds all tokens for equally likely, so that A, the first, is its choice."""
    checkpoint = open_checkpoint(tiny("baichuan-7b"))
    network: Any = checkpoint.load_model()
    network.lm_head.weight.data.zero_()
    folder = tmp_path_factory.mktemp("undecided") / "model"
    checkpoint.save_model(network, folder)
    return folder


def results(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return found


def test_prompts_are_those_of_the_repositories(ceval: Path, cmmlu: Path) -> None:
    benchmark: MultipleChoice = CEval(ceval)
    shots, (question, *_) = benchmark.read("dev", "logic")[:1], benchmark.read("val", "logic")
    options = "\nA. 甲\nB. 乙\nC. 丙\nD. 丁\n答案："
    example = "例0\nA. 一\nB. 二\nC. 三\nD. 四\n答案："
    heading = "以下是中国关于逻辑学考试的单项选择题，请选出其中的正确答案。\n\n"
    assert benchmark.plain("logic", shots, question) == f"{heading}{example}B\n\n0, 问题？{options}"
    said = [(message.role, message.content) for message in benchmark.messages("logic", shots, question)]
    assert said == [("user", heading + example), ("assistant", "B"), ("user", f"0, 问题？{options}")]
    benchmark = CMMLU(cmmlu)
    (question, *_) = benchmark.read("test", "agronomy")
    expected = (
        "以下是关于农学的单项选择题，请直接给出正确答案的选项。\n\n题目：问题0\nA. 甲\nB. 乙\nC. 丙\nD. 丁\n答案是："
    )
    assert benchmark.plain("agronomy", [], question) == expected
    assert [message.content for message in benchmark.messages("agronomy", [], question)] == [expected]


def test_scores_of_a_rigged_model_are_a_hand_count(
    ceval: Path, undecided: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", "--benchmark", "ceval", "--data", str(ceval), "--checkpoint", str(undecided), "--shots", "1"]
    assert main([*words, "--output", str(tmp_path / "out")]) == 0
    found = results(tmp_path / "out")
    accuracy = {subject: content["accuracy"] for subject, content in found["subjects"].items()}
    assert accuracy == pytest.approx({"logic": 200 / 3, "law": 50, "advanced_mathematics": 0})
    assert found["mean"] == pytest.approx((200 / 3 + 50) / 3)
    assert found["categories"] == pytest.approx({"STEM": 0, "Humanities": (200 / 3 + 50) / 2, "Hard": 0})
    assert {key: value for key, value in found["published"][0].items() if key != "source"} == {
        "model": "Baichuan-7B",
        "protocol": "5-shot",
        "mean": 42.8,
    }
    shown = capsys.readouterr().out
    assert "66.67    2/3" in shown
    assert "42.80" in shown


@pytest.mark.parametrize("form", ["chat", "plain"])
def test_log_probabilities_are_those_of_each_question_alone_and_an_interrupted_evaluation_goes_on(
    form: str, ceval: Path, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    folder, out = tiny("baichuan-7b"), tmp_path / "out"
    words = ["evaluate", "--benchmark", "ceval", "--data", str(ceval), "--checkpoint", str(folder), "--form", form]
    words += ["--output", str(out), "--shots", "0"]
    assert main(words) == 0
    lines = (out / "answers.jsonl").read_bytes().splitlines(keepends=True)
    rows = [json.loads(line) for line in lines]
    checkpoint = open_checkpoint(folder)
    network: Any = checkpoint.load_model()
    tokenizer: Any = checkpoint.load_tokenizer()
    benchmark = CEval(ceval)
    for row in rows:
        question = next(q for q in benchmark.read("val", row["subject"]) if q.id == row["id"])
        if form == "plain":
            ids = tokenizer(benchmark.plain(question.subject, [], question))["input_ids"]
            letters = [tokenizer.encode_text(letter)[-1] for letter in LETTERS]
        else:
            asked = [Message("user", benchmark.asked(question))]
            whole = [
                checkpoint.prompt_format.encode(
                    Conversation([*asked, Message("assistant", letter)]), tokenizer
                ).input_ids
                for letter in LETTERS
            ]
            place = next(i for i, tokens in enumerate(zip(*whole, strict=False)) if len(set(tokens)) > 1)
            ids, letters = whole[0][:place], [each[place] for each in whole]
        with torch.no_grad():
            expected = network(input_ids=torch.tensor([list(ids)])).logits[0, -1].log_softmax(-1)[letters]
        assert [*row["log_probs"].values()] == pytest.approx(expected.tolist(), abs=1e-4)

    expected_results = results(out)
    (out / "results.json").unlink()
    (out / "answers.jsonl").write_bytes(b"".join(lines[:2]) + lines[2][:20])
    assert main(words) == 0
    assert results(out) == expected_results
    assert (out / "answers.jsonl").read_bytes().startswith(b"".join(lines[:2]))
    assert main([*words[:-1], "1"]) == 2


def test_examples_that_the_context_has_no_room_for_are_left_out_and_counted(
    cmmlu: Path, undecided: Path, tmp_path: Path
) -> None:
    words = ["evaluate", "--benchmark", "cmmlu", "--data", str(cmmlu), "--checkpoint", str(undecided)]
    assert main([*words, "--output", str(tmp_path / "out"), "--limit", "2"]) == 0
    found = results(tmp_path / "out")
    assert found["fewer_shots"] == 2
    assert found["mean"] == 50


def test_the_test_split_of_ceval_gives_what_is_submitted(ceval: Path, undecided: Path, tmp_path: Path) -> None:
    words = ["evaluate", "--benchmark", "ceval", "--data", str(ceval), "--checkpoint", str(undecided)]
    words += ["--split", "test", "--shots", "0", "--subjects", '["law"]', "--output", str(tmp_path / "out")]
    assert main(words) == 0
    found = results(tmp_path / "out")
    assert found["submission"] == {"law": {"0": "A", "1": "A"}}
    assert "mean" not in found


def test_mistakes_get_one_line(
    ceval: Path, undecided: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = shutil.copytree(ceval, tmp_path / "broken")
    write(broken / "val" / "law_val.csv", ["id", "question", "A", "B", "C"], [["0", "?", "1", "2", "3"]])
    words = ["evaluate", "--benchmark", "ceval", "--checkpoint", str(undecided), "--output", str(tmp_path / "out")]
    for options, said in (
        (["--data", str(broken), "--shots", "0"], "has no d; expected question,A,B,C,D,answer"),
        (["--data", str(tmp_path)], "holds no file of ceval"),
        (["--data", str(ceval), "--subjects", '["lwa"]'], "no subject 'lwa'"),
        (["--data", str(ceval), "--shots", "6"], "--shots is 6"),
        (["--data", str(ceval), "--base", "true"], "nothing was"),
    ):
        assert main([*words, *options]) == 2
        assert said in capsys.readouterr().err


def test_every_subject_has_a_category_and_every_number_a_family() -> None:
    assert sum(map(len, CEval.subjects.values())) == 52
    assert sum(map(len, CMMLU.subjects.values())) == 67
    benchmarks: list[type[MultipleChoice]] = [CEval, CMMLU]
    for benchmark in benchmarks:
        known = {subject for names in benchmark.subjects.values() for subject in names}
        assert all(members <= known for members in benchmark.groups().values())
        rows = [{"subject": subject, "choice": "A", "answer": "A"} for subject in known]
        assert set(accuracies(benchmark, rows)["categories"].values()) == {100}
    assert all(family in families() for of in PUBLISHED.values() for family in of)


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("一二三四五", "一二三四五", 100.0),
        ("好", "很好看", 100 * (2.718281828459045**-2) * (1 * 0.5 * 0.25 * 0.125) ** 0.25),
        ("甲乙", "丙丁", 0.0),
        ("", "丙丁", 0.0),
        ("一二三五", "一二三四五六", 100 * 2.718281828459045**-0.5 * (1 * 2 / 3 * 1 / 2 * 0.5) ** 0.25),
    ],
)
def test_bleu_is_that_of_characters_smoothed(answer: str, reference: str, expected: float) -> None:
    assert bleu_4(answer, reference) == pytest.approx(expected, rel=1e-6)


def test_rouge_is_that_of_words() -> None:
    assert rouge("上衣 宽松", "上衣 宽松") == pytest.approx(
        dict.fromkeys(("rouge-1", "rouge-2", "rouge-l"), 100), abs=0.01
    )
    half = rouge("上衣", "上衣裤子")
    assert half["rouge-1"] == pytest.approx(200 / 3, abs=0.01)
    assert rouge("", "上衣") == {"rouge-1": 0, "rouge-2": 0, "rouge-l": 0}


def test_adgen_is_answered_scored_and_taken_up(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    file = tmp_path / "dev.json"
    records = [
        # A separator of lines, for Unicode, but not for JSON Lines.
        {"content": f"类型#上衣*颜色#{color}", "summary": f"{color}的\u2028上衣"}
        for color in ("红色", "白色", "黑色")
    ]
    file.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    words = ["evaluate", "--benchmark", "adgen", "--data", str(file), "--checkpoint", str(tiny("chatglm2-6b"))]
    words += ["--output", str(tmp_path / "out"), "--max_new_tokens", "4"]
    assert main(words) == 0
    lines = (tmp_path / "out" / "answers.jsonl").read_bytes().splitlines(keepends=True)
    assert len(lines) == 3
    expected = results(tmp_path / "out")
    assert {"bleu-4", "rouge-1", "rouge-2", "rouge-l"} <= expected.keys()
    (tmp_path / "out" / "answers.jsonl").write_bytes(lines[0])
    assert main(words) == 0
    assert results(tmp_path / "out") == expected
