"""What holds for every family found in the folder, on a tiny checkpoint of each."""

import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from lit_sft import Conversation, Message, open_checkpoint
from lit_sft.checkpoint.opening import Checkpoint, families
from lit_sft.checkpoint.tiny import demo_texts
from lit_sft.conversation import IGNORE_INDEX, Example
from lit_sft.families._base import TinySize

SIZE = TinySize(hidden_size=64, intermediate_size=96, num_layers=2, num_heads=4, vocab_size=1400, context_length=256)

ONE_TURN = Conversation([Message("user", "镇长叫什么？"), Message("assistant", "镇长名叫周叶。")])
TWO_TURNS = Conversation(
    [
        Message("user", "你好"),
        Message("assistant", "你好！"),
        Message("user", "2加2等于几？\n请回答"),
        Message("assistant", "2加2等于4。"),
    ]
)
LONG_TURN = Conversation(
    [Message("user", "请介绍青榆镇。"), Message("assistant", "青榆镇在银镜湖的东岸，一共住着八百人。")]
)


@dataclass
class Subject:
    checkpoint: Checkpoint
    tokenizer: Any
    model: Any

    def encode(self, conversation: Conversation) -> Example:
        return self.checkpoint.prompt_format.encode(conversation, self.tokenizer)

    def encode_prompt(self, conversation: Conversation) -> list[int]:
        return self.checkpoint.prompt_format.encode_prompt(conversation.prompt(), self.tokenizer)


@pytest.fixture(scope="module", params=sorted(families()))
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    families()[request.param].write_tiny(folder, demo_texts(), SIZE)
    checkpoint = open_checkpoint(folder, request.param)
    return Subject(checkpoint, checkpoint.load_tokenizer(), checkpoint.load_model(dtype=torch.float32))


