"""`gen tune` from a checkout: python scripts/tune.py --help."""

if __name__ == "__main__":
    from _run import main

    main(__file__)
