"""Fills the tables of REPORT.md and README.md from the records, and checks what both of them say.

    python -m report            # after new results: fills the tables, draws figures/recipes.png
    python -m report --check    # writes nothing; a line for each check that fails, and exit status 1

`records` reads the results and has what the student's report prints beside them. `claims` holds that report's sentences
to the results, `equations` finds where each equation is computed and tested, `tables` makes the tables out of all this,
and `checks` are what the committed results and documents must bear out.
"""
