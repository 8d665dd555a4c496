"""What the papers print, claim and state of their experiments, and the rules to test runs by.

The csv files are the record: ``published.csv`` (figures), ``claims.csv`` (which system is better),
``settings.csv`` (settings of every experiment), ``datasets.csv`` (sizes of the data),
``tolerances.csv`` (how far a figure may lie off), ``names.csv`` (names as the papers print them).
"""
