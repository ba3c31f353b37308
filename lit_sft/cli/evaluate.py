"""The verb evaluate: C-Eval, CMMLU and ADGEN."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lit_sft.bars import bar
from lit_sft.cli._source import DType, QuantType, open_source
from lit_sft.display import visible
from lit_sft.errors import ConfigError

if TYPE_CHECKING:
    from lit_sft.benchmarks.choosing import Asked, Form
    from lit_sft.benchmarks.multiple_choice import MultipleChoice
    from lit_sft.chat.network import Network, Source
    from lit_sft.generation.strategies import Strategy

SHOTS = 5


def evaluate(
    benchmark: Literal["ceval", "cmmlu", "adgen"],
    data: str,
    run: str | None = None,
    checkpoint: str | None = None,
    adapter: str | None = None,
    base: bool = False,
    output: str | None = None,
    split: str | None = None,
    shots: int = SHOTS,
    form: Literal["chat", "plain"] = "chat",
    subjects: list[str] | None = None,
    limit: int | None = None,
    token_budget: int = 8192,
    max_new_tokens: int = 128,
    dtype: DType | None = None,
    quantization: QuantType | None = None,
    family: str = "auto",
    prompt_format: str | None = None,
) -> None:
    """Measure a model on C-Eval, CMMLU or ADGEN, whose files lie in a folder as they are released.

    An evaluation that was interrupted goes on. docs/evaluate.md says how models are asked, and what stands beside.

    Args:
        benchmark: Which.
        data: Folder of C-Eval (dev, val, test) or CMMLU (dev, test), or the JSON Lines of ADGEN.
        run: Run folder whose model to measure; the newest in runs/ if neither it nor a checkpoint is given.
        checkpoint: Model folder in its original layout.
        adapter: PEFT or prefix folder on it.
        base: Measure the model of the run or adapter without what was trained.
        output: Folder of the results; RUN/evaluation/NAME, or runs/evaluation-MODEL/NAME, if not given.
        split: val or test of C-Eval (val if not given; test has no answers and gives a file to submit).
        shots: Examples before each question, 0 to 5.
        form: Ask by the prompt format of the model, or `plain`, which published numbers of base models do.
        subjects: Names of those to measure; all of which there are files if not given.
        limit: Questions of each subject, or records, at most.
        token_budget: Tokens read at once.
        max_new_tokens: Of an answer to ADGEN.
        dtype: Type of the weights; that of the run, else bfloat16 on a GPU and float32 on a CPU.
        quantization: Quantize while loading; as the run did if not given.
        family: Name of the model family, or `auto` to recognize it.
        prompt_format: Name of one of the family's prompt formats; its default if not given.

    Raises:
        UserError: If options do not go together, or model or files cannot be read.
    """
    if not 0 <= shots <= SHOTS:
        raise ConfigError(f"--shots is {shots}; there are {SHOTS} examples of each subject")
    if limit is not None and limit < 1:
        raise ConfigError(f"--limit is {limit}; it must be at least 1")
    source, named = open_source(checkpoint, adapter, run, dtype, quantization, family, prompt_format)
    if base:
        _refuse_without_base(source)
    settings: dict[str, Any] = {"benchmark": benchmark, **_model(source, base=base), "limit": limit}
    if benchmark == "adgen":
        from lit_sft.generation.strategies import TopP

        # As the script samples.
        strategy = TopP(top_p=0.7, temperature=0.95, max_new_tokens=max_new_tokens)
        settings |= {"strategy": strategy.parameters()}
        folder = _folder(output, named, source, f"adgen{'-base' * base}")
        _advertise(source, Path(data), folder, settings, strategy, base=base, token_budget=token_budget)
        return
    chosen = _benchmark(benchmark, Path(data))
    split = split or chosen.splits[0]
    if split not in chosen.splits:
        raise ConfigError(f"--split is {split}; {benchmark} has {', '.join(chosen.splits)}")
    settings |= {"split": split, "shots": shots, "form": form, "subjects": chosen.present(split, subjects)}
    folder = _folder(output, named, source, f"{benchmark}-{split}-{shots}-{form}{'-base' * base}")
    _choose(source, chosen, folder, settings, base=base, token_budget=token_budget)


def _refuse_without_base(source: Source) -> None:
    if source.is_base:
        raise ConfigError("--base leaves out what was trained, and nothing was: leave it out")
    if source.untuned:
        raise ConfigError(f"all weights were tuned: measure --checkpoint {source.untuned}")


def _benchmark(name: str, folder: Path) -> MultipleChoice:
    from lit_sft.benchmarks.ceval import CEval
    from lit_sft.benchmarks.cmmlu import CMMLU

    return CEval(folder) if name == "ceval" else CMMLU(folder)


def _model(source: Source, *, base: bool) -> dict[str, Any]:
    """What of the model decides about answers."""
    trained = "none"
    if source.adapter and not base:
        files = sorted(file for file in source.adapter.iterdir() if file.suffix in {".safetensors", ".bin"})
        trained = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    return {
        "family": source.checkpoint.family.name,
        "prompt_format": source.checkpoint.family.prompt_format_name,
        "model": source.checkpoint.fingerprint(),
        "adapter": trained,
        "dtype": str(source.dtype),
        "quantization": source.quantization.quantization() if source.quantization else None,
    }


def _folder(output: str | None, named: str, source: Source, name: str) -> Path:
    if output:
        return Path(output)
    folder = Path(named)
    is_run = folder.resolve() != source.checkpoint.path.resolve()
    return folder / "evaluation" / name if is_run else Path("runs") / f"evaluation-{folder.resolve().name}" / name


def _choose(
    source: Source,
    benchmark: MultipleChoice,
    folder: Path,
    settings: dict[str, Any],
    *,
    base: bool,
    token_budget: int,
) -> None:
    from lit_sft.benchmarks.choosing import batches, log_likelihoods
    from lit_sft.benchmarks.multiple_choice import LETTERS
    from lit_sft.benchmarks.published import published
    from lit_sft.benchmarks.scores import accuracies, choice, table
    from lit_sft.benchmarks.store import Store
    from lit_sft.chat.network import Network

    store = Store(folder, settings)
    network = Network(source)
    asked = _questions(benchmark, network, settings)
    missing = [each for each in asked if (each.question.subject, each.question.id) not in store.rows]
    with bar(total=len(missing), unit=" questions", desc=benchmark.name) as progress:
        for batch in batches(missing, token_budget):
            found = log_likelihoods(network, batch, is_tuned=not base)
            store.add(
                [
                    {
                        "subject": each.question.subject,
                        "id": each.question.id,
                        "log_probs": dict(zip(LETTERS, log_probs, strict=True)),
                        "choice": choice(log_probs),
                        "answer": each.question.answer,
                        "shots": each.num_shots,
                    }
                    for each, log_probs in zip(batch, found, strict=True)
                ]
            )
            progress.update(len(batch))
    rows = [store.rows[each.question.subject, each.question.id] for each in asked]
    results: dict[str, Any] = {**settings, "published": published(benchmark.name, settings["family"])}
    results["fewer_shots"] = sum(row["shots"] < settings["shots"] for row in rows)
    if all(row["answer"] for row in rows):
        results |= accuracies(type(benchmark), rows)
    else:
        submission: dict[str, dict[str, str]] = {}
        for row in rows:
            submission.setdefault(row["subject"], {})[row["id"]] = row["choice"]
        results["submission"] = submission
    _tell(store, results, table(results))


def _questions(benchmark: MultipleChoice, network: Network, settings: dict[str, Any]) -> list[Asked]:
    """As the model reads them, each after its examples."""
    from lit_sft.benchmarks.choosing import ask

    form: Form = settings["form"]
    asked = []
    for subject in settings["subjects"]:
        examples = benchmark.read("dev", subject)[: settings["shots"]] if settings["shots"] else []
        questions = benchmark.read(settings["split"], subject)[: settings["limit"]]
        asked += [ask(benchmark, examples, question, network, form) for question in questions]
    return asked


def _advertise(
    source: Source,
    file: Path,
    folder: Path,
    settings: dict[str, Any],
    strategy: Strategy,
    *,
    base: bool,
    token_budget: int,
) -> None:
    from lit_sft.benchmarks import adgen
    from lit_sft.benchmarks.store import Store
    from lit_sft.benchmarks.text_scores import rouge
    from lit_sft.chat.network import Network

    rouge("好", "好")  # before anything is loaded: are the packages there?
    records = adgen.read(file)[: settings["limit"]]
    store = Store(folder, settings)
    missing = [record for record in records if ("adgen", record.id) not in store.rows]
    network = Network(source)
    # Attributes are short: a hundred tokens of prompt beside the answer.
    size = max(1, token_budget // (strategy.max_new_tokens + 100))
    with bar(total=len(missing), unit=" records", desc="adgen") as progress:
        for start in range(0, len(missing), size):
            batch = missing[start : start + size]
            with network.adapter(not base):
                store.add(adgen.answered(network, batch, strategy))
            progress.update(len(batch))
    scores = adgen.means([store.rows["adgen", record.id] for record in records])
    lines = [f"adgen, {len(records)} records", "", *(f"{name:<10}{value:>8.2f}" for name, value in scores.items())]
    _tell(store, {**settings, **scores}, "\n".join(lines) + "\n")


def _tell(store: Any, results: dict[str, Any], table: str) -> None:
    store.finish(results, table)
    print(table)  # noqa: T201
    print(visible(str(store.folder / "results.json")))  # noqa: T201
