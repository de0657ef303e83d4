"""Packing: rows of other people's formats → checked samples → shards; and a look at shards.

rows.py, coco.py (readers) → convert.py (row → fields) → images.py, unpack.py (bytes) →
admit.py (sample or reason) → write.py, journal.py (shards, resumable); survey.py, sheet.py look.
"""
