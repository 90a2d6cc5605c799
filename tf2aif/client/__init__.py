"""The client that measures every variant: what it answers, and how fast.

    python -m tf2aif.client http://edge-7:8080 --samples evaluation/ --reference reference/

It speaks the Open Inference Protocol v2, so it measures other servers too. It ships in an image of
its own: numpy, msgspec and httptools are all it needs. In the order that a run passes:

    samples      an evaluation set or files, one array an input
    address      where a server is, and which model is meant
    connection   one HTTP connection that is kept open
    server       a model at an address: what it takes, and asking it
    answers      all samples once: the answers beside the source model's, and the accuracy
    load         the scenarios of MLPerf LoadGen, as settings
    crew         threads that ask, a connection each
    generator    the scenarios, on a crew
    loadgen      the same scenarios by MLPerf's own LoadGen, where it has a wheel
    figures      percentiles, throughput, and whether they are stable
    measure      windows of one or several subjects in turns
    stages       where the time goes in the server, from its metrics
    report       one value for all of it; as a table, JSON and CSV
"""
