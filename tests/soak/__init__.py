"""The soak: a real stack under churn and random faults for as long as one likes, and what became of everything that
could grow. `python -m tests.soak --help`, or `make soak`."""
