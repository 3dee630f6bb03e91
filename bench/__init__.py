"""What the suite can do on this machine, beside what its parts and its peers can do in the same run."""
