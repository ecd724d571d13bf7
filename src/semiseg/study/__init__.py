"""Studies: methods by label budgets by seeds from one TOML file, run by run, and what they come to."""
