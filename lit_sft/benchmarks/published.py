"""What was published of the models, to stand beside what is measured; their protocols differ from ours and each other.

Mean accuracy in percent by benchmark and family: the model, examples, number, and where it stands.
"""

from __future__ import annotations

BAICHUAN_7B = "README of baichuan-inc/Baichuan-7B, test split"
BAICHUAN_13B = "README of baichuan-inc/Baichuan-13B"
BAICHUAN_2 = "README of baichuan-inc/Baichuan2"
CHATGLM2 = "README of THUDM/ChatGLM2-6B; chat models with zero-shot chain of thought"
CMMLU = "README of haonan-li/CMMLU"
CEVAL = "README of hkust-nlp/ceval, test split"

PUBLISHED: dict[str, dict[str, list[tuple[str, str, float, str]]]] = {
    "ceval": {
        "baichuan-7b": [("Baichuan-7B", "5-shot", 42.8, BAICHUAN_7B)],
        "baichuan-13b": [
            ("Baichuan-13B-Base", "5-shot", 52.4, BAICHUAN_13B),
            ("Baichuan-13B-Chat", "5-shot", 51.5, BAICHUAN_13B),
        ],
        "baichuan2-7b": [("Baichuan2-7B-Base", "5-shot", 54.0, BAICHUAN_2)],
        "baichuan2-13b": [("Baichuan2-13B-Base", "5-shot", 58.1, BAICHUAN_2)],
        "moss": [("moss-moon-003-base", "5-shot", 27.4, BAICHUAN_7B), ("MOSS", "5-shot", 31.1, CEVAL)],
        "chatglm-6b": [("ChatGLM-6B", "5-shot", 34.5, CEVAL), ("ChatGLM-6B", "0-shot", 38.9, CHATGLM2)],
        "chatglm2-6b": [
            ("ChatGLM2-6B (base)", "few-shot", 51.7, CHATGLM2),
            ("ChatGLM2-6B", "0-shot", 50.1, CHATGLM2),
        ],
    },
    "cmmlu": {
        "baichuan-7b": [("Baichuan-7B", "5-shot", 44.43, CMMLU), ("Baichuan-7B", "0-shot", 42.33, CMMLU)],
        "baichuan-13b": [
            ("Baichuan-13B-Base", "5-shot", 55.3, BAICHUAN_13B),
            ("Baichuan-13B-Chat", "5-shot", 55.8, BAICHUAN_13B),
            ("Baichuan-13B", "0-shot", 54.63, CMMLU),
        ],
        "baichuan2-7b": [("Baichuan2-7B-Base", "5-shot", 57.07, BAICHUAN_2)],
        "baichuan2-13b": [("Baichuan2-13B-Base", "5-shot", 61.97, BAICHUAN_2)],
        "moss": [("MOSS-SFT-16B", "5-shot", 29.57, CMMLU), ("MOSS-SFT-16B", "0-shot", 26.88, CMMLU)],
        "chatglm-6b": [("ChatGLM-6B", "5-shot", 37.48, CMMLU), ("ChatGLM-6B", "0-shot", 40.79, CMMLU)],
        "chatglm2-6b": [("ChatGLM2-6B", "5-shot", 48.8, CMMLU), ("ChatGLM2-6B", "0-shot", 49.95, CMMLU)],
    },
}


def published(benchmark: str, family: str) -> list[dict[str, str | float]]:
    """The numbers of a family's models; none where none were found."""
    keys = ("model", "protocol", "mean", "source")
    return [dict(zip(keys, row, strict=True)) for row in PUBLISHED.get(benchmark, {}).get(family, [])]