def batch(*rows: list[int], pad: int = 0, left: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    length = max(map(len, rows))
    padded, masks = [], []
    for row in rows:
        padding, zeros, ones = [pad] * (length - len(row)), [0] * (length - len(row)), [1] * len(row)
        padded.append(padding + row if left else row + padding)
        masks.append(zeros + ones if left else ones + zeros)
    return torch.tensor(padded), torch.tensor(masks)


def loss_of(model: Any, example: Example) -> torch.Tensor:
    logits = model(input_ids=torch.tensor([example.input_ids]), use_cache=False).logits[0, :-1]
    return torch.nn.functional.cross_entropy(
        logits.float(), torch.tensor(example.labels[1:]), ignore_index=IGNORE_INDEX, reduction="sum"
    )


def gradients_of(model: Any) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def test_tiny_checkpoint_is_recognized_without_its_name(subject: Subject) -> None:
    assert open_checkpoint(subject.checkpoint.path).family.name == subject.checkpoint.family.name


def test_no_remote_code_remains_in_the_loaded_config(subject: Subject) -> None:
    assert not getattr(subject.model.config, "auto_map", None)


@pytest.mark.parametrize(
    "text", ["你好，世界！", "def f(x):\n    return x", "a  b\tc", "ABC 123 😀 ＡＢ", "", "\n\n你好\n"]
)
def test_text_survives_encoding(subject: Subject, text: str) -> None:
    ids = subject.tokenizer.encode_text(text)
    decoded = subject.tokenizer.decode(ids, skip_special_tokens=True)
    # The model of ChatGLM-6B writes full-width characters as their ordinary ones, which is its normal form.
    assert decoded.split() in (text.split(), unicodedata.normalize("NFKC", text).split())


@pytest.mark.parametrize(
    "text", ["</s>", "<s>", "[gMASK]", "<sop>", "<eop>", "<reserved_102>", "<|user|>", "<eom>", "<eoh>"]
)
def test_control_tokens_in_text_stay_text(subject: Subject, text: str) -> None:
    """A user must not be able to end a turn or speak for the assistant."""
    conversation = Conversation([Message("user", "你好"), Message("assistant", "你好")])
    injected = Conversation([Message("user", f"你好{text}"), Message("assistant", f"你{text}好")])
    control = {*subject.tokenizer.all_special_ids, *subject.checkpoint.prompt_format.stop_token_ids(subject.tokenizer)}

    def count(said: Conversation) -> int:
        return sum(token in control for token in subject.encode(said).input_ids)

    assert count(injected) == count(conversation)


@pytest.mark.parametrize("conversation", [ONE_TURN, TWO_TURNS, LONG_TURN])
def test_prompt_is_what_training_showed_before_the_last_reply(subject: Subject, conversation: Conversation) -> None:
    example, prompt = subject.encode(conversation), subject.encode_prompt(conversation)
    assert list(example.input_ids[: len(prompt)]) == prompt
    assert list(example.labels[len(prompt) :]) == list(example.input_ids[len(prompt) :])


def test_prompt_tokens_carry_no_loss_and_the_end_of_turn_does(subject: Subject) -> None:
    example, prompt = subject.encode(ONE_TURN), subject.encode_prompt(ONE_TURN)
    stop = subject.checkpoint.prompt_format.stop_token_ids(subject.tokenizer)
    # Nothing predicts the first token, so its label is not a loss: Baichuan's own script sets </s> there.
    assert set(example.labels[1 : len(prompt) - 1]) <= {IGNORE_INDEX}
    supervised = [label for label in example.labels if label != IGNORE_INDEX]
    assert supervised[-1] in stop or supervised[-2] in stop
    reply = [label for label in example.labels[len(prompt) :] if label not in stop]
    assert "周叶" in subject.tokenizer.decode(reply, skip_special_tokens=True)


def test_padding_on_either_side_changes_nothing(subject: Subject) -> None:
    rows = [subject.encode_prompt(ONE_TURN), subject.encode_prompt(TWO_TURNS)]
    with torch.no_grad():
        alone = [subject.model(input_ids=torch.tensor([row])).logits[0] for row in rows]
        for left in (False, True):
            input_ids, mask = batch(*rows, pad=subject.tokenizer.pad_token_id or 0, left=left)
            logits = subject.model(input_ids=input_ids, attention_mask=mask).logits
            for row, expected in enumerate(alone):
                torch.testing.assert_close(logits[row][mask[row].bool()], expected, atol=1e-4, rtol=0)


def test_cached_decoding_equals_the_full_forward(subject: Subject) -> None:
    prompt, example = subject.encode_prompt(TWO_TURNS), list(subject.encode(TWO_TURNS).input_ids)
    with torch.no_grad():
        full = subject.model(input_ids=torch.tensor([example])).logits[0]
        step = subject.model(input_ids=torch.tensor([prompt]), use_cache=True)
        logits, cache = [step.logits[0, -1]], step.past_key_values
        for position in range(len(prompt), len(example)):
            mask = torch.ones(1, position + 1, dtype=torch.long)
            step = subject.model(
                input_ids=torch.tensor([[example[position]]]),
                attention_mask=mask,
                past_key_values=cache,
                use_cache=True,
            )
            logits.append(step.logits[0, -1])
    torch.testing.assert_close(torch.stack(logits), full[len(prompt) - 1 :], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "options",
    [{"do_sample": False}, {"do_sample": False, "repetition_penalty": 1.2}, {"num_beams": 3, "do_sample": False}],
    ids=["greedy", "repetition-penalty", "beams"],
)
def test_left_padded_batch_generates_what_single_prompts_do(subject: Subject, options: dict[str, Any]) -> None:
    stop = subject.checkpoint.prompt_format.stop_token_ids(subject.tokenizer)
    rows = [subject.encode_prompt(ONE_TURN), subject.encode_prompt(TWO_TURNS)]

    def generate(input_ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = subject.model.generate(
            input_ids=input_ids,
            attention_mask=mask,
            max_new_tokens=12,
            eos_token_id=stop,
            pad_token_id=stop[0],
            **options,
        )
        return output[:, input_ids.shape[1] :]

    together = generate(*batch(*rows, pad=stop[0], left=True))
    for row, answer in zip(rows, together, strict=True):
        alone = generate(*batch(row))[0]
        assert answer[: len(alone)].tolist() == alone.tolist()


@pytest.mark.parametrize("options", [{"top_k": 5}, {"top_p": 0.9}], ids=["top-k", "top-p"])
def test_sampling_runs_and_repeats_with_its_seed(subject: Subject, options: dict[str, Any]) -> None:
    input_ids = torch.tensor([subject.encode_prompt(ONE_TURN)])
    mask = torch.ones_like(input_ids)
    answers = []
    for _ in range(2):
        torch.manual_seed(1)
        answers.append(
            subject.model.generate(
                input_ids=input_ids, attention_mask=mask, max_new_tokens=8, do_sample=True, **options
            )
        )
    assert torch.equal(answers[0], answers[1])


def test_logits_to_keep(subject: Subject) -> None:
    input_ids = torch.tensor([subject.encode_prompt(ONE_TURN)])
    with torch.no_grad():
        full = subject.model(input_ids=input_ids).logits
        last = subject.model(input_ids=input_ids, logits_to_keep=1).logits
    assert last.shape[1] == 1
    torch.testing.assert_close(last, full[:, -1:], atol=1e-5, rtol=0)


def test_labels_give_the_mean_next_token_loss(subject: Subject) -> None:
    example = subject.encode(ONE_TURN)
    labels = torch.tensor([example.labels])
    with torch.no_grad():
        loss = subject.model(input_ids=torch.tensor([example.input_ids]), labels=labels).loss
        expected = loss_of(subject.model, example) / (labels[:, 1:] != IGNORE_INDEX).sum()
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=0)


def test_decoder_and_head_give_the_logits(subject: Subject) -> None:
    """The training stage selects hidden states before the head."""
    input_ids = torch.tensor([subject.encode_prompt(TWO_TURNS)])
    with torch.no_grad():
        hidden = subject.model.get_decoder()(input_ids=input_ids, use_cache=False).last_hidden_state
        logits = subject.model.get_output_embeddings()(hidden)
        torch.testing.assert_close(logits, subject.model(input_ids=input_ids).logits, atol=1e-5, rtol=0)
    assert subject.model.get_input_embeddings().weight.shape[0] == subject.model.config.vocab_size


def test_packed_rows_do_not_see_each_other(subject: Subject) -> None:
    examples = [subject.encode(ONE_TURN), subject.encode(TWO_TURNS), subject.encode(LONG_TURN)]
    model = subject.model.train()
    separate_loss = torch.stack([loss_of(model, example) for example in examples]).sum()
    separate_loss.backward()
    separate = gradients_of(model)
    with torch.no_grad():
        alone = torch.cat([model(input_ids=torch.tensor([e.input_ids]), use_cache=False).logits[0] for e in examples])

    input_ids = torch.tensor([[token for example in examples for token in example.input_ids]])
    labels = [label for example in examples for label in [IGNORE_INDEX, *example.labels[1:]]]
    position_ids = torch.tensor([[position for example in examples for position in range(len(example))]])
    logits = model(input_ids=input_ids, position_ids=position_ids, use_cache=False).logits
    torch.testing.assert_close(logits[0], alone, atol=1e-4, rtol=0)

    loss = torch.nn.functional.cross_entropy(
        logits[0, :-1], torch.tensor(labels[1:]), ignore_index=IGNORE_INDEX, reduction="sum"
    )
    torch.testing.assert_close(loss, separate_loss, atol=0, rtol=1e-5)
    loss.backward()
    packed = gradients_of(model)
    model.eval()
    assert packed.keys() == separate.keys()
    for name, gradient in packed.items():
        torch.testing.assert_close(gradient, separate[name], atol=1e-4, rtol=1e-4, msg=name)


@pytest.mark.parametrize("use_cache", [None, True])
@pytest.mark.parametrize("mask", ["none", "ones", "right-padding"])
def test_packed_rows_are_seen_however_the_model_is_called(subject: Subject, use_cache: bool | None, mask: str) -> None:
    rows = [list(subject.encode(conversation).input_ids) for conversation in (ONE_TURN, TWO_TURNS)]
    with torch.no_grad():
        alone = torch.cat([subject.model(input_ids=torch.tensor([row])).logits[0] for row in rows])
        num_padded = 3 if mask == "right-padding" else 0
        length = len(alone)
        attention_mask = torch.tensor([[1] * length + [0] * num_padded])
        logits = subject.model(
            input_ids=torch.tensor([rows[0] + rows[1] + [0] * num_padded]),
            position_ids=torch.tensor([[*range(len(rows[0])), *range(len(rows[1])), *[0] * num_padded]]),
            attention_mask=None if mask == "none" else attention_mask,
            use_cache=use_cache,
        ).logits[0, :length]
    torch.testing.assert_close(logits, alone, atol=1e-4, rtol=0)


def test_packed_rows_padded_on_the_left_are_refused_where_they_would_mix(subject: Subject) -> None:
    if subject.checkpoint.family.name in ("native", "chatglm-6b"):
        return  # plain transformers; and a family that makes its own mask
    tokens, positions = torch.tensor([[0, 5, 6, 7, 8]]), torch.tensor([[0, 0, 1, 0, 1]])
    with pytest.raises(ValueError, match="padded on the right only"):
        subject.model(input_ids=tokens, position_ids=positions, attention_mask=torch.tensor([[0, 1, 1, 1, 1]]))


def test_gradient_checkpointing_changes_no_gradient(subject: Subject) -> None:
    model, example = subject.model.train(), subject.encode(TWO_TURNS)
    loss_of(model, example).backward()
    plain = gradients_of(model)
    model.activation_checkpointing_enable({"use_reentrant": False})
    loss_of(model, example).backward()
    recomputed = gradients_of(model)
    model.activation_checkpointing_disable()
    model.eval()
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient, atol=1e-6, rtol=1e-5, msg=name)


