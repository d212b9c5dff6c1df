"""Comparison of stdserve with other servers, run by hand: `python -m tests.bench`. Not a test, never timed in CI.

    __main__.py   command line; the rounds of one case
    cases.py      what is asked of a server
    servers.py    how each server is started, and for which cases it is fit
    load.py       wrk as the client (wrk.lua: its request body and its report)
    procs.py      a server process: start, wait, CPU and memory of its tree, kill
    peers.py      the environment that the other servers are installed in
    report.py     medians and the Markdown tables
    floor.py      a loop that only receives and sends, the lower bound
    apps.py       the applications under test; app_fastapi.py and app_flask.py need their framework
    idle.py       10,000 idle connections: `python -m tests.bench.idle`
    handshakes.py TLS handshakes, new and resumed: `python -m tests.bench.handshakes`
    streams.py    long bodies, slow at one end: `python -m tests.bench.streams`

Standard library only, Linux only (/proc). All traffic goes to 127.0.0.1.
"""
