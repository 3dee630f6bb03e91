"""The crash matrix: every process killed and stopped at every named moment of a job, and what became of the job.

`make test-crash` runs it; `python -m tests.crash --help` says how to run a part of it.
"""
