"""Embedded demo corpora: Chinese instruction data about the invented lakeside town 青榆镇.

Written from scratch for this project and covered by the project's Apache-2.0 license, in the raw formats of four
corpora: ``belle_train.json``, ``firefly_train.jsonl``, ``moss_train.jsonl`` (the layout of fnlp, some turns with tools)
and ``safety_train.json`` for training, ``belle_heldout.json`` for unseen wordings to check.

``preference_train.jsonl`` and ``preference_heldout.jsonl``, with other prompts, hold pairs of answers in the layout of
alpaca: polite and rude, to the point and rambling, a refusal and help with harm, complete and curt. In half of them the
better answer is the longer one, so that length alone decides nothing.
"""
