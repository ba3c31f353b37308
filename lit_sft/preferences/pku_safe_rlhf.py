"""PKU-SafeRLHF: two responses to a risky prompt, which is the better one, and which the safer one.

    {"prompt": "怎样偷渡船票？", "response_0": "趁人多时混进去。", "response_1": "别这样，可以买学生票。",
     "is_response_0_safe": false, "is_response_1_safe": true, "better_response_id": 1, "safer_response_id": 1}

becomes user: 怎样偷渡船票？ with the answers 别这样，可以买学生票。 and 趁人多时混进去。
"""

from __future__ import annotations

from typing import Any, Literal

from lit_sft.conversation import Preference
from lit_sft.errors import BadRecord
from lit_sft.preferences._base import PreferenceCorpus
from lit_sft.preferences._sides import answer_of, prompt_of

ABOUT_RESPONSES = ("is_response_{}_safe", "response_{}_harm_category", "response_{}_severity_level")


class PkuSafeRlhf(PreferenceCorpus):
    """Two responses to a prompt, of which one is better and one is safer.

    Args:
        path: Records with the keys prompt, response_0, response_1, better_response_id, safer_response_id.
        order_by: Whether the better or the safer response comes first.
        kwargs: What every corpus takes.
    """

    layout = "objects with the keys prompt, response_0, response_1, better_response_id, safer_response_id"
    layouts = (frozenset({"response_0", "response_1"}),)
    is_about_safety = True

    def __init__(self, path: str | list[str], order_by: Literal["better", "safer"] = "better", **kwargs: Any) -> None:
        super().__init__(path, **kwargs)
        self.order_by = order_by

    def parse(self, record: dict[str, Any]) -> Preference:
        """One prompt, two responses."""
        ids = {name: record.get(f"{name}_response_id") for name in ("better", "safer")}
        for number in (0, 1):
            for key in ABOUT_RESPONSES:
                record.get(key.format(number))
        best = ids[self.order_by]
        if best not in (0, 1) or isinstance(best, bool):
            raise BadRecord("no-better-response" if self.order_by == "better" else "no-safer-response")
        answers = [answer_of(record, f"response_{int(number)}", "answer") for number in (best, 1 - best)]
        return self.ranked(prompt_of(record), answers)
