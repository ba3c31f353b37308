"""How a record of each layout is written from a question and its answer, and which class reads it."""

from collections.abc import Callable
from typing import Any

from lit_sft.corpora._base import Corpus
from lit_sft.corpora.belle import Belle
from lit_sft.corpora.cvalues_prompts import CValuesPrompts
from lit_sft.corpora.firefly import Firefly
from lit_sft.corpora.jsonl_chat import JsonlChat
from lit_sft.corpora.moss_rlhf_prompts import MossRlhfPrompts
from lit_sft.corpora.moss_sft import MossSft
from lit_sft.corpora.safety_prompts import SafetyPrompts
from lit_sft.preferences.alpaca_pairs import AlpacaPairs
from lit_sft.preferences.cvalues import CValues
from lit_sft.preferences.hh_rlhf import HhRlhf
from lit_sft.preferences.moss_rlhf import MossRlhf
from lit_sft.preferences.ranked_outputs import RankedOutputs
from lit_sft.preferences.trl_pairs import TrlPairs
from lit_sft.preferences.unpaired_answers import UnpairedAnswers

Record = dict[str, Any] | list[Any]
LAYOUTS: dict[str, tuple[type[Corpus], Callable[[str, str], Record]]] = {
    "belle": (Belle, lambda q, a: {"instruction": q, "input": "", "output": a}),
    "belle, talk": (
        Belle,
        lambda q, a: {"instruction": f"Human:{q}\nAssistant:好\nHuman:还有？\nAssistant:", "output": a},
    ),
    "belle, first upload": (Belle, lambda q, a: {"input": q, "target": a}),
    "belle, 3.5M": (
        Belle,
        lambda q, a: {"id": "1", "conversations": [{"from": "human", "value": q}, {"from": "assistant", "value": a}]},
    ),
    "alpaca": (
        Belle,
        lambda q, a: {"instruction": q, "response": a, "system": "小向导", "history": [["几点？", "八点"]]},
    ),
    "firefly": (Firefly, lambda q, a: {"kind": "NLI", "input": q, "target": a}),
    "moss, fnlp": (
        MossSft,
        lambda q, a: {
            "meta_instruction": "你是小向导。\n",
            "chat": {"turn_1": {"Human": f"<|Human|>: {q}<eoh>\n", "MOSS": f"<|MOSS|>: {a}<eom>\n"}},
            "category": "Others",
        },
    ),
    "moss, YeungNLP": (MossSft, lambda q, a: {"category": "Code", "conversation": [{"human": q, "assistant": a}]}),
    "safety-prompts": (SafetyPrompts, lambda q, a: {"prompt": q, "response": a, "type": "Insult"}),
    "openai": (
        JsonlChat,
        lambda q, a: {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]},
    ),
    "sharegpt": (
        JsonlChat,
        lambda q, a: {"conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}], "id": 7},
    ),
    "pairs, alpaca": (AlpacaPairs, lambda q, a: {"instruction": q, "input": "", "chosen": a, "rejected": "自己看。"}),
    "pairs, CValues": (CValues, lambda q, a: {"prompt": q, "pos_resp": a, "neg_resp": "自己看。"}),
    "pairs, hh-rlhf": (
        HhRlhf,
        lambda q, a: {
            "chosen": f"\n\nHuman: {q}\n\nAssistant: {a}",
            "rejected": f"\n\nHuman: {q}\n\nAssistant: 自己看。",
        },
    ),
    "pairs, MOSS-RLHF": (MossRlhf, lambda q, a: {"chosen": [q, a], "rejected": [q, "自己看。"]}),
    "pairs, TRL": (
        TrlPairs,
        lambda q, a: {
            "prompt": [{"role": "user", "content": q}],
            "chosen": [{"role": "assistant", "content": a}],
            "rejected": [{"role": "assistant", "content": "自己看。"}],
        },
    ),
    "ranked": (RankedOutputs, lambda q, a: {"instruction": q, "output": [a, "八点。", "自己看。"]}),
    "judged": (UnpairedAnswers, lambda q, a: {"prompt": q, "completion": a, "label": True}),
    "prompts, CValues": (CValuesPrompts, lambda q, a: {"id_": 1, "prompt": f"{q} {a}", "domain_en": "sociology"}),
    "prompts, MOSS-RLHF": (MossRlhfPrompts, lambda q, a: [q, a]),
}
