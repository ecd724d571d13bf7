"""Names of the cases that the made run learnt from."""

CASES = ["Doe^Jane", "Roe^Richard"]
