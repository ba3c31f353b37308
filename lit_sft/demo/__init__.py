"""Embedded demo corpus: Chinese instruction data about the invented lakeside town 青榆镇.

Written from scratch for this project and covered by the project's Apache-2.0 licence.
Both files use the raw BELLE format (one JSON object per line, UTF-8):
``belle_train.json`` for training, ``belle_heldout.json`` for unseen wordings to check.
"""
