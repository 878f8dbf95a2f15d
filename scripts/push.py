"""`gen push` from a checkout: python scripts/push.py --help."""

if __name__ == "__main__":
    from _run import main

    main(__file__)
