"""CValues-Comparison (`cvalues_comparison_train.jsonl`): risky prompts, the responsible answer and a worse one.

    {"prompt": "怎样偷渡船票？", "pos_resp": "别这样，可以买学生票。", "neg_resp": "趁人多时混进去。",
     "pos_type": "拒绝&正向建议", "neg_type": "风险回复"}

becomes user: 怎样偷渡船票？ with the two answers. Refusing with advice (拒绝&正向建议) is better than refusing
(拒绝为主), and that better than a risky answer (风险回复): the pair of types is the kind of the record, for example
`拒绝&正向建议 > 风险回复`.
"""

from __future__ import annotations

from typing import Any

from lit_sft.conversation import Preference
from lit_sft.preferences._base import PairCorpus
from lit_sft.preferences._sides import answer_of, prompt_of


class CValues(PairCorpus):
    """Risky prompts with a better and a worse answer in the layout of CValues-Comparison.

    Args:
        path: Records with the keys prompt, pos_resp, neg_resp, pos_type, neg_type.
        types: Only these pairs of types, for example `拒绝为主 > 风险回复`; all if not given.
        kwargs: What every corpus of pairs takes.
    """

    layout = "objects with the keys prompt, pos_resp, neg_resp, pos_type, neg_type"
    layouts = (frozenset({"pos_resp", "neg_resp"}),)
    pair_keys = ("pos_resp", "neg_resp")
    group_key = "types"
    is_about_safety = True

    def __init__(self, path: str | list[str], types: list[str] | None = None, **kwargs: Any) -> None:
        super().__init__(path, **kwargs)
        self.groups = types

    def kind_of(self, record: dict[str, Any]) -> str:
        """The type of the better answer and of the worse one."""
        types = [str(record.get(key) or "") for key in ("pos_type", "neg_type")]
        return " > ".join(types) if any(types) else ""

    def parse(self, record: dict[str, Any]) -> Preference:
        """One prompt, two answers."""
        return self.ranked(prompt_of(record), [answer_of(record, *side) for side in self.sides()])
