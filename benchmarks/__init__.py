"""Measurements of the indexer, each against something in the same run, each verified before it is reported.

`python -m benchmarks` lists the cases. Nothing imports this package.
"""
