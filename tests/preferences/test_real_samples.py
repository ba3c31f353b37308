"""Every record of the real samples of preference data is read, or named with the right reason."""

from pathlib import Path

import pytest
from goldens import SHARED

from lit_sft.corpora._base import Corpus
from lit_sft.corpora.cvalues_prompts import CValuesPrompts
from lit_sft.corpora.moss_rlhf_prompts import MossRlhfPrompts
from lit_sft.data.scan import scan_corpus
from lit_sft.preferences.cvalues import CValues
from lit_sft.preferences.hh_rlhf import HhRlhf
from lit_sft.preferences.medical_reward import MedicalReward
from lit_sft.preferences.ranked_outputs import RankedOutputs
from lit_sft.preferences.sharegpt_pairs import ShareGptPairs

DATA = SHARED / "data" / "preference"

# Records that are used, their answers, messages with the prompt before each answer, and records by what was found.
COUNTS: dict[str, tuple[type[Corpus], int, int, int, dict[str, int]]] = {
    "cvalues_comparison_train.jsonl": (CValues, 1, 2, 4, {}),
    "cvalues_responsibility_prompts.jsonl": (CValuesPrompts, 525, 525, 525, {}),
    "dpo_zh.jsonl": (MedicalReward, 101, 202, 434, {}),
    "dpo_zh_500.jsonl": (ShareGptPairs, 154, 308, 660, {"one-character-answer": 1}),
    "dpo_zh_demo.json": (ShareGptPairs, 233, 466, 1026, {"answer-begins-another": 1}),
    "hh-rlhf/harmless-base/test.jsonl.gz": (HhRlhf, 239, 478, 2288, {"no-chosen": 1}),
    "medical_reward_test.json": (
        *(MedicalReward, 84, 168, 336),
        {"answer-begins-another": 2, "one-character-answer": 1},
    ),
    "moss_rlhf_ppo_train.json": (MossRlhfPrompts, 31, 31, 75, {}),
    "oaast_rm_zh.json": (
        *(RankedOutputs, 334, 869, 2522),
        {"equal-answers": 1, "equal-answers-dropped": 2, "one-character-answer": 6, "answer-begins-another": 9},
    ),
}


@pytest.mark.skipif(not DATA.is_dir(), reason="real samples of preference data not found in shared/data/preference")
def test_no_sample_is_forgotten() -> None:
    assert {str(file.relative_to(DATA)) for file in DATA.rglob("*") if file.is_file()} == set(COUNTS)


@pytest.mark.parametrize("name", COUNTS)
def test_every_record_is_accounted_for(name: str, tmp_path: Path) -> None:
    if not (DATA / name).is_file():
        pytest.skip("real samples of preference data not found in shared/data/preference")
    layout, num_records, num_answers, num_messages, findings = COUNTS[name]
    found = scan_corpus(name, layout(str(DATA / name)), tmp_path, num_workers=0)
    records = [found.record(number) for number in found.scan.good.tolist()]
    talks = [talk for record in records for talk in record.conversations()]
    assert (len(records), len(talks)) == (num_records, num_answers)
    assert sum(len(talk.messages) for talk in talks) == num_messages
    assert found.scan.findings == findings
