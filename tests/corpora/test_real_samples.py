"""Every record of the real samples becomes a conversation, or is named with the right reason."""

from contextlib import nullcontext
from pathlib import Path

import pytest
from goldens import SHARED

from lit_sft.corpora._base import Corpus
from lit_sft.corpora.belle import Belle
from lit_sft.corpora.firefly import Firefly
from lit_sft.corpora.moss_sft import MossSft
from lit_sft.corpora.safety_prompts import SafetyPrompts
from lit_sft.data.scan import scan_corpus
from lit_sft.errors import DataError

DATA = SHARED / "data"

CLASSES: dict[str, type[Corpus]] = {
    "belle": Belle,
    "firefly": Firefly,
    "moss": MossSft,
    "safety_prompts": SafetyPrompts,
}

# Conversations, messages in them, and records by what was found in them: why they were skipped, or keys not read.
COUNTS: dict[str, tuple[int, int, dict[str, int]]] = {
    "belle/Belle_open_source_0.5M.json": (804, 1608, {}),
    "belle/Belle_sampled_qwen.json": (215, 430, {}),
    "belle/eval/eval_set.json": (0, 0, {"unknown-layout": 784}),
    "belle/eval/zh_seed_tasks.json": (0, 0, {"no-answer": 175}),
    "belle/school_math_0.25M.json": (807, 1614, {}),
    "belle/variants/generated_chat_0.4M.json": (1, 2, {}),
    "belle/variants/guanaco_belle_merge_sample.jsonl": (9, 18, {}),
    "belle/variants/multiturn_chat_0.8M.json": (1, 4, {}),
    "belle/variants/train_2M_CN.json": (1, 2, {}),
    "belle/variants/train_3.5M_CN.json": (2, 8, {}),
    "firefly/derived/firefly_kind_BELLE.jsonl": (804, 1608, {}),
    "firefly/firefly-train-1.1M.jsonl": (6, 12, {}),
    "moss/fnlp/moss-003-sft-no-tools.jsonl": (188, 2114, {}),
    "moss/fnlp/moss-003-sft-with-tools-no-text2image.jsonl": (140, 1400, {}),
    "moss/fnlp/moss-003-sft-with-tools-text2image.jsonl": (39, 195, {}),
    "moss/fnlp/original_single_files/harmless_conversation_1.json": (1, 5, {}),
    "moss/fnlp/original_single_files/helpful_code_conversation_2.json": (1, 9, {}),
    "moss/fnlp/original_single_files/mix_plugin_conversation_1.json": (1, 13, {}),
    "moss/yeungnlp/derived/moss-003-sft-data_from_fnlp.jsonl": (287, 3148, {}),
    "moss/yeungnlp/moss-003-sft-data.jsonl": (25, 234, {}),
    "safety_prompts/instruction_attack_scenarios.json": (6, 12, {}),
    "safety_prompts/prompts_only/instruction_attack_scenarios.json": (0, 0, {"no-answer": 969}),
    "safety_prompts/prompts_only/typical_safety_scenarios.json": (0, 0, {"no-answer": 1120}),
    "safety_prompts/proxy/cipherchat_baseline_zh.json": (77, 154, {"unused-key _response_model": 77}),
    "safety_prompts/proxy/moss_harmless_turn1.json": (34, 68, {}),
    "safety_prompts/typical_safety_scenarios.json": (9, 18, {}),
}


@pytest.mark.skipif(not DATA.is_dir(), reason="real samples of the corpora not found in shared/data")
def test_no_sample_is_forgotten() -> None:
    files = {str(file.relative_to(DATA)) for name in CLASSES for file in (DATA / name).rglob("*") if file.is_file()}
    assert files == set(COUNTS)


@pytest.mark.parametrize("name", COUNTS)
def test_every_record_is_accounted_for(name: str, tmp_path: Path) -> None:
    if not (DATA / name).is_file():
        pytest.skip("real samples of the corpora not found in shared/data")
    corpus = CLASSES[name.split("/")[0]](str(DATA / name))
    num_conversations, num_messages, findings = COUNTS[name]
    # Evaluation sets and prompts without responses have nothing to train on, which is an error.
    reasons = rf"could be read as \w+ \({', '.join(findings)}\)"
    with nullcontext() if num_conversations else pytest.raises(DataError, match=reasons):
        found = scan_corpus(name, corpus, tmp_path, num_workers=0)
        conversations = [found.record(number).conversations()[0] for number in found.scan.good.tolist()]
        assert len(conversations) == num_conversations
        assert sum(len(conversation.messages) for conversation in conversations) == num_messages
        assert found.scan.findings == findings
