"""The configuration for which `--run DIR` and `--resume DIR` stand."""

from __future__ import annotations

import logging
from pathlib import Path

from lit_sft.configuration import expanded
from lit_sft.errors import ConfigError
from lit_sft.runs.folder import CONFIG, is_run, newest_run


def expand_run(arguments: list[str]) -> list[str]:
    """Put the configuration that `--run DIR`, or `--resume DIR`, stands for in front of the other options.

    Without a configuration and without `--run`, all but fit take the newest run and say so.

    Raises:
        ConfigError: If there is no such run.
    """
    verb, options = arguments[0], arguments[1:]
    is_asking = {"-h", "--help"} & set(options) or any(".help" in option for option in options)
    if is_asking:
        return arguments
    has_config = bool(_value_of("--config", options) or _value_of("-c", options))
    if verb == "fit":
        run = _value_of("--resume", options)
        if run == "auto" and not has_config:
            raise ConfigError("--resume auto looks for the run that --config names; give one, or --resume RUN")
        if run is None or has_config:
            return arguments
    else:
        run = _value_of("--run", options)
    if run is None:
        if has_config:
            return arguments
        run = str(newest_run(Path(_value_of("--runs", options) or "runs")))
        logging.getLogger(__name__).warning("taking the newest run, %s", run)
        options = ["--run", run, *options]
    if not is_run(Path(run)):
        raise ConfigError(f"{run} is not a run folder: it holds no {CONFIG}")
    return [verb, "--config", str(Path(run) / CONFIG), *options]


def _value_of(option: str, options: list[str]) -> str | None:
    for index, word in enumerate(options):
        if word.startswith(f"{option}="):
            return expanded(word.partition("=")[2])
        if word == option and index + 1 < len(options):
            return expanded(options[index + 1])
    return None
