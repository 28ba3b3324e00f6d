"""The best fleet to have: a mixed-integer programme on HiGHS, its answer, and the proof of how good that is.

`problem.py` says what is asked and what an answer is; `build.py` makes rows of it; `solve.py` answers; `check_answer.py`
recomputes the answer without the rows. The fleet file is turned into a Problem, and an Answer into a fleet file, in `app`.
"""
