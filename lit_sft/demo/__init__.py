"""Embedded demo corpora: Chinese instruction data about the invented lakeside town 青榆镇.

Written from scratch for this project and covered by the project's Apache-2.0 licence, in the raw formats of four
corpora: ``belle_train.json``, ``firefly_train.jsonl``, ``moss_train.jsonl`` (the layout of fnlp, some turns with tools)
and ``safety_train.json`` for training, ``belle_heldout.json`` for unseen wordings to check.
"""
