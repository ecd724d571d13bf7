"""A generated abdominal CT data set, so that everything can be tried without any patient's data."""
