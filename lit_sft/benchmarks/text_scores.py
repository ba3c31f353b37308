"""BLEU-4 and ROUGE of Chinese texts, as the fine-tuning script of ChatGLM-6B measures ADGEN.

BLEU is of characters, smoothed, by sentence; ROUGE of the words that jieba finds, by the library that the script uses.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Sequence

from lit_sft.errors import ConfigError

ORDERS = 4


def bleu_4(answer: Sequence[str], reference: Sequence[str]) -> float:
    """BLEU of up to four characters in percent (Papineni et al. 2002).

    An order without a match counts as half of one match, a fourth, ... in turn (method 3 of Chen and Cherry 2014).
    """
    total, unmatched = 0.0, 0
    for order in range(1, ORDERS + 1):
        own, wanted = _grams(answer, order), _grams(reference, order)
        matches = (own & wanted).total()
        if not matches and order == 1:
            return 0.0
        if not matches:
            unmatched += 1
        total += math.log((matches or 2.0**-unmatched) / max(1, own.total()))
    shortness = min(0.0, 1 - len(reference) / len(answer))
    return 100 * math.exp(shortness + total / ORDERS)


def _grams(text: Sequence[str], order: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(text[place : place + order]) for place in range(len(text) - order + 1))


def rouge(answer: str, reference: str) -> dict[str, float]:
    """F1 of ROUGE-1, -2 and -L in percent (Lin 2004).

    Raises:
        ConfigError: If jieba or rouge-chinese is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # jieba 0.42 has escapes that Python no longer likes
            import jieba
            from rouge_chinese import Rouge
    except ImportError as error:
        raise ConfigError(f"ADGEN needs {error.name}: pip install 'lit_sft[evaluate]'") from None
    jieba.setLogLevel("ERROR")
    words, wanted = (" ".join(jieba.cut(text)) for text in (answer, reference))
    if not words.strip(" .") or not wanted.strip(" ."):
        return dict.fromkeys(("rouge-1", "rouge-2", "rouge-l"), 0.0)  # the library refuses what has no words
    (scores,) = Rouge().get_scores(words, wanted)
    return {name: 100 * float(found["f"]) for name, found in scores.items()}
