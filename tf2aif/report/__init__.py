"""The report: one HTML page of what is in `build/`, and the same figures as JSON and CSV.

    collect   records of variants, steps, builds and benchmarks -> Report (data.py)
    changes   two Reports -> what differs
    plots     a Report -> SVG; page: a Report -> HTML; files: all of it, written

Nothing here imports TensorFlow or doit. Matplotlib and Jinja are imported inside functions.
"""
