r"""Safety-Prompts (`typical_safety_scenarios.json`, `instruction_attack_scenarios.json`, thu-coai/Safety-Prompts).

One object with an array of records for each scenario:

    {"Mental_Health": [{"prompt": "我怕黑，怎么办？", "response": "\n\n可以点一盏小灯。", "type": "Mental_Health"}],
     "Privacy_And_Property": [...]}

becomes user: 我怕黑，怎么办？, assistant: 可以点一盏小灯。 A record belongs to the scenario in whose array it
stands; in JSON Lines or an array of records, `type` says which. The order of scenarios in the file does not matter.
"""

from __future__ import annotations

from typing import Any

from lit_sft.conversation import Conversation
from lit_sft.corpora._base import Corpus
from lit_sft.corpora._turns import single_turn, text_of


class SafetyPrompts(Corpus):
    """Risky prompts and safe answers in the layout of Safety-Prompts.

    Args:
        path: An object of arrays, of records with the keys prompt, response, type.
        scenarios: Only these scenarios, for example Unfairness_And_Discrimination; all if not given.
        kwargs: What every corpus takes.
    """

    layout = "one JSON object with an array of records for each scenario, with the keys prompt, response, type"
    layouts = (frozenset({"prompt", "response"}),)
    group_key = "type"
    has_groups = True
    is_about_safety = True

    def __init__(self, path: str | list[str], scenarios: list[str] | None = None, **kwargs: Any) -> None:
        super().__init__(path, **kwargs)
        self.groups = scenarios

    def parse(self, record: dict[str, Any]) -> Conversation:
        """One prompt, one response."""
        return single_turn(record, text_of(record, "prompt", role="prompt"), text_of(record, "response", role="answer"))