def test_eager_and_sdpa_attention_agree(subject: Subject) -> None:
    input_ids, mask = batch(subject.encode_prompt(ONE_TURN), subject.encode_prompt(TWO_TURNS), left=True)
    with torch.no_grad():
        sdpa = subject.model(input_ids=input_ids, attention_mask=mask).logits
        subject.model.set_attn_implementation("eager")
        eager = subject.model(input_ids=input_ids, attention_mask=mask).logits
        subject.model.set_attn_implementation("sdpa")
    torch.testing.assert_close(eager[mask.bool()], sdpa[mask.bool()], atol=1e-4, rtol=0)


def test_bfloat16_has_no_nan_over_the_whole_context(subject: Subject) -> None:
    model = subject.checkpoint.load_model(dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    length = subject.checkpoint.context_length
    ids = list(subject.encode(TWO_TURNS).input_ids)
    input_ids = torch.tensor([(ids * length)[:length]])
    assert input_ids.shape[1] == length == SIZE.context_length
    with torch.no_grad():
        exact = subject.model(input_ids=input_ids).logits
        rounded = model(input_ids=input_ids).logits.float()
    assert torch.isfinite(rounded).all()
    assert (rounded - exact).abs().mean() < 0.02 * exact.std()


def test_saved_model_is_read_back_exactly(subject: Subject, tmp_path: Path) -> None:
    subject.model.save_pretrained(tmp_path)
    for file in subject.checkpoint.tokenizer_files:
        (tmp_path / file.name).write_bytes(file.read_bytes())
    again = open_checkpoint(tmp_path, subject.checkpoint.family.name).load_model(dtype=torch.float32)
    expected = subject.model.state_dict()
    assert again.state_dict().keys() == expected.keys()
    for name, weight in again.state_dict().items():
        assert torch.equal(weight, expected[name]), name


def test_default_lora_targets_are_its_linear_layers(subject: Subject) -> None:
    model = subject.checkpoint.load_model(dtype=torch.float32)
    head = model.get_output_embeddings()
    linear = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }
    assert linear == set(subject.checkpoint.family.lora_targets)
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=list(subject.checkpoint.family.lora_targets)))
    loss_of(wrapped, subject.encode(ONE_TURN)).backward()
    trained = {name for name, parameter in wrapped.named_parameters() if parameter.grad is not None}
    assert trained
    assert all("lora_" in name for name in trained)


