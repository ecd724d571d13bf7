"""Learning methods behind one small protocol (`base`); adding one is one file and one line in `build`."""
