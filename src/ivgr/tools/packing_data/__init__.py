"""Packing: rows in other people's formats → checked samples → shards; and a look at shards.

source_rows.py, coco.py (readers) → convert.py (row → fields) → source_images.py, unpack.py (bytes) →
admit.py (sample or reason) → write_packed.py, pack_state.py (shards, resumable); survey.py and
contact_sheet.py show what shards hold.
"""
