"""`gen bench-decode` from a checkout: python scripts/bench_decode.py --help."""

if __name__ == "__main__":
    from _run import main

    main(__file__)
