"""Studies: the same run with one thing changed, over several seeds, evaluated alike and brought into one table."""
