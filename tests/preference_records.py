"""A record of each layout of preference data, all of which say the same."""

from typing import Any

from lit_sft.corpora._base import Corpus
from lit_sft.preferences.alpaca_pairs import AlpacaPairs
from lit_sft.preferences.cvalues import CValues
from lit_sft.preferences.hh_rlhf import HhRlhf
from lit_sft.preferences.medical_reward import MedicalReward
from lit_sft.preferences.moss_rlhf import MossRlhf
from lit_sft.preferences.pku_safe_rlhf import PkuSafeRlhf
from lit_sft.preferences.ranked_outputs import RankedOutputs
from lit_sft.preferences.sharegpt_pairs import ShareGptPairs
from lit_sft.preferences.trl_pairs import TrlPairs
from lit_sft.preferences.unpaired_answers import UnpairedAnswers


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def bot(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def gpt(text: str) -> dict[str, str]:
    return {"from": "gpt", "value": text}


ASKED = [{"from": "human", "value": "问"}]

PAIRS: list[tuple[Corpus, dict[str, Any]]] = [
    (ShareGptPairs("x"), {"conversations": ASKED, "chosen": gpt("好"), "rejected": gpt("差")}),
    (ShareGptPairs("x"), {"conversations": ASKED, "chosen": "好", "rejected": "差", "tools": ""}),
    (MedicalReward("x"), {"question": "问", "response_chosen": "好", "response_rejected": "差", "history": []}),
    (RankedOutputs("x"), {"instruction": "问", "input": "", "output": ["好", "差"], "history": []}),
    (AlpacaPairs("x"), {"instruction": "问", "input": "", "chosen": "好", "rejected": "差"}),
    (
        CValues("x"),
        {"prompt": "问", "pos_resp": "好", "neg_resp": "差", "pos_type": "拒绝为主", "neg_type": "风险回复"},
    ),
    (HhRlhf("x"), {"chosen": "\n\nHuman: 问\n\nAssistant: 好", "rejected": "\n\nHuman: 问\n\nAssistant: 差"}),
    (MossRlhf("x"), {"chosen": ["问", "好"], "rejected": ["问", "差"]}),
    (PkuSafeRlhf("x"), {"prompt": "问", "response_0": "差", "response_1": "好", "better_response_id": 1}),
    (TrlPairs("x"), {"prompt": "问", "chosen": "好", "rejected": "差"}),
    (TrlPairs("x"), {"prompt": "\n\nHuman: 问\n\nAssistant:", "chosen": " 好", "rejected": " 差"}),
    (TrlPairs("x"), {"prompt": [user("问")], "chosen": [bot("好")], "rejected": [bot("差")]}),
    (TrlPairs("x"), {"chosen": [user("问"), bot("好")], "rejected": [user("问"), bot("差")]}),
    (
        TrlPairs("x"),
        {
            "prompt": "问",
            "prompt_id": "7",
            "score_chosen": 9.0,
            "score_rejected": 2.5,
            "chosen": [user("问"), bot("好")],
            "rejected": [user("问"), bot("差")],
        },
    ),
]

VERDICTS: list[tuple[Corpus, dict[str, Any]]] = [
    (UnpairedAnswers("x"), {"prompt": "问", "completion": "好", "label": True}),
    (UnpairedAnswers("x"), {"prompt": [user("问")], "completion": [bot("好")], "label": True}),
    (UnpairedAnswers("x"), {"messages": [user("问"), bot("好")], "label": True}),
    (UnpairedAnswers("x"), {"messages": [user("问"), bot("好")], "kto_tag": True}),
    (UnpairedAnswers("x"), {"conversations": [*ASKED, gpt("好")], "kto_tag": True}),
]
