"""Stable forms: expressions that overflow half on the way, rewritten into ones that do not.

`forms.py` has the rows; `choose.py` keeps those that remove nodes from FP32 which exact rescaling leaves there.
"""
