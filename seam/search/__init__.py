"""Search methods, one file each. `interface.py` says what a method is, `problem.py` what it is given."""
