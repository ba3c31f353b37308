"""Options under the names that other programs have for them."""

from lit_sft.spellings import ours, renamed


def test_an_option_of_another_program_is_found_under_our_name() -> None:
    assert ours("r", ["alpha", "rank"]) == "rank"
    assert ours("learning-rate", ["trainer.max_epochs", "model.lr"]) == "model.lr"
    assert ours("x.num_train_epochs", ["trainer.max_epochs"]) == "trainer.max_epochs"
    assert ours("nonsense", ["rank"]) is None


def test_options_are_renamed_and_others_stay() -> None:
    assert renamed({"lora_alpha": 8, "rank": 4}) == {"alpha": 8, "rank": 4}
