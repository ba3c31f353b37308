"""A stage whose network answers prompts: for `predict`, `compare`, and the samples of a fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from lit_sft.conversation import Prompt
from lit_sft.data.batch import Batch
from lit_sft.generation.generate import Answer, batches_by_length, generate_answers
from lit_sft.generation.strategies import Greedy, Strategy, by_name
from lit_sft.losses.cross_entropy import TokenTotals, supervised_cross_entropy
from lit_sft.stages._best_of import BestOf
from lit_sft.stages._compile import uncompiled
from lit_sft.stages._predicting import Predicting
from lit_sft.tuning._base import Tuning


class Answering(Predicting):
    """A stage that can be asked.

    Args:
        checkpoint: Model folder in its original layout.
        tuning: Which weights train.
        generation: How `predict` and the samples during validation choose tokens; with a list, in each of its ways;
            greedy if not given.
        kwargs: What every stage takes.
    """

    network_methods: ClassVar[tuple[str, ...]] = ("answer",)

    best_of: BestOf | None = None
    """What chooses among several answers to each prompt that `predict` asks, if anything does."""

    def __init__(
        self, checkpoint: str, tuning: Tuning, *, generation: Strategy | list[Strategy] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(checkpoint, tuning, **kwargs)
        generation = Greedy() if generation is None else generation
        self.strategies = by_name(generation if isinstance(generation, list) else [generation])

    def token_totals(self, batch: Batch) -> TokenTotals:
        """Next-token loss, tokens and correct tokens of a micro-batch, summed by corpus."""
        network = self.causal_lm
        if batch.position_ids is not None:  # where they restart, another example of a packed row begins
            self.refuse_mixing()
        decoded = network.get_decoder()(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False)
        return supervised_cross_entropy(
            decoded.last_hidden_state,
            batch.labels,
            self.behavior.head(network),
            groups=batch.corpus_ids,
            num_groups=len(batch.corpora),
            num_supervised=batch.num_supervised,
            z_loss_weight=self.checkpoint.family.z_loss_weight,
        )

    def group_prompts(self, lengths: Sequence[int], token_budget: int) -> list[list[int]]:
        """By the tokens of prompts and answers, of all beams."""
        strategies = list(self.strategies.values())
        context_length = self.checkpoint.context_length
        return batches_by_length(lengths, strategies, context_length=context_length, token_budget=token_budget)

    def rows(self, prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
        """A row for each prompt and strategy, with the score of the answer where it was chosen by one."""
        return [
            {
                "source": prompt.source,
                "category": prompt.category,
                "strategy": strategy,
                "prompt": prompt.text,
                "is_truncated": prompt.is_truncated,
                "answer": answer.text,
                "reference": prompt.reference,
                "finish_reason": answer.finish_reason,
                "prompt_tokens": len(prompt.input_ids),
                "answer_tokens": answer.num_tokens,
                **score,
            }
            for prompt, by_strategy in zip(prompts, self._chosen(prompts), strict=True)
            for strategy, (answer, score) in by_strategy.items()
        ]

    def _chosen(self, prompts: Sequence[Prompt]) -> list[dict[str, tuple[Answer, dict[str, Any]]]]:
        """Of each prompt the answer by strategy, and what there is to say of its choice."""
        if not self.best_of:
            return [{name: (answer, {}) for name, answer in answers.items()} for answers in self.answer(prompts)]
        num_answers = self.best_of.num_answers
        draws = [self.answer(prompts, number) for number in range(num_answers)]
        return [
            {name: (best.answer, {"score": best.score, "best_of": num_answers}) for name, best in by_strategy.items()}
            for by_strategy in self.best_of.choose(prompts, draws, self.device)
        ]

    def row_settings(self) -> dict[str, Any]:
        """How answers are chosen, and where they end."""
        return {
            "stop tokens": self.checkpoint.prompt_format.stop_token_ids(self.tokenizer),
            "strategies": [
                {"name": name, "class": type(strategy).__name__, **strategy.parameters()}
                for name, strategy in self.strategies.items()
            ],
            **(self.best_of.settings() if self.best_of else {}),
        }

    def answer(self, prompts: Sequence[Prompt], number: int = 0) -> list[dict[str, Answer]]:
        """Of each prompt the answers by the name of the strategy.

        Args:
            prompts: What is asked.
            number: Another one samples other answers.
        """
        with uncompiled():
            answers = [
                generate_answers(
                    self.causal_lm,
                    self.tokenizer,
                    [prompt.input_ids for prompt in prompts],
                    strategy.redrawn(number),
                    stop_token_ids=self.checkpoint.prompt_format.stop_token_ids(self.tokenizer),
                    context_length=self.checkpoint.context_length,
                )
                for strategy in self.strategies.values()
            ]
        return [dict(zip(self.strategies, of_prompt, strict=True)) for of_prompt in zip(*answers, strict=True)]
