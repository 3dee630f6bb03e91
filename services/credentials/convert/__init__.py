"""Between proto messages and the domain, with the validation of every field. Pure."""
