"""Quality with its uncertainty and speed as it is really measured.

features/ (image -> vector), metrics/ (vectors -> number), meter.py (their product, in any order and batch size),
throughput.py (speed), saving.py (what a feature cache saves), evaluate.py (samples -> record), leaderboard.py
(records -> page).
"""

if __name__ != "gen.eval":
    raise ImportError("import gen.eval, not eval")
