from lit_sft.errors import accepted


def test_a_wrong_name_is_answered_with_the_nearest_and_all_accepted_ones() -> None:
    assert accepted("rnak", ["rank", "alpha"]) == "Did you mean 'rank'? Accepted: alpha, rank"
    assert accepted("zzz", ["rank", "alpha"]) == "Accepted: alpha, rank"
