"""Errors of one line and a help that documents every option."""
from __future__ import annotations
from typing import Any, NoReturn
from lightning.pytorch.cli import LightningArgumentParser

class ShortErrorParser(LightningArgumentParser):
    pass