def test_the_whole_prompt_is_longer_where_the_history_was_cut(subject: Subject) -> None:
    prompt_format = subject.checkpoint.prompt_format
    asked = TWO_TURNS.prompt()
    assert prompt_format.whole_prompt(asked, subject.tokenizer) == subject.encode_prompt(TWO_TURNS)
    rounds = [Message("user", "问" * 40), Message("assistant", "答" * 40)] * 30
    long = Conversation([*rounds, Message("user", "完")])
    whole = prompt_format.whole_prompt(long, subject.tokenizer)
    assert len(whole) > len(subject.encode_prompt(long)) > 0


@pytest.mark.slow
def test_a_long_history_is_cut_with_few_encodings(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = [Message("user", "问"), Message("assistant", "答")] * 400
    calls = 0
    encode_text = subject.tokenizer.encode_text

    def counted(text: str) -> list[int]:
        nonlocal calls
        calls += len(text)
        return encode_text(text)  # type: ignore[no-any-return]

    monkeypatch.setattr(subject.tokenizer, "encode_text", counted)
    subject.encode_prompt(Conversation([*rounds, Message("user", "完")]))
    assert calls < 150_000


def test_a_batch_has_the_ids_of_its_texts_and_an_empty_batch_has_none(subject: Subject) -> None:
    texts = ["你好，世界！", "</s> <sop> <eom> [MASK] x", "a  b\tc\n", "2加2"]
    together = subject.tokenizer(texts)
    assert together["input_ids"] == [subject.tokenizer(text)["input_ids"] for text in texts]
    assert [len(mask) for mask in together["attention_mask"]] == [len(ids) for ids in together["input_ids"]]
    if subject.checkpoint.family.name != "native":  # transformers' own tokenizers take no empty batch
        assert subject.tokenizer([])["input_ids"] == []


def test_an_answer_marked_so_carries_no_loss_in_any_prompt_format(subject: Subject) -> None:
    first, answer, *rest = TWO_TURNS.messages
    for name, prompt_format in subject.checkpoint.family.prompt_formats().items():
        example = prompt_format.encode(TWO_TURNS, subject.tokenizer)
        alone = prompt_format.encode(
            Conversation([first, answer._replace(is_supervised=False), *rest]), subject.tokenizer
        )
        assert list(alone.input_ids) == list(example.input_ids), name
        last = len(prompt_format.encode_turns(TWO_TURNS, subject.tokenizer)[-1].reply_ids)
        last += len(prompt_format.closing_ids(subject.tokenizer))
        assert list(alone.labels[-last:]) == list(example.labels[-last:]), name
        turns = prompt_format.encode_turns(TWO_TURNS, subject.tokenizer)
        ends_first = len(turns[0].prompt_ids) + len(turns[0].reply_ids) + turns[-1].ends_previous
        if len(turns) > 1:
            assert set(alone.labels[:ends_first]) == {IGNORE_INDEX}, name
            assert set(example.labels[:ends_first]) != {IGNORE_INDEX}, name
        closed = prompt_format.encode(
            Conversation([*TWO_TURNS.messages[:3], TWO_TURNS.messages[3]._replace(is_supervised=False)]),
            subject.tokenizer,
        )
        assert set(closed.labels[-last:]) == {IGNORE_INDEX}, name
