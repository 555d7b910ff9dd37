"""What residency costs: cold answers, warm ones while models load, and the Controller's absence.

`python -m bench.residency --help`.
"""
