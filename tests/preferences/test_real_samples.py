"""Every record of the real samples of preference data is read, or named with the right reason."""

from pathlib import Path

import pytest
from goldens import SHARED

from lit_sft.corpora._base import Corpus
from lit_sft.data.scan import scan_corpus
from lit_sft.preferences.cvalues import CValues
from lit_sft.preferences.hh_rlhf import HhRlhf
from lit_sft.preferences.medical_reward import MedicalReward
from lit_sft.preferences.ranked_outputs import RankedOutputs
from lit_sft.preferences.sharegpt_pairs import ShareGptPairs

DATA = SHARED / "data" / "preference"

# Records that are used, messages of their prompts, their answers, and records by what was found in them.
COUNTS: dict[str, tuple[type[Corpus], int, int, int, dict[str, int]]] = {
    "cvalues_comparison_train.jsonl": (CValues, 1, 1, 2, {}),
    "dpo_zh.jsonl": (MedicalReward, 101, 116, 202, {}),
    "dpo_zh_500.jsonl": (ShareGptPairs, 154, 176, 308, {"one-character-answer": 1}),
    "dpo_zh_demo.json": (ShareGptPairs, 233, 280, 466, {"answer-begins-another": 1}),
    "hh-rlhf/harmless-base/test.jsonl.gz": (HhRlhf, 239, 905, 478, {"no-chosen": 1}),
    "medical_reward_test.json": (
        *(MedicalReward, 84, 84, 168),
        {"answer-begins-another": 2, "one-character-answer": 1},
    ),
    "oaast_rm_zh.json": (
        *(RankedOutputs, 334, 676, 869),
        {
            "equal-answers": 1,
            "equal-answers-dropped": 2,
            "one-character-answer": 6,
            "answer-begins-another": 9,
        },
    ),
}


@pytest.mark.parametrize("name", COUNTS)
def test_every_record_is_accounted_for(name: str, tmp_path: Path) -> None:
    if not (DATA / name).is_file():
        pytest.skip("real samples of preference data not found in shared/data/preference")
    layout, num_records, num_asked, num_answers, findings = COUNTS[name]
    found = scan_corpus(name, layout(str(DATA / name)), tmp_path, num_workers=0)
    talks = [found.record(number).conversations() for number in found.scan.good.tolist()]
    assert len(talks) == num_records
    assert sum(len(answers[0].messages) - 1 for answers in talks) == num_asked
    assert sum(map(len, talks)) == num_answers
    assert found.scan.findings == findings
